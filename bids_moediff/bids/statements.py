# SPDX-License-Identifier: Apache-2.0
"""Read the statements of sidecars about an image; an unusable one is left out alone.

pybids reads every JSON file of a folder and raises at the first odd one, for all images. So the
files are read here, one at a time, and merged by the inheritance principle.
"""

import codecs
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_moediff.bids.query import ENTITIES

DEEPEST = 20
MOST_BYTES = 1 << 24  # of one sidecar
LONGEST_INTEGER = 300  # digits; a longer one does not fit into a float
# Statements that are computed with, with the values that can be: mm, mm, s, s.
NUMBERS = {
    "SliceThickness": (0.05, 100.0),
    "SpacingBetweenSlices": (0.05, 100.0),
    "EchoTime": (0.0, 100.0),
    "InversionTime": (0.0, 100.0),
}
KINDS = ("2D", "3D")  # of MRAcquisitionType, in any case and with spaces around
DIRECTIONS = ("i", "j", "k", "i-", "j-", "k-")  # of SliceEncodingDirection
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Sidecars:
    """Sidecars of a data set, each read once.

    Those of one participant are dropped when the next one is read.

    Parameters
    ----------
    root
        Root of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._subject = ""
        self._names: dict[Path, list[str]] = {}
        self._contents: dict[Path, tuple[dict[str, Any], list[str]]] = {}

    def of_image(
        self, path: Path, entities: Mapping[str, str], suffix: str
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the statements on one image; those nearer to it override those at the root.

        Returns
        -------
        statements
            Usable statements.
        remarks
            One sentence for each sidecar or statement that cannot be used.
        """
        merged: dict[str, Any] = {}
        remarks: list[str] = []
        folder = self.root
        parts = path.relative_to(self.root).parts[:-1]
        if parts[0] != self._subject:
            self._subject = parts[0]
            self._names = {key: self._names[key] for key in self._names if key == self.root}
            self._contents = {
                key: self._contents[key] for key in self._contents if key.parent == self.root
            }
        for part in ("", *parts):
            folder = folder / part
            stated: dict[str, tuple[str, Any]] = {}
            for name in self._applicable(folder, entities, suffix):
                statements, words = self._read(folder / name)
                remarks += words
                remarks += _contradictions(stated, name, statements)
                merged |= statements
        return merged, remarks

    def _applicable(self, folder: Path, entities: Mapping[str, str], suffix: str) -> list[str]:
        """Return the sidecars in a folder that apply to an image, the most general first."""
        if folder not in self._names:
            self._names[folder] = _json_names(folder)
        found = []
        own = {f"{key}-{value}" for key, value in entities.items()}
        for name in self._names[folder]:
            *parts, last = name.removesuffix(".json").split("_")
            if last == suffix and own.issuperset(parts):
                found.append((len(parts), name))
        return [name for _, name in sorted(found)]

    def _read(self, path: Path) -> tuple[dict[str, Any], list[str]]:
        if path not in self._contents:
            where = path.relative_to(self.root).as_posix()
            self._contents[path] = read_statements(path, where)
        return self._contents[path]


def _contradictions(
    stated: dict[str, tuple[str, Any]], name: str, statements: Mapping[str, Any]
) -> list[str]:
    """Remarks on two sidecars of one folder, neither more special than the other.

    ``stated`` holds name and value of each statement so far, and is brought up to date.
    """
    remarks = []
    for key, value in statements.items():
        other, before = stated.get(key, (name, value))
        special = set(other.split("_")[:-1]) <= set(name.split("_")[:-1])
        if before != value and not special:
            remarks.append(f"{other} and {name} differ in {_quote(key)}; {name} counts.")
        stated[key] = (name, value)
    return remarks


def _json_names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".json"))
    except OSError:  # images in it cannot be read either, and say so
        return []


