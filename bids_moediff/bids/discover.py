# SPDX-License-Identifier: Apache-2.0
"""Which images there are: one participant at a time, indexed by pybids in memory.

Only the sidecars at the root of the data set and the ``anat`` folders of the participant asked for
are looked at. So the time does not depend on the size of the data set, and a file of another
participant that is missing, dangling or not fetched never matters.
"""

import os
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from bids_moediff.bids.groups import find_groups
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.names import RESERVED, parse_name
from bids_moediff.bids.query import FilterQueries, filters_in_force, load_filters
from bids_moediff.bids.statements import Sidecars
from bids_moediff.errors import (
    ImageError,
    MoediffError,
    NothingToProcessError,
    UsageError,
    closest,
)
from bids_moediff.options import ANATOMICAL_SUFFIXES, DEFAULT_SUFFIXES
from bids_moediff.settings import Settings

if TYPE_CHECKING:
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

__all__ = [
    "AnatomicalImage",
    "Participant",
    "discover_participant",
    "find_participants",
    "nothing_to_process",
    "require_an_image",
]
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
# What BIDS allows for anatomical images; with any other entity the outputs would be invalid.
ANATOMICAL_ENTITIES = frozenset(
    {"sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "chunk"}
)


def with_others(settings: Settings, participant: Participant) -> Participant:
    """Return a participant with all images, of any session and contrast, that may guide one."""
    wide = replace(
        settings, modalities=ANATOMICAL_SUFFIXES, session_label=(), bids_filter_file=None
    )
    return replace(participant, others=discover_participant(wide, participant.label).images)


def find_participants(settings: Settings) -> list[str]:
    """Labels of the participants to process, sorted.

    With ``--participant-label`` the root folder is not even listed, unless a label is wrong.

    Raises
    ------
    UsageError
        for a label that is not there, with the closest one that is.
    NothingToProcessError
        if no participant is left.
    """
    present: set[str] = set()
    asked = settings.participant_label
    if not asked:
        present = _participant_folders(settings.bids_dir)
    for label in (*asked, *settings.exclude_participant_label):
        if os.path.lexists(settings.bids_dir / f"sub-{label}"):
            continue
        present = present or _participant_folders(settings.bids_dir)
        count = f"it has {len(present)} participants" if present else "it has no sub- folder"
        raise UsageError(
            f"There is no sub-{label} in the data set{closest(label, present)}; {count}."
        )
    labels = (set(asked) or present) - set(settings.exclude_participant_label)
    if not labels:
        raise NothingToProcessError(
            f"No participant (folder sub-*) to process in {settings.bids_dir}; "
            f"filters in force: {filters_in_force(settings)}."
        )
    return sorted(labels)


def _participant_folders(root: Path) -> set[str]:
    with os.scandir(root) as entries:
        return {
            entry.name[4:]
            for entry in entries
            if entry.name.startswith("sub-") and (entry.is_symlink() or entry.is_dir())
        }


def discover_participant(settings: Settings, label: str) -> Participant:
    """Images of one participant, in the order of their names.

    Raises
    ------
    ImageError
        if the participant's folder is a dangling link or cannot be read, or for anything that was
        not foreseen: it costs this participant, not the run.
    UsageError
        for a wrong filter file or a database of another data set.
    """
    queries = load_filters(settings.bids_filter_file)
    try:
        return _discover(settings, label, queries)
    except MoediffError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(f"The folder sub-{label} cannot be used ({reason}).") from error


def _discover(settings: Settings, label: str, queries: FilterQueries) -> Participant:
    folder = settings.bids_dir / f"sub-{label}"
    if not folder.is_dir():
        raise ImageError(
            f"sub-{label} is not a folder that can be read; if it is a link to data that are not "
            f"here, fetch them with: datalad get sub-{label}"
        )
    if settings.bids_database_dir is None:
        layout = _index_participant(settings.bids_dir, label)
    else:
        layout = _database(settings.bids_dir, settings.bids_database_dir)
    try:
        found = set(_query(layout, settings, label, queries))
    finally:
        # Without this a run over many participants keeps every one of their indices.
        layout.connection_manager.session.close()
        layout.connection_manager.engine.dispose()
    notices: list[str] = []
    sidecars = Sidecars(settings.bids_dir)
    images = tuple(_select(found, settings, sidecars, notices))
    groups, remarks = find_groups(images, settings.combine)
    notices = [*sidecars.remarks, *notices, *remarks]
    return Participant(label, images, tuple(notices), tuple(group.image for group in groups))


def require_an_image(settings: Settings, labels: Sequence[str]) -> None:
    """Make sure that there is something to do, looking no further than the first image.

    Raises
    ------
    NothingToProcessError
        if no participant has an image; with the filters in force.
    """
    for label in labels:
        try:
            if discover_participant(settings, label).images:
                return
        except ImageError:  # something to tell about, later and in its place
            return
    raise nothing_to_process(settings)


def nothing_to_process(settings: Settings) -> NothingToProcessError:
    """The error to raise when all participants together have no image, with the filters."""
    return NothingToProcessError(
        f"No image to process in {settings.bids_dir}; "
        f"filters in force: {filters_in_force(settings)}."
    )


def _relative(path: Path, settings: Settings) -> str:
    return path.relative_to(settings.bids_dir).as_posix()


# What pybids must not look at, as patterns of paths relative to the root.
IGNORED = [
    re.compile(pattern)
    for pattern in (
        r"^/(?!sub-)[^/]+/",
        r"/\.",
        r"\.json$",
        r"^/(code|derivatives|sourcedata|stimuli|models)$",
        r"^/sub-[^/]+/(?!ses-[^/]+$|ses-[^/]+/|anat$|anat/)",
        r"^/sub-[^/]+/ses-[^/]+/(?!anat$|anat/)",
        r"/anat/[^/]+/",  # a link that leads back would go on for ever
    )
]


class _BelowRoot:
    """An entity of pybids that looks at the path below the root of the data set alone.

    pybids searches the whole path, so that a data set in ``/scratch/sub-01/`` would have images
    of that participant only.
    """

    def __init__(self, entity: Any, root: Path) -> None:
        self.entity, self.root = entity, root
        self.name, self.mandatory, self._dtype = entity.name, entity.mandatory, entity._dtype

    def match_file(self, file: Any) -> Any:
        """Return the value of the entity in the path of a file; None without one."""
        relative = Path(file.path).relative_to(self.root).as_posix()
        return self.entity.match_file(SimpleNamespace(path=f"/{relative}"))


def _indexer(root: Path, label: str | None = None) -> "BIDSLayoutIndexer":
    """What lists the images of a data set, or of one participant only.

    Ignoring the other participants by pattern would still test each of their names: 12 s in a
    data set of 100,000.
    """
    from bids.layout import BIDSLayoutIndexer

    class Indexer(BIDSLayoutIndexer):
        """Goes from the root straight to one participant, and reads no sidecar."""

        def _index_dir(self, path: Any, config: Any, force: Any = None) -> tuple[list, list]:
            if label is not None and Path(str(path)) == root:
                path = path / f"sub-{label}"
            return super()._index_dir(path, config, force)

        def _index_file(self, abs_fn: Any, entities: Any) -> tuple[Any, list]:
            below = {name: _BelowRoot(item, root) for name, item in entities.items()}
            return super()._index_file(abs_fn, below)

    return Indexer(validate=False, ignore=IGNORED, index_metadata=False)


def _index_participant(root: Path, label: str) -> "BIDSLayout":
    """Layout in memory with the images in the participant's ``anat`` folders."""
    from bids.layout import BIDSLayout

    return BIDSLayout(root, validate=False, indexer=_indexer(root, label))


def _database(root: Path, folder: Path) -> "BIDSLayout":
    """Layout from a database on disk; made for the whole data set if it is not there.

    It is made under another name and renamed, so jobs that start together do not tear it.
    """
    from bids.layout import BIDSLayout

    if not folder.is_dir() or not any(folder.iterdir()):
        temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
        folder.parent.mkdir(parents=True, exist_ok=True)
        layout = BIDSLayout(root, validate=False, indexer=_indexer(root), database_path=temporary)
        layout.connection_manager.engine.dispose()
        try:
            temporary.replace(folder)
        except OSError:  # another job was faster
            for file in temporary.iterdir():
                file.unlink()
            temporary.rmdir()
    layout = BIDSLayout(root, validate=False, database_path=folder)
    if Path(layout.root).resolve() != root.resolve():
        raise UsageError(
            f"The database {folder} was made for another data set, {layout.root}; "
            "give another --bids-database-dir or delete it."
        )
    return layout


def _query(
    layout: "BIDSLayout", settings: Settings, label: str, queries: FilterQueries
) -> Iterator[Path]:
    """Path of each image: one query, and one for each suffix with a filter."""
    query: dict[str, Any] = {"datatype": "anat", "extension": [*IMAGE_EXTENSIONS]}
    if settings.session_label:
        query["session"] = [*settings.session_label]
    suffixes = settings.modalities or DEFAULT_SUFFIXES
    plain = [suffix for suffix in suffixes if suffix.lower() not in queries]
    parts = [{**query, "suffix": plain}] if plain else []
    for suffix in suffixes:
        if suffix not in plain:
            parts.append({**query, "suffix": suffix, **queries[suffix.lower()]})
    for part in parts:
        for file in layout.get(subject=label, **part):
            yield Path(file.path)


def _select(
    found: AbstractSet[Path], settings: Settings, sidecars: Sidecars, notices: list[str]
) -> Iterator[AnatomicalImage]:
    """Images that can be super-resolved; a remark for each of the others."""
    for path in sorted(found):
        relative = _relative(path, settings)
        try:
            entities, suffix, _ = parse_name(path.name)
            reason = _why_left_out(path, relative, found)
        except ImageError as error:
            notices.append(f"{relative} is left out: {error}")
            continue
        if reason is not None:
            notices.append(f"{relative} is left out: {reason}.")
            continue
        metadata, problem = {}, None
        try:
            metadata = sidecars.of_image(path, entities, suffix)
            problem = _problem(path, relative)
        except Exception as error:  # whatever it is, it costs this image alone
            problem = f"{relative} cannot be used ({type(error).__name__}: {error})."
        yield AnatomicalImage(path, relative, entities, suffix, metadata, problem)


def _why_left_out(path: Path, relative: str, found: AbstractSet[Path]) -> str | None:
    """Why a file that looks like an image is not processed; None if it is."""
    entities, suffix, extension = parse_name(path.name)
    if extension == ".nii" and path.with_name(f"{path.name}.gz") in found:
        return "there is a .nii.gz of the same name"
    if derived := RESERVED & set(entities):
        return f"it is a derivative ({min(derived)}-)"
    if entities.get("part", "mag") != "mag":
        return f"part-{entities['part']} is not a magnitude image"
    if foreign := set(entities) - ANATOMICAL_ENTITIES:
        return f"BIDS knows no {min(foreign)}- for anatomical images"
    if suffix not in ANATOMICAL_SUFFIXES:
        return f"{suffix} is not an anatomical contrast"
    named = [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities]
    folder = relative.split("/")[:-2]
    if named != folder:
        return f"its name says {'/'.join(named)}, its folder {'/'.join(folder)}"
    root = path.parents[len(folder) + 1].resolve()
    target = path.resolve()
    owner = target.relative_to(root).parts[0] if target.is_relative_to(root) else ""
    if owner.startswith("sub-") and owner != folder[0]:
        return f"it is a link to an image of {owner}"
    return None


def _problem(path: Path, relative: str) -> str | None:
    """Why a file cannot be read, as far as its directory entry and first bytes tell."""
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
