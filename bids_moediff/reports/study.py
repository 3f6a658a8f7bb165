# SPDX-License-Identifier: Apache-2.0
"""Read site, scanner and group of images from the raw data set."""

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bids_moediff.runtime.given_files import read_json, read_text

# A column of participants.tsv with one of these words in its name tells centres apart.
GROUPING = ("site", "center", "centre", "scanner", "cohort", "group", "diagnosis")
MISSING = ("", "n/a", "N/A", "NaN")


def read_participants(raw_dir: Path) -> dict[str, dict[str, str]]:
    """Return grouping columns of ``participants.tsv`` by label without ``sub-``.

    Empty if there is no such file.
    """
    try:
        lines = read_text(raw_dir / "participants.tsv").splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t"))
    except (OSError, ValueError, csv.Error):
        return {}
    return {
        row["participant_id"].removeprefix("sub-"): {
            name: value
            for name, value in row.items()
            if name and value not in MISSING and any(word in name.lower() for word in GROUPING)
        }
        for row in rows
        if row.get("participant_id")
    }


@lru_cache(maxsize=256)  # those at the root are asked for again and again, others once
def _sidecar(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def scanner(raw_dir: Path, sources: Sequence[Any] | None) -> str | None:
    """Return maker, model and field strength of the scanner, from the sidecars of a source.

    Parameters
    ----------
    raw_dir
        Root of the raw data set.
    sources
        ``Sources`` of a derivative: ``bids:raw:`` and a path.
    """
    known: dict[str, Any] = {}
    for source in sources or ():
        path = raw_dir / str(source).removeprefix("bids:raw:").split(".nii")[0]
        suffix = path.name.rsplit("_", 1)[-1]
        # Sidecars further up hold for all below them: the nearest one has the last word.
        for place in (raw_dir / f"{suffix}.json", path.with_name(path.name + ".json")):
            known |= _sidecar(place)
    strength = known.get("MagneticFieldStrength")
    parts = [known.get("Manufacturer"), known.get("ManufacturersModelName")]
    parts += [f"{strength:g} T"] if isinstance(strength, (int, float)) else []
    return " ".join(str(part).strip() for part in parts if part) or None
