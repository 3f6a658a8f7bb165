# SPDX-License-Identifier: Apache-2.0
"""Experts on volumes and the sampler that runs them, on generated data."""

import math
from dataclasses import replace

import pytest
import torch

from bids_moediff.families.moediff import angle_sampler
from bids_moediff.families.moediff.angle_sampler import (
    AngleSampler,
    View,
    evaluation_places,
    first_noise,
    is_due,
)
from bids_moediff.families.moediff.volume_experts import (
    WINDOW,
    VolumeExperts,
    VolumeExpertsConfig,
    WindowAttention,
    scene_inputs,
)
from bids_moediff.families.posterior import LocalScale
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.coloured import coloured
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.simulation import ONES, Grids

SHAPE = (24, 20, 28)
RATIOS = (1.0, 2.0, 2.0)


def _network(experts=("smooth", "cortex", "junction")):
    torch.manual_seed(0)
    network = VolumeExperts(VolumeExpertsConfig(experts, channels=8)).eval()
    for expert in network.experts:
        torch.nn.init.normal_(expert.tail.weight, std=0.1)
    return network


def _space():
    return NullSpace(Grids.inside(SHAPE, ONES, RATIOS).operator(Acquisition.uniform("kspace")))


def _view(box=None):
    generator = torch.Generator().manual_seed(1)
    box = box or tuple(slice(0, size) for size in SHAPE)
    inputs = torch.randn((4, *SHAPE), generator=generator)[(slice(None), *box)]
    spread = 0.02 + 0.03 * torch.rand(SHAPE, generator=generator)
    numbers = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.2, 1.2, 0.0])
    return View(inputs, numbers, LocalScale(spread, None, _space()), (0, 1, 2), box)


@pytest.mark.parametrize("experts", [("smooth", "cortex", "junction"), ("plain",)])
def test_what_the_experts_put_out_is_odd(experts):
    network = _network(experts)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn((2, 34, 8, 10, 12), generator=generator)
    z = torch.randn((2, 1, 16, 20, 24), generator=generator)
    scene = network.scene(inputs, torch.randn((2, 7), generator=generator))
    angle = torch.tensor([0.4, 1.2])
    found = network(z, scene, angle).detach()
    torch.testing.assert_close(found, -network(-z, scene, angle).detach())
    assert float(found.detach().std()) > 0.05
    assert float((found - network(z, scene, angle.flip(0)).detach()).abs().max()) > 1e-3


def test_gates_sum_to_one_and_depend_on_their_neighbourhood():
    network = _network()
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn((1, 34, 12, 40, 14), generator=generator)
    gates = network.gate(inputs).detach()
    torch.testing.assert_close(gates.sum(1), torch.ones(1, 12, 40, 14))
    changed = inputs.clone()
    changed[..., 36:, :] += 3.0
    moved = (network.gate(changed).detach() - gates).abs().amax((0, 1, 2, 4))
    assert float(moved[36:].max()) > 1e-2
    assert float(moved[:8].max()) < 1e-5


