# SPDX-License-Identifier: Apache-2.0
"""Find images that serve as truth: their files, sites, and trustworthy axes.

An axis that the scanner sampled coarsely, or that was interpolated, holds no truth: a result
cannot be compared with detail that was never measured. Such axes are not degraded.
"""

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.reference import resample_reference, use_reference
from bids_moediff.imaging.spectrum import acquired_resolution

# Slices this much thicker than the finest axis are those of a 2-D scan.
THICK = 1.9
# An axis whose spectrum ends here (in voxels) was interpolated from coarser voxels.
INTERPOLATED = 1.9
TRAINING_SITE = "training sites"
OTHER_SITE = "another site"
UNKNOWN_SITE = "heads"


@dataclass(frozen=True)
class TruthHead:
    """One high-resolution image.

    Parameters
    ----------
    path
        NIfTI file.
    group
        "training sites", "another site" or "heads" (unknown).
    reference
        Another contrast of the same person, for methods that take one.
    """

    path: Path
    group: str = UNKNOWN_SITE
    reference: Path | None = None

    @property
    def name(self) -> str:
        """File name without extension."""
        return self.path.name.removesuffix(".gz").removesuffix(".nii")

    @cached_property
    def digest(self) -> str:
        """Return the first eight hexadecimal digits of the file's SHA-256.

        Raises
        ------
        ImageError
            If the file is missing.
        """
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()[:8]
        except OSError as error:
            raise ImageError(f"{self.path.name} cannot be read: {error.strerror}.") from error

    def load(self) -> "Loaded":
        """Read intensities and find head and trustworthy axes.

        Raises
        ------
        ImageError
            If the image cannot be read or has no head, or its reference cannot be used.
        """
        try:
            image = nib.Nifti1Image.from_filename(self.path)
            data = np.asarray(image.dataobj, dtype=np.float32).squeeze()
        except Exception as error:  # damaged files fail in many ways
            raise ImageError(f"{self.path.name} cannot be read as a NIfTI image.") from error
        if data.ndim != 3 or min(data.shape) < 8 or not np.isfinite(data).all():
            raise ImageError(
                f"{self.path.name} is not a finite 3-D image of 8 voxels or more a side."
            )
        zooms = voxel_sizes(image.affine)
        mask = head_mask_array(data, zooms)
        if not mask.any():
            raise ImageError(f"{self.path.name} shows no head.")
        axes, note = trusted_axes(data, zooms, mask)
        other = None if self.reference is None else _aligned(image, self.reference)
        return Loaded(self, data, mask, zooms, image.affine, axes, note, other)


