# SPDX-License-Identifier: Apache-2.0
"""Write the group level: a table per contrast, and a page with outliers and missing participants.

All values of an image come from its sidecar in the output folder. So the tables can be made again
at any time and match the files on disk. Site and scanner come from the raw data set.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import build_name, figure_path, parse_name
from bids_moediff.quality.figures import DESCRIPTIONS
from bids_moediff.reports import captions
from bids_moediff.reports.participant import environment
from bids_moediff.reports.strips import FEWEST, Strip, choose, spread, strip
from bids_moediff.reports.study import GROUPING, read_participants, scanner
from bids_moediff.runtime.given_files import read_json
from bids_moediff.runtime.sink import table_text, write_json, write_text
from bids_moediff.runtime.text import visible

T = TypeVar("T")
MOST_GROUPS = 24  # values that a filter may offer
MOST_NAMED = 200  # participants or images that are named behind one sentence

# Columns from the record of the run: name, key of the sidecar, description.
RECORD_COLUMNS = (
    ("model", "Model", "name of the network"),
    ("model_version", "ModelVersion", "version of the network"),
    ("steps", "NumberOfSteps", "sampling steps"),
    ("samples", "NumberOfSamples", "samples drawn; their mean is the image"),
    ("seed", "RandomSeed", "seed of the random numbers"),
    ("device", "Device", "kind of device"),
    ("precision", "Precision", "arithmetic of the network"),
    ("consistency_residual", "ConsistencyResidual",
     "relative difference of the input and the result measured again with the input's voxels"),
    ("estimated_noise", "EstimatedNoise", "noise standard deviation used, in intensity units"),
)  # fmt: skip
WORDS = {"in": "the input", "measured": "the acquisition", "out": "the result"}
VOXEL_COLUMNS = (
    ("in", "InputVoxelSize"), ("measured", "AcquiredVoxelSize"), ("out", "OutputVoxelSize"),
)  # fmt: skip
STRIPS = (
    ("consistency_residual", "Consistency residual", ""),
    *captions.MAIN_FIGURES,
    ("usable_x", "Usable detail, first axis", "mm"),
    ("usable_y", "Usable detail, second axis", "mm"),
    ("usable_z", "Usable detail, third axis", "mm"),
)
SHOWN = ("consistency_residual", "snr_brain", "cnr", "cjv", "efc", "fwhm_avg", "brain_volume",
         "usable_x", "usable_y", "usable_z")  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Sentence that several entries share, their number, and the first names and pages."""

    words: str
    count: int
    names: list[tuple[str, str]]


@dataclass(frozen=True)
class Contrast:
    """Content of the page for images with one suffix; ``rows`` are those it lists."""

    suffix: str
    table: str
    columns: list[str]
    count: int
    rows: list[dict[str, Any]]
    groupings: list[str]
    strips: list[Strip] = field(default_factory=list)
    equal: list[tuple[str, str]] = field(default_factory=list)
    networks: list[tuple[str, int]] = field(default_factory=list)


def write_group_report(
    output_dir: Path,
    states: Mapping[str, Mapping[str, str]] | None = None,
    raw_dir: Path | None = None,
) -> Path:
    """Write ``group_<suffix>.tsv`` with ``.json``, and ``group.html``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    states
        Participant label to ``{"status": "done" | "failed" | "missing", "message": str}``; by
        default those found in the output folder, all done.
    raw_dir
        Root of the raw data set: site and scanner are read there.

    Returns
    -------
    Path
        The page.
    """
    root = Path(output_dir)
    rows, unreadable = read_rows(root, raw_dir)
    if states is None:
        labels = sorted({row["participant"] for found in rows.values() for row in found})
        states = {label: {"status": "done", "message": ""} for label in labels}
    contrasts = []
    for suffix, found in sorted(rows.items()):
        columns = _columns(found)
        write_text(table_text(found, columns), root / f"group_{suffix}.tsv")
        write_json(_descriptions(columns), root / f"group_{suffix}.json")
        contrasts.append(_contrast(root, suffix, found))
    counts = {
        status: sum(state["status"] == status for state in states.values())
        for status in ("done", "failed", "missing")
    }
    page = environment().get_template("group.html").render(
        contrasts=contrasts,
        states={status: _reasons(root, states, status) for status in ("failed", "missing")},
        counts=counts,
        unreadable=unreadable,
        warnings=grouped([
            (warning, row["bids_name"], row)
            for _, found in sorted(rows.items()) for row in found for warning in row["sentences"]
        ], lambda row: _page(root, row["participant"], row)),
        total=len(states),
        fewest=FEWEST,
        labels={name: words for name, words, _ in STRIPS} | {"n_warnings": "Warnings"},
    )  # fmt: skip
    return write_text(visible(page), root / "group.html")


