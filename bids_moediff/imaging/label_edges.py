# SPDX-License-Identifier: Apache-2.0
"""Decide between labels at a voxel by brightness: borders drawn to the edges of an image.

Brightness near a voxel has a mean for each label and one variance, as in localised region-based
contours (Lankton and Tannenbaum, IEEE Transactions on Image Processing 17:2029-2039, 2008). Where
an image shows no edge the means agree, and neither label is preferred.
"""

import numpy as np
from scipy import ndimage

from .grid import Triple

WINDOW = 9.0  # mm, side of the box in which brightness is averaged
AT_BORDER = 0.1  # weight of voxels at the border of their label, beside one within
QUIETEST = 1e-3  # of the brightest voxel: no image is taken to be more even than that
LEAST = -4.0  # of the logarithm of the likelihood, so that single bright voxels say little


def edge_support(
    guide: np.ndarray, labels: np.ndarray, index: np.ndarray, candidates: np.ndarray, zooms: Triple
) -> np.ndarray:
    """Return how well the brightness of voxels goes with labels that may win them.

    Parameters
    ----------
    guide
        (X, Y, Z) image.
    labels
        (X, Y, Z) numbers of labels from 0, as they are without the image.
    index
        (N,) flat indices of voxels.
    candidates
        (N, K) labels, -1 where there are fewer.
    zooms
        Voxel sizes in mm.

    Returns
    -------
    np.ndarray
        (N, K) logarithm of the likelihood less that of the likeliest, from ``LEAST`` to 0; all
        zeros where nothing is known of a label near the voxel.
    """
    sides = [max(3, 2 * round(WINDOW / zoom / 2) + 1) for zoom in zooms]
    places = np.unravel_index(index, guide.shape)
    means = np.full(candidates.shape, np.nan, np.float32)
    residual = np.zeros(guide.shape, np.float32)
    for number, box in enumerate(ndimage.find_objects(labels + 1)):
        if box is None:
            continue
        around = tuple(
            slice(max(0, span.start - side), span.stop + side)
            for span, side in zip(box, sides, strict=True)
        )
        own = labels[around] == number
        mean, known = _local_mean(guide[around], own, sides)
        residual[around][own] = np.square(guide[around] - mean)[own]
        rows, columns = np.nonzero(candidates == number)
        inner = [place[rows] - span.start for place, span in zip(places, around, strict=True)]
        inside = np.all([(i >= 0) & (i < n) for i, n in zip(inner, mean.shape, strict=True)], 0)
        at = tuple(i[inside] for i in inner)
        means[rows[inside], columns[inside]] = np.where(known[at], mean[at], np.nan)
    least = max(QUIETEST * float(np.abs(guide).max()), 1e-6) ** 2
    variance = ndimage.uniform_filter(residual, sides)[places] + least
    away = np.square(guide[places][:, None] - means) / (2 * variance[:, None])
    support = np.clip(np.nanmin(away, 1, keepdims=True, initial=np.inf) - away, LEAST, 0)
    unknown = (np.isnan(means) & (candidates >= 0)).any(1)
    support[unknown] = 0
    return np.nan_to_num(support, nan=0.0).astype(np.float32)


def _local_mean(
    guide: np.ndarray, own: np.ndarray, sides: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of ``guide`` over the voxels of a label nearby, and where there are any."""
    within = ndimage.binary_erosion(own, border_value=1)
    weight = np.where(within, 1, AT_BORDER * own).astype(np.float32)
    share = ndimage.uniform_filter(weight, sides, mode="constant")
    total = ndimage.uniform_filter(weight * guide, sides, mode="constant")
    known = share > 0.5 * AT_BORDER / np.prod(sides)
    return total / np.where(known, share, 1), known
