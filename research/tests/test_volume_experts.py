# SPDX-License-Identifier: Apache-2.0
"""A training of the experts on volumes starts, goes on, and can be judged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bids_moediff.families.posterior import LocalScale
from bids_moediff.imaging.simulation import Grids
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from research.scale.crops import FIXED, make_crop
from research.volume_experts import compare, train


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Four crops of smooth random volumes."""
    folder = tmp_path_factory.mktemp("crops")
    network = MeanNetwork(MeanConfig(channels=4, blocks=1)).eval()
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        volume = torch.rand((1, 1, 72, 72, 72), generator=generator)
        volume = torch.nn.functional.avg_pool3d(volume, 3, 1, 1)[0, 0]
        crop = make_crop(network, volume, FIXED["x2iso"], index)
        save_file(crop, folder / f"{index}.safetensors")
    return folder


def _run(folder, crops, *more):
    train.main([
        str(folder), "--crops", str(crops), "--fixed", str(crops), "--scale", "none",
        "--channels", "4", "--blocks", "1", "--arms", "mixture", "single", *more,
    ])  # fmt: skip


def test_training_goes_on_and_keeps_its_curve(tmp_path, crops, monkeypatch):
    _run(tmp_path, crops, "--minutes", "0.001")
    first = json.loads((tmp_path / "mixture/curve.json").read_text())[-1]
    assert first["step"] >= 1
    _run(tmp_path, crops, "--minutes", str((first["seconds"] + 2) / 60))
    last = json.loads((tmp_path / "mixture/curve.json").read_text())[-1]
    assert last["step"] > first["step"]
    assert len(last["ratios"]) == 4
    assert abs(sum(last["usage"]) - 1) < 1e-2
    network = compare.load_experts(tmp_path / "mixture")
    assert network.config.channels == 4


def test_targets_are_what_is_left_of_noise_and_error():
    """At theta = 90 degrees nothing but the error is missing, at 0 nothing but the noise."""
    side = train.PATCH
    patch = {
        "inputs": torch.zeros(4, side, side, side),
        "numbers": torch.zeros(7),
        "weight": torch.ones(side, side, side),
        "deviation": torch.full((side, side, side), 0.02),
        "error": torch.full((side, side, side), 2.0),
        "noise": torch.full((side, side, side), 3.0),
    }
    network = train.VolumeExperts(train.VolumeExpertsConfig(channels=4, blocks=1))
    _, before = train.losses(network, [patch, patch], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(before, torch.tensor([4.0, 9.0]))


def test_judge_knows_a_perfect_sampler():
    """Errors drawn from the sampler: v near 1, scores below those of twice the spread."""
    shape = (40, 40, 40)
    plan = FIXED["x2iso"]
    operator = Grids.inside(shape, (1.0, 1.0, 1.0), plan.ratios).operator(plan.acquisition)
    space = compare.NullSpace(operator)
    case = {f"matrix{axis}": matrix for axis, matrix in enumerate(space.matrices)}
    scale = LocalScale(torch.full(shape, 0.05), None, space)
    mean = torch.full(shape, 0.5)
    case |= {"mean": mean, "truth": mean + scale.missing_noise(99)}
    judge = compare.Judge.of(case)
    samples = torch.stack([scale.missing_noise(seed) for seed in range(8)])
    found = judge.numbers(samples)
    assert abs(found["v"] - 1) < 0.1
    energy, single = judge.scores(2 * samples)
    assert energy > 1.05 * found["ES"]
    assert single > 1.05 * found["CRPS"]
    assert judge.variance_ratio(2 * samples) > 2 * found["v"]


def test_single_expert_has_as_many_weights():
    config = train.VolumeExpertsConfig()
    wanted = train.weight_count(train.VolumeExperts(config))
    single = train.equal_single(config)
    assert single.experts == ("plain",)
    assert abs(train.weight_count(train.VolumeExperts(single)) / wanted - 1) < 0.1
