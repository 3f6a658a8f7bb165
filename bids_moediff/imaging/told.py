# SPDX-License-Identifier: Apache-2.0
"""What the last layers are told about a scan beyond voxel ratios and profile widths.

Four numbers, all of the order of one: how noisy the scan is, how much of the finest detail along
its coarsest axis the profile took away, the product of both, and how steeply its own spectrum
falls there. Soft anatomy and a filter nobody told make it fall steeply; slices thinner than told,
whose finest detail is folded back, make it flat.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from .acquisition import Acquisition, Axis, _along
from .consistency import cosines
from .simulated_filters import window

EXTRA_NUMBERS = 4
# Noise, relative to the head's intensities, at which its number is one half.
MIDDLE_NOISE = 0.02
# Shares of the measured band between which the fall of the spectrum is read.
INNER, OUTER = (0.2, 0.4), (0.7, 1.0)
# Logarithms of that fall that count as 0 (sharp heads, k-space with a hard edge) and as 1.
SHARP, SOFT = 1.3, 2.6
LIMITS = (-0.6, 1.2)


def edge_loss(axis: Axis) -> float:
    """Share of the amplitude at the edge of the measured band that the profile took away."""
    if axis.profile == "gaussian":
        deviation = axis.fwhm / (2 * math.sqrt(2 * math.log(2)))
        return 1 - math.exp(-0.5 * (math.pi * deviation) ** 2)
    if axis.profile == "box":
        return 1 - math.sin(math.pi * axis.fwhm / 2) / (math.pi * axis.fwhm / 2)
    if axis.profile == "kspace":
        return 1 - float(window(axis.filter, np.ones(1))[0])
    return 0.0


def softness(measured: torch.Tensor, ratios: Sequence[float], noise: float) -> float:
    """Fall of the spectrum along the coarsest axes, noise taken off: 0 sharp, 1 soft, -0.6 folded.

    measured: (X, Y, Z); noise: its standard deviation, in the same units.
    """
    power = _along(measured, [cosines(size).to(measured.device) for size in measured.shape])
    power = power.square()
    falls = []
    for axis, ratio in enumerate(ratios):
        if ratio < max(ratios) - 1e-3:
            continue
        low = power
        for other in range(3):
            if other != axis:
                low = low.narrow(other, 0, max(1, low.shape[other] // 2))
        line = low.movedim(axis, 0).flatten(1).mean(1) - noise**2
        inner, outer = (float(_share(line, band).mean()) for band in (INNER, OUTER))
        inner = max(inner, 1e-12)
        falls.append(math.log10(inner / max(outer, 0.1 * noise**2, 1e-4 * inner)))
    fall = sum(falls) / len(falls)
    return min(max((fall - SHARP) / (SOFT - SHARP), LIMITS[0]), LIMITS[1])


def _share(line: torch.Tensor, band: tuple[float, float]) -> torch.Tensor:
    begin = int(band[0] * len(line))
    return line[begin : max(begin + 1, math.ceil(band[1] * len(line)))]


def told_numbers(
    acquisition: Acquisition, ratios: Sequence[float], measured: torch.Tensor, noise: float
) -> tuple[float, ...]:
    """The numbers of one scan.

    Parameters
    ----------
    acquisition
        What the engine assumes.
    ratios
        Measured over output voxel size, by axis.
    measured
        (X, Y, Z), the head in about [0, 1].
    noise
        Its standard deviation, in the same units; 0 where nothing is known of it.
    """
    axis = max(range(3), key=lambda number: (round(ratios[number], 3), number))
    share = noise / (noise + MIDDLE_NOISE)
    loss = edge_loss(acquisition.axes[axis])
    return (share, loss, share * loss, softness(measured, ratios, noise))
