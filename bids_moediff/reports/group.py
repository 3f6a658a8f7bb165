# SPDX-License-Identifier: Apache-2.0
"""The group level: a table per contrast, and a page that shows who stands out and who is missing.

Everything comes from the sidecars in the output folder, so the tables can be made anew at any time
and hold exactly what is on disk.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bids_moediff.bids.names import build_name, parse_name
from bids_moediff.errors import ImageError
from bids_moediff.quality.figures import DESCRIPTIONS
from bids_moediff.reports import captions
from bids_moediff.reports.participant import environment
from bids_moediff.runtime.sink import table_text, write_json, write_text

MOST_DOTS = 2000
MOST_ROWS = 2000
FAR = 3.5  # modified z-score that makes an outlier (Iglewicz and Hoaglin, 1993)
FEWEST = 5  # images from which on outliers are named

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
         "usable_x", "usable_y", "usable_z", "n_warnings")  # fmt: skip


@dataclass(frozen=True)
class Strip:
    """Distribution of one figure: dots from 0 to 1 along the strip, outliers with their names."""

    label: str
    low: str
    middle: str
    high: str
    centre: float
    dots: list[tuple[float, float, bool, str]]
    outliers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Contrast:
    """Everything the page shows of the images with one suffix."""

    suffix: str
    table: str
    columns: list[str]
    rows: list[dict[str, Any]]
    total: int
    strips: list[Strip] = field(default_factory=list)
    networks: list[tuple[str, int]] = field(default_factory=list)


def write_group_report(
    output_dir: Path, states: Mapping[str, Mapping[str, str]] | None = None
) -> Path:
    """Write ``group_<suffix>.tsv`` with ``.json``, and ``group.html``.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    states
        Participant label to ``{"status": "done" | "failed" | "missing", "message": str}``; by
        default those found in the output folder, all done.

    Returns
    -------
    Path
        The page.
    """
    root = Path(output_dir)
    rows, unreadable = read_rows(root)
    if states is None:
        labels = sorted({row["participant"] for found in rows.values() for row in found})
        states = {label: {"status": "done", "message": ""} for label in labels}
    contrasts = []
    for suffix, found in sorted(rows.items()):
        columns = _columns(found)
        write_text(table_text(found, columns), root / f"group_{suffix}.tsv")
        write_json(_descriptions(columns), root / f"group_{suffix}.json")
        contrasts.append(_contrast(suffix, columns, found))
    counts = {
        status: sum(state["status"] == status for state in states.values())
        for status in ("done", "failed", "missing")
    }
    page = (
        environment()
        .get_template("group.html")
        .render(
            contrasts=contrasts,
            states=[
                (label, state["status"], state.get("message", ""), _page_of(root, label))
                for label, state in sorted(states.items())
                if state["status"] != "done"
            ],
            counts=counts,
            unreadable=unreadable,
            warnings=_warned(root, rows),
            total=len(states),
            labels={name: words for name, words, _ in STRIPS} | {"n_warnings": "Warnings"},
        )
    )
    return write_text(page, root / "group.html")


def read_rows(root: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows of the tables by suffix, in the order of names, and files that could not be read."""
    rows: dict[str, list[dict[str, Any]]] = {}
    unreadable = []
    patterns = ("sub-*/anat/*_desc-sr_*.json", "sub-*/ses-*/anat/*_desc-sr_*.json")
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        try:
            entities, suffix, _ = parse_name(path.name)
            sidecar = json.loads(path.read_text(encoding="utf-8"))
            row = _row(entities, suffix, sidecar)
        except (OSError, ValueError, AttributeError, ImageError):
            unreadable.append(path.relative_to(root).as_posix())
            continue
        rows.setdefault(suffix, []).append(row)
    return rows, unreadable


