# SPDX-License-Identifier: Apache-2.0
"""Seconds, peak memory and share of the machine's arithmetic, by stage and size, for each model.

``python -m research.measurements.speed`` measures an artificial head (speed does not depend on
the anatomy, but the air around it counts). Every row is a process of its own, so that its peak
memory is its own; each measures the throughput of plain convolutions just before, so that ratios
mean something on a machine that others use, too.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_moediff.families.choice import takes_reference
from bids_moediff.families.cost import stage_macs
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.model_folder import available, read_config
from bids_moediff.networks.precision import PRECISIONS as KINDS
from bids_moediff.networks.precision import floating
from bids_moediff.options import PRECISIONS, Options
from bids_moediff.runtime.platform import (
    allowed_processors,
    keep_freed_memory,
    peak_memory_gb,
)

Shape = tuple[int, int, int]
WHOLE_HEAD: Shape = (192, 240, 240)
ZOOM = 0.7
CHANNELS = 64  # of the convolution that stands for what the machine can do


@dataclass(frozen=True)
class Row:
    """One measurement.

    Parameters
    ----------
    model
        Name or folder.
    shape
        Voxels of 1 mm that went in.
    voxels
        Voxels of 0.7 mm that came out.
    seconds
        Of each stage: interpolate, then student or mean and experts, then consistency.
    cpu_seconds
        Processor time of all stages, over all threads.
    gigabytes
        Peak memory: of the process on a CPU, of torch's allocator on a GPU.
    fractions
        Of each network stage: its multiply-accumulates over those of plain convolutions in the
        same time.
    """

    model: str
    shape: Shape
    voxels: int
    seconds: Mapping[str, float]
    cpu_seconds: float
    gigabytes: float
    fractions: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def artificial_head(shape: Shape, seed: int = 0) -> nib.Nifti1Image:
    """Ellipsoid of smooth texture with 1 mm voxels, air around it."""
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij", sparse=True)
    radius = sum(axis**2 for axis in grid)
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    data = np.where(radius < 0.8, 600 + 60 * noise, 10 * np.abs(noise)).astype(np.float32)
    return nib.Nifti1Image(data, np.eye(4))


def _reference(head: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return another contrast of the same head; its registration is not part of the network."""
    data = np.asarray(head.dataobj)
    return nib.Nifti1Image(np.where(data > 40, 700 - data, data).clip(1), head.affine)


