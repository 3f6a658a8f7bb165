# SPDX-License-Identifier: Apache-2.0
"""Move a volume to another grid by Fourier shears, with an exact adjoint.

A rotation by a small angle is a product of four shears, each along one axis (Cox and Jesmanowicz,
Magnetic Resonance in Medicine 42:1014-1018, 1999). A shear shifts every line by a fraction of a
voxel, which is a phase in Fourier space: it keeps the norm, so nothing is blurred and the adjoint
is the inverse. Axes are permuted and flipped first, so that the rotation left over is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch

from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import Triple

from .frame import Grid, nearest_axes, permuted_map

TAIL = 8  # voxels beyond the largest shift: there the bridge between the two ends may ring
LARGEST_SHEAR = 1.5  # voxels a voxel; turned by less than 45 degrees a head needs less


class Shear(NamedTuple):
    """Lines along `axis` start `slopes` . (other two indices) + `offset` voxels later."""

    axis: int
    slopes: Triple
    offset: float


def decompose(matrix: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Four shears whose product is a 3x3 `matrix` of determinant one near the identity.

    Returns
    -------
    list of (axis, row)
        ``row`` holds the slopes, 0 at ``axis``; the product is taken from first to last.

    Raises
    ------
    ImageError
        If no order of the axes gives shears below ``LARGEST_SHEAR``.
    """
    best: list[tuple[int, np.ndarray]] = []
    smallest = LARGEST_SHEAR
    for order in permutations(range(3)):
        shears = _decompose_in_order(matrix, list(order))
        if shears is not None:
            steepest = max(float(np.abs(row).max()) for _, row in shears)
            if steepest < smallest - 1e-12:
                best, smallest = shears, steepest
    if not best:
        raise ImageError("the scans are turned too far against one another to be combined.")
    return best


def _decompose_in_order(
    matrix: np.ndarray, order: list[int]
) -> list[tuple[int, np.ndarray]] | None:
    """Shears along order[0], order[2], order[1] and order[0] again; None if there are none."""
    m = matrix[np.ix_(order, order)]
    last, first = np.zeros(3), np.zeros(3)
    if abs(m[1, 1] - 1) > 1e-12:
        if abs(m[1, 0]) < 1e-12:
            return None
        last[1] = (m[1, 1] - 1) / m[1, 0]
    # Row 0 less the first shear must be (1, last[1], last[2]).
    first[1:] = np.linalg.lstsq(m[1:, :2].T, m[0, :2] - [1, last[1]], rcond=1e-14)[0]
    last[2] = m[0, 2] - first[1:] @ m[1:, 2]
    middle = (np.eye(3) - np.outer([1, 0, 0], first)) @ m @ (np.eye(3) - np.outer([1, 0, 0], last))
    third = np.array([middle[1, 0], 0, middle[1, 2]])
    second = np.array([middle[2, 0] - middle[2, 1] * middle[1, 0], middle[2, 1], 0])
    product = np.eye(3)
    rows = [(0, first), (2, second), (1, third), (0, last)]
    for axis, row in rows:
        product = product @ (np.eye(3) + np.outer(np.eye(3)[axis], row))
    if not np.allclose(product, m, rtol=0, atol=1e-7):
        return None
    back = np.argsort(order)
    return [(order[axis], row[back]) for axis, row in rows]


def fast_odd_length(least: int) -> int:
    """Smallest odd number of at least `least` without prime factors above 13.

    Without a Nyquist frequency every phase has modulus one, so that a shift is unitary.
    """
    count = least + (least + 1) % 2
    while True:
        rest = count
        for prime in (3, 5, 7, 11, 13):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return count
        count += 2


@dataclass(frozen=True)
class _Side:
    """Where one axis of the source lies on the working lattice (padded, periodic)."""

    first: int  # source voxels used: first to last
    last: int
    before: int  # voxels of the bridge between the two ends, on either side
    after: int
    target: int  # place of the target's first voxel on the lattice
    size: int  # voxels of the source


