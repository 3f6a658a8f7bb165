# SPDX-License-Identifier: Apache-2.0
"""Resumable training state in safetensors: weights, their average, optimiser moments."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.runtime.sink import write_bytes

STATE_NAME = "state.safetensors"
BEST_NAME = "best.safetensors"


class WeightAverage:
    """Exponential moving average of weights with a warm-up of the decay."""

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Blend the current weights in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        values = network.state_dict()
        floating = [key for key, value in values.items() if value.dtype.is_floating_point]
        ours, theirs = [self.values[key] for key in floating], [values[key] for key in floating]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for key in values.keys() - set(floating):
            self.values[key].copy_(values[key])


def _write(tensors: dict[str, torch.Tensor], record: dict[str, Any], path: Path) -> None:
    """Write under another name and rename; a full disk leaves the old file as it was."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        write_bytes(save(plain, {"record": json.dumps(record)}), path)
    except OSError as error:
        kept = "the state saved before is whole" if path.is_file() else "nothing was saved before"
        raise MoediffError(
            f"The state of step {record['step']} cannot be saved in {path.parent} "
            f"({error.strerror}); {kept}. Make room and give the same command again."
        ) from error


def save_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Write state.safetensors atomically into `folder`.

    MoediffError if the disk is full.
    """
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.values.items()}
    for index, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value)
    _write(tensors, record, folder / STATE_NAME)


def save_best(folder: Path, average: WeightAverage, record: dict[str, Any]) -> None:
    """Write the averaged weights of the best validation as best.safetensors."""
    tensors = {f"average.{key}": value for key, value in average.values.items()}
    _write(tensors, record, folder / BEST_NAME)


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and record of a state file; UsageError if it is none."""
    try:
        with safe_open(path, "pt") as archive:
            record: dict[str, Any] = json.loads(archive.metadata()["record"])
            names = list(archive.keys())
            return {name: archive.get_tensor(name) for name in names}, record
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UsageError(f"{path} is not a readable training state: {reason}.") from error


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Tensors whose name begins with the prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
) -> dict[str, Any] | None:
    """Restore what :func:`save_state` wrote; None if there is nothing.

    UsageError for a damaged file, and for one of another network.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    tensors, record = read_state(path)
    try:
        network.load_state_dict(part(tensors, "network."))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} belongs to another network: {reason}") from error
    for key, value in part(tensors, "average.").items():
        average.values[key].copy_(value)
    state = optimiser.state_dict()
    for name, value in part(tensors, "optimiser.").items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(state)
    return record
