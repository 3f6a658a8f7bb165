# SPDX-License-Identifier: Apache-2.0
"""Run a 3-D network (the regression mean or the student) on a whole volume, in bounded memory."""

from collections.abc import Callable

import torch

from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.networks.mean import (
    FOLD,
    OUTPUT_GAIN,
    MeanNetwork,
    depth_to_space,
    normalise,
    space_to_depth,
)

from .tiling import pad_to_multiple

# Voxels pushed at a time: enough to keep every core busy, little enough for the caches of a CPU.
CPU_VOXELS = 500_000
CUDA_VOXELS = 16_000_000
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def axis_order(condition: torch.Tensor) -> list[int]:
    """Axes by ascending voxel ratio: the network only knows volumes whose last axis is coarsest.

    Ties keep their order. `condition` is (6,), see :meth:`Acquisition.condition`.
    """
    return sorted(range(3), key=lambda axis: round(float(condition[axis]), 3))


def reorder(condition: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Condition (6,) of a volume whose axes were permuted to `order`."""
    return condition[[*order, *(3 + axis for axis in order)]]


def apply_mean(
    network: MeanNetwork | StudentNetwork,
    start: torch.Tensor,
    condition: torch.Tensor,
    progress: Callable[[float], None] | None = None,
    *,
    precision: str | None = None,
    max_voxels: int | None = None,
) -> torch.Tensor:
    """Output (X, Y, Z) of the network for the start (X, Y, Z) under `condition` (6,).

    Planes are pushed through the network (:mod:`bids_moediff.networks.streaming`), `max_voxels` at
    a time: the result is that of the whole volume, memory grows with a plane. `precision` is a key
    of ``PRECISIONS``; that of the surrounding autocast, else 32 bits, by default.
    """
    order = axis_order(condition)
    device = next(network.parameters()).device
    told = reorder(condition, order)[None].to(device)
    volume = pad_to_multiple(start.permute(order), network.config.multiple).contiguous()
    voxels = max_voxels or (CUDA_VOXELS if device.type == "cuda" else CPU_VOXELS)
    plane = volume.shape[1] * volume.shape[2]
    step = max(1, voxels // (network.config.multiple * plane)) * network.config.multiple
    kind = torch.float32
    if precision is not None:
        kind = PRECISIONS[precision]
    elif torch.is_autocast_enabled(device.type):
        kind = torch.get_autocast_dtype(device.type)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        pipeline = network.stream(told, kind)
        result, done = volume.clone(), 0
        for begin in range(0, volume.shape[0], step):
            end = min(begin + step, volume.shape[0])
            folded = normalise(space_to_depth(volume[None, None, begin:end].to(device)))
            folded = folded.contiguous(memory_format=torch.channels_last_3d)
            ready = pipeline.push(folded, last=end == volume.shape[0])
            count = FOLD * ready.shape[2]
            change = OUTPUT_GAIN * depth_to_space(ready.float())[0, 0]
            result[done : done + count] += change.to(result.device)
            done += count
            if progress is not None:
                progress(end / volume.shape[0])
    sizes = [start.shape[axis] for axis in order]
    cut = result[: sizes[0], : sizes[1], : sizes[2]]
    return cut.permute([order.index(axis) for axis in range(3)]).contiguous()
