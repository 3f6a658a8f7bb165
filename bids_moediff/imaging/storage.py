# SPDX-License-Identifier: Apache-2.0
"""Choose the step in which intensities are stored: digits below the noise only take space."""

import math

# Of the noise's standard deviation: rounding adds 1/12 of its square, less than 0.01 % of the
# noise's variance.
SHARE_OF_NOISE = 1 / 32
FEWEST_STEPS = 2048  # up to the largest value, whatever the noise: it may have been misread
LARGEST = 32767  # of 16-bit integers


def storage_step(noise: float, largest: float) -> float | None:
    """Return the step of 16-bit integers for an image, or None if floats are needed.

    Parameters
    ----------
    noise
        Standard deviation of the noise in the units of the image; 0 if it is not known.
    largest
        Largest absolute value.

    Returns
    -------
    float or None
        A power of two, at most 1/32 of the noise: values and header hold it exactly.
    """
    if not (0 < noise < math.inf) or not math.isfinite(largest):
        return None
    if largest <= 0:
        return None
    finest = min(noise * SHARE_OF_NOISE, largest / FEWEST_STEPS)
    step = 2.0 ** math.floor(math.log2(finest))
    if largest > LARGEST * step or step < 2.0**-120:
        return None
    return step
