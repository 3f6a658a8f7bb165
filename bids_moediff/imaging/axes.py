# SPDX-License-Identifier: Apache-2.0
"""Orders of a volume's axes: by voxel ratio, across and along slices."""

import torch


def axis_order(condition: torch.Tensor) -> list[int]:
    """Axes by ascending voxel ratio: the network only knows volumes whose last axis is coarsest.

    Ties keep their order. `condition` is (6,), see :meth:`Acquisition.condition`.
    """
    return sorted(range(3), key=lambda axis: round(float(condition[axis]), 3))


def reorder(condition: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Condition of a volume whose axes were permuted to `order`; numbers from 6 on stay."""
    axes = [*order, *(3 + axis for axis in order)]
    return torch.cat([condition[axes], condition[6:]])


Axes = tuple[int, int, int]


def slice_axes(condition: torch.Tensor) -> Axes:
    """Volume axes across slices, along rows and along columns.

    Across: the smallest voxel ratio, the last axis among equals. Columns are the coarser of the
    two that remain, so that the network meets one orientation only.
    """
    return orientations(condition, 1)[0]


def orientations(condition: torch.Tensor, planes: int) -> list[Axes]:
    """The first `planes` ways to cut a volume, best first.

    Fewer where fewer axes share the smallest voxel ratio: a network never saw slices that are
    thicker than their pixels (x4 slices leave two planes, x2 isotropic three).
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
    """Reorder (ratio x3, width x3) to (rows, columns, across slices)."""
    order = [axes[1], axes[2], axes[0]]
    return condition[[*order, *(3 + index for index in order)]]
