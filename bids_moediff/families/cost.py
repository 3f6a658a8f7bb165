# SPDX-License-Identifier: Apache-2.0
"""How much memory and time an image will take, before anything heavy is imported."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Peak memory of the network's process in GB, its seconds, and the output matrix."""

    gigabytes: float
    seconds: float
    shape: tuple[int, int, int]

    @property
    def job_gigabytes(self) -> float:
        """Peak memory of the whole job, which a batch system counts."""
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
    """Return the cost of one image of `shape_in` voxels of `zooms_in` mm.

    `model` is a name or a folder; its config.json says how much arithmetic a voxel takes.
    `threads` work on the image, on a processor that multiplies bfloat16 or not (looked up by
    default).
    """
    counts = [
        max(1, math.ceil(n * old / new - 1e-3))
        for n, old, new in zip(shape_in, zooms_in, options.output_zooms(zooms_in), strict=True)
    ]
    voxels = math.prod(counts)
    evaluations = (options.num_steps or 1) * options.num_samples * options.planes
    seconds = voxels * seconds_per_voxel(
        read_config(model), evaluations, device=device, threads=threads, bfloat16=bfloat16
    )
    return Estimate(
        round(_BASE_GIGABYTES + voxels * _BYTES_PER_VOXEL / 1e9, 2),
        round(_BASE_SECONDS + seconds, 1),
        (counts[0], counts[1], counts[2]),
    )


# Multiply-accumulates per output voxel and step of the default experts, counted by torch.
_EXPERT_MACS = 34_000.0
# A network nobody has a count for is taken to cost as much as the first shipped mean.
_UNKNOWN_MACS = 101_000.0
# Billion multiply-accumulates a second of each network (docs/speed.md): of one thread of a
# processor with and without bfloat16, and of a data-centre GPU (never measured).
_RATES = {
    "bf16": {"mean": 220.0, "experts": 63.0, "student": 185.0},
    "fp32": {"mean": 60.0, "experts": 18.0, "student": 38.0},
    "cuda": {"mean": 20_000.0, "experts": 20_000.0, "student": 20_000.0},
}


def stage_macs(config: Mapping[str, Any], steps: int = 1) -> dict[str, float]:
    """Multiply-accumulates for one output voxel of each network: student, or mean and experts.

    `steps` counts evaluations of the experts: sampling steps times samples. Empty where the
    configuration is none of these.
    """
    stages = {}
    try:
        if config.get("family") == "student":
            section = config["student"]
            shape = section["channels"], section["blocks"], section["ranks"]
            stages["student"] = _student_macs(*shape)
        if mean := config.get("mean"):
            stages["mean"] = _mean_macs(mean["channels"], mean["blocks"])
        if experts := config.get("moediff"):
            stages["experts"] = _EXPERT_MACS * (experts.get("width", 32) / 32) ** 2 * steps
    except (KeyError, TypeError, ValueError):
        return {}
    return stages


def seconds_per_voxel(
    config: Mapping[str, Any],
    steps: int = 1,
    *,
    device: str = "cpu",
    threads: int = 1,
    bfloat16: bool | None = None,
) -> float:
    """Time of all networks for one output voxel; `steps` as above, `bfloat16` as in `choose`."""
    gpu = device.startswith("cuda")
    fast = not gpu and (has_bfloat16() if bfloat16 is None else bfloat16)
    rates = _RATES["cuda" if gpu else "bf16" if fast else "fp32"]
    stages = stage_macs(config, steps) or {"experts": _UNKNOWN_MACS}
    seconds = sum(macs / (1e9 * rates[name]) for name, macs in stages.items())
    return seconds if gpu else seconds / max(1, threads)


def _mean_macs(channels: int, blocks: int) -> float:
    """Convolutions of :class:`~bids_moediff.networks.mean.MeanNetwork`, folded by two."""
    return 27 * (2 * blocks * channels**2 + 16 * channels) / 8


def _student_macs(channels: int, blocks: int, ranks: list[int]) -> float:
    """Convolutions of :class:`~bids_moediff.families.student.network.StudentNetwork`."""
    cores = 27 * (ranks[0] * ranks[1] + ranks[2] * ranks[3])
    return (27 * 16 * channels + blocks * (cores + channels * sum(ranks))) / 8
