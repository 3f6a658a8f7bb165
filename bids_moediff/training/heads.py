# SPDX-License-Identifier: Apache-2.0
"""Training heads in memory: real volumes and label maps, packed into one small file.

The pack is a NumPy archive of 8-bit volumes cropped to the head, so that training machines need
neither nibabel nor the original files.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Heads of the training split that are kept out while design choices are made: one of each
# training site and the only one of its vendor.
DEVELOPMENT = ("uih_s1_T1w", "ds011_sub-08_T1w", "ds002748_sub-54_T1w")
# Same person as another training file, or no trustworthy fine detail on any axis.
SKIPPED = ("sub-02_inplaneT2",)


@dataclass(frozen=True)
class Head:
    """One training volume.

    Parameters
    ----------
    name : file stem
    volume : (X, Y, Z) uint8; 200 is the 99.5th percentile of the head (labels: label values)
    zooms : voxel size in mm
    kind : "image" or "labels"

    """

    name: str
    volume: np.ndarray
    zooms: tuple[float, float, float]
    kind: str


def _bounding_box(volume: np.ndarray, margin: int) -> tuple[slice, ...]:
    occupied = [
        np.flatnonzero(volume.any(axis=tuple(a for a in range(3) if a != axis)))
        for axis in range(3)
    ]
    return tuple(slice(max(0, index[0] - margin), index[-1] + 1 + margin) for index in occupied)


def quantise(volume: np.ndarray) -> np.ndarray:
    """Scale so that 200 is the 99.5th percentile of the non-zero voxels; 8 bits, zeros stay."""
    positive = volume[volume > 0]
    scaled = volume * (200.0 / np.percentile(positive, 99.5))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def _read(path: Path) -> tuple[np.ndarray, tuple[float, float, float]]:
    import nibabel as nib

    image = nib.nifti1.load(path)
    zooms = [float(z) for z in image.header.get_zooms()[:3]]
    data = np.asarray(image.dataobj, dtype=np.float32).squeeze()
    return data, (zooms[0], zooms[1], zooms[2])


def load_images(paths: Iterable[Path]) -> list[Head]:
    """Read NIfTI volumes as training heads."""
    heads = []
    for path in paths:
        data, zooms = _read(path)
        volume = quantise(data)
        box = _bounding_box(volume > 12, 4)
        name = path.name.removesuffix(".nii.gz").removesuffix(".nii")
        heads.append(Head(name, np.ascontiguousarray(volume[box]), zooms, "image"))
    return heads


def load_labels(paths: Iterable[Path]) -> list[Head]:
    """Read FreeSurfer label maps; extra-cerebral labels from 400 on are moved down by 300."""
    heads = []
    for path in paths:
        data, zooms = _read(path)
        labels = np.round(data).astype(np.int32)
        box = _bounding_box(labels > 0, 2)
        labels = np.where(labels >= 400, labels - 300, labels)[box].astype(np.uint8)
        name = path.name.removesuffix(".nii.gz")
        heads.append(Head(name, np.ascontiguousarray(labels), zooms, "labels"))
    return heads


def shared_training_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Training images of the manifest (split column `train`), and the label maps."""
    with (root / "manifest.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    images = [
        root / row["file"]
        for row in rows
        if row["split"] == "train"
        and row["file"].endswith(".nii.gz")
        and not any(skip in row["file"] for skip in SKIPPED)
        and not row["file"].startswith("labels/")
    ]
    return images, sorted((root / "labels").rglob("*.nii.gz"))


def save_pack(heads: Sequence[Head], path: Path) -> str:
    """Write heads as one compressed archive; returns its SHA-256."""
    arrays = {f"v{index}": head.volume for index, head in enumerate(heads)}
    meta = [{"name": h.name, "zooms": h.zooms, "kind": h.kind} for h in heads]
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_pack(path: Path) -> list[Head]:
    """Inverse of :func:`save_pack`."""
    with np.load(path) as archive:
        meta = json.loads(bytes(archive["meta"]))
        return [
            Head(m["name"], archive[f"v{index}"], tuple(m["zooms"]), m["kind"])
            for index, m in enumerate(meta)
        ]