def _aligned(image: nib.Nifti1Image, path: Path) -> np.ndarray:
    """Return a reference registered to an image, on its grid (X, Y, Z)."""
    try:
        choice = use_reference(image, nib.Nifti1Image.from_filename(path))
    except (OSError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise ImageError(f"{path.name} cannot be read as a NIfTI image.") from error
    if choice.image is None:
        raise ImageError(choice.record["Reason"])
    first, second, third = image.shape
    return resample_reference(choice.image, (first, second, third), image.affine)


@dataclass(frozen=True)
class Loaded:
    """A head in memory; intensities (X, Y, Z) in the file's units, boolean mask of the head.

    ``reference`` is another contrast (X, Y, Z), registered, 0 where it was not measured.
    """

    head: TruthHead
    truth: np.ndarray
    mask: np.ndarray
    zooms: Triple
    affine: np.ndarray
    axes: tuple[int, ...]
    note: str
    reference: np.ndarray | None = None


def trusted_axes(data: np.ndarray, zooms: Triple, mask: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Return the axes that hold truth, and why the others do not.

    An axis is left out if its voxels are more than 1.9 times the finest (slices of a 2-D scan), or
    if its spectrum shows interpolation or zero filling from voxels more than 1.9 times as large:
    then nothing is left of the band that x2 recovers. If no axis remains, all count.

    Parameters
    ----------
    data, mask
        Intensities and head mask (X, Y, Z).
    zooms
        Voxel sizes in mm.
    """
    found = acquired_resolution(data, zooms, mask)
    axes, reasons = [], []
    for axis, (zoom, resolution) in enumerate(zip(zooms, found, strict=True)):
        if zoom > THICK * min(zooms):
            reasons.append(f"axis {axis} has slices of {zoom:.3g} mm")
        elif resolution.acquired > INTERPOLATED * zoom:
            reasons.append(
                f"axis {axis} was interpolated from about {resolution.acquired:.2g} mm"
                f" to {zoom:.3g} mm"
            )
        else:
            axes.append(axis)
    if not axes:
        return (0, 1, 2), ""
    return tuple(axes), f"{' and '.join(reasons)}, so it has no truth" if reasons else ""


def heads_of_files(files: Iterable[Path], other_site: Iterable[Path] = ()) -> list[TruthHead]:
    """Return heads of files; those of ``other_site`` come from a site without training images."""
    heads = [TruthHead(Path(path)) for path in files]
    heads += [TruthHead(Path(path), OTHER_SITE) for path in other_site]
    if missing := [str(head.path) for head in heads if not head.path.is_file()]:
        raise UsageError(f"There is no file {missing[0]}.")
    names = [head.name for head in heads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two heads are called {twice[0]}; give files of different names.")
    return heads


def heads_of_manifest(root: Path, split: str) -> list[TruthHead]:
    """Return the heads of one split of a folder with manifest.tsv (file, split, source_repo).

    A head comes from another site if no image of its source is in the split "train".
    """
    try:
        with (root / "manifest.tsv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except OSError as error:
        raise UsageError(f"{root}/manifest.tsv cannot be read: {error.strerror}.") from error
    if rows and not {"file", "split", "source_repo"} <= set(rows[0]):
        raise UsageError(f"{root}/manifest.tsv lacks a column: file, split or source_repo.")
    trained = {row["source_repo"] for row in rows if row["split"] == "train"}
    heads = [
        TruthHead(
            root / row["file"], TRAINING_SITE if row["source_repo"] in trained else OTHER_SITE
        )
        for row in rows
        if row["split"] == split and row["file"].endswith((".nii", ".nii.gz"))
    ]
    if not heads:
        splits = ", ".join(sorted({row["split"] for row in rows})) or "none"
        raise UsageError(f"{root}/manifest.tsv has no image of split {split!r}; it has: {splits}.")
    return heads


# Voxels at a cut face that are not judged: there the truncated volume wraps around.
RIM = 8


@dataclass(frozen=True)
class Block(TruthHead):
    """The middle of a head, ``side`` voxels wide."""

    side: int = 96

    @cached_property
    def digest(self) -> str:
        """Return the digest of the file, and the side: results differ from those of the head."""
        return f"{TruthHead(self.path).digest}-{self.side}"

    def load(self) -> Loaded:
        """Read the block around the centre of the head's mask.

        Raises
        ------
        ImageError
            If the image cannot be read or has no head.
        """
        loaded = super().load()
        cut, judged = [], np.zeros_like(loaded.mask)
        for axis, size in enumerate(loaded.truth.shape):
            centre = round(float(np.flatnonzero(loaded.mask.any(_others(axis))).mean()))
            begin = int(np.clip(centre - self.side // 2, 0, max(0, size - self.side)))
            cut.append(slice(begin, min(size, begin + self.side)))
        inner = tuple(
            slice(part.start + RIM * (part.start > 0), part.stop - RIM * (part.stop < size))
            for part, size in zip(cut, loaded.truth.shape, strict=True)
        )
        judged[inner] = loaded.mask[inner]
        box = tuple(cut)
        if judged.sum() < 1000:
            raise ImageError(f"{self.name}: a block of {self.side} voxels shows too little head.")
        affine = loaded.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [part.start for part in cut]
        truth = np.ascontiguousarray(loaded.truth[box])
        other = None if loaded.reference is None else loaded.reference[box]
        return replace(loaded, truth=truth, mask=judged[box], affine=affine, reference=other)


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)
