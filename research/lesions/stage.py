# SPDX-License-Identifier: Apache-2.0
"""Teach a finished network what a lesion is: small blobs added to heads, and nothing else new.

Few training heads have lesions, so a network takes the ripples that a coarse scan makes around one
for faint anatomy and sharpens them. Here every volume is measured twice, without and with blobs in
its tissue. What the network makes of the second has to be what the trained network made of the
first, plus the blobs. The noise of the head is in both and cancels, so the loss holds nothing but
what is wrong about lesions (and, for a student, its distance to the teacher).
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bids_moediff.errors import UsageError
from bids_moediff.families.load import init_parts
from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.simulation import ONES, Degraded
from bids_moediff.networks.mean import MeanNetwork
from bids_moediff.training.batches import patches
from bids_moediff.training.lesions import LesionPlan, lesion_field
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import Batch, Gains, Init, Stage, autocast, charbonnier
from bids_moediff.training.validation import Case, gains
from bids_moediff.training.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class LesionsRecipe(PatchRecipe):
    """Lesions for a finished mean, on patches (:mod:`.lesions`).

    ``diameters`` (voxels) and ``contrasts`` (of the range) are the smallest and largest of the
    blobs; ``spacing`` is the least distance of their centres, ``tries`` how many places of a
    volume are tried. ``epsilon`` is the error at which the loss turns from squares to absolutes.
    """

    stage: ClassVar[str] = "lesions"

    patch: int = 40
    border: int = 6
    epsilon: float = 0.02
    diameters: tuple[float, ...] = (1.5, 8.0)
    contrasts: tuple[float, ...] = (0.05, 0.4)
    spacing: float = 12.0
    tries: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("diameters", "contrasts"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two positive numbers in ascending order")


@dataclass(frozen=True, kw_only=True)
class StudentLesionsRecipe(LesionsRecipe):
    """The same for a finished student; its teacher, if given, says what it should put out."""

    stage: ClassVar[str] = "student-lesions"


def _networks(recipe: LesionsRecipe, init: Init) -> tuple[Any, Any]:
    """What is taught, and what says what it should put out: the teacher, or itself before."""
    parts: Any = init_parts(init)
    student = isinstance(recipe, StudentLesionsRecipe)
    kind, name = (StudentNetwork, "student") if student else (MeanNetwork, "mean")
    taught, mean = parts.get(name), parts.get("mean")
    if not isinstance(taught, kind):
        wanted = "a student (and its teacher)" if student else "a moediff model with a mean"
        raise UsageError(f"Lesions are taught to a trained network: --init {wanted}.")
    return taught, copy.deepcopy(taught if mean is None else mean)


class LesionsStage(Stage):
    """A finished mean or student, on patches with and without lesions."""

    network: Any

    def __init__(self, recipe: LesionsRecipe, device: torch.device, init: Init):
        taught, reference = _networks(recipe, init)
        self.recipe, self.device = recipe, device
        self.plan = LesionPlan(recipe.diameters, recipe.contrasts, recipe.spacing, recipe.tries)
        self.network = taught.float().to(device)
        self.reference = reference.float().to(device).eval().requires_grad_(False)
        multiple = self.network.config.multiple
        if recipe.patch % multiple:
            raise UsageError(f"patch must be a multiple of {multiple}.")

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add `lesion` and `marked`, the start of the same head with lesions.

        Nothing is added to a measured pair, whose acquisition is not known.
        """
        if degraded is None:
            return volume | {
                "lesion": torch.zeros_like(volume["target"]), "marked": volume["start"]
            }  # fmt: skip
        # What is drawn depends on the volume alone, as all that a volume holds.
        seed = np.array(float(degraded.measured.double().sum())).view(np.uint64)
        rng = np.random.default_rng(int(seed))
        field = lesion_field(degraded.truth, volume["weight"], self.plan, rng)
        x, y, z = (2.0**ratio for ratio in degraded.condition[:3])
        ratios: Triple = (x, y, z)
        operator = degraded.operator
        measured = degraded.measured + operator.forward(field)
        marked = initial_estimate(measured, operator, ratios, ONES, degraded.noise)
        return volume | {"lesion": field, "marked": marked}

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Charbonnier distance between the marked head's output and output plus lesions."""
        recipe, condition = self.recipe, batch["condition"]
        with torch.no_grad():
            plain = self.reference(batch["start"][:, None], condition)[:, 0].float()
        output = self.network(batch["marked"][:, None], condition)[:, 0].float()
        weight = (batch["weight"] > 0).float()
        loss = charbonnier(output, plain + batch["lesion"], weight, recipe.epsilon, recipe.border)
        return loss, {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the consistent interpolation, without any lesion."""
        assert isinstance(network, MeanNetwork | StudentNetwork)

        def restore(start: Tensor, condition: Tensor) -> Tensor:
            with autocast(self.device, self.recipe):
                return apply_to_volume(network, start, condition)

        return gains(cases, restore)
