# SPDX-License-Identifier: Apache-2.0
"""Estimate the memory and time of an image before anything heavy is imported."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bids_moediff.errors import WeightsError
from bids_moediff.families import family
from bids_moediff.networks.model_folder import read_config
from bids_moediff.options import Options
from bids_moediff.runtime.resources import has_bfloat16

# Measured with the shipped models (docs/speed.md), per voxel of the output.
_BYTES_PER_VOXEL = 65.0
_BASE_GIGABYTES = 1.1
# The app beside the network's process: 0.40 GB on the demo (docs/clusters.md, "Memory").
_APP_GIGABYTES = 0.4
# Loading the weights, interpolation, projection, writing.
_BASE_SECONDS = 5.0


@dataclass(frozen=True)
class Estimate:
    """Cost of one image.

    Parameters
    ----------
    gigabytes
        Peak memory of the network's process in GB.
    seconds
        Time of that process in s.
    shape
        Voxel counts of the output.
    """

    gigabytes: float
    seconds: float
    shape: tuple[int, int, int]

    @property
    def job_gigabytes(self) -> float:
        """Peak memory of the whole job in GB, as a batch system counts it."""
        return round(self.gigabytes + _APP_GIGABYTES, 2)


def estimate(
    shape_in: Sequence[int],
    zooms_in: Sequence[float],
    options: Options,
    *,
    model: str,
    device: str = "cpu",
    threads: int = 1,
    bfloat16: bool | None = None,
) -> Estimate:
    """Return the cost of one image.

    Parameters
    ----------
    shape_in, zooms_in
        Voxel counts and voxel sizes (mm) of the input, by axis.
    options
        Output resolution, samples and steps.
    model
        Name or folder of the model; its config.json gives the arithmetic for one voxel.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    threads
        Number of threads that work on the image.
    bfloat16
        Whether the processor multiplies bfloat16; by default it is looked up.
    """
    counts = [
        max(1, math.ceil(n * old / new - 1e-3))
        for n, old, new in zip(shape_in, zooms_in, options.output_zooms(zooms_in), strict=True)
    ]
    voxels = math.prod(counts)
    seconds = voxels * seconds_per_voxel(
        read_config(model), options, device=device, threads=threads, bfloat16=bfloat16
    )
    return Estimate(
        round(_BASE_GIGABYTES + voxels * _BYTES_PER_VOXEL / 1e9, 2),
        round(_BASE_SECONDS + seconds, 1),
        (counts[0], counts[1], counts[2]),
    )


# Combining scans, by voxel of the result: the volumes of the estimate, and those of each scan.
# Three scans and 9.2 million voxels took 2.0 GB more than before and 79 s of one core, with 4
# steps of the estimate of up to 12 (python -m research.measurements.combination_cost).
_BYTES_PER_COMBINED_VOXEL = (70.0, 50.0)
_SECONDS_PER_COMBINED_VOXEL = 4e-6  # and scan


def combination_cost(shape: tuple[int, int, int], scans: int) -> Estimate:
    """Return the cost of combining restored scans.

    Parameters
    ----------
    shape
        Voxel counts of the result.
    scans
        Number of scans.
    """
    voxels, (common, each) = math.prod(shape), _BYTES_PER_COMBINED_VOXEL
    return Estimate(
        round(_BASE_GIGABYTES + voxels * (common + each * scans) / 1e9, 2),
        round(_BASE_SECONDS + voxels * scans * _SECONDS_PER_COMBINED_VOXEL, 1),
        shape,
    )


# A network nobody has a count for is taken to cost as much as the first shipped mean, at the
# rates of the experts.
UNKNOWN_MACS = 101_000.0
UNKNOWN_RATES = {"bf16": 63.0, "fp32": 18.0, "cuda": 20_000.0}


def stage_macs(config: Mapping[str, Any], options: Options) -> Mapping[str, float]:
    """Return multiply-accumulates for one output voxel, by part of the network.

    Empty if the family is unknown or the configuration is invalid.
    """
    try:
        macs = family(config.get("family")).macs(config, options)
    except (WeightsError, KeyError, TypeError, ValueError):
        return {}
    passes = 2 if options.self_ensemble else 1
    return {name: passes * count for name, count in macs.items()}


def seconds_per_voxel(
    config: Mapping[str, Any],
    options: Options,
    *,
    device: str = "cpu",
    threads: int = 1,
    bfloat16: bool | None = None,
) -> float:
    """Return the time in s that all networks take for one output voxel.

    Parameters
    ----------
    config
        Content of config.json.
    options, device, threads, bfloat16
        As for :func:`estimate`.
    """
    gpu = device.startswith("cuda")
    fast = not gpu and (has_bfloat16() if bfloat16 is None else bfloat16)
    kind = "cuda" if gpu else "bf16" if fast else "fp32"
    stages = stage_macs(config, options)
    if stages:
        rates = family(config["family"]).rates[kind]
        seconds = sum(macs / (1e9 * rates[name]) for name, macs in stages.items())
    else:
        seconds = UNKNOWN_MACS / (1e9 * UNKNOWN_RATES[kind])
    return seconds if gpu else seconds / max(1, threads)
