# SPDX-License-Identifier: Apache-2.0
"""Correct intensities that no scanner measured: wrapped integers, hot voxels, bright slices.

Each is corrected only if the intended value is certain, and a sentence says so. Ordinary images
are unchanged.
"""

import numpy as np

from .odd_slices import odd_slice_remarks
from .slice_brightness import even_slices
from .stripes import stripe_remarks
from .wrapped import unwrapped

# Of 45 heads of ten sites the brightest voxel lies at 1.0 to 4.0 times the 99.9th percentile.
HOT = 5.0
SATURATED = 0.002  # share of the voxels at the very top; 8-bit scans have up to 0.0013
PILED_UP = 2.0  # times as many at the very top as in the 2 % of the range below
FAR_FROM_ZERO = 0.5  # darkest 0.1 % over the range above it; of the real images 0.0 at most
# Share of the voxels that may hold one value far beyond all others; fewer are hot voxels.
FEWEST_PADDED, MOST_PADDED = 0.0005, 0.6


def sound_intensities(
    data: np.ndarray,
    slope: float,
    intercept: float,
    remarks: list[str],
    name: str = "the image",
) -> np.ndarray:
    """Return the values with impossible ones corrected.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite, scaling applied.
    slope, intercept
        Scaling of the file: ``data = slope * stored + intercept``.
    remarks
        One sentence is added for each change or observation.
    name
        Of the image, for errors.

    Raises
    ------
    ImageError
        If values began again at 0, slices share no level of brightness, or stripes are too
        strong for a brain mask.
    """
    data = unwrapped(_without_padding(data, remarks), slope, intercept, remarks, name)
    data, slices_differ = even_slices(data, remarks, name)
    flat = data.ravel(order="K")  # in the order of memory: another one takes longer
    low, middle, high = (float(value) for value in np.percentile(flat, [0.1, 50, 99.9]))
    if high > low:
        data = _without_extremes(data, low, high, remarks)
        data = _from_zero(data, middle, high, high - low, remarks)
        if low > FAR_FROM_ZERO * (high - low) and not _few_values(data):
            remarks.append(
                f"no value lies near zero (nearly all are above {low:.6g}): a constant was added "
                "to the image, or it shows no air; the brain mask may be wrong"
            )
    top = float(data.max())
    share = float(np.mean(data == top))
    below = float(np.mean((data < top) & (data >= top - 0.02 * float(np.ptp(data)))))
    if share > max(SATURATED, PILED_UP * below) and not _few_values(data):
        remarks.append(
            f"{100 * share:.2g} % of the voxels have the largest value of the image "
            f"({top:.6g}): it is saturated, and contrast was lost in its bright parts"
        )
    if not _few_values(data):
        remarks += stripe_remarks(data, name, slices_differ) or odd_slice_remarks(data)
    return data


def _without_padding(data: np.ndarray, remarks: list[str]) -> np.ndarray:
    """One value far beyond all others, in many voxels, was not measured: padding, burnt-in text.

    Such a value is farther from the others than these are from one another.
    """
    for value in (float(data.min()), float(data.max())):
        same = data == value
        count = int(same.sum())
        if count < FEWEST_PADDED * data.size or count > MOST_PADDED * data.size:
            continue
        low = float(np.min(data, where=~same, initial=np.inf))
        high = float(np.max(data, where=~same, initial=-np.inf))
        void = max(low - value, value - high)
        if not 0 < high - low < void or (value >= 0 and value < low):
            continue
        remarks.append(
            f"{count} voxels hold {value:.6g}, far beyond all others ({low:.6g} to {high:.6g}): "
            f"padding, not signal; they were set to {low:.6g}"
        )
        data = np.where(same, np.float32(low), data)
    return data


def _without_extremes(data: np.ndarray, low: float, high: float, remarks: list[str]) -> np.ndarray:
    """Clip single voxels far beyond all others to the range of the others."""
    reach = (HOT - 1) * (high - low)
    hot, cold = data > high + reach, data < low - reach
    count = int(hot.sum()) + int(cold.sum())
    if not count:
        return data
    extreme = float(data[hot].max() if hot.any() else data[cold].min())
    remarks.append(
        f"{count} voxels are more than {HOT:g} times as bright as 99.9 % of the image (up to "
        f"{extreme:.6g}); they were cut to its range, {low:.6g} to {high:.6g}"
    )
    return np.where(hot, np.float32(high), np.where(cold, np.float32(low), data))


def _from_zero(
    data: np.ndarray, middle: float, high: float, extent: float, remarks: list[str]
) -> np.ndarray:
    """Move up scans whose air is far below zero: brightness must start at zero."""
    if middle >= -0.1 * extent and high > 0:
        return data
    lowest = float(data.min())
    remarks.append(
        f"most of the image is negative (from {lowest:.6g}); {-lowest:.6g} was added to all "
        "values, in the outputs too"
    )
    return data - np.float32(lowest)


def _few_values(data: np.ndarray) -> bool:
    """Return True for masks and label maps, which have many voxels of their largest value."""
    sample = data.ravel()[:: max(1, data.size // 20000)]
    return len(np.unique(sample)) < 10
