# SPDX-License-Identifier: Apache-2.0
"""Train the CRFM network on patches of scans with a known base output."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from bids_moediff.families.load import init_parts, load_model, make_restorer
from bids_moediff.families.protocol import training_problem
from bids_moediff.imaging.consistency import agree
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.simulation import ONES, Degraded
from bids_moediff.imaging.told import told_numbers
from bids_moediff.options import Options
from bids_moediff.training.batches import patches
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import (
    Batch,
    Gains,
    Init,
    Stage,
    charbonnier,
    relative_weight,
    warm_start,
)
from bids_moediff.training.validation import Case, gains_of
from bids_moediff.training.volumes import Volume

from .features import Features, Guides, features, gradient_scale
from .network import CRFMConfig, CRFMNetwork, change, fold
from .restorer import correct_volume

WORST = "mirrored reference"


@dataclass(frozen=True, kw_only=True)
class CRFMRecipe(PatchRecipe):
    """A reference contrast corrects the output of a finished model, on patches.

    ``base_model`` is the model whose output is corrected; it is frozen. ``references`` is the
    number of references drawn for each volume (:mod:`bids_moediff.training.references`). The outer
    ``border`` voxels of a patch are left out. ``epsilon`` is the error at which the loss turns
    from squares to absolutes.
    """

    stage: ClassVar[str] = "crfm"

    channels: int = 48
    blocks: int = 4
    base_model: str = "student"
    references: int = 2
    patch: int = 48
    border: int = 6
    epsilon: float = 0.02

    @property
    def reference_count(self) -> int:
        """References drawn for each volume."""
        return self.references


class CRFMStage(Stage):
    """The network on patches."""

    network: CRFMNetwork

    def __init__(self, recipe: CRFMRecipe, device: torch.device, init: Init):
        self.recipe, self.device = recipe, device
        model = load_model(recipe.base_model, device)
        self.base = make_restorer(model, device, recipe.precision)
        config = CRFMConfig(
            recipe.channels, recipe.blocks, base=recipe.base_model, base_sha256=model.sha256
        )
        self.network = CRFMNetwork(config).to(device)
        warm_start(self.network, init_parts(init).get("crfm"))
        self._bases: dict[int, list[Tensor]] = {}

    def _restored(self, start: Tensor, condition: Tensor, told: Sequence[float]) -> Tensor:
        """Return the output of the base for a start (X, Y, Z)."""
        problem = replace(
            training_problem(start, condition),
            told=torch.cat([condition, torch.tensor(told, device=condition.device)]),
        )
        samples = self.base.restore(problem, Options(), lambda stage, fraction: None)
        return next(iter(samples)).image

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add the output of the base, and the round trips of the references."""
        assert degraded is not None, "measured pairs have no references"
        plan = degraded.plan
        told = told_numbers(plan.acquisition, plan.ratios, plan.noise)
        with torch.inference_mode():
            restored = self._restored(degraded.start, volume["condition"].to(self.device), told)
            added = {
                "base": agree(degraded.operator, restored, degraded.measured, plan.noise).clone()
            }
            for index in range(self.recipe.references):
                reference = volume[f"reference{index}"]
                coarse = degraded.operator.forward(reference)
                trip = initial_estimate(coarse, degraded.operator, plan.ratios, ONES)
                added[f"trip{index}"] = trip.clone()
                added[f"scale{index}"] = torch.tensor(gradient_scale(reference))
        return volume | added

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes, each with one of the volume's references."""
        cut = patches(volumes, self.recipe.patch, self.recipe.batch, rng)
        which = rng.integers(self.recipe.references, size=self.recipe.batch)
        for name in ("reference", "trip", "scale"):
            parts = [cut[f"{name}{k}"][row] for row, k in enumerate(which)]
            cut[name] = torch.stack(parts)
        return cut

    def _features(self, batch: Batch) -> list[Features]:
        names = ("base", "start", "reference", "trip")
        found = []
        for row, told in enumerate(batch["condition"]):
            guides = Guides(*(batch[name][row][None, None] for name in names))
            found.append(features(guides, told[:3].tolist(), float(batch["scale"][row])))
        return found

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Charbonnier distance to the truth, relative to the base's error."""
        recipe = self.recipe
        with torch.no_grad():
            found = self._features(batch)
            folded = torch.cat([fold(one) for one in found])
        output = self.network(folded, batch["condition"]).float()
        changes = [change(one.proposed, output[row : row + 1]) for row, one in enumerate(found)]
        restored = batch["base"] + torch.cat(changes)[:, 0]
        weight = relative_weight(batch | {"start": batch["base"]}, recipe.border)
        loss = charbonnier(restored, batch["target"], weight, recipe.epsilon, recipe.border)
        with torch.no_grad():
            before = charbonnier(
                batch["base"], batch["target"], weight, recipe.epsilon, recipe.border
            )
        value = float(loss.detach())
        return loss, {"loss": value, "over base": value / max(float(before), 1e-9)}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the base, with the right reference and a mirrored one."""
        with torch.inference_mode():
            guides = [self._guides(case) for case in cases]
            found: dict[str, Any] = {}
            for name, flipped in (("", False), (f", {WORST}", True)):
                images = [
                    self._corrected(network, case, known, flipped)
                    for case, known in zip(cases, guides, strict=True)
                ]
                table = gains_of(cases, images, [known[0] for known in guides], "over_base")
                found |= {protocol + name: values for protocol, values in table.items()}
        return found

    def _guides(self, case: Case) -> list[Tensor]:
        """Return base and start of a case; they are computed once."""
        if id(case) not in self._bases:
            assert case.operator is not None and case.measured is not None
            restored = self._restored(case.start, case.condition, (0.0,) * 4)
            self._bases[id(case)] = [case.project(restored).clone(), case.start]
        return self._bases[id(case)]

    def _corrected(
        self, network: nn.Module, case: Case, known: list[Tensor], flipped: bool
    ) -> Tensor:
        if case.reference is None or case.operator is None:
            return known[0]
        reference = case.reference.flip(0) if flipped else case.reference
        ratios = torch.exp2(case.condition[:3]).tolist()
        trip = initial_estimate(
            case.operator.forward(reference),
            case.operator,
            (ratios[0], ratios[1], ratios[2]),
            ONES,
        )
        return correct_volume(
            cast(CRFMNetwork, network), [*known, reference, trip], case.condition
        )
