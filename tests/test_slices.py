# SPDX-License-Identifier: Apache-2.0
"""How a volume is cut into slices: orientations, their mean, and corrections between steps."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.moediff.slices import Walk, gate_slices, restore_planes, restore_slices
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.axes import orientations, plane_condition, slice_axes
from bids_moediff.options import Options

TINY = MoEDiffConfig(width=4, embed_dim=8, heads=2, context_slices=3, kappa=0.5)
ISOTROPIC = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
SIZE = (10, 12, 8)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def network(config: MoEDiffConfig = TINY, trained: bool = True) -> MoEDiffSR:
    """A network that changes its input clearly, or one that was never trained."""
    torch.manual_seed(3)
    result = MoEDiffSR(config).eval()
    for name, parameter in result.named_parameters():
        if trained and not parameter.any() and "autoencoder" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return result


def volume(shape: tuple[int, int, int] = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 1, *(size // 2 for size in shape), generator=generator)
    return functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0]


CALM = Options(num_steps=1)
NOISY = Options(num_steps=3)
FROM_NOISE = Walk(noise_strength=1.0)
GATES = ("gates",)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0, 1.0, 1.0), [(2, 0, 1), (1, 0, 2), (0, 1, 2)]),
        ((0.0, 0.0, 2.0), [(1, 0, 2), (0, 1, 2)]),  # coarse slices lie in the slice plane
        ((1.0, 0.0, 1.0), [(1, 0, 2)]),
    ],
)
def test_orientations_are_those_the_network_was_trained_on(
    ratios: tuple[float, float, float], expected: list[tuple[int, int, int]]
) -> None:
    condition = torch.tensor([*ratios, 0.0, 0.0, 0.0])
    assert orientations(condition, 3) == expected
    assert orientations(condition, 1) == expected[:1] == [slice_axes(condition)]


def test_an_untrained_network_returns_the_start_in_every_plane() -> None:
    image, _, counts = restore_planes(
        network(trained=False), volume(), ISOTROPIC, replace(CALM, planes=3)
    )
    torch.testing.assert_close(image, volume(), atol=1e-6, rtol=0)
    assert counts == {"evaluated": 3 * sum(SIZE), "skipped": 0}  # three experts, every slice once


def test_three_planes_are_the_mean_of_each() -> None:
    net, start = network(), volume()
    image, gates, _ = restore_planes(net, start, ISOTROPIC, replace(CALM, planes=3, outputs=GATES))
    parts = [
        restore_slices(net, start, ISOTROPIC, replace(CALM, outputs=GATES), axes=axes)
        for axes in orientations(ISOTROPIC, 3)
    ]
    torch.testing.assert_close(image, torch.stack([part[0] for part in parts]).mean(0))
    assert gates is not None and gates.shape == (*SIZE, 3)
    torch.testing.assert_close(gates.sum(-1), torch.ones(SIZE), atol=1e-5, rtol=0)
    single = restore_planes(net, start, ISOTROPIC, CALM)[0]
    torch.testing.assert_close(single, parts[0][0])


def test_three_planes_depend_less_on_how_the_head_lies_in_the_grid() -> None:
    net, start, turn = network(), volume(), (0, 2, 1)
    errors = []
    for planes in (1, 3):
        plain = restore_planes(net, start, ISOTROPIC, replace(CALM, planes=planes))[0]
        turned = restore_planes(net, start.permute(turn), ISOTROPIC, replace(CALM, planes=planes))[
            0
        ]
        errors.append(float((turned - plain.permute(turn)).square().mean().sqrt()))
    assert errors[0] > 0.01  # the network is no isotropic filter
    assert errors[1] < 0.7 * errors[0]


def test_steps_of_the_whole_volume_equal_those_of_slices() -> None:
    """Nothing to correct: the order of the loops must not matter."""
    net, start = network(), volume()
    plain, gates, counts = restore_slices(
        net, start, ISOTROPIC, replace(NOISY, outputs=GATES), FROM_NOISE
    )
    stepped, maps, again = restore_slices(
        net,
        start,
        ISOTROPIC,
        replace(NOISY, outputs=GATES),
        replace(FROM_NOISE, correct=lambda image: image),
    )
    torch.testing.assert_close(stepped, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(maps, gates)
    assert counts == again
    assert (plain - start).abs().max() > 0.01


def test_gates_alone_are_those_of_the_whole_run() -> None:
    net, start = network(), volume()
    for condition in (ISOTROPIC, torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])):
        gates = restore_slices(net, start, condition, replace(CALM, outputs=GATES))[1]
        torch.testing.assert_close(gate_slices(net, start, condition), gates)


def test_corrections_between_steps_reach_the_result() -> None:
    net, start = network(), volume((16, 16, 16))
    operator = Operator.between(
        (16,) * 3, (1.0,) * 3, (8,) * 3, (2.0,) * 3, Acquisition.uniform("box")
    )
    measured = operator.forward(start)
    calls = []

    def correct(image: torch.Tensor) -> torch.Tensor:
        calls.append(float((operator.forward(image) - measured).norm() / measured.norm()))
        return operator.project(image, measured)

    plain = restore_slices(net, start, ISOTROPIC, NOISY, FROM_NOISE)[0]
    stepped = restore_slices(net, start, ISOTROPIC, NOISY, replace(FROM_NOISE, correct=correct))[0]
    assert len(calls) == 3 and calls[0] > 0.01
    assert float((operator.forward(stepped) - measured).norm() / measured.norm()) < 1e-4
    # More than a projection at the end: later steps see what earlier corrections did.
    assert (stepped - operator.project(plain, measured)).abs().max() > 1e-3


@pytest.mark.parametrize("latent", ["kl", "vq"])
def test_learned_latents_can_be_corrected_and_sampled(latent: str) -> None:
    config = MoEDiffConfig(
        latent=latent, latent_channels=4, autoencoder_width=8, codebook_size=8, width=4,
        embed_dim=8, heads=2, context_slices=1,
    )  # fmt: skip
    net = network(config)
    first, second = (
        restore_slices(net, volume(), ISOTROPIC, NOISY, replace(FROM_NOISE, correct=lambda i: i))[
            0
        ]
        for _ in range(2)
    )
    assert torch.equal(first, second) and torch.isfinite(first).all()


def test_start_from_noise_is_the_same_every_time_and_shared_by_slices() -> None:
    import dataclasses

    net = network(dataclasses.replace(TINY, start="noise"))
    flat = torch.full(SIZE, 0.5)
    first, second = (
        restore_slices(net, flat, ISOTROPIC, Options(num_steps=2, random_seed=4))[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)
    torch.testing.assert_close(first[..., 1:], first[..., :1].expand(-1, -1, SIZE[2] - 1))


def test_a_plane_sees_its_rows_its_columns_and_what_lies_across() -> None:
    condition = torch.tensor([0.1, 0.2, 0.3, 1.1, 1.2, 1.3])
    found = plane_condition(condition, (2, 0, 1))  # across, rows, columns
    assert torch.equal(found, torch.tensor([0.1, 0.2, 0.3, 1.1, 1.2, 1.3]))
    found = plane_condition(condition, (0, 2, 1))
    assert torch.equal(found, torch.tensor([0.3, 0.2, 0.1, 1.3, 1.2, 1.1]))
