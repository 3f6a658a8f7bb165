# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: kernels against analytic images, blocks against their definition, encoder, restorer."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bids_moediff.families.nsmoe import blocks as block_module
from bids_moediff.families.nsmoe import restorer
from bids_moediff.families.nsmoe.blocks import add_blocks, axis_plan, plans
from bids_moediff.families.nsmoe.export import Region
from bids_moediff.families.nsmoe.kernels import (
    Kernels,
    basis,
    gates,
    polynomials,
    precisions,
    render,
    render_polynomials,
    steered,
)
from bids_moediff.families.nsmoe.network import (
    PER_KERNEL,
    STEEPER,
    STEEPNESS,
    NSMoEConfig,
    NSMoENetwork,
    numbers_of,
    regular_centres,
)
from bids_moediff.imaging.told import MIDDLE_NOISE
from bids_moediff.options import Options

TINY = NSMoEConfig(channels=8, blocks=1, ranks=(4, 4, 4, 4), hidden=8)
TOLD = torch.tensor([0.0, 0.5, 1.0, 0.0, 1.0, 1.0, 0.1, 0.0, 0.2, 0.0, 0.4])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(8)


def turn(angle: float) -> torch.Tensor:
    return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def rotations(dims: int, *shape: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(*shape, dims, dims))[0]


def random_kernels(dims: int, blocks: int = 2, count: int = 5) -> Kernels:
    scales = 0.2 + 0.5 * torch.rand(blocks, count, dims)
    return Kernels(
        2 * torch.rand(blocks, count, dims) - 1,
        steered(scales, rotations(dims, blocks, count)),
        torch.randn(blocks, count),
        torch.randn(blocks, count),
        torch.randn(blocks, count, dims),
    )


def trained_network(config: NSMoEConfig = TINY) -> NSMoENetwork:
    """Weights that make kernels of all sorts."""
    network = NSMoENetwork(config).eval()
    torch.nn.init.normal_(network.read.weight, std=0.5)
    torch.nn.init.normal_(network.read.bias, std=0.5)
    return network


def test_one_kernel_is_a_plane() -> None:
    kernels = random_kernels(3, 1, 1)
    points = torch.rand(1, 50, 3)
    wanted = kernels.values[0, 0] + points[0] @ kernels.slopes[0, 0]
    assert torch.allclose(render(kernels, points)[0], wanted, atol=1e-6)


