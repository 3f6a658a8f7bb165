# SPDX-License-Identifier: Apache-2.0
"""Train the mixture of diffusion experts on slices, on top of the frozen regression network."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from bids_moediff.errors import UsageError
from bids_moediff.families.load import Parts, init_parts
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR, equal_parameter_single
from bids_moediff.families.moediff.slices import restore_slices
from bids_moediff.families.whole_volume import run_padded
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.networks.mean import MeanNetwork
from bids_moediff.options import Options
from bids_moediff.training.batches import slices
from bids_moediff.training.guidance import GUIDANCE, guidance_maps
from bids_moediff.training.recipe import Recipe, check_crop
from bids_moediff.training.stage import Batch, Gains, Init, Stage, autocast, warm_start
from bids_moediff.training.validation import Case, gains
from bids_moediff.training.volumes import Volume

from .losses import LossState, LossWeights, joint_loss


@dataclass(frozen=True, kw_only=True)
class ExpertsRecipe(Recipe):
    """The mixture of experts on slices, on top of a frozen regression network.

    ``network`` are settings of MoEDiffConfig, ``losses`` of LossWeights. ``single`` replaces the
    mixture by one expert with as many weights. The gate is uniform for ``uniform_share`` of the
    steps. ``crop`` is the side of the slices. ``guidance`` names the maps that the gate sees in
    training (bias, nonlinearity); ``guidance_dropout`` of the slices go without them.
    """

    stage: ClassVar[str] = "experts"

    network: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, Any] = field(default_factory=dict)
    single: bool = False
    crop: int = 128
    uniform_share: float = 0.2
    guidance: tuple[str, ...] = ()
    guidance_dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.guidance) - set(GUIDANCE))
        if unknown:
            raise ValueError(f"guidance is of {', '.join(GUIDANCE)}, not {unknown[0]}")
        check_crop(self.crop)

    @property
    def smallest(self) -> int:
        """Fewest voxels along each side of a volume."""
        return self.crop

    @property
    def maps(self) -> bool:
        """Whether volumes need the maps that guide the gate."""
        return bool(self.guidance)


class MixtureStage(Stage):
    """Base of all stages of the mixture: the frozen regression network, and validation."""

    tissue = True
    network: MoEDiffSR
    recipe: Recipe

    def __init__(
        self, recipe: Recipe, device: torch.device, network: MoEDiffSR, parts: Parts
    ) -> None:
        self.recipe, self.device = recipe, device
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean: MeanNetwork | None = None
        if network.config.start == "mean":
            mean = parts.get("mean")
            if not isinstance(mean, MeanNetwork):
                raise UsageError(
                    "Experts that start from the mean need a trained one: "
                    "--init RUN_DIR (of the recipe mean) or --init MODEL."
                )
            self.mean = mean.to(device).eval().requires_grad_(False)
        self._starts: list[torch.Tensor] | None = None

    def _start(self, start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the output of the frozen regression network."""
        if self.mean is None:
            return start
        side = self.recipe.block if self.device.type == "cuda" else 0
        with autocast(self.device, self.recipe):
            return run_padded(self.mean, start, condition, side)

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Return gains over cubic and over the regression network, which runs once."""
        assert isinstance(network, MoEDiffSR)
        if self._starts is None:
            self._starts = [self._start(case.start, case.condition) for case in cases]
        steps = 4 if network.config.predicts_noise else 1

        def restore(start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast(self.device, self.recipe):
                image, _, _ = restore_slices(
                    network, start, condition.to(self.device), Options(num_steps=steps)
                )
            return image

        return gains(cases, restore, self._starts, "over_mean")


class ExpertsStage(MixtureStage):
    """The mixture of diffusion experts on slices of the frozen mean's output."""

    recipe: ExpertsRecipe

    def __init__(self, recipe: ExpertsRecipe, device: torch.device, init: Init):
        try:
            config = MoEDiffConfig.from_dict(recipe.network)
            weights = LossWeights(**recipe.losses)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The recipe is wrong: {error}.") from error
        if recipe.guidance:
            config = dataclasses.replace(config, guidance_channels=len(GUIDANCE))
        if recipe.single:
            config = equal_parameter_single(config)
        parts = init_parts(init)
        super().__init__(recipe, device, MoEDiffSR(config), parts)
        same = parts.get("moediff")
        if isinstance(same, MoEDiffSR) and same.config == config:
            warm_start(self.network, same)
        elif config.latent != "haar":
            self._take_autoencoder(parts.get("autoencoder"))
        self.state = LossState(weights)

    def _take_autoencoder(self, trained: nn.Module | None) -> None:
        """Take the autoencoder that an earlier stage trained."""
        if trained is None:
            raise UsageError(
                f"The latent {self.network.config.latent} needs a trained autoencoder: --init "
                "also takes the run of a recipe autoencoder."
            )
        warm_start(self.network.autoencoder, trained)

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Start the experts from the output of the regression network."""
        return volume | {"start": self._start(volume["start"].float(), volume["condition"])}

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Slices with their neighbours."""
        context = self.network.config.context_slices
        batch = slices(volumes, self.recipe.crop, context, self.recipe.batch, rng)
        if self.recipe.guidance:
            wanted = torch.tensor([name in self.recipe.guidance for name in GUIDANCE])
            kept = rng.random(self.recipe.batch) >= self.recipe.guidance_dropout
            present = batch.pop("given") & (torch.from_numpy(kept)[:, None] & wanted).to(
                batch["target"].device
            )
            batch["guidance"] = guidance_maps(batch.pop("maps"), present)
        return batch

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Equation 18."""
        self.state.progress = step / self.recipe.steps
        uniform = step < self.recipe.uniform_share * self.recipe.steps
        return joint_loss(self.network, batch, self.state, uniform_gate=uniform)

    def memory(self) -> dict[str, Any]:
        """Moving averages of the losses."""
        return self.state.state_dict()

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restore :meth:`memory`."""
        self.state.load_state_dict(memory)
