# SPDX-License-Identifier: Apache-2.0
"""A small 3-D network that does in one step what MoEDiff-SR does with a mean and three experts.

It has the shape of the teacher's mean network (:mod:`..moediff.mean`), but each of its
convolutions goes through few channels: 1x1x1 to a small space, 3x3x3 in it, 1x1x1 back (a Tucker
decomposition of the kernel's two channel modes). So it can be fitted to the teacher layer by
layer before it is trained, at a fifth of the arithmetic. The voxel ratio and the slice profile of
each axis scale and shift the features of every block (FiLM, Perez 2018): one set of weights serves
all acquisitions. There is no normalisation and no global operation: an output voxel depends on a
bounded neighbourhood (:attr:`StudentConfig.receptive_radius`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bids_moediff.networks.factorised import FactorisedBlock
from bids_moediff.networks.int8 import Range
from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.last_layer import last_layer_of, seen
from bids_moediff.networks.mean import (
    FOLD,
    corrected,
)
from bids_moediff.networks.streaming import Chain, Convolution, NarrowConvolution


@dataclass(frozen=True)
class StudentConfig(JsonConfig):
    """Hyperparameters.

    Attributes
    ----------
    channels, blocks
        Features and residual blocks, as of the mean network.
    ranks
        Channels of the 3x3x3 convolutions inside a block: into and out of the first one, into
        and out of the second one.
    condition_dim
        Numbers that describe the acquisition.
    conditioned_tail
        Whether the weights of the last layer are a linear function of these numbers.
    extra_numbers
        Further numbers that the last layer follows (:mod:`bids_moediff.imaging.told`).
    """

    channels: int = 128
    blocks: int = 10
    ranks: tuple[int, ...] = (64, 64, 112, 112)
    condition_dim: int = 6
    conditioned_tail: bool = False
    extra_numbers: int = 0

    def __post_init__(self) -> None:
        if len(self.ranks) != 4 or not all(1 <= rank <= self.channels for rank in self.ranks):
            raise ValueError(f"ranks need four numbers from 1 to {self.channels}")

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return FOLD

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field in fine voxels, along each axis."""
        return FOLD * (2 * self.blocks + 2) + FOLD


class StudentNetwork(nn.Module):
    """One-step super-resolution of volumes; the last layer starts at zero (output = start)."""

    def __init__(self, config: StudentConfig | None = None) -> None:
        super().__init__()
        self.config = config or StudentConfig()
        width, blocks = self.config.channels, self.config.blocks
        self.head = nn.Conv3d(FOLD**3, width, 3, padding=1)
        self.body = nn.ModuleList(FactorisedBlock(width, self.config.ranks) for _ in range(blocks))
        self.tail = nn.Conv3d(width, FOLD**3, 3, padding=1)
        self.film = nn.Sequential(
            nn.Linear(self.config.condition_dim, 64), nn.SiLU(), nn.Linear(64, 2 * width * blocks)
        )
        self.tail_terms: nn.Conv3d | None = None
        self.int8_ranges: tuple[Range, ...] = ()  # set on loading, where the folder has them
        if self.config.conditioned_tail:
            terms = (self.config.condition_dim + self.config.extra_numbers) * FOLD**3
            self.tail_terms = nn.Conv3d(width, terms, 3, padding=1)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv3d):
                if name.endswith(("reduce", "core")):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.tail.weight)
        if self.tail_terms is not None:
            nn.init.zeros_(self.tail_terms.weight)
        with torch.no_grad():
            last = self.film[-1]
            last.weight.mul_(0.1)  # type: ignore[operator]
            last.bias.zero_()  # type: ignore[operator]

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Scale and shift of each block in turn, each (B, C, 1, 1, 1), of conditions (B, 6)."""
        known = seen(condition, self.config.extra_numbers)[:, : self.config.condition_dim]
        film = self.film(known)[..., None, None, None]
        return tuple(film.chunk(2 * len(self.body), dim=1))

    def tail_of(self, condition: Tensor) -> nn.Conv3d:
        """The last layer for one condition (1, 6)."""
        return last_layer_of(
            self.tail, self.tail_terms, seen(condition, self.config.extra_numbers)
        )

    def with_features(self, start: Tensor, condition: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Output, and the features after each block, for guidance by a teacher.

        ``start`` (B, 1, X, Y, Z) with even sizes, the head in about [0, 1]; ``condition`` (B, 6):
        log2(acquired/output voxel size) and slice-profile width (in acquired voxels), each for
        the three axes. ValueError for odd sizes.
        """
        if any(size % FOLD for size in start.shape[2:]):
            sizes = tuple(start.shape[2:])
            raise ValueError(f"sizes must be multiples of {FOLD}, not {sizes}")
        return corrected(self, self.modulation(condition), start, condition)

    def forward(self, start: Tensor, condition: Tensor) -> Tensor:
        """Super-resolved volume (B, 1, X, Y, Z); see :meth:`with_features`."""
        return self.with_features(start, condition)[0]

    def stream(self, condition: Tensor, kind: torch.dtype) -> Chain:
        """Everything between fold and unfold as a pipeline, for one condition (1, 6)."""
        film = [part[0, :, 0, 0, 0] for part in self.modulation(condition)]
        blocks = [
            block.stream(kind, film[2 * index], film[2 * index + 1])  # type: ignore[operator]
            for index, block in enumerate(self.body)
        ]
        head = NarrowConvolution(self.head, torch.float32)
        return Chain(head, *blocks, Convolution(self.tail_of(condition), torch.float32))
