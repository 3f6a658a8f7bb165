# SPDX-License-Identifier: Apache-2.0
"""Compute the inputs of last layers beyond voxel ratios and profile widths.

Four numbers, all of the order of one: the noise of the scan, that times the voxel ratio, the share
of the finest detail that the profile removed along its coarsest axis, and that times the noise.
They are weighted by the ratio of the second axis over the coarsest one. For slices, whose plane is
as fine as the output, they are 0, since nothing was gained there (research/notebook.md).
"""

import math
from collections.abc import Sequence

import numpy as np

from .acquisition import Acquisition, Axis
from .simulated_filters import window

EXTRA_NUMBERS = 4
# Noise, relative to the head's intensities, at which its number is one half.
MIDDLE_NOISE = 0.02
LARGEST = math.log2(6.0)  # voxel ratio that the networks were trained on


def edge_loss(axis: Axis) -> float:
    """Return the share of the amplitude that the profile removes at the edge of the band."""
    if axis.profile == "gaussian":
        deviation = axis.fwhm / (2 * math.sqrt(2 * math.log(2)))
        return 1 - math.exp(-0.5 * (math.pi * deviation) ** 2)
    if axis.profile == "box":
        return 1 - math.sin(math.pi * axis.fwhm / 2) / (math.pi * axis.fwhm / 2)
    if axis.profile == "kspace":
        return 1 - float(window(axis.filter, np.ones(1))[0])
    return 0.0


def told_numbers(
    acquisition: Acquisition, ratios: Sequence[float], noise: float
) -> tuple[float, ...]:
    """Return the four numbers of one scan.

    Parameters
    ----------
    acquisition
        The acquisition that the engine assumes.
    ratios
        Measured over output voxel size, by axis.
    noise
        Standard deviation of the noise of the scan, the head being in about [0, 1]; 0 if it is not
        known.
    """
    axis = max(range(3), key=lambda number: (round(ratios[number], 3), number))
    _, second, first = sorted(min(math.log2(max(ratio, 1.0)), LARGEST) for ratio in ratios)
    if first < 1e-3:
        return (0.0,) * EXTRA_NUMBERS
    shared = second / first
    share = shared * noise / (noise + MIDDLE_NOISE)
    loss = edge_loss(acquisition.axes[axis])
    return (share, share * (first - 1), shared * loss, share * loss)
