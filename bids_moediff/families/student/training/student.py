# SPDX-License-Identifier: Apache-2.0
"""Distillation: train one small network on the output of MoEDiff-SR, and on the truth.

It starts as the teacher's regression network, compressed layer by layer (:mod:`.factorise`). The
teacher's output of a degraded volume is computed once, with the volume (and stored with it if the
recipe stores volumes). Targets start blurred and sharpen in steps. Features at three depths are
guided by the teacher's. Output and start must agree where the scanner measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bids_moediff.errors import UsageError
from bids_moediff.families.load import compose, init_parts
from bids_moediff.families.protocol import training_problem
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.whole_volume import pad_to_multiple, pad_to_side
from bids_moediff.imaging.acquisition import FWHM_TO_SIGMA
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.networks.mean import MeanNetwork
from bids_moediff.options import Options
from bids_moediff.training.batches import patches
from bids_moediff.training.recipe import PatchRecipe, Recipe
from bids_moediff.training.stage import (
    Batch,
    Gains,
    Init,
    Stage,
    autocast,
    charbonnier,
    relative_weight,
)
from bids_moediff.training.tensor_filters import convolve, gaussian
from bids_moediff.training.validation import Case, gains
from bids_moediff.training.volumes import Volume

from .factorise import factorise

CONDITION_AXES = 3
BLUR_REACH = 20


@dataclass(frozen=True, kw_only=True)
class StudentRecipe(PatchRecipe):
    """Distillation: one network learns the teacher's output, ever less blurred, and the truth.

    ``network`` are settings of StudentConfig. The teacher's output is the mean of
    ``teacher_samples`` samples of ``teacher_noise`` (1 and 0: its default output). The target is
    blurred by ``ladder_sigma`` voxels at first and not at all after ``ladder_rungs`` rungs. For
    the last ``truth_share`` of the steps it is ``truth_weight`` truth and the rest teacher.
    Without a teacher (``distil: false``) it is the truth throughout. ``epsilon`` is the error at
    which the Charbonnier loss turns from squares to absolutes. ``feature_weight`` is relative to
    the fidelity term. ``fitted_patches`` patches compress the teacher into the student before the
    first step.
    """

    stage: ClassVar[str] = "student"

    network: dict[str, Any] = field(default_factory=dict)
    distil: bool = True
    patch: int = 64
    border: int = 8
    epsilon: float = 0.02
    teacher_samples: int = 1
    teacher_noise: float = 0.0
    ladder_rungs: int = 10
    ladder_sigma: float = 2.0
    truth_share: float = 0.4
    truth_weight: float = 0.5
    fitted_patches: int = 96
    feature_weight: float = 0.1
    consistency_weight: float = 0.1
    sobel_weight: float = 0.05


def ladder_sigma(progress: float, recipe: StudentRecipe) -> float:
    """Blur of the target in voxels: from `ladder_sigma` to 0 over the rungs, then none."""
    climb = 1.0 - recipe.truth_share
    if progress >= climb:
        return 0.0
    rungs = max(2, recipe.ladder_rungs)
    rung = min(rungs - 1, int(progress / climb * rungs))
    return recipe.ladder_sigma * (1.0 - rung / (rungs - 1))


def distillation_target(
    teacher: Tensor, truth: Tensor, progress: float, recipe: StudentRecipe
) -> Tensor:
    """Target of a step: the blurred teacher, and for the last part teacher and truth mixed."""
    if progress >= 1.0 - recipe.truth_share:
        return torch.lerp(teacher, truth, recipe.truth_weight)
    return gaussian(teacher, ladder_sigma(progress, recipe))


def blur_matrices(sigma: Tensor, size: int) -> Tensor:
    """Gaussian blur along one axis of `size` voxels with edges replicated, (B, size, size).

    `sigma` (B,) in voxels, at most BLUR_REACH / 4; 0 gives the identity.
    """
    reach = torch.arange(-BLUR_REACH, size + BLUR_REACH, device=sigma.device)
    voxels = torch.arange(size, device=sigma.device)
    distance = (voxels[:, None] - reach).float() / sigma.clamp_min(1e-3)[:, None, None]
    rows = torch.exp(-0.5 * distance.square())
    rows = rows / rows.sum(2, keepdim=True)
    matrices = rows[:, :, BLUR_REACH:-BLUR_REACH].clone()
    matrices[:, :, 0] += rows[:, :, :BLUR_REACH].sum(2)
    matrices[:, :, -1] += rows[:, :, -BLUR_REACH:].sum(2)
    return matrices


def measured_part(image: Tensor, condition: Tensor) -> Tensor:
    """Return the measured part of (B, X, Y, Z): each axis blurred by its own slice profile.

    The profile's width in fine voxels is the voxel ratio times the width in acquired voxels; both
    are in ``condition`` (B, 6). A Gaussian replaces every profile.
    """
    widths = torch.exp2(condition[:, :CONDITION_AXES]) * condition[:, CONDITION_AXES:]
    sigma = torch.where(widths > 0.5, widths * FWHM_TO_SIGMA, 0.0)
    with torch.autocast(image.device.type, enabled=False):
        image = image.float()
        for axis, letters in enumerate(("bxyz,bix->biyz", "bxyz,biy->bxiz", "bxyz,biz->bxyi")):
            matrices = blur_matrices(sigma[:, axis], image.shape[1 + axis])
            image = torch.einsum(letters, image, matrices)
    return image


def sobel3d(image: Tensor) -> Tensor:
    """Sobel derivatives of (B, X, Y, Z) along the three axes, (B, 3, X, Y, Z)."""
    smooth, slope = torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-0.5, 0.0, 0.5])
    parts = []
    for direction in (1, 2, 3):
        part = image
        for axis in (1, 2, 3):
            part = convolve(part, slope if axis == direction else smooth, axis)
        parts.append(part)
    return torch.stack(parts, dim=1)


def feature_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean relative L1 distance of features at several depths, each (B, C, x, y, z)."""
    distances = [
        (our.float() - their.float()).abs().mean() / their.float().abs().mean().clamp_min(1e-6)
        for our, their in zip(ours, theirs, strict=True)
    ]
    return torch.stack(distances).mean()


