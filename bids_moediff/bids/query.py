# SPDX-License-Identifier: Apache-2.0
"""The filter file: pybids queries by suffix, in the format that fMRIPrep reads.

``{"t1w": {"session": "02", "acquisition": null}, "t2w": {"run": 1}}``: keys of the first level are
suffixes in lower case, of the second pybids entities. ``null`` means that the entity must be
absent, ``"*"`` that it must be present.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError, closest
from bids_moediff.options import ANATOMICAL_SUFFIXES
from bids_moediff.settings import Settings

FilterQueries = Mapping[str, Mapping[str, Any]]
# Queries of other pipelines: a file written for all of them is read, these are passed over.
FOREIGN_QUERIES = ("bold", "sbref", "fmap", "dwi", "asl", "m0scan", "roi", "pet", "mp2rage")
ENTITIES = (
    "session", "sample", "acquisition", "ceagent", "staining", "tracer", "reconstruction",
    "direction", "run", "echo", "flip", "inv", "mt", "part", "chunk", "proc", "modality",
    "space", "datatype", "suffix", "extension",
)  # fmt: skip


def load_filters(path: Path | None) -> FilterQueries:
    """Queries by lower-case suffix; empty without a file.

    Raises
    ------
    UsageError
        for a file that cannot be read and for unknown keys, with the closest known one.
    """
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the filter file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"The filter file {path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"The filter file {path} must hold an object of queries.")
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
    from bids.layout import Query

    if entity not in ENTITIES:
        raise UsageError(f"{entity!r} in {path} is not an entity{closest(entity, ENTITIES)}.")
    if value is None:
        return Query.NONE
    if value == "*":
        return Query.ANY
    words = value if isinstance(value, list) else [value]
    if not words or any(isinstance(w, bool) or not isinstance(w, (str, int)) for w in words):
        raise UsageError(f"The value of {entity!r} in {path} must be text, a number or a list.")
    return value


def filters_in_force(settings: Settings) -> str:
    """The options that narrow the selection, in words."""
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
