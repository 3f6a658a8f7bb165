# SPDX-License-Identifier: Apache-2.0
"""Which images there are: one participant at a time, indexed by pybids in memory.

Only the sidecars at the root of the data set and the ``anat`` folders of the participant asked for
are looked at. So the time does not depend on the size of the data set, and a file of another
participant that is missing, dangling or not fetched never matters.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.names import RESERVED, parse_name
from bids_moediff.bids.query import FilterQueries, filters_in_force, load_filters
from bids_moediff.errors import ImageError, NothingToProcessError, UsageError, closest
from bids_moediff.options import ANATOMICAL_SUFFIXES, DEFAULT_SUFFIXES
from bids_moediff.settings import Settings

if TYPE_CHECKING:
    from bids.layout import BIDSLayout

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
        if the participant's folder is a dangling link or cannot be read.
    UsageError
        for a wrong filter file or a database of another data set.
    """
    folder = settings.bids_dir / f"sub-{label}"
    if not folder.is_dir():
        raise ImageError(
            f"sub-{label} is not a folder that can be read; if it is a link to data that are not "
            f"here, fetch them with: datalad get sub-{label}"
        )
    notices: list[str] = []
    queries = load_filters(settings.bids_filter_file)
    if settings.bids_database_dir is None:
        shared = [settings.bids_dir / name for name in _json_names(settings.bids_dir)]
        broken = [path for path in (*shared, *_sidecars(folder)) if not _is_json(path)]
        notices += [
            f"{_relative(path, settings)} is left out: it is not readable JSON." for path in broken
        ]
        layout = _index_participant(settings.bids_dir, label, shared, broken)
    else:
        layout = _database(settings.bids_dir, settings.bids_database_dir)
    try:
        found = dict(_query(layout, settings, label, queries))
    finally:
        # Without this a run over many participants keeps every one of their indices.
        layout.connection_manager.session.close()
        layout.connection_manager.engine.dispose()
    images = _select(found, settings, notices)
    return Participant(label, tuple(images), tuple(notices))


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


def _json_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(".json"))


def _sidecars(folder: Path) -> Iterator[Path]:
    """JSON files of a participant that may describe its anatomical images."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name.startswith("ses-") or name == "anat"]
        for name in files:
            if name.endswith(".json") and not name.startswith("."):
                yield Path(parent) / name


def _is_json(path: Path) -> bool:
    """Whether pybids would not stumble over it: dangling links and half files it would."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _ignore(root: Path, broken: list[Path]) -> list[re.Pattern[str]]:
    """What pybids must not look at, as patterns of paths relative to the root."""
    patterns = [r"^/(?!sub-)[^/]+/", r"/\.", r"^/(code|derivatives|sourcedata|stimuli|models)$"]
    patterns += [r"^/sub-[^/]+/(?!ses-[^/]+$|ses-[^/]+/|anat$|anat/|[^/]+\.json$)"]
    patterns += [r"^/sub-[^/]+/ses-[^/]+/(?!anat$|anat/|[^/]+\.json$)"]
    patterns += [f"^/{re.escape(path.relative_to(root).as_posix())}$" for path in broken]
    return [re.compile(pattern) for pattern in patterns]


def _index_participant(
    root: Path, label: str, shared: list[Path], broken: list[Path]
) -> "BIDSLayout":
    """Layout in memory with the root's sidecars and the participant's ``anat`` folders."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    class OneParticipant(BIDSLayoutIndexer):
        """Goes from the root straight to one participant.

        Ignoring the other participants by pattern would still test each of their names: 12 s in a
        data set of 100,000.
        """

        def _index_dir(self, path: Any, config: Any, force: Any = None) -> tuple[list, list]:
            if Path(str(path)) != root:
                return super()._index_dir(path, config, force)
            entities = {name: item for part in config for name, item in part.entities.items()}
            files, tags = super()._index_dir(path / f"sub-{label}", config)
            for sidecar in shared:
                if self._validate_file(path / sidecar.name):
                    file, file_tags = self._index_file(path / sidecar.name, entities)
                    files.append(file)
                    tags += file_tags
            return files, tags

    indexer = OneParticipant(validate=False, ignore=_ignore(root, broken))
    return BIDSLayout(root, validate=False, indexer=indexer)


def _database(root: Path, folder: Path) -> "BIDSLayout":
    """Layout from a database on disk; made for the whole data set if it is not there.

    It is made under another name and renamed, so jobs that start together do not tear it.
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    if not folder.is_dir() or not any(folder.iterdir()):
        sidecars = [path for sub in sorted(root.glob("sub-*")) for path in _sidecars(sub)]
        sidecars += [root / name for name in _json_names(root)]
        broken = [path for path in sidecars if not _is_json(path)]
        indexer = BIDSLayoutIndexer(validate=False, ignore=_ignore(root, broken))
        temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
        folder.parent.mkdir(parents=True, exist_ok=True)
        layout = BIDSLayout(root, validate=False, indexer=indexer, database_path=temporary)
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
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Path and merged sidecars of each image: one query, and one for each suffix with a filter."""
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
            yield Path(file.path), file.get_metadata()


def _select(
    found: Mapping[Path, Mapping[str, Any]], settings: Settings, notices: list[str]
) -> Iterator[AnatomicalImage]:
    """Images that can be super-resolved; a remark for each of the others."""
    for path in sorted(found):
        relative = _relative(path, settings)
        try:
            entities, suffix, extension = parse_name(path.name)
        except ImageError as error:
            notices.append(f"{relative} is left out: {error}")
            continue
        reason = None
        if extension == ".nii" and path.with_name(f"{path.name}.gz") in found:
            reason = "there is a .nii.gz of the same name"
        elif derived := RESERVED & set(entities):
            reason = f"it is a derivative ({min(derived)}-)"
        elif entities.get("part", "mag") != "mag":
            reason = f"part-{entities['part']} is not a magnitude image"
        elif foreign := set(entities) - ANATOMICAL_ENTITIES:
            reason = f"BIDS knows no {min(foreign)}- for anatomical images"
        elif suffix not in ANATOMICAL_SUFFIXES:
            reason = f"{suffix} is not an anatomical contrast"
        if reason is not None:
            notices.append(f"{relative} is left out: {reason}.")
            continue
        yield AnatomicalImage(
            path, relative, entities, suffix, found[path], _problem(path, relative)
        )


def _problem(path: Path, relative: str) -> str | None:
    """Why a file cannot be read, as far as its directory entry and first bytes tell."""
    fetch = f"its content is not here; fetch it with: datalad get {relative}"
    try:
        with path.open("rb") as stream:
            start = stream.read(32)
    except FileNotFoundError:
        return f"{relative} is a dangling link: {fetch}"
    except OSError as error:
        return f"{relative} cannot be read: {error.strerror}."
    if start.startswith(b"/annex/objects/"):
        return f"{relative} is a git-annex pointer: {fetch}"
    return None if start else f"{relative} is empty."
