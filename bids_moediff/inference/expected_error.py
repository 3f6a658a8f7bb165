# SPDX-License-Identifier: Apache-2.0
"""Estimate the expected error between result and truth, voxel by voxel.

The network is uncertain where it adds detail that was not measured. So the detail that it added to
the consistent interpolation is squared, smoothed, drawn a little towards its mean over the head
and multiplied by one factor. The factor was measured on heads with a known truth. This map follows
the error better than the spread of diffusion samples does (docs/trust.md). Where samples are
drawn, their variance is added.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

# Both fitted on development heads together with the first factor (research/notebook.md).
NEIGHBOURHOOD = 2.0  # output voxels, standard deviation of the Gaussian average
SHARE_OF_MEAN = 0.2  # of the variance comes from the whole head: no voxel is free of doubt
# Where two axes or more are coarse, the networks add too little for the factor of milder scans.
MILD, COARSE = 2.0, 3.0  # second largest ratio of voxel sizes, measured over output


@dataclass(frozen=True)
class Calibration:
    """Factor from added detail to expected error, with the heads and weights it was measured on.

    ``spread`` is the smallest and the largest factor over heads and protocols. ``coarse`` is the
    factor for images that are coarse by 3 along two axes or more, None if it was not measured.
    """

    factor: float
    heads: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    sha256: str = ""
    coarse: float | None = None

    def at(self, ratios: Sequence[float]) -> float:
        """Return the factor for an image.

        Parameters
        ----------
        ratios
            Measured over output voxel size, by axis.
        """
        if self.coarse is None:
            return self.factor
        share = (coarseness(ratios) - MILD) / (COARSE - MILD)
        return self.factor + min(max(share, 0.0), 1.0) * (self.coarse - self.factor)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Read the content of ``calibration.json`` of a model folder; further keys are ignored."""
        spread, coarse = values.get("spread"), values.get("coarse")
        return cls(
            float(values["factor"]),
            tuple(values.get("heads", ())),
            None if spread is None else (float(spread[0]), float(spread[1])),
            str(values.get("sha256", "")),
            None if coarse is None else float(coarse["factor"]),
        )


def coarseness(ratios: Sequence[float]) -> float:
    """Return the second largest voxel ratio: thick slices alone do not count as coarse."""
    return sorted(ratios)[-2]


def expected_error(
    added: np.ndarray,
    head: np.ndarray,
    factor: float,
    variance: np.ndarray | None = None,
) -> np.ndarray:
    """Return the standard deviation to be expected between result and truth.

    Parameters
    ----------
    added
        Result minus consistent interpolation (X, Y, Z), in any units.
    head
        True in the head (X, Y, Z).
    factor
        Of a :class:`Calibration`.
    variance
        Variance over samples (X, Y, Z), in the square of the units of ``added``.

    Returns
    -------
    numpy.ndarray
        Standard deviation (X, Y, Z) in the units of ``added``, float32.
    """
    squares = np.square(added, dtype=np.float32)
    middle = float(squares[head].mean(dtype=np.float64)) if head.any() else 0.0
    local = ndimage.gaussian_filter(squares, NEIGHBOURHOOD)
    total = factor**2 * ((1 - SHARE_OF_MEAN) * local + SHARE_OF_MEAN * middle)
    if variance is not None:
        total = total + np.clip(variance, 0, None)
    return np.sqrt(total).astype(np.float32)
