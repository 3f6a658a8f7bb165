# SPDX-License-Identifier: Apache-2.0
"""What further steps would add to combining: known moves, a second network pass, moved slices.

``python -m research.measurements.combination_trials OUT --head FILE --crop 60 72 72`` prints the
PSNR (dB) in the head mask of three stacks as ``combination.py`` makes them. A development head.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from bids_moediff.combination import scans as method
from bids_moediff.combination.alignment import Alignment
from bids_moediff.combination.estimate import joint_estimate
from bids_moediff.combination.frame import Grid
from bids_moediff.combination.view import Setting, View, grid_of, mean_of, range_of
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.inference.pose import Inputs
from bids_moediff.options import Options

from .combination import NOISE, THREE, Head, Made, Maker

LARGEST_SHIFT = 2.0  # mm, of a slice in its plane
MOVED_SHARE = 0.5  # of the slices of the last stack


def score(head: Head, made: Sequence[Made], *, known: bool) -> float:
    """PSNR of the combined stacks, with found or with true moves."""
    scans = [item.scan for item in made]
    if not known:
        return head.score(method.combine(scans, head.zooms).image)
    true = Alignment([item.move for item in made], [1.0] * len(made), list(range(len(made))))
    with mock.patch.object(method, "align", return_value=true):
        return head.score(method.combine(scans, head.zooms).image)


def again(head: Head, made: Sequence[Made], maker: Maker) -> dict[str, float]:
    """The network once more, on the combined image as one isotropic scan of 1.5 voxels."""
    scans, moves = [item.scan for item in made], [item.move for item in made]
    frame: Grid = grid_of(head.cut(np.asarray(head.truth.dataobj)))
    setting = Setting(frame, range_of(scans[0]))
    views: list[View] = []
    for scan, move in zip(scans, moves, strict=True):
        views.append(setting.view(scan, move, views[0] if views else None))
    observations = [view.observation for view in views]
    start, variance = mean_of(views)
    spread = (method.SPREAD * variance.sqrt()).clamp_max(method.WIDEST)
    first = joint_estimate(start, spread, observations).volume
    image = nib.Nifti1Image((first * setting.scale).numpy(), frame.affine)
    coarse, affine = output_grid(frame.shape, frame.affine, [1.5 * z for z in head.zooms])
    acquisition = Acquisition.uniform("kspace")
    operator = Operator.between(frame.shape, head.zooms, coarse, voxel_sizes(affine), acquisition)
    data = operator.forward(first * setting.scale).numpy()
    result = maker.resolver.enhance(
        nib.Nifti1Image(data, affine),
        Options(output_resolution=head.zooms),
        Inputs(acquisition=acquisition),
    )
    passed = torch.from_numpy(np.asarray(result.image.dataobj) / np.float32(setting.scale))
    second = joint_estimate(passed, spread, observations).volume
    rows = {"joint": first, "network on it": passed, "joint around that": second}
    found = {
        name: head.score(nib.Nifti1Image((volume * setting.scale).numpy(), image.affine))
        for name, volume in rows.items()
    }
    both = joint_estimate((start + passed) / 2, spread, observations).volume
    found["joint around the mean of both"] = head.score(
        nib.Nifti1Image((both * setting.scale).numpy(), image.affine)
    )
    return found


def with_moved_slices(made: Made, maker: Maker, head: Head) -> Made:
    """The scan with half of its slices shifted in their planes, restored again."""
    random = np.random.default_rng(0)
    axis = made.scan.axis or 0
    data = np.moveaxis(np.array(made.scan.image.dataobj, dtype=np.float32), axis, 0)
    sizes = np.delete(voxel_sizes(made.scan.image.affine), axis)
    for index in np.flatnonzero(random.random(len(data)) < MOVED_SHARE):
        shift = random.uniform(-1, 1, 2) * LARGEST_SHIFT / sizes
        data[index] = ndimage.shift(data[index], shift, order=5, mode="nearest")
    return _restored(made, np.moveaxis(data, 0, axis), maker, head)


def with_slices_put_back(made: Sequence[Made], maker: Maker, head: Head) -> Made:
    """The last scan with each slice shifted to where the others let expect it."""
    last = made[-1]
    setting = Setting(grid_of(made[0].scan.single), range_of(made[0].scan))
    views: list[View] = []
    for item in made:
        views.append(setting.view(item.scan, item.move, views[0] if views else None))
    axis = last.scan.axis or 0
    expected = np.moveaxis(views[-1].observation.forward(mean_of(views[:-1])[0]).numpy(), axis, 0)
    data = np.moveaxis(np.array(last.scan.image.dataobj, dtype=np.float32), axis, 0)
    for index in range(len(data)):
        if expected[index].max() > 0.1:
            shift = phase_cross_correlation(
                expected[index], data[index], upsample_factor=20, normalization=None
            )[0]
            if np.abs(shift).max() < 3:
                data[index] = ndimage.shift(data[index], shift, order=5, mode="nearest")
    return _restored(last, np.moveaxis(data, 0, axis), maker, head)


def _restored(made: Made, data: np.ndarray, maker: Maker, head: Head) -> Made:
    scan = made.scan
    image = nib.Nifti1Image(np.ascontiguousarray(data), scan.image.affine)
    options = Options(output_resolution=head.zooms, outputs=("uncertainty",))
    result = maker.resolver.enhance(image, options, Inputs(acquisition=scan.acquisition))
    new = replace(scan, image=image, single=result.image, error=result.standard_deviation)
    return replace(made, scan=new)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for restored images")
    parser.add_argument("--head", type=Path, required=True)
    parser.add_argument("--crop", type=int, nargs=3)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    head, maker = Head(options.head, tuple(options.crop)), Maker(options.out, "student")
    made = [maker.scan(head, kind, index, NOISE) for kind, index in THREE]
    for known in (False, True):
        print("true moves" if known else "found moves", f"{score(head, made, known=known):.3f}")
    for name, value in again(head, made, maker).items():
        print(name, f"{value:.3f}")
    print("two stacks", f"{score(head, made[:2], known=False):.3f}")
    torn = [*made[:2], with_moved_slices(made[2], maker, head)]
    print("slices moved", f"{score(head, torn, known=False):.3f}")
    mended = [*torn[:2], with_slices_put_back(torn, maker, head)]
    print("slices put back", f"{score(head, mended, known=False):.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
