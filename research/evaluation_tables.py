# SPDX-License-Identifier: Apache-2.0
"""Contents of result tables, from what ``bids_moediff-evaluate`` writes (see `research.results`).

Each function takes the folder of one evaluation and a model's name, and returns images, people,
precision, interval, values, rows and views.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bids_moediff.evaluation.tissue_classes import CLASSES
from bids_moediff.imaging.protocols import parse_protocol

Row = dict[str, Any]
# What samples are drawn by, as the pages name it; other rows are for comparison.
SAMPLERS = {"learned": "Gaussian noise", "own": "experts"}
# Where lesions are put besides the image alone, for a model that takes a reference.
REFERENCES = ("reference", "both")
REFERENCE_COLUMNS = [
    ["only in the reference", "{reference:+.3f}"], ["largest", "{reference_worst:+.3f}"],
    ["in both", "{both:.3f}"],
]  # fmt: skip
# Tissues of a T1w image, ascending as its classes of brightness.
FROM_DARK = ("fluid", "grey", "white")
SITES = {"T1w": "T1w", "T2w": "T2w of another site"}


def person(image: str) -> str:
    """Whose image it is: its name without the contrast, so that T1w and T2w count once."""
    return re.sub(r"_[A-Za-z0-9]+$", "", image)


def _read(path: Path, model: str) -> list[Row]:
    """Rows of one model (all, where the table has no column of models), numbers as numbers."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = [dict(row) for row in csv.DictReader(file, delimiter="\t")]
    for row in rows:
        for key, value in row.items():
            try:
                row[key] = float(value)
            except ValueError:
                continue
    return [row for row in rows if row.get("model", model) == model]


def _content(rows: Sequence[Row], shown: list[Row], views: Row, **more: Any) -> Row:
    heads = {str(row["head"]) for row in rows}
    values = {
        f"{row['key']}.{name}": value
        for row in shown
        if "key" in row
        for name, value in row.items()
        if isinstance(value, int | float)
    }
    counts = {"images": len(heads), "people": len({person(head) for head in heads})}
    return counts | {"values": values, "rows": shown, "views": views} | more


def _span(values: Iterable[float], form: str) -> str:
    """Smallest to largest, one number where both read the same."""
    found = sorted(values)
    low, high = format(found[0], form), format(found[-1], form)
    return low if low == high else f"{low} to {high}"


def _ends(row: Row, name: str, values: Iterable[float]) -> None:
    found = sorted(values)
    row |= {f"{name}_low": found[0], f"{name}_high": found[-1]}


def lesions(folder: Path, model: str) -> Row:
    """Contrast recovered by size, and changes away from lesions by head."""
    found, heads = (_read(folder / f"{name}.tsv", model) for name in ("sizes", "heads"))
    sizes = [row for row in found if row.get("lesions_in", "image") == "image"]
    elsewhere = {
        (row["protocol"], row["diameter_mm"], row["lesions_in"]): row
        for row in found
        if row.get("lesions_in", "image") != "image"
    }
    shown: list[Row] = []
    for row in (row for row in sizes if row["method"] == model):
        protocol, diameter = str(row["protocol"]), f"{row['diameter_mm']:g} mm"
        made = {"kind": protocol, "key": f"{protocol[:2]}.{row['diameter_mm']:g}mm"}
        for name, method in (("cubic", "cubic"), ("back", "back-projection"), ("own", model)):
            made[name] = next(
                other["recovered"]
                for other in sizes
                if (other["protocol"], other["diameter_mm"], other["method"])
                == (protocol, row["diameter_mm"], method)
            )
        low, high = (row[f"over_back_projection_{end}"] for end in ("low", "high"))
        text = f"{row['over_back_projection']:+.3f} [{low:+.3f}, {high:+.3f}]"
        for where in REFERENCES if elsewhere else ():
            other = elsewhere[protocol, row["diameter_mm"], where]
            made |= {where: other["recovered"], f"{where}_worst": other["worst"]}
        shown.append(made | {"diameter": diameter, "worst": row["worst"], "against": text})
    shown += [row | {"kind": "head"} for row in heads]
    shown += _away(heads)
    columns = [
        ["diameter", "{diameter}"], ["cubic", "{cubic:.3f}"],
        ["cubic + back-projection", "{back:.3f}"], [model, "{own:.3f}"],
        [f"worst by {model}", "{worst:.3f}"], [f"{model} against back-projection", "{against}"],
    ]  # fmt: skip
    columns += REFERENCE_COLUMNS if elsewhere else []
    views = {
        protocol[:2]: {"where": {"kind": [protocol]}, "columns": columns}
        for protocol in dict.fromkeys(str(row["protocol"]) for row in heads)
    }
    views["away"] = {"where": {"kind": ["away"]}, "columns": AWAY}
    precision = str(next(row["version"] for row in heads if row["method"] == model)).split()[-1]
    count = int(min(row["lesions"] for row in sizes))
    interval = f"95 % bootstrap intervals over {count} lesions of each size"
    return _content(heads, shown, views, precision=precision, interval=interval)


