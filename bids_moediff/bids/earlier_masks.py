# SPDX-License-Identifier: Apache-2.0
"""What earlier pipelines have already worked out for an image: its brain mask."""

import re
from collections.abc import Iterable
from pathlib import Path

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import UsageError

_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9]+)$")


def check_derivatives(folders: Iterable[Path]) -> None:
    """Refuse folders that are not there before anything is computed.

    Raises
    ------
    UsageError
        Naming the first folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--derivatives {folder.name}: there is no such folder")


def find_brain_mask(image: AnatomicalImage, folders: Iterable[Path]) -> Path | None:
    """Brain mask of ``image`` in the first of the folders that has one.

    A mask fits if it is named ``desc-brain_mask``, lies in the image's own space (no ``space``,
    or the image's contrast), on no other resolution, and bears every entity of the image. fMRIPrep
    and sMRIPrep leave out ``run`` and ``rec`` where they are of no consequence: such a mask is
    taken only if the folder holds no mask that names them.
    """
    for folder in folders:
        anat = folder / f"sub-{image.entities['sub']}"
        if "ses" in image.entities:
            anat /= f"ses-{image.entities['ses']}"
        candidates = [
            (path, entities)
            for path in sorted(anat.glob("anat/*_desc-brain_mask.nii*"))
            if (entities := _entities(path)) is not None and _own_space(entities, image)
        ]
        own = dict(image.entities)
        for path, entities in candidates:
            if entities == own:
                return path
        named = {key for _, entities in candidates for key in entities}
        for path, entities in candidates:
            missing = set(own) - set(entities)
            if missing <= {"run", "rec"} - named and entities.items() <= own.items():
                return path
    return None


def _entities(path: Path) -> dict[str, str] | None:
    """Entities of a file name without ``desc``; None if it is not a BIDS name."""
    parts = path.name.split(".")[0].split("_")[:-1]
    matches = [_ENTITY.match(part) for part in parts]
    if not all(matches):
        return None
    entities = {match.group(1): match.group(2) for match in matches if match}
    entities.pop("desc", None)
    return entities


def _own_space(entities: dict[str, str], image: AnatomicalImage) -> bool:
    """Whether a mask lies in the image's space; takes ``space`` out of ``entities``."""
    if "res" in entities or "label" in entities:
        return False
    # Without ``space`` a mask belongs to the T1-weighted image.
    return entities.pop("space", "T1w") == image.suffix
