# SPDX-License-Identifier: Apache-2.0
"""Write MODEL_CARD.md: what a model is, its training data, its training, and its quality."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .run_folder import Run

PARTS = ("training", "validation")
PEOPLE = Path(__file__).resolve().parents[1] / "data" / "training_people.json"
LIMITS = """\
For research. Detail that no scan measured is an estimate: do not read lesions off it alone, and do
not diagnose, plan a treatment or measure an effect by it without a check against scans that were
measured finely. Not for infants, animals, other organs, or functional, diffusion or angiographic
series. Training drew voxel ratios from 1.25 to 6, on several axes at once up to 3.
"""


def parameters(network: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def _table(rows: Sequence[tuple[str, Any]], heading: tuple[str, str]) -> list[str]:
    lines = [f"| {heading[0]} | {heading[1]} |", "|---|---|"]
    return [*lines, *(f"| {name} | {value} |" for name, value in rows), ""]


def _gains(row: Mapping[str, Any]) -> list[str]:
    protocols: Mapping[str, Mapping[str, float]] = row["gains"]
    columns = list(dict.fromkeys(key for values in protocols.values() for key in values))
    heading = ["protocol", *(name.replace("_", " ") for name in columns)]
    lines = [f"| {' | '.join(heading)} |", "|---" * len(heading) + "|"]
    for protocol, values in protocols.items():
        cells = [f"{values[key]:+.2f}" if key in values else "n/a" for key in columns]
        lines.append(f"| {protocol} | {' | '.join(cells)} |")
    return [*lines, ""]


def _stage(run: "Run") -> list[str]:
    record, data = run.record, run.record["data"]
    lines = [f"## Training: {run.stage}", ""]
    lines += _table(
        [
            ("steps", record["step"]),
            ("hours", f"{record['seconds'] / 3600:.2f}"),
            ("hardware", record["hardware"]),
            ("training data, SHA-256 of the pack", f"`{data['sha256']}`"),
        ],
        ("run", ""),
    )
    if data.get("training"):
        lines += [f"Trained on {len(data['training'])} volumes: {', '.join(data['training'])}."]
        lines += [f"Steered by: {', '.join(data['validation'])}.", ""]
    lines += _table([(key, value) for key, value in record["recipe"].items()], ("recipe", ""))
    rows = [row for row in run.curve if row["step"] <= record["step"]]
    if rows:
        lines += [f"Gain in dB on the development heads at step {rows[-1]['step']}:", ""]
        lines += _gains(rows[-1])
    return lines


def _people(images: Iterable[str]) -> list[str]:
    """Return the number of subjects that a model was trained on, as far as sources say."""
    known = json.loads(PEOPLE.read_text(encoding="utf-8"))
    seen = {
        tuple(row[key] for key in ("people", "scanner", "contrast"))
        for image in images
        for row in known
        if image.startswith(row["prefix"])
    }
    if not seen:
        return []
    lines = [
        "## People",
        "",
        "Whose images trained and steered it, as far as their sources say.",
        "",
    ]
    lines += ["| people | scanner | contrast |", "|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in sorted(seen)]
    return [*lines, "", "Few people, mostly T1w. Of most neither age nor sex is stated.", ""]


def model_card(
    config: Mapping[str, Any], network: nn.Module, runs: Sequence["Run"], text: str
) -> str:
    """Markdown of the card, with the family's `text`; `curve.png` stands beside it."""
    family = str(config["family"])
    lines = [f"# {family}, version {config['version']}", "", text, ""]
    lines += [f"{parameters(network) / 1e6:.2f} million weights, stored as 16-bit floats."]
    lines += ["The moving average of the weights is what is stored.", ""]
    for run in runs:
        lines += _stage(run)
    data = [run.record["data"] for run in runs]
    lines += _people(name for part in data for key in PARTS for name in part.get(key) or ())
    lines += ["![Loss and validation gain against the step](curve.png)", ""]
    lines += ["The same numbers stand in `curve.json`.", "", "## Limits", "", LIMITS]
    lines += ["## Licence", "", "Apache-2.0. Training data and their licences: docs/data.md."]
    return "\n".join(lines) + "\n"
