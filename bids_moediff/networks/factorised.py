# SPDX-License-Identifier: Apache-2.0
"""Convolutions through few channels: the building blocks of the student and of N-SMoE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.last_layer import ACQUISITION_NUMBERS, within_training
from bids_moediff.networks.mean import BLOCK_GAIN, FOLD, normalise, space_to_depth
from bids_moediff.networks.streaming import (
    Chain,
    Convolution,
    NarrowConvolution,
    Pointwise,
    Residual,
)


class Factorised(nn.Module):
    """3x3x3 convolution of ``channels`` features through few: reduce, core, expand.

    Only the last part has a bias, so zero padding has the same effect as in the convolution that
    the three replace.
    """

    def __init__(self, channels: int, rank_in: int, rank_out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, rank_in, 1, bias=False)
        self.core = nn.Conv3d(rank_in, rank_out, 3, padding=1, bias=False)
        self.expand = nn.Conv3d(rank_out, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) -> (B, C, x, y, z)."""
        return self.expand(self.core(self.reduce(x)))

    def stream(
        self,
        kind: torch.dtype,
        scale: Tensor | float,
        shift: Tensor | float = 0.0,
        *,
        activate: bool = False,
    ) -> Chain:
        """Return :meth:`forward` as a pipeline, with scale and shift, and a SiLU if asked for."""
        reduce, core = Pointwise(self.reduce, kind), Convolution(self.core, kind)
        expand = Pointwise(self.expand, kind, scale=scale, shift=shift, activate=activate)
        return Chain(reduce, core, expand)


class FactorisedBlock(nn.Module):
    """Residual block whose hidden features are scaled and shifted by the condition (FiLM).

    ``ranks`` are the channels into and out of the cores of its two convolutions.
    """

    def __init__(self, channels: int, ranks: Sequence[int]) -> None:
        super().__init__()
        self.first = Factorised(channels, *ranks[:2])
        self.second = Factorised(channels, *ranks[2:])

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(B, C, x, y, z), twice (B, C, 1, 1, 1) -> (B, C, x, y, z)."""
        hidden = functional.silu(self.first(x) * (1 + scale) + shift)
        return x + BLOCK_GAIN * self.second(hidden)

    def stream(self, kind: torch.dtype, scale: Tensor, shift: Tensor) -> Residual:
        """Return :meth:`forward` as a pipeline, for one scale and shift (C,)."""
        first = self.first.stream(kind, 1 + scale, shift, activate=True)
        return Residual(Chain(first, self.second.stream(kind, BLOCK_GAIN)))


class FactorisedTrunk(nn.Module):
    """Compute features of a volume without a last layer; weights are named as in the student."""

    def __init__(self, channels: int, blocks: int, ranks: Sequence[int]) -> None:
        super().__init__()
        self.head = nn.Conv3d(FOLD**3, channels, 3, padding=1)
        self.body = nn.ModuleList(FactorisedBlock(channels, ranks) for _ in range(blocks))
        self.film = nn.Sequential(
            nn.Linear(ACQUISITION_NUMBERS, 64), nn.SiLU(), nn.Linear(64, 2 * channels * blocks)
        )

    def modulation(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Scale and shift of each block in turn, each (B, C, 1, 1, 1), of (B, 6 or more)."""
        film = self.film(within_training(condition))[..., None, None, None]
        return tuple(film.chunk(2 * len(self.body), dim=1))

    def forward(self, start: Tensor, condition: Tensor) -> Tensor:
        """Features (B, C, X / 2, Y / 2, Z / 2) of (B, 1, X, Y, Z) under (B, 6 or more)."""
        film = self.modulation(condition)
        folded = normalise(space_to_depth(start))
        x: Tensor = self.head(folded.contiguous(memory_format=torch.channels_last_3d))
        for index, block in enumerate(self.body):
            x = block(x, film[2 * index], film[2 * index + 1])
        return x

    def stream(self, condition: Tensor, kind: torch.dtype) -> Chain:
        """Return :meth:`forward` as a pipeline over folded planes, for one condition (1, K)."""
        film = [part[0, :, 0, 0, 0] for part in self.modulation(condition)]
        blocks = [
            block.stream(kind, film[2 * index], film[2 * index + 1])  # type: ignore[operator]
            for index, block in enumerate(self.body)
        ]
        return Chain(NarrowConvolution(self.head, torch.float32), *blocks)

    def take_over(self, weights: Mapping[str, Tensor]) -> None:
        """Take the first layers of a network with the same names.

        Raises
        ------
        ValueError
            If it has fewer blocks, or others.
        """
        wanted = self.state_dict()
        for name, value in wanted.items():
            given = weights.get(name)
            if given is None:
                raise ValueError(f"there is no {name}: fewer blocks than asked for")
            if given.shape[1:] != value.shape[1:] or len(given) < len(value):
                raise ValueError(f"{name} is of another size")
            wanted[name] = given[: len(value)]
        self.load_state_dict(wanted)
