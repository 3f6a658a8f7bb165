# SPDX-License-Identifier: Apache-2.0
"""Find the brain mask that an earlier pipeline made for an image."""

import re
from dataclasses import dataclass
from pathlib import Path

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import parse_name
from bids_moediff.errors import ImageError, UsageError

_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9]+)$")
_MASKS = "*_desc-brain_mask.nii*"
_MOST_NAMES = 3  # in a remark


@dataclass(frozen=True)
class EarlierMask:
    """Brain mask of an earlier pipeline for an image.

    Parameters
    ----------
    path
        The mask, or None.
    remark
        One sentence on the choice, if the user should know it.
    """

    path: Path | None = None
    remark: str = ""


def check_derivatives(folder: Path) -> None:
    """Check a folder of derivatives before anything is computed.

    Raises
    ------
    UsageError
        If the folder does not exist or has no participant.
    """
    if not folder.is_dir():
        raise UsageError(f"--derivatives {folder}: there is no such folder.")
    if next(folder.glob("sub-*"), None) is None:
        below = next(folder.glob("*/sub-*"), None)
        hint = f"; did you mean {below.parent}?" if below else "."
        raise UsageError(f"--derivatives {folder}: the folder has no participant (sub-){hint}")


def find_brain_mask(image: AnatomicalImage, folder: Path) -> EarlierMask:
    """Find the brain mask of an image in the derivatives of an earlier pipeline.

    A mask fits if it is named ``desc-brain_mask``, is in the image's own space (no ``space``, or
    the image's contrast), at no other resolution, and has every entity of the image. fMRIPrep and
    sMRIPrep leave out ``run`` and ``rec`` if they are not needed: such a mask is taken if the
    folder has no mask that names them. They also leave them out of the one mask of several runs,
    which is in the space of the first run: other runs do not get it.

    Parameters
    ----------
    image
        The source. The files beside it say which runs there are.
    folder
        Root of the derivatives.
    """
    own = dict(image.entities)
    candidates = _candidates(image, folder)
    for path, entities in candidates:
        if entities == own:
            return EarlierMask(path)
    named = {key for _, entities in candidates for key in entities}
    for path, entities in candidates:
        missing = set(own) - set(entities)
        if missing <= {"run", "rec"} - named and entities.items() <= own.items():
            return _of_several_runs(path, image) if "run" in missing else EarlierMask(path)
    return EarlierMask(remark=_nothing_fits(image, folder))


def _candidates(image: AnatomicalImage, folder: Path) -> list[tuple[Path, dict[str, str]]]:
    """Return masks of the image's session and space, with their entities."""
    anat = folder / f"sub-{image.entities['sub']}"
    if "ses" in image.entities:
        anat /= f"ses-{image.entities['ses']}"
    return [
        (path, entities)
        for path in sorted(anat.glob(f"anat/{_MASKS}"))
        if (entities := _entities(path)) is not None and _own_space(entities, image)
    ]


def _of_several_runs(path: Path, image: AnatomicalImage) -> EarlierMask:
    """Return a mask that names no run: that of the first run, if there are several."""
    runs = _runs(image)
    if len(runs) < 2:
        return EarlierMask(path)
    if image.entities["run"] == runs[0]:
        return EarlierMask(path, f"{path.name} names no run: it was taken for the first one.")
    words = f"{path.name} names no run and belongs to the first one, run-{runs[0]}"
    return EarlierMask(remark=f"{words}: the brain mask of this run was computed.")


def _runs(image: AnatomicalImage) -> list[str]:
    """Return the runs of this image beside it, in order."""

    def like(entities: dict[str, str]) -> dict[str, str]:
        return {key: value for key, value in entities.items() if key not in ("run", "rec")}

    runs = set()
    for path in image.path.parent.glob(f"*_{image.suffix}.nii*"):
        try:
            entities, _, _ = parse_name(path.name)
        except ImageError:
            continue
        if "run" in entities and like(entities) == like(dict(image.entities)):
            runs.add(entities["run"])
    return sorted(runs, key=lambda run: (int(run) if run.isdigit() else 0, run))


def _nothing_fits(image: AnatomicalImage, folder: Path) -> str:
    """Return a sentence that no mask fits, with the masks of this participant."""
    subject = folder / f"sub-{image.entities['sub']}"
    names = sorted(path.name for path in subject.glob(f"**/anat/{_MASKS}"))
    there = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    words = f"No brain mask in {folder.name} belongs to this image by its name"
    return f"{words}{f' (there: {there})' if names else ''}: it was computed."


def _entities(path: Path) -> dict[str, str] | None:
    """Return entities of a file name without ``desc``, or None if it is not a BIDS name."""
    parts = path.name.split(".")[0].split("_")[:-1]
    matches = [_ENTITY.match(part) for part in parts]
    if not all(matches):
        return None
    entities = {match.group(1): match.group(2) for match in matches if match}
    entities.pop("desc", None)
    return entities


def _own_space(entities: dict[str, str], image: AnatomicalImage) -> bool:
    """Return True if a mask is in the image's space; removes ``space`` from ``entities``."""
    if "res" in entities or "label" in entities:
        return False
    # Without ``space`` a mask belongs to the T1-weighted image.
    return entities.pop("space", "T1w") == image.suffix
