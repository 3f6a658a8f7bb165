# SPDX-License-Identifier: Apache-2.0
"""Gains where the acquisition had to be found, from a benchmark's folder, as a result table.

    bids_moediff-evaluate benchmark OUT --data DATA --model student --protocols \
        x4slices-box0.5+noise2+stated x4slices-box0.5+noise2+untold …
    python -m research.measurements.acquisition_gains OUT student numbers.json
    python -m research.results values numbers.json student acquisitions --command '…'

One row for each true acquisition; its columns are ``stated`` (the sidecar has the slice
thickness), ``untold`` (it says nothing) and ``best`` (the best of those that the engine was told),
in dB over cubic interpolation. ``worst`` is the image with the least gain over the better of
linear and cubic interpolation, in the first two.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_moediff.evaluation.benchmark import read_rows
from bids_moediff.imaging.metrics import bootstrap_interval
from bids_moediff.imaging.protocols import STATED, UNTOLD, parse_protocol

HOW = (STATED, UNTOLD)
Gains = dict[str, dict[str, tuple[float, float]]]


def gains(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, Gains]:
    """Over cubic and over the best interpolation in dB, by true acquisition, telling and image."""
    psnr: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        psnr[row["protocol"], row["head"]][row["method"]] = row["psnr"]
    found: dict[str, Gains] = defaultdict(lambda: defaultdict(dict))
    for (key, head), by_method in psnr.items():
        if method not in by_method:
            continue
        told = parse_protocol(key).told
        true = "+".join(word for word in key.split("+") if word not in HOW and word[:4] != "told")
        best = max(by_method["linear"], by_method["cubic"])
        over = (by_method[method] - by_method["cubic"], by_method[method] - best)
        found[true][told if isinstance(told, str) else key][head] = over
    for by_telling in found.values():
        tried = [by_telling.pop(key) for key in list(by_telling) if key not in HOW]
        if tried:
            by_telling["best"] = max(tried, key=lambda one: np.mean([c for c, _ in one.values()]))
    return found


def table(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Values, rows and views of a result table."""
    values, lines = {}, []
    for true, by_telling in gains(rows, method).items():
        line: dict[str, Any] = {"name": parse_protocol(true).name, "protocol": true}
        line["kind"] = "iso" if parse_protocol(true).isotropic else "slices"
        least = []
        for telling in (*HOW, "best"):
            heads = by_telling.get(telling, {})
            if not heads:
                line[telling] = "-"
                continue
            over_cubic = [cubic for cubic, _ in heads.values()]
            mean, (low, high) = float(np.mean(over_cubic)), bootstrap_interval(over_cubic)
            several = f" [{low:+.2f}, {high:+.2f}]" if len(heads) > 1 else ""
            line[telling] = f"{mean:+.2f}{several}"
            values[f"{true}.{telling}.over_cubic"] = mean
            lowest = min(heads, key=lambda head: heads[head][1])
            values[f"{true}.{telling}.worst"] = heads[lowest][1]
            if telling in HOW:
                least.append((heads[lowest][1], lowest))
        if {UNTOLD, "best"} <= set(by_telling):
            values[f"{true}.share"] = (
                values[f"{true}.untold.over_cubic"] / values[f"{true}.best.over_cubic"]
            )
        line["worst"] = "{:+.2f} ({})".format(*min(least)) if least else "-"
        lines.append(line)
    names = sorted({row["head"] for row in rows})
    values["images"] = len(names)
    for kind in ("iso", "slices"):
        worst = [v for key, v in values.items() if key.endswith(".worst") and kind in key]
        if worst:
            values[f"{kind}.worst"] = min(worst)
        for telling in HOW:
            end = f".{telling}.over_cubic"
            found = [values[key] for key in values if key.endswith(end) and kind in key]
            if found:
                values |= {f"{kind}.{telling}.least": min(found)}
                values |= {f"{kind}.{telling}.most": max(found)}
    columns = [
        ["what the scanner did", "{name}"],
        ["thickness in the sidecar", "{stated}"],
        ["nothing stated", "{untold}"],
        ["best of what it was told", "{best}"],
        ["worst image over the better of linear and cubic", "{worst}"],
    ]
    views = {
        "slices": {"where": {"kind": ["slices"]}, "columns": columns},
        # No sidecar states a filter of k-space.
        "filters": {"where": {"kind": ["iso"]}, "columns": [columns[0], *columns[2:]]},
    }
    return {"values": values, "rows": lines, "views": views}


def main() -> None:
    """Write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmark", type=Path, help="folder of the benchmark")
    parser.add_argument("method", help="name of the model")
    parser.add_argument("numbers", type=Path, help="JSON file to write")
    asked = parser.parse_args()
    made = table(read_rows(asked.benchmark / "rows.tsv"), asked.method)
    asked.numbers.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
