# SPDX-License-Identifier: Apache-2.0
"""Fit the last layer of a finished student to its teacher by least squares.

Given the features before it, the last convolution is a linear regression. So the solution that
gradients only approach is found exactly from the second moments of some hundred patches. The
weights may be a linear function of the acquisition's numbers. This costs nothing at inference:
they are summed once for each image. Targets are the teacher's: the noise of the truth would need
many times as many patches (research/notebook.md).
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.errors import UsageError
from bids_moediff.families.load import init_parts
from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.networks.mean import OUTPUT_GAIN, MeanNetwork, space_to_depth
from bids_moediff.runtime.progress_bar import track
from bids_moediff.training.batches import patches
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import EASIEST, Batch, Gains, Init, Stage, charbonnier
from bids_moediff.training.validation import Case
from bids_moediff.training.volumes import Volume

from .factorise import around
from .student import student_gains


class Moments:
    """Weighted second moments of features (and a one) with each other and with the missing part.

    Features count once, and once times each number of the condition. Only the lower half of the
    matrix is kept: it is the largest object here, 2.4 GB for 128 channels.
    """

    def __init__(self, inputs: int, outputs: int, conditions: int) -> None:
        self.size, self.count = inputs + 1, conditions + 1
        total = self.size * self.count
        self.gram = torch.zeros(total, total)
        self.cross = torch.zeros(total, outputs)

    def add(self, rows: Tensor, missing: Tensor, weight: Tensor, condition: Tensor) -> None:
        """One patch: (N, inputs), (N, outputs), (N, 1) and (conditions,)."""
        full = functional.pad(rows, (0, 1), value=1.0)
        weighted = (full * weight).T
        gram, cross = weighted @ full, weighted @ missing
        factors = [1.0, *condition.tolist()]
        blocks = [slice(k * self.size, (k + 1) * self.size) for k in range(self.count)]
        for row, (place, factor) in enumerate(zip(blocks, factors, strict=True)):
            self.cross[place].add_(cross, alpha=factor)
            for other, second in zip(blocks[: row + 1], factors, strict=False):
                self.gram[place, other].add_(gram, alpha=factor * second)

    def solve(self, ridge: float) -> Tensor:
        """Return coefficients (conditions + 1, inputs + 1, outputs); the moments are consumed.

        ``ridge`` is relative to the mean square of the features.
        """
        diagonal = self.gram.diagonal()
        diagonal.add_(ridge * diagonal[: self.size - 1].mean())
        lower = torch.linalg.cholesky(self.gram, out=self.gram)
        return torch.cholesky_solve(self.cross, lower).unflatten(0, (self.count, self.size))


def _patch_weight(batch: Batch, border: int) -> Tensor:
    """Return weights (B, X, Y, Z) of squared errors, relative to those of interpolation."""
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
    """Fit the last layer of ``student`` to the output of ``teacher``.

    For a conditioned layer, the linear function of the condition is fitted.

    Parameters
    ----------
    batches
        Patches (:func:`.sampling.patches`).
    places
        Number of folded voxels of each patch that are used.
    border
        Fine voxels at the border of a patch that are left out.
    ridge
        Penalty of changes, relative to the mean square of the features.
    """
    tail, terms = student.tail, student.tail_terms
    conditions = student.config.condition_dim if terms is not None else 0
    moments = Moments(tail.weight[0].numel(), len(tail.weight), conditions)
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
        missing, weight = (part.permute(0, 2, 1).cpu() for part in cut)
        rows = around(features[-1].float(), chosen).cpu().unflatten(0, missing.shape[:2])
        for parts in zip(rows, missing, weight, condition[:, :conditions].cpu(), strict=True):
            moments.add(*parts)
    change = moments.solve(ridge).to(tail.weight)
    assert tail.bias is not None
    # Rows are (channel, 3, 3, 3), as the kernel.
    tail.weight += change[0, :-1].T.reshape(tail.weight.shape)
    tail.bias += change[0, -1]
    if terms is not None:
        assert terms.bias is not None
        terms.weight += change[1:, :-1].transpose(1, 2).reshape(terms.weight.shape)
        terms.bias += change[1:, -1].flatten()


def with_conditioned_tail(student: StudentNetwork) -> StudentNetwork:
    """Return the network with a last layer that takes the condition, same output so far."""
    made = StudentNetwork(replace(student.config, conditioned_tail=True))
    made.load_state_dict(made.state_dict() | student.state_dict())
    return made


@dataclass(frozen=True, kw_only=True)
class TailRecipe(PatchRecipe):
    """The last layer of a finished student, fitted to its teacher (:mod:`.tail`); no steps.

    ``places`` folded voxels of each of ``fitted_patches`` patches are used; ``ridge`` is relative
    to the mean square of the features.
    """

    stage: ClassVar[str] = "student-tail"
    least_steps: ClassVar[int] = 0

    patch: int = 56
    border: int = 10
    epsilon: float = 0.02
    fitted_patches: int = 260
    places: int = 2500
    ridge: float = 1e-2


class TailStage(Stage):
    """A finished student whose last layer is fitted before the first step; no steps follow."""

    network: StudentNetwork

    def __init__(self, recipe: TailRecipe, device: torch.device, init: Init):
        parts = init_parts(init)
        student, teacher = parts.get("student"), copy.deepcopy(parts.get("mean"))
        if not isinstance(student, StudentNetwork) or not isinstance(teacher, MeanNetwork):
            raise UsageError(
                "The last layer is fitted to a teacher: --init STUDENT MODEL (a finished student "
                "and a moediff model with a mean)."
            )
        self.recipe, self.device = recipe, device
        self.network = with_conditioned_tail(student).float().to(device).eval()
        self.teacher = teacher.float().to(device).eval().requires_grad_(False)
        multiple = self.network.config.multiple
        if recipe.patch % multiple:
            raise UsageError(f"patch must be a multiple of {multiple}.")

    def begin(self, batches: Iterator[Batch]) -> None:
        """Fit the last layer."""
        recipe = self.recipe
        count = -(-recipe.fitted_patches // recipe.batch)
        chosen = track(itertools.islice(batches, count), "patches", count)
        refit_tail(
            self.teacher, self.network, chosen,
            places=recipe.places, border=recipe.border, ridge=recipe.ridge, seed=recipe.seed,
        )  # fmt: skip

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
