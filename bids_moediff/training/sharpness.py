# SPDX-License-Identifier: Apache-2.0
"""Choose training grids that hold truth: undo interpolated axes, and coarsen heads at random.

A head with interpolated slices teaches a network that there is no detail between slices. Such an
axis is brought back to the measured voxels, or spared from degradation. A head made coarser, in
contrast, is sharp down to its voxels and has little noise.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bids_moediff.imaging.acquisition import Axis, _along, axis_matrix

from .pack import TrainingHead

UNDONE_SHARE = 0.5
# Largest random coarsening, in voxels.
COARSEST = 1.8
PROFILES = (Axis("kspace"), Axis("gaussian", 0.8))


@dataclass(frozen=True)
class Grid:
    """Voxel size per axis of the head's array that training uses, in voxels of the file.

    `spared` is an axis that is smoother than its voxels and must not be degraded.
    """

    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    spared: int | None = None

    @property
    def changes(self) -> bool:
        """Whether any axis is coarsened."""
        return max(self.factors) > 1.0


def interpolated_axes(
    head: TrainingHead, patterns: Mapping[str, Sequence[float]]
) -> tuple[float, float, float]:
    """How many voxels an independent sample spans on each axis; the first pattern counts."""
    for pattern, spans in patterns.items():
        if fnmatch.fnmatchcase(head.name, pattern):
            return (float(spans[0]), float(spans[1]), float(spans[2]))
    return (1.0, 1.0, 1.0)


def draw_grid(
    head: TrainingHead,
    patterns: Mapping[str, Sequence[float]],
    coarsen_share: float,
    rng: np.random.Generator,
) -> Grid:
    """Grid of one training volume; label maps and measured pairs stay as they are."""
    if head.kind != "image":
        return Grid()
    spans = np.asarray(interpolated_axes(head, patterns))
    smooth = np.flatnonzero(spans > 1)
    if len(smooth) == 1 and rng.random() >= UNDONE_SHARE:
        return Grid(spared=int(smooth[0]))
    factors = spans.copy()
    if len(smooth):  # thick slices: their plane is coarsened part of the way to cubes
        sizes = np.asarray(head.zooms) * spans
        factors *= (sizes.max() / sizes) ** rng.uniform()
    if rng.random() < coarsen_share:
        factors *= np.exp(rng.uniform(0, np.log(COARSEST)))
    return Grid((float(factors[0]), float(factors[1]), float(factors[2])))


def to_larger_voxels(image: torch.Tensor, factors: Sequence[float], profile: Axis) -> torch.Tensor:
    """Volume (X, Y, Z) on voxels `factors` times as large; its field of view may shrink."""
    matrices = []
    for size, factor in zip(image.shape, factors, strict=True):
        matrix = None
        if factor > 1.001:
            matrix = axis_matrix(size, 1.0, int(size / factor + 1e-6), round(factor, 4), profile)
        matrices.append(
            None
            if matrix is None
            else torch.as_tensor(matrix, dtype=torch.float32, device=image.device)
        )
    return _along(image, matrices)
