# SPDX-License-Identifier: Apache-2.0
"""Label maps, masks and tissue fractions on a finer grid.

A label is a fraction of tissue per voxel. Two kinds of maps are carried to the output grid:

* *fractions* (``probseg``): the fine map has the given averages over the acquired voxels, and
  short borders. This is threshold dynamics (Merriman, Bence and Osher, 1992) with one volume to
  keep per label and acquired voxel: smooth, sharpen, and restore the averages by generalised
  iterative scaling (Darroch and Ratcliff, 1972), which keeps fractions positive with sum one.
  Where no fractions have these averages, the nearest are taken (:mod:`.nearest_fractions`).
* *labels* (``dseg``, ``mask``): who drew the map gave a whole voxel to its main tissue, so its
  averages must not be kept (the nearest neighbour alone would keep them). The border is the zero
  of interpolated signed distances, drawn to the edges of an image on the fine grid where there is
  one (:mod:`.label_edges`), and moved so that each connected region keeps its volume.

Grids share orientation and outer corner (:mod:`.grid`). The work is done in tiles, so memory does
not grow with the number of labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from .acquisition import Axis, axis_matrix
from .grid import Shape, Triple
from .interpolation import _spline_matrix
from .label_edges import edge_support
from .nearest_fractions import _each, nearest_fractions
from .separable import along_axes, gaussian

TILE = 56  # fine voxels along each axis
HALO = 3  # acquired voxels around a tile
SMOOTHING = 0.7  # standard deviation in fine voxels
SHARPENING = 4.0  # power of the smoothed fractions
STEPS, SCALINGS, LAST_SCALINGS = 6, 3, 30
# Softness in mm of the borders, as the volumes are matched: coarse first.
SOFTNESS = (0.5, 0.2, 0.1, 0.05, 0.03)
EDGE_REACH = 0.5  # mm by which a border moves for a likelihood ratio of e
CANDIDATES = 2  # labels that may win a voxel
OVERLAP = 1.05  # sum of fractions from which labels overlap; below it is rounding of the file
NOTHING = 1e-5  # fractions below become 0, so that files stay small
_TINY = 1e-9
# Averages below the first are met to the second where fine voxels lie in two acquired ones: exact
# absence in one would empty the border voxels that its neighbour needs.
ABSENT, ABSENCE = 1e-4, 1e-2

Matrices = list[np.ndarray | None]


@dataclass(frozen=True)
class _Grids:
    """Two grids that share their outer corner, and the matrices between them, one per axis."""

    coarse_shape: Shape
    coarse_zooms: Triple
    fine_shape: Shape
    fine_zooms: Triple

    def average(self) -> Matrices:
        """Fine to coarse: averages over the acquired voxels."""
        return [
            axis_matrix(n_f, round(d_f, 6), n_c, round(d_c, 6), Axis("box"))
            for n_f, d_f, n_c, d_c in self._axes()
        ]

    def interpolation(self, order: int) -> Matrices:
        """Coarse to fine: splines."""
        return [
            _spline_matrix(n_c, round(d_c, 6), n_f, round(d_f, 6), order)
            for n_f, d_f, n_c, d_c in self._axes()
        ]

    def _axes(self) -> Iterator[tuple[int, float, int, float]]:
        return zip(
            self.fine_shape, self.fine_zooms, self.coarse_shape, self.coarse_zooms, strict=True
        )


@dataclass(frozen=True)
class _Tile:
    """A block of the fine grid, with what surrounds it on both grids."""

    core: tuple[slice, ...]  # on the fine grid
    inner: tuple[slice, ...]  # the core in the fine surroundings
    fine: tuple[slice, ...]
    coarse: tuple[slice, ...]


def _cut(matrices: Matrices, rows: Sequence[slice], columns: Sequence[slice]) -> Matrices:
    """A block of the matrix of each axis; rows sum to one again."""
    blocks: Matrices = []
    for matrix, rows_here, columns_here in zip(matrices, rows, columns, strict=True):
        if matrix is None:
            blocks.append(None)
            continue
        block = matrix[rows_here, columns_here]
        blocks.append((block / block.sum(1, keepdims=True)).astype(np.float32))
    return blocks


def _tiles(grids: _Grids) -> Iterator[_Tile]:
    """Blocks of at most ``TILE`` fine voxels along each axis."""
    axes = [[_span(start, *axis) for start in range(0, axis[0], TILE)] for axis in grids._axes()]
    for spans in product(*axes):
        core, inner, fine, coarse = zip(*spans, strict=True)
        yield _Tile(core, inner, fine, coarse)


def _span(start: int, n_f: int, d_f: float, n_c: int, d_c: float) -> tuple[slice, ...]:
    """Core, core within the surroundings, and surroundings on both grids, along one axis."""
    stop = min(start + TILE, n_f)
    same = n_f == n_c and abs(d_c / d_f - 1) < 1e-4
    halo = max(HALO, int(np.ceil(6 * d_f / d_c)))
    low = max(0, int(start * d_f / d_c + 1e-6) - halo)
    high = min(n_c, int(np.ceil(stop * d_f / d_c - 1e-6)) + halo)
    if same:
        fine_low, fine_high = low, high
    else:
        fine_low = int(low * d_c / d_f + 1e-6)
        fine_high = min(n_f, int(np.ceil(high * d_c / d_f - 1e-6)))
    inner = slice(start - fine_low, stop - fine_low)
    return slice(start, stop), inner, slice(fine_low, fine_high), slice(low, high)


def carry_fractions(
    fractions: np.ndarray, zooms: Triple, fine_shape: Shape, fine_zooms: Triple
) -> np.ndarray:
    """Return tissue fractions on a finer grid whose averages are the given ones.

    Parameters
    ----------
    fractions
        (L, X, Y, Z), values in [0, 1]; what is missing to a sum of one is a further tissue. Where
        the labels overlap (a sum above one), each is carried alone.
    zooms, fine_zooms
        Voxel sizes in mm.
    fine_shape
        Voxel counts of the fine grid.

    Returns
    -------
    np.ndarray
        (L, X', Y', Z') float32 in [0, 1], a sum of at most one where the input's is.
    """
    fractions = np.clip(fractions, 0, 1)
    if len(fractions) > 1 and float(fractions.sum(0).max()) > OVERLAP:
        alone = [carry_fractions(part[None], zooms, fine_shape, fine_zooms) for part in fractions]
        return np.concatenate(alone)
    rest = np.maximum(1 - fractions.sum(0, keepdims=True), 0)
    given = np.concatenate([rest, fractions]).astype(np.float32)
    given /= given.sum(0, keepdims=True)
    grids = _Grids(given.shape[1:], zooms, fine_shape, fine_zooms)
    average, linear = grids.average(), grids.interpolation(1)
    result = np.zeros((len(fractions), *fine_shape), np.float32)
    for tile in _tiles(grids):
        part = given[(slice(None), *tile.coarse)]
        present = np.flatnonzero(part.reshape(len(part), -1).max(1) > 0)
        carried = _sharpen(
            part[present],
            _cut(average, tile.coarse, tile.fine),
            _cut(linear, tile.fine, tile.coarse),
        )
        for label, values in zip(present, carried, strict=True):
            if label:
                core = values[tile.inner]
                result[label - 1][tile.core] = np.where(core > NOTHING, core, 0)
    return result


def _sharpen(given: np.ndarray, average: Matrices, linear: Matrices) -> np.ndarray:
    """Threshold dynamics from the linear interpolation of ``given`` (L, x, y, z)."""
    fine = _normalise(np.maximum(_each(linear, given), 1e-6))
    if len(given) == 1:
        return fine
    spread = [
        None if m is None else (m.T / np.maximum(m.sum(0)[:, None], 1e-12)).astype(np.float32)
        for m in average
    ]
    fine = _scale(fine, given, average, spread, SCALINGS)
    for _ in range(STEPS):
        smooth = np.stack([gaussian(label, [SMOOTHING] * 3) for label in fine])
        fine = _normalise(np.maximum(smooth, 1e-7) ** SHARPENING)
        fine = _scale(fine, given, average, spread, SCALINGS)
    if _shared(average):
        return nearest_fractions(fine, given, average)
    return _scale(fine, given, average, spread, LAST_SCALINGS - SCALINGS)


def _scale(
    fine: np.ndarray, given: np.ndarray, average: Matrices, spread: Matrices, count: int
) -> np.ndarray:
    """Bring the averages of ``fine`` to ``given`` by factors (generalised iterative scaling)."""
    floor = np.where((given < ABSENT) & _shared(average), ABSENCE, _TINY).astype(np.float32)
    goal = np.log(np.maximum(given, floor))
    for _ in range(count):
        error = goal - np.log(np.maximum(_each(average, fine), floor))
        fine = _normalise(fine * np.exp(np.clip(_each(spread, error), -30, 30)))
    return fine


def _shared(average: Matrices) -> bool:
    """Whether fine voxels lie in two acquired ones, as at 0.7 mm in 1 mm."""
    return any(matrix is not None and ((matrix > 1e-6).sum(0) > 1).any() for matrix in average)


def _normalise(fractions: np.ndarray) -> np.ndarray:
    return fractions / np.maximum(fractions.sum(0, keepdims=True), 1e-20)


@dataclass
class _Border:
    """Fine voxels that more than one region may win.

    Parameters
    ----------
    index
        (N,) flat indices into the fine grid.
    region
        (N, CANDIDATES) regions, -1 where there are fewer.
    distance
        (N, CANDIDATES) signed distance in mm into the region, -inf where there are fewer.
    weight
        (N,) share of the voxel in the field of view.
    """

    index: np.ndarray
    region: np.ndarray
    distance: np.ndarray
    weight: np.ndarray


def carry_labels(
    labels: np.ndarray,
    zooms: Triple,
    fine_shape: Shape,
    fine_zooms: Triple,
    guide: np.ndarray | None = None,
) -> np.ndarray:
    """Return a label map on a finer grid; each connected region keeps its volume.

    Parameters
    ----------
    labels
        (X, Y, Z) of integers, 0 for background.
    zooms, fine_zooms
        Voxel sizes in mm.
    fine_shape
        Voxel counts of the fine grid.
    guide
        (X', Y', Z') image to whose edges borders are drawn.

    Returns
    -------
    np.ndarray
        (X', Y', Z') in the input's type.
    """
    regions, codes, counts = _regions(labels)
    grids = _Grids(labels.shape, zooms, fine_shape, fine_zooms)
    winner, border = _compete(regions, grids)
    if not len(border.index):
        return codes[winner].astype(labels.dtype)
    cover = _cover(grids)
    if cover is not None:
        border.weight = cover.ravel()[border.index]
    volume = counts * (np.prod(zooms) / np.prod(fine_zooms))
    matched = _match_volumes(border, winner, volume, cover)
    if guide is not None:
        _, number = np.unique(codes, return_inverse=True)
        names = np.where(border.region >= 0, number[border.region], -1)
        support = edge_support(guide, number[matched], border.index, names, fine_zooms)
        border.distance += EDGE_REACH * support
        matched = _match_volumes(border, winner, volume, cover)
    return codes[matched].astype(labels.dtype)


def _regions(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number the connected regions of every label; their labels, their counts of voxels."""
    regions = np.zeros(labels.shape, np.int32)
    codes: list[int] = []
    for code in np.unique(labels):
        numbered, count = ndimage.label(labels == code, structure=np.ones((3, 3, 3)))
        where = numbered > 0
        regions[where] = numbered[where] + (len(codes) - 1)
        codes += [code] * count
    return regions, np.asarray(codes), np.bincount(regions.ravel(), minlength=len(codes))


def _cover(grids: _Grids) -> np.ndarray | None:
    """Share of each fine voxel in the field of view; None if all lie in it wholly."""
    shares = []
    for n_f, d_f, n_c, d_c in grids._axes():
        left = np.arange(n_f) * d_f
        shares.append(np.clip((n_c * d_c - left) / d_f, 0, 1))
    if all(share.min() > 1 - 1e-3 for share in shares):
        return None
    first, second, third = (share.astype(np.float32) for share in shares)
    return first[:, None, None] * second[None, :, None] * third[None, None, :]


def _compete(regions: np.ndarray, grids: _Grids) -> tuple[np.ndarray, _Border]:
    """The region whose signed distance is largest at each fine voxel, and the close calls."""
    shape = grids.fine_shape
    distance = np.full((CANDIDATES, *shape), -np.inf, np.float32)
    region = np.full((CANDIDATES, *shape), -1, np.int32)
    orders = [grids.interpolation(1), grids.interpolation(3)]
    for number, box in enumerate(ndimage.find_objects(regions + 1)):
        coarse, fine = _surroundings(box, grids)
        inside = _signed_distance(regions[coarse] == number, grids.coarse_zooms)
        order = orders[min(inside.shape) > 3]
        new = along_axes(inside, _cut(order, fine, coarse)).astype(np.float32)
        who = np.full(new.shape, number, np.int32)
        for rank in range(CANDIDATES):
            best, names = distance[rank][fine], region[rank][fine]
            better = new > best  # goes here, and the one that was here moves down
            best[better], new[better] = new[better], best[better]
            names[better], who[better] = who[better], names[better]
    near = np.flatnonzero(distance[0] - distance[1] < 0.6 * max(grids.coarse_zooms))
    return region[0], _Border(
        near,
        np.stack([names.ravel()[near] for names in region], axis=1),
        np.stack([best.ravel()[near] for best in distance], axis=1),
        np.ones(len(near), np.float32),
    )


def _surroundings(
    box: tuple[slice, ...], grids: _Grids
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Box of a region with what lies within two voxels of the longest axis, on both grids."""
    reach = 2 * max(grids.coarse_zooms)
    spans = []
    for span, (n_f, d_f, n_c, d_c) in zip(box, grids._axes(), strict=True):
        margin = int(np.ceil(reach / d_c))
        low, high = max(0, span.start - margin), min(n_c, span.stop + margin)
        first = round(low * d_c / d_f)
        last = n_f if high == n_c else min(n_f, round(high * d_c / d_f))
        spans.append((slice(low, high), slice(first, last)))
    coarse, fine = zip(*spans, strict=True)
    return coarse, fine


def _signed_distance(mask: np.ndarray, zooms: Triple) -> np.ndarray:
    """Distance in mm to the border of ``mask``, positive inside; float32."""
    half, far = min(zooms) / 2, 2 * max(zooms)
    if mask.all():
        return np.full(mask.shape, far, np.float32)
    inside = ndimage.distance_transform_edt(mask, zooms) - half
    outside = ndimage.distance_transform_edt(~mask, zooms) - half
    return np.clip(np.where(mask, inside, -outside), -far, far).astype(np.float32)


def _match_volumes(
    border: _Border, winner: np.ndarray, volume: np.ndarray, cover: np.ndarray | None
) -> np.ndarray:
    """Return the winners as the borders of all regions move until each fills its ``volume``.

    A shift in mm per region, found as the winner grows from soft to hard; then single voxels.
    """
    count = len(volume)
    weights = None if cover is None else cover.ravel()
    fixed = np.bincount(winner.ravel(), weights, count).astype(float)
    fixed -= np.bincount(winner.ravel()[border.index], border.weight, count)
    goal = np.maximum(volume - fixed, 0.05)
    known = border.region >= 0
    numbers = np.where(known, border.region, 0)
    shift = np.zeros(count)
    for softness in SOFTNESS:
        for _ in range(3):
            share = _softmax((border.distance + shift[numbers].astype(np.float32)) / softness)
            share *= border.weight[:, None]
            filled = np.bincount(numbers.ravel(), share.ravel(), count)
            shift += softness * np.log(goal / np.maximum(filled, _TINY)).clip(-5, 5)
    score = np.where(known, border.distance + shift[numbers].astype(np.float32), -np.inf)
    best = score.argmax(1)
    _settle(border, score, best, goal)
    moved = winner.copy()
    moved.ravel()[border.index] = border.region[np.arange(len(best)), best]
    return moved


def _softmax(score: np.ndarray) -> np.ndarray:
    share = np.exp(score - score.max(1, keepdims=True))
    return share / share.sum(1, keepdims=True)


def _settle(border: _Border, score: np.ndarray, best: np.ndarray, goal: np.ndarray) -> None:
    """Hand single voxels, the least certain first, from regions too large to ones too small.

    Ties of distances move together, so shifts alone cannot match small volumes. Changes ``best``.
    """
    rows = np.arange(len(best))
    slack = 0.5 + 0.002 * goal
    for _ in range(4):
        other = 1 - best
        owner, taker = border.region[rows, best], border.region[rows, other]
        excess = np.bincount(owner, border.weight, len(goal)) - goal
        wrong = (excess > slack)[owner] | (excess < -slack)[taker]
        moves = np.flatnonzero(wrong & (taker >= 0))
        cost = score[moves, best[moves]] - score[moves, other[moves]]
        moves = moves[np.argsort(cost, kind="stable")]
        taken = _hand_over(
            owner[moves].tolist(), taker[moves].tolist(), border.weight[moves].tolist(),
            excess.tolist(), slack.tolist(),
        )  # fmt: skip
        if not taken:
            return
        best[moves[taken]] = other[moves[taken]]


def _hand_over(
    owner: list[int],
    taker: list[int],
    weight: list[float],
    excess: list[float],
    slack: list[float],
) -> list[int]:
    """Positions of the moves, in their order, that bring volumes closer; updates ``excess``."""
    taken = []
    left = sum(max(abs(e) - s, 0.0) for e, s in zip(excess, slack, strict=True))
    for move, (giver, receiver, size) in enumerate(zip(owner, taker, weight, strict=True)):
        if left < 1e-6:
            break
        gain = _beyond(excess[giver], slack[giver])
        gain += _beyond(excess[receiver], slack[receiver])
        gain -= _beyond(excess[giver] - size, slack[giver])
        gain -= _beyond(excess[receiver] + size, slack[receiver])
        if gain > 1e-6:
            excess[giver] -= size
            excess[receiver] += size
            left -= gain
            taken.append(move)
    return taken


def _beyond(excess: float, slack: float) -> float:
    return max(abs(excess) - slack, 0.0)
