# SPDX-License-Identifier: Apache-2.0
"""Notice integers that were too large for their type and began again from the lowest value."""

import numpy as np

from bids_moediff.errors import ImageError

WRAPPED_DROP = 0.8  # of the total of all steps between neighbours that is left after unwrapping
SMALLEST_PERIOD, LARGEST_PERIOD = 2**7, 2**16
LEAST_RANGE = 0.75  # of the period that signed values span
LEAST_TOP = 0.95  # of the period up to which unsigned values reach
END = 0.1  # of the range at its ends
# Share of the neighbours of the brightest values that are among the darkest. Of the real images it
# is below 0.0003 where it counts more than one pair; of simulated wrapped ones 0.06 to 0.22.
WRAPPED_SHARE = 0.03
# Neighbours among the darkest, over those in a stretch of the middle that is as wide. Noise over
# the whole range, which ratio images (UNIT1) have in the air, has 1.24 at most; wrapped images 1.8
# to 34, but for one in which the brightest tissue wrapped to the middle (1.1).
LEAST_PREFERENCE = 1.5
MIDDLE = 0.3, 0.7  # of the range
FEWEST_PAIRS = 1e-4  # of the voxels, for an image that is refused
LEAST_PAIRS = 50


def unwrapped(
    data: np.ndarray, slope: float, intercept: float, remarks: list[str], name: str = "the image"
) -> np.ndarray:
    """Return unsigned integers that were stored as signed ones; refuse those that began again.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite, as the file's scaling makes them of the stored integers.
    slope, intercept
        To undo that scaling: the stored integers are ``(data - intercept) / slope``.
    remarks
        A sentence is added if the brightest values were read as negative, or if a few voxels
        began again.
    name
        Of the image, for the error.

    Raises
    ------
    ImageError
        If values began again at 0 in many voxels: nobody can tell which.
    """
    low, high = (round((float(end) - intercept) / slope) for end in (data.min(), data.max()))
    if slope < 0:
        low, high = high, low
    period = 1 << max(0, high - min(low, 0)).bit_length()
    if not SMALLEST_PERIOD <= period <= LARGEST_PERIOD or not _whole(data, slope, intercept):
        return data
    if low < 0:
        return _as_unsigned(data, slope, intercept, period, remarks)
    if high >= LEAST_TOP * period:
        _refuse_wrapped(data, period, high, remarks, name)
    return data


def _whole(data: np.ndarray, slope: float, intercept: float) -> bool:
    """Return True if a sample of the values are integers before scaling."""
    sample = data.ravel()[:: max(1, data.size // 20000)].astype(np.float64)
    stored = (sample - intercept) / slope
    return bool(np.abs(stored - np.round(stored)).max() < 0.02)


def _as_unsigned(
    data: np.ndarray, slope: float, intercept: float, period: int, remarks: list[str]
) -> np.ndarray:
    """Return values of which the brightest read as negative, as what they were."""
    wrapped = (data < intercept) if slope > 0 else (data > intercept)
    stored_top = float(np.abs(data - intercept).max() / abs(slope))
    if float(np.ptp(data)) < LEAST_RANGE * abs(slope) * period or stored_top > period / 2:
        return data
    whole = np.where(wrapped, data + np.float32(slope * period), data)
    if _total_steps(whole) > WRAPPED_DROP * _total_steps(data):
        return data
    remarks.append(
        f"values wrapped at {period // 2 - 1}: {int(wrapped.sum())} voxels are negative beside "
        "the brightest ones (unsigned numbers stored as signed); they were read as unsigned"
    )
    return whole


def _total_steps(data: np.ndarray) -> float:
    return sum(float(np.abs(np.diff(data, axis=axis)).sum(dtype=np.float64)) for axis in range(3))


def _refuse_wrapped(
    data: np.ndarray, period: int, high: int, remarks: list[str], name: str
) -> None:
    """Raise ImageError if many of the brightest voxels lie beside the darkest."""
    low, top = float(data.min()), float(data.max())
    reach = END * (top - low)
    # Not the ends themselves: a mask's air beside its rim, burnt-in text in the air.
    bright, dark = (data > top - reach) & (data < top), (data < low + reach) & (data > low)
    start, end = (low + part * (top - low) for part in MIDDLE)
    beside, between = (_beside(bright, other) for other in (dark, (data > start) & (data < end)))
    pairs = _beside(bright, np.ones_like(bright))
    usual = between * END / (MIDDLE[1] - MIDDLE[0])
    if beside < max(LEAST_PAIRS, WRAPPED_SHARE * pairs, LEAST_PREFERENCE * usual):
        return
    words = (
        f"values look wrapped at {period - 1}: {100 * beside / pairs:.0f} % of the neighbours of "
        "the brightest voxels are among the darkest"
    )
    if beside > FEWEST_PAIRS * data.size:
        raise ImageError(
            f"{name}: {words}. Larger values began again at 0; convert the image again with more "
            "bits"
        )
    remarks.append(f"{words}: a few of the brightest parts may have turned dark")


def _beside(some: np.ndarray, others: np.ndarray) -> int:
    """Return how often a voxel of ``some`` has one of ``others`` as a neighbour along an axis."""
    count = 0
    for axis in range(3):
        first, second = np.moveaxis(some, axis, 0), np.moveaxis(others, axis, 0)
        count += int((first[1:] & second[:-1]).sum()) + int((first[:-1] & second[1:]).sum())
    return count
