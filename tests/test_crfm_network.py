# SPDX-License-Identifier: Apache-2.0
"""CRFM: resampling on aligned grids, gradients, projection, any ratio."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.families.crfm.network import (
    CRFMConfig,
    CRFMNetwork,
    ProjectionBlock,
    resize_area,
    resize_cubic,
    scaled_gradient,
)
from bids_moediff.families.load import load_model
from bids_moediff.networks import model_folder

TINY = CRFMConfig(channels=4, blocks=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("size", [(8, 12, 9), (16, 12, 10), (11, 20, 9)])
def test_cubic_keeps_outer_corners_and_straight_lines(size: tuple[int, ...]) -> None:
    shape = (8, 6, 9)

    def line(sizes: tuple[int, ...]) -> torch.Tensor:
        axes = [(torch.arange(n) + 0.5) / n for n in sizes]
        return (axes[0][:, None, None] + 2 * axes[1][:, None] - axes[2])[None, None]

    out = resize_cubic(line(shape), size)
    inner = tuple(
        slice(-(-2 * b // a), b - -(-2 * b // a)) for a, b in zip(shape, size, strict=True)
    )
    assert torch.allclose(out[0, 0][inner], line(size)[0, 0][inner], atol=1e-5)
    assert torch.allclose(resize_cubic(line(shape), shape), line(shape), atol=1e-6)


def test_cubic_interpolates_with_keys_kernel() -> None:
    impulse = torch.zeros(1, 1, 9, 1, 1)
    impulse[0, 0, 4] = 1
    out = resize_cubic(impulse, (18, 1, 1))[0, 0, :, 0, 0]
    distance = np.abs((np.arange(18) + 0.5) / 2 - 4.5)
    a = -0.5
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    wanted = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    assert np.allclose(out.numpy(), wanted, atol=1e-6)


def test_gradient_is_central_and_scaled() -> None:
    image = torch.rand(2, 1, 9, 8, 7)
    image[1] *= 50
    found = scaled_gradient(image).double().numpy()
    for row in range(2):
        x = np.pad(image[row, 0].double().numpy(), 1, mode="edge")
        centre = (slice(1, -1),) * 3
        wanted = np.stack([np.gradient(x, axis=axis)[centre] for axis in range(3)])
        scale = np.sort(np.abs(wanted).ravel())[round(0.99 * wanted.size) - 1]
        assert np.allclose(found[row], wanted / scale, atol=1e-4)
    assert torch.equal(scaled_gradient(torch.ones(1, 1, 4, 4, 4)), torch.zeros(1, 3, 4, 4, 4))


def test_back_projection_corrects_what_the_round_trip_loses() -> None:
    coarse = torch.rand(1, 3, 6, 6, 6)
    size = (12, 12, 18)
    up = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")

    def loss(fine: torch.Tensor) -> float:
        return float((resize_area(fine, (6, 6, 6)) - coarse).norm())

    assert loss(ProjectionBlock.back_project(coarse, size)) < 0.7 * loss(up)
    same = ProjectionBlock.back_project(coarse, (6, 6, 6))
    assert torch.allclose(same, coarse, atol=1e-6)


@pytest.mark.parametrize("ratio", [(1, 1, 2), (1, 1, 4), (3, 3, 3), (1.5, 1, 2.25)])
def test_untrained_is_cubic_interpolation_at_any_ratio(ratio: tuple[float, ...]) -> None:
    target = torch.rand(1, 1, 8, 6, 4)
    size = tuple(round(n * r) for n, r in zip((8, 6, 4), ratio, strict=True))
    out = CRFMNetwork(TINY)(target, torch.rand(1, 1, *size))
    assert torch.equal(out, resize_cubic(target, size))


def test_reference_and_target_both_matter_once_trained() -> None:
    network = CRFMNetwork(TINY).eval()
    torch.nn.init.normal_(network.leave.weight, std=0.1)
    target, reference = torch.rand(1, 1, 4, 8, 8), torch.rand(1, 1, 8, 8, 8)
    residual = network(target, reference) - resize_cubic(target, (8, 8, 8))
    for t, r in ((target.flip(2), reference), (target, reference.flip(2))):
        other = network(t, r) - resize_cubic(t, (8, 8, 8))
        assert (other - residual).abs().max() > 1e-4
    with pytest.raises(ValueError, match="at least as fine"):
        network(reference, target)


def test_learns_from_the_reference() -> None:
    network = CRFMNetwork(TINY).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    truth = torch.rand(1, 1, 8, 8, 8)
    target, reference = resize_area(truth, (8, 8, 4)), 1 - truth
    errors = []
    for _ in range(60):
        loss = (network(target, reference) - truth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.7 * errors[0]
    assert all(p.grad is not None for p in network.parameters())


def test_model_folder(tmp_path: Path) -> None:
    config = {"family": "crfm", "crfm": TINY.to_dict()}
    model_folder.save_model(CRFMNetwork(TINY), config, tmp_path / "crfm", "")
    assert isinstance(load_model(tmp_path / "crfm").network, CRFMNetwork)
    with pytest.raises(ValueError, match="colour"):
        CRFMConfig.from_dict({"colour": 3})
