# SPDX-License-Identifier: Apache-2.0
"""The parts of a last layer that follow noise, filters and softness."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.cli.train import main
from bids_moediff.families.load import load_model
from bids_moediff.families.told_tail import (
    fading,
    fit_told_tail,
    wanted_of,
    with_told_tail,
)
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.simulated_filters import FILTERS
from bids_moediff.imaging.told import EXTRA_NUMBERS
from bids_moediff.networks.last_layer import within_training
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.training.stage import Batch
from bids_moediff.training.uncertain import UncertainPlan, draw_uncertain, measure
from training_data import pack, tiny

SHAPE = {"channels": 8, "blocks": 1}


def shaken(network: MeanNetwork) -> MeanNetwork:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def batch(seed: int, told: list[float]) -> Batch:
    """A patch whose network input is the teacher's plus noise of the told size."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.rand(1, 28, 28, 28, generator=generator)
    clear = torch.nn.functional.avg_pool3d(white, 5, 1, 2)
    noise = 0.1 * told[0] * torch.randn(1, 28, 28, 28, generator=generator)
    six = torch.tensor([[1.0, 1.0, 1.0, 1.2, 1.2, 1.2]])
    return {
        "start": clear + noise,
        "target": clear,
        "weight": torch.ones(1, 28, 28, 28),
        "condition": torch.cat([six, torch.tensor([told])], 1),
        "clear_start": clear,
        "clear_condition": six,
        "by_truth": torch.tensor([False]),
    }


def test_told_noise_is_taken_off_and_the_untold_stays_as_it_was() -> None:
    teacher = shaken(MeanNetwork(MeanConfig(**SHAPE)))
    network = with_told_tail(teacher)
    recipe = replace(tiny("mean-told-tail"), patch=28, border=4, fade=8, ridge=1e-4)
    batches = [batch(seed, [level, 0.0, 0.0, 0.0]) for seed, level in enumerate([1.0, 0.0] * 3)]
    fit_told_tail(teacher, network, batches, recipe)
    own = network.tail_terms.bias.detach()[6 * network.tail.out_channels :]
    assert float(own[: network.tail.out_channels].abs().max()) > 1e-4  # of the told noise
    new = batch(9, [1.0, 0.0, 0.0, 0.0])
    with torch.no_grad():
        wanted = teacher(new["clear_start"][:, None], new["clear_condition"])
        before = teacher(new["start"][:, None], new["clear_condition"])
        after = network(new["start"][:, None], new["condition"])
        untold = network(new["start"][:, None], new["clear_condition"])
    torch.testing.assert_close(untold, before, atol=1e-5, rtol=0)
    inner = (..., *(slice(6, -6),) * 3)
    missed = [(image - wanted)[inner].square().mean() for image in (before, after)]
    assert missed[1] < 0.8 * missed[0]


def test_weights_fade_in_and_count_inside() -> None:
    window = fading(16, 3, 4)
    assert window[:3].max() == 0
    assert window[8, 8, 8] == 1
    assert torch.equal(window, window.flip((0, 1, 2)))


def test_draws_hold_what_scanners_do() -> None:
    rng = np.random.default_rng(0)
    plans = [draw_uncertain(rng) for _ in range(400)]
    assert {plan.filter for plan in plans} == set(FILTERS)
    assert any(plan.ramp > 0 for plan in plans)
    assert any(plan.noise > 0.04 for plan in plans)
    slices = [plan for plan in plans if plan.true.has_slices]
    assert min(plan.true.axes[2].fwhm for plan in slices) < 0.35
    wrong = [p for p in slices if p.told.axes[2].fwhm != pytest.approx(p.true.axes[2].fwhm)]
    assert 0.15 < len(wrong) / len(slices) < 0.45
    assert max(max(plan.ratios) for plan in plans) > 6


def test_both_measurements_are_of_the_same_head() -> None:
    axes = torch.meshgrid(*[torch.linspace(0, 3, 40)] * 3, indexing="ij")
    fine = 0.5 + 0.3 * torch.sin(axes[0] * 4) * torch.cos(axes[2] * 5 + axes[1])
    box = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box", 0.75)))
    wide = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box", 0.4)))
    plan = UncertainPlan((1.0, 1.0, 2.0), box, wide, "hard", 0.3, 0.03, 0.03)
    scan = measure(fine, plan, 1)
    assert len(scan.condition) == 6 + EXTRA_NUMBERS
    assert len(scan.clear_condition) == 6
    assert not scan.by_truth
    assert (scan.clear_start - scan.truth).norm() < 0.5 * (scan.start - scan.truth).norm()
    assert measure(fine, replace(plan, blur=1.0), 1).by_truth


def test_the_recipe_of_the_mean_keeps_everything_else(tmp_path: Path) -> None:
    from bids_moediff.families.load import build_network
    from bids_moediff.networks.model_folder import save_model

    config = {"family": "moediff", "mean": SHAPE}
    network = build_network(config)
    shaken(network.mean)  # type: ignore[union-attr, arg-type]
    save_model(network, config, tmp_path / "model", "# Tiny\n")
    words = ["--recipe", "mean-told-tail", "--smoke", "--pack", pack(tmp_path)]
    words += ["--init", tmp_path / "model", "--output", tmp_path / "run", "--device", "cpu"]
    words += ["--set", "fitted_patches=16"]  # some of them no slices
    assert main([str(word) for word in words]) == 0
    before = load_model(tmp_path / "model").network.state_dict()
    after = load_model(tmp_path / "run" / "model").network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert set(after) - set(before) == {"mean.tail_terms.weight", "mean.tail_terms.bias"}
    assert after["mean.tail_terms.weight"][48:].abs().max() > 0
    assert after["mean.tail_terms.weight"][:48].abs().max() == 0


def test_the_teacher_is_asked_within_what_it_was_trained_on() -> None:
    teacher = shaken(MeanNetwork(MeanConfig(**SHAPE)))
    given = batch(1, [0.0] * 4)
    given["clear_condition"] = torch.tensor([[0.0, 0.0, 3.9, 0.0, 0.0, 0.2]])
    with torch.no_grad():
        found = wanted_of(teacher, given)
        start = given["clear_start"][:, None]
        wanted = teacher(start, within_training(given["clear_condition"]))
        beyond = teacher(start, given["clear_condition"])
    torch.testing.assert_close(found, wanted)
    assert float((beyond - wanted).abs().max()) > 1e-3
    given["by_truth"] = torch.tensor([True])
    torch.testing.assert_close(wanted_of(teacher, given), given["target"][:, None])
