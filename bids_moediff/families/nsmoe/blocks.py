# SPDX-License-Identifier: Apache-2.0
"""Overlapping blocks of an image, and their average on any output grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from bids_moediff.families.nsmoe.kernels import Kernels, render


@dataclass(frozen=True)
class AxisPlan:
    """Along one axis: output indices and local coordinates (blocks, m), and their weights."""

    indices: Tensor
    places: Tensor
    weights: Tensor


def padding(size: int, block: int) -> tuple[int, int]:
    """Voxels to add before and after, so that half-overlapping blocks cover all voxels twice."""
    half = block // 2
    return half, half + (-size) % half


def axis_plan(size_in: int, size_out: int, block: int, device: torch.device) -> AxisPlan:
    """Which output samples lie in which block, with outer corners aligned and sin^2 weights."""
    before, after = padding(size_in, block)
    half = block // 2
    starts = torch.arange(0, size_in + before + after - block + 1, half, device=device) - before
    ratio = size_in / size_out
    first = torch.ceil(starts / ratio - 0.5).long()
    reach = torch.arange(math.ceil(block / ratio) + 1, device=device)
    indices = first[:, None] + reach
    places = ((indices + 0.5) * ratio - starts[:, None]) / block
    inside = (places >= 0) & (places < 1) & (indices >= 0) & (indices < size_out)
    weights = torch.where(inside, torch.sin(math.pi * places).square(), 0.0)
    return AxisPlan(indices.clamp(0, size_out - 1), places, weights)


def cut(image: Tensor, block: int) -> Tensor:
    """Image (B, 1, *size) to half-overlapping blocks (B, blocks, block, ...), edges mirrored."""
    pads = [side for size in reversed(image.shape[2:]) for side in padding(size, block)]
    x = functional.pad(image, pads, mode="replicate")[:, 0]
    dims = x.dim() - 1
    for axis in range(dims):
        x = x.unfold(1 + axis, block, block // 2)
    return x.flatten(1, dims)


def assemble(
    kernels: Kernels, size_in: tuple[int, ...], size_out: tuple[int, ...], block: int
) -> Tensor:
    """Render the blocks of one image and average where they overlap: (*size_out).

    ``kernels`` hold the blocks of one image, in the order of :func:`cut`.
    """
    device = kernels.values.device
    plans = [axis_plan(a, b, block, device) for a, b in zip(size_in, size_out, strict=True)]
    grids = product(*(range(len(plan.indices)) for plan in plans))
    chosen = torch.tensor(list(grids), device=device)  # (blocks, d)
    total = torch.zeros(math.prod(size_out), device=device)
    weight = torch.zeros_like(total)
    columns = [plan.indices.shape[1] for plan in plans]
    count = len(chosen)

    def spread(rows: list[Tensor]) -> list[Tensor]:
        shape = [count, *columns]
        views = [
            row.reshape(count, *(-1 if i == a else 1 for i in range(len(rows))))
            for a, row in enumerate(rows)
        ]
        return [view.expand(shape).flatten(1) for view in views]

    places = spread([plan.places[chosen[:, a]] for a, plan in enumerate(plans)])
    shares = spread([plan.weights[chosen[:, a]] for a, plan in enumerate(plans)])
    indices = spread([plan.indices[chosen[:, a]] for a, plan in enumerate(plans)])
    values = render(kernels, torch.stack(places, -1).to(kernels.values.dtype))
    share = torch.stack(shares).prod(0)
    flat = indices[0]
    for index, size in zip(indices[1:], size_out[1:], strict=True):
        flat = flat * size + index
    total = total.index_add(0, flat.flatten(), (values * share).flatten())
    weight = weight.index_add(0, flat.flatten(), share.flatten())
    return (total / weight.clamp_min(1e-8)).reshape(size_out)
