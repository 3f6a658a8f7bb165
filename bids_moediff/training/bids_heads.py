# SPDX-License-Identifier: Apache-2.0
"""Find training images in BIDS data sets, folders with a manifest, and label maps.

A coarse and a fine scan of the same participant and contrast, of different sessions or
acquisitions and on aligned grids, make a pair. Every other fine scan is degraded in training.
Problems of a file are reported before the first step.
"""

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bids_moediff.bids.discover import discover_participant, find_participants
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.grid import Shape, Triple, covering_shape, voxel_sizes
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.settings import Settings

from .pack import TrainingHead, bounding_box, brightness, make_image, make_labels, quantise

# Same person as another training file, or no trustworthy fine detail on any axis.
SKIPPED = ("sub-02_inplaneT2",)
VALIDATION_SHARE = 0.1
# From this voxel ratio on two scans count as coarse and fine.
PAIR_RATIO = 1.2


@dataclass(frozen=True)
class Selection:
    """Selection of images of BIDS data sets.

    ``pairs`` is "auto", "none", or the labels of the coarse and the fine scans, such as
    "ses-low:ses-high" or "acq-thick:acq-iso". ``max_voxel`` (mm) is the coarsest voxel size that
    counts as fine. ``validation`` are labels of participants that are kept out of training.
    """

    pairs: str = "auto"
    suffixes: tuple[str, ...] = ()
    max_voxel: float = 1.6
    validation: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedScan:
    """One image in memory."""

    name: str
    data: np.ndarray
    affine: np.ndarray
    image: AnatomicalImage

    @property
    def zooms(self) -> Triple:
        """Voxel sizes in mm."""
        return voxel_sizes(self.affine)


