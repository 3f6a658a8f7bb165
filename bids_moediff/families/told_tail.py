# SPDX-License-Identifier: Apache-2.0
"""Fit a last layer to noise, filters and softness of the scan by least squares.

The features stay the same. So does the result for a scan without noise and with a hard k-space
edge. For each number of :mod:`bids_moediff.imaging.told` the layer gets a further part, fitted to
the output of the teacher without noise (:mod:`bids_moediff.training.uncertain`).
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.errors import UsageError
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.told import EXTRA_NUMBERS
from bids_moediff.networks.last_layer import ACQUISITION_NUMBERS, within_training
from bids_moediff.networks.mean import FOLD, OUTPUT_GAIN, MeanNetwork, space_to_depth
from bids_moediff.runtime.progress_bar import track
from bids_moediff.training.batches import patches
from bids_moediff.training.lag_moments import ConditionedMoments, lag_moments
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import EASIEST, Batch, Gains, Init, Stage, autocast, charbonnier
from bids_moediff.training.validation import Case, gains
from bids_moediff.training.volumes import Volume

from .load import init_parts


@dataclass(frozen=True, kw_only=True)
class StudentToldTailRecipe(PatchRecipe):
    """The part of the last layer for the numbers of :mod:`bids_moediff.imaging.told`; no steps.

    It is fitted to the teacher's output without noise on ``fitted_patches`` patches. Their outer
    ``border`` voxels are left out, and the next ``fade`` voxels fade in. ``ridge`` is relative to
    the mean square of the features.
    """

    stage: ClassVar[str] = "student-told-tail"
    taught: ClassVar[str] = "student"
    least_steps: ClassVar[int] = 0

    patch: int = 64
    border: int = 6
    fade: int = 14
    epsilon: float = 0.02
    fitted_patches: int = 400
    ridge: float = 1e-2

    @property
    def uncertain(self) -> bool:
        """Scans are simulated with noise and filters."""
        return True


@dataclass(frozen=True, kw_only=True)
class MeanToldTailRecipe(StudentToldTailRecipe):
    """The same for the regression network of a moediff model, which is its own teacher."""

    stage: ClassVar[str] = "mean-told-tail"
    taught: ClassVar[str] = "mean"


def with_told_tail(network: Any) -> Any:
    """Return the network with a last layer that takes the further numbers, same output so far."""
    config: Any = network.config
    made = type(network)(replace(config, conditioned_tail=True, extra_numbers=EXTRA_NUMBERS))
    state = made.state_dict()
    for name in ("tail_terms.weight", "tail_terms.bias"):
        state[name].zero_()
    for name, value in network.state_dict().items():
        state[name][: len(value)] = value
    made.load_state_dict(state)
    return made


def fading(side: int, border: int, fade: int) -> Tensor:
    """Return weights (side, side, side): 0 in the border, rising to 1 over ``fade`` voxels."""
    place = torch.arange(side) + 0.5 - border
    depth = torch.minimum(place, side - 2 * border - place).clamp(0, fade)
    line = torch.sin(depth * (torch.pi / 2 / fade)).square()
    return line[:, None, None] * line[None, :, None] * line[None, None, :]


def _weight(batch: Batch, window: Tensor) -> Tensor:
    """Return weights (B, x, y, z) of folded voxels: the head over interpolation's error."""
    weight, error = batch["weight"], (batch["start"] - batch["target"]).abs()
    mean = (weight * error).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)
    folded = functional.avg_pool3d(weight[:, None], FOLD)
    for _ in range(2):  # a sharp edge would look like anatomy to the moments
        padded = functional.pad(folded, (1,) * 6, mode="replicate")
        folded = torch.minimum(functional.avg_pool3d(padded, 3, 1), folded)
    easy = (EASIEST / (mean + EASIEST)).square()[:, None, None, None]
    return folded[:, 0] * window.to(folded) * easy


