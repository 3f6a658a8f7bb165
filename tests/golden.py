# SPDX-License-Identifier: Apache-2.0
"""Compare text or numbers with a file of tests/data that holds what was right at the last look.

``BIDS_MOEDIFF_TEST_GOLDEN=1 python -m pytest -k …`` writes the files anew; read their difference
before you commit it.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = Path(__file__).with_name("data")
ANEW = "BIDS_MOEDIFF_TEST_GOLDEN"
LONG = 20  # of longer lists, so many at either end are compared


def check(name: str, text: str) -> None:
    """Fail at the first lines that differ from ``tests/data/<name>``."""
    path = DATA / name
    if os.environ.get(ANEW):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found, wanted = text.splitlines(), path.read_text(encoding="utf-8").splitlines()
    assert found == wanted, f"differs from tests/data/{name} (tests/golden.py writes it anew)"


def check_numbers(name: str, key: str, found: Any, rel: float = 1e-3, abs: float = 1e-6) -> None:
    """Fail where nested numbers differ from those under ``key`` of ``tests/data/<name>``.

    Other processors round otherwise, so numbers need to agree within ``rel`` or ``abs`` only.
    """
    path = DATA / name
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = dict(_flat(found))
    if os.environ.get(ANEW):
        held[key] = {place: _short(value) for place, value in now.items()}
        path.write_text(json.dumps(held, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    wanted = held[key]
    assert sorted(now) == sorted(wanted)
    for place, value in now.items():
        hint = f"{key} {place}: differs from tests/data/{name} (tests/golden.py writes it anew)"
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        near = pytest.approx(wanted[place], rel=rel, abs=abs, nan_ok=True) if numeric else None
        assert value == (near if numeric else wanted[place]), hint


def _flat(found: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _flat(value, f"{place}.{key}")
    elif isinstance(found, Sequence) and not isinstance(found, str):
        yield f"{place}.count", len(found)
        for number in sorted({*range(len(found))[:LONG], *range(len(found))[-LONG:]}):
            yield from _flat(found[number], f"{place}.{number}")
    elif hasattr(found, "detach"):
        yield from _flat(described(found.detach().cpu().numpy()), place)
    elif isinstance(found, np.ndarray):
        yield from _flat(described(found), place)
    else:
        yield place.lstrip("."), found


def described(values: np.ndarray) -> dict[str, Any]:
    """Shape, mean, deviation and seven values of an array, spread over it."""
    values = np.asarray(values, dtype=np.float64)
    flat = values.ravel()
    some = np.linspace(0, max(flat.size - 1, 0), 9).astype(int)[1:-1] if flat.size else []
    return {
        "shape": "x".join(map(str, values.shape)),
        "mean": float(flat.mean()) if flat.size else 0.0,
        "deviation": float(flat.std()) if flat.size else 0.0,
        "values": [float(flat[k]) for k in some],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def read_table(path: Path, without: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a .tsv file, numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [{k: _number(v) for k, v in row.items() if k not in without} for row in rows]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
