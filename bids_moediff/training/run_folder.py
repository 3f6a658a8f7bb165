# SPDX-License-Identifier: Apache-2.0
"""Read the folder of a training: record, curve and averaged weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_moediff.errors import UsageError
from bids_moediff.runtime.platform import allowed_processors, processor_name
from bids_moediff.training.state import BEST_NAME, STATE_NAME, part, read_state


@dataclass(frozen=True)
class Run:
    """One finished or stopped training.

    Its stage, the family and the section of config.json that it fills, whether later stages may
    start from it, network settings, averaged weights, record and curve.
    """

    stage: str
    family: str
    section: str
    begins_others: bool
    network: dict[str, Any]
    weights: dict[str, torch.Tensor]
    record: dict[str, Any]
    curve: list[dict[str, Any]]


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Validation rows of a run, oldest first; a torn last line is left out."""
    path = folder / "curve.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_run(folder: Path) -> Run:
    """Averaged weights and record of a run folder.

    The weights of the best validation are taken where the run kept them (best.safetensors), the
    last ones otherwise. UsageError for a folder without a readable state.
    """
    best = folder / BEST_NAME
    path = best if best.is_file() else folder / STATE_NAME
    if not path.is_file():
        raise UsageError(f"{folder} is not a training run: it has no {STATE_NAME}.")
    tensors, record = read_state(path)
    weights = part(tensors, "average.")
    try:
        names = [str(record[name]) for name in ("stage", "family", "section")]
        network = dict(record["network"])
    except KeyError as error:
        raise UsageError(
            f"{folder} is a run of an early version, which this one cannot read."
        ) from error
    begins = bool(record.get("begins_others"))
    return Run(names[0], names[1], names[2], begins, network, weights, record, read_curve(folder))


def hardware() -> str:
    """The machine in plain words: the accelerator's or the processor's model, never its name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{allowed_processors()} cores of a {processor_name()}"
