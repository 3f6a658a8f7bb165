# SPDX-License-Identifier: Apache-2.0
"""Choose the grid of the result: axes of the first scan, field of view of all."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np

from bids_moediff.imaging.grid import Shape, Triple, output_grid, voxel_sizes


class Grid(NamedTuple):
    """Voxel counts and the 4x4 affine from voxel to world coordinates (mm)."""

    shape: Shape
    affine: np.ndarray


def nearest_axes(linear: np.ndarray) -> tuple[list[int], list[int]]:
    """Source axis for each target axis, and the target axes that run backwards."""
    scaled = linear / np.abs(linear).sum(axis=1, keepdims=True)
    best = max(permutations(range(3)), key=lambda p: sum(abs(scaled[p[k], k]) for k in range(3)))
    return list(best), [k for k in range(3) if linear[best[k], k] < 0]


def permuted_map(
    to_source: np.ndarray, axes: Sequence[int], flips: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Return the 4x4 map from target voxels to those of the source, permuted and flipped.

    Parameters
    ----------
    to_source
        4x4 map from target voxels to source voxels.
    axes, flips
        As :func:`nearest_axes` returns them.
    shape
        Voxels of the source along its own axes.
    """
    result = np.eye(4)
    result[:3] = to_source[list(axes)]
    for axis in flips:
        result[axis] *= -1
        result[axis, 3] += shape[axes[axis]] - 1
    return result


def scan_zooms(affine: np.ndarray, frame: np.ndarray, zooms: Sequence[float]) -> Triple:
    """Return voxel sizes ``zooms`` (mm) of the frame in the order of a scan's own axes."""
    axes, _ = nearest_axes(np.linalg.inv(affine)[:3, :3] @ frame[:3, :3])
    return tuple(float(zooms[axes.index(axis)]) for axis in range(3))  # type: ignore[return-value]


def frame_zooms(affines: Sequence[np.ndarray], zooms: Sequence[float]) -> Triple:
    """Return voxel sizes (mm) in the axis order of the first scan: as requested, or finer."""
    finest = list(zooms)
    for affine in affines:
        axes, _ = nearest_axes(np.linalg.inv(affine)[:3, :3] @ affines[0][:3, :3])
        own = voxel_sizes(affine)
        finest = [min(size, own[axes[axis]]) for axis, size in enumerate(finest)]
    return (float(finest[0]), float(finest[1]), float(finest[2]))


def union_grid(grids: Sequence[Grid], moves: Sequence[np.ndarray], zooms: Triple) -> Grid:
    """Return the smallest grid that holds every scan, counted from the first scan's outer corner.

    Parameters
    ----------
    grids
        Grids as acquired; the first gives the axes.
    moves
        4x4 matrices from world coordinates of the first scan to those of each.
    zooms
        Voxel sizes (mm) in the first scan's axis order.
    """
    shape, affine = output_grid(grids[0].shape, grids[0].affine, zooms)
    low, high = np.zeros(3), np.array(shape, dtype=float)
    for grid, move in zip(grids, moves, strict=True):
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1)
        to_frame = np.linalg.inv(affine) @ np.linalg.inv(move) @ grid.affine
        inside = to_frame[:3, :3] @ corners + to_frame[:3, 3:] + 0.5
        low = np.minimum(low, np.floor(inside.min(axis=1) + 1e-3))
        high = np.maximum(high, np.ceil(inside.max(axis=1) - 1e-3))
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ low + affine[:3, 3]
    counts = (high - low).astype(int)
    return Grid((int(counts[0]), int(counts[1]), int(counts[2])), moved)


def coverage(frame: Grid, grid: Grid, move: np.ndarray) -> np.ndarray:
    """Return the voxels of the frame inside a scan's field of view, boolean (X, Y, Z)."""
    to_scan = np.linalg.inv(grid.affine) @ move @ frame.affine
    index = np.ogrid[tuple(slice(0, n) for n in frame.shape)]
    inside = np.ones(frame.shape, dtype=bool)
    for row, count in zip(to_scan[:3], grid.shape, strict=True):
        place = sum(row[axis] * index[axis] for axis in range(3)) + row[3]
        inside &= (place >= -0.5 - 1e-3) & (place <= count - 0.5 + 1e-3)
    return inside