def _away(heads: Sequence[Row]) -> list[Row]:
    """Changes away from lesions by protocol and method, one number a head."""
    found = []
    pairs = dict.fromkeys((str(row["protocol"]), str(row["method"])) for row in heads)
    for protocol, method in pairs:
        mine = [row for row in heads if (row["protocol"], row["method"]) == (protocol, method)]
        row: Row = {"kind": "away", "key": f"{protocol[:2]}.{method}", "method": method}
        row["name"] = parse_protocol(protocol).name
        for name in ("false_positives", "invented"):
            row[f"{name}_text"] = ", ".join(f"{r[name]:.0f}" for r in mine)
            row[name] = sum(r[name] for r in mine)
        row["largest"] = _span((r["outside_max"] for r in mine), ".1f")
        row["largest_change"] = max(r["outside_max"] for r in mine)
        row["rms"] = _span((r["outside_rms"] for r in mine), ".3f")
        for name, key in (("correlation", "null_correlation"), ("mirrored", "mirror_difference")):
            row[name] = _span((r[key] for r in mine), ".2f")
            _ends(row, name, (r[key] for r in mine))
        found.append(row)
    return found


def calibration(folder: Path, model: str) -> Row:
    """How the expected error compares with the error, as spans over images and protocols."""
    rows = _read(folder / "calibration.tsv", model)
    shown: list[Row] = []
    for suffix, site in SITES.items():
        mine = [row for row in rows if str(row["head"]).endswith(suffix)]
        row: Row = {"kind": "span", "key": suffix, "images": f"{len({r['head'] for r in mine})}"}
        row["images"] += f" {site}"
        for name, form in (("factor", ".2f"), ("risk_half", ".2f"), ("ideal_half", ".2f"),
                           ("gain", ".2f"), ("within_two", ".0%")):  # fmt: skip
            row[name] = _span((r[name] for r in mine), form).replace("%", " %")
            _ends(row, name, (r[name] for r in mine))
        shown.append(row)
    columns = [
        ["images", "{images}"], ["error over expected error", "{factor}"],
        ["within two expected errors", "{within_two}"],
        ["error of the surest half (ideal)", "{risk_half} ({ideal_half})"],
        ["gain over a useless map (1: perfect)", "{gain}"],
    ]  # fmt: skip
    return _content(rows, shown, {"spans": {"where": {"kind": ["span"]}, "columns": columns}})


def coverage(folder: Path, model: str) -> Row:
    """Share of voxels within the bound on held-out images, by study."""
    rows = [row for row in _read(folder / "coverage.tsv", model) if row["map"] == "map"]
    shown: list[Row] = []
    for key, title, wanted in (
        ("study", "T1w of that study", r"ds002748.*_T1w"),
        ("other", "other T1w", r"(?!ds002748).*_T1w"),
        ("t2w", "T2w of another site", r".*_T2w"),
    ):
        mine = [row for row in rows if re.fullmatch(wanted, str(row["head"]))]
        least: dict[str, float] = {}
        for row in mine:
            head = str(row["head"])
            least[head] = min(least.get(head, 1.0), float(row["within"]))
        made: Row = {"kind": "span", "key": key, "images": f"{len(least)} {title}"}
        made["hold"] = sum(share >= 0.95 for share in least.values())
        made["of"] = len(least)
        made["within"] = _span((row["within"] for row in mine), ".1%").replace("%", " %")
        _ends(made, "within", (row["within"] for row in mine))
        shown.append(made)
    columns = [
        ["held-out images", "{images}"], ["of them with 95 % of the voxels within", "{hold}"],
        ["voxels within, by image and scan", "{within}"],
    ]  # fmt: skip
    return _content(rows, shown, {"spans": {"where": {"kind": ["span"]}, "columns": columns}})