def read_volume(path: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Intensities (X, Y, Z) and affine; UsageError if the file cannot be trained on."""
    try:
        image = nib.nifti1.load(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{name} cannot be read: {reason}.") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or min(data.shape) < 16:
        raise UsageError(
            f"{name} has the shape {data.shape}; a training image is one 3-D volume of at least "
            "16 voxels on each side."
        )
    wrong = int((~np.isfinite(data)).sum())
    if wrong:
        raise UsageError(f"{name} holds {wrong} voxels that are not finite numbers (NaN).")
    if (data > 0).mean() < 0.01 or float(data[data > 0].std()) == 0:
        raise UsageError(f"{name} is empty: it has no head above zero.")
    return data, np.asarray(image.affine)


def _settings(root: Path, choice: Selection) -> Settings:
    return Settings(bids_dir=root.absolute(), modalities=choice.suffixes)


def scans(root: Path, choice: Selection) -> list[LoadedScan]:
    """Images of all participants, in the order of their names."""
    settings = _settings(root, choice)
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}.")
    found = []
    for label in find_participants(settings):
        try:
            participant = discover_participant(settings, label)
        except ImageError as error:
            raise UsageError(str(error)) from error
        for image in participant.images:
            if image.problem:
                raise UsageError(image.problem)
            data, affine = read_volume(image.path, image.relative_path)
            name = image.path.name.removesuffix(".gz").removesuffix(".nii")
            found.append(LoadedScan(f"{root.resolve().name}/{name}", data, affine, image))
    if not found:
        raise UsageError(f"{root} has no anatomical image to train on.")
    return found


def _same_but(first: AnatomicalImage, second: AnatomicalImage) -> str | None:
    """The one entity, session or acquisition, in which two images of a participant differ."""
    if first.suffix != second.suffix:
        return None
    names = {*first.entities, *second.entities}
    differing = [n for n in names if first.entities.get(n) != second.entities.get(n)]
    return differing[0] if len(differing) == 1 and differing[0] in ("ses", "acq") else None


def _wanted(low: LoadedScan, high: LoadedScan, pairs: str) -> bool:
    """Whether two scans are meant to be a pair of coarse and fine."""
    entity = _same_but(low.image, high.image)
    if entity is None or pairs == "none":
        return False
    if pairs == "auto":
        ratios = [a / b for a, b in zip(low.zooms, high.zooms, strict=True)]
        return max(ratios) >= PAIR_RATIO and min(ratios) > 1 / PAIR_RATIO
    coarse, _, fine = pairs.partition(":")
    labels = [f"{entity}-{scan.image.entities.get(entity)}" for scan in (low, high)]
    return labels == [coarse, fine]


def _check_aligned(low: LoadedScan, high: LoadedScan) -> None:
    """UsageError unless both grids share orientation, outer corner and field of view."""
    corners, directions, extents = [], [], []
    for scan in (low, high):
        zooms = np.asarray(scan.zooms)
        corners.append(scan.affine[:3, :3] @ np.full(3, -0.5) + scan.affine[:3, 3])
        directions.append(scan.affine[:3, :3] / zooms)
        extents.append(np.asarray(scan.data.shape) * zooms)
    finest, coarsest = min(high.zooms), np.asarray(low.zooms)
    turned = float(np.abs(directions[0] - directions[1]).max()) > 1e-3
    apart = float(np.linalg.norm(corners[0] - corners[1]))
    larger = bool((np.abs(extents[0] - extents[1]) > coarsest * 1.01).any())
    finer = any(a < b * 0.999 for a, b in zip(low.zooms, high.zooms, strict=True))
    if not (turned or larger or finer or apart > 0.1 * finest):
        return
    why = "are rotated against each other" if turned else "have different fields of view"
    if not (turned or larger):
        why = "differ in which one is finer" if finer else f"are shifted by {apart:.2f} mm"
    raise UsageError(
        f"The grids of the pair {low.name} and {high.name} {why}; register them and resample the "
        "fine scan to a grid with the coarse one's outer corner, or train with --pairs none."
    )


def make_pair(low: LoadedScan, high: LoadedScan) -> TrainingHead:
    """Pair on the fine grid: the fine scan, and the coarse one interpolated consistently.

    The coarse scan is scaled so that it fits the fine one as the scanner would have measured it.
    """
    _check_aligned(low, high)
    counts = low.data.shape
    shape: Shape = covering_shape(counts, low.zooms, high.zooms)
    fine = _fit(high.data, shape)
    acquisition = Acquisition.from_metadata(low.image.metadata, low.zooms)
    coarse_shape: Shape = (counts[0], counts[1], counts[2])
    operator = Operator.between(shape, high.zooms, coarse_shape, low.zooms, acquisition)
    measured = torch.from_numpy(low.data)
    expected = operator.forward(torch.from_numpy(fine))
    gain = float((expected * measured).sum() / measured.square().sum())
    start = initial_estimate(measured * gain, operator, low.zooms, high.zooms).numpy()
    bright = brightness(fine)
    volume = quantise(fine, bright)
    box = bounding_box(volume > 12, 4)
    return TrainingHead(
        f"{low.name}+{high.image.path.name.split('.')[0]}",
        np.ascontiguousarray(volume[box]),
        high.zooms,
        "pair",
        start=np.ascontiguousarray(quantise(start, bright)[box]),
        condition=tuple(round(value, 6) for value in acquisition.condition(high.zooms, low.zooms)),
    )


def _fit(data: np.ndarray, shape: Shape) -> np.ndarray:
    """Cut or repeat the last planes, so that the array has this shape."""
    data = data[tuple(slice(0, size) for size in shape)]
    missing = [(0, size - have) for size, have in zip(shape, data.shape, strict=True)]
    return np.ascontiguousarray(np.pad(data, missing, mode="edge"))


def bids_heads(root: Path, choice: Selection) -> list[TrainingHead]:
    """Pairs and fine scans of one data set; UsageError if there are none."""
    found = scans(root, choice)
    source = root.resolve().name
    heads, used = [], set[str]()
    for high in found:
        for low in found:
            mine = low.image.entities["sub"] == high.image.entities["sub"]
            if low is high or not mine or not _wanted(low, high, choice.pairs):
                continue
            subject = f"{source}/sub-{low.image.entities['sub']}"
            heads.append(replace(make_pair(low, high), subject=subject, source=source))
            used |= {low.name, high.name}
    if not heads and choice.pairs not in ("auto", "none"):
        raise UsageError(f"{root} has no pair {choice.pairs} of the same participant.")
    for scan in found:
        if scan.name not in used and max(scan.zooms) <= choice.max_voxel:
            subject = f"{source}/sub-{scan.image.entities['sub']}"
            heads.append(
                make_image(scan.name, scan.data, scan.zooms, subject=subject, source=source)
            )
    if not heads:
        raise UsageError(
            f"{root} has no pair of a coarse and a fine scan, and no image whose voxels are "
            f"{choice.max_voxel:g} mm or finer (--max-voxel)."
        )
    return heads


def manifest_heads(root: Path) -> list[TrainingHead]:
    """Images of a folder with manifest.tsv (columns file, split) that are meant for training."""
    with (root / "manifest.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    heads = []
    for row in rows:
        file = row["file"]
        skipped = file.startswith("labels/") or any(name in file for name in SKIPPED)
        if row["split"] == "train" and file.endswith(".nii.gz") and not skipped:
            data, affine = read_volume(root / file, file)
            name = Path(file).name.removesuffix(".nii.gz")
            heads.append(make_image(name, data, voxel_sizes(affine)))
    return heads


def label_heads(folder: Path) -> list[TrainingHead]:
    """FreeSurfer label maps below a folder."""
    paths = sorted(folder.rglob("*.nii.gz"))
    if not paths:
        raise UsageError(f"{folder} has no label map (*.nii.gz).")
    heads = []
    for path in paths:
        data, affine = read_volume(path, path.name)
        name = path.name.removesuffix(".nii.gz")
        heads.append(make_labels(name, data, voxel_sizes(affine)))
    return heads


def _order(subject: str) -> str:
    return hashlib.sha1(subject.encode(), usedforsecurity=False).hexdigest()


def mark_validation(heads: Sequence[TrainingHead], labels: Sequence[str]) -> list[TrainingHead]:
    """Keep a tenth of the participants out of training, or those with these labels."""
    people = sorted({head.subject for head in heads if head.subject}, key=_order)
    if not people:
        return list(heads)
    if len(people) == 1:
        raise UsageError(
            f"All data are of one participant ({people[0]}): training needs at least two, so that "
            "it is steered by a head it does not learn."
        )
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in labels}
    chosen = {person for person in people if person.split("/")[-1] in wanted}
    missing = wanted - {person.split("/")[-1] for person in chosen}
    if missing:
        raise UsageError(f"There is no {min(missing)} to validate on.")
    if not wanted:
        chosen = set(people[: max(1, math.ceil(VALIDATION_SHARE * len(people)))])
    return [replace(h, validation=h.validation or h.subject in chosen) for h in heads]


def collect(
    roots: Sequence[Path],
    labels: Sequence[Path],
    choice: Selection,
    report: Callable[[str], None] = print,
) -> list[TrainingHead]:
    """Heads of all data sets and label folders, validation heads marked.

    Raises
    ------
    UsageError
        with the first thing that keeps the data from being trained on.
    """
    heads: list[TrainingHead] = []
    for root in roots:
        described = (root / "dataset_description.json").is_file()
        by_manifest = (root / "manifest.tsv").is_file() and not described
        found = manifest_heads(root) if by_manifest else bids_heads(root, choice)
        report(f"{root.resolve().name}: {_counts(found)}")
        heads += found
    heads = mark_validation(heads, choice.validation)
    for folder in labels:
        heads += label_heads(folder)
    return _distinct(heads)


def _counts(heads: Sequence[TrainingHead]) -> str:
    kinds: Mapping[str, str] = {"pair": "pairs", "image": "images degraded while training"}
    return ", ".join(f"{sum(h.kind == k for h in heads)} {word}" for k, word in kinds.items())


def _distinct(heads: Sequence[TrainingHead]) -> list[TrainingHead]:
    seen: set[str] = set()
    for head in heads:
        if head.name in seen:
            raise UsageError(f"Two training volumes are named {head.name}.")
        seen.add(head.name)
    return list(heads)
