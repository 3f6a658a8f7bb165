# SPDX-License-Identifier: Apache-2.0
"""The learned latents: an autoencoder of slices, trained before the experts that work in it.

Super-resolved slices are coded as residuals, so what counts is not how well a slice is reproduced
but how much of a *change* survives: ``interpolated + D(E(truth)) - D(E(interpolated))``. That is
validated, as the gain that perfect experts would reach in this latent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bids_moediff.errors import UsageError
from bids_moediff.families.load import init_parts
from bids_moediff.families.moediff.config import LATENT_FACTOR, MoEDiffConfig
from bids_moediff.families.moediff.latents import (
    Autoencoder,
    build_autoencoder,
    residual_decode,
)
from bids_moediff.families.moediff.training.losses import sobel, weighted_error
from bids_moediff.training.batches import slices
from bids_moediff.training.recipe import Recipe
from bids_moediff.training.stage import Batch, Gains, Init, Stage, warm_start
from bids_moediff.training.validation import Case, gains_of
from bids_moediff.training.volumes import Volume

# Settings of MoEDiffConfig that an autoencoder is made of.
SETTINGS = ("latent", "latent_channels", "autoencoder_width", "codebook_size")


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe):
    """A learned latent for the experts, on slices of `crop` voxels.

    ``network`` are those settings of MoEDiffConfig that concern the latent. The loss is the L1
    error of reconstructed slices, the Sobel error, the error of a change that goes through the
    latent, and the prior (Kullback-Leibler divergence, or codebook and commitment), each with its
    weight.
    """

    stage: ClassVar[str] = "autoencoder"

    network: dict[str, Any] = field(default_factory=dict)
    crop: int = 128
    sobel_weight: float = 0.5
    residual_weight: float = 1.0
    prior_weight: float = 1e-4

    @property
    def smallest(self) -> int:
        """Voxels that every side of a volume needs."""
        return self.crop


class AutoencoderStage(Stage):
    """A "kl" or "vq" autoencoder on slices of truths and of their interpolations."""

    tissue = True  # slices are drawn as for the experts
    network: Autoencoder

    def __init__(self, recipe: AutoencoderRecipe, device: torch.device, init: Init) -> None:
        self.recipe, self.device = recipe, device
        try:
            self.config = MoEDiffConfig.from_dict(recipe.network)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The recipe is wrong: {error}.") from error
        if self.config.latent == "haar":
            raise UsageError(
                "The haar latent has nothing to train: set network.latent to kl or vq."
            )
        self.network = build_autoencoder(self.config).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        warm_start(self.network, init_parts(init).get("autoencoder"))

    def network_settings(self) -> dict[str, Any]:
        """Settings for the section of config.json."""
        values = self.config.to_dict()
        return {name: values[name] for name in SETTINGS}

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Slices with their interpolations."""
        return slices(volumes, self.recipe.crop, 1, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """L1 and Sobel error of truths and interpolations, of the change between them, and prior.

        The change is coded from the latents that inference uses (no sampling of the posterior).
        """
        recipe, truth, start = self.recipe, batch["target"][:, None], batch["start"]
        both = torch.cat([truth, start])
        output, prior = self.network.reconstruct(both)
        output = output.float()
        fidelity = weighted_error(output, both, None)
        edges = weighted_error(sobel(output), sobel(both), None)
        latents = self.network.encode(both)
        clean, origin = latents.chunk(2)
        changed = residual_decode(self.network, start, origin, clean).float()
        residual = weighted_error(changed, truth, None)
        loss = fidelity + recipe.sobel_weight * edges + recipe.residual_weight * residual
        loss = loss + recipe.prior_weight * prior.float()
        logs = {
            "loss": loss,
            "fidelity": fidelity,
            "residual": residual,
            "prior": prior,
            # network.latent_scale of the experts is best the inverse of this.
            "deviation": latents.float().std(),
        }
        return loss, {name: float(value.detach()) for name, value in logs.items()}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the start of the truth that went through the latent."""
        assert isinstance(network, Autoencoder)
        return gains_of(cases, [coded_truth(network, case) for case in cases])


def coded_truth(network: Autoencoder, case: Case, batch: int = 16) -> torch.Tensor:
    """What perfect experts would give: start + D(E(truth)) - D(E(start)), slice by slice."""
    size = case.start.shape[1:]
    padding = (0, -size[1] % LATENT_FACTOR, 0, -size[0] % LATENT_FACTOR)
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(case.start), batch):
            start, truth = (
                functional.pad(volume[begin : begin + batch, None], padding)
                for volume in (case.start, case.truth)
            )
            origin, clean = network.encode(start), network.encode(truth)
            parts.append(residual_decode(network, start, origin, clean)[:, 0])
    return torch.cat(parts)[:, : size[0], : size[1]]
