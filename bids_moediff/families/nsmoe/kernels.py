# SPDX-License-Identifier: Apache-2.0
"""Steered mixture-of-experts regression: the continuous decoder of N-SMoE.

A block is K kernels with centre, value, scales and rotation. A point x in [0, 1]^d belongs to
kernel k with the softmax over k of -1/2 (x - mu)^T Sigma^-1 (x - mu), Sigma = R diag(s + 1e-4)^2
R^T, and the image there is the mean of the values with these weights. There is no grid: it can be
rendered at any voxel size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_FLOOR = 1e-4


@dataclass(frozen=True)
class Kernels:
    """K steered kernels for each of B blocks in d = 2 or 3 dimensions.

    ``centres`` (B, K, d) in [0, 1]; ``values`` (B, K); ``scales`` (B, K, d), positive, in units of
    the block; ``rotations`` (B, K, 1) angle for d = 2, (B, K, 4) quaternion (any length, w first)
    for d = 3.
    """

    centres: Tensor
    values: Tensor
    scales: Tensor
    rotations: Tensor


def rotation_matrices(rotations: Tensor) -> Tensor:
    """Angles (..., 1) or quaternions (..., 4) to matrices (..., d, d)."""
    if rotations.shape[-1] == 1:
        cosine, sine = rotations[..., 0].cos(), rotations[..., 0].sin()
        rows = [torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)]
        return torch.stack(rows, -2)
    w, x, y, z = torch.nn.functional.normalize(rotations, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1),
        torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1),
        torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def covariances(kernels: Kernels) -> Tensor:
    """Sigma_k = R diag(s + 1e-4)^2 R^T, (B, K, d, d)."""
    rotation = rotation_matrices(kernels.rotations)
    scaled = rotation * (kernels.scales + SCALE_FLOOR)[..., None, :]
    return scaled @ scaled.transpose(-1, -2)


def gates(kernels: Kernels, points: Tensor) -> Tensor:
    """Share of every kernel at points (B, M, d), (B, M, K); sums to one over the kernels."""
    offset = points[:, :, None] - kernels.centres[:, None]
    rotation = rotation_matrices(kernels.rotations)
    along = torch.einsum("bmkd,bkde->bmke", offset, rotation)  # R^T (x - mu)
    distance = (along / (kernels.scales + SCALE_FLOOR)[:, None]).square().sum(-1)
    return torch.softmax(-0.5 * distance, dim=-1)


def render(kernels: Kernels, points: Tensor) -> Tensor:
    """Image values (B, M) at points (B, M, d)."""
    return (gates(kernels, points) * kernels.values[:, None]).sum(-1)
