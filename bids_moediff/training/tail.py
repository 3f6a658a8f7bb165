# SPDX-License-Identifier: Apache-2.0
"""The last layer of a finished student, fitted anew to its teacher by least squares.

Given the features before it, the last convolution is a linear regression, so what gradients only
draw near to is found exactly from the second moments of some hundred patches. Targets are the
teacher's: the truth's noise would need many times as many (docs/experiments.md).
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bids_moediff.errors import UsageError
from bids_moediff.models.moediff.mean import OUTPUT_GAIN, MeanNetwork, space_to_depth
from bids_moediff.models.student.network import StudentNetwork

from .degradation import Degraded
from .development import Case
from .factorise import around
from .finished import check_patch, finished_networks, init_paths
from .recipe import TailRecipe
from .sampling import patches
from .stages import EASIEST, Batch, Gains, Init, charbonnier
from .student import student_gains
from .volumes import Volume


class Moments:
    """Weighted second moments of features (and a one) with each other and with what is missing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1)
        self.cross = torch.zeros(inputs + 1, outputs)

    def add(self, rows: Tensor, missing: Tensor, weight: Tensor) -> None:
        """`rows` (N, inputs), `missing` (N, outputs), `weight` (N, 1)."""
        full = torch.nn.functional.pad(rows, (0, 1), value=1.0)
        self.gram.addmm_((full * weight).T, full)
        self.cross.addmm_((full * weight).T, missing)

    def solve(self, ridge: float) -> Tensor:
        """Coefficients (inputs + 1, outputs); `ridge` relative to the inputs' mean square."""
        shrunk = self.gram.double()
        shrunk.diagonal().add_(ridge * shrunk.diagonal()[:-1].mean())
        return torch.linalg.solve(shrunk, self.cross.double()).float()


def _patch_weight(batch: Batch, border: int) -> Tensor:
    """Weights (B, X, Y, Z) by which squared errors count relative to those of interpolation."""
    inner = (..., *(slice(border, -border or None),) * 3)
    weight, error = batch["weight"], (batch["start"] - batch["target"]).abs()
    mean = (weight * error)[inner].flatten(1).sum(1) / weight[inner].flatten(1).sum(1).clamp_min(1)
    return weight * (EASIEST / (mean + EASIEST)).square()[:, None, None, None]


@torch.no_grad()
def refit_tail(
    teacher: MeanNetwork,
    student: StudentNetwork,
    batches: Iterable[Batch],
    *,
    places: int,
    border: int,
    ridge: float,
    seed: int = 0,
) -> None:
    """Set the last convolution of `student` to the one that comes nearest to `teacher`.

    Parameters
    ----------
    batches
        Patches (:func:`.sampling.patches`).
    places
        Folded voxels of each patch that are looked at.
    border
        Fine voxels at the border of a patch that are left out.
    ridge
        Towards no change, relative to the mean square of the features.
    """
    tail = student.tail
    moments = Moments(tail.weight[0].numel(), len(tail.weight))
    generator = torch.Generator().manual_seed(seed)
    skip = -(-border // student.config.multiple)
    for batch in batches:
        start, condition = batch["start"][:, None], batch["condition"]
        output, features = student.with_features(start, condition)
        missing = space_to_depth(teacher(start, condition) - output) / OUTPUT_GAIN
        weight = space_to_depth(_patch_weight(batch, border)[:, None]).mean(1, keepdim=True)
        side = missing.shape[-1]
        grid = torch.arange((side - 2) ** 3).reshape((side - 2,) * 3)
        inner = grid[(slice(skip - 1, side - 1 - skip),) * 3].flatten()
        chosen = inner[torch.randperm(len(inner), generator=generator)[:places]]
        chosen = chosen.to(start.device)
        cut = [part[..., 1:-1, 1:-1, 1:-1].flatten(2)[..., chosen] for part in (missing, weight)]
        missing, weight = (part.permute(0, 2, 1).flatten(0, 1).cpu() for part in cut)
        moments.add(around(features[-1].float(), chosen).cpu(), missing, weight)
    change = moments.solve(ridge).to(tail.weight)
    assert tail.bias is not None
    # Rows are (channel, 3, 3, 3), as the kernel.
    tail.weight += change[:-1].T.reshape(tail.weight.shape)
    tail.bias += change[-1]


class TailStage:
    """A finished student whose last layer is fitted before the first step; there are no steps."""

    tissue = False

    def __init__(self, recipe: TailRecipe, device: torch.device, init: Init):
        student, teacher = finished_networks(init_paths(init), student=True)
        if not isinstance(student, StudentNetwork) or teacher is None:
            raise UsageError(
                "The last layer is fitted to a teacher: --init STUDENT MODEL (a finished student "
                "and a moediff model with a mean)."
            )
        self.recipe, self.device = recipe, device
        self.network = student.float().to(device).eval()
        self.teacher = teacher.float().to(device).eval().requires_grad_(False)
        check_patch(recipe.patch, self.network)

    def network_settings(self) -> dict[str, Any]:
        """Settings for the section of config.json."""
        return self.network.config.to_dict()

    def begin(self, batches: Iterator[Batch]) -> None:
        """The fit."""
        recipe = self.recipe
        count = -(-recipe.fitted_patches // recipe.batch)
        chosen = tqdm(itertools.islice(batches, count), "patches", count, leave=False)
        refit_tail(
            self.teacher, self.network, chosen,
            places=recipe.places, border=recipe.border, ridge=recipe.ridge, seed=recipe.seed,
        )  # fmt: skip

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Nothing to add."""
        return volume

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Charbonnier distance to the teacher."""
        recipe, start, condition = self.recipe, batch["start"][:, None], batch["condition"]
        with torch.no_grad():
            wanted = self.teacher(start, condition)[:, 0]
        output = self.network(start, condition)[:, 0]
        loss = charbonnier(output, wanted, batch["weight"], recipe.epsilon, recipe.border)
        return loss, {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the consistent interpolation."""
        return student_gains(network, cases, self.device, self.recipe)

    def memory(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Nothing to restore."""
