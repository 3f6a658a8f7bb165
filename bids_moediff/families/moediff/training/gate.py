# SPDX-License-Identifier: Apache-2.0
"""Teach the gate of a finished mixture the tissues: tokens and gate alone, from tissue masks.

At inference the gate sees the output of the regression network, which costs far more than the
gate. In training it sees a random blend of the interpolated slice and the truth instead. The
output lies between the two, so a gate that is right for every blend is right for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bids_moediff.errors import UsageError
from bids_moediff.families.load import init_parts
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.training.batches import slices
from bids_moediff.training.recipe import Recipe, check_crop
from bids_moediff.training.stage import Batch, Gains, Init
from bids_moediff.training.validation import Case
from bids_moediff.training.volumes import Volume

from .experts import MixtureStage
from .losses import tissue_gating


@dataclass(frozen=True, kw_only=True)
class GateRecipe(Recipe):
    """Tokens and gate of a trained mixture, taught by tissue masks on slices of side ``crop``."""

    stage: ClassVar[str] = "gate"

    crop: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_crop(self.crop)

    @property
    def smallest(self) -> int:
        """Fewest voxels along each side of a volume."""
        return self.crop


def balanced(tissue: Tensor) -> Tensor:
    """Return masks (B, 3, H, W) as weights, so that every tissue counts the same in the batch."""
    share = tissue.float().mean((0, 2, 3), keepdim=True)
    return tissue / share.clamp_min(1e-4)


class GateStage(MixtureStage):
    """Tokens and gate of a trained mixture; regression network and experts are frozen."""

    recipe: GateRecipe

    def __init__(self, recipe: GateRecipe, device: torch.device, init: Init) -> None:
        parts = init_parts(init)
        network = parts.get("moediff")
        if not isinstance(network, MoEDiffSR) or len(network.experts) < 2:
            raise UsageError("The gate is that of a trained mixture of experts: --init MODEL.")
        super().__init__(recipe, device, network, parts)
        self.network.requires_grad_(False)
        self.network.tokens.requires_grad_(True)
        self.network.gating.requires_grad_(True)

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add nothing: the blend is drawn slice by slice."""
        return volume

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Slices `image` (B, H, W) with their `tissue` masks and where these are known."""
        batch = slices(volumes, self.recipe.crop, 1, self.recipe.batch, rng)
        target = batch["target"]
        sharpness = torch.from_numpy(rng.random((len(target), 1, 1), dtype=np.float32))
        image = torch.lerp(batch["start"][:, 0], target, sharpness.to(target.device))
        return {"image": image, "tissue": batch["tissue"], "valid": batch["tissue_valid"]}

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy between the gates on the latent grid and the tissues."""
        gates = self.network.gate_tokens(self.network.encode_tokens(batch["image"])).latent
        experts = self.network.config.experts
        loss = tissue_gating(gates, balanced(batch["tissue"]), batch["valid"], experts)
        usage = gates.detach().mean((0, 2, 3)).tolist()
        logs = {f"gate_{name}": usage[index] for index, name in enumerate(experts)}
        return loss, logs | {"loss": float(loss.detach())}

    def validate(self, network: torch.nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains under the first protocol only: another gate hardly changes the image."""
        return super().validate(network, [c for c in cases if c.protocol == cases[0].protocol])