def sampling(folder: Path, model: str) -> Row:
    """Figures of drawn samples beside noise whose size is the added detail's."""
    rows = _read(folder / "sampling.tsv", model)
    shown = []
    for suffix, site in SITES.items():
        for protocol in dict.fromkeys(str(row["protocol"]) for row in rows):
            mine = [
                row
                for row in rows
                if str(row["head"]).endswith(suffix) and row["protocol"] == protocol
            ]
            hand = [row["v"] for row in mine if row["sampler"] == "by hand"]
            for sampler in dict.fromkeys(str(row["sampler"]) for row in mine):
                those = [row for row in mine if row["sampler"] == sampler]
                row = _sampled(those, hand) | {"images": f"{len(those)} {site}"}
                name = parse_protocol(protocol).name
                short = sampler.partition(":")[0]
                key = f"{suffix}.{protocol}.{short.replace(' ', '_')}"
                title = SAMPLERS.get(short, short)
                shown.append(row | {"key": key, "protocol": name, "sampler": title})
    columns = [
        ["images", "{images}"], ["scan", "{protocol}"], ["samples by", "{sampler}"],
        ["v", "{v}"], ["v of the baseline", "{v_hand}"], ["correlation", "{correlation}"],
        ["energy score", "{energy}"], ["CRPS", "{crps}"], ["one sample", "{one}"],
        ["mean of all", "{mean}"],
    ]  # fmt: skip
    view = {"where": {"sampler": list(SAMPLERS.values())}, "columns": columns}
    drawn = _best_drawn(rows)
    content = _content(rows, shown + [_tissues(row) for row in drawn], {"spans": view})
    content["views"]["tissues"] = TISSUES_VIEW
    cells = [row[f"v_{name}"] for row in drawn for name in CLASSES]
    content["values"] |= {
        "v.heads": len(drawn),
        "v.heads_within": sum(0.7 <= row["v"] <= 1.4 for row in drawn),
        "v.tissues": len(cells),
        "v.tissues_within": sum(0.7 <= cell <= 1.3 for cell in cells),
    }
    for protocol in dict.fromkeys(str(row["protocol"]) for row in drawn):
        for name in ("v", "band"):
            found = [float(row[name]) for row in drawn if row["protocol"] == protocol]
            content["values"][f"{protocol}.mean_{name}"] = sum(found) / len(found)
    return content


def _best_drawn(rows: Sequence[Row]) -> list[Row]:
    """Rows of the samples that the app draws: the model's own, if it has some."""
    own = [row for row in rows if str(row["sampler"]).startswith("own")]
    return own or [row for row in rows if row["sampler"] == "learned"]


def _tissues(row: Row) -> Row:
    """Variance over squared error of one image, also by tissue; T2w turns the brightness round."""
    head = str(row["head"])
    names = FROM_DARK if head.endswith("T1w") else FROM_DARK[::-1]
    found = {name: row[f"v_{level}"] for name, level in zip(names, CLASSES, strict=True)}
    about = {"head": head, "scan": parse_protocol(str(row["protocol"])).name}
    return about | found | {"whole": row["v"], "kind": "tissues"}


TISSUES_VIEW = {
    "where": {"kind": ["tissues"]},
    "columns": [
        ["image", "{head}"], ["scan", "{scan}"], ["v", "{whole:.2f}"],
        *([name, f"{{{name}:.2f}}"] for name in FROM_DARK),
    ],
}  # fmt: skip


def _sampled(rows: Sequence[Row], hand: Sequence[float]) -> Row:
    row: Row = {"v_hand": _span(hand, ".2f")}
    for name in ("v", "correlation"):
        row[name] = _span((r[name] for r in rows), ".2f")
    for name in ("energy", "crps"):
        row[name] = _span((r[f"{name}_percent"] for r in rows), "+.1f") + " %"
    for name, key in (("one", "psnr_sample"), ("mean", "psnr_mean")):
        lost = [r[key] - r["psnr_image"] for r in rows]
        row[name] = _span(lost, "+.1f") + " dB"
        _ends(row, name, lost)
    _ends(row, "v", (r["v"] for r in rows))
    _ends(row, "energy", (r["energy_percent"] for r in rows))
    return row


AWAY = [
    ["scan", "{name}"], ["method", "{method}"], ["root mean square", "{rms}"],
    ["largest", "{largest}"], ["regions above the noise", "{false_positives_text}"],
    ["of them invented", "{invented_text}"], ["correlation", "{correlation}"],
    ["mirrored", "{mirrored}"],
]  # fmt: skip
KINDS = {
    "lesions": lesions, "calibration": calibration, "coverage": coverage, "sampling": sampling
}  # fmt: skip
