# SPDX-License-Identifier: Apache-2.0
"""Seconds, peak memory and fraction of the machine's convolution throughput, by stage and size.

Everything is measured in one run on one machine, so that ratios mean something. Works on an
artificial head: speed does not depend on the anatomy.
"""

import resource
import time
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bids_moediff.engine.enhance import SuperResolver


def artificial_head(shape: tuple[int, int, int], seed: int = 0) -> nib.Nifti1Image:
    """Ellipsoid of smooth texture with 1 mm voxels, air around it."""
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij", sparse=True)
    radius = sum(axis**2 for axis in grid)
    noise = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    data = np.where(radius < 0.8, 600 + 60 * noise, 10 * np.abs(noise)).astype(np.float32)
    return nib.Nifti1Image(data, np.eye(4))


def convolution_throughput(device: torch.device, precision: str, seconds: float = 3.0) -> float:
    """Sustained multiply-accumulates a second of 3x3x3 convolutions with 48 channels."""
    layer = torch.nn.Conv3d(48, 48, 3, padding=1).to(device)
    layer = layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    block = torch.randn(1, 48, 48, 48, 48, device=device)
    block = block.to(memory_format=torch.channels_last_3d)
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    layer, block = layer.to(kind), block.to(kind)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        layer(block)
        wait()
        runs, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            layer(block)
            wait()
            runs += 1
        spent = time.perf_counter() - begun
    return runs * 48**3 * 48 * 48 * 27 / spent


def peak_memory_gigabytes(device: torch.device) -> float:
    """Largest memory so far: of the process on a CPU, of torch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count_macs(resolver: SuperResolver, image: nib.Nifti1Image, zooms: Sequence[float]) -> float:
    """Multiply-accumulates of the networks for one image, counted on it."""
    counter = FlopCounterMode(display=False)
    with counter:
        resolver.enhance(image, zooms)
    return counter.get_total_flops() / 2


def measure(
    resolver: SuperResolver, shape: tuple[int, int, int], zooms: Sequence[float], **options: Any
) -> dict[str, Any]:
    """One row: voxels out, seconds of each stage, peak memory."""
    marks: dict[str, float] = {}

    def note(stage: str, fraction: float) -> None:
        marks[stage] = time.perf_counter()

    begun = time.perf_counter()
    result = resolver.enhance(artificial_head(shape), zooms, progress=note, **options)
    seconds: dict[str, float] = {}
    before = begun
    for stage, moment in marks.items():
        seconds[stage] = round(moment - before, 2)
        before = moment
    return {
        "shape_in": "x".join(map(str, shape)),
        "voxels_out": int(np.prod(result.image.shape)),
        "seconds": round(time.perf_counter() - begun, 2),
        **{f"seconds_{stage}": value for stage, value in seconds.items()},
        "peak_gb": round(peak_memory_gigabytes(resolver.device), 2),
    }


def main() -> None:
    """Print a table for the shipped model: `python -m bids_moediff.evaluation.speed`."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="moediff")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--whole", action="store_true", help="also 192x240x240, 1 to 0.7 mm")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    resolver = SuperResolver.from_pretrained(
        arguments.model, arguments.device, arguments.precision
    )
    peak = convolution_throughput(resolver.device, resolver.precision)
    print(f"device {resolver.device}, precision {resolver.precision}, {arguments.threads} threads")
    print(f"convolution throughput {peak / 1e9:.0f} GMAC/s")
    small = artificial_head((64, 64, 64))
    macs = count_macs(resolver, small, (0.7,) * 3)
    shapes: list[tuple[int, int, int]] = [(size, size, size) for size in arguments.sizes]
    if arguments.whole:
        shapes.append((192, 240, 240))
    reference = None
    for shape in shapes:
        row = measure(resolver, shape, (0.7,) * 3)
        reference = reference or (measure(resolver, (64,) * 3, (0.7,) * 3)["voxels_out"])
        work = macs * row["voxels_out"] / reference
        row["fraction_of_peak"] = round(work / row["seconds"] / peak, 3)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
