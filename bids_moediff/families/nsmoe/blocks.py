# SPDX-License-Identifier: Apache-2.0
"""Render half-overlapping blocks on any output grid, in rows, averaged where they overlap.

The centres of the blocks are two voxels of the encoded grid apart, and a block is four voxels
wide. Positions are in these voxels; both grids share their outer corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .kernels import Kernels, basis, polynomials, render_polynomials

SPACING = 2
# Numbers that one step of rendering may hold.
ROOM = 12_000_000


@dataclass(frozen=True)
class AxisPlan:
    """For each block along one axis: output indices, coordinates in the block, and weights.

    All (blocks, m). Coordinates run from -1 to 1 over a block. Weights of an output voxel sum to
    one over the blocks, and are 0 where a place lies outside of the block or of the output.
    """

    indices: Tensor
    places: Tensor
    weights: Tensor

    @property
    def alike(self) -> bool:
        """Whether the voxels have the same coordinates in every block."""
        return bool(torch.equal(self.places, self.places[:1].expand_as(self.places)))


def axis_plan(blocks: int, size_out: int, zoom: float, device: torch.device) -> AxisPlan:
    """Return the voxels of each block, for ``size_out`` voxels of ``zoom`` encoded voxels."""
    middle = SPACING * torch.arange(blocks, device=device) + 0.5 * SPACING
    first = torch.ceil((middle - SPACING) / zoom - 0.5 - 1e-6).long()
    reach = torch.arange(math.floor(2 * SPACING / zoom + 1e-6) + 1, device=device)
    indices = first[:, None] + reach
    places = ((indices + 0.5) * zoom - middle[:, None]) / SPACING
    inside = (places.abs() < 1) & (indices >= 0) & (indices < size_out)
    weights = torch.where(inside, torch.cos(0.5 * math.pi * places).square(), 0.0)
    used = inside.any(0)  # a column that no block needs
    indices, places, weights = indices[:, used], places[:, used], weights[:, used]
    indices = indices.clamp(0, size_out - 1)
    total = torch.zeros(size_out, device=device).index_add(0, indices.flatten(), weights.flatten())
    return AxisPlan(indices, places, weights / total.clamp_min(1e-12)[indices])


def plans(
    blocks: tuple[int, ...], shape: tuple[int, ...], zooms: tuple[float, ...], device: torch.device
) -> list[AxisPlan]:
    """Return the plan of each axis."""
    sizes = zip(blocks, shape, zooms, strict=True)
    return [axis_plan(count, size, zoom, device) for count, size, zoom in sizes]


def _spread(rows: list[Tensor]) -> list[Tensor]:
    """Views of (blocks_a, m_a) of each axis a that broadcast to (blocks..., m...)."""
    count = len(rows)
    views = []
    for axis, row in enumerate(rows):
        shape = [1] * (2 * count)
        shape[axis], shape[count + axis] = row.shape
        views.append(row.reshape(shape))
    return views


def _terms(rows: list[AxisPlan], alike: bool) -> Tensor:
    """Basis at the places of the blocks, (terms, M) or (B, terms, M)."""
    places = _spread([plan.places[:1] if alike else plan.places for plan in rows])
    points = torch.stack(torch.broadcast_tensors(*places), -1)
    points = points.flatten(len(rows), -2).flatten(0, len(rows) - 1)
    return basis(points[0] if alike else points)


def _gather(rendered: Tensor, rows: list[AxisPlan], sizes: list[int]) -> Tensor:
    """Sum (blocks..., m...) where the blocks overlap, one axis after the other: (*sizes)."""
    for axis in reversed(range(len(rows))):
        # Blocks left of the axis, this axis's, places likewise, then what is summed already.
        moved = rendered.movedim((axis, 2 * axis + 1), (0, 1))
        total = rendered.new_zeros((sizes[axis], *moved.shape[2:]))
        total = total.index_add(0, rows[axis].indices.flatten(), moved.flatten(0, 1))
        rendered = total.movedim(0, 2 * axis)
    return rendered


def _part(plan: AxisPlan, blocks: slice) -> tuple[AxisPlan, slice]:
    """Return the plan of some of the blocks, and the output voxels that they reach."""
    indices = plan.indices[blocks]
    reached = slice(int(indices.min()), int(indices.max()) + 1)
    part = AxisPlan(indices - reached.start, plan.places[blocks], plan.weights[blocks])
    return part, reached


def _groups(counts: list[int], room: int) -> list[tuple[slice, ...]]:
    """Return boxes of blocks that fit into the room, cut along the first axes."""
    if math.prod(counts) <= room or max(counts) == 1:
        return [tuple(slice(0, count) for count in counts)]
    axis = next(index for index, count in enumerate(counts) if count > 1)
    step = max(1, room // math.prod(counts[axis + 1 :]))
    inner = [*counts[:axis], 1, *counts[axis + 1 :]] if step == 1 else counts
    boxes = []
    for begin in range(0, counts[axis], step):
        own = slice(begin, min(begin + step, counts[axis]))
        for box in _groups(inner, room) if step == 1 else [tuple(map(slice, counts))]:
            boxes.append((*box[:axis], own, *box[axis + 1 :]))
    return boxes


def add_blocks(result: Tensor, kernels: Kernels, rows: list[AxisPlan], room: int = ROOM) -> Tensor:
    """Return ``result`` (*size) with blocks of kernels added, which may be some rows of a volume.

    Parameters
    ----------
    result
        Volume that the blocks are added to.
    kernels
        Kernels of the blocks of all ``rows``, first axis slowest.
    rows
        Output voxels of each block, for each axis.
    room
        Numbers that may be held at a time beyond the kernels and the result.
    """
    shares, said = polynomials(kernels)
    counts = [len(plan.indices) for plan in rows]
    places = math.prod(plan.indices.shape[1] for plan in rows)
    alike = all(plan.alike for plan in rows)
    heavy = places * max(shares.shape[1], 0 if alike else shares.shape[2])
    numbers = torch.arange(math.prod(counts), device=shares.device).reshape(counts)
    for box in _groups(counts, max(1, room // heavy)):
        parts = [_part(plan, blocks) for plan, blocks in zip(rows, box, strict=True)]
        own, reached = [part for part, _ in parts], tuple(box for _, box in parts)
        chosen = numbers[box].flatten()
        flat = render_polynomials(shares[chosen], said[chosen], _terms(own, alike))
        shape = [part.indices.shape for part in own]
        rendered = flat.reshape(*(rows for rows, _ in shape), *(reach for _, reach in shape))
        for weights in _spread([part.weights for part in own]):
            rendered = rendered * weights
        sizes = [side.stop - side.start for side in reached]
        result[reached] += _gather(rendered, own, sizes)
    return result
