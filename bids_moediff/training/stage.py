# SPDX-License-Identifier: Apache-2.0
"""Base class of a training stage: its network, its batches, its loss, and its validation.

The loop is in :mod:`.loop`; the stages are with their families.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_moediff.errors import UsageError
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.networks.composite import Composite

from .recipe import Recipe
from .validation import Case
from .volumes import Volume

Batch = dict[str, torch.Tensor]
Init = Path | Sequence[Path] | Composite | None
Gains = dict[str, dict[str, float]]


class Stage:
    """One training stage. ``network`` is trained and exported."""

    network: nn.Module
    recipe: Any
    device: torch.device
    # Whether the loss wants tissue maps.
    tissue = False

    def network_settings(self) -> dict[str, Any]:
        """Return the settings for the section of config.json."""
        settings: dict[str, Any] = self.network.config.to_dict()  # type: ignore[union-attr, operator]
        return settings

    def begin(self, batches: Iterator[Batch]) -> None:
        """Do what is needed before the first step, with batches of data."""

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add the targets of the stage; called in the threads that make volumes."""
        return volume

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Return one batch on the volumes' device."""
        raise NotImplementedError

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss with gradient, and its parts as numbers."""
        raise NotImplementedError

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Return the gains of a network (the averaged one) on the validation cases, in dB."""
        raise NotImplementedError

    def memory(self) -> dict[str, Any]:
        """Return the state of the loss between steps, in plain types."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restore :meth:`memory`."""


def autocast(device: torch.device, recipe: Recipe) -> torch.autocast:
    """Mixed precision of the recipe, for what runs outside the training step."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")


def charbonnier(
    output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, epsilon: float, border: int
) -> torch.Tensor:
    """Weighted sqrt(e^2 + eps^2) - eps, without the `border` voxels that see zero padding."""
    inner = (..., *(slice(border, -border) if border else slice(None),) * 3)
    error = torch.sqrt((output[inner] - target[inner]).square() + epsilon**2) - epsilon
    return (weight[inner] * error).sum() / weight[inner].sum().clamp_min(1.0)


# Error of interpolation, as a fraction of the range, below which a patch counts no more.
EASIEST = 0.005


def relative_weight(batch: Batch, border: int) -> torch.Tensor:
    """Weights (B, X, Y, Z) of the voxels, divided by the patch's mean error before learning."""
    inner = (..., *(slice(border, -border) if border else slice(None),) * 3)
    weight = batch["weight"]
    error = (weight * (batch["start"] - batch["target"]).abs())[inner].flatten(1).sum(1)
    share = 1 / (error / weight[inner].flatten(1).sum(1).clamp_min(1.0) + EASIEST)
    return weight * (share / share.mean())[:, None, None, None]


def warm_start(network: nn.Module, trained: nn.Module | None) -> None:
    """Begin with trained weights where there are any of the same network."""
    if trained is None:
        return
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise UsageError("--init holds a network of other sizes than the recipe's.") from error