def read_statements(path: Path, where: str) -> tuple[dict[str, Any], list[str]]:
    """Read one sidecar.

    Parameters
    ----------
    path
        JSON file.
    where
        Its name in remarks.

    Returns
    -------
    statements
        Usable statements; empty if the file cannot be read.
    remarks
        One sentence for the file or for each statement that was left out.
    """
    if path.is_symlink() and not path.exists():
        return {}, [f"{where} is left out: its content is not here (datalad get {where})."]
    if not path.is_file():
        return {}, [f"{where} is left out: it is not a regular file."]
    twice: list[str] = []
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            return {}, [f"{where} is left out: it has {size:,} bytes, more than any sidecar."]
        text, encoding = _decode(path.read_bytes())
        content = json.loads(
            text, parse_int=_integer, object_pairs_hook=lambda pairs: _object(pairs, twice)
        )
    except OSError as error:
        return {}, [f"{where} is left out: {error.strerror}."]
    except (ValueError, RecursionError):
        return {}, [f"{where} is left out: it is not readable JSON."]
    if not isinstance(content, dict):
        return {}, [f"{where} is left out: it is not a JSON object of statements."]
    statements, remarks = {}, []
    if encoding == "latin-1":
        remarks.append(f"{where} is not UTF-8 text; it was read as Latin-1.")
    remarks += [f"{where} states {_quote(key)} twice; the last one counts." for key in twice]
    for key, value in content.items():
        if reason := _reason(key, value):
            remarks.append(f"{where}: {_quote(key)} is left out: {reason}.")
        else:
            statements[key] = _kind(value) if key == "MRAcquisitionType" else value
    return statements, remarks


def _decode(raw: bytes) -> tuple[str, str]:
    """Return text of a file and its encoding: UTF-8, else that of old converters."""
    encoding = next((name for mark, name in ENCODINGS.items() if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding), encoding
    except UnicodeDecodeError:
        return raw.decode("latin-1"), "latin-1"


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    """The object of its members; a key that it has twice with two values is noted."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            twice.append(key)
        found[key] = value
    return found


def _kind(value: Any) -> Any:
    """``2D`` for ``2d `` too: DICOM pads texts with spaces."""
    return value.strip().upper() if isinstance(value, str) else value


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else math.inf


def _reason(key: str, value: Any) -> str | None:
    """Return why a statement cannot be used, or an empty text."""
    found = _unusable(value) if _writable(key) else None
    if found is None:
        return "it holds characters that cannot be written"
    if found:
        return found
    if key == "subject" or key in ENTITIES:
        return f"{_quote(value)} belongs into the file name, which counts"
    if key in NUMBERS:
        low, high = NUMBERS[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            return f"{_quote(value)} is not a number from {low:g} to {high:g}"
    if key == "MRAcquisitionType" and _kind(value) not in KINDS:
        return f"{_quote(value)} is neither 2D nor 3D"
    if key == "SliceEncodingDirection" and value not in DIRECTIONS:
        return f"{_quote(value)} is not one of {', '.join(DIRECTIONS)}"
    return None


def _unusable(value: Any, depth: int = 0) -> str | None:
    """Return why JSON cannot hold a value: empty if it can, None for unwritable characters."""
    if depth > DEEPEST:
        return f"it is nested more than {DEEPEST} deep"
    if isinstance(value, float) and not math.isfinite(value):
        return "it holds a value that is not a finite number"
    if isinstance(value, str):
        return "" if _writable(value) else None
    parts: list[Any] = []
    if isinstance(value, list):
        parts = value
    elif isinstance(value, dict):
        parts = [*value, *value.values()]
    for part in parts:
        if (found := _unusable(part, depth + 1)) != "":
            return found
    return ""


def _writable(text: str) -> bool:
    """Return True if UTF-8 has the characters (it has no lone surrogates)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _quote(value: Any) -> str:
    """Return a value of a sidecar for a sentence: short and without control characters."""
    words = ascii(value) if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= 60 else f"{words[:57]}..."
