# SPDX-License-Identifier: Apache-2.0
"""Small blobs that stand for lesions, added to training images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .tensor_filters import gaussian

TISSUE = 0.25  # of the range: where a blob may be put
DARKEST = 0.05  # of the range: what a dark blob leaves of the tissue
WOBBLE, WOBBLE_WIDTH = 0.2, 1.5  # how irregular an outline is (of the radius), and its scale
EDGE = 1.0  # voxels from full contrast to none


@dataclass(frozen=True)
class LesionPlan:
    """Settings of blobs.

    Attributes
    ----------
    diameters, contrasts
        The smallest and largest, in voxels and of the range.
    spacing
        Least distance of two centres, in voxels.
    tries
        How many places are tried.
    """

    diameters: tuple[float, ...] = (1.5, 8.0)
    contrasts: tuple[float, ...] = (0.05, 0.4)
    spacing: float = 12.0
    tries: int = 4000


def blob(shape: Sequence[int], diameter: float, rng: np.random.Generator) -> Tensor:
    """One blob of contrast 1 in the middle of `shape`: an ellipsoid with a wavy, soft outline."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    grid = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape), indexing="ij"
    )
    turned = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    stretch = torch.exp(0.25 * torch.randn(3, generator=generator))
    stretch = stretch / stretch.prod() ** (1 / 3)
    along = torch.einsum("ij,jxyz->ixyz", turned, torch.stack(grid)) / stretch[:, None, None, None]
    waves = gaussian(torch.randn(*shape, generator=generator), WOBBLE_WIDTH)
    waves = waves / waves.std().clamp_min(1e-6)
    radius = diameter / 2 * (1 + WOBBLE * waves.clamp(-2, 2))
    position = (along.square().sum(0).sqrt() - radius) / EDGE + 0.5
    return 0.5 * (1 + torch.cos(torch.pi * position.clamp(0, 1)))


def lesion_field(
    truth: Tensor, weight: Tensor, plan: LesionPlan, rng: np.random.Generator
) -> Tensor:
    """Blobs to be added to `truth` (X, Y, Z), in units of its range.

    Their diameters (`plan.diameters`, in voxels) and contrasts (`plan.contrasts`) are drawn
    anew for each; their centres lie in tissue, at least `plan.spacing` voxels apart.
    """
    field = torch.zeros_like(truth)
    smooth = gaussian(truth, 1.0)
    places = torch.nonzero((smooth > TISSUE) & (weight > 0.5))
    low, high = (float(np.log(size)) for size in plan.diameters)
    chosen = np.empty((0, 3))
    for index in rng.permutation(len(places))[: plan.tries]:
        centre = places[int(index)].tolist()
        if len(chosen) and np.linalg.norm(chosen - centre, axis=1).min() < plan.spacing:
            continue
        diameter = float(np.exp(rng.uniform(low, high)))
        reach = int(np.ceil(0.8 * diameter)) + 2
        begin = [c - reach for c in centre]
        if min(begin) < 0 or any(
            b + 2 * reach >= n for b, n in zip(begin, truth.shape, strict=True)
        ):
            continue
        chosen = np.vstack([chosen, centre])
        contrast = float(rng.uniform(plan.contrasts[0], plan.contrasts[1]))
        if rng.random() < 0.5:
            contrast = -min(contrast, float(smooth[tuple(centre)]) - DARKEST)
        box = tuple(slice(b, b + 2 * reach + 1) for b in begin)
        field[box] += contrast * blob([2 * reach + 1] * 3, diameter, rng).to(field)
    # A dark blob may reach out of the tissue, where there is nothing to take away.
    return torch.maximum(field, -(truth - DARKEST).clamp_min(0.0)).where(field < 0, field)
