# SPDX-License-Identifier: Apache-2.0
"""What a reference contrast is worth, right and wrong, and what it does to lesions.

    python -m research.references.measure SHARED_DATA MODEL [--only WHAT] [--side N]

Real: the T2w image of bids_mini/sub-03, four times coarser along one axis in plane, with the T1w
image of the same session, registered to the coarse image. Rendered: label maps that train
nothing, T2w and FLAIR contrasts with a T1w reference. Wrong references are used although the app
would refuse most of them. Prints tab-separated rows: PSNR in dB in the head mask.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_moediff.evaluation.benchmark import BASELINES, Task, make_task
from bids_moediff.evaluation.hallucination import lesion_profile
from bids_moediff.families.protocol import Problem, Progress, Restored, Restorer, Settled
from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.metrics import bootstrap_interval, intensity_range, psnr
from bids_moediff.imaging.reference import align_reference, gradient_overlap
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options
from bids_moediff.training.bids_heads import label_heads

from .pack import UNSEEN
from .render import render

SHIFT = 5.0  # mm
RATIO = 4.0  # of the real pairs, in plane
RENDERED = (("T2w", (1.0, 1.0, 4.0), "gaussian"), ("FLAIR", (2.0, 2.0, 2.0), "kspace"))
LESION, CONTRAST = 5.0, 0.25  # mm, of the range
COMPARED = ("cubic", "back-projection")
EDGE = 8  # voxels at the border that are not judged


@dataclass(frozen=True)
class Pair:
    """A task, the right reference (in its world coordinates), and that of another subject."""

    name: str
    task: Task
    reference: nib.Nifti1Image
    stranger: nib.Nifti1Image


def shifted(image: nib.Nifti1Image, move: np.ndarray) -> nib.Nifti1Image:
    """An image elsewhere in the world (4x4 move, mm)."""
    return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), move @ image.affine)


def wrong(pair: Pair) -> dict[str, nib.Nifti1Image]:
    """References of no use."""
    image, rng = pair.reference, np.random.default_rng(0)
    data = np.asarray(image.dataobj, dtype=np.float32)
    noise = ndimage.gaussian_filter(rng.normal(size=data.shape), 1.0)
    noise = 0.5 + 0.15 * noise / noise.std()
    move = np.eye(4)
    move[:3, 3] = SHIFT / np.sqrt(3)
    return {
        "another subject's": pair.stranger,
        "shifted 5 mm": shifted(image, move),
        "noise": nib.Nifti1Image(noise.clip(0).astype(np.float32), image.affine),
        "mirrored": nib.Nifti1Image(data[::-1].copy(), image.affine),
    }


def block(data: np.ndarray, mask: np.ndarray, side: int) -> tuple[slice, ...]:
    """Box of at most `side` voxels around the centre of the mask."""
    parts = []
    for axis, size in enumerate(data.shape):
        others = tuple({0, 1, 2} - {axis})
        centre = round(float(np.flatnonzero(mask.any(others)).mean()))
        low = int(np.clip(centre - side // 2, 0, max(0, size - side)))
        parts.append(slice(low, min(size, low + side)))
    return tuple(parts)


def judged(mask: np.ndarray) -> np.ndarray:
    """The mask without the border of the block."""
    inner = np.zeros_like(mask)
    part = tuple(slice(EDGE, -EDGE) if size > 4 * EDGE else slice(2, -2) for size in mask.shape)
    inner[part] = mask[part]
    return inner


def middle(
    image: nib.Nifti1Image, side: int
) -> tuple[np.ndarray, np.ndarray, Triple, tuple[slice, ...], np.ndarray]:
    """Values, head mask, voxel sizes (mm), box of the middle block and its affine."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    zooms = voxel_sizes(image.affine)
    mask = head_mask_array(data, zooms)
    box = block(data, mask, side)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    return data, mask, zooms, box, affine