def _row(entities: dict[str, str], suffix: str, sidecar: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in entities.items() if key != "desc"}
    row: dict[str, Any] = {
        "bids_name": build_name(own, suffix, ""),
        "participant": entities["sub"],
        "session": entities.get("ses"),
    }
    row |= {name: sidecar.get(key) for name, key, _ in RECORD_COLUMNS}
    for word, key in VOXEL_COLUMNS:
        sizes = sidecar.get(key) or (None, None, None)
        row |= {f"voxel_{word}_{axis}": size for axis, size in zip("xyz", sizes, strict=True)}
    quality = sidecar.get("Quality") or {}
    row |= {name: quality.get(name) for name in DESCRIPTIONS}
    warnings = sidecar.get("Warnings") or []
    row |= {"n_warnings": len(warnings), "warnings": " ".join(warnings) or None}
    return {key: _clean(value) for key, value in row.items()}


def _clean(value: Any) -> Any:
    """Text that fits into a cell; numbers as they are."""
    return " ".join(value.split()) if isinstance(value, str) else value


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Columns of the table; the session only where there are sessions."""
    return [name for name in rows[0] if name != "session" or any(row["session"] for row in rows)]


def _descriptions(columns: list[str]) -> dict[str, dict[str, str]]:
    known = {
        "bids_name": "name of the super-resolved image without its description",
        "participant": "label of the participant, without sub-",
        "session": "label of the session, without ses-",
        "n_warnings": "number of warnings",
        "warnings": "warnings in words",
        **{name: words for name, _, words in RECORD_COLUMNS},
        **DESCRIPTIONS,
    }
    axes = {"x": "first", "y": "second", "z": "third"}
    for word, where in WORDS.items():
        for axis, name in axes.items():
            known[f"voxel_{word}_{axis}"] = f"voxel size of {where} along the {name} axis in mm"
    return {name: {"Description": known[name]} for name in columns}


def _contrast(suffix: str, columns: list[str], rows: list[dict[str, Any]]) -> Contrast:
    strips = [strip for name, words, unit in STRIPS if (strip := _strip(name, words, unit, rows))]
    shown = [name for name in SHOWN if any(row[name] is not None for row in rows)]
    return Contrast(
        suffix, f"group_{suffix}.tsv", shown, rows[:MOST_ROWS], len(rows), strips, networks(rows)
    )


def networks(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Networks (name and version) that made the images, most frequent first, and how many each."""
    names = (" ".join(filter(None, (row["model"], row["model_version"]))) for row in rows)
    return Counter(name for name in names if name).most_common()


def _strip(name: str, words: str, unit: str, rows: list[dict[str, Any]]) -> Strip | None:
    known = [row for row in rows if isinstance(row[name], (int, float))]
    if not known:
        return None
    values = np.array([row[name] for row in known], dtype=float)
    middle = float(np.median(values))
    far = outliers(values)
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
    step = max(1, -(-len(values) // MOST_DOTS))
    dots = [
        # Dots are spread over the height in a fixed pattern, so that equal values stay visible.
        (
            round(float(share[i]), 4),
            round((i * 0.618034) % 1, 3),
            bool(far[i]),
            f"{known[i]['bids_name']}: {values[i]:.4g}",
        )
        for i in range(len(values))
        if far[i] or i % step == 0
    ]
    named = [
        (known[i]["bids_name"], known[i]["participant"], f"{values[i]:.4g}")
        for i in np.argsort(-np.abs(values - middle))
        if far[i]
    ]
    label = f"{words} ({unit})" if unit else words
    centre = (middle - low) / (high - low) if high > low else 0.5
    numbers = (f"{low:.4g}", f"{middle:.4g}", f"{high:.4g}")
    return Strip(label, *numbers, round(centre, 4), dots, named[:12])


def outliers(values: np.ndarray) -> np.ndarray:
    """Which values lie further than 3.5 robust standard deviations from the median.

    None with fewer than five values, or where most values are the same.
    """
    distance = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(distance)
    if len(values) < FEWEST or spread == 0:
        return np.zeros(len(values), dtype=bool)
    return distance > FAR * spread


def _page_of(root: Path, label: str) -> str:
    return f"sub-{label}.html" if (root / f"sub-{label}.html").is_file() else ""


def _warned(root: Path, rows: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str, str]]:
    """Images with warnings: name, page of the participant, words."""
    found = [row for suffix in sorted(rows) for row in rows[suffix] if row["warnings"]]
    return [
        (row["bids_name"], _page_of(root, row["participant"]), row["warnings"])
        for row in found[:MOST_ROWS]
    ]
