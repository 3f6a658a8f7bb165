# SPDX-License-Identifier: Apache-2.0
"""Three experts on volumes that sample what a scan did not measure.

Each expert predicts the velocity of a perturbation z between noise and error, in units of the
error's local standard deviation d (EDM's preconditioning with sigma_data = 1). At the angle theta

    z = cos(theta) e + sin(theta) P(s n),     dz / d theta = -d F,

with the error e of the regression network, its scale s, unit noise n and the projection P onto
the unmeasured part. F is the posterior mean of (sin(theta) e - cos(theta) P(s n)) / d. It is 0
at both ends, so the experts predict F / sin(2 theta).

F is odd in z by construction: z passes through convolutions without bias and through gates that
see only the context and magnitudes. So the mean of the samples is the image of the regression
network. Experts that may move the mean do so wrongly on scanners that they were not trained on.

References
----------
Karras et al., Elucidating the design space of diffusion-based generative models, NeurIPS 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.mean import BLOCK_GAIN, FOLD, LEVEL_GAIN
from bids_moediff.networks.precision import full_precision
from bids_moediff.networks.scale import INPUTS, MIDDLE_NOISE, NUMBERS, fold, unfold

from .config import EXPERTS
from .gating import usage_softmax
from .tokens import SwinBlock, mlp

CELLS = FOLD**3
# The scale head's inputs, and one channel each for the logarithm of d and for edges.
CONTEXT = CELLS * INPUTS + 2
WINDOW = 4  # cells along the side of an attention window
ANGLE_NUMBERS = 4
HIDDEN = 48
# Tokens of the gate: cells along a side, features, heads.
TOKEN, TOKEN_FEATURES, TOKEN_HEADS, TOKEN_WINDOW = 4, 48, 4, 4
TEMPERATURE, GAMMA = 0.3, 0.1


@dataclass(frozen=True)
class VolumeExpertsConfig(JsonConfig):
    """Hyperparameters.

    Attributes
    ----------
    experts
        Names of the experts: of ``EXPERTS``, or ``plain`` for one without a speciality.
    channels, blocks
        Features and residual blocks of each expert, on a grid folded by two.
    context_blocks
        Residual blocks that read the image; they run once for all steps and samples.
    """

    experts: tuple[str, ...] = EXPERTS
    channels: int = 32
    blocks: int = 2
    context_blocks: int = 2

    def __post_init__(self) -> None:
        unknown = [name for name in self.experts if name not in KINDS]
        if unknown or not self.experts:
            raise ValueError(f"experts must be chosen from {tuple(KINDS)}, not {self.experts}")
        if self.channels % 4:
            raise ValueError("channels must be a multiple of 4")


class ContextBlock(nn.Module):
    """Residual block of the context."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> the same."""
        result: Tensor = x + BLOCK_GAIN * self.second(functional.silu(self.first(x)))
        return result


class OddBlock(nn.Module):
    """Residual block that is odd in its features.

    Its gate sees the context, the angle, the acquisition and the magnitude of the features.
    """

    def __init__(self, channels: int, dilation: int = 1, *, edges: bool = False) -> None:
        super().__init__()
        options = {"padding": dilation, "dilation": dilation, "bias": False}
        self.first = nn.Conv3d(channels, channels, 3, **options)  # type: ignore[arg-type]
        self.second = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.gate = nn.Conv3d(channels, channels, 1)
        self.magnitude = nn.Conv3d(channels, channels, 1, bias=False)
        self.edges = nn.Conv3d(1, channels, 1, bias=False) if edges else None
        self.angle = nn.Linear(HIDDEN, channels)

    def forward(self, x: Tensor, context: Tensor, edges: Tensor, angle: Tensor) -> Tensor:
        """Features (B, C, x, y, z), context of the same shape, edges (B, 1, x, y, z)."""
        hidden = self.first(x)
        level = self.gate(context) + self.magnitude(hidden.abs())
        if self.edges is not None:
            level = level + self.edges(edges)
        level = level + self.angle(angle)[..., None, None, None]
        result: Tensor = x + BLOCK_GAIN * self.second(2 * torch.sigmoid(level) * hidden)
        return result


class WindowAttention(nn.Module):
    """Average features over windows of cells, with weights from the context."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.where = nn.Conv3d(channels, 2 * channels, 1)
        self.values = nn.Conv3d(channels, channels, 1, bias=False)
        self.out = nn.Conv3d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, C, x, y, z) -> the same."""
        sizes = x.shape[2:]
        padding = [n for size in reversed(sizes) for n in (0, -size % WINDOW)]
        parts = torch.cat([self.where(context), self.values(x)], 1)
        windows = functional.pad(parts, padding)
        batch, channels, *padded = windows.shape
        counts = [size // WINDOW for size in padded]
        cut = windows.reshape(
            batch, 3, self.heads, channels // (3 * self.heads),
            counts[0], WINDOW, counts[1], WINDOW, counts[2], WINDOW,
        )  # fmt: skip
        tokens = cut.permute(1, 0, 4, 6, 8, 2, 5, 7, 9, 3).flatten(6, 8).flatten(1, 4)
        query, key, value = tokens.unbind(0)
        # Plain products: torch's fused attention is slow backwards on a processor.
        weights = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1)
        mixed = weights @ value
        whole = mixed.unflatten(0, (batch, *counts)).unflatten(5, (WINDOW,) * 3)
        back = whole.permute(0, 4, 8, 1, 5, 2, 6, 3, 7).reshape(batch, -1, *padded)
        result: Tensor = self.out(back[..., : sizes[0], : sizes[1], : sizes[2]])
        return result


