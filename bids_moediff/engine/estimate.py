# SPDX-License-Identifier: Apache-2.0
"""How much memory and time an image will take, before anything heavy is imported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Measured with the shipped model (docs/benchmarks.md), per voxel of the output.
_BYTES_PER_VOXEL = 60.0
_MEAN_MACS_PER_VOXEL = 101_000.0
_EXPERT_MACS_PER_VOXEL_AND_STEP = 34_000.0
_BASE_GIGABYTES = 1.0
# Sustained multiply-accumulates per second: two cores with bf16, and a data-centre GPU.
_CPU_MACS_PER_SECOND = 60e9
_GPU_MACS_PER_SECOND = 20e12


@dataclass(frozen=True)
class Estimate:
    """Peak memory in GB and seconds of super-resolution, and the output matrix."""

    gigabytes: float
    seconds: float
    shape: tuple[int, int, int]


def estimate(
    shape_in: Sequence[int],
    zooms_in: Sequence[float],
    zooms_out: Sequence[float],
    *,
    device: str = "cpu",
    num_steps: int = 1,
    num_samples: int = 1,
    planes: int = 1,
) -> Estimate:
    """Cost of one image of `shape_in` voxels of `zooms_in` mm at `zooms_out` mm."""
    counts = [
        max(1, math.ceil(n * old / new - 1e-3))
        for n, old, new in zip(shape_in, zooms_in, zooms_out, strict=True)
    ]
    voxels = math.prod(counts)
    work = voxels * (
        _MEAN_MACS_PER_VOXEL + _EXPERT_MACS_PER_VOXEL_AND_STEP * num_steps * num_samples * planes
    )
    speed = _GPU_MACS_PER_SECOND if device.startswith("cuda") else _CPU_MACS_PER_SECOND
    return Estimate(
        round(_BASE_GIGABYTES + voxels * _BYTES_PER_VOXEL / 1e9, 2),
        round(5 + work / speed, 1),
        (counts[0], counts[1], counts[2]),
    )
