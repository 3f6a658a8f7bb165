# SPDX-License-Identifier: Apache-2.0
"""The weights that ship make images better, by a margin that broken ones do not reach."""

from pathlib import Path

import pytest

from bids_moediff.evaluation.benchmark import BASELINES, model_method, protocol_task
from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.super_resolver import SuperResolver

BLOCK = Path(__file__).parent / "data" / "sharp_block" / "T1w.nii.gz"
# Gains over these, in dB.
LEAST = {"cubic": 1.5, "back-projection": 0.8}


@pytest.fixture(scope="module")
def block() -> Loaded:
    return TruthHead(BLOCK).load()


@pytest.fixture(scope="module", params=["student", "moediff"])
def resolver(request: pytest.FixtureRequest) -> SuperResolver:
    return SuperResolver.from_pretrained(request.param, "cpu", "fp32")


@pytest.mark.parametrize("key", ["x2iso-kspace", "x4slices-gaussian"])
def test_shipped_weights_gain_over_interpolation(
    block: Loaded, resolver: SuperResolver, key: str
) -> None:
    task = protocol_task(block, parse_protocol(key))
    ours = psnr(model_method(resolver).restore(task), task.truth, task.mask)
    for baseline in BASELINES:
        if baseline.name in LEAST:
            gain = ours - psnr(baseline.restore(task), task.truth, task.mask)
            assert gain > LEAST[baseline.name], f"{gain:.2f} dB over {baseline.name}"