class Expert(nn.Module):
    """Residual blocks between two layers without bias; the last one starts at zero."""

    dilation, edges = 1, False

    def __init__(self, config: VolumeExpertsConfig) -> None:
        super().__init__()
        width = config.channels
        self.head = nn.Conv3d(CELLS, width, 3, padding=1, bias=False)
        self.body = nn.ModuleList(
            OddBlock(width, self.dilation, edges=self.edges) for _ in range(config.blocks)
        )
        self.tail = nn.Conv3d(width, CELLS, 3, padding=1, bias=False)

    def forward(self, z: Tensor, context: Tensor, edges: Tensor, angle: Tensor) -> Tensor:
        """Folded z / d (B, 8, x, y, z) -> folded output."""
        x = self.head(z)
        for block in self.body:
            x = block(x, context, edges, angle)
        result: Tensor = self.tail(x)
        return result


class SmoothExpert(Expert):
    """Smooth white matter: wide kernels whose gates see the edges of the image."""

    dilation, edges = 2, True


def haar(folded: Tensor) -> Tensor:
    """Return the orthonormal Haar bands of folded voxels (B, 8, x, y, z); its own inverse."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=folded.device)
    matrix = torch.kron(torch.kron(signs, signs), signs) / math.sqrt(CELLS)
    return torch.einsum("ij,bjxyz->bixyz", matrix.to(folded.dtype), folded)


class CortexExpert(Expert):
    """Cortex: works on wavelet bands, and each block sees the output of all before it."""

    def __init__(self, config: VolumeExpertsConfig) -> None:
        super().__init__(config)
        width = config.channels
        self.gather = nn.ModuleList(
            nn.Conv3d((2 + index) * width, width, 1, bias=False) for index in range(config.blocks)
        )

    def forward(self, z: Tensor, context: Tensor, edges: Tensor, angle: Tensor) -> Tensor:
        """Folded z / d (B, 8, x, y, z) -> folded output."""
        seen = [self.head(haar(z))]
        x = seen[0]
        for block, gather in zip(self.body, self.gather, strict=True):
            seen.append(block(x, context, edges, angle))
            x = gather(torch.cat(seen, 1))
        return haar(self.tail(x))


class JunctionExpert(Expert):
    """Grey-white junction: attention within windows before the last block."""

    def __init__(self, config: VolumeExpertsConfig) -> None:
        super().__init__(config)
        self.attention = WindowAttention(config.channels)

    def forward(self, z: Tensor, context: Tensor, edges: Tensor, angle: Tensor) -> Tensor:
        """Folded z / d (B, 8, x, y, z) -> folded output."""
        x = self.head(z)
        last = len(self.body) - 1
        for index, block in enumerate(self.body):
            if index == last:
                x = x + self.attention(x, context)
            x = block(x, context, edges, angle)
        result: Tensor = self.tail(x)
        return result


KINDS: dict[str, type[Expert]] = {
    "smooth": SmoothExpert,
    "cortex": CortexExpert,
    "junction": JunctionExpert,
    "plain": Expert,
}


class TokenGate(nn.Module):
    """Weigh the experts at each place by cosines of queries with Swin tokens of 8 voxels' side.

    Tokens see each other within windows of two planes, so a gate depends on its neighbourhood
    only, and a crop has the gates of its volume.
    """

    usage: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(CONTEXT, TOKEN_FEATURES, TOKEN, stride=TOKEN)
        self.planes = nn.ModuleList(
            SwinBlock(TOKEN_FEATURES, TOKEN_HEADS, TOKEN_WINDOW, shifted)
            for shifted in (False, True)
        )
        self.norm = nn.LayerNorm(TOKEN_FEATURES)
        self.refine = mlp(TOKEN_FEATURES, ratio=1)
        self.queries = nn.Parameter(torch.randn(experts, TOKEN_FEATURES))
        self.register_buffer("usage", torch.full((experts,), 1.0 / experts))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of :func:`scene_inputs` (B, C, x, y, z) -> gates (B, K, x, y, z)."""
        sizes = inputs.shape[2:]
        padding = [n for size in reversed(sizes) for n in (0, -size % TOKEN)]
        cells = self.embed(functional.pad(inputs, padding, mode="replicate"))
        grid = cells.permute(0, 2, 3, 4, 1)
        batch = len(grid)
        for block, order in zip(self.planes, ((0, 1, 2, 3, 4), (0, 3, 1, 2, 4)), strict=True):
            turned = grid.permute(order)
            planes = block(turned.flatten(0, 1)).unflatten(0, (batch, -1))
            grid = planes.permute([order.index(axis) for axis in range(5)])
        with full_precision(inputs.device):
            refined = functional.normalize(self.refine(self.norm(grid.float())), dim=-1)
            cosines = refined @ functional.normalize(self.queries, dim=-1).T
            logits = cosines.movedim(-1, 1) / TEMPERATURE
            size = [TOKEN * count for count in logits.shape[2:]]
            fine = functional.interpolate(logits, size, mode="trilinear", align_corners=False)
        return usage_softmax(fine[..., : sizes[0], : sizes[1], : sizes[2]], self.usage, GAMMA)

    def count(self, gates: Tensor) -> None:
        """Update the usage average of each expert (equation 4 of the paper)."""
        with torch.no_grad():
            self.usage.lerp_(gates.float().mean((0, 2, 3, 4)), 0.01)


