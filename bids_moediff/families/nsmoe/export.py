# SPDX-License-Identifier: Apache-2.0
"""Write the kernels of a region as a table, and as a map of the leading kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bids_moediff.families.protocol import Problem
from bids_moediff.families.whole_volume import head_boxes

from .blocks import SPACING, AxisPlan, plans
from .kernels import Kernels, basis, polynomials, precisions
from .network import NSMoENetwork

SIDE = 8  # blocks along a side of the region
HEAD = 0.1  # of the scale: brighter voxels belong to the head
Row = dict[str, Any]


@dataclass
class Region:
    """A cube of blocks whose encodings are kept while a volume is rendered.

    Parameters
    ----------
    order
        Axes of the image in the order of the network.
    offset
        Voxel of the image at which the network's volume begins.
    first
        First block along each axis, in the network's order of axes.
    side
        Blocks along a side.
    """

    order: list[int]
    offset: tuple[int, ...]
    first: tuple[int, ...]
    side: int
    planes: list[Tensor] = field(default_factory=list)

    @classmethod
    def around_head(cls, start: Tensor, problem: Problem, order: list[int]) -> Region:
        """Return the region around the middle of the head in (X, Y, Z)."""
        boxes = head_boxes(start)[0] if problem.within_head else (slice(0, None),) * 3
        volume = start[boxes]
        side = min(SIDE, min(volume.shape) // SPACING)
        head = volume > HEAD
        first = []
        for axis in order:
            others = tuple({0, 1, 2} - {axis})
            along = head.sum(others).double()
            places = torch.arange(len(along), device=along.device)
            middle = float((places * along).sum() / along.sum().clamp_min(1))
            last = volume.shape[axis] // SPACING - side
            first.append(max(0, min(round(middle / SPACING - side / 2), last)))
        return cls(order, tuple(box.start or 0 for box in boxes), tuple(first), side)

    def visit(self, done: int, planes: Tensor) -> None:
        """Keep the part of encodings (C, n, y, z) inside; ``done`` blocks precede them."""
        first, second, third = self.first
        begin, end = max(first - done, 0), max(first + self.side - done, 0)
        _, y, z = (slice(None), *(slice(f, f + self.side) for f in (second, third)))
        if part := list(planes[:, begin:end, y, z].unbind(1)):
            self.planes += [plane.float().cpu() for plane in part]

    def described(self, network: NSMoENetwork, shape: tuple[int, ...]) -> tuple[Tensor, list[Row]]:
        """Return the leading kernel in each voxel (*shape), 0 outside, and a row for each."""
        encoding = torch.stack(self.planes, 1)
        kernels = network.kernels(encoding.to(network.start_centres.device))
        counts = (self.side,) * 3
        size = SPACING * self.side
        rows = plans(counts, (size,) * 3, (1.0,) * 3, encoding.device)
        numbers = leading(kernels, rows, size)
        turned = [self.order.index(axis) for axis in range(3)]
        corner = [
            self.offset[axis] + SPACING * f for axis, f in zip(self.order, self.first, strict=True)
        ]
        labels = torch.zeros(shape)
        cut = tuple(slice(corner[place], corner[place] + size) for place in turned)
        labels[cut] = numbers.permute(turned).float()
        found = numbers.unique().tolist()
        return labels, [self._row(kernels, number, corner, turned) for number in found]

    def _row(self, kernels: Kernels, number: int, corner: list[int], turned: list[int]) -> Row:
        block, kernel = divmod(number - 1, kernels.values.shape[1])
        places = torch.unravel_index(torch.tensor(block), (self.side,) * 3)
        middle = torch.tensor(
            [c + SPACING * int(p) + 0.5 for c, p in zip(corner, places, strict=True)]
        )
        centre = middle + SPACING * kernels.centres[block, kernel]
        own = kernels.of(slice(block, block + 1))
        roots, axes = torch.linalg.eigh(precisions(own)[0, kernel].double())
        widths = SPACING / roots.clamp_min(1e-12).sqrt()
        narrow = axes[:, -1]
        row: Row = {"index": number, "name": f"kernel {number}"}
        row |= {name: round(float(centre[p]), 3) for name, p in zip("ijk", turned, strict=True)}
        row |= {f"width_{3 - n}": round(float(width), 3) for n, width in enumerate(widths)}
        row |= {
            f"across_{name}": round(float(narrow[p]), 3)
            for name, p in zip("ijk", turned, strict=True)
        }
        row["weight"] = round(float(kernels.log_weights[block, kernel].exp()), 4)
        row["value"] = round(float(kernels.values[block, kernel]), 5)
        slopes = kernels.slopes[block, kernel] / SPACING
        return row | {
            f"slope_{name}": round(float(slopes[p]), 5)
            for name, p in zip("ijk", turned, strict=True)
        }


def leading(kernels: Kernels, rows: list[AxisPlan], size: int) -> Tensor:
    """Return the number (from 1) of the kernel with the largest weight, (size, size, size)."""
    blocks, count = kernels.values.shape
    side = round(blocks ** (1 / 3))
    corners = torch.cartesian_prod(*(torch.arange(side),) * 3)
    strongest = torch.full((size**3,), -1.0)
    numbers = torch.zeros(size**3, dtype=torch.long)
    shares, _ = polynomials(kernels)
    for block, corner in enumerate(corners.tolist()):
        parts = [
            (plan.indices[c], plan.places[c], plan.weights[c])
            for plan, c in zip(rows, corner, strict=True)
        ]
        index = torch.cartesian_prod(*(part[0] for part in parts))
        terms = basis(torch.cartesian_prod(*(part[1] for part in parts)))
        weight = torch.cartesian_prod(*(part[2] for part in parts)).prod(1)
        share, kernel = (torch.softmax(shares[block] @ terms, 0) * weight).max(0)
        flat = (index[:, 0] * size + index[:, 1]) * size + index[:, 2]
        better = (share > strongest[flat]) & (weight > 0)
        strongest[flat[better]] = share[better]
        numbers[flat[better]] = block * count + kernel[better] + 1
    return numbers.reshape(size, size, size)
