# SPDX-License-Identifier: Apache-2.0
"""What is trained: the regression mean, and the mixture of experts on top of it.

A stage knows its network, its batches, its loss and how well it does; the loop around it is in
:mod:`.trainer`. The student has a module of its own.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from bids_moediff.errors import UsageError, WeightsError
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import PARTS, MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR, equal_parameter_single
from bids_moediff.families.moediff.slices import restore_slices
from bids_moediff.families.moediff.training.losses import LossState, LossWeights, joint_loss
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import CONFIG_NAME

from .batches import patches, slices
from .guidance import guidance_maps
from .recipe import GUIDANCE, ExpertsRecipe, MeanRecipe, Recipe
from .validation import Case, gains
from .volumes import Volume

Batch = dict[str, torch.Tensor]
Init = Path | Sequence[Path] | None
Gains = dict[str, dict[str, float]]


class Stage(Protocol):
    """One thing to train."""

    recipe: Any

    @property
    def network(self) -> nn.Module:
        """What is trained and exported."""

    @property
    def tissue(self) -> bool:
        """Whether the loss wants tissue maps."""

    def network_settings(self) -> dict[str, Any]:
        """Settings for the section of config.json."""

    def begin(self, batches: Iterator[Batch]) -> None:
        """Whatever has to be done with batches of data before the first step."""

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add what the stage learns from; called in the threads that make volumes."""

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """One batch on the volumes' device."""

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss with gradient, and its parts as numbers."""

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains of a network (the averaged one) on the validation cases, in dB."""

    def memory(self) -> dict[str, Any]:
        """What the loss remembers between steps, in plain types."""

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


def run_mean(
    mean: MeanNetwork, start: torch.Tensor, condition: torch.Tensor, side: int
) -> torch.Tensor:
    """The mean's output of a volume, padded to cubes of `side`: one size runs fastest on a GPU."""
    padding = [amount for size in reversed(start.shape) for amount in (0, max(0, side - size))]
    # An edge to air where the volume was cut would be felt as far as the network sees.
    padded = torch.nn.functional.pad(start[None, None], padding, mode="replicate")[0, 0]
    return apply_to_volume(mean, padded, condition)[tuple(slice(0, size) for size in start.shape)]


# Error of interpolation, as a fraction of the range, below which a patch counts no more.
EASIEST = 0.005


def relative_weight(batch: Batch, border: int) -> torch.Tensor:
    """Weights (B, X, Y, Z) of the voxels, divided by the patch's mean error before learning."""
    inner = (..., *(slice(border, -border) if border else slice(None),) * 3)
    weight = batch["weight"]
    error = (weight * (batch["start"] - batch["target"]).abs())[inner].flatten(1).sum(1)
    share = 1 / (error / weight[inner].flatten(1).sum(1).clamp_min(1.0) + EASIEST)
    return weight * (share / share.mean())[:, None, None, None]


