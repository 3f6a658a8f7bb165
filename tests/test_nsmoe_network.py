# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: the decoder against analytic images, blocks, encoder and critic."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.families.load import load_model
from bids_moediff.families.nsmoe.blocks import assemble, axis_plan, cut
from bids_moediff.families.nsmoe.kernels import (
    Kernels,
    covariances,
    gates,
    render,
    rotation_matrices,
)
from bids_moediff.families.nsmoe.network import (
    LaplacianResizer,
    NSMoEConfig,
    NSMoENetwork,
    regular_centres,
    resize,
)
from bids_moediff.families.nsmoe.training import Critic
from bids_moediff.networks import model_folder

TINY = NSMoEConfig(block=8, kernels=4, inner=8, width=8, heads=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(8)


def random_kernels(dims: int, blocks: int = 2, count: int = 5) -> Kernels:
    return Kernels(
        torch.rand(blocks, count, dims),
        torch.randn(blocks, count),
        0.1 + 0.3 * torch.rand(blocks, count, dims),
        torch.randn(blocks, count, 1 if dims == 2 else 4),
    )


def test_one_kernel_is_a_constant() -> None:
    kernels = Kernels(
        torch.rand(1, 1, 2), torch.tensor([[3.5]]), torch.rand(1, 1, 2), torch.rand(1, 1, 1)
    )
    assert torch.allclose(render(kernels, torch.rand(1, 50, 2)), torch.tensor(3.5))


def test_two_equal_kernels_are_an_analytic_edge() -> None:
    """Equal covariances make a logistic edge half way between the centres."""
    scale = 0.2
    kernels = Kernels(
        torch.tensor([[[0.2, 0.5], [0.6, 0.5]]]),
        torch.tensor([[1.0, 5.0]]),
        torch.full((1, 2, 2), scale),
        torch.zeros(1, 2, 1),
    )
    x = torch.linspace(0, 1, 41)
    points = torch.stack([x, torch.full_like(x, 0.9)], -1)[None]
    steepness = (0.6 - 0.2) / (scale + 1e-4) ** 2
    wanted = 1 + 4 / (1 + np.exp(-steepness * (x.numpy() - 0.4)))
    assert np.allclose(render(kernels, points)[0].numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_gates_are_the_mahalanobis_softmax(dims: int) -> None:
    kernels, points = random_kernels(dims), torch.rand(2, 7, dims)
    sigma = np.linalg.inv(covariances(kernels).double().numpy())
    offset = (points[:, :, None] - kernels.centres[:, None]).double().numpy()
    distance = np.einsum("bmki,bkij,bmkj->bmk", offset, sigma, offset)
    power = np.exp(-0.5 * distance)
    wanted = power / power.sum(-1, keepdims=True)
    assert np.allclose(gates(kernels, points).numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_are_proper_and_scales_are_the_eigenvalues(dims: int) -> None:
    kernels = random_kernels(dims)
    rotation = rotation_matrices(kernels.rotations).double()
    unit = torch.eye(dims, dtype=torch.float64).expand_as(rotation)
    assert torch.allclose(rotation @ rotation.transpose(-1, -2), unit, atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(2, 5).double(), atol=1e-5)
    roots = torch.linalg.eigvalsh(covariances(kernels).double()).sqrt()
    wanted = (kernels.scales.double() + 1e-4).sort(-1).values
    assert torch.allclose(roots, wanted, atol=1e-4)


def test_rotating_the_kernels_rotates_the_image() -> None:
    kernels, angle = random_kernels(2), 0.8
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = Kernels(
        (kernels.centres - 0.5) @ turn.T + 0.5,
        kernels.values,
        kernels.scales,
        kernels.rotations + angle,
    )
    points = torch.rand(2, 30, 2)
    there = (points - 0.5) @ turn.T + 0.5
    assert torch.allclose(render(turned, there), render(kernels, points), atol=1e-4)


def test_tiny_scales_stay_finite_and_within_the_values() -> None:
    kernels = random_kernels(3)
    sharp = Kernels(kernels.centres, kernels.values, 0 * kernels.scales, kernels.rotations)
    out = render(sharp, torch.rand(2, 100, 3) * 3 - 1)
    low, high = kernels.values.amin(1, keepdim=True), kernels.values.amax(1, keepdim=True)
    assert ((out >= low - 1e-5) & (out <= high + 1e-5)).all()


@pytest.mark.parametrize(("size_in", "size_out"), [(16, 16), (17, 30), (9, 27), (20, 11), (5, 8)])
def test_windows_of_the_blocks_sum_to_one(size_in: int, size_out: int) -> None:
    plan = axis_plan(size_in, size_out, 8, torch.device("cpu"))
    total = torch.zeros(size_out).index_add(0, plan.indices.flatten(), plan.weights.flatten())
    assert torch.allclose(total, torch.ones(size_out), atol=1e-5)
    count = cut(torch.rand(1, 1, size_in, 16), 8).shape[1]
    assert count == len(plan.indices) * 5


@pytest.mark.parametrize("dims", [2, 3])
def test_blocks_that_hold_a_plane_give_the_plane_back(dims: int) -> None:
    """Kernels fitted to a straight ramp in every block: placed right, the ramp is seamless."""
    size_in, size_out, block = (12, 9, 8)[:dims], (20, 9, 13)[:dims], 4
    axes = [torch.arange(n) + 0.5 for n in size_in]
    ramp = sum(torch.meshgrid(*axes, indexing="ij"))[None, None].float()
    blocks = cut(ramp, block)[0]
    # one very wide pair of kernels is a straight line: tanh(u) ~ u
    reach, step = 1e-3, 1.0 / 2e-3
    means = blocks.flatten(1).mean(1)
    centres = torch.full((len(blocks), 2, dims), 0.5)
    centres[:, 0] -= reach / 2 / dims
    centres[:, 1] += reach / 2 / dims
    scale = math.sqrt(reach / dims * step) * 0.1
    slope = block * dims  # of the block's ramp along (1, 1, ...) in block coordinates, per axis
    gain = 4 * (scale + 1e-4) ** 2 * dims / reach * slope / dims / 2
    values = torch.stack([means - gain, means + gain], 1)
    rotation = torch.tensor([0.0] if dims == 2 else [1.0, 0, 0, 0]).expand(len(blocks), 2, -1)
    kernels = Kernels(centres, values, torch.full((len(blocks), 2, dims), scale), rotation)
    out = assemble(kernels, size_in, size_out, block)
    fine = [(torch.arange(b) + 0.5) * a / b for a, b in zip(size_in, size_out, strict=True)]
    wanted = sum(torch.meshgrid(*fine, indexing="ij")).float()
    inner = tuple(slice(4, -4) if b > 9 else slice(3, -3) for b in size_out)
    assert torch.allclose(out[inner], wanted[inner], atol=0.1)


def test_resizer_starts_as_interpolation_and_adds_bands() -> None:
    resizer, x = LaplacianResizer(2, 12), torch.rand(2, 1, 8, 8)
    assert torch.equal(resizer(x), resize(x, 12))
    kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1]))[None, None] / 16
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    blurred = torch.nn.functional.conv2d(padded, kernel)
    assert torch.allclose(resizer.blur(x), blurred, atol=1e-6)
    with torch.no_grad():
        resizer.weights[0], resizer.biases[0] = 0.7, 0.1
    wanted = resize(x, 12) + torch.tanh(0.7 * resize(blurred - x, 12) + 0.1)
    assert torch.allclose(resizer(x), wanted, atol=1e-6)


