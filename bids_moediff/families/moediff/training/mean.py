# SPDX-License-Identifier: Apache-2.0
"""Train the regression network on patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from bids_moediff.families.load import init_parts
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.training.batches import patches
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import (
    Batch,
    Gains,
    Init,
    Stage,
    autocast,
    charbonnier,
    relative_weight,
    warm_start,
)
from bids_moediff.training.validation import Case, gains
from bids_moediff.training.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class MeanRecipe(PatchRecipe):
    """The regression network: residual blocks, patch side, Charbonnier loss without a border.

    With ``relative`` every patch counts by the inverse of the error of interpolation there, so
    that easy and hard acquisitions gain as many decibels.
    """

    stage: ClassVar[str] = "mean"

    channels: int = 48
    blocks: int = 6
    patch: int = 48
    border: int = 4
    epsilon: float = 0.02
    relative: bool = False


class MeanStage(Stage):
    """The 3-D regression network on patches."""

    def __init__(self, recipe: MeanRecipe, device: torch.device, init: Init):
        self.recipe, self.device = recipe, device
        self.network = MeanNetwork(MeanConfig(recipe.channels, recipe.blocks)).to(device)
        warm_start(self.network, init_parts(init).get("mean"))

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the Charbonnier loss of the output."""
        output = self.network(batch["start"][:, None], batch["condition"])[:, 0].float()
        recipe, weight = self.recipe, batch["weight"]
        if recipe.relative:
            weight = relative_weight(batch, recipe.border)
        loss = charbonnier(output, batch["target"], weight, recipe.epsilon, recipe.border)
        return loss, {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the consistent interpolation."""
        assert isinstance(network, MeanNetwork)

        def restore(start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            with autocast(self.device, self.recipe):
                return apply_to_volume(network, start, condition)

        return gains(cases, restore)
