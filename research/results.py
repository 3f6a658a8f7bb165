# SPDX-License-Identifier: Apache-2.0
"""Write result tables beside the weights, from which all pages take their numbers.

    python -m research.results benchmark OUT student benchmark --command 'bids_moediff-evaluate …'
    python -m research.results values FILE.json moediff scales --command '…' --images 7 --people 6

The first takes the folder of ``bids_moediff-evaluate benchmark``, the second any numbers: a JSON
object ``{"values": {name: number}, "rows": [{…}], "views": {name: {"columns": [[heading, format],
…]}}}``. ``lesions``, ``calibration``, ``coverage`` and ``sampling`` take the folder of that
evaluation. The model ``app`` stands for measurements that depend on no weights. Then put marks
into the pages and call ``python tools/figures.py --write``.
"""

import argparse
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_moediff.evaluation.benchmark import read_rows
from bids_moediff.evaluation.gates import GATES, OTHER_SITE_SHARE
from bids_moediff.evaluation.summary import BASELINES, summarise
from bids_moediff.evaluation.truth import OTHER_SITE
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.networks.model_folder import MODELS_FOLDER
from bids_moediff.runtime.platform import processor_information, processor_name
from bids_moediff.runtime.sink import write_json

from .evaluation_tables import KINDS, person

APP = Path(__file__).parents[1] / "docs/app"  # measurements that depend on no weights
INTERVAL = "95 % bootstrap intervals over images"
INTERESTING = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def processor() -> str:
    """Name of the processor and those of its flags that decide the arithmetic."""
    lines = [line for line in processor_information() if line.startswith("flags")]
    flags = [flag for flag in INTERESTING if lines and flag in lines[0].split()]
    return f"{processor_name()}: {' '.join(flags) or 'none of the usual flags'}"


def write_result(model: str, name: str, content: Mapping[str, Any]) -> Path:
    """Write ``results/NAME.json`` of a model.

    Parameters
    ----------
    model, name
        Folder below ``bids_moediff/data/models`` (or "app"), and the table's name.
    content
        At least ``command``, ``images``, ``people`` and ``values``; optionally ``rows`` and
        ``views`` for whole tables, ``weights`` (a file of the folder other than
        model.safetensors), ``precision``, ``interval``, ``note``, and ``sha256``, ``date`` and
        ``processor`` where they are not those of now.
    """
    folder = APP if model == APP.name else MODELS_FOLDER / model
    weights = str(content.get("weights", "" if folder == APP else "model.safetensors"))
    table = {
        "command": content["command"],
        "weights": weights,
        "sha256": hashlib.sha256((folder / weights).read_bytes()).hexdigest() if weights else "",
        "precision": "",
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "images": content["images"],
        "people": content["people"],
        "interval": "",
        "note": "",
        "values": content["values"],
        "rows": [],
        "views": {},
    }
    (folder / "results").mkdir(parents=True, exist_ok=True)
    return write_json(table | dict(content), folder / "results" / f"{name}.json")


