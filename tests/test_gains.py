# SPDX-License-Identifier: Apache-2.0
"""The weights that ship make images better, and by as much as when they shipped.

A layer whose sign is changed costs less than what a model gains over interpolation, so figures are
held to those of the shipped weights too (tests/block_figures.py makes them).
"""

import json

import pytest

from bids_moediff.evaluation.truth import Loaded
from block_figures import FIGURES, MODELS, figures, load_block

# Gains over these, in dB.
LEAST = {"student": (1.5, 0.8), "moediff": (1.5, 0.8), "crfm": (1.5, 0.8), "nsmoe": (1.0, 0.0)}
# Largest departure: dB of gains, and the share of other figures. 32-bit sums of other processors
# differ by less than a tenth of this.
NEAR_DB, NEAR = 0.01, 0.002


@pytest.fixture(scope="module")
def block() -> Loaded:
    return load_block()


@pytest.mark.parametrize("model", MODELS)
def test_shipped_weights_gain_what_they_gained(block: Loaded, model: str) -> None:
    shipped = json.loads(FIGURES.read_text())[model]
    found = figures(model, block)
    over_cubic, over_back_projection = LEAST[model]
    for key, value in found.items():
        if "over" in key:
            least = over_cubic if key.endswith("cubic") else over_back_projection
            assert value > least, f"{value:.2f} dB: {key}"
    near = {key: NEAR_DB if "over" in key else NEAR * value for key, value in shipped.items()}
    assert found.keys() == shipped.keys()
    apart = {key: (found[key], shipped[key]) for key in near}
    assert not {key: pair for key, pair in apart.items() if abs(pair[0] - pair[1]) > near[key]}