def guided_depths(blocks: int) -> list[int]:
    """Return the blocks that are compared with the teacher's: at a third, two thirds, the end."""
    return sorted({max(1, round(blocks * share / 3)) - 1 for share in (1, 2, 3)})


class StudentStage(Stage):
    """The student network on patches of volumes that hold the teacher's output."""

    network: StudentNetwork

    def __init__(self, recipe: StudentRecipe, device: torch.device, init: Init):
        self.recipe, self.device = recipe, device
        settings = dict(recipe.network)
        parts = init_parts(init)
        mean = parts.get("mean")
        if recipe.distil and not isinstance(mean, MeanNetwork):
            raise UsageError(
                "The student needs its teacher: --init MODEL (a moediff model with a mean)."
            )
        self.teacher: Any = None
        self.teacher_mean: MeanNetwork | None = None
        if recipe.distil and isinstance(mean, MeanNetwork):
            self.teacher = compose(parts, device, recipe.precision)
            if recipe.teacher_noise:
                self.teacher.noise_strength = recipe.teacher_noise
            self.teacher_mean = mean
            settings |= {"channels": mean.config.channels, "blocks": mean.config.blocks}
        try:
            config = StudentConfig.from_dict(settings)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The recipe is wrong: {error}.") from error
        if recipe.patch % config.multiple:
            raise UsageError(f"patch must be a multiple of {config.multiple}.")
        self.network = StudentNetwork(config).to(device)

    def begin(self, batches: Iterator[Batch]) -> None:
        """Compress the teacher's regression network into the student, layer by layer."""
        if self.teacher_mean is None:
            return
        count = -(-self.recipe.fitted_patches // self.recipe.batch)
        fitted = [batch for batch, _ in zip(batches, range(count), strict=False)]
        with autocast(self.device, self.recipe):
            factorise(self.teacher_mean, self.network, fitted, seed=self.recipe.seed)

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add the teacher's output, made consistent with the measurement."""
        if self.teacher is None:
            return volume
        start, condition = volume["start"].float(), volume["condition"].to(self.device)
        # One size runs fastest on a GPU.
        side = self.recipe.block if self.device.type == "cuda" else 0
        padded = pad_to_side(start, side)
        noise = self.recipe.teacher_noise
        options = Options(num_steps=4 if noise else 1, num_samples=self.recipe.teacher_samples)
        problem = training_problem(padded, condition)
        samples = [
            sample.image.clone()
            for sample in self.teacher.restore(problem, options, lambda stage, fraction: None)
        ]
        output = torch.stack(samples).mean(0)[tuple(slice(0, size) for size in start.shape)]
        if degraded is not None:
            output = degraded.operator.project(output, degraded.measured, degraded.noise)
        return volume | {"teacher": output}

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes."""
        return patches(volumes, self.recipe.patch, self.recipe.batch, rng)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Charbonnier, features, consistency and Sobel terms, without the border."""
        recipe, truth, condition = self.recipe, batch["target"], batch["condition"]
        target = truth
        if "teacher" in batch:
            progress = step / recipe.steps
            target = distillation_target(batch["teacher"], truth, progress, recipe)
        volume, features = self.network.with_features(batch["start"][:, None], condition)
        output = volume[:, 0].float()
        inner = (slice(None), *(slice(recipe.border, -recipe.border or None),) * 3)
        weight = relative_weight(batch, recipe.border)
        fidelity = charbonnier(output, target, weight, recipe.epsilon, recipe.border)
        weight = weight[inner]
        total = weight.sum().clamp_min(1.0)
        edges = sobel3d(output) - sobel3d(target)
        sobel = (weight[:, None] * edges[(slice(None), *inner)].abs()).sum() / (3 * total)
        seen = measured_part(output - batch["start"], condition)[inner].abs().mean()
        loss = fidelity + recipe.sobel_weight * sobel + recipe.consistency_weight * seen
        logs = {"fidelity": float(fidelity.detach()), "sobel": float(sobel.detach())}
        logs["consistency"] = float(seen.detach())
        if self.teacher_mean is not None and recipe.feature_weight > 0:
            with torch.no_grad():
                _, wanted = self.teacher_mean.with_features(batch["start"][:, None], condition)
            depths = guided_depths(len(features))
            guided = feature_distance([features[d] for d in depths], [wanted[d] for d in depths])
            loss = loss + recipe.feature_weight * fidelity.detach() * guided
            logs["features"] = float(guided.detach())
        return loss, logs | {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the consistent interpolation."""
        return student_gains(network, cases, self.device, self.recipe)


def student_gains(
    network: nn.Module, cases: Sequence[Case], device: torch.device, recipe: Recipe
) -> Gains:
    """Gains of a student over cubic and over the consistent interpolation."""
    assert isinstance(network, StudentNetwork)

    def restore(start: Tensor, condition: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(device, recipe):
            return apply_student(network, start, condition)

    return gains(cases, restore)


def apply_student(network: StudentNetwork, start: Tensor, condition: Tensor) -> Tensor:
    """Return the student's output (X, Y, Z) of a small volume, in its training orientation."""
    order = axis_order(condition)
    turned = start.permute(order)
    padded = pad_to_multiple(turned, network.config.multiple).contiguous()
    told = reorder(condition, order)[None].to(start.device)
    output = network(padded[None, None], told)[0, 0].float()
    output = output[tuple(slice(0, size) for size in turned.shape)]
    return output.permute([order.index(axis) for axis in range(3)]).contiguous()
