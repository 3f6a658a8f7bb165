# SPDX-License-Identifier: Apache-2.0
"""Weigh each slice of a stack: single slices can be dark, or moved during the scan."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bids_moediff.imaging.acquisition import Acquisition

# Times the misfit of the scan's middle slice: up to the first a slice counts in full, from the
# second on not at all. Squares are minimised: of a slice that is half wrong, even a small weight
# would count.
GOOD, BAD = 2.0, 2.4
FEWEST_VOXELS = 50
LEAST_SHARE = 0.3  # of the middle slice's voxels in the head: the outermost say little
# Voxels in plane, standard deviation: other stacks do not know the fine detail of a slice, but its
# brightness and place.
SMOOTHING = 2.0


def slice_axis(acquisition: Acquisition) -> int | None:
    """Return the axis across slices, or None for a 3-D scan."""
    for axis, sampling in enumerate(acquisition.axes):
        if sampling.profile in ("gaussian", "box"):
            return axis
    return None


def slice_weights(
    residual: np.ndarray, expected: np.ndarray, inside: np.ndarray, axis: int, sigma: float
) -> np.ndarray:
    """Return the weight (0 to 1) of each slice along an axis.

    Parameters
    ----------
    residual
        (x, y, z) measured minus the value expected from the other scans.
    expected
        Expected values (x, y, z).
    inside
        Boolean, voxels of the head that the other scans saw.
    axis
        Across slices.
    sigma
        Noise, in the same units.
    """
    across = tuple(k for k in range(3) if k != axis)
    widths = [0.0 if k == axis else SMOOTHING for k in range(3)]
    residual = ndimage.gaussian_filter(np.where(inside, residual, 0), widths)
    expected = ndimage.gaussian_filter(np.where(inside, expected, 0), widths)
    sigma = sigma / (2 * np.sqrt(np.pi) * SMOOTHING)
    count = np.maximum(inside.sum(axis=across), 1)
    squares = np.where(inside, residual**2, 0).sum(axis=across) / count
    signal = np.where(inside, expected**2, 0).sum(axis=across) / count
    filled = np.median(count[count > 1]) if (count > 1).any() else 0
    usable = count >= max(FEWEST_VOXELS, LEAST_SHARE * filled)
    weights = np.ones(residual.shape[axis])
    if usable.sum() < 3:
        return weights
    share = np.median(np.maximum(squares[usable] - sigma**2, 0) / np.maximum(signal[usable], 1e-9))
    ratio = np.sqrt(squares / (sigma**2 + share * signal + 1e-12))
    weights[usable] = np.clip((BAD - ratio[usable]) / (BAD - GOOD), 0, 1)
    return weights


def along(weights: np.ndarray, axis: int | None, ndim: int = 3) -> np.ndarray:
    """Slice weights in a shape that broadcasts to the scan."""
    sizes = [1] * ndim
    if axis is not None:
        sizes[axis] = len(weights)
    return weights.reshape(sizes).astype(np.float32)


def weights_on_frame(
    weights: np.ndarray, axis: int, to_scan: np.ndarray, shape: Sequence[int]
) -> np.ndarray:
    """Slice weights at the voxels of the common grid, interpolated linearly, float32.

    `to_scan` is the 4x4 map from voxels of the common grid to voxels of the scan.
    """
    index = np.ogrid[tuple(slice(0, n) for n in shape)]
    row = to_scan[axis]
    place = sum(row[k] * index[k] for k in range(3)) + row[3]
    return np.interp(place, np.arange(len(weights)), weights).astype(np.float32)
