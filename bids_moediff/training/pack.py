# SPDX-License-Identifier: Apache-2.0
"""Training heads in memory: real volumes, pairs and label maps, packed into one small file.

The pack is a NumPy archive of 8-bit volumes cropped to the head, so that training machines need
neither nibabel nor pybids nor the original files.
"""

import fnmatch
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bids_moediff.errors import UsageError
from bids_moediff.runtime.sink import atomic

BRIGHT = 200.0
KINDS = ("image", "labels", "pair")
SMALLEST_SIDE = 16


@dataclass(frozen=True)
class TrainingHead:
    """One training volume.

    Parameters
    ----------
    name
        Unique name.
    volume
        (X, Y, Z) uint8; 200 is the 99.5th percentile of the head (labels: label values).
    zooms
        Voxel size in mm.
    kind
        "image", "labels" or "pair".
    subject, source
        Subject, and data set or site ("" if not known).
    validation
        Whether it is kept out of training, to steer it.
    start
        Of a pair, the coarse scan on this grid as the networks get it, in the same units.
    condition
        Of a pair, the six numbers that describe its acquisition.
    reference
        Another contrast of the same head on this grid, in the same units.
    """

    name: str
    volume: np.ndarray
    zooms: tuple[float, float, float]
    kind: str
    subject: str = ""
    source: str = ""
    validation: bool = False
    start: np.ndarray | None = None
    condition: tuple[float, ...] | None = None
    reference: np.ndarray | None = None


