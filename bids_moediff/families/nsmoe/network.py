# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: encode a volume as steered kernels, rendered as a residual over the start.

The encoder is 3-D and works on the consistently interpolated scan. It has the features of the
regression network (:class:`bids_moediff.networks.factorised.FactorisedTrunk`). In place of the
last layer, a head that also takes the noise gives kernels to each folded voxel, the middle of a
block. Kernels alone would limit fidelity to block-smooth images, so their rendering is added to
the start. The encoding has no grid: it can be rendered at any voxel size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.imaging.told import EXTRA_NUMBERS, MIDDLE_NOISE
from bids_moediff.networks.factorised import FactorisedTrunk
from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.last_layer import ACQUISITION_NUMBERS
from bids_moediff.networks.mean import FOLD, OUTPUT_GAIN
from bids_moediff.networks.streaming import Chain, Convolution, Pointwise

from .blocks import add_blocks, plans
from .kernels import Kernels

DIMS = 3
TRIANGLE = DIMS * (DIMS + 1) // 2
# Centre, Cholesky factor, log-weight, value and slope of a kernel.
PER_KERNEL = 2 * DIMS + TRIANGLE + 2
NUMBERS = ACQUISITION_NUMBERS + EXTRA_NUMBERS + 1
# In half blocks: how far centres may move, and a kernel's precision (1 / width) before learning.
REACH, STEEPNESS = 0.6, 2.0
# The precision lies within these powers of e around STEEPNESS.
STEEPER = 2.0


