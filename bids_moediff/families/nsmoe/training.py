# SPDX-License-Identifier: Apache-2.0
"""Train N-SMoE: a kernel head on frozen features, and a critic as an option.

The first layers of the encoder come from a trained student and are frozen. Their features of a
degraded volume are computed once, with the volume. The head learns from the truth, on simulated
scans (:mod:`bids_moediff.training.uncertain`) that are filtered, noisy, ghosted, of several coils,
and of an acquisition that is known in part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.errors import UsageError
from bids_moediff.families.load import init_parts
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.protocols import ACQUISITIONS
from bids_moediff.imaging.simulation import Degraded
from bids_moediff.imaging.told import told_numbers
from bids_moediff.networks.mean import FOLD
from bids_moediff.training.batches import MARGIN, collect
from bids_moediff.training.recipe import PatchRecipe
from bids_moediff.training.stage import (
    Batch,
    Gains,
    Init,
    Stage,
    autocast,
    charbonnier,
    relative_weight,
    warm_start,
)
from bids_moediff.training.validation import Case, gains_of
from bids_moediff.training.volumes import Volume

from .features import build_network, with_checksum
from .network import NSMoEConfig, NSMoENetwork, numbers_of
from .restorer import apply_to_volume, push_planes

LEAST_HEAD = 0.45


@dataclass(frozen=True, kw_only=True)
class NSMoERecipe(PatchRecipe):
    """N-SMoE: kernels from the frozen features of a student.

    ``network`` are settings of NSMoEConfig. ``border`` voxels of a patch do not count. ``epsilon``
    is the error at which the Charbonnier loss turns from squares to absolutes. ``critic_weight``
    (0: none) is that of the adversarial term, relative to the fidelity term; a continued run
    starts with a new critic.
    """

    stage: ClassVar[str] = "nsmoe"

    network: dict[str, Any] = field(default_factory=dict)
    patch: int = 48
    border: int = 4
    epsilon: float = 0.02
    critic_weight: float = 0.0
    critic_width: int = 16

    @property
    def uncertain(self) -> bool:
        """Scans are simulated with noise and filters."""
        return True

    @property
    def disturbed(self) -> bool:
        """Scans have ghosts and the noise of several coils."""
        return True


class Critic(nn.Module):
    """U-Net critic with spectral normalisation: a realness logit for every voxel."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        normalise = nn.utils.parametrizations.spectral_norm
        self.enter = nn.Conv3d(1, width, 3, padding=1)
        self.down1 = normalise(nn.Conv3d(width, 2 * width, 4, stride=2, padding=1))
        self.down2 = normalise(nn.Conv3d(2 * width, 4 * width, 4, stride=2, padding=1))
        self.up1 = normalise(nn.Conv3d(4 * width, 2 * width, 3, padding=1))
        self.up2 = normalise(nn.Conv3d(2 * width, width, 3, padding=1))
        self.leave = nn.Conv3d(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, X, Y, Z), multiples of 4, -> the same."""
        level0 = functional.leaky_relu(self.enter(image), 0.2)
        level1 = functional.leaky_relu(self.down1(level0), 0.2)
        level2 = functional.leaky_relu(self.down2(level1), 0.2)

        def grow(x: Tensor, like: Tensor) -> Tensor:
            return functional.interpolate(x, size=tuple(like.shape[2:]), mode="trilinear")

        level1 = level1 + functional.leaky_relu(self.up1(grow(level2, level1)), 0.2)
        level0 = level0 + functional.leaky_relu(self.up2(grow(level1, level0)), 0.2)
        return self.leave(level0)


class Adversary:
    """A critic with its own optimiser: its term of the loss, and its training."""

    def __init__(self, recipe: NSMoERecipe, device: torch.device) -> None:
        self.critic = Critic(recipe.critic_width).to(device)
        self.optimiser = torch.optim.AdamW(self.critic.parameters(), recipe.learning_rate)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Take a step of the critic and return the adversarial term of the output (hinge loss)."""
        real, made = self.critic(truth), self.critic(output.detach())
        apart = functional.relu(1 - real).mean() + functional.relu(1 + made).mean()
        self.optimiser.zero_grad(set_to_none=True)
        apart.backward()
        self.optimiser.step()
        self.critic.requires_grad_(False)
        wanted = -self.critic(output).mean()
        self.critic.requires_grad_(True)
        return wanted


