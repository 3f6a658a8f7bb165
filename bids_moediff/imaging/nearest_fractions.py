# SPDX-License-Identifier: Apache-2.0
"""Fractions whose averages come nearest to given ones, where none meet them.

Where fine voxels lie in two acquired ones, as at 0.7 mm in 1 mm, no fractions may have the given
averages: a voxel of a mask beside one of background asks its border voxel to be 1 and 0. What is
left is the least-squares problem of the image's projection (:mod:`.acquisition`), with fractions
of at least 0 and a sum of one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from .separable import along_axes

ROUNDS, ITERATIONS = 10, 6
# Shift of a region's averages that its volume may cost: a region cut by the edge of a tile may not
# be able to keep its part, and the shift would grow without end.
MOST = 0.2
GAIN = 10.0  # by which a multiplier follows the mean error of its region, to begin with
_BORDER = 1e-3  # by which fractions of neighbours differ at a border
_ENOUGH = 1e-5  # change of the threshold at which it is found

_REACH = (1, 3, 3, 3)  # an acquired voxel and its neighbours, label by label
_NEVER = np.float32(-1e3)

_Operator = Callable[[np.ndarray], np.ndarray]


def nearest_fractions(
    start: np.ndarray, given: np.ndarray, average: Sequence[np.ndarray | None]
) -> np.ndarray:
    """Return fractions whose averages are as near to the given ones as fractions can be.

    The squared errors of the averages are least, subject to each region's volume: dual ascent in
    one multiplier a region, and accelerated projected gradients (Beck and Teboulle, 2009, SIAM
    Journal on Imaging Sciences 2(1), 183-202).

    Parameters
    ----------
    start
        (L, X', Y', Z') fractions to start from; what the averages do not see stays theirs.
    given
        (L, X, Y, Z) averages over acquired voxels; a sum of one.
    average
        Matrix (coarse, fine) of each axis; None for the identity.

    Returns
    -------
    np.ndarray
        (L, X', Y', Z') float32, at least 0, with a sum of one.
    """
    absent = ndimage.maximum_filter(given, _REACH) <= 0
    elsewhere = _each([_turned(m) for m in average], absent.astype(np.float32)) > 0
    region_means = _region_means(given)
    fractions, multiplier = start, np.zeros(given.shape, np.float32)
    gain, before = np.full_like(multiplier, GAIN), np.zeros_like(multiplier)
    for _ in range(ROUNDS):
        fractions = _descend(fractions, given - multiplier, average, elsewhere)
        error = region_means(_each(average, fractions) - given)
        # Half the gain where it went too far, twice where the error has hardly changed.
        change = np.where(np.abs(error) > np.abs(before) / 2, 2.0, 1.0)
        gain *= np.where(error * before < 0, 0.5, np.where(before == 0, 1.0, change))
        multiplier = np.clip(multiplier + gain * error, -MOST, MOST)
        before = error
    return fractions


def _descend(
    fractions: np.ndarray,
    goal: np.ndarray,
    average: Sequence[np.ndarray | None],
    elsewhere: np.ndarray,
) -> np.ndarray:
    """Bring the averages closer to ``goal``; nothing of a label where it is ``elsewhere``."""
    back = [_turned(matrix) for matrix in average]
    step = 1 / np.prod([np.linalg.norm(m, 2) ** 2 for m in average if m is not None])
    ahead, momentum = fractions, 1.0
    for _ in range(ITERATIONS):
        gradient = _each(back, _each(average, ahead) - goal)
        moved = ahead - np.float32(step) * gradient
        new = to_simplex(np.where(elsewhere, _NEVER, moved))
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + np.float32((momentum - 1) / following) * (new - fractions)
        fractions, momentum = new, following
    return fractions


def _turned(matrix: np.ndarray | None) -> np.ndarray | None:
    return None if matrix is None else np.ascontiguousarray(matrix.T)


def _region_means(given: np.ndarray) -> _Operator:
    """The mean over each connected border of a label, put back on its voxels; 0 elsewhere."""
    highest, lowest = (
        extreme(given, _REACH) for extreme in (ndimage.maximum_filter, ndimage.minimum_filter)
    )
    border = highest - lowest > _BORDER
    number = np.zeros(given.shape, np.int32)
    for label, part in enumerate(border):
        regions, _ = ndimage.label(part, structure=np.ones((3, 3, 3)))
        number[label] = np.where(part, regions + number.max(), 0)
    where = np.flatnonzero(number)
    names = number.ravel()[where]
    counts = np.maximum(np.bincount(names), 1)

    def means(error: np.ndarray) -> np.ndarray:
        result = np.zeros(error.size, np.float32)
        sums = np.bincount(names, error.ravel()[where], len(counts))
        result[where] = (sums / counts)[names]
        return result.reshape(error.shape)

    return means


def to_simplex(values: np.ndarray) -> np.ndarray:
    """Return the nearest fractions (at least 0, with a sum of one over the first axis).

    References
    ----------
    Michelot, 1986, Journal of Optimization Theory and Applications 50(1), 195-200.
    """
    threshold = (values.sum(0) - 1) / len(values)
    while True:  # the threshold rises to its value in at most as many steps as there are labels
        above = values > threshold
        new = ((values * above).sum(0) - 1) / np.maximum(above.sum(0), 1)
        if float(np.abs(new - threshold).max(initial=0)) < _ENOUGH:
            return np.maximum(values - new, 0).astype(values.dtype)
        threshold = new


def _each(matrices: Sequence[np.ndarray | None], labels: np.ndarray) -> np.ndarray:
    """Apply to each label the matrices of the axes."""
    return np.stack([along_axes(label, matrices) for label in labels])
