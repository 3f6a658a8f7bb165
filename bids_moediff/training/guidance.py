# SPDX-License-Identifier: Apache-2.0
"""Gradient nonlinearity and bias field as guidance of the gate (decision J of docs/science.md).

The paper gives both corrections to the network in training. Here they are simulated, so that they
are known: every shading that is multiplied onto a volume, and a distortion of label maps by odd
polynomials, as gradient coils make it. Real heads are not distorted, which would blur them; their
map is absent. At inference both are absent.
"""

import numpy as np
import torch
from torch import Tensor

GUIDANCE = ("bias", "nonlinearity")


def displacement(shape: tuple[int, ...], rng: np.random.Generator, reach: float) -> Tensor:
    """Displacement (3, X, Y, Z) in voxels by odd polynomials of order 3 and 5, at most `reach`.

    Zero in the centre; each axis is pushed along itself, more so far from the centre.
    """
    places = [torch.linspace(-1, 1, size) for size in shape]
    grid = torch.stack(torch.meshgrid(*places, indexing="ij"))
    square = grid.square().sum(0) / 3
    cubic, quintic = rng.uniform(-reach, reach, (2, 3))
    first = torch.as_tensor(cubic, dtype=torch.float32)[:, None, None, None]
    second = torch.as_tensor(quintic, dtype=torch.float32)[:, None, None, None]
    return 0.5 * grid * (first * square + second * square**2)


def log_jacobian(moved: Tensor) -> Tensor:
    """Logarithm of the local change of volume (X, Y, Z) under a displacement (3, X, Y, Z)."""
    rows = [torch.stack(torch.gradient(component)) for component in moved]
    matrix = torch.stack(rows).permute(2, 3, 4, 0, 1) + torch.eye(3, device=moved.device)
    return torch.linalg.det(matrix).clamp_min(1e-3).log()


def warp_labels(labels: Tensor, moved: Tensor) -> Tensor:
    """Labels (X, Y, Z) read at the nearest voxel of their displaced place; 0 outside."""
    inside = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
    index = []
    places = torch.meshgrid(
        *(torch.arange(size, device=labels.device) for size in labels.shape), indexing="ij"
    )
    for axis, place in enumerate(places):
        at = (place + moved[axis]).round().long()
        inside &= (at >= 0) & (at < labels.shape[axis])
        index.append(at.clamp(0, labels.shape[axis] - 1))
    return torch.where(inside, labels[index[0], index[1], index[2]], 0).to(labels.dtype)


def guidance_maps(values: Tensor, present: Tensor) -> Tensor:
    """Maps (B, 2, H, W) with those that are absent (B, 2) set to zero, then who is present.

    Returns (B, 4, H, W), as the token encoder takes it.
    """
    mask = present.to(values)[:, :, None, None].expand_as(values)
    return torch.cat([values * mask, mask], dim=1)
