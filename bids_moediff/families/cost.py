# SPDX-License-Identifier: Apache-2.0
"""Estimate the memory and time of an image before anything heavy is imported."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bids_moediff.errors import WeightsError
from bids_moediff.families import family
from bids_moediff.networks.model_folder import read_config, resolve
from bids_moediff.options import Options
from bids_moediff.runtime.resources import has_bfloat16

# Measured with the shipped models (docs/speed.md), per voxel of the output.
_BYTES_PER_VOXEL = 65.0
_BASE_GIGABYTES = 1.1
# The app beside the network's process: 0.40 GB on the demo (docs/clusters.md, "Memory").
_APP_GIGABYTES = 0.4
# Loading the weights, interpolation, projection, writing.
_BASE_SECONDS = 5.0
# A sample with its file, per voxel of the output, on one core with bfloat16; experts at one step
# (docs/speed.md).
_SECONDS_PER_SAMPLE = {"noise": 0.3e-6, "experts": 1.2e-6}
SLOWER_WITHOUT_BFLOAT16 = 3.5
# Experts that sample need more memory than the networks before them: 2.27 GB where the rule above
# gives 1.38 (4.3 million voxels); beyond a slab of 4 million voxels it is taken to stay. Noise
# needs no more (1.26 GB where the student had 1.54).
_BYTES_OF_SAMPLERS, _VOXELS_OF_SAMPLERS = 220.0, 4e6
# Files of the result, compressed, per voxel: 16-bit integers, and floats (measured on a T1w head).
_BYTES_OF_INTEGERS, _BYTES_OF_FLOATS = 1.6, 3.6


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
    disk_gigabytes
        Size of the image, its samples and its maps in GB.
    """

    gigabytes: float
    seconds: float
    shape: tuple[int, int, int]
    disk_gigabytes: float = 0.0

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
    samplers = _sampling_experts(model, options)
    seconds = voxels * seconds_per_voxel(
        read_config(model), options, device=device, threads=threads, bfloat16=bfloat16
    )
    seconds += voxels * _sample_seconds(options, bool(samplers), device, threads, bfloat16)
    size = voxels * _BYTES_PER_VOXEL
    size += min(voxels, _VOXELS_OF_SAMPLERS) * _BYTES_OF_SAMPLERS if samplers else 0
    return Estimate(
        round(_BASE_GIGABYTES + size / 1e9, 2),
        round(_BASE_SECONDS + seconds, 1),
        (counts[0], counts[1], counts[2]),
        round(voxels * _bytes_on_disk(model, options, len(samplers)) / 1e9, 3),
    )


def _sampling_experts(model: str, options: Options) -> Sequence[str]:
    """Return the experts that draw the samples; empty for noise and without samples."""
    noise = options.sampler == "gaussian" or options.sample == "texture"
    if noise or not options.draws_samples:
        return ()
    try:
        kind = read_config(model).get("family")
        return family(kind).sampling_experts(resolve(model))
    except WeightsError:  # it is said where the model is loaded
        return ()


def _sample_seconds(
    options: Options, by_experts: bool, device: str, threads: int, bfloat16: bool | None
) -> float:
    """Return the time in s that all samples take for one output voxel."""
    if not options.draws_samples:
        return 0.0
    one = _SECONDS_PER_SAMPLE["noise"]
    if by_experts:
        experts = (_SECONDS_PER_SAMPLE["experts"] - one) * (options.num_steps or 1)
        if device.startswith("cuda"):
            experts = 0.0
        elif not (has_bfloat16() if bfloat16 is None else bfloat16):
            experts *= SLOWER_WITHOUT_BFLOAT16
        one += experts / max(1, threads)
    return options.num_samples * one


def _bytes_on_disk(model: str, options: Options, num_samplers: int) -> float:
    """Return the size of the files for one output voxel."""
    maps = options.num_samples if options.writes_samples else 0
    maps += options.wants_expected_error
    if "gates" in options.outputs:
        maps += _num_experts(read_config(model)) + num_samplers
    image = _BYTES_OF_INTEGERS if options.output_dtype == "auto" else _BYTES_OF_FLOATS
    return image + maps * _BYTES_OF_FLOATS


def _num_experts(config: Mapping[str, Any]) -> int:
    try:
        return len(family(config.get("family")).experts(config))
    except WeightsError:
        return 0


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
        round(voxels * _BYTES_OF_INTEGERS / 1e9, 3),
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
    passes = (1 + options.self_ensemble) * (1 + options.in_plane_refit)
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
