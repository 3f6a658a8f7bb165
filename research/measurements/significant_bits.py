# SPDX-License-Identifier: Apache-2.0
"""How many bits of the output depend on threads, instruction sets, precision and block sizes.

``python -m research.measurements.significant_bits OUT.tsv`` restores the demo head at 3 mm to
2.5 mm in one process for each way of computing, and compares with one thread, float32 and all
instruction sets. Significant bits are -log2(|difference| / |value|), 24 at most (float32).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.runtime.sink import table_text, write_text

DEMO = Path(__file__).parents[2] / "bids_moediff/data/demo/sub-01/anat/sub-01_T1w.nii.gz"
MOST = 24.0
# Name, variables of the environment, arguments of one way.
WAYS: tuple[tuple[str, Mapping[str, str], tuple[str, ...]], ...] = (
    ("one thread, float32", {}, ()),
    ("the same again", {}, ()),
    ("2 threads", {"OMP_NUM_THREADS": "2"}, ()),
    ("4 threads", {"OMP_NUM_THREADS": "4"}, ()),
    ("oneDNN: AVX512_CORE", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, ()),
    ("oneDNN: AVX2", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, ()),
    ("oneDNN: SSE41", {"ONEDNN_MAX_CPU_ISA": "SSE41"}, ()),
    ("torch: AVX2", {"ATEN_CPU_CAPABILITY": "avx2"}, ()),
    ("torch: no vectors", {"ATEN_CPU_CAPABILITY": "default"}, ()),
    (
        "torch, oneDNN, MKL and OpenBLAS: AVX2",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
        },
        (),
    ),
    ("tiles: a quarter", {}, ("--tiles", "175")),
    ("tiles: four times", {}, ("--tiles", "2800")),
    ("planes at a time: a quarter", {}, ("--voxels", "125000")),
    ("planes at a time: four times", {}, ("--voxels", "2000000")),
    ("slices at a time: 1", {}, ("--batch", "1")),
    ("slices at a time: 16", {}, ("--batch", "16")),
    ("bfloat16", {}, ("--precision", "bf16")),
    ("8-bit integers", {}, ("--precision", "int8")),
)


def coarse_head() -> nib.Nifti1Image:
    """Return the demo head averaged to about 3 mm."""
    from bids_moediff.preprocessing.conform import conform

    image, _ = conform(DEMO)
    steps = (3, 3, 1)
    counts = [size // step for size, step in zip(image.shape, steps, strict=True)]
    data = np.asarray(image.dataobj)[
        tuple(slice(n * k) for n, k in zip(counts, steps, strict=True))
    ]
    split = [part for n, k in zip(counts, steps, strict=True) for part in (n, k)]
    affine = image.affine @ np.diag([*steps, 1.0])
    affine[:3, 3] = image.affine[:3] @ [*((np.array(steps) - 1) / 2), 1]
    return nib.Nifti1Image(data.reshape(split).mean((1, 3, 5)).astype(np.float32), affine)


def restore_once(options: argparse.Namespace) -> None:
    """Restore the head in this process in one way, and save the voxels and the stored step."""
    import torch

    from bids_moediff.families import whole_volume
    from bids_moediff.families.moediff import slices
    from bids_moediff.imaging.storage import storage_step
    from bids_moediff.inference.simple import restore
    from bids_moediff.inference.worker import Scan
    from bids_moediff.networks import winograd
    from bids_moediff.options import Options

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    winograd.TILES = options.tiles or winograd.TILES
    whole_volume.CPU_VOXELS = options.voxels or whole_volume.CPU_VOXELS
    slices.CPU_BATCH = options.batch or slices.CPU_BATCH
    words = Options.from_dict(
        {
            "model": options.model,
            "precision": options.precision,
            "output_resolution": "2.5",
            "planes": options.planes,
        },
        "significant_bits",
    )
    result = restore(Scan(coarse_head(), None), words, device="cpu")
    data = np.asarray(result.image.dataobj, dtype=np.float32)
    step = storage_step(result.record["EstimatedNoise"], float(np.abs(data).max()))
    np.savez(options.output, data=data, step=step or 0.0)


def compared(reference: np.ndarray, other: np.ndarray, step: float) -> dict[str, Any]:
    """Return the significant bits of an output, and what is left of the difference on disk.

    Parameters
    ----------
    reference, other
        Outputs of one shape.
    step
        Step in which the output is stored.
    """
    head = reference > 0.1 * np.percentile(reference, 99)
    first, second = (data[head].astype(np.float64) for data in (reference, other))
    away = np.abs(first - second)
    with np.errstate(divide="ignore"):
        bits = np.minimum(MOST, -np.log2(away / first))
        whole = -np.log2(np.sqrt(np.mean(away**2) / np.mean(first**2)))
    stored = np.rint(reference / step) != np.rint(other / step)
    return {
        "bits_rms": round(float(min(MOST, whole)), 1),
        "bits_worst_percent": round(float(np.percentile(bits, 1)), 1),
        "largest_difference_in_steps": float(f"{away.max() / step:.2g}"),
        "stored_voxels_that_differ_percent": float(f"{100 * stored[head].mean():.2g}"),
    }


def main() -> None:
    """Measure each way and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="student")
    parser.add_argument("--planes", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--tiles", type=int)
    parser.add_argument("--voxels", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="ways whose name has a word")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        restore_once(options)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files: list[Any] = []
        for name, variables, words in WAYS:
            if files and options.only and not any(word in name for word in options.only):
                continue
            path = Path(folder) / f"{len(files)}.npz"
            command = [sys.executable, "-m", "research.measurements.significant_bits", str(path)]
            command += ["--one", "--model", options.model, "--planes", str(options.planes)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
            done = subprocess.run([*command, *words], env=environment, check=False)
            if done.returncode:
                print(f"{name}: failed", file=sys.stderr)
                continue
            files.append(np.load(path))
            first, last = files[0], files[-1]
            row = compared(first["data"], last["data"], float(first["step"]))
            rows.append({"way": name, **row})
            print(rows[-1], flush=True)
    write_text(table_text(rows, [*rows[0]]), options.output)


if __name__ == "__main__":
    main()
