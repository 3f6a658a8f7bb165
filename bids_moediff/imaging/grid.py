# SPDX-License-Identifier: Apache-2.0
"""Compute voxel grids that share the outer corner of the first voxel.

The output grid keeps the orientation and field of view of the input. The outer corner of the first
voxel stays in place, the voxel size is exactly the requested one, and the count is the smallest
that covers the input. World coordinates never change.
"""

import math
from collections.abc import Sequence

import numpy as np

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

# A field of view that exceeds the count by less than this fraction of a voxel is rounding error of
# the header's 32-bit floats, not a reason for another slice.
COVER_TOLERANCE = 1e-3


NOT_RESTORED = "Not restored: already as fine as asked for."


def gets_finer(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return True if voxels of ``after`` mm are smaller than those of ``before`` on any axis.

    Differences of less than a thousandth are rounding of headers.
    """
    return any(old > new * 1.0007 for old, new in zip(before, after, strict=True))


def voxel_sizes(affine: np.ndarray) -> Triple:
    """Return the voxel sizes in mm of a 4x4 affine, also of an oblique one."""
    sizes = np.sqrt((np.asarray(affine, dtype=float)[:3, :3] ** 2).sum(axis=0))
    return (float(sizes[0]), float(sizes[1]), float(sizes[2]))


def steps_to(zooms: Sequence[float], size: float) -> Shape:
    """Return the whole number of voxels of ``zooms`` (mm) in ``size`` mm, at least one, by axis.

    Headers hold 32-bit floats: two voxels of 1.00000001 mm fit into 2 mm.
    """
    counts = [max(1, int(size / zoom + COVER_TOLERANCE)) for zoom in zooms]
    return (counts[0], counts[1], counts[2])


def covering_shape(shape: Sequence[int], zooms: Sequence[float], new: Sequence[float]) -> Shape:
    """Return the fewest voxels of ``new`` mm that cover ``shape`` voxels of ``zooms`` mm."""
    counts = [
        max(1, math.ceil(count * old / size - COVER_TOLERANCE))
        for count, old, size in zip(shape, zooms, new, strict=True)
    ]
    return (counts[0], counts[1], counts[2])


def output_grid(
    shape: Sequence[int], affine: np.ndarray, zooms: Sequence[float]
) -> tuple[Shape, np.ndarray]:
    """Return the grid with voxels of exactly ``zooms`` mm on the field of view of the input.

    Parameters
    ----------
    shape, affine
        Voxel counts and 4x4 affine of the input.
    zooms
        Output voxel size in mm, by axis of the input.

    Returns
    -------
    shape
        Three voxel counts, the smallest that cover the input.
    affine
        float64 4x4; the outer corner of the first voxel is that of the input.

    Raises
    ------
    ValueError
        For a voxel size that is not positive and finite.
    """
    if not all(math.isfinite(size) and size > 0 for size in zooms):
        raise ValueError(f"voxel sizes must be positive numbers of mm, not {tuple(zooms)}")
    affine = np.asarray(affine, dtype=float)
    old = voxel_sizes(affine)
    directions = affine[:3, :3] / np.asarray(old)
    corner = affine[:3, :3] @ np.full(3, -0.5) + affine[:3, 3]
    new = np.eye(4)
    new[:3, :3] = directions * np.asarray(zooms, dtype=float)
    new[:3, 3] = corner + new[:3, :3] @ np.full(3, 0.5)
    return covering_shape(shape, old, zooms), new


def working_zooms(zooms: Sequence[float], target: Sequence[float]) -> Triple:
    """Return the finer of input and target voxel size on each axis, which loses no detail."""
    sizes = [
        old if old <= new * (1 + 1e-4) else new for old, new in zip(zooms, target, strict=True)
    ]
    return (float(sizes[0]), float(sizes[1]), float(sizes[2]))
