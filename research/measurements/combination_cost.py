# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of combining three stacks of a whole head, without the networks.

``python -m research.measurements.combination_cost OUT --head FILE`` makes three moved stacks (1.5
voxels in plane, Gaussian slices of 5 voxels), interpolates each to the voxels of the head, since
what combining costs does not depend on the values, and combines them in two fresh processes.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_moediff.combination.scans import combine
from bids_moediff.combination.view import Scan
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.grid import voxel_sizes

from .combination import NOISE, THREE, Head, acquire, cubic, true_move


def acquisition_of(kind: str) -> Acquisition:
    """How a stack is acquired whose slices lie across one axis."""
    axes = [Axis("kspace")] * 3
    axes[int(kind[2])] = Axis("gaussian", 1.0)
    return Acquisition((axes[0], axes[1], axes[2]))


def make(head: Head, folder: Path) -> None:
    """Write the stacks and their interpolations."""
    for kind, index in THREE:
        data = np.asarray(head.truth.dataobj)
        if index:
            moved = true_move(head, index)
            to_still = np.linalg.inv(head.truth.affine) @ moved @ head.truth.affine
            data = ndimage.affine_transform(data, to_still[:3, :3], to_still[:3, 3], order=3)
        image, acquisition, _ = acquire(head.cut(data), kind, NOISE, index)
        shape, affine = head.truth.shape, head.truth.affine
        fine = nib.Nifti1Image(np.zeros(shape, dtype=np.float32), affine)
        single = cubic(Scan(kind, image, acquisition, fine))
        nib.save(image, folder / f"{kind}.nii")
        nib.save(single, folder / f"{kind}_single.nii")
        error = np.full(shape, 0.05 * float(np.percentile(data, 99.5)), dtype=np.float32)
        nib.save(nib.Nifti1Image(error, affine), folder / f"{kind}_error.nii")


def gigabytes() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(folder: Path, count: int) -> None:
    """Combine `count` stacks and print stages, seconds, memory and the checksum of the result."""
    opened = nib.Nifti1Image.from_filename
    scans = [
        Scan(
            kind, opened(folder / f"{kind}.nii"), acquisition_of(kind),
            opened(folder / f"{kind}_single.nii"), opened(folder / f"{kind}_error.nii"),
        )
        for kind, _ in THREE[:count]
    ]  # fmt: skip
    zooms = voxel_sizes(scans[0].single.affine)
    before, started, used = gigabytes(), time.monotonic(), time.process_time()

    def progress(stage: str, share: float) -> None:
        seconds, cpu = time.monotonic() - started, time.process_time() - used
        print(f"{stage} {share:.2f}: {seconds:.1f} s, {cpu:.1f} s of processor, {gigabytes():.2f}")

    result = combine(scans, zooms, progress=progress)
    seconds, cpu = time.monotonic() - started, time.process_time() - used
    data = np.asarray(result.image.dataobj)
    print(
        f"{data.size / 1e6:.2f} million voxels, {result.steps} steps, {torch.get_num_threads()} "
        f"threads: {seconds:.1f} s, {cpu:.1f} s of processor; peak {gigabytes():.2f} GiB "
        f"({before:.2f} before); {hashlib.sha256(data.tobytes()).hexdigest()[:16]}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the stacks once, then combine them twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the stacks")
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=len(THREE), help="combine the first of them")
    parser.add_argument("--measure", action="store_true", help="only combine, in this process")
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.out, options.scans)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / f"{THREE[-1][0]}_error.nii").exists():
        make(Head(options.head, None), options.out)
    again = [sys.executable, "-m", __spec__.name, str(options.out), "--measure"]
    for _ in range(2):
        subprocess.run(
            [*again, "--head", str(options.head), "--scans", str(options.scans)], check=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
