# SPDX-License-Identifier: Apache-2.0
"""How much memory and time an image will take, before anything heavy is imported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bids_moediff.families.choice import read_config, seconds_per_voxel

# Measured with the shipped models (docs/speed.md), per voxel of the output.
_BYTES_PER_VOXEL = 65.0
_BASE_GIGABYTES = 1.0
# Loading the weights, interpolation, projection, writing.
_BASE_SECONDS = 5.0


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
    model: str = "moediff",
    threads: int = 1,
    bfloat16: bool | None = None,
) -> Estimate:
    """Cost of one image of `shape_in` voxels of `zooms_in` mm at `zooms_out` mm.

    `model` is a name or a folder; its config.json says how much arithmetic a voxel takes.
    `threads` work on the image, on a processor that multiplies bfloat16 or not (looked up by
    default).
    """
    counts = [
        max(1, math.ceil(n * old / new - 1e-3))
        for n, old, new in zip(shape_in, zooms_in, zooms_out, strict=True)
    ]
    voxels = math.prod(counts)
    evaluations = num_steps * num_samples * planes
    seconds = voxels * seconds_per_voxel(
        read_config(model), evaluations, device=device, threads=threads, bfloat16=bfloat16
    )
    return Estimate(
        round(_BASE_GIGABYTES + voxels * _BYTES_PER_VOXEL / 1e9, 2),
        round(_BASE_SECONDS + seconds, 1),
        (counts[0], counts[1], counts[2]),
    )
