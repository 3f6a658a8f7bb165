# SPDX-License-Identifier: Apache-2.0
"""List the names below a participant's folder: images, and names that nearly match.

Only folders are listed and no file is opened: 2,000 participants take a second, and circular links
are not followed.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from bids_moediff.options import ANATOMICAL_SUFFIXES

IMAGE_EXTENSIONS = (".nii.gz", ".nii")
# Endings (in lower case) of images that the app does not read.
OTHER_EXTENSIONS = (
    ".nii", ".nii.gz", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".mgz", ".mgh", ".mnc",
    ".mnc.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd",
)  # fmt: skip
LIKE_ANAT = ("anat", "anats", "anatomy", "anatomical", "struct", "structural", "t1", "t1w")


@dataclass
class Listing:
    """Files of one participant.

    Parameters
    ----------
    images
        NIfTI files in the ``anat`` folders, sorted.
    remarks
        One sentence for each file or folder whose name nearly matches.
    problems
        One sentence for each folder that cannot be listed.
    """

    images: list[Path] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def readable(text: object) -> str:
    """Return text that can be printed and written: other characters as escapes.

    Names on disk may have line feeds, and bytes that are not UTF-8 (as lone surrogates).
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def image_extension(name: str) -> str:
    """Return ``.nii.gz`` or ``.nii``; empty for any other name."""
    return next((end for end in IMAGE_EXTENSIONS if name.endswith(end)), "")


def list_participant(root: Path, label: str) -> Listing:
    """List the ``anat`` folders of one participant.

    Parameters
    ----------
    root
        Root of the data set.
    label
        Participant without ``sub-``.
    """
    found = Listing()
    subject = root / f"sub-{label}"
    sessions = [subject]
    for name in _list_outer(subject, root, found):
        if name.startswith("ses-"):
            sessions.append(subject / name)
            _list_outer(subject / name, root, found)
    for folder in sessions:
        _list_anat(folder / "anat", root, found)
    found.images.sort()
    return found


def _list_outer(folder: Path, root: Path, found: Listing) -> list[str]:
    """Return the folders in a participant's or session's folder; near matches get a remark."""
    folders = []
    for name, is_folder in _entries(folder, root, found):
        where = readable((folder / name).relative_to(root).as_posix())
        if not is_folder:
            if image_extension(name) and _last(name) in ANATOMICAL_SUFFIXES:
                found.remarks.append(f"{where} is left out: images lie in a folder anat.")
        elif name != "anat" and name.lower() in LIKE_ANAT:
            found.remarks.append(f"{where} is not looked at: BIDS calls this folder anat.")
        elif name.startswith("ses") and not re.fullmatch(r"ses-[A-Za-z0-9+]+", name):
            found.remarks.append(f"{where} is not looked at: a session is ses-LABEL.")
        else:
            folders.append(name)
    return folders


def _list_anat(folder: Path, root: Path, found: Listing) -> None:
    for name, is_folder in _entries(folder, root, found):
        if image_extension(name) and not name.startswith("."):
            if not is_folder:
                found.images.append(folder / name)
                continue
            where = readable((folder / name).relative_to(root).as_posix())
            found.remarks.append(f"{where} is left out: it is a folder.")
        elif not is_folder and not name.startswith("."):
            low = name.lower()
            if low.endswith(".json") and not name.endswith(".json"):
                where = readable((folder / name).relative_to(root).as_posix())
                found.remarks.append(f"{where} is left out: {name[-5:]} is not .json.")
            if ending := max((end for end in OTHER_EXTENSIONS if low.endswith(end)), default=""):
                where = readable((folder / name).relative_to(root).as_posix())
                found.remarks.append(
                    f"{where} is left out: {name[-len(ending) :]} is not .nii.gz or .nii."
                )


def _entries(folder: Path, root: Path, found: Listing) -> list[tuple[str, bool]]:
    """Return names, and whether each is a folder (or a link to one), sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, _is_folder(entry)) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        where = readable(folder.relative_to(root).as_posix())
        found.problems.append(f"The folder {where} cannot be read: {error.strerror}.")
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _last(name: str) -> str:
    """The part of a name behind the last underscore, without extension."""
    return name.rsplit("_", 1)[-1].split(".")[0]
