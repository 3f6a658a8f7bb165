# SPDX-License-Identifier: Apache-2.0
"""Read the filter file: pybids queries by suffix, in the format of fMRIPrep.

``{"t1w": {"session": "02", "acquisition": null}, "t2w": {"run": 1}}``: keys of the first level are
suffixes in lower case, of the second pybids entities. ``null`` means that the entity must be
absent, ``"*"`` that it must be present; the items of a list are alternatives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError, closest
from bids_moediff.options import ANATOMICAL_SUFFIXES, DEFAULT_SUFFIXES
from bids_moediff.runtime.given_files import read_json
from bids_moediff.settings import Settings

FilterQueries = Mapping[str, Mapping[str, Any]]
# Queries of other pipelines: a file written for all of them is read, these are passed over.
FOREIGN_QUERIES = ("bold", "sbref", "fmap", "dwi", "asl", "m0scan", "roi", "pet")
# Names that pybids gives to what stands in a file name in short.
LONG_NAMES = {
    "sub": "subject", "ses": "session", "acq": "acquisition", "ce": "ceagent",
    "trc": "tracer", "stain": "staining", "rec": "reconstruction", "dir": "direction",
    "mod": "modality",
}  # fmt: skip
LEFT_OUT = "left out by"
ENTITIES = (
    "subject", "session", "sample", "task", "tracksys", "acquisition", "ceagent", "staining",
    "tracer", "reconstruction", "direction", "run", "echo", "flip", "inv", "mt", "part", "chunk",
    "proc", "modality", "recording", "space", "datatype", "suffix", "extension",
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """The parts of a file name."""

    entities: Mapping[str, str]
    suffix: str
    extension: str

    def in_full(self) -> dict[str, str]:
        """Return the entities by their pybids names, with suffix, extension and data type."""
        entities = {LONG_NAMES.get(key, key): value for key, value in self.entities.items()}
        extra = {"suffix": self.suffix, "extension": self.extension, "datatype": "anat"}
        return entities | extra


def load_filters(path: Path | None) -> FilterQueries:
    """Return queries by lower-case suffix; empty without a file.

    Raises
    ------
    UsageError
        For a file that cannot be read and for unknown keys; the message names the closest known
        one.
    """
    if path is None:
        return {}
    try:
        content = read_json(path)
    except OSError as error:
        raise UsageError(f"Cannot read the filter file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"The filter file {path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The filter file {path} must be a JSON object of queries.")
    known = [suffix.lower() for suffix in ANATOMICAL_SUFFIXES]
    queries: dict[str, dict[str, Any]] = {}
    for key, query in content.items():
        if key in FOREIGN_QUERIES:
            continue
        if key not in known:
            raise UsageError(f"{key!r} in {path} is not a query{closest(key, known)}.")
        if not isinstance(query, dict):
            raise UsageError(f"The query {key!r} in {path} must be an object.")
        queries[key] = {entity: _value(entity, query[entity], path) for entity in query}
    return queries


def _value(entity: str, value: Any, path: Path) -> Any:
    if entity not in ENTITIES:
        raise UsageError(f"{entity!r} in {path} is not an entity{closest(entity, ENTITIES)}.")
    words = value if isinstance(value, list) else [value]
    if not words or any(
        isinstance(w, bool) or not isinstance(w, (str, int, type(None))) for w in words
    ):
        raise UsageError(
            f"The value of {entity!r} in {path} must be text, a whole number, null or a list of "
            "these."
        )
    return words


def why_not(
    name: Name, settings: Settings, queries: FilterQueries, suffix_only: bool = False
) -> str:
    """Return the reason why an image is not taken, as words to count; empty if it is.

    Parameters
    ----------
    name
        File name of the image.
    settings
        Requested contrasts and sessions.
    queries
        From :func:`load_filters`; a query replaces its suffix.
    suffix_only
        Whether only the contrast is checked.
    """
    suffixes = settings.modalities or DEFAULT_SUFFIXES
    plain = [suffix for suffix in suffixes if suffix.lower() not in queries]
    own = [
        {"suffix": [suffix], **queries[suffix.lower()]}
        for suffix in suffixes
        if suffix not in plain
    ]
    full = name.in_full()
    asked = [query for query in own if _matches("suffix", query["suffix"], full)]
    if name.suffix not in plain and not asked:
        if name.suffix not in ANATOMICAL_SUFFIXES:
            return f"{name.suffix} (not offered)"
        if settings.modalities:
            return f"{name.suffix} ({LEFT_OUT} --modalities)"
        return f"{name.suffix} (to be had with --modalities {name.suffix})"
    if suffix_only:
        return ""
    if settings.session_label and name.entities.get("ses") not in settings.session_label:
        return f"{name.suffix} ({LEFT_OUT} --session-label)"
    if name.suffix in plain or any(
        all(_matches(key, query[key], full) for key in query) for query in asked
    ):
        return ""
    return f"{name.suffix} ({LEFT_OUT} --bids-filter-file)"


def _matches(entity: str, values: list[Any], full: Mapping[str, str]) -> bool:
    """Return True if one of the values of a query matches, by the rules of pybids."""
    found = full.get(entity)
    return any(
        found is None if value is None else found is not None and _equal(entity, value, found)
        for value in values
    )


def _equal(entity: str, value: str | int, found: str) -> bool:
    """Compare text, but runs as numbers and file extensions with or without their first dot."""
    if value == "*":
        return True
    word = str(value)
    if entity == "run" and word.isdecimal() and found.isdecimal():
        return int(word) == int(found)
    if entity == "extension":
        return word.lstrip(".") == found.lstrip(".")
    return word == found


def filters_in_force(settings: Settings) -> str:
    """Return the options that restrict the selection, in words."""
    named = (
        "participant_label",
        "exclude_participant_label",
        "session_label",
        "modalities",
        "bids_filter_file",
    )
    parts = []
    for name in named:
        value = getattr(settings, name)
        if value:
            words = " ".join(value) if isinstance(value, tuple) else str(value)
            parts.append(f"--{name.replace('_', '-')} {words}")
    return ", ".join(parts) or "none"
