# SPDX-License-Identifier: Apache-2.0
"""Resumable training state in safetensors: weights, their average, optimiser moments."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class WeightAverage:
    """Exponential moving average of weights with a warm-up of the decay."""

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Blend the current weights in."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                self.values[key].lerp_(value, 1 - decay)
            else:
                self.values[key].copy_(value)


def save_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Write state.safetensors and state.json atomically into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.values.items()}
    for index, values in optimiser.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value).contiguous()
    temporary = folder / "state.tmp"
    save_file(
        {k: v.clone() for k, v in tensors.items()}, temporary, {"record": json.dumps(record)}
    )
    temporary.replace(folder / "state.safetensors")


def load_state(
    folder: Path,
    network: nn.Module,
    average: WeightAverage,
    optimiser: torch.optim.Optimizer,
) -> dict[str, Any] | None:
    """Restore what :func:`save_state` wrote; None if there is nothing."""
    path = folder / "state.safetensors"
    if not path.is_file():
        return None
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "pt") as archive:
        record: dict[str, Any] = json.loads(archive.metadata()["record"])
    network.load_state_dict(_part(tensors, "network."))
    average.values = _part(tensors, "average.")
    state = optimiser.state_dict()
    for name, value in _part(tensors, "optimiser.").items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(state)
    return record


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