@dataclass(frozen=True)
class NSMoEConfig(JsonConfig):
    """Hyperparameters.

    Attributes
    ----------
    channels, blocks, ranks
        Of the encoder, as of the student.
    hidden
        Channels of the head's hidden layer.
    kernels
        Kernels of a block.
    features, features_sha256
        Shipped model that the features come from, and the SHA-256 of its weights; empty if the
        encoder has its own weights.
    """

    channels: int = 128
    blocks: int = 10
    ranks: tuple[int, ...] = (64, 64, 112, 112)
    hidden: int = 96
    kernels: int = 4
    features: str = ""
    features_sha256: str = ""

    def __post_init__(self) -> None:
        if len(self.ranks) != 4 or not all(1 <= rank <= self.channels for rank in self.ranks):
            raise ValueError(f"ranks need four numbers from 1 to {self.channels}")
        if self.kernels < 1:
            raise ValueError("a block needs at least one kernel")

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return FOLD

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field in fine voxels, along each axis."""
        return FOLD * (2 * self.blocks + 3) + 2 * FOLD


def regular_centres(count: int, dims: int = DIMS) -> Tensor:
    """Return K starting centres spread over a block from -1 to 1, (K, d)."""
    if count == 4 and dims == DIMS:  # a tetrahedron knows no axis
        corners = ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
        return torch.tensor([[0.35 * place for place in corner] for corner in corners])
    side = 1
    while side**dims < count:
        side += 1
    cells = list(product(range(side), repeat=dims))
    picked = [cells[int((i + 0.5) * len(cells) / count)] for i in range(count)]
    return 1.4 * ((torch.tensor(picked, dtype=torch.float32) + 0.5) / side - 0.5)


def numbers_of(told: Tensor, noise: Tensor | float) -> Tensor:
    """Return the numeric inputs of the network (..., 11): those of ``told``, and the noise.

    See :mod:`bids_moediff.imaging.told`; for slices, its numbers leave the noise out.
    """
    noise = torch.as_tensor(noise, dtype=told.dtype, device=told.device)
    level = (noise / (noise + MIDDLE_NOISE)).expand(told.shape[:-1])
    return torch.cat([told, level[..., None]], dim=-1)


class NSMoENetwork(nn.Module):
    """Restore any image at any voxel size; values start at zero (output = start)."""

    start_centres: Tensor

    def __init__(
        self,
        config: NSMoEConfig | None = None,
        shared: Callable[[], FactorisedTrunk] | None = None,
    ) -> None:
        super().__init__()
        self.config = config or NSMoEConfig()
        c = self.config
        # Shared features belong to another model: no weights of this one, and read when needed.
        self._load, self._shared = shared, list[FactorisedTrunk]()
        if shared is None:
            self.own = FactorisedTrunk(c.channels, c.blocks, c.ranks)
        self.hidden = nn.Conv3d(c.channels, c.hidden, 3, padding=1)
        self.tell = nn.Linear(NUMBERS, 2 * c.hidden)
        self.read = nn.Conv3d(c.hidden, PER_KERNEL * c.kernels, 1)
        with torch.no_grad():
            self.tell.weight.mul_(0.1)
            self.tell.bias.zero_()
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.zeros_(self.hidden.bias)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(self.read.weight, nonlinearity="linear").mul_(0.1)
            nn.init.zeros_(self.read.bias)  # type: ignore[arg-type]
            # Values and slopes: output = start.
            self.read.weight.unflatten(0, (c.kernels, -1))[:, -(DIMS + 1) :] = 0
        self.register_buffer("start_centres", regular_centres(c.kernels), persistent=False)

    @property
    def trunk(self) -> FactorisedTrunk:
        """First layers of the encoder, shared or its own; WeightsError if there are none."""
        if self._load is None:
            return self.own
        if not self._shared:
            self._shared.append(self._load().to(self.hidden.weight))
        return self._shared[0]

    def _apply(self, function: Callable[..., Any], recurse: bool = True) -> Self:
        for trunk in self._shared:
            trunk._apply(function, recurse)
        return super()._apply(function, recurse)

    def kernel_numbers(self, features: Tensor, told: Tensor) -> Tensor:
        """Return the numbers of the kernels, (B, kernels * PER_KERNEL, x, y, z)."""
        scale, shift = self.tell(told)[..., None, None, None].chunk(2, dim=1)
        hidden = functional.silu(self.hidden(features) * (1 + scale) + shift)
        return self.read(hidden)

    def encode(self, start: Tensor, told: Tensor) -> Tensor:
        """Return the encoding of a volume, (B, kernels * PER_KERNEL, X / 2, Y / 2, Z / 2).

        Parameters
        ----------
        start
            (B, 1, X, Y, Z), even sizes, the head in about [0, 1].
        told
            (B, 11), see :func:`numbers_of`.
        """
        return self.kernel_numbers(self.trunk(start, told), told)

    def kernels(self, encoding: Tensor) -> Kernels:
        """Return the kernels of one encoding (C, x, y, z), blocks in the order of its places."""
        parts = encoding.float().flatten(1).T.unflatten(1, (self.config.kernels, PER_KERNEL))
        sizes = [DIMS, DIMS, TRIANGLE - DIMS, 1, 1, DIMS]
        moved, steeper, skewed, weight, value, slope = parts.split(sizes, -1)
        diagonal = STEEPNESS * torch.exp(STEEPER * torch.tanh(steeper / STEEPER))
        rows, columns = torch.tril_indices(DIMS, DIMS, -1)
        factors = torch.diag_embed(diagonal)
        factors[..., rows, columns] = STEEPNESS * skewed
        return Kernels(
            self.start_centres + REACH * torch.tanh(moved),
            factors,
            weight[..., 0],
            OUTPUT_GAIN * value[..., 0],
            OUTPUT_GAIN * slope,
        )

    def render(
        self, encoding: Tensor, shape: tuple[int, ...], zooms: tuple[float, ...] = (1.0, 1.0, 1.0)
    ) -> Tensor:
        """Return the detail (*shape) that an encoding (C, x, y, z) adds to a start.

        `zooms` are the output voxels in units of the encoded ones; outer corners are shared.
        """
        rows = plans(tuple(encoding.shape[1:]), shape, zooms, encoding.device)
        zeros = torch.zeros(shape, device=encoding.device)
        return add_blocks(zeros, self.kernels(encoding), rows)

    def forward(self, start: Tensor, told: Tensor) -> Tensor:
        """Return the super-resolved volume (B, 1, X, Y, Z) on the grid of the start."""
        encodings = self.encode(start, told)
        shape = tuple(start.shape[2:])
        detail = torch.stack([self.render(encoding, shape) for encoding in encodings])
        return start + detail[:, None]

    def stream(self, told: Tensor, kind: torch.dtype) -> Chain:
        """Return :meth:`encode` as a pipeline over folded planes, for one (1, 11)."""
        scale, shift = self.tell(told)[0].chunk(2)
        hidden = Convolution(self.hidden, kind, scale=1 + scale, shift=shift, activate=True)
        return Chain(self.trunk.stream(told, kind), hidden, Pointwise(self.read, torch.float32))
