# SPDX-License-Identifier: Apache-2.0
"""Run the regression mean on a whole volume, in the axis order it was trained in."""

from collections.abc import Callable

import torch

from bids_moediff.models.moediff.mean import FOLD, MeanNetwork

from .tiling import pad_to_multiple, run_in_slabs

# A slab of this many voxels keeps the network under 3 GB.
SLAB_VOXELS = 24_000_000


def axis_order(condition: torch.Tensor) -> list[int]:
    """Axes by ascending voxel ratio: the network only knows volumes whose last axis is coarsest.

    Ties keep their order. `condition` is (6,), see :meth:`Acquisition.condition`.
    """
    return sorted(range(3), key=lambda axis: round(float(condition[axis]), 3))


def reorder(condition: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Condition (6,) of a volume whose axes were permuted to `order`."""
    return condition[[*order, *(3 + axis for axis in order)]]


def apply_mean(
    network: MeanNetwork,
    start: torch.Tensor,
    condition: torch.Tensor,
    progress: Callable[[float], None] | None = None,
    max_voxels: int = SLAB_VOXELS,
) -> torch.Tensor:
    """Posterior mean (X, Y, Z) of the start (X, Y, Z) under `condition` (6,), without seams."""
    order = axis_order(condition)
    device = next(network.parameters()).device
    told = reorder(condition, order)[None].to(device)
    volume = pad_to_multiple(start.permute(order), FOLD).contiguous().to(device)

    def restore(block: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(block, told).float()

    result = run_in_slabs(restore, volume, network.config.receptive_radius, max_voxels, progress)
    inverse = [order.index(axis) for axis in range(3)]
    sizes = [start.shape[axis] for axis in order]
    cut = result[: sizes[0], : sizes[1], : sizes[2]]
    return cut.permute(inverse).contiguous().to(start.device)