def _reasons(root: Path, states: Mapping[str, Mapping[str, str]], status: str) -> list[Group]:
    """Return the participants in a state, grouped by reason."""
    entries = [
        (state["message"], f"sub-{label}", label)
        for label, state in sorted(states.items()) if state["status"] == status
    ]  # fmt: skip
    return grouped(entries, lambda label: _page(root, label))


def grouped(entries: Iterable[tuple[str, str, T]], page: Callable[[T], str]) -> list[Group]:
    """Group sentences (words, name, owner) that differ in numbers and names of files alone.

    The most frequent group comes first, with its first sentence. ``page`` returns the page of an
    owner; it is called for named owners only.
    """
    found: dict[str, tuple[str, list[tuple[str, T]]]] = {}
    for words, name, owner in entries:
        key = re.sub(r"sub-\w+|[\w./-]+\.(?:nii|json)[\w.]*|\d+(?:\.\d+)?", "#", words)
        found.setdefault(key, (words, []))[1].append((name, owner))
    groups = [
        Group(words, len(named), [(name, page(owner)) for name, owner in named[:MOST_NAMED]])
        for words, named in found.values()
    ]
    return sorted(groups, key=lambda group: -group.count)


def read_rows(
    root: Path, raw_dir: Path | None = None
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Return rows of the tables by suffix, in the order of names, and unreadable files."""
    people = read_participants(raw_dir) if raw_dir is not None else {}
    groupings = sorted({name for known in people.values() for name in known})
    rows: dict[str, list[dict[str, Any]]] = {}
    unreadable = []
    patterns = [
        f"sub-*/{folder}anat/*_desc-{desc}_*.json"
        for folder in ("", "ses-*/")
        for desc in ("sr", "srcombined")
    ]
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        try:
            entities, suffix, _ = parse_name(path.name)
            sidecar = read_json(path)
            row = _row(entities, suffix, sidecar)
            known = people.get(entities["sub"], {})
            study = {name: _clean(known.get(name)) for name in groupings if name not in row}
            study["scanner_of_image"] = raw_dir and scanner(raw_dir, sidecar.get("Sources"))
        except Exception:  # whatever lies there, it costs its row
            unreadable.append(path.relative_to(root).as_posix())
            continue
        rows.setdefault(suffix, []).append(row | study)
    return rows, unreadable


def _row(entities: dict[str, str], suffix: str, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    scans = sidecar.get("CombinedScans")
    # A combined image may share the other entities with a scan.
    own = {key: value for key, value in entities.items() if key != "desc" or scans}
    row: dict[str, Any] = {
        "bids_name": build_name(own, suffix, ""),
        "participant": entities["sub"],
        "session": entities.get("ses"),
        "scans": sum(scan["Used"] for scan in scans) if scans else 1,
    }
    row |= {name: sidecar.get(key) for name, key, _ in RECORD_COLUMNS}
    for word, key in VOXEL_COLUMNS:
        sizes = sidecar.get(key) or (None, None, None)
        sizes = [size if isinstance(size, (int, float)) else None for size in sizes]
        row |= {f"voxel_{word}_{axis}": size for axis, size in zip("xyz", sizes, strict=True)}
    quality = sidecar.get("Quality") or {}
    row |= {name: quality.get(name) for name in DESCRIPTIONS}
    warnings = sidecar.get("Warnings") or []
    row |= {"n_warnings": len(warnings), "warnings": " ".join(warnings) or None}
    return {key: _clean(value) for key, value in row.items()} | {
        "sentences": [_clean(words) for words in warnings]
    }


def _clean(value: Any) -> Any:
    """Return text that fits into a cell, finite numbers unchanged, and None for anything else."""
    if isinstance(value, str):
        return " ".join(value.split())
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Return the columns of the table; session and scans only if there is more than one."""
    unused = {"sentences"}  # the page groups them; the table has them in one text
    unused |= set() if any(row["session"] for row in rows) else {"session"}
    unused |= set() if any(row["scans"] > 1 for row in rows) else {"scans"}
    return [name for name in rows[0] if name not in unused]


def _descriptions(columns: list[str]) -> dict[str, dict[str, str]]:
    known = {
        "bids_name": "name of the super-resolved image without its description",
        "participant": "label of the participant, without sub-",
        "session": "label of the session, without ses-",
        "scans": "number of scans that the image was made from",
        "scanner_of_image": "maker, model and field strength of the scanner",
        "n_warnings": "number of warnings",
        "warnings": "warnings in words",
        **{name: words for name, _, words in RECORD_COLUMNS},
        **DESCRIPTIONS,
    }
    axes = {"x": "first", "y": "second", "z": "third"}
    for word, where in WORDS.items():
        for axis, name in axes.items():
            known[f"voxel_{word}_{axis}"] = f"voxel size of {where} along the {name} axis in mm"
    told = "from participants.tsv of the raw data set"
    return {name: {"Description": known.get(name, told)} for name in columns}


def _contrast(root: Path, suffix: str, rows: list[dict[str, Any]]) -> Contrast:
    for row in rows:
        sizes = [_size([row[f"voxel_{word}_{axis}"] for axis in "xyz"]) for word in ("in", "out")]
        row["voxel_sizes"] = " to ".join(filter(None, sizes)) + " mm" if any(sizes) else None
        row["network"] = (
            " ".join(map(str, filter(None, (row["model"], row["model_version"])))) or None
        )
    labels = [(name, f"{words} ({unit})" if unit else words) for name, words, unit in STRIPS]
    spreads = [found for name, label in labels if (found := spread(name, label, rows))]
    places = {place: index for index, place in enumerate(choose(len(rows), spreads))}
    listed = [rows[place] for place in places]
    for row in listed:
        row["page"] = _page(root, row["participant"], row)
        row["thumbnail"] = _thumbnail(root, row)
    return Contrast(
        suffix,
        f"group_{suffix}.tsv",
        [name for name in SHOWN if any(row[name] is not None for row in rows)],
        len(rows),
        listed,
        _groupings(rows),
        [strip(found, rows, places) for found in spreads if found.varies],
        [(found.label, f"{found.values[0]:.4g}") for found in spreads if not found.varies],
        networks(rows),
    )


def _groupings(rows: list[dict[str, Any]]) -> list[str]:
    """Return columns to filter and colour by: several values, but not one for each image."""
    own = ["session", "scanner_of_image", "voxel_sizes", "network", "device"]
    asked = [name for name in rows[0] if any(word in name.lower() for word in GROUPING)]
    return [
        name
        for name in dict.fromkeys((*asked, *own))
        if 1 < len({row[name] for row in rows}) <= min(MOST_GROUPS, max(2, len(rows) // 2))
    ]


def _size(sizes: list[float | None]) -> str:
    known = [f"{size:.3g}" for size in sizes if size is not None]
    words = known[:1] if len(set(known)) == 1 else known
    return " x ".join(words)


def networks(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return networks (name and version) with their number of images, most frequent first."""
    names = (
        " ".join(map(str, filter(None, (row["model"], row["model_version"])))) for row in rows
    )
    return Counter(name for name in names if name).most_common()


def _page(root: Path, label: str, row: Mapping[str, Any] | None = None) -> str:
    """Return the page of an image, or else of its participant; empty if there is none."""
    names = [f"sub-{label}.html"]
    if row is not None:
        names.insert(0, re.sub(r"_res-[^_]+", "", row["bids_name"]) + ".html")
    return next((name for name in names if (root / name).is_file()), "")


def _thumbnail(root: Path, row: Mapping[str, Any]) -> str:
    """Return the picture of an image, relative to the page; empty if there is none."""
    entities, suffix, _ = parse_name(row["bids_name"] + ".json")
    entities.pop("res", None)
    image = AnatomicalImage(Path(), row["bids_name"], entities, suffix, {})
    path = figure_path(image, "thumbnail", ".png")
    return str(path) if (root / path).is_file() else ""