def convolution_throughput(device: torch.device, precision: str, seconds: float = 1.5) -> float:
    """Sustained multiply-accumulates a second of 3x3x3 convolutions with 64 channels."""
    kind = KINDS[floating(precision)]
    size = 48 if device.type == "cpu" else 128
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, 3, device=device, dtype=kind)
    block = torch.randn(1, CHANNELS, *(size,) * 3, device=device, dtype=kind)
    weight, block = (t.to(memory_format=torch.channels_last_3d) for t in (weight, block))

    def run() -> None:
        torch.nn.functional.conv3d(block, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        run()
        runs, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            run()
            runs += 1
        spent = time.perf_counter() - begun
    return runs * size**3 * CHANNELS**2 * 27 / spent


def peak_memory_gigabytes(device: torch.device) -> float:
    """Largest memory so far: of the process on a CPU, of torch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory_gb() * 1024**3 / 1e9


def measure(
    model: str, shape: Shape, device: str = "auto", precision: str = "auto", threads: int = 1
) -> Row:
    """Super-resolve an artificial head of `shape` from 1 mm to 0.7 mm; call it in a new process.

    WeightsError and DeviceError as :meth:`SuperResolver.from_pretrained`.
    """
    keep_freed_memory()  # as the app does
    torch.set_num_threads(threads)
    resolver = SuperResolver.from_pretrained(model, device, precision)
    peak = convolution_throughput(resolver.device, resolver.precision)
    head = artificial_head(shape)
    inputs = Inputs(reference=_reference(head) if takes_reference(model) else None)
    marks: dict[str, float] = {}

    def note(stage: str, fraction: float) -> None:
        if resolver.device.type == "cuda":
            torch.cuda.synchronize()
        marks[stage] = time.perf_counter()

    used, begun = time.process_time(), time.perf_counter()
    asked = Options(output_resolution=(ZOOM,) * 3)
    result = resolver.enhance(head, asked, inputs, progress=note)
    marks["done"] = time.perf_counter()
    used = time.process_time() - used
    names = ["consistency" if stage == "done" else stage for stage in marks]
    moments = [begun, *marks.values()]
    seconds = dict(zip(names, np.diff(moments).tolist(), strict=True))
    voxels = int(np.prod(result.image.shape))
    work = stage_macs(read_config(model), Options())
    fractions = {
        stage: work[stage] * voxels / (peak * seconds[stage]) for stage in work if stage in seconds
    }
    memory = peak_memory_gigabytes(resolver.device)
    return Row(model, shape, voxels, seconds, used, memory, fractions)


def linear_fit(voxels: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """Offset, slope and R^2 of `values` against `voxels`."""
    slope, offset = np.polyfit(voxels, values, 1)
    rest = np.asarray(values) - offset - slope * np.asarray(voxels)
    spread = float(np.var(values))
    return float(offset), float(slope), 1.0 - float(np.var(rest)) / spread if spread else 1.0


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    heading = "model | voxels in | Mvoxels out | seconds by stage | total s | CPU s | peak GB"
    heading += " | share of convolution peak"
    lines = [f"| {heading} |", "|---" * 8 + "|"]
    for row in rows:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in row.seconds.items())
        shares = ", ".join(f"{name} {value:.0%}" for name, value in row.fractions.items())
        cells = [
            Path(row.model).name, "x".join(map(str, row.shape)), f"{row.voxels / 1e6:.2f}",
            stages, f"{row.total:.1f}", f"{row.cpu_seconds:.1f}", f"{row.gigabytes:.2f}", shares,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def growth(rows: Sequence[Row]) -> str:
    """How seconds and memory of one model grow with the voxels that come out, in a sentence."""
    millions = [row.voxels / 1e6 for row in rows]
    offset, slope, fit = linear_fit(millions, [row.total for row in rows])
    _, cpu_slope, cpu_fit = linear_fit(millions, [row.cpu_seconds for row in rows])
    base, bytes_per_voxel, _ = linear_fit(millions, [row.gigabytes * 1e3 for row in rows])
    return (
        f"{Path(rows[0].model).name}: {offset:.1f} s + {slope:.2f} s per million voxels "
        f"(R² {fit:.4f}); processor time {cpu_slope:.2f} s per million (R² {cpu_fit:.4f}); memory "
        f"{base / 1e3:.2f} GB + {bytes_per_voxel:.0f} bytes per voxel"
    )


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m research.measurements.speed", description="Measure speed and memory."
    )
    parser.add_argument("--models", nargs="+", default=None, help="default: all that are shipped")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--omp-nthreads", type=int, default=allowed_processors())
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[64, 96, 128, 160], help="side of a cube, mm"
    )
    parser.add_argument("--whole", action="store_true", help="also a whole head, 192x240x240 mm")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of every model and size, and how cost grows with size."""
    options = build_parser().parse_args(argv)
    shapes: list[Shape] = [(size, size, size) for size in options.sizes]
    shapes += [WHOLE_HEAD] if options.whole else []
    rows: dict[str, list[Row]] = {model: [] for model in options.models or available()}
    context = get_context("spawn")
    for model, measured in rows.items():
        for shape in shapes:
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                call = (model, shape, options.device, options.precision, options.omp_nthreads)
                measured.append(pool.submit(measure, *call).result())
            lines = table(measured)
            print("\n".join(lines if len(measured) == 1 else lines[-1:]), flush=True)
    for measured in rows.values():
        if len(measured) > 2:
            print(growth(measured))


if __name__ == "__main__":
    main()