@dataclass(frozen=True)
class Scene:
    """Features of an image, the same in all steps and samples.

    ``context`` (B, C, x, y, z), ``edges`` (B, 1, x, y, z) and ``gates`` (B, K, x, y, z) on the
    folded grid, ``numbers`` (B, 7).
    """

    context: Tensor
    edges: Tensor
    gates: Tensor
    numbers: Tensor


def scene_inputs(inputs: Tensor, deviation: Tensor) -> Tensor:
    """Return the inputs of context and gate, (B, 34, x, y, z) on the folded grid.

    Parameters
    ----------
    inputs
        Inputs of the scale head (B, 4, X, Y, Z), even sizes.
    deviation
        Standard deviation d of the missing part (B, 1, X, Y, Z), the image in about [0, 1].
    """
    parts, size = fold(inputs), fold(deviation).mean(1, keepdim=True)
    level = parts[:, :CELLS] / LEVEL_GAIN
    span = level.amax(1, keepdim=True) - level.amin(1, keepdim=True)
    return torch.cat([parts, torch.log(size / MIDDLE_NOISE), torch.log(span / size + 0.1)], 1)


class VolumeExperts(nn.Module):
    """Context, gate, experts, and the weighted sum of the experts' outputs."""

    def __init__(self, config: VolumeExpertsConfig | None = None) -> None:
        super().__init__()
        self.config = config or VolumeExpertsConfig()
        width = self.config.channels
        self.head = nn.Conv3d(CONTEXT, width, 3, padding=1)
        self.context = nn.ModuleList(
            ContextBlock(width) for _ in range(self.config.context_blocks)
        )
        self.angles = nn.Sequential(
            nn.Linear(NUMBERS + ANGLE_NUMBERS, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
        )
        self.experts = nn.ModuleList(KINDS[name](self.config) for name in self.config.experts)
        several = len(self.experts) > 1
        self.gate: TokenGate | None = TokenGate(len(self.experts)) if several else None
        self._initialise()

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv3d) and not name.startswith("gate."):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, OddBlock):
                nn.init.zeros_(module.angle.bias)
                for part in (module.gate, module.magnitude, module.edges):
                    if part is not None:
                        nn.init.normal_(part.weight, std=0.3 / math.sqrt(part.in_channels))
            elif isinstance(module, WindowAttention):
                nn.init.normal_(module.out.weight, std=0.1 / math.sqrt(module.out.in_channels))
        for expert in self.experts:
            nn.init.zeros_(expert.tail.weight)  # type: ignore[union-attr, arg-type]

    def scene(self, inputs: Tensor, numbers: Tensor) -> Scene:
        """Read an image: inputs of :func:`scene_inputs`, numbers (B, 7) of the scale head."""
        gates = inputs.new_ones(len(inputs), 1, *inputs.shape[2:])
        if self.gate is not None:
            gates = self.gate(inputs)
        return Scene(self.read(inputs), inputs[:, -1:], gates, numbers)

    def read(self, inputs: Tensor) -> Tensor:
        """Return the context (B, C, x, y, z) of inputs."""
        x = self.head(inputs.contiguous(memory_format=torch.channels_last_3d))
        for block in self.context:
            x = block(x)
        return x

    def run_expert(self, index: int, z: Tensor, scene: Scene, angle: Tensor) -> Tensor:
        """Return F / sin(2 theta) of one expert on the folded grid.

        Parameters
        ----------
        z
            Folded z / d (B, 8, x, y, z).
        angle
            theta (B,), from 0 (error) to pi / 2 (noise).
        """
        waves = torch.stack([f(k * angle) for k in (1, 2) for f in (torch.sin, torch.cos)], 1)
        known = self.angles(torch.cat([waves, scene.numbers], 1))
        z = z.contiguous(memory_format=torch.channels_last_3d)
        result: Tensor = self.experts[index](z, scene.context, scene.edges, known)
        return result

    def forward(self, z: Tensor, scene: Scene, angle: Tensor) -> Tensor:
        """Return F / sin(2 theta) of all experts, (B, 1, X, Y, Z), for z / d of that shape."""
        folded = fold(z)
        mixed = torch.zeros_like(folded)
        for index in range(len(self.experts)):
            found = self.run_expert(index, folded, scene, angle)
            mixed = mixed + scene.gates[:, index, None] * found
        return unfold(mixed)