def test_attention_within_a_window_is_that_of_torch():
    torch.manual_seed(5)
    attention = WindowAttention(8, heads=2)
    x, context = torch.randn(2, 1, 8, 2 * WINDOW, WINDOW, WINDOW - 1)
    whole = attention(x, context)
    # The last axis is filled with empty cells, which the context of the others may look at.
    padded = [
        torch.nn.functional.pad(part, (0, 1))
        for part in (attention.where(context), attention.values(x))
    ]
    for first in (0, WINDOW):
        tokens = torch.cat(padded, 1)[:, :, first : first + WINDOW].flatten(2).mT[0]
        query, key, value = (
            part.unflatten(1, (2, 4)).transpose(0, 1) for part in tokens.chunk(3, 1)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        expected = mixed.transpose(0, 1).flatten(1).mT.unflatten(1, (WINDOW,) * 3)[None]
        found = whole[:, :, first : first + WINDOW]
        torch.testing.assert_close(found, attention.out(expected)[..., : WINDOW - 1])


def test_usage_follows_the_gates_by_a_hundredth():
    gate = _network().gate
    gates = torch.zeros(2, 3, 4, 4, 4)
    gates[:, 1] = 1.0
    gate.count(gates)
    third = 1 / 3
    expected = torch.tensor([0.99 * third, 0.99 * third + 0.01, 0.99 * third])
    torch.testing.assert_close(gate.usage, expected)


def test_coloured_noise_has_the_variance_of_white_noise_where_nothing_was_measured():
    space = _space()
    generator = torch.Generator().manual_seed(4)
    total = plain = rough = 0.0
    for _ in range(60):
        white = torch.randn(SHAPE, generator=generator)
        noise = space.project(coloured(white, space.matrices))
        total += float(noise.square().mean())
        plain += float(space.project(white).square().mean())
        rough += float((noise[1:] - noise[:-1]).square().mean())
    assert abs(total / plain - 1) < 0.03
    assert rough / total < 1.7  # white: 2


def test_one_evaluation_a_step_is_right_for_gaussian_errors():
    """The error of a mode with c times the noise's power ends at sqrt(c)."""
    for c in (0.25, 0.5, 2.0, 4.0):
        errors = []
        for steps in (1, 2, 4):
            z = 1.0
            for place in evaluation_places(steps):
                z += z * (c - 1) / (2 * (c + place * (1 - c))) / steps
            errors.append(abs(z - math.sqrt(c)))
        assert errors[0] < 0.15
        assert errors[2] < errors[1] < errors[0]


def test_sampler_moves_noise_as_the_whole_network_says(monkeypatch):
    """In slabs and boxes too, and stays in the null space."""
    network, view = _network(), _view()
    sampler = AngleSampler(network, view, "fp32", threshold=0.0)
    first, found = first_noise(view.scale, 5), sampler.draw(5, 1)
    inputs = scene_inputs(view.inputs[None], sampler.deviation[None, None])
    scene = network.scene(inputs, view.numbers[None])
    place = evaluation_places(1)[0]
    with torch.inference_mode():
        change = network(
            (first / sampler.deviation)[None, None],
            scene,
            torch.asin(torch.tensor([place]).sqrt()),
        )[0, 0]
    space = view.scale.space
    wanted = space.project(first + sampler.deviation * change)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert float((found - first).std()) > 0.01 * float(first.std())
    assert float(space.measured(found).abs().max()) < 1e-4
    monkeypatch.setattr(angle_sampler, "SLAB_CELLS", 4 * 10 * 14)
    monkeypatch.setattr(angle_sampler, "HALO", 12)
    cut = AngleSampler(network, view, "fp32", threshold=0.0)
    torch.testing.assert_close(cut.draw(5, 2), sampler.draw(5, 2), rtol=1e-4, atol=1e-6)


def test_changes_by_the_experts_add_up_to_the_sample():
    network, view = _network(), _view((slice(4, 20), slice(0, 19), slice(8, 24)))
    sampler = AngleSampler(network, view, "fp32")
    changes = []
    found = sampler.draw(5, 2, changes=changes)
    assert torch.equal(found, AngleSampler(network, view, "fp32").draw(5, 2))
    assert len(changes) == 3 and all(float(part.std()) > 0 for part in changes)
    whole = first_noise(view.scale, 5) + sum(changes)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
    assert all(float(view.scale.space.measured(part).abs().max()) < 1e-4 for part in changes)
    one: list[torch.Tensor] = []
    AngleSampler(network, view, "fp32", only=1).draw(5, 1, changes=one)
    assert [bool(part.any()) for part in one] == [False, True, False]


def test_untrained_experts_leave_the_noise():
    network = VolumeExperts(VolumeExpertsConfig(channels=8)).eval()
    sampler = AngleSampler(network, _view(), "fp32")
    torch.testing.assert_close(
        sampler.draw(1, 2), first_noise(sampler.view.scale, 1), rtol=1e-4, atol=1e-6
    )


def test_expert_below_the_threshold_is_spared_and_counted():
    network, view = _network(), _view()
    sampler = AngleSampler(
        network, view, "fp32", schedule=dict.fromkeys(network.config.experts, 1.0)
    )
    tokens = 3 * 3 * 4
    gates = torch.zeros_like(sampler.scene.gates)
    gates[:, 1] = 1.0
    gates[:, 0, :4, :4, :4], gates[:, 1, :4, :4, :4] = 0.5, 0.5
    sampler.scene = replace(sampler.scene, gates=gates)
    found = sampler.draw(5, 2)
    assert (sampler.counts.evaluated, sampler.counts.skipped) == (
        2 * (tokens + 1),
        2 * (2 * tokens - 1),
    )
    everywhere = AngleSampler(network, view, "fp32", threshold=0.0, schedule=sampler.schedule)
    everywhere.scene = replace(everywhere.scene, gates=gates)
    torch.testing.assert_close(found, everywhere.draw(5, 2), rtol=1e-4, atol=1e-6)
    alone = AngleSampler(network, view, "fp32", only=2)
    assert float(alone.scene.gates[:, 2].min()) == 1.0
    assert not torch.allclose(alone.draw(5, 1), everywhere.draw(5, 1))


def test_schedules_keep_an_experts_last_output():
    assert [is_due(step, 4, 0.5) for step in range(4)] == [True, False, True, False]
    assert [is_due(step, 2, 0.5) for step in range(2)] == [True, False]
    assert all(is_due(step, 3, 1.0) for step in range(3))
    network, view = _network(), _view()
    sampler = AngleSampler(
        network,
        view,
        "fp32",
        threshold=0.0,
        schedule={"smooth": 0.5, "cortex": 1.0, "junction": 0.5},
    )
    sampler.draw(3, 2)
    tokens = 3 * 3 * 4
    assert (sampler.counts.evaluated, sampler.counts.skipped) == (4 * tokens, 2 * tokens)


def test_noise_stays_outside_of_the_box():
    box = (slice(4, 20), slice(0, 19), slice(8, 24))
    sampler = AngleSampler(_network(), _view(box), "fp32", threshold=0.0)
    moved = []
    add = View.add

    class Watched(View):
        def add(self, volume, part):
            moved.append(add(self, volume, part) - volume)
            return volume + moved[-1]

    sampler.view = Watched(**vars(sampler.view))
    sampler.draw(2, 1)
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[box] = False
    assert float(moved[0][outside].abs().max()) == 0.0
    assert float(moved[0][box].abs().max()) > 0.0


@pytest.mark.parametrize("steps", [1, 3, 4, 7])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.6, 1.0])
def test_an_expert_is_evaluated_in_its_share_of_the_steps(share: float, steps: int) -> None:
    """Rounded up, and always in the first: later steps reuse what it gave."""
    due = [is_due(step, steps, share) for step in range(steps)]
    assert due[0] and sum(due) == math.ceil(share * steps)
