# SPDX-License-Identifier: Apache-2.0
"""The benchmark's tables as ``research.results values`` takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from bids_moediff.imaging.protocols import parse_protocol

from .figures import DICE, MEASURES, VOLUMES, summarise

Row = Mapping[str, Any]
COMPARED = (*DICE, "thickness_bias", "thickness_difference")
NAMES = {"ml_fluid": "fluid, ml", "ml_grey": "grey matter, ml", "ml_white": "white matter, ml"}


def result(rows: Sequence[Row]) -> dict[str, Any]:
    """Return values, rows and views of all that was measured."""
    summary = summarise(rows)
    values: dict[str, float] = {}
    for entry in summary:
        name = f"{entry['protocol']}.{entry['method']}"
        values |= {f"{name}.{k}": v for k, v in entry.items() if isinstance(v, int | float)}
        values |= {f"{name}.nearer.{k}": v for k, v in nearer(rows, entry).items()}
    for row in rows:
        if row["method"] != "truth":
            name = f"{row['head']}.{row['protocol']}.{row['method']}"
            values |= {f"{name}.{k}": float(row[k]) for k in COMPARED}
    entries = [_mean(entry, nearer(rows, entry)) for entry in summary]
    entries += [_agreement(entry, name) for entry in summary for name in MEASURES]
    entries += [_image(row) for row in rows if row["method"] != "truth"]
    kept = {key: value for key, value in values.items() if value == value}
    return {"values": kept, "rows": entries, "views": VIEWS}


def nearer(rows: Sequence[Row], entry: Row) -> dict[str, int]:
    """Return the images, by figure, that a method brings nearer to the truth than BP does."""
    own, back = (
        {row["head"]: row for row in rows if (row["protocol"], row["method"]) == (protocol, name)}
        for protocol, name in (
            (entry["protocol"], entry["method"]),
            (entry["protocol"], "back-projection"),
        )
    )
    return {
        name: sum(
            _error(own[head], name) < _error(back[head], name) for head in own if head in back
        )
        for name in COMPARED
    }


def _error(row: Row, name: str) -> float:
    value = float(row[name])
    return 1 - value if name in DICE else abs(value)


def _base(entry: Row, kind: str) -> dict[str, Any]:
    name = parse_protocol(entry["protocol"]).name
    return {"kind": kind, "name": name, "method": entry["method"]}


def _mean(entry: Row, won: Mapping[str, int]) -> dict[str, Any]:
    """Means over images, with intervals for several of them."""
    told = _base(entry, "mean") | {"images": entry["images"]}
    for name in COMPARED:
        form = ".3f" if name in DICE else "+.2f" if name == "thickness_bias" else ".2f"
        text = format(entry[name], form)
        if entry["images"] > 1:
            text += f" [{entry[f'{name}_low']:{form}}, {entry[f'{name}_high']:{form}}]"
        told[name] = text
    told["nearer"] = ", ".join(str(won[name]) for name in COMPARED)
    return told


def _agreement(entry: Row, name: str) -> dict[str, Any]:
    """Bland-Altman and intraclass correlation of one measure."""
    form = ".0f" if name in VOLUMES else ".2f"
    told = _base(entry, "agreement" if entry["images"] > 2 else "alone")
    return told | {
        "measure": NAMES.get(name, "thickness, mm"),
        "apart": format(entry[f"{name}_apart"], "+" + form),
        "limits": format(entry[f"{name}_limits"], form),
        "icc": format(entry[f"{name}_icc"], ".2f"),
    }


def _image(row: Row) -> dict[str, Any]:
    told = _base(row, "image") | {"head": row["head"]}
    return told | {name: float(row[name]) for name in COMPARED}


VIEWS: dict[str, Any] = {
    "means": {
        "where": {"kind": ["mean"]},
        "columns": [
            ["protocol", "{name}"],
            ["method (images)", "{method} ({images})"],
            ["Dice fluid", "{dice_fluid}"],
            ["Dice grey", "{dice_grey}"],
            ["Dice white", "{dice_white}"],
            ["thickness, bias mm", "{thickness_bias}"],
            ["voxelwise mm", "{thickness_difference}"],
            ["images nearer than BP", "{nearer}"],
        ],
    },
    "agreement": {
        "where": {"kind": ["agreement"]},
        "columns": [
            ["protocol", "{name}"],
            ["measure", "{measure}"],
            ["method", "{method}"],
            ["mean difference", "{apart}"],
            ["± limits of agreement", "{limits}"],
            ["intraclass correlation", "{icc}"],
        ],
    },
    "images": {
        "where": {"kind": ["image"]},
        "columns": [
            ["image", "{head}"],
            ["protocol", "{name}"],
            ["method", "{method}"],
            ["Dice fluid", "{dice_fluid:.3f}"],
            ["Dice grey", "{dice_grey:.3f}"],
            ["Dice white", "{dice_white:.3f}"],
            ["thickness, bias mm", "{thickness_bias:+.2f}"],
            ["voxelwise mm", "{thickness_difference:.2f}"],
        ],
    },
}