class MeanStage:
    """The 3-D regression mean on patches."""

    tissue = False

    def __init__(self, recipe: MeanRecipe, device: torch.device, init: MoEDiffModel | None):
        self.recipe, self.device = recipe, device
        self.network = MeanNetwork(MeanConfig(recipe.channels, recipe.blocks)).to(device)
        if init is not None:
            warm_start(self.network, init.mean)

    def network_settings(self) -> dict[str, Any]:
        """Settings for the section of config.json."""
        return self.network.config.to_dict()

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Nothing to add."""
        return volume

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Charbonnier loss of the mean's output."""
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

    def begin(self, batches: Iterator[Batch]) -> None:
        """Nothing to do."""

    def memory(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class MixtureStage:
    """What all stages of the mixture share: the frozen mean, and how well the whole does."""

    tissue = True
    recipe: Recipe

    def __init__(
        self, recipe: Recipe, device: torch.device, network: MoEDiffSR, init: MoEDiffModel | None
    ) -> None:
        self.recipe, self.device = recipe, device
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean: MeanNetwork | None = None
        if network.config.start == "mean":
            mean = None if init is None else init.mean
            if not isinstance(mean, MeanNetwork):
                raise UsageError(
                    "Experts that start from the mean need a trained one: "
                    "--init RUN_DIR (of the recipe mean) or --init MODEL."
                )
            self.mean = mean.to(device).eval().requires_grad_(False)
        self._starts: list[torch.Tensor] | None = None

    def network_settings(self) -> dict[str, Any]:
        """Settings for the section of config.json."""
        return self.network.config.to_dict()

    def _start(self, start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The frozen mean's output."""
        if self.mean is None:
            return start
        side = self.recipe.block if self.device.type == "cuda" else 0
        with autocast(self.device, self.recipe):
            return run_mean(self.mean, start, condition, side)

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the mean, which is computed once."""
        assert isinstance(network, MoEDiffSR)
        if self._starts is None:
            self._starts = [self._start(case.start, case.condition) for case in cases]
        steps = 4 if network.config.predicts_noise else 1

        def restore(start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), autocast(self.device, self.recipe):
                image, _, _ = restore_slices(
                    network, start, condition.to(self.device),
                    num_steps=steps, noise_strength=0.0, seed=0,
                )  # fmt: skip
            return image

        return gains(cases, restore, self._starts, "over_mean")

    def begin(self, batches: Iterator[Batch]) -> None:
        """Nothing to do."""

    def memory(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Nothing to restore."""


class ExpertsStage(MixtureStage):
    """The mixture of diffusion experts on slices of the frozen mean's output."""

    recipe: ExpertsRecipe

    def __init__(self, recipe: ExpertsRecipe, device: torch.device, init: MoEDiffModel | None):
        try:
            config = MoEDiffConfig.from_dict(recipe.network)
            weights = LossWeights(**recipe.losses)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The recipe is wrong: {error}.") from error
        if recipe.guidance:
            config = dataclasses.replace(config, guidance_channels=len(GUIDANCE))
        if recipe.single:
            config = equal_parameter_single(config)
        super().__init__(recipe, device, MoEDiffSR(config), init)
        same = None if init is None else init.moediff
        if isinstance(same, MoEDiffSR) and same.config == config:
            warm_start(self.network, same)
        elif config.latent != "haar":
            self._take_autoencoder(None if init is None else init.autoencoder)
        self.state = LossState(weights)

    def _take_autoencoder(self, trained: nn.Module | None) -> None:
        """Latents come from an autoencoder that was trained before."""
        if trained is None:
            raise UsageError(
                f"The latent {self.network.config.latent} needs a trained autoencoder: --init "
                "also takes the run of a recipe autoencoder."
            )
        warm_start(self.network.autoencoder, trained)

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """The experts start from the mean."""
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


def warm_start(network: nn.Module, trained: nn.Module | None) -> None:
    """Begin with trained weights where there are any of the same network."""
    if trained is None:
        return
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise UsageError("--init holds a network of other sizes than the recipe's.") from error


def load_init(init: Init) -> MoEDiffModel | None:
    """What to begin with: models (name or folder), runs of a mean or of an autoencoder.

    Each adds the networks that it has; of two of a kind the later one counts.
    """
    paths = [init] if isinstance(init, Path) else list(init or ())
    if not paths:
        return None
    found = {name: part for path in paths for name, part in _load_one(path).named_children()}
    return MoEDiffModel(found.get("mean"), found.get("moediff"), found.get("autoencoder"))


def _load_one(path: Path) -> MoEDiffModel:
    from .export import SECTIONS
    from .run_folder import read_run

    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        run = read_run(path)
        if run.stage not in ("mean", "autoencoder"):
            raise UsageError(
                f"{path} is a run of {run.stage}; --init takes models, and runs of a mean or of "
                "an autoencoder."
            )
        section = SECTIONS[run.stage][1]
        part = PARTS[section](run.network)
        part.load_state_dict(run.weights)
        return MoEDiffModel(**({"mean": None, "moediff": None} | {section: part}))
    network = load_model(path).network
    if not isinstance(network, MoEDiffModel):
        raise WeightsError(f"{path} is no moediff model.")
    return network


__all__ = [
    "Batch",
    "ExpertsStage",
    "Gains",
    "Init",
    "MeanStage",
    "MixtureStage",
    "Stage",
    "autocast",
    "charbonnier",
    "load_init",
    "warm_start",
]
