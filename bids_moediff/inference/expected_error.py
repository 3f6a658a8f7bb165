# SPDX-License-Identifier: Apache-2.0
"""How far a result is to be expected from the truth, voxel by voxel.

A network is in doubt where it adds detail that the measurement does not hold. So what it added to
the consistent interpolation is squared, averaged over a neighbourhood, drawn a little towards its
mean over the head, and multiplied with one factor, which was measured on heads whose truth is
known. That says more about the error than the spread of diffusion samples does (docs/trust.md);
where samples are drawn, their variance is added.
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
    """Factor from detail added to expected error, the heads and the weights it was measured with.

    ``spread`` is its smallest and largest value over heads and protocols; ``coarse`` the factor
    where two axes or more are coarse by 3; None where it was not measured.
    """

    factor: float
    heads: tuple[str, ...] = ()
    spread: tuple[float, float] | None = None
    sha256: str = ""
    coarse: float | None = None

    def at(self, ratios: Sequence[float]) -> float:
        """The factor for measured voxels so much larger than those of the output, by axis."""
        if self.coarse is None:
            return self.factor
        share = (coarseness(ratios) - MILD) / (COARSE - MILD)
        return self.factor + min(max(share, 0.0), 1.0) * (self.coarse - self.factor)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """What `calibration.json` of a model folder holds; other keys are notes for readers."""
        spread, coarse = values.get("spread"), values.get("coarse")
        return cls(
            float(values["factor"]),
            tuple(values.get("heads", ())),
            None if spread is None else (float(spread[0]), float(spread[1])),
            str(values.get("sha256", "")),
            None if coarse is None else float(coarse["factor"]),
        )


def coarseness(ratios: Sequence[float]) -> float:
    """Second largest of three ratios: thick slices alone are not coarse in this sense."""
    return sorted(ratios)[-2]


def expected_error(
    added: np.ndarray,
    head: np.ndarray,
    factor: float,
    variance: np.ndarray | None = None,
) -> np.ndarray:
    """Standard deviation (x, y, z) to be expected between result and truth.

    added: result minus consistent interpolation, in any units; head: boolean, voxels of the head;
    factor: of a :class:`Calibration`; variance: over samples, in the square of the units.
    """
    squares = np.square(added, dtype=np.float32)
    middle = float(squares[head].mean(dtype=np.float64)) if head.any() else 0.0
    local = ndimage.gaussian_filter(squares, NEIGHBOURHOOD)
    total = factor**2 * ((1 - SHARE_OF_MEAN) * local + SHARE_OF_MEAN * middle)
    if variance is not None:
        total = total + np.clip(variance, 0, None)
    return np.sqrt(total).astype(np.float32)