@dataclass(frozen=True)
class Session:
    """An image of a session, its T1w, and what tasks are made of in the middle of the head."""

    name: str
    image: nib.Nifti1Image
    reference: nib.Nifti1Image
    side: int

    @cached_property
    def _middle(self) -> tuple[np.ndarray, np.ndarray, Triple, tuple[slice, ...], np.ndarray]:
        return middle(self.image, self.side)

    @property
    def zooms(self) -> Triple:
        """Voxel sizes of the image (mm)."""
        return self._middle[2]

    @cached_property
    def scan(self) -> nib.Nifti1Image:
        """The whole image, coarse along its first axis, as it would have been scanned."""
        data, mask, zooms, _, _ = self._middle
        return make_task(
            data, mask, zooms, self.image.affine, coarse_along(0), "kspace"
        ).coarse_image

    def task(self, axis: int = 0) -> Task:
        """Return the middle block, coarse along an axis."""
        data, mask, zooms, box, affine = self._middle
        return make_task(data[box], judged(mask[box]), zooms, affine, coarse_along(axis), "kspace")


def coarse_along(axis: int) -> Triple:
    """Ratios of a scan that is coarse along one axis."""
    first, second, third = (RATIO if one == axis else 1.0 for one in range(3))
    return first, second, third


def sessions(
    folder: Path, side: int, suffixes: Sequence[str] = ("T2w", "FLAIR")
) -> Iterator[Session]:
    """Open every image of a subject's folder of bids_mini that has one of the suffixes."""
    anat, subject = folder / "anat", folder.name
    reference = nib.nifti1.load(anat / f"{subject}_T1w.nii.gz")
    for suffix in suffixes:
        path = anat / f"{subject}_{suffix}.nii.gz"
        if path.is_file():
            yield Session(f"{subject} {suffix}", nib.nifti1.load(path), reference, side)


def real_pairs(shared: Path, side: int) -> Iterator[Pair]:
    """sub-03, coarse along either axis in plane."""
    stranger = nib.nifti1.load(shared / "t1w/niimath_T1w.nii.gz")
    for session in sessions(shared / "bids_mini/sub-03", side, ["T2w"]):
        right = align_reference(session.scan, session.reference)
        other = align_reference(session.scan, stranger)
        print(f"# sub-03: overlap {right.overlap:.3f}, stranger {other.overlap:.3f}", flush=True)
        for axis in (0, 1):
            name = f"{session.name} x4 axis {axis}"
            yield Pair(name, session.task(axis), right.image, other.image)


def rendered_pairs(shared: Path, side: int, names: Sequence[str] = UNSEEN) -> Iterator[Pair]:
    """Label maps; by default those that train nothing."""
    heads = {head.name: head for head in label_heads(shared / "labels")}
    for number, name in enumerate(names):
        other = heads[names[number - 1]].volume
        for contrast, ratios, profile in RENDERED:
            codes = heads[name].volume
            box = block(codes, codes > 0, side)
            image, reference = (render(codes[box], kind, number) for kind in (contrast, "T1w"))
            strange = render(other[block(other, other > 0, side)], "T1w", number)
            mask = judged((codes[box] > 0) & (codes[box] < 100))
            task = make_task(image, mask, (1.0, 1.0, 1.0), np.eye(4), ratios, profile)
            yield Pair(
                f"{name} {contrast}", task,
                nib.Nifti1Image(reference, np.eye(4)), nib.Nifti1Image(strange, np.eye(4)),
            )  # fmt: skip


class Remembered:
    """A base that restores each scan once."""

    def __init__(self, base: Restorer) -> None:
        self._base, self._key, self._found = base, 0.0, [Restored(torch.zeros(1))]

    def settle(self, options: Options, problem: Problem) -> Settled:
        """As the base does."""
        return self._base.settle(options, problem)

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """What the base gave, if it was the same scan."""
        key = float(problem.measured.double().square().sum())
        if key != self._key:
            self._key, self._found = key, list(self._base.restore(problem, options, progress))
        yield from self._found

    def sampler(self, problem: Problem, options: Options) -> str:
        """As the base does."""
        return self._base.sampler(problem, options)


def restore(
    resolver: SuperResolver,
    task: Task,
    reference: nib.Nifti1Image | None = None,
    weight: float = 1.0,
) -> np.ndarray:
    """The restored image (X, Y, Z)."""
    result = resolver.enhance(
        task.coarse_image,
        Options(output_resolution=task.zooms),
        Inputs(acquisition=task.acquisition, reference=reference, reference_weight=weight),
    )
    return np.asarray(result.image.dataobj, dtype=np.float32)


