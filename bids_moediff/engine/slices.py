# SPDX-License-Identifier: Apache-2.0
"""Run the mixture of experts over the slices of a volume.

Slices are stacked along the axis with the smallest voxel ratio, so that the coarse axes lie in the
slice plane; neighbouring slices are the context; all slices share the same noise, which keeps the
volume free of flicker (decision S of docs/science.md).
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from bids_moediff.models.moediff.network import MoEDiffSR

SLICE_MULTIPLE = 64


def slice_axes(condition: torch.Tensor) -> tuple[int, int, int]:
    """Volume axes across slices, along rows and along columns.

    Across: the smallest voxel ratio, the last axis among equals. Columns are the coarser of the
    two that remain, so that the network meets one orientation only.
    """
    ratios = [round(float(value), 3) for value in condition[:3]]
    across = max(axis for axis in range(3) if ratios[axis] == min(ratios))
    rows, columns = sorted((axis for axis in range(3) if axis != across), key=ratios.__getitem__)
    return across, rows, columns


def plane_condition(condition: torch.Tensor, axes: tuple[int, int, int]) -> torch.Tensor:
    """Reorder (ratio x3, width x3) to (rows, columns, across slices)."""
    order = [axes[1], axes[2], axes[0]]
    return condition[[*order, *(3 + index for index in order)]]


def restore_slices(
    network: MoEDiffSR,
    volume: torch.Tensor,
    condition: torch.Tensor,
    *,
    num_steps: int,
    noise_strength: float,
    seed: int,
    batch_size: int | None = None,
    want_gates: bool = False,
    progress: Callable[[float], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int]]:
    """Sample every slice of `volume` (X, Y, Z); returns image, gates (X, Y, Z, K) or None, counts.

    On a CPU slices go one by one, so that the result does not depend on the batch size.
    """
    axes = slice_axes(condition)
    stack = volume.permute(axes)
    count, rows, columns = stack.shape
    padding = (0, -columns % SLICE_MULTIPLE, 0, -rows % SLICE_MULTIPLE)
    stack = functional.pad(stack[:, None], padding, mode="constant")[:, 0]
    reach = network.config.context_slices // 2
    batch = 1 if volume.device.type == "cpu" else (batch_size or 16)
    plane = plane_condition(condition, axes)
    noise = None
    if noise_strength > 0:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(stack.shape[1:], generator=generator).to(volume.device)
    output = torch.empty_like(stack)
    gates: list[torch.Tensor] = []
    counts = {"evaluated": 0, "skipped": 0}
    for begin in range(0, count, batch):
        centres = torch.arange(begin, min(begin + batch, count))
        index = (centres[:, None] + torch.arange(-reach, reach + 1)).clamp(0, count - 1)
        context = stack[index.to(stack.device)]
        result = network.sample(
            context,
            plane.expand(len(centres), -1),
            num_steps=num_steps,
            noise_strength=noise_strength,
            noise=None if noise is None else noise.expand(len(centres), -1, -1),
        )
        output[begin : begin + len(centres)] = result.image.float()
        counts["evaluated"] += int(result.evaluated)
        counts["skipped"] += int(result.skipped)
        if want_gates:
            gates.append(_full_size(result.gates.float(), rows, columns).cpu())
        if progress is not None:
            progress((begin + len(centres)) / count)
    back = [axes.index(axis) for axis in range(3)]
    image = output[:, :rows, :columns].permute(back).contiguous()
    maps = torch.cat(gates).movedim(1, -1).permute(*back, 3) if gates else None
    return image, maps, counts


def _full_size(gates: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Bilinear interpolation of (B, K, H/4, W/4) to slices; still sums to one."""
    size = (gates.shape[-2] * 4, gates.shape[-1] * 4)
    large = functional.interpolate(gates, size=size, mode="bilinear", align_corners=False)
    return large[..., :rows, :columns]
