# SPDX-License-Identifier: Apache-2.0
"""N-SMoE beside interpolation and other models, told the noise and not, on parts of true heads.

``python -m research.measurements.kernels DATA OUT.tsv [MODEL]`` cuts the middle block of each
validation head of DATA/manifest.tsv, makes it coarse by each protocol and writes the gain over
cubic interpolation with back-projection, in dB inside the head: one row a head, protocol and
method. Rows that are there are not computed again. ``python -m research.measurements.kernels
values OUT.tsv NUMBERS.json`` makes what ``research.results values`` takes.
"""

import csv
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_moediff.evaluation.benchmark import BASELINES, Task, protocol_task
from bids_moediff.evaluation.truth import Loaded, heads_of_manifest
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.protocols import Protocol, parse_protocol
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options
from bids_moediff.runtime.sink import table_text, write_json, write_text

BLOCK, BORDER = 72, 8  # voxels; the border is not judged: the cut head wraps around there
PROTOCOLS = (
    "x2iso-kspace+noise4", "x4slices-gaussian", "x2iso-kspace", "x4slices-gaussian+noise4",
    "x1.5iso-kspace", "x3iso-kspace",
)  # fmt: skip
METHODS = {
    "cubic": "cubic",
    "nsmoe": "nsmoe",
    "student": "student",
    "moediff": "moediff",
    "nsmoe, not told": "blind",
    "student, not told": "student_blind",
    "moediff, not told": "moediff_blind",
}
COLUMNS = ("head", "group", "protocol", "method", "psnr", "gain")


def middle(loaded: Loaded) -> Loaded:
    """The block around the middle of the head."""
    inside = [np.flatnonzero(loaded.mask.any(tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    cut = []
    for places, size in zip(inside, loaded.truth.shape, strict=True):
        first = max(0, min((places[0] + places[-1] - BLOCK) // 2, size - BLOCK))
        cut.append(slice(int(first), int(first) + BLOCK))
    box, mask = tuple(cut), np.zeros_like(loaded.mask)
    inner = tuple(slice(side.start + BORDER, side.stop - BORDER) for side in cut)
    mask[inner] = loaded.mask[inner]
    return replace(loaded, truth=loaded.truth[box], mask=mask[box])


def noise_of(task: Task, protocol: Protocol) -> float:
    """Standard deviation that the protocol added, in units of the head."""
    return protocol.noise / 100 * float(np.percentile(task.truth[task.mask], 90))


def restored(resolver: SuperResolver, task: Task, noise: float | None) -> np.ndarray:
    """What a model makes of a task if it is told this noise."""
    options = Options(output_resolution=task.zooms)
    result = resolver.enhance(
        task.coarse_image, options, Inputs(None, None, task.acquisition, noise)
    )
    return np.asarray(result.image.dataobj, dtype=np.float32)


def rows_of(
    loaded: Loaded, protocol: Protocol, models: dict[str, SuperResolver], done: set[str]
) -> list[dict[str, Any]]:
    """Rows of a head under a protocol that are not done yet."""
    methods = [*models, *(f"{name}, not told" for name in models if protocol.noise)]
    methods = [name for name in ("back-projection", "cubic", *methods) if name not in done]
    if not methods:
        return []
    task = protocol_task(loaded, protocol)
    simple = {method.name: method.restore for method in BASELINES}
    base = psnr(simple["back-projection"](task), task.truth, task.mask)
    found = []
    for method in methods:
        if method in simple:
            image = simple[method](task)
        else:
            name, _, blind = method.partition(", ")
            noise = noise_of(task, protocol) if protocol.noise and not blind else None
            image = restored(models[name], task, noise)
        value = psnr(image, task.truth, task.mask)
        row = {"head": loaded.head.name, "group": loaded.head.group, "protocol": protocol.key}
        found.append(
            row | {"method": method, "psnr": f"{value:.3f}", "gain": f"{value - base:.3f}"}
        )
    return found


def measure(data: Path, out: Path, model: str) -> None:
    """Compute and write what is not there yet."""
    rows = read(out) if out.is_file() else []
    models = {"nsmoe": SuperResolver.from_pretrained(model)}
    models |= {name: SuperResolver.from_pretrained(name) for name in ("student", "moediff")}
    heads = [middle(head.load()) for head in heads_of_manifest(data, "val")]
    for key in PROTOCOLS:
        for loaded in heads:
            name = loaded.head.name
            done = {r["method"] for r in rows if (r["head"], r["protocol"]) == (name, key)}
            rows += rows_of(loaded, parse_protocol(key), models, done)
            write_text(table_text(rows, [*COLUMNS]), out)
            print(key, name, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a table."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def values(path: Path) -> dict[str, Any]:
    """For ``research.results values``: mean gain over cubic + back-projection, and the worst."""
    gains: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in read(path):
        gains[row["protocol"], row["method"]][row["head"]] = float(row["gain"])
    numbers: dict[str, float] = {}
    rows = []
    for protocol in dict.fromkeys(protocol for protocol, _ in gains):
        cells = {"protocol": parse_protocol(protocol).name}
        for method, key in METHODS.items():
            found = list(gains.get((protocol, method), {}).values())
            cells[key] = f"{np.mean(found):+.2f} ({min(found):+.2f})" if found else "not measured"
            if found:
                numbers[f"{protocol}.{key}"] = round(float(np.mean(found)), 3)
        told, blind = gains[protocol, "nsmoe"], gains.get((protocol, "nsmoe, not told"), {})
        apart = [told[head] - blind[head] for head in told if head in blind]
        cells["told_gain"] = f"{np.mean(apart):+.2f} ({min(apart):+.2f})" if apart else ""
        rows.append(cells)
    columns = [
        ["protocol", "{protocol}"], ["cubic", "{cubic}"], ["N-SMoE", "{nsmoe}"],
        ["student", "{student}"], ["moediff", "{moediff}"],
        ["N-SMoE, not told the noise", "{blind}"], ["what telling gains", "{told_gain}"],
    ]  # fmt: skip
    return {"values": numbers, "rows": rows, "views": {"gains": {"columns": columns}}}


if __name__ == "__main__":
    if sys.argv[1] == "values":
        write_json(values(Path(sys.argv[2])), Path(sys.argv[3]))
    else:
        measure(Path(sys.argv[1]), Path(sys.argv[2]), (sys.argv[3:] or ["nsmoe"])[0])
