# SPDX-License-Identifier: Apache-2.0
"""Find the images of a data set, one participant at a time.

Only the ``anat`` folders of the requested participant are listed, and only the sidecars of its
images are read. So the time does not depend on the size of the data set, and a missing, dangling
or unfetched file of another participant never matters. A pybids database, if given, lists the
files.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_moediff.bids.groups import find_groups
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.listing import IMAGE_EXTENSIONS, list_participant, readable
from bids_moediff.bids.names import RESERVED, parse_name
from bids_moediff.bids.query import FilterQueries, Name, filters_in_force, load_filters, why_not
from bids_moediff.bids.statements import Sidecars
from bids_moediff.errors import (
    ImageError,
    MoediffError,
    NothingToProcessError,
    UsageError,
    closest,
)
from bids_moediff.options import ANATOMICAL_SUFFIXES
from bids_moediff.runtime.text import counted
from bids_moediff.settings import Settings

__all__ = [
    "AnatomicalImage",
    "Participant",
    "discover_participant",
    "find_participants",
    "is_label",
    "nothing_to_process",
    "participant_folders",
    "require_an_image",
    "words_on_passed",
]
# What BIDS allows for anatomical images; with any other entity the outputs would be invalid.
ANATOMICAL_ENTITIES = frozenset(
    {"sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk"}
)
# And for sets of images from which maps are computed.
SERIES_ENTITIES = ANATOMICAL_ENTITIES | {"flip", "inv", "mt"}
SERIES = ("MESE", "MEGRE", "MP2RAGE", "MPM", "VFA", "MTS", "MTR", "IRT1")
NEAR_PARTICIPANT = re.compile(r"(?!sub-)(?i:sub|subj|subject)[-_ ]?[A-Za-z]{0,3}\d\S*")
MOST_REMARKS = 10  # where nothing is to be done
RAW_FOLDERS = ("sourcedata/raw", "rawdata", "raw", "sourcedata", "bids")


def with_others(settings: Settings, participant: Participant) -> Participant:
    """Return a participant with all images that may guide one, of any session and contrast."""
    wide = replace(
        settings, modalities=ANATOMICAL_SUFFIXES, session_label=(), bids_filter_file=None
    )
    return replace(participant, others=discover_participant(wide, participant.label).images)


def find_participants(settings: Settings) -> list[str]:
    """Return the labels of the participants to process, sorted.

    With ``--participant-label`` the root folder is not listed, unless a label is wrong.

    Raises
    ------
    UsageError
        For a label that does not exist; the message names the closest one.
    NothingToProcessError
        If no participant is left.
    """
    present: set[str] = set()
    asked = settings.participant_label
    if not asked:
        present = participant_folders(settings.bids_dir)
    for label in (*asked, *settings.exclude_participant_label):
        if os.path.lexists(settings.bids_dir / f"sub-{label}"):
            continue
        present = present or participant_folders(settings.bids_dir)
        count = counted(len(present), "participant") if present else "no sub- folder"
        raise UsageError(
            f"There is no sub-{label} in the data set{closest(label, present)}; it has {count}."
        )
    labels = (set(asked) or present) - set(settings.exclude_participant_label)
    if not labels:
        raise NothingToProcessError(
            f"No participant (folder sub-*) to process in {settings.bids_dir}; "
            f"filters in force: {filters_in_force(settings)}.{_raw_below(settings.bids_dir)}"
        )
    return sorted(labels)


def is_label(label: str) -> bool:
    """Return True if BIDS allows a label; folders with other names are left out of every run."""
    return re.fullmatch(r"[A-Za-z0-9+]+", label) is not None


def participant_folders(root: Path) -> set[str]:
    """Labels of all folders that may be a participant's."""
    with os.scandir(root) as entries:
        return {
            entry.name[4:]
            for entry in entries
            if entry.name.startswith("sub-") and (entry.is_symlink() or entry.is_dir())
        }


