# SPDX-License-Identifier: Apache-2.0
"""Order the axes of a volume: by voxel ratio, across and along slices."""

import torch


def axis_order(condition: torch.Tensor) -> list[int]:
    """Return the axes by ascending voxel ratio: networks expect the coarsest axis last.

    Ties keep their order. ``condition`` is (6,), see :meth:`Acquisition.condition`.
    """
    return sorted(range(3), key=lambda axis: round(float(condition[axis]), 3))


def reorder(condition: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Return the condition of a volume with axes permuted to ``order``; numbers from 6 on stay."""
    axes = [*order, *(3 + axis for axis in order)]
    return torch.cat([condition[axes], condition[6:]])


Axes = tuple[int, int, int]


def slice_axes(condition: torch.Tensor) -> Axes:
    """Return the volume axes across slices, along rows and along columns.

    Across is the smallest voxel ratio, the last axis among equals. Columns are the coarser of the
    other two, so that the network sees one orientation only.
    """
    return orientations(condition, 1)[0]


def orientations(condition: torch.Tensor, planes: int) -> list[Axes]:
    """Return the first ``planes`` ways to cut a volume, best first.

    There are fewer if fewer axes share the smallest voxel ratio: networks never saw slices that
    are thicker than their pixels (x4 slices leave two planes, x2 isotropic three).
    """
    ratios = [round(float(value), 3) for value in condition[:3]]
    cuts = []
    for across in (2, 1, 0):
        if ratios[across] == min(ratios):
            rest = [axis for axis in range(3) if axis != across]
            rows, columns = sorted(rest, key=ratios.__getitem__)
            cuts.append((across, rows, columns))
    return cuts[:planes]


def plane_condition(condition: torch.Tensor, axes: Axes) -> torch.Tensor:
    """Reorder a condition (ratio x3, width x3) to (rows, columns, across slices)."""
    order = [axes[1], axes[2], axes[0]]
    return condition[[*order, *(3 + index for index in order)]]
