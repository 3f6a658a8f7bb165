# SPDX-License-Identifier: Apache-2.0
"""Notice slices that are unlike their neighbours although these are alike.

Noise, a zipper, motion within one slice. In a head, slices resemble each other less the farther
apart they are, whatever is shown: in the real images at hand the two slices beside one to three
others resemble each other at most 0.02 better (correlation) than their inner neighbours.
"""

import numpy as np

from .planes import AXES, some_planes

WIDEST = 3  # slices side by side
FEWEST_SLICES = 8  # for each step between the two around: halves of a head mirror one another
STANDS_OUT = 0.06  # of the correlation
LEAST_ALIKE = 0.5  # correlation of the slices on both sides
TISSUE, LEAST_SHARE = 0.3, 0.3  # of the 98th percentile; of the usual number of such voxels
IN_PLANE = 64  # voxels of a slice that are compared along each of its axes


def odd_slice_remarks(data: np.ndarray) -> list[str]:
    """Return a sentence for each axis along which slices are unlike both neighbours.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite.
    """
    remarks = []
    for axis, name in enumerate(AXES):
        odd = odd_slices(data, axis)
        if len(odd):
            words = "slice is" if len(odd) == 1 else "slices are"
            remarks.append(
                f"{len(odd)} {words} unlike the neighbours along the {name} axis, which are "
                f"alike ({some_planes(odd)}, counted from 1): noise, a zipper or motion, which "
                "the result keeps"
            )
    return remarks


def odd_slices(data: np.ndarray, axis: int) -> np.ndarray:
    """Return the numbers of the slices along an axis, from 0, that are unlike their neighbours."""
    planes = np.moveaxis(data, axis, 0)
    skips = [max(1, size // IN_PLANE) for size in planes.shape[1:]]
    planes = planes[:, skips[0] // 2 :: skips[0], skips[1] // 2 :: skips[1]]
    planes = planes.reshape(len(planes), -1)
    tissue = (planes > TISSUE * np.percentile(planes, 98)).sum(axis=1)
    whole = tissue >= LEAST_SHARE * np.median(tissue[tissue > 0]) if tissue.any() else tissue > 0
    rest = planes - planes.mean(axis=1, keepdims=True, dtype=np.float64)
    lengths = np.linalg.norm(rest, axis=1, keepdims=True)
    rest = np.divide(rest, lengths, out=np.zeros_like(rest), where=lengths > 0)
    beside = np.einsum("ij,ij->i", rest[1:], rest[:-1])
    found: set[int] = set()
    for width in range(1, min(WIDEST, len(rest) // FEWEST_SLICES - 1) + 1):
        first = np.arange(max(0, len(rest) - width - 1))  # the slice before
        last = first + width + 1
        around = np.einsum("ij,ij->i", rest[first], rest[last])
        within = np.maximum(beside[first], beside[last - 1])
        odd = (around > LEAST_ALIKE) & (around - within > STANDS_OUT)
        for place in first[odd & whole[first] & whole[last]]:
            inner = range(place + 1, place + width + 1)
            if all(lengths[inner] > 0) and not found.intersection(inner):  # else: empty slices
                found.update(inner)
    return np.array(sorted(found), dtype=int)