def near_participants(root: Path) -> list[str]:
    """Folders whose names are nearly those of participants, as text that can be printed."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
    return sorted(readable(name) for name in names if NEAR_PARTICIPANT.fullmatch(name))


def _raw_below(root: Path) -> str:
    """Return the folder with the participants, if this one is a study around the data set."""
    for name in RAW_FOLDERS:
        for folder in (root / name, *sorted((root / name).glob("*/"))):
            if next(folder.glob("sub-*"), None) is not None:
                where = readable(folder.relative_to(root).as_posix())
                return f" There are participants in {where}: give that folder as input."
    return ""


def discover_participant(
    settings: Settings, label: str, sidecars: Sidecars | None = None
) -> Participant:
    """Return the images of one participant, in the order of their names.

    Parameters
    ----------
    settings
        Options of the run.
    label
        Participant without ``sub-``.
    sidecars
        Sidecars read so far: those at the root of the data set apply to many participants.

    Raises
    ------
    ImageError
        If the participant's folder is a dangling link or cannot be read, and for any unexpected
        error: it stops this participant, not the run.
    UsageError
        For a wrong filter file or a database of another data set.
    """
    queries = load_filters(settings.bids_filter_file)
    try:
        return _discover(settings, label, queries, sidecars or Sidecars(settings.bids_dir))
    except MoediffError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(
            f"The folder sub-{readable(label)} cannot be used ({readable(reason)})."
        ) from error


def _discover(
    settings: Settings, label: str, queries: FilterQueries, sidecars: Sidecars
) -> Participant:
    folder, name = settings.bids_dir / f"sub-{label}", f"sub-{readable(label)}"
    if not is_label(label):
        words = f"{name} is left out: a label has letters and digits only."
        return Participant(label, (), (words,))
    if not folder.is_dir():
        raise ImageError(
            f"{name} is not a folder that can be read; if it is a link to data that are not "
            f"here, fetch them with: datalad get {name}"
        )
    listing = list_participant(settings.bids_dir, label)
    files = listing.images
    if settings.bids_database_dir is not None and not settings.dry_run:
        from bids_moediff.bids.database import images_in_database

        files = images_in_database(settings.bids_dir, settings.bids_database_dir, label)
    notices = list(listing.remarks)
    passed: Counter[str] = Counter()
    found = set(_wanted(files, settings, queries, notices, passed))
    images = tuple(_select(found, settings, sidecars, notices))
    groups, remarks = find_groups(images, settings.combine)
    of_sidecars = dict.fromkeys(words for image in images for words in image.remarks)
    return Participant(
        label,
        images,
        (*of_sidecars, *notices, *remarks),
        tuple(group.image for group in groups),
        passed=dict(passed),
        problems=tuple(listing.problems),
    )


def _wanted(
    files: Iterable[Path],
    settings: Settings,
    queries: FilterQueries,
    notices: list[str],
    passed: Counter[str],
) -> Iterator[Path]:
    """Return the files that pass the filters; each of the others is counted or gets a remark."""
    for path in files:
        relative = readable(_relative(path, settings))
        try:
            entities, suffix, extension = parse_name(path.name)
        except ImageError as error:
            if _asked_for(path.name, settings, queries):
                notices.append(f"{relative} is left out: {readable(error)}")
            continue
        if not (reason := why_not(Name(entities, suffix, extension), settings, queries)):
            if extension in IMAGE_EXTENSIONS:
                yield path
            else:  # x.nii.gz.nii: its outputs would have the names of those of x.nii.gz
                notices.append(f"{relative} is left out: {extension} is not .nii.gz or .nii.")
        elif near := _misspelt(suffix):
            notices.append(f"{relative} is left out: {suffix} is not a suffix{near}.")
        else:
            passed[reason] += 1


def _asked_for(name: str, settings: Settings, queries: FilterQueries) -> bool:
    """Return True if an unreadable name might be that of a requested image."""
    suffix = name.rsplit("_", 1)[-1].split(".")[0]
    known = suffix in ANATOMICAL_SUFFIXES
    return not known or not why_not(Name({}, suffix, ".nii"), settings, queries, suffix_only=True)


def _misspelt(suffix: str) -> str:
    """Suggest a suffix for one that BIDS does not define."""
    if suffix in ANATOMICAL_SUFFIXES or suffix in NOT_OFFERED:
        return ""
    return closest(suffix, ANATOMICAL_SUFFIXES, 0.6) or " of anatomical images"


# Suffixes of anatomical images in BIDS 1.11 that are no contrast to super-resolve.
NOT_OFFERED = (
    "defacemask", "M0map", "MTRmap", "MTVmap", "MTsat", "MWFmap", "R1map", "R2map", "R2starmap",
    "S0map", "Chimap", "T1rhomap", "TB1map", "RB1map",
)  # fmt: skip


def require_an_image(settings: Settings, labels: Sequence[str]) -> None:
    """Check that there is an image to process, looking no further than the first one.

    Raises
    ------
    UsageError
        For a session that no participant has.
    NothingToProcessError
        If no participant has an image; the message names the filters and the images that exist.
    """
    require_sessions(settings, labels)
    participants = []
    sidecars = Sidecars(settings.bids_dir)
    for label in labels:
        try:
            participant = discover_participant(settings, label, sidecars)
        except ImageError:  # something to tell about, later and in its place
            return
        if participant.images or participant.problems:
            return
        participants.append(participant)
    raise nothing_to_process(settings, participants)


def require_sessions(settings: Settings, labels: Sequence[str]) -> None:
    """Check that some participant has each requested session.

    Raises
    ------
    UsageError
        For a session that nobody has while others exist; the message names the closest one.
    """
    for session in settings.session_label:
        folders = (settings.bids_dir / f"sub-{label}" / f"ses-{session}" for label in labels)
        if any(os.path.lexists(folder) for folder in folders):
            continue
        present = {
            path.name[4:]
            for label in labels
            for path in (settings.bids_dir / f"sub-{label}").glob("ses-*")
        }
        if present:
            some = ", ".join(sorted(present)[:5]) + (", ..." if len(present) > 5 else "")
            raise UsageError(
                f"--session-label {session}: no participant has ses-{session}"
                f"{closest(session, present)}; sessions there: {readable(some)}."
            )


def nothing_to_process(
    settings: Settings, participants: Sequence[Participant] = ()
) -> NothingToProcessError:
    """Return the error for participants without any image.

    It names the filters, and the images that exist.
    """
    remarks = list(dict.fromkeys(words for item in participants for words in item.notices))
    if len(remarks) > MOST_REMARKS:
        remarks[MOST_REMARKS:] = [f"... and {len(remarks) - MOST_REMARKS} more remarks."]
    there = words_on_passed(participants)
    if not there and not remarks and participants:
        there = (
            f"{counted(len(participants), 'participant')}, none with an image in a folder anat."
        )
    return NothingToProcessError(
        f"No image to process in {settings.bids_dir}; "
        f"filters in force: {filters_in_force(settings)}.{f' {there}' if there else ''}",
        remarks,
    )


def words_on_passed(participants: Iterable[Participant]) -> str:
    """Return a sentence on images that filters or contrasts excluded; may be empty."""
    total: Counter[str] = Counter()
    for participant in participants:
        total.update(participant.passed)
    words = ", ".join(f"{count} {reason}" for reason, count in sorted(total.items()))
    return f"Not taken: {words}." if words else ""


def _relative(path: Path, settings: Settings) -> str:
    return path.relative_to(settings.bids_dir).as_posix()


def _select(
    found: AbstractSet[Path], settings: Settings, sidecars: Sidecars, notices: list[str]
) -> Iterator[AnatomicalImage]:
    """Return images that can be super-resolved; each of the others gets a remark."""
    for path in sorted(found):
        relative = _relative(path, settings)
        reason = _guarded(_why_left_out, path, relative, found)
        if reason is not None:
            notices.append(f"{relative} is left out: {reason}.")
            continue
        entities, suffix, _ = parse_name(path.name)
        metadata: dict[str, Any] = {}
        remarks: list[str] = []
        problem = None
        try:
            metadata, remarks = sidecars.of_image(path, entities, suffix)
            problem = _problem(path, relative)
        except Exception as error:  # whatever it is, it costs this image alone
            problem = f"{relative} cannot be used ({type(error).__name__}: {error})."
        yield AnatomicalImage(
            path, relative, entities, suffix, metadata, problem, remarks=tuple(remarks)
        )


def _guarded(check: Callable[..., str | None], *arguments: object) -> str | None:
    """Return the result of a check, or the error in it."""
    try:
        return check(*arguments)
    except Exception as error:
        return readable(f"{type(error).__name__}: {error}")


def _why_left_out(path: Path, relative: str, found: AbstractSet[Path]) -> str | None:
    """Return the reason why a file that looks like an image is not processed; None if it is."""
    entities, suffix, extension = parse_name(path.name)
    if extension == ".nii" and path.with_name(f"{path.name}.gz") in found:
        return "there is a .nii.gz of the same name"
    if derived := RESERVED & set(entities):
        return f"it is a derivative ({min(derived)}-)"
    if entities.get("part", "mag") != "mag":
        return f"part-{entities['part']} is not a magnitude image"
    allowed = SERIES_ENTITIES if suffix in SERIES else ANATOMICAL_ENTITIES
    if foreign := set(entities) - allowed:
        return f"BIDS knows no {min(foreign)}- for {suffix} images"
    if suffix not in ANATOMICAL_SUFFIXES:
        return f"{suffix} is not an anatomical contrast"
    named = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    folder = relative.split("/")[:-2]
    if named != folder:
        return f"its name says {'/'.join(named)}, its folder {'/'.join(folder)}"
    root = path.parents[len(folder) + 1].resolve()
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # before and from Python 3.13
        return "it is a link that leads back to itself"
    owner = target.relative_to(root).parts[0] if target.is_relative_to(root) else ""
    if owner.startswith("sub-") and owner != folder[0]:
        return f"it is a link to an image of {owner}"
    return None


def _problem(path: Path, relative: str) -> str | None:
    """Return why a file cannot be read, by its directory entry and first bytes."""
    fetch = f"its content is not here; fetch it with: datalad get {relative}"
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            return f"{relative} is not a regular file."
        with path.open("rb") as stream:
            start = stream.read(32)
    except FileNotFoundError:
        return f"{relative} is a dangling link: {fetch}"
    except OSError as error:
        return f"{relative} cannot be read: {error.strerror}."
    if start.startswith(b"/annex/objects/"):
        return f"{relative} is a git-annex pointer: {fetch}"
    return None if start else f"{relative} is empty."
