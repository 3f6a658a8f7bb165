# SPDX-License-Identifier: Apache-2.0
"""Ask what limits the gain by a reference on a real pair.

    python -m research.references.diagnose SHARED_DATA MODEL [--subject sub-01] [--side N]

For each pair, coarsened along the axes in plane: PSNR of the base; the gain; the gain where the
noise of the truth that nobody can predict (the share of k-space that was cut off) is taken off
both errors; the best gain over small shifts of the reference; and what the reference could give
at most: the lost detail of the reference, times the slope that fits the true error best, in
windows of 9 voxels.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_moediff.evaluation.benchmark import Task
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.reference import align_reference, resample_reference
from bids_moediff.inference.super_resolver import SuperResolver

from .measure import RATIO, Pair, Remembered, restore, sessions

WINDOW = 9  # voxels
SHIFTS = (0.25, 0.5, 1.0)  # mm


def pairs(folder: Path, side: int) -> Iterator[Pair]:
    """Return every image but the T1w, coarse along the axes in plane, with the T1w."""
    for session in sessions(folder, side):
        right = align_reference(session.scan, session.reference)
        print(f"# {session.name}: voxels {session.zooms}, overlap {right.overlap:.3f}", flush=True)
        for axis in np.argsort(session.zooms, kind="stable")[:2]:
            name = f"{session.name} axis {axis}"
            yield Pair(name, session.task(int(axis)), right.image, right.image)


def moved(image: nib.Nifti1Image, shift: np.ndarray) -> nib.Nifti1Image:
    """Return an image elsewhere in the world (mm)."""
    affine = image.affine.copy()
    affine[:3, 3] += shift
    return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), affine)


def most(task: Task, base: np.ndarray, reference: nib.Nifti1Image) -> np.ndarray:
    """Return the base, corrected by the reference's lost detail with the best slopes."""
    shape = task.truth.shape
    fine = torch.from_numpy(resample_reference(reference, shape, task.affine)).float()
    detail = task.operator.project(fine, torch.zeros_like(task.measured)).numpy()
    wrong = task.truth - base
    size = [WINDOW if n > 2 * WINDOW else 3 for n in base.shape]
    product = ndimage.uniform_filter(wrong * detail, size)
    square = ndimage.uniform_filter(detail * detail, size)
    slope = product / (square + 1e-6 * square.max())
    return base + slope * detail


def error(image: np.ndarray, task: Task) -> float:
    """Return the mean squared error in the mask."""
    return float(((image - task.truth)[task.mask] ** 2).mean())


def main() -> None:
    """Print a row for each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("model")
    parser.add_argument("--subject", default="sub-01")
    parser.add_argument("--side", type=int, default=112)
    options = parser.parse_args()
    resolver = SuperResolver.from_pretrained(options.model, "cpu")
    resolver.restorer.base = Remembered(resolver.restorer.base)  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for pair in pairs(options.shared / "bids_mini" / options.subject, options.side):
        task = pair.task
        base = restore(resolver, task)
        right = error(restore(resolver, task, pair.reference), task)
        own = error(base, task)
        noise = (tissue_noise(task.truth, task.mask) or 0.0) ** 2
        lost = noise * (1 - 1 / RATIO)

        def gain(value: float, floor: float = 0.0, own: float = own) -> float:
            return 10 * np.log10((own - floor) / (value - floor))

        shifts = [size * sign * np.eye(3)[axis] for size in SHIFTS for axis in range(3)
                  for sign in (-1, 1)]  # fmt: skip
        tried = [
            gain(error(restore(resolver, task, moved(pair.reference, one)), task))
            for one in shifts
        ]
        best = int(np.argmax(tried))
        noisy = resample_reference(pair.reference, task.truth.shape, task.affine)
        strange = nib.Nifti1Image(
            ndimage.gaussian_filter(rng.normal(size=noisy.shape), 1.0).astype(np.float32) + 1,
            task.affine,
        )
        fits = [gain(error(most(task, base, one), task)) for one in (pair.reference, strange)]
        print(
            f"{pair.name}\tnoise {lost / own:.2f} of the error\tgain {gain(right):+.3f}\t"
            f"noise taken off {gain(right, lost):+.3f}\tbest shift {shifts[best]} mm "
            f"{tried[best]:+.3f}\tbest slopes {fits[0]:+.2f}, of noise {fits[1]:+.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
