# SPDX-License-Identifier: Apache-2.0
"""What a training leaves in its folder: record, curve and averaged weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_moediff.errors import UsageError
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.networks.mean import MeanConfig
from bids_moediff.runtime.platform import allowed_processors, processor_name
from bids_moediff.training.state import BEST_NAME, STATE_NAME, part, read_state


@dataclass(frozen=True)
class Run:
    """One finished or stopped training: stage, network settings, averaged weights, record."""

    stage: str
    network: dict[str, Any]
    weights: dict[str, torch.Tensor]
    record: dict[str, Any]
    curve: list[dict[str, Any]]


def _network(record: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Settings of the network; early runs wrote them into the recipe only."""
    if "network" in record:
        return dict(record["network"])
    recipe = record["recipe"]
    if stage == "mean":
        return MeanConfig(recipe["channels"], recipe["blocks"]).to_dict()
    return MoEDiffConfig(
        width=recipe["width"],
        experts=tuple(recipe["experts"]),
        diffusion_steps=tuple(recipe["diffusion_steps"]),
    ).to_dict()


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
        raise UsageError(f"{folder} is no training run: it holds no {STATE_NAME}.")
    tensors, record = read_state(path)
    weights = part(tensors, "average.")
    stage = record.get("stage") or ("mean" if "channels" in record["recipe"] else "experts")
    return Run(stage, _network(record, stage), weights, record, read_curve(folder))


def hardware() -> str:
    """The machine in plain words: the accelerator's or the processor's model, never its name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"{allowed_processors()} cores of a {processor_name()}"
