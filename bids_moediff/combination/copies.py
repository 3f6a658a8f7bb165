# SPDX-License-Identifier: Apache-2.0
"""Notice scans that were stored twice: they would count as independent measurements.

Two repeats of a scan differ by the noise of both. Two copies of one scan differ by less than the
noise of one, whatever their axes, units and shading, and where one was cut.
"""

import numpy as np

from bids_moediff.imaging.grid import voxel_sizes

from .frame import nearest_axes, permuted_map
from .view import LEAST_NOISE, Scan, noise_of, range_of

COPIED = 0.3  # times the noise; repeats differ by 1.4 times
SHARED = 0.9  # of the voxels of the smaller scan: less of them, and both are needed
SAME_SIZE = 0.01  # of a voxel
BLOCK = 4  # voxels along each axis over which shading is a straight line
MOST_BLOCKS = 20_000
RIDGE = 1e-6  # of a squared term: blocks of one value have no unique fit
IN_HEAD = 0.2  # of the range: skull-stripped air is the same in all repeats


def is_copy(one: Scan, other: Scan, move: np.ndarray) -> bool:
    """Return True if two scans hold the same measurement, noise included.

    Parameters
    ----------
    one, other
        Scans of one head.
    move
        4x4 matrix from world coordinates of ``one`` to those of ``other``, as registered. That of
        the headers is tried as well.
    """
    noise = max(noise_of(one), LEAST_NOISE * range_of(one))
    for found in (move, np.eye(4)):
        pair = _shared_voxels(one, other, found)
        if pair is not None and _difference(*pair, IN_HEAD * range_of(one)) < COPIED * noise:
            return True
    return False


def _shared_voxels(
    one: Scan, other: Scan, move: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Voxels of two scans that lie nearest to one another; None if they share too few."""
    to_other = np.linalg.inv(other.grid.affine) @ move @ one.grid.affine
    axes, flips = nearest_axes(to_other[:3, :3])
    sizes = np.array(voxel_sizes(other.grid.affine))[axes] / voxel_sizes(one.grid.affine)
    if np.abs(sizes - 1).max() > SAME_SIZE:
        return None
    first, second = (np.asarray(scan.image.dataobj, dtype=np.float32) for scan in (one, other))
    second = np.flip(second.transpose(axes), tuple(flips))
    centre = (np.array(first.shape) - 1) / 2
    place = permuted_map(to_other, axes, flips, other.grid.shape)
    shift = np.round(place[:3, :3] @ centre + place[:3, 3] - centre).astype(int)
    low = np.maximum(0, -shift)
    high = np.minimum(first.shape, np.array(second.shape) - shift)
    smaller = min(first.size, second.size)
    if (high <= low).any() or np.prod(high - low) < SHARED * smaller:
        return None
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    moved = tuple(slice(a, b) for a, b in zip(low + shift, high + shift, strict=True))
    return first[part], second[moved]


def _difference(first: np.ndarray, second: np.ndarray, least: float) -> float:
    """Standard deviation of the first, less what the second explains; the median over blocks.

    In each block the first is fitted by a constant plus the second times a factor that changes
    along a straight line. Blocks whose mean is below ``least`` are left out; infinite if all are.
    """
    y, x = _blocks(first), _blocks(second)
    inside = np.flatnonzero(y.mean(axis=1) > least)
    if not inside.size:
        return float("inf")
    inside = inside[:: -(-inside.size // MOST_BLOCKS)]
    y, x = y[inside].astype(np.float64), x[inside].astype(np.float64)
    places = np.indices([min(BLOCK, n) for n in first.shape]).reshape(3, 1, -1)
    terms = np.stack([np.ones_like(x), x, *(x * place for place in places)], axis=1)
    terms = terms / np.maximum(np.abs(terms).max(axis=2, keepdims=True), 1e-30)
    normal = terms @ terms.transpose(0, 2, 1) + RIDGE * np.eye(5)
    factors = np.linalg.solve(normal, terms @ y[:, :, None])
    rest = y - (factors.transpose(0, 2, 1) @ terms)[:, 0]
    return float(np.median(np.sqrt((rest * rest).mean(axis=1))))


def _blocks(data: np.ndarray) -> np.ndarray:
    """Return the voxels (x, y, z) of each whole block, (blocks, voxels)."""
    sizes = [min(BLOCK, n) for n in data.shape]
    counts = [n // size for n, size in zip(data.shape, sizes, strict=True)]
    cut = data[tuple(slice(0, n * size) for n, size in zip(counts, sizes, strict=True))]
    split = cut.reshape([k for pair in zip(counts, sizes, strict=True) for k in pair])
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(int(np.prod(counts)), -1)