def bounding_box(volume: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Smallest box around the non-zero voxels, widened by a margin."""
    occupied = [
        np.flatnonzero(volume.any(axis=tuple(a for a in range(3) if a != axis)))
        for axis in range(3)
    ]
    return tuple(slice(max(0, index[0] - margin), index[-1] + 1 + margin) for index in occupied)


def brightness(volume: np.ndarray) -> float:
    """The 99.5th percentile of the positive voxels, which becomes 200."""
    return float(np.percentile(volume[volume > 0], 99.5))


def quantise(volume: np.ndarray, bright: float) -> np.ndarray:
    """Eight bits, so that `bright` is 200; zeros stay."""
    return np.clip(np.round(volume * (BRIGHT / bright)), 0, 255).astype(np.uint8)


def make_image(
    name: str, data: np.ndarray, zooms: Sequence[float], **details: str
) -> TrainingHead:
    """Head from intensities, cropped; `details` are subject and source."""
    volume = quantise(data, brightness(data))
    box = bounding_box(volume > 12, 4)
    sizes = (float(zooms[0]), float(zooms[1]), float(zooms[2]))
    return TrainingHead(name, np.ascontiguousarray(volume[box]), sizes, "image", **details)  # type: ignore[arg-type]


def make_labels(name: str, data: np.ndarray, zooms: Sequence[float]) -> TrainingHead:
    """Head from FreeSurfer labels; extra-cerebral ones, from 400 on, are moved down by 300."""
    labels = np.round(data).astype(np.int32)
    box = bounding_box(labels > 0, 2)
    labels = np.where(labels >= 400, labels - 300, labels)[box].astype(np.uint8)
    sizes = (float(zooms[0]), float(zooms[1]), float(zooms[2]))
    return TrainingHead(name, np.ascontiguousarray(labels), sizes, "labels", name, "labels")


def site(head: TrainingHead) -> str:
    """Data set or site of a head; early packs tell it by the first word of the name."""
    if head.kind == "labels":
        return "labels"
    return head.source or head.name.split("_")[0]


def head_weights(
    heads: Sequence[TrainingHead], patterns: Mapping[str, float], label_share: float
) -> np.ndarray:
    """Probability of each head.

    `patterns` (shell pattern of names: relative weight) say how much images count; the first that
    fits does. Without one, an image counts 1 over the square root of the number of heads of its
    site. All label maps together have the probability `label_share`. UsageError if no head is of
    a kind that the recipe draws.
    """
    sites = [site(head) for head in heads]
    weights = []
    for head, where in zip(heads, sites, strict=True):
        named = [w for pattern, w in patterns.items() if fnmatch.fnmatchcase(head.name, pattern)]
        plain = head.kind == "labels" or not named
        weights.append(sites.count(where) ** -0.5 if plain else named[0])
    array = np.asarray(weights, dtype=float)
    labels = np.asarray([head.kind == "labels" for head in heads])
    if label_share >= 1 and not labels.any():
        raise UsageError("The recipe trains on label maps alone, and there is none: --labels DIR.")
    if label_share <= 0 and labels.all():
        raise UsageError("All training data are label maps, and the recipe's label_share is 0.")
    for group, share in ((labels, label_share), (~labels, 1.0 - label_share)):
        array[group] *= share / max(array[group].sum(), 1e-12)
    return array / array.sum()


def save_pack(heads: Sequence[TrainingHead], path: Path) -> str:
    """Write heads as one compressed archive; returns its SHA-256."""
    arrays: dict[str, np.ndarray] = {}
    meta = []
    for index, head in enumerate(heads):
        arrays[f"v{index}"] = head.volume
        if head.start is not None:
            arrays[f"s{index}"] = head.start
        if head.reference is not None:
            arrays[f"r{index}"] = head.reference
        meta.append(
            {
                "name": head.name,
                "zooms": head.zooms,
                "kind": head.kind,
                "subject": head.subject,
                "source": head.source,
                "validation": head.validation,
                "condition": head.condition,
            }
        )
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with atomic(path) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_pack(path: Path) -> list[TrainingHead]:
    """Read a pack; UsageError for any other file and for a damaged one."""
    try:
        with np.load(path) as archive:
            meta = json.loads(bytes(archive["meta"]))
            heads = []
            for index, entry in enumerate(meta):
                values = dict(entry, zooms=tuple(entry["zooms"]))
                if values.get("condition") is not None:
                    values["condition"] = tuple(values["condition"])
                if f"s{index}" in archive:
                    values["start"] = archive[f"s{index}"]
                if f"r{index}" in archive:
                    values["reference"] = archive[f"r{index}"]
                heads.append(TrainingHead(volume=archive[f"v{index}"], **values))
            return heads
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())[:150]
        raise UsageError(f"{path} is not a readable training pack: {reason}.") from error


def check_heads(heads: Sequence[TrainingHead], keep_out: Sequence[str] = ()) -> list[TrainingHead]:
    """Heads with `keep_out` marked as validation, after everything that training assumes holds.

    Raises
    ------
    UsageError
        with the first thing that is wrong, and with which head.
    """
    marked = [replace(h, validation=h.validation or h.name in keep_out) for h in heads]
    for head in marked:
        _check_head(head)
    training = [head for head in marked if not head.validation]
    if not any(head.validation for head in marked):
        raise UsageError(
            "No head is kept out for validation: name some in the recipe (keep_out), or train on "
            "the data of at least two participants."
        )
    if not training:
        raise UsageError("No head is left to train on: all are kept out for validation.")
    people = {head.subject for head in training if head.subject and head.kind != "labels"}
    twice = people & {head.subject for head in marked if head.validation}
    if twice:
        raise UsageError(f"{min(twice)} is in the training and in the validation data.")
    return marked


def _check_head(head: TrainingHead) -> None:
    volume = head.volume
    if head.kind not in KINDS:
        raise UsageError(f"{head.name} is of the unknown kind {head.kind!r}.")
    if volume.ndim != 3 or min(volume.shape) < SMALLEST_SIDE or volume.dtype != np.uint8:
        raise UsageError(
            f"{head.name} has the shape {volume.shape} and type {volume.dtype}; training volumes "
            f"are 3-D, 8-bit and at least {SMALLEST_SIDE} voxels wide."
        )
    if (volume > 0).mean() < 0.01:
        raise UsageError(f"{head.name} is empty: less than 1 % of its voxels are above zero.")
    if head.kind == "pair" and (
        head.start is None or head.start.shape != volume.shape or head.condition is None
    ):
        raise UsageError(f"{head.name} is a pair whose two grids differ.")
    if head.reference is not None and head.reference.shape != volume.shape:
        raise UsageError(f"{head.name} has a reference on another grid.")


def select_heads(heads: Sequence[TrainingHead], megabytes: float) -> list[TrainingHead]:
    """As many heads as fit into a pack of this size, every site in turn, validation heads first.

    UsageError if not even the validation heads and one head of each site fit.
    """
    sizes = {h.name: len(zlib.compress(h.volume.tobytes(), 6)) * 1.02 / 1e6 for h in heads}
    chosen = [head for head in heads if head.validation]
    rest: dict[str, list[TrainingHead]] = {}
    for head in heads:
        if not head.validation:
            rest.setdefault(site(head), []).append(head)
    total = sum(sizes[head.name] for head in chosen)
    first_round = True
    while any(rest.values()):
        for group in rest.values():
            if not group:
                continue
            head = group.pop(0)
            if total + sizes[head.name] <= megabytes:
                chosen.append(head)
                total += sizes[head.name]
            elif first_round:
                raise UsageError(
                    f"{megabytes:g} MB are too few for the validation heads and one of each site."
                )
        first_round = False
    order = [head.name for head in heads]
    return sorted(chosen, key=lambda head: order.index(head.name))