def judge(resolver: SuperResolver, pair: Pair) -> dict[str, float]:
    """PSNR without a reference, and the gain (dB) with each."""
    task = pair.task

    def value(image: np.ndarray) -> float:
        return psnr(image, task.truth, task.mask)

    base = value(restore(resolver, task))
    references = {"right": pair.reference} | wrong(pair)
    found = {"base": base}
    for name, reference in references.items():
        found[name] = value(restore(resolver, task, reference)) - base
        overlap = gradient_overlap(task.coarse_image, reference)
        print(f"{pair.name}\t{name}\t{base:.2f}\t{found[name]:+.3f}\t{overlap:.2f}", flush=True)
    return found


def beside(resolver: SuperResolver, pair: Pair) -> None:
    """Print PSNR of interpolation, of other models and of this one with the right reference."""
    task = pair.task
    images = {one.name: one.restore(task) for one in BASELINES if one.name in COMPARED}
    for name in ("student", "moediff"):
        images[name] = restore(SuperResolver.from_pretrained(name, "cpu"), task)
    images[resolver.model.name] = restore(resolver, task, pair.reference)
    found = {name: psnr(image, task.truth, task.mask) for name, image in images.items()}
    print(
        pair.name, *(f"{name} {value:.2f}" for name, value in found.items()), sep="\t", flush=True
    )


def summary(rows: list[dict[str, float]]) -> None:
    """Mean gains with bootstrap intervals over the images."""
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        low, high = bootstrap_interval(values.tolist())
        print(
            f"# {name}: {values.mean():+.3f} [{low:+.3f}, {high:+.3f}], least {values.min():+.3f}"
        )


def lesions(resolver: SuperResolver, shared: Path, side: int) -> None:
    """What a lesion in one of the two images becomes in the result."""
    for pair in rendered_pairs(shared, side):
        task = pair.task
        scale = intensity_range(task.truth, task.mask)
        rng = np.random.default_rng(1)
        deep = ndimage.distance_transform_edt(task.mask) > 12
        places = np.argwhere(deep & (task.truth > 0.3 * scale))
        at = places[rng.integers(len(places))]
        grid = np.ogrid[tuple(slice(size) for size in task.truth.shape)]
        distance = np.sqrt(sum((g - a) ** 2.0 for g, a in zip(grid, at, strict=True)))
        blob = (CONTRAST * scale * lesion_profile(distance, LESION)).astype(np.float32)
        core = distance < LESION / 2
        plain = restore(resolver, task, pair.reference)
        data = np.asarray(pair.reference.dataobj, dtype=np.float32).copy()
        data[tuple(slice(0, size) for size in blob.shape)] += blob / scale
        copied = restore(resolver, task, nib.Nifti1Image(data, np.eye(4))) - plain
        truth = task.truth + blob
        ratios, profile = task.ratios, task.acquisition.axes[2].profile
        marked = make_task(truth, task.mask, task.zooms, task.affine, ratios, profile)
        kept = restore(resolver, marked, pair.reference) - plain
        alone = restore(resolver, marked) - restore(resolver, replace(task))
        height = blob[core].mean()
        print(
            f"{pair.name}\tonly in reference {copied[core].mean() / height:+.3f}"
            f"\tonly in target {kept[core].mean() / height:.3f}"
            f"\twithout reference {alone[core].mean() / height:.3f}",
            flush=True,
        )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("model")
    parser.add_argument("--only", choices=("real", "rendered", "lesions", "beside"))
    parser.add_argument("--side", type=int, default=112)
    options = parser.parse_args()
    resolver = SuperResolver.from_pretrained(options.model, "cpu")
    resolver.restorer.base = Remembered(resolver.restorer.base)  # type: ignore[attr-defined]
    if options.only in (None, "real"):
        summary([judge(resolver, pair) for pair in real_pairs(options.shared, 2 * options.side)])
    if options.only in (None, "rendered"):
        summary([judge(resolver, pair) for pair in rendered_pairs(options.shared, options.side)])
    if options.only in (None, "beside"):
        groups = (
            real_pairs(options.shared, 2 * options.side),
            rendered_pairs(options.shared, options.side),
        )
        for pair in chain(*groups):
            beside(resolver, pair)
    if options.only in (None, "lesions"):
        lesions(resolver, options.shared, options.side)


if __name__ == "__main__":
    main()
