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
FEWEST_PAIRS = 1e-4  # of the voxels, for an image that is refused
LEAST_PAIRS = 50


def unwrapped(
    data: np.ndarray, slope: float, intercept: float, remarks: list[str], name: str = "the image"
) -> np.ndarray:
    """Return unsigned integers that were stored as signed ones; refuse those that began again.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite, scaling applied.
    slope, intercept
        Scaling of the file: ``data = slope * stored + intercept``.
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
    pairs = beside = 0
    for axis in range(3):
        light, night = np.moveaxis(bright, axis, 0), np.moveaxis(dark, axis, 0)
        pairs += int(light[1:].sum()) + int(light[:-1].sum())
        beside += int((light[1:] & night[:-1]).sum()) + int((light[:-1] & night[1:]).sum())
    if beside < LEAST_PAIRS or beside < WRAPPED_SHARE * pairs:
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
