# SPDX-License-Identifier: Apache-2.0
"""The regression network: one 3-D network for every voxel ratio and slice profile.

It predicts the posterior mean, from which the diffusion experts start (decision P of
docs/science.md). Input and output are on the fine grid. A space-to-depth step makes the
convolutions run on an eighth of the voxels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from bids_moediff.networks.int8 import Range
from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.last_layer import (
    apply_last_layer,
    last_layer_of,
    seen,
)
from bids_moediff.networks.streaming import Chain, Convolution, NarrowConvolution, Residual

FOLD = 2
# Fixed gains that bring input, blocks and output to the order of one; without them a step of the
# optimiser moves the output by more than the detail that is sought (research/notebook.md).
DETAIL_GAIN, LEVEL_GAIN, LEVEL = 8.0, 2.0, 0.4
BLOCK_GAIN = 0.3
OUTPUT_GAIN = 0.03


@dataclass(frozen=True)
class MeanConfig(JsonConfig):
    """Hyperparameters of :class:`MeanNetwork`.

    With ``conditioned_tail`` the weights of the last layer are a linear function of the condition
    and of ``extra_numbers`` further ones (:mod:`bids_moediff.imaging.told`).
    """

    channels: int = 48
    blocks: int = 6
    condition_dim: int = 6
    conditioned_tail: bool = False
    extra_numbers: int = 0

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return FOLD


def space_to_depth(image: torch.Tensor) -> torch.Tensor:
    """(B, 1, 2X, 2Y, 2Z) -> (B, 8, X, Y, Z), lossless."""
    batch, _, x, y, z = image.shape
    folded = image.reshape(batch, x // 2, 2, y // 2, 2, z // 2, 2)
    return folded.permute(0, 2, 4, 6, 1, 3, 5).reshape(batch, 8, x // 2, y // 2, z // 2)


def depth_to_space(features: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`space_to_depth`."""
    batch, _, x, y, z = features.shape
    unfolded = features.reshape(batch, 2, 2, 2, x, y, z)
    return unfolded.permute(0, 4, 1, 5, 2, 6, 3).reshape(batch, 1, 2 * x, 2 * y, 2 * z)


def normalise(folded: torch.Tensor) -> torch.Tensor:
    """Scale folded voxels (B, 8, X, Y, Z), head in about [0, 1], to the order of one."""
    level = folded.mean(1, keepdim=True)
    return DETAIL_GAIN * (folded - level) + LEVEL_GAIN * (level - LEVEL)


class Block(nn.Module):
    """Residual block whose hidden features are scaled and shifted by the condition (FiLM)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """(B, C, x, y, z), twice (B, C, 1, 1, 1) -> (B, C, x, y, z)."""
        hidden = self.first(x)
        hidden = functional.silu(hidden * (1 + scale) + shift)
        return x + BLOCK_GAIN * self.second(hidden)


def stream_blocks(
    body: Iterable[nn.Module], film: Sequence[torch.Tensor], kind: torch.dtype
) -> list[Residual]:
    """Return blocks as parts of a pipeline.

    Parameters
    ----------
    body
        Each a :class:`Block`.
    film
        Scale (C,) and shift (C,) of the first block, of the second, and so on.
    kind
        Arithmetic.
    """
    blocks = []
    for index, block in enumerate(body):
        scale, shift = 1 + film[2 * index], film[2 * index + 1]
        first = Convolution(block.first, kind, scale=scale, shift=shift, activate=True)  # type: ignore[arg-type]
        second = Convolution(block.second, kind, scale=BLOCK_GAIN)  # type: ignore[arg-type]
        blocks.append(Residual(Chain(first, second)))
    return blocks


def initialise(network: nn.Module) -> None:
    """Draw the weights of all convolutions for rectified features; biases are zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def corrected(
    network: Any, film: Sequence[torch.Tensor], start: torch.Tensor, condition: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the start plus the correction of a network, and its features by block.

    ``film`` holds scale and shift of each block in turn, ``start`` is (B, 1, X, Y, Z).
    """
    folded = normalise(space_to_depth(start))
    x = network.head(folded.contiguous(memory_format=torch.channels_last_3d))
    features = []
    for index, block in enumerate(network.body):
        x = block(x, film[2 * index], film[2 * index + 1])
        features.append(x)
    known = seen(condition, network.config.extra_numbers)
    correction = apply_last_layer(network.tail, network.tail_terms, x, known).to(start.dtype)
    return start + OUTPUT_GAIN * depth_to_space(correction), features


class MeanNetwork(nn.Module):
    """Residual 3-D network on the consistent interpolation.

    ``forward(start, condition)``: start (B, 1, X, Y, Z), even sizes, head intensities in about
    [0, 1]; condition (B, 6) from :meth:`Acquisition.condition`. Returns (B, 1, X, Y, Z). The last
    layer starts at zero: an untrained network returns ``start`` exactly.
    """

    def __init__(self, config: MeanConfig | None = None) -> None:
        super().__init__()
        self.config = config or MeanConfig()
        width, blocks = self.config.channels, self.config.blocks
        self.head = nn.Conv3d(FOLD**3, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tail = nn.Conv3d(width, FOLD**3, 3, padding=1)
        self.film = nn.Sequential(
            nn.Linear(self.config.condition_dim, 64), nn.SiLU(), nn.Linear(64, 2 * width * blocks)
        )
        initialise(self)
        nn.init.zeros_(self.tail.weight)
        self.tail_terms: nn.Conv3d | None = None
        self.int8_ranges: tuple[Range, ...] = ()  # set on loading, where the folder has them
        if self.config.conditioned_tail:
            numbers = self.config.condition_dim + self.config.extra_numbers
            self.tail_terms = nn.Conv3d(width, numbers * FOLD**3, 3, padding=1)
            nn.init.zeros_(self.tail_terms.weight)
            nn.init.zeros_(self.tail_terms.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            last = self.film[-1]
            last.weight.mul_(0.1)  # type: ignore[operator]
            last.bias.zero_()  # type: ignore[operator]

    def _modulation(self, condition: torch.Tensor) -> torch.Tensor:
        """Scales and shifts of all blocks, side by side."""
        known = seen(condition, self.config.extra_numbers)[:, : self.config.condition_dim]
        scales: torch.Tensor = self.film(known)
        return scales

    def with_features(
        self, start: torch.Tensor, condition: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the posterior mean on the fine grid, and the features after each block."""
        film = self._modulation(condition)[..., None, None, None].chunk(2 * len(self.body), dim=1)
        return corrected(self, film, start, condition)

    def forward(self, start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the posterior mean on the fine grid."""
        return self.with_features(start, condition)[0]

    def stream(self, condition: torch.Tensor, kind: torch.dtype) -> Chain:
        """Return the network between fold and unfold as a pipeline, for one condition (1, 6)."""
        film = self._modulation(condition)[0].chunk(2 * len(self.body))
        blocks = stream_blocks(self.body, film, kind)
        head = NarrowConvolution(self.head, torch.float32)
        last = last_layer_of(
            self.tail, self.tail_terms, seen(condition, self.config.extra_numbers)
        )
        return Chain(head, *blocks, Convolution(last, torch.float32))