def wanted_of(teacher: MeanNetwork, batch: Batch) -> Tensor:
    """Return the target of the network (B, 1, X, Y, Z)."""
    wanted = teacher(batch["clear_start"][:, None], within_training(batch["clear_condition"]))
    by_truth = batch["by_truth"][:, None, None, None, None]
    return torch.where(by_truth, batch["target"][:, None], wanted)


@torch.no_grad()
def fit_told_tail(
    teacher: MeanNetwork,
    network: Any,
    batches: Iterable[Batch],
    recipe: StudentToldTailRecipe,
) -> None:
    """Fit the parts of the last layer of ``network`` that belong to the further numbers.

    Parameters
    ----------
    teacher
        Its output without noise is the target.
    network
        It is changed in place.
    batches
        Patches of scans with noise and filters.
    recipe
        Border, fade and ridge.
    """
    terms, outputs = network.tail_terms, network.tail.out_channels
    assert terms is not None and terms.bias is not None
    moments = ConditionedMoments(network.tail.in_channels, outputs, EXTRA_NUMBERS)
    border = recipe.border // FOLD
    window = fading(recipe.patch // FOLD, border, recipe.fade // FOLD)
    inner = (..., *(slice(border, -border or None),) * 3)
    for whole in batches:
        told = whole["condition"][:, ACQUISITION_NUMBERS:].any(1)
        batch = {name: part[told] for name, part in whole.items()}
        if not told.any():  # slices: nothing further is told of them
            continue
        start, condition = batch["start"][:, None], batch["condition"]
        output, features = network.with_features(start, condition)
        missing = space_to_depth(wanted_of(teacher, batch) - output) / OUTPUT_GAIN
        parts = [part[inner] for part in (features[-1].float(), missing, _weight(batch, window))]
        for one, lacking, weight, numbers in zip(*parts, condition, strict=True):
            gram, cross = lag_moments(one, lacking, weight)
            moments.add(gram.cpu(), cross.cpu(), numbers[ACQUISITION_NUMBERS:].tolist())
    change = moments.solve(recipe.ridge).to(terms.weight)
    own = slice(ACQUISITION_NUMBERS * outputs, None)
    terms.weight[own] += change[:, :-1].transpose(1, 2).reshape(terms.weight[own].shape)
    terms.bias[own] += change[:, -1].flatten()


class ToldTailStage(Stage):
    """A finished student or regression network, fitted before the first step; no steps follow."""

    network: Any

    def __init__(self, recipe: StudentToldTailRecipe, device: torch.device, init: Init):
        parts: Any = init_parts(init)
        network, teacher = parts.get(recipe.taught), copy.deepcopy(parts.get("mean"))
        if network is None or not isinstance(teacher, MeanNetwork):
            raise UsageError(
                "The last layer is fitted to a teacher: --init STUDENT MODEL, or --init MODEL for "
                "that of the mean (a finished student, a moediff model with a mean)."
            )
        self.recipe, self.device = recipe, device
        self.network = with_told_tail(network).float().to(device).eval()
        self.teacher = teacher.float().to(device).eval().requires_grad_(False)
        multiple = self.network.config.multiple
        if recipe.patch % multiple:
            raise UsageError(f"patch must be a multiple of {multiple}.")

    def begin(self, batches: Iterator[Batch]) -> None:
        """Fit the last layer."""
        count = -(-self.recipe.fitted_patches // self.recipe.batch)
        chosen = track(itertools.islice(batches, count), "patches", count)
        with autocast(self.device, self.recipe):
            fit_told_tail(self.teacher, self.network, chosen, self.recipe)

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Return cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the Charbonnier distance to the target."""
        recipe = self.recipe
        with torch.no_grad():
            wanted = wanted_of(self.teacher, batch)[:, 0]
        output = self.network(batch["start"][:, None], batch["condition"])[:, 0]
        loss = charbonnier(output, wanted, batch["weight"], recipe.epsilon, recipe.border)
        return loss, {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Return gains over cubic and over consistent interpolation, without further numbers."""

        def restore(start: Tensor, condition: Tensor) -> Tensor:
            with autocast(self.device, self.recipe):
                return apply_to_volume(cast(Any, network), start, condition)

        return gains(cases, restore)
