# SPDX-License-Identifier: Apache-2.0
"""A small 3-D network that does in one step what MoEDiff-SR does with three experts.

It refines the consistent interpolation on the fine grid. Three levels at a half, a quarter and an
eighth of its resolution; the voxel ratio and the slice profile of each axis scale and shift the
features of every block (FiLM, Perez 2018), so one set of weights serves all acquisitions. There
is no normalisation and no global operation: an output voxel depends on a bounded neighbourhood,
and tiles that overlap by :attr:`StudentConfig.receptive_radius` show no seams.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.models.json_config import JsonConfig
from bids_moediff.models.moediff.mean import (
    OUTPUT_GAIN,
    depth_to_space,
    normalise,
    space_to_depth,
)
from bids_moediff.models.streaming import Chain, Convolution, Doubling, Halving, Residual


@dataclass(frozen=True)
class StudentConfig(JsonConfig):
    """Hyperparameters: features and residual blocks (encoder and decoder each) at each level."""

    widths: tuple[int, ...] = (48, 96, 144)
    blocks: tuple[int, ...] = (2, 2, 2)
    condition_dim: int = 6
    embedding_dim: int = 64

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ValueError("widths and blocks need one number for each level")

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return 2 ** len(self.widths)

    @property
    def receptive_radius(self) -> int:
        """Fine voxels beyond which an input voxel cannot matter, along each axis."""
        radius = 4  # first and last convolution at level 1, whose voxels are 2 fine voxels wide
        last = len(self.widths) - 1
        for level, blocks in enumerate(self.blocks):
            convolutions = 2 * blocks * (1 if level == last else 2)
            radius += 2 ** (level + 1) * convolutions
            radius += 2 ** (level + 1)  # the fold into this level mixes whole cells
        return radius


class FilmBlock(nn.Module):
    """Residual block of two convolutions whose hidden features the condition scales and shifts."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        with torch.no_grad():
            self.second.weight.mul_(0.3)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, x, y, z), (B, e) -> (B, C, x, y, z)."""
        scale, shift = self.film(embedding)[..., None, None, None].chunk(2, dim=1)
        hidden = functional.silu(self.first(x) * (1.0 + scale) + shift)
        return x + self.second(hidden)


class FilmStage(nn.Module):
    """Blocks in a row with the same embedding."""

    def __init__(self, count: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FilmBlock(channels, embedding) for _ in range(count))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Same shape."""
        for block in self.blocks:
            x = block(x, embedding)
        return x


class StudentNetwork(nn.Module):
    """One-step super-resolution of volumes; the last layer starts at zero (output = start)."""

    def __init__(self, config: StudentConfig | None = None) -> None:
        super().__init__()
        self.config = config or StudentConfig()
        widths, blocks = self.config.widths, self.config.blocks
        size = self.config.embedding_dim
        self.condition = nn.Sequential(
            nn.Linear(self.config.condition_dim, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU()
        )
        self.head = nn.Conv3d(8, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            FilmStage(n, width, size) for n, width in zip(blocks, widths, strict=True)
        )
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv3d(a, b, 2, stride=2) for a, b in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for a, b in pairs)
        self.decoders = nn.ModuleList(
            FilmStage(n, width, size) for n, width in zip(blocks[:-1], widths[:-1], strict=True)
        )
        self.tail = nn.Conv3d(widths[0], 8, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def with_features(self, start: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output and the decoder's features, coarse level first, for guidance by a teacher.

        ``start`` (B, 1, X, Y, Z) with sizes that are multiples of ``config.multiple``, the head in
        about [0, 1]; ``condition`` (B, 6): log2(acquired/output voxel size) and slice-profile
        width (in acquired voxels), each for the three axes. ValueError for other sizes.
        """
        if any(size % self.config.multiple for size in start.shape[2:]):
            sizes = tuple(start.shape[2:])
            raise ValueError(f"sizes must be multiples of {self.config.multiple}, not {sizes}")
        embedding = self.condition(condition)
        folded = normalise(space_to_depth(start))
        x = self.head(folded.contiguous(memory_format=torch.channels_last_3d))
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x, embedding)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        features = [x]
        for level in reversed(range(len(self.ups))):
            x = self.decoders[level](skips[level] + self.ups[level](x), embedding)
            features.append(x)
        return start + OUTPUT_GAIN * depth_to_space(self.tail(x).to(start.dtype)), features

    def forward(self, start: Tensor, condition: Tensor) -> Tensor:
        """Super-resolved volume (B, 1, X, Y, Z); see :meth:`with_features`."""
        return self.with_features(start, condition)[0]

    def stream(self, condition: Tensor, kind: torch.dtype) -> Chain:
        """Everything between fold and unfold as a pipeline, for one condition (1, 6)."""
        embedding = self.condition(condition)
        inner = _stream_stage(self.encoders[-1], embedding, kind)
        for level in reversed(range(len(self.downs))):
            down, up = Halving(self.downs[level], kind), Doubling(self.ups[level], kind)  # type: ignore[arg-type]
            inner = Chain(
                _stream_stage(self.encoders[level], embedding, kind),
                Residual(Chain(down, inner, up)),
                _stream_stage(self.decoders[level], embedding, kind),
            )
        head, tail = (Convolution(part, torch.float32) for part in (self.head, self.tail))
        return Chain(head, inner, tail)


def _stream_stage(stage: nn.Module, embedding: Tensor, kind: torch.dtype) -> Chain:
    """Blocks of a stage with scale and shift folded into their first convolutions."""
    parts = []
    for block in stage.blocks:  # type: ignore[union-attr]
        scale, shift = block.film(embedding)[0].chunk(2)
        first = Convolution(block.first, kind, scale=1.0 + scale, shift=shift, activate=True)
        parts.append(Residual(Chain(first, Convolution(block.second, kind))))
    return Chain(*parts)
