# SPDX-License-Identifier: Apache-2.0
"""Decide which detail of a reference belongs to a scan.

The design follows the published abstract of CRFM (docs/science.md): gradients of the reference,
projection between the coarse and the fine grid, attention that fuses both. Here the projection is
the acquisition of the scan (:mod:`.features`). The attention is a weight at each voxel for each
proposal. The base is the image that a network without a reference restored; without a reference,
or beyond its field of view, it is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.mean import (
    DETAIL_GAIN,
    FOLD,
    OUTPUT_GAIN,
    Block,
    depth_to_space,
    initialise,
    normalise,
    space_to_depth,
    stream_blocks,
)
from bids_moediff.networks.streaming import Chain, Convolution

from .features import MAPS, SUMMARIES, Features, Proposed

FOLDED = FOLD**3
OUTPUTS = 3  # a change of its own, and the weights of the two proposals
LEVELS = (0, 2)  # maps that hold intensities; the others are differences
GRADIENTS = 3
FIRST_WEIGHT = -2.0  # before the logistic function: proposals count little at first


@dataclass(frozen=True)
class CRFMConfig(JsonConfig):
    """Hyperparameters.

    Attributes
    ----------
    channels, blocks
        Features and residual blocks.
    condition_dim
        Numbers that describe the acquisition.
    base
        Name of the model whose output is corrected.
    base_sha256
        SHA-256 of the base's weights that the network was trained with; "" if not recorded.
    """

    channels: int = 48
    blocks: int = 4
    condition_dim: int = 6
    base: str = "student"
    base_sha256: str = ""

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return FOLD


def fold(found: Features) -> Tensor:
    """Inputs of the network (B, MAPS * 8 + SUMMARIES, x, y, z), of the order of one."""
    parts = []
    for index in range(MAPS):
        folded = space_to_depth(found.maps[:, index : index + 1])
        if index in LEVELS:
            folded = normalise(folded)
        elif index < MAPS - GRADIENTS:
            folded = DETAIL_GAIN * folded
        parts.append(folded)
    parts.append(functional.avg_pool3d(found.summaries, FOLD))
    return torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last_3d)


def change(proposed: Proposed, output: Tensor) -> Tensor:
    """Change of the base (B, 1, X, Y, Z) from the last layer's output (B, 24, x, y, z)."""
    own, first, second = (depth_to_space(part) for part in output.split(FOLDED, dim=1))
    weights = torch.sigmoid(torch.cat([first, second], dim=1))
    taken = (weights * proposed.proposals).sum(1, keepdim=True)
    return proposed.known * (OUTPUT_GAIN * own + taken)


class CRFMNetwork(nn.Module):
    """Predict changes of the base (see the module); the last layer starts at zero."""

    def __init__(self, config: CRFMConfig | None = None) -> None:
        super().__init__()
        self.config = config or CRFMConfig()
        width, blocks = self.config.channels, self.config.blocks
        self.head = nn.Conv3d(MAPS * FOLDED + SUMMARIES, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tail = nn.Conv3d(width, OUTPUTS * FOLDED, 3, padding=1)
        self.film = nn.Sequential(
            nn.Linear(self.config.condition_dim, 64), nn.SiLU(), nn.Linear(64, 2 * width * blocks)
        )
        initialise(self)
        nn.init.zeros_(self.tail.weight)
        with torch.no_grad():
            self.tail.bias[FOLDED:] = FIRST_WEIGHT  # type: ignore[index]
            self.film[-1].weight.mul_(0.1)  # type: ignore[operator]
            self.film[-1].bias.zero_()  # type: ignore[operator]

    def _modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Scale and shift of each block in turn, each (B, C, 1, 1, 1)."""
        film = self.film(condition[:, : self.config.condition_dim])[..., None, None, None]
        return tuple(film.chunk(2 * len(self.body), dim=1))

    def forward(self, folded: Tensor, condition: Tensor) -> Tensor:
        """Output of the last layer (B, 24, x, y, z) for :func:`fold` and conditions (B, 6)."""
        film = self._modulation(condition)
        x = self.head(folded)
        for index, block in enumerate(self.body):
            x = block(x, film[2 * index], film[2 * index + 1])
        return self.tail(x)

    def stream(self, condition: Tensor, kind: torch.dtype) -> Chain:
        """Return :meth:`forward` as a pipeline, for one condition (1, 6)."""
        film = [part[0, :, 0, 0, 0] for part in self._modulation(condition)]
        blocks = stream_blocks(self.body, film, kind)
        head = Convolution(self.head, torch.float32)
        return Chain(head, *blocks, Convolution(self.tail, torch.float32))