def test_two_alike_kernels_are_an_analytic_edge() -> None:
    """Equal precision makes a logistic edge; its place follows from the weights."""
    scale, weight = 0.3, 0.7
    kernels = Kernels(
        torch.tensor([[[-0.4, 0.0], [0.4, 0.0]]]),
        (torch.eye(2) / scale).expand(1, 2, 2, 2),
        torch.tensor([[weight, 0.0]]),
        torch.tensor([[1.0, 5.0]]),
        torch.zeros(1, 2, 2),
    )
    x = torch.linspace(-1, 1, 41)
    points = torch.stack([x, torch.full_like(x, 0.9)], -1)[None]
    wanted = 1 + 4 / (1 + np.exp(weight - 0.8 / scale**2 * x.numpy()))
    assert np.allclose(render(kernels, points)[0].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_shares_are_the_weighted_mahalanobis_softmax(dims: int) -> None:
    kernels, points = random_kernels(dims), torch.rand(2, 7, dims)
    offset = (points[:, :, None] - kernels.centres[:, None]).double().numpy()
    matrix = precisions(kernels).double().numpy()
    distance = np.einsum("bmki,bkij,bmkj->bmk", offset, matrix, offset)
    power = np.exp(kernels.log_weights.numpy()[:, None]) * np.exp(-0.5 * distance)
    wanted = power / power.sum(-1, keepdims=True)
    assert np.allclose(gates(kernels, points).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_angle_and_scales_agree_with_the_factors(dims: int) -> None:
    scales, axes = 0.2 + torch.rand(4, dims), rotations(dims, 4)
    factors = steered(scales, axes)
    assert torch.equal(factors, factors.tril()) and (factors.diagonal(0, -2, -1) > 0).all()
    covariance = axes @ torch.diag_embed(scales**2) @ axes.transpose(-1, -2)
    inverse = factors @ factors.transpose(-1, -2)
    assert torch.allclose(inverse @ covariance, torch.eye(dims).expand(4, -1, -1), atol=1e-4)


def test_rotating_the_kernels_rotates_the_image() -> None:
    scales, axes, turned = 0.2 + torch.rand(1, 5, 2), rotations(2, 1, 5), turn(0.8)
    plain = random_kernels(2, 1)
    kernels = Kernels(
        plain.centres, steered(scales, axes), plain.log_weights, plain.values, plain.slopes
    )
    moved = Kernels(
        plain.centres @ turned.T,
        steered(scales, turned @ axes),
        plain.log_weights,
        plain.values,
        plain.slopes @ turned.T,
    )
    points = torch.rand(1, 30, 2)
    assert torch.allclose(render(moved, points @ turned.T), render(kernels, points), atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_matrix_products_agree_with_the_definition(dims: int) -> None:
    kernels, points = random_kernels(dims), torch.rand(2, 9, dims)
    shares, said = polynomials(kernels)
    wanted = render(kernels, points)
    assert torch.allclose(render_polynomials(shares, said, basis(points)), wanted, atol=1e-4)
    shared = render_polynomials(shares, said, basis(points[0]))
    assert torch.allclose(shared[0], wanted[0], atol=1e-4)


@pytest.mark.parametrize(
    ("count", "size", "zoom"), [(8, 16, 1.0), (8, 24, 2 / 3), (8, 40, 0.4), (8, 11, 16 / 11)]
)
def test_weights_of_the_blocks_sum_to_one(count: int, size: int, zoom: float) -> None:
    plan = axis_plan(count, size, zoom, torch.device("cpu"))
    total = torch.zeros(size).index_add(0, plan.indices.flatten(), plan.weights.flatten())
    assert torch.allclose(total, torch.ones(size), atol=1e-5)
    assert (plan.places[plan.weights > 0].abs() <= 1).all()


def blocks_by_definition(kernels: Kernels, counts, shape, zooms) -> torch.Tensor:
    """Every block at every voxel, with cosine-squared weights."""
    axes = [(torch.arange(size) + 0.5) * zoom for size, zoom in zip(shape, zooms, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    total, weight = torch.zeros(shape), torch.zeros(shape)
    corners = torch.cartesian_prod(*(torch.arange(count) for count in counts))
    for number, corner in enumerate(corners):
        local = (places - 2 * corner - 1) / 2
        inside = (local.abs() < 1).all(-1)
        share = torch.where(inside, torch.cos(math.pi / 2 * local).square().prod(-1), 0.0)
        own = kernels.of(slice(number, number + 1))
        total += share * render(own, local.reshape(1, -1, 3)).reshape(shape)
        weight += share
    return total / weight


@pytest.mark.parametrize(
    ("shape", "zooms"),
    [
        ((10, 8, 12), (1.0, 1.0, 1.0)),
        ((15, 12, 18), (2 / 3,) * 3),
        ((7, 8, 30), (10 / 7, 1.0, 0.4)),
    ],
)
def test_blocks_overlap_as_defined_whatever_the_rows(shape, zooms) -> None:
    counts = (5, 4, 6)
    kernels = random_kernels(3, math.prod(counts), 4)
    rows = plans(counts, shape, zooms, torch.device("cpu"))
    wanted = blocks_by_definition(kernels, counts, shape, zooms)
    for room in (10**9, 30_000, 1000):
        found = add_blocks(torch.zeros(shape), kernels, rows, room)
        assert torch.allclose(found, wanted, atol=2e-4), room


def test_one_encoding_at_three_sizes() -> None:
    """Rendered finer and coarser, the same image: voxel centres that coincide hold the same."""
    encoding = torch.randn(PER_KERNEL * 4, 6, 5, 4)
    network = trained_network()
    plain = network.render(encoding, (12, 10, 8))
    fine = network.render(encoding, (36, 30, 24), (1 / 3,) * 3)
    assert torch.allclose(fine[1::3, 1::3, 1::3], plain, atol=1e-5)
    odd = network.render(encoding, (4, 10, 24), (3.0, 1.0, 1 / 3))
    assert torch.allclose(odd[:, :, 1::3], plain[1::3], atol=1e-5)


@pytest.mark.parametrize("count", [1, 4, 8, 12])
def test_starting_centres_are_distinct_and_inside(count: int) -> None:
    centres = regular_centres(count)
    assert centres.shape == (count, 3)
    assert len({tuple(c) for c in centres.tolist()}) == count
    assert (centres.abs() < 1).all()


def test_untrained_it_is_the_start() -> None:
    start = torch.rand(2, 1, 8, 8, 6)
    with torch.no_grad():
        assert torch.equal(NSMoENetwork(TINY)(start, TOLD.expand(2, -1)), start)


def test_rows_of_a_volume_equal_the_whole(monkeypatch) -> None:
    """Streamed in planes, turned to the order of the axes, odd sizes padded."""
    network, start = trained_network(), torch.rand(20, 14, 10)
    order = [2, 0, 1]  # ratios of the turned volume ascend
    told = TOLD.clone()
    told[order], told[[3 + axis for axis in order]] = TOLD[:3], TOLD[3:6]
    turned = start.permute(order)
    with torch.no_grad():
        wanted = network(turned[None, None], TOLD[None])[0, 0].permute(1, 2, 0)
    assert (wanted - start).abs().max() > 0.01
    monkeypatch.setattr(restorer, "CPU_VOXELS", 700)
    monkeypatch.setattr(block_module, "ROOM", 50_000)
    found = restorer.apply_to_volume(network, start, told, "fp32")
    assert torch.allclose(found, wanted, atol=1e-5)
    odd = restorer.apply_to_volume(network, start[:19], told, "fp32")
    assert odd.shape == (19, 14, 10)
    assert torch.allclose(odd[:4], wanted[:4], atol=1e-5)


def test_a_voxel_sees_no_further_than_the_receptive_radius() -> None:
    network, start = trained_network(), torch.rand(1, 1, 40, 8, 8)
    changed = start.clone()
    changed[:, :, 20] += 0.5
    with torch.no_grad():
        difference = network(changed, TOLD[None]) - network(start, TOLD[None]) - (changed - start)
    touched = difference[0, 0].abs().amax((1, 2)) > 1e-7
    reach = max(abs(int(place) - 20) for place in touched.nonzero()[:, 0])
    assert 4 < reach <= TINY.receptive_radius


def test_kernels_of_a_region_are_the_ones_that_render_it() -> None:
    """The table gives back the centre of the leading kernel, wherever the volume was turned."""
    torch.manual_seed(2)
    network, start = trained_network(), 0.5 * torch.ones(24, 20, 22)
    order, offset = [2, 0, 1], (0, 0, 0)
    region = Region(order, offset, (4, 3, 2), 4)
    encoding = torch.randn(PER_KERNEL * 4, 11, 12, 10)
    for done in range(0, 11, 3):
        region.visit(done, encoding[:, done : done + 3])
    labels, rows = region.described(network, tuple(start.shape))
    inside = labels > 0
    assert inside[6:14, 4:12, 8:16].all() and int(inside.sum()) == 8**3
    assert [row["index"] for row in rows] == sorted(labels[inside].unique().int().tolist())
    kernels = network.kernels(encoding)
    row = rows[len(rows) // 2]
    block, kernel = divmod(row["index"] - 1, 4)
    place = torch.unravel_index(torch.tensor(block), (4, 4, 4))
    z, x, y = (int(p) + first for p, first in zip(place, (4, 3, 2), strict=True))
    number = (z * 12 + x) * 10 + y
    centre = 2 * torch.tensor([x, y, z]) + 0.5 + 2 * kernels.centres[number, kernel][[1, 2, 0]]
    found = torch.tensor([row[name] for name in "ijk"])
    assert torch.allclose(found, centre, atol=2e-3)
    widths = 2 / torch.linalg.eigvalsh(precisions(kernels)[number, kernel]).sqrt()
    assert row["width_3"] == pytest.approx(float(widths[0]), rel=1e-2)
    across = [row[f"across_{name}"] for name in "ijk"]
    assert sum(value**2 for value in across) == pytest.approx(1, abs=1e-2)


def test_every_row_of_a_region_describes_its_kernel_and_every_voxel_has_the_strongest() -> None:
    """Centre, widths, direction, weight, value and slope in voxels, against the definitions."""
    torch.manual_seed(4)
    network, order = trained_network(), [1, 2, 0]
    region = Region(order, (3, 0, 2), (1, 0, 2), 3)  # offset by axis of the image
    encoding = torch.randn(PER_KERNEL * 4, 5, 4, 6)
    for done in range(5):
        region.visit(done, encoding[:, done : done + 1])
    labels, rows = region.described(network, (14, 12, 16))
    cut = encoding[:, 1:4, 0:3, 2:5]
    kernels = network.kernels(cut)
    # Axis 1 of the image is the first of the network, and so on.
    corner = torch.tensor([2 * 1 + 0, 2 * 0 + 2, 2 * 2 + 3])
    by_name = dict(zip("jki", range(3), strict=True))
    for row in rows:
        block, kernel = divmod(row["index"] - 1, 4)
        place = torch.stack(torch.unravel_index(torch.tensor(block), (3, 3, 3)))
        centre = corner + 2 * place + 0.5 + 2 * kernels.centres[block, kernel]
        precision = kernels.factors[block, kernel] @ kernels.factors[block, kernel].T
        covariance = torch.linalg.inv(precision.double())
        widths, axes = torch.linalg.eigh(4 * covariance)
        for name, axis in by_name.items():
            assert row[name] == pytest.approx(float(centre[axis]), abs=1e-3)
            assert abs(row[f"across_{name}"]) == pytest.approx(abs(float(axes[axis, 0])), abs=2e-3)
            slope = float(kernels.slopes[block, kernel, axis]) / 2
            assert row[f"slope_{name}"] == pytest.approx(slope, abs=2e-5)
        found = [row[f"width_{n}"] for n in (1, 2, 3)]
        assert found == pytest.approx(widths.sqrt().tolist(), rel=2e-2, abs=2e-3)
        assert row["weight"] == pytest.approx(
            float(kernels.log_weights[block, kernel].exp()), abs=1e-4
        )
        assert row["value"] == pytest.approx(float(kernels.values[block, kernel]), abs=1e-5)
    middle = 2 * torch.cartesian_prod(*[torch.arange(3.0)] * 3) + 0.5
    for voxel in ((0, 0, 0), (2, 3, 1), (5, 4, 5), (3, 2, 4)):
        points = (torch.tensor(voxel, dtype=torch.float32) - middle) / 2
        fades = torch.cos(math.pi / 2 * points.clamp(-1, 1)).square().prod(1)
        shares = gates(kernels, points[:, None])[:, 0] * fades[:, None]
        strongest = int(shares.flatten().argmax()) + 1
        j, k, i = (torch.tensor(voxel) + corner).tolist()
        # At the border of the region fewer blocks overlap, and their weights are larger.
        if all(1 <= v <= 4 for v in voxel):
            assert int(labels[i, j, k]) == strongest


def test_the_region_lies_around_the_middle_of_the_head() -> None:
    start = torch.zeros(40, 36, 44)
    start[6:18, 20:36, 10:40] = 0.5  # its middle: 11.5, 27.5 and 24.5
    problem: Any = SimpleNamespace(within_head=False)
    region = Region.around_head(start, problem, [2, 0, 1])
    assert region.side == 8 and region.offset == (0, 0, 0)
    assert region.first == (8, 2, 10)  # blocks of two voxels, no further than the image
    small = Region.around_head(torch.zeros(9, 30, 30), problem, [0, 1, 2])
    assert small.side == 4 and small.first == (0, 0, 0)


def test_the_restorer_tells_the_noise_leaves_air_alone_and_gives_map_with_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, told = torch.zeros(80, 20, 20), []
    start[:8] = 0.6

    def applied(network: Any, volume: Any, numbers: Any, *_: Any) -> torch.Tensor:
        told.append(numbers)
        return volume + 1

    rows = [{"index": 1}]
    region: Any = SimpleNamespace(visit=None, described=lambda *given: (torch.ones(2), rows))
    monkeypatch.setattr(restorer, "apply_to_volume", applied)
    monkeypatch.setattr(restorer.Region, "around_head", lambda *_: region)
    made = restorer.NSMoERestorer(trained_network(), torch.device("cpu"), "fp32")
    problem: Any = SimpleNamespace(
        start=lambda: start, nothing_to_gain=False, told=torch.zeros(10), noise=MIDDLE_NOISE,
        within_head=True,
    )  # fmt: skip
    (plain,) = made.restore(problem, Options(), lambda stage, fraction: None)
    assert float(told[0][-1]) == pytest.approx(0.5) and not plain.maps and not plain.tables
    assert torch.equal(plain.image[:8], start[:8] + 1) and torch.equal(
        plain.image[32:], start[32:]
    )
    problem.within_head = False
    asked = Options(outputs=("kernels",))
    (whole,) = made.restore(problem, asked, lambda stage, fraction: None)
    assert torch.equal(whole.image, start + 1)
    assert set(whole.maps) == {"kernels"} and whole.tables == {"kernels": rows}
    problem.nothing_to_gain = True
    (idle,) = made.restore(problem, asked, lambda stage, fraction: None)
    assert torch.equal(idle.image, start)
    for options, said in (
        (Options(), False), (Options(num_steps=1), False), (Options(num_steps=3), True),
        (Options(outputs=("gates",)), True),
    ):  # fmt: skip
        settled = made.settle(options, problem)
        assert bool(settled.left_out) is said and settled.options.num_steps == 1


def test_an_odd_side_is_filled_by_its_last_plane() -> None:
    network, start = trained_network(), torch.rand(7, 8, 6)
    odd = restorer.apply_to_volume(network, start, TOLD, "fp32")
    even = restorer.apply_to_volume(network, torch.cat([start, start[-1:]]), TOLD, "fp32")
    torch.testing.assert_close(odd, even[:-1])


def test_the_noise_of_slices_is_told() -> None:
    told = torch.zeros(10)
    assert numbers_of(told, 0.0)[-1] == 0
    assert float(numbers_of(told, MIDDLE_NOISE)[-1]) == pytest.approx(0.5)
    assert numbers_of(told.expand(3, 10), torch.tensor(0.1)).shape == (3, 11)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="four numbers"):
        NSMoEConfig(ranks=(4, 4))
    with pytest.raises(ValueError, match="kernel"):
        NSMoEConfig(kernels=0)


def test_no_kernel_is_steeper_or_wider_than_its_limits() -> None:
    """Whatever the encoder says, widths stay within e^2 times those before learning."""
    network = NSMoENetwork(TINY)
    for value in (-1e3, 1e3):
        encoding = torch.full((PER_KERNEL * TINY.kernels, 1, 1, 1), value)
        diagonal = network.kernels(encoding).factors.diagonal(dim1=-2, dim2=-1)
        expected = STEEPNESS * math.exp(math.copysign(STEEPER, value))
        assert torch.allclose(diagonal, torch.full_like(diagonal, expected), rtol=1e-4)
