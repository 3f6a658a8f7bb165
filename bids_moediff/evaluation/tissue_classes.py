# SPDX-License-Identifier: Apache-2.0
"""Segment three classes of brightness inside a mask, by the same rule for every image.

In T1w images dark, middle and bright are fluid, grey and white matter; in T2w images the order is
reversed.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CLASSES = ("dark", "middle", "bright")
SMOOTHING, ROUNDS = 0.7, 30


@dataclass(frozen=True)
class Classes:
    """Centres (3,) of the classes, ascending."""

    centres: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, mask: np.ndarray) -> "Classes":
        """Find the centres by k-means in the mask, starting from fixed quantiles."""
        values = np.sort(_smooth(image)[mask].astype(np.float64))
        values = values[: int(0.99 * len(values))]  # vessels and fat are no tissue
        centres = np.percentile(values, [10, 50, 90])
        sums = np.concatenate([[0.0], np.cumsum(values)])
        for _ in range(ROUNDS):
            borders = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
            edges = np.array([0, *borders, len(values)])
            centres = np.diff(sums[edges]) / np.maximum(np.diff(edges), 1)
        return cls(centres)

    def label(self, image: np.ndarray) -> np.ndarray:
        """Return the nearest class (X, Y, Z) of each voxel, 0 to 2."""
        borders = (self.centres[1:] + self.centres[:-1]) / 2
        return np.searchsorted(borders, _smooth(image))


def _smooth(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), SMOOTHING)


def class_volumes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the number of voxels (3,) of each class, with centres found in this image."""
    labels = Classes.of(image, mask).label(image)[mask]
    return np.bincount(labels, minlength=len(CLASSES)).astype(float)
