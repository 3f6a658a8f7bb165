# SPDX-License-Identifier: Apache-2.0
"""Filters of volumes (..., X, Y, Z) in torch: training data are made where training runs."""

import math

import torch
from torch.nn import functional


def gaussian_kernel(sigma: float) -> torch.Tensor:
    """Normalised Gaussian up to four deviations."""
    radius = max(1, math.ceil(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / max(sigma, 1e-6)) ** 2)
    return kernel / kernel.sum()


def convolve(volume: torch.Tensor, kernel: torch.Tensor, axis: int) -> torch.Tensor:
    """Convolution with an odd kernel along one axis, edges replicated."""
    radius = len(kernel) // 2
    line = volume.movedim(axis, -1)
    flat = line.reshape(-1, 1, line.shape[-1])
    padded = functional.pad(flat, (radius, radius), mode="replicate")
    out = functional.conv1d(padded, kernel.to(volume)[None, None])
    return out.reshape(line.shape).movedim(-1, axis)


def gaussian(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur; sigma in voxels."""
    if sigma <= 0:
        return volume
    kernel = gaussian_kernel(sigma)
    for axis in (-3, -2, -1):
        volume = convolve(volume, kernel, axis)
    return volume


def box_mean(volume: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over a cube of an odd number of voxels; outside the volume nothing counts."""
    return functional.avg_pool3d(
        volume[None, None], size, 1, size // 2, count_include_pad=False
    )[0, 0]


def dilate(mask: torch.Tensor, iterations: int) -> torch.Tensor:
    """Binary dilation by the six nearest neighbours."""
    values = mask.to(torch.float32)[None, None]
    for _ in range(iterations):
        values = torch.stack(
            [
                functional.max_pool3d(values, size, 1, tuple(s // 2 for s in size))
                for size in ((3, 1, 1), (1, 3, 1), (1, 1, 3))
            ]
        ).amax(0)
    return values[0, 0] > 0.5


def erode(mask: torch.Tensor, iterations: int) -> torch.Tensor:
    """Binary erosion by the six nearest neighbours; the outside does not erode."""
    return ~dilate(~mask, iterations)