@pytest.mark.parametrize("count", [4, 8, 12, 16])
@pytest.mark.parametrize("dims", [2, 3])
def test_starting_centres_are_distinct_and_inside(count: int, dims: int) -> None:
    centres = regular_centres(count, dims)
    assert centres.shape == (count, dims)
    assert len({tuple(c) for c in centres.tolist()}) == count
    assert (centres > 0).all() and (centres < 1).all()


def test_intensity_scale_and_offset_pass_through() -> None:
    network = NSMoENetwork(TINY).eval()
    image = torch.rand(1, 1, 16, 12)
    base = network(image, (25, 12))
    assert base.shape == (1, 1, 25, 12)
    scaled = network(100 * image + 7, (25, 12))
    assert torch.allclose(scaled, 100 * base + 7, rtol=1e-2, atol=0.2)


def test_finer_grid_shows_the_same_image() -> None:
    """Rendering at three times the size hits the coarse voxel centres again."""
    network = NSMoENetwork(TINY).eval()
    image = torch.rand(1, 1, 16, 16)
    coarse, fine = network(image, (16, 16)), network(image, (48, 48))
    assert torch.allclose(fine[:, :, 1::3, 1::3], coarse, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_learns_an_image(dims: int) -> None:
    config = NSMoEConfig(dims=dims, block=8, kernels=8, inner=8, width=8, heads=2)
    network = NSMoENetwork(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    size = (16,) * 2 if dims == 2 else (8,) * 3
    image = torch.zeros(1, 1, *size)
    image[:, :, size[0] // 2 + 1 :] = 1
    errors = []
    for _ in range(30):
        loss = (network(image, size) - image).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_critic(dims: int) -> None:
    critic = Critic(dims, width=4)
    size = (16, 12, 8)[:dims]
    assert critic(torch.rand(2, 1, *size)).shape == (2, 1, *size)
    for _ in range(30):  # power iteration, in training mode
        critic(torch.rand(1, 1, *size))
    for layer in (critic.down1, critic.down2, critic.up1, critic.up2):
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, rel=0.05)


def test_model_folder_and_errors(tmp_path: Path) -> None:
    config = {"family": "nsmoe", "nsmoe": TINY.to_dict()}
    model_folder.save_model(NSMoENetwork(TINY), config, tmp_path / "nsmoe", "")
    assert isinstance(load_model(tmp_path / "nsmoe").network, NSMoENetwork)
    with pytest.raises(ValueError, match="2 dimensions"):
        NSMoENetwork(TINY)(torch.rand(1, 1, 8, 8, 8), (8, 8, 8))
    with pytest.raises(ValueError, match="even"):
        NSMoEConfig(block=7)