class Resampler:
    """Linear map from volumes on a source grid to a target grid, of equal voxel volume.

    Parameters
    ----------
    source, target
        Grids whose voxel sizes agree once axes are permuted.
    move
        4x4 matrix from world coordinates of the target to those of the source (rigid, mm).
    device
        Where the tables of phases are kept.

    Raises
    ------
    ImageError
        If the voxel sizes differ, or an affine is not a rotation.
    """

    def __init__(
        self,
        source: Grid,
        target: Grid,
        move: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source, self.target = source, target
        to_source = np.linalg.inv(source.affine) @ (np.eye(4) if move is None else move)
        to_source = to_source @ target.affine
        self._axes, self._flips = nearest_axes(to_source[:3, :3])
        permuted = permuted_map(to_source, self._axes, self._flips, source.shape)
        matrix, offset = permuted[:3, :3], permuted[:3, 3]
        volume = float(np.linalg.det(matrix))
        if abs(volume - 1) > 1e-2:
            raise ImageError("the scans do not fit on one grid: an affine is not a rotation.")
        matrix = matrix / np.cbrt(volume)
        centre = (np.array(target.shape) - 1) / 2
        whole = np.round(matrix @ centre + offset - centre).astype(int)
        self._place(matrix, offset - whole, whole)
        self._shears = self._chain(matrix, offset - whole, device)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return a volume (X, Y, Z) of the source grid on the target grid."""
        moved = volume.permute(self._axes)
        if self._flips:
            moved = moved.flip(self._flips)
        for axis, side in enumerate(self._sides):
            moved = _bridge(moved.narrow(axis, side.first, side.last - side.first), axis, side)
        for shear, tables in self._shears:
            moved = _shift_lines(moved, shear, tables)
        for axis, side in enumerate(self._sides):
            moved = moved.narrow(axis, side.target, self.target.shape[axis])
        return moved.contiguous()

    def adjoint(self, volume: torch.Tensor) -> torch.Tensor:
        """Adjoint of :meth:`forward`, exact up to rounding: <R x, y> = <x, R^T y>."""
        moved = volume
        for axis, side in enumerate(self._sides):
            length = side.before + side.after + side.last - side.first
            moved = _embed(moved, axis, side.target, length)
        for shear, tables in reversed(self._shears):
            moved = _shift_lines(moved, shear, tables, back=True)
        for axis, side in enumerate(self._sides):
            moved = _embed(_unbridge(moved, axis, side), axis, side.first, side.size)
        if self._flips:
            moved = moved.flip(self._flips)
        return moved.permute([self._axes.index(axis) for axis in range(3)]).contiguous()

    def _place(self, matrix: np.ndarray, offset: np.ndarray, whole: np.ndarray) -> None:
        """Choose the working lattice: the target, the largest shift and a tail around it."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.target.shape])).reshape(3, -1)
        shift = np.abs(matrix @ corners + offset[:, None] - corners).max(axis=1)
        self._sides = []
        for axis in range(3):
            margin = int(np.ceil(shift[axis])) + TAIL
            size = self.source.shape[self._axes[axis]]
            count = self.target.shape[axis]
            low, high = whole[axis] - margin, whole[axis] + count + margin
            first = min(max(low, 0), size - 1)
            last = max(min(high, size), first + 1)
            before = max(first - low, 1)
            length = fast_odd_length(before + last - first + max(high - last, 1))
            self._sides.append(
                _Side(
                    int(first),
                    int(last),
                    int(before),
                    int(length - before - (last - first)),
                    int(whole[axis] - first + before),
                    int(size),
                )
            )

    def _chain(
        self, matrix: np.ndarray, offset: np.ndarray, device: torch.device | str
    ) -> list[tuple[Shear, list[torch.Tensor]]]:
        """Shears on the working lattice with their phases; shifts are about the target's centre.

        With u counted from the target's first voxel, u -> matrix u + offset is the product of the
        shears, three of which carry a share of the translation.
        """
        centre = (np.array(self.target.shape) - 1) / 2
        rows = decompose(matrix)
        translation = matrix @ centre + offset - centre
        lengths = [side.before + side.after + side.last - side.first for side in self._sides]
        # E0 (E2 (E1 (E0' u) + o1) + o2) + o0: solve for the three offsets.
        columns, product = [], np.eye(3)
        for axis, row in rows[:3]:
            columns.append(product[:, axis])
            product = product @ (np.eye(3) + np.outer(np.eye(3)[axis], row))
        # The first shear acts before the rest see its offset, so its column is a unit vector.
        shares = np.linalg.solve(np.stack(columns, axis=1), translation)
        chain = []
        for (axis, row), share in zip(rows, [*shares, 0.0], strict=True):
            shear = Shear(axis, (float(row[0]), float(row[1]), float(row[2])), float(share))
            if np.abs([*shear.slopes, shear.offset]).max() < 1e-9:
                continue
            centres = [c + side.target for c, side in zip(centre, self._sides, strict=True)]
            chain.append((shear, _phases(shear, lengths, centres, device)))
        return chain


def _phases(
    shear: Shear, lengths: Sequence[int], centres: Sequence[float], device: torch.device | str
) -> list[torch.Tensor]:
    """Two complex tables whose product is the phase of each frequency and line."""
    frequencies = np.fft.rfftfreq(lengths[shear.axis])
    tables: list[torch.Tensor] = []
    for axis in range(3):
        if axis == shear.axis:
            continue
        index = np.arange(lengths[axis]) - centres[axis]
        shift = shear.slopes[axis] * index + (0.0 if tables else shear.offset)
        sizes = [1, 1, 1]
        sizes[shear.axis], sizes[axis] = len(frequencies), lengths[axis]
        table = np.exp(2j * np.pi * np.multiply.outer(frequencies, shift))
        table = table if shear.axis < axis else table.T
        tables.append(torch.from_numpy(table.astype(np.complex64).reshape(sizes)).to(device))
    return tables


def _shift_lines(
    volume: torch.Tensor, shear: Shear, tables: Sequence[torch.Tensor], back: bool = False
) -> torch.Tensor:
    """Every line along the shear's axis, read `slopes` . index + `offset` voxels further on."""
    spectrum = torch.fft.rfft(volume, dim=shear.axis)
    for table in tables:
        spectrum *= table.conj() if back else table
    return torch.fft.irfft(spectrum, n=volume.shape[shear.axis], dim=shear.axis)


def _ramp(axis: int, side: _Side, like: torch.Tensor) -> torch.Tensor:
    """Weights of the first voxel along the bridge that leads from the last voxel to it."""
    gap = side.before + side.after
    sizes = [1, 1, 1]
    sizes[axis] = gap
    weights = torch.arange(1, gap + 1, dtype=like.dtype, device=like.device) / (gap + 1)
    return weights.reshape(sizes)


def _bridge(volume: torch.Tensor, axis: int, side: _Side) -> torch.Tensor:
    """Make an axis periodic: a straight line leads from its last voxel to its first."""
    weights = _ramp(axis, side, volume)
    first, last = volume.narrow(axis, 0, 1), volume.narrow(axis, volume.shape[axis] - 1, 1)
    line = last * (1 - weights) + first * weights
    head = line.narrow(axis, side.after, side.before)
    return torch.cat([head, volume, line.narrow(axis, 0, side.after)], dim=axis)


def _unbridge(volume: torch.Tensor, axis: int, side: _Side) -> torch.Tensor:
    """Adjoint of :func:`_bridge`."""
    weights = _ramp(axis, side, volume)
    count = side.last - side.first
    head = volume.narrow(axis, 0, side.before)
    tail = volume.narrow(axis, side.before + count, side.after)
    line = torch.cat([tail, head], dim=axis)
    inner = volume.narrow(axis, side.before, count).clone()
    inner.narrow(axis, count - 1, 1).add_((line * (1 - weights)).sum(dim=axis, keepdim=True))
    inner.narrow(axis, 0, 1).add_((line * weights).sum(dim=axis, keepdim=True))
    return inner


def _embed(volume: torch.Tensor, axis: int, first: int, length: int) -> torch.Tensor:
    """Zeros around an axis: adjoint of cutting it out."""
    sizes = list(volume.shape)
    sizes[axis] = length
    result = volume.new_zeros(sizes)
    result.narrow(axis, first, volume.shape[axis]).copy_(volume)
    return result