def of_benchmark(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, Any]:
    """Values, rows and views of one method of a benchmark; ValueError if several versions."""
    mine = [dict(row) for row in rows if row["method"] in (*BASELINES, method)]
    versions = {row["version"] for row in mine if row["method"] == method}
    if len(versions) != 1:
        raise ValueError(f"{len(versions)} versions of {method}: keep one in the table of rows")
    entries = [_shown(entry) for entry in summarise(mine) if entry["method"] == method]
    values = {
        f"{entry['protocol']}.{entry['group'].split()[0]}.{name}": value
        for entry in entries
        for name, value in entry.items()
        if isinstance(value, int | float)
    }
    heads = sorted({row["head"] for row in mine if row["method"] == method})
    return {
        "precision": versions.pop().split()[1],
        "images": len(heads),
        "people": len({person(head) for head in heads}),
        "interval": INTERVAL,
        "values": values,
        "rows": entries + _by_image(mine),
        "views": VIEWS | {"images": {"where": {"kind": ["image"]}, "columns": _columns(method)}},
    }


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the summary with what its cells show."""
    told = {"kind": "mean", "name": parse_protocol(entry["protocol"]).name}
    for key in ("over_cubic", "over_back_projection"):
        low, high = entry[f"{key}_low"], entry[f"{key}_high"]
        several = f" [{low:+.2f}, {high:+.2f}]" if entry["heads"] > 1 else ""
        told[f"{key}_text"] = f"{entry[key]:+.2f}{several}"
    told["gate_text"] = ""
    if entry["gate"]:
        share = OTHER_SITE_SHARE if entry["group"] == OTHER_SITE else 1.0
        cubic, back = (share * gate for gate in GATES[entry["protocol"]])
        told["gate_text"] = f"{entry['gate']} ({cubic:+.2f}, {back:+.2f})"
    return {**entry, **told}


def _by_image(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an image and protocol, PSNR by method."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["head"], row["protocol"])
        name = parse_protocol(row["protocol"]).name
        base = {"kind": "image", "name": name, **{k: row[k] for k in ("head", "group", "ratios")}}
        found.setdefault(key, base)[row["method"]] = row["psnr"]
    return list(found.values())


def _columns(method: str) -> list[list[str]]:
    names = [["image", "{head}"], ["site", "{group}"], ["protocol", "{name}"]]
    return [*names, ["ratio", "{ratios}"], *([m, f"{{{m}:.2f}}"] for m in (*BASELINES, method))]


VIEWS: dict[str, Any] = {
    "gains": {
        "where": {"kind": ["mean"]},
        "columns": [
            ["protocol", "{name}"],
            ["images", "{group} ({heads})"],
            ["cubic", "{psnr_cubic:.2f}"],
            ["cubic + back-projection (BP)", "{psnr_back_projection:.2f}"],
            ["PSNR", "{psnr:.2f}"],
            ["over cubic", "{over_cubic_text}"],
            ["over cubic + BP", "{over_back_projection_text}"],
            ["worst image over cubic + BP", "{worst_over_back_projection:+.2f} ({worst_head})"],
            ["gate", "{gate_text}"],
        ],
    },
    "slow": {
        "where": {"kind": ["mean"]},
        "columns": [
            ["protocol", "{name}"],
            ["images", "{group} ({heads})"],
            ["SSIM", "{ssim:.3f}"],
            ["HFEN", "{hfen:.3f}"],
            ["flicker", "{worst_flicker:.3f}"],
            ["band correlation", "{band_correlation:.3f}"],
            ["band power", "{band_power:.3f}"],
            ["residual", "{worst_residual:.1e}"],
        ],
    },
}


def main() -> None:
    """Write one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["benchmark", "values", *KINDS])
    parser.add_argument("source", type=Path, help="folder of an evaluation, or a JSON file")
    parser.add_argument("model", help="folder below bids_moediff/data/models, or app")
    parser.add_argument("name", help="name of the table")
    parser.add_argument("--command", required=True, help="what made the numbers")
    parser.add_argument("--weights", help="file of the model's folder (model.safetensors)")
    parser.add_argument("--images", type=int)
    parser.add_argument("--people", type=int)
    for name in ("precision", "interval", "date", "sha256"):
        parser.add_argument(f"--{name}")
    asked = parser.parse_args()
    names = ("images", "people", "precision", "interval", "weights", "date", "sha256")
    told = {name: getattr(asked, name) for name in names if getattr(asked, name)}
    told["command"] = asked.command
    if asked.kind == "benchmark":
        content = of_benchmark(read_rows(asked.source / "rows.tsv"), asked.model)
    elif asked.kind == "values":
        content = json.loads(asked.source.read_text(encoding="utf-8"))
    else:
        content = KINDS[asked.kind](asked.source, asked.model)
    print(write_result(asked.model, asked.name, content | told))


if __name__ == "__main__":
    main()
