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
    """Correlation with an odd kernel along one axis, edges replicated.

    A sum of shifted volumes: for the short kernels here that is several times as fast as a
    library convolution of one channel.
    """
    radius, size = len(kernel) // 2, volume.shape[axis]
    shape = list(volume.shape)
    shape[axis] = radius
    first, last = volume.narrow(axis, 0, 1), volume.narrow(axis, size - 1, 1)
    padded = torch.cat([first.expand(shape), volume, last.expand(shape)], axis)
    out = torch.zeros_like(volume)
    for shift, weight in enumerate(kernel.tolist()):
        out = out.add(padded.narrow(axis, shift, size), alpha=weight)
    return out


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
    out = volume[None, None]
    for axis in range(3):
        kernel = [size if other == axis else 1 for other in range(3)]
        padding = [side // 2 for side in kernel]
        out = functional.avg_pool3d(out, kernel, 1, padding, count_include_pad=False)
    return out[0, 0]


def dilate(mask: torch.Tensor, iterations: int) -> torch.Tensor:
    """Binary dilation by the six nearest neighbours."""
    for _ in range(iterations):
        grown = mask.clone()
        for axis, size in enumerate(mask.shape):
            low, high = mask.narrow(axis, 0, size - 1), mask.narrow(axis, 1, size - 1)
            grown.narrow(axis, 1, size - 1).logical_or_(low)
            grown.narrow(axis, 0, size - 1).logical_or_(high)
        mask = grown
    return mask


def erode(mask: torch.Tensor, iterations: int) -> torch.Tensor:
    """Binary erosion by the six nearest neighbours; the outside does not erode."""
    return ~dilate(~mask, iterations)