def _begun(config: NSMoEConfig, init: Init) -> NSMoENetwork:
    """Return a network on frozen features: of a shipped model, or of those that --init names."""
    network = build_network(with_checksum(config))
    parts = init_parts(init)
    if "nsmoe" in parts:
        warm_start(network, parts["nsmoe"])
    elif not config.features:
        if "student" not in parts:
            raise UsageError("N-SMoE needs features: --init STUDENT, or features in its network.")
        try:
            network.trunk.take_over(parts["student"].state_dict())
        except ValueError as error:
            raise UsageError(f"--init does not fit the recipe's network: {error}.") from error
    network.trunk.requires_grad_(False)
    return network


class NSMoEStage(Stage):
    """The kernel head on patches of volumes that hold the encoder's features."""

    network: NSMoENetwork

    def __init__(self, recipe: NSMoERecipe, device: torch.device, init: Init) -> None:
        self.recipe, self.device = recipe, device
        if recipe.patch % 4 or recipe.border % FOLD:
            raise UsageError("patch must be a multiple of 4, and border even.")
        try:
            self.network = _begun(NSMoEConfig.from_dict(recipe.network), init).to(device)
        except (TypeError, ValueError) as error:
            raise UsageError(f"The recipe is wrong: {error}.") from error
        self.adversary = Adversary(recipe, device) if recipe.critic_weight > 0 else None

    def finish(self, volume: Volume, degraded: Degraded | None) -> Volume:
        """Add the features of the whole volume, cut to even sizes."""
        even = tuple(slice(0, size - size % FOLD) for size in volume["start"].shape)
        volume = {k: v[even] if v.ndim == 3 else v for k, v in volume.items()}
        told = numbers_of(volume["condition"], volume["noise"])[None].to(self.device)
        kind = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            planes = list(
                push_planes(self.network.trunk.stream(told, kind), volume["start"].float())
            )
            features = torch.cat(planes, 1).half()
        volume["features"] = features.contiguous(memory_format=torch.contiguous_format).clone()
        return volume

    def batch(self, volumes: Sequence[Volume], rng: np.random.Generator) -> Batch:
        """Cubes that hold enough head, with their features."""
        size = self.recipe.patch

        def draw() -> Batch | None:
            volume = volumes[int(rng.integers(len(volumes)))]
            corner = []
            for side in volume["target"].shape:
                low = min(MARGIN, max(0, side - size)) // FOLD
                high = max(low, (side - MARGIN - size) // FOLD)
                corner.append(FOLD * int(rng.integers(low, high + 1)))
            cut = tuple(slice(c, c + size) for c in corner)
            folded = tuple(slice(c // FOLD, (c + size) // FOLD) for c in corner)
            if float(volume["weight"][cut].float().mean()) < LEAST_HEAD:
                return None
            images = {k: volume[k][cut].float() for k in ("start", "target", "weight")}
            told = numbers_of(volume["condition"], volume["noise"])
            features = volume["features"][(slice(None), *folded)].float()
            return images | {"told": told.to(features.device), "features": features}

        return collect(draw, self.recipe.batch)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the Charbonnier distance over interpolation's, plus the term of the critic."""
        recipe, border = self.recipe, self.recipe.border
        features = batch["features"].contiguous(memory_format=torch.channels_last_3d)
        encodings = self.network.kernel_numbers(features, batch["told"])
        shape = tuple(batch["start"].shape[1:])
        with torch.autocast(self.device.type, enabled=False):
            detail = torch.stack([self.network.render(one, shape) for one in encodings.float()])
            output = batch["start"] + detail
            weight = relative_weight(batch, border)
            loss = charbonnier(output, batch["target"], weight, recipe.epsilon, border)
            logs = {"fidelity": float(loss.detach()), "detail": float(detail.detach().std())}
            if self.adversary is not None:
                judged = self.adversary.loss(output[:, None], batch["target"][:, None])
                logs["critic"] = float(judged.detach())
                loss = loss + recipe.critic_weight * loss.detach() * judged
        return loss, logs | {"loss": float(loss.detach())}

    def validate(self, network: nn.Module, cases: Sequence[Case]) -> Gains:
        """Gains over cubic and over the consistent interpolation."""
        assert isinstance(network, NSMoENetwork)

        def images() -> Iterator[Tensor]:
            for case in cases:
                told = numbers_of(_told(case), 0.0).to(self.device)
                with autocast(self.device, self.recipe):
                    yield apply_to_volume(network, case.start, told, self.recipe.precision)

        return gains_of(cases, images())


def _told(case: Case) -> Tensor:
    """Return the numeric inputs that the engine gives for a case without noise."""
    if case.protocol not in ACQUISITIONS:
        return functional.pad(case.condition, (0, 4))
    ratios, profile = ACQUISITIONS[case.protocol]
    extra = told_numbers(Acquisition.uniform(profile), ratios, 0.0)
    return torch.cat([case.condition.cpu(), torch.tensor(extra)])
