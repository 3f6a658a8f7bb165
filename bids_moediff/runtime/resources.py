# SPDX-License-Identifier: Apache-2.0
"""Find the resources that this process may use: processors, memory and compute devices.

A batch job rarely owns the whole machine. The number of processors is the smallest of the affinity
mask, the control-group quota and SLURM's allocation. The memory is the smallest of the physical
memory, the control-group limit and SLURM's allocation. All functions are pure: folders and
environment can be passed in.
"""

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bids_moediff.runtime.platform import (
    CPU_INFORMATION,
    allowed_processors,
    cgroup_folders,
    memory_limit,
    physical_memory,
    processor_information,
    processor_quota,
)

GIGABYTE = 1e9
# In GB. A bare number is multiplied by exactly 1, so that what is printed reads back the same.
_UNITS = {"": 1.0, "B": 1e-9}
for _power, _letter in enumerate("KMGT", 1):
    _decimal, _binary = 1000**_power / 1e9, 1024**_power / 1e9
    _UNITS |= {_letter: _decimal, f"{_letter}B": _decimal, f"{_letter}IB": _binary}
# What the kernel calls instructions that multiply bfloat16 (AVX-512 BF16, AMX).
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Limits:
    """Resources that a run may use at once.

    Parameters
    ----------
    nprocs
        Processors over all processes.
    omp_nthreads
        Threads of one process, at most ``nprocs``.
    memory_gb
        Memory in GB (10^9 bytes).
    """

    nprocs: int
    omp_nthreads: int
    memory_gb: float


def parse_memory(text: str | float) -> float:
    """Return memory in GB from ``8``, ``"8GB"``, ``"8000MB"`` or ``"8GiB"`` (no unit is GB).

    Raises
    ------
    ValueError
        If it is not a positive amount in a known unit.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS or not float(match.group(1)) > 0:
        raise ValueError(f"{text!r} is not an amount of memory; write 8, 8GB or 8000MB")
    return float(match.group(1)) * _UNITS[unit]


def available_cpus(
    environment: Mapping[str, str] | None = None,
    folders: list[Path] | None = None,
    affinity: int | None = None,
) -> int:
    """Return the usable processors: the smallest of affinity, control-group quota and SLURM."""
    environment = os.environ if environment is None else environment
    counts = [float(affinity if affinity is not None else allowed_processors())]
    folders = cgroup_folders("cpu") if folders is None else folders
    # A quota of 2.5 processors feeds two threads well and three badly.
    counts += [
        float(max(1, math.floor(q))) for q in map(processor_quota, folders) if q is not None
    ]
    slurm = environment.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm) > 0:
        counts.append(float(slurm))
    return max(1, int(min(counts)))


def available_memory_gb(
    environment: Mapping[str, str] | None = None,
    folders: list[Path] | None = None,
    physical_bytes: float | None = None,
) -> float:
    """Return the usable memory in GB: the smallest of physical, control group and SLURM."""
    environment = os.environ if environment is None else environment
    if physical_bytes is None:
        physical_bytes = physical_memory()
    amounts = [float(physical_bytes)]
    folders = cgroup_folders("memory") if folders is None else folders
    amounts += [limit for limit in map(memory_limit, folders) if limit is not None]
    amounts += _slurm_memory(environment)
    return min(amounts) / GIGABYTE


def _slurm_memory(environment: Mapping[str, str]) -> list[float]:
    """Return SLURM's allocation in bytes; SLURM counts in MiB and writes 0 for the whole node."""
    mebibyte = 1024.0**2
    per_node = environment.get("SLURM_MEM_PER_NODE", "")
    if per_node.isdigit() and int(per_node) > 0:
        return [int(per_node) * mebibyte]
    per_cpu = environment.get("SLURM_MEM_PER_CPU", "")
    cpus = environment.get("SLURM_CPUS_PER_TASK", "1")
    if per_cpu.isdigit() and int(per_cpu) > 0 and cpus.isdigit():
        return [int(per_cpu) * mebibyte * max(1, int(cpus))]
    per_gpu = environment.get("SLURM_MEM_PER_GPU", "")
    gpus = environment.get("SLURM_GPUS_ON_NODE", "1")
    if per_gpu.isdigit() and int(per_gpu) > 0 and gpus.isdigit():
        return [int(per_gpu) * mebibyte * max(1, int(gpus))]
    return []


def plan(
    nprocs: int | None = None, omp_nthreads: int | None = None, memory_gb: float | None = None
) -> Limits:
    """Fill in unset limits from the available resources."""
    processors = nprocs or available_cpus()
    threads = omp_nthreads or min(processors, 8)  # more than 8 threads rarely pay for one image
    return Limits(processors, min(threads, processors), memory_gb or available_memory_gb())


@functools.cache
def has_bfloat16(information: Path = CPU_INFORMATION) -> bool:
    """Return True if the processor multiplies bfloat16; False if unknown (macOS)."""
    return any(
        _BFLOAT16_FLAGS.intersection(line.split())
        for line in processor_information(information)
        if line.startswith("flags")
    )


def visible_devices(
    device: str, environment: Mapping[str, str] | None = None, count: int | None = None
) -> list[str]:
    """Return names of torch devices, one network each; ``["cpu"]`` if no GPU is used.

    ``CUDA_VISIBLE_DEVICES`` is read, never written: torch numbers its entries (indices, GPU or MIG
    UUIDs) from 0. CUDA stops at the first entry it cannot use (``-1``), and so does this function.

    Parameters
    ----------
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as on the command line.
    environment
        Environment variables; those of the process by default.
    count
        Number of GPUs that torch sees, if the caller has asked torch; caps the list.
    """
    environment = os.environ if environment is None else environment
    if device == "cpu":
        return ["cpu"]
    if ":" in device:
        return [device]
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    number = count
    if listed is not None:
        entries = []
        for entry in (word.strip() for word in listed.split(",")):
            if not entry or entry == "-1" or entry in entries:
                break
            entries.append(entry)
        number = len(entries) if count is None else min(count, len(entries))
    if number is None:
        number = 1 if device == "cuda" else 0
    names = [f"cuda:{index}" for index in range(number)]
    return names or (["cpu"] if device == "auto" else [])


def memory_warning(needed_gb: float, name: str, available_gb: float) -> str:
    """Return a sentence if the memory is too small for an image, else an empty text.

    Parameters
    ----------
    needed_gb
        Need of the largest image, GB.
    name
        That image.
    available_gb
        Memory that the run may use, GB.
    """
    if needed_gb <= available_gb:
        return ""
    return (
        f"this run may use {available_gb:.1f} GB, but {name} needs about {needed_gb:.1f} GB and "
        f"will probably be killed; give it more memory (in SLURM --mem={math.ceil(needed_gb)}G)."
    )
