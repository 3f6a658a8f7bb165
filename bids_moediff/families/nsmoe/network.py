# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: an encoder from image blocks to steered kernels, and its critic.

Blocks (2-D or 3-D) pass a learned Laplacian resizer, residual convolution levels with attention
at the coarse one, and an attention pooling in which each kernel asks for its own parameters.
Intensities are normalised block by block and restored in the kernels' values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.nsmoe.blocks import assemble, cut
from bids_moediff.families.nsmoe.kernels import Kernels
from bids_moediff.networks.attention import Attention
from bids_moediff.networks.json_config import JsonConfig


@dataclass(frozen=True)
class NSMoEConfig(JsonConfig):
    """Hyperparameters.

    ``dims`` 2 or 3; ``block`` voxels of a low-resolution block (even); ``kernels`` K; ``inner``
    size that the resizer brings blocks to (a multiple of 4); ``bands`` L of the resizer.
    """

    dims: int = 2
    block: int = 8
    kernels: int = 12
    inner: int = 16
    bands: int = 3
    width: int = 32
    heads: int = 4

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, not {self.dims}")
        if self.block % 2 or self.inner % 4:
            raise ValueError("block must be even and inner a multiple of 4")


def convolution(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Convolution class for this many dimensions."""
    return nn.Conv2d if dims == 2 else nn.Conv3d


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear or trilinear to a square or cube."""
    dims = x.dim() - 2
    mode = "bilinear" if dims == 2 else "trilinear"
    return functional.interpolate(x, size=(size,) * dims, mode=mode, align_corners=False)


class LaplacianResizer(nn.Module):
    """resize(x) + sum over bands of tanh(w_l resize(blur(x_l) - x_l) + b_l), x_{l+1} = blur(x_l).

    The blur is binomial (1 2 1) / 4 along every axis. Starts as plain interpolation.
    """

    def __init__(self, bands: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weights, self.biases = (nn.Parameter(torch.zeros(bands)) for _ in range(2))

    @staticmethod
    def blur(x: Tensor) -> Tensor:
        """Binomial filter, edges replicated."""
        for axis in range(2, x.dim()):
            last = x.shape[axis] - 1
            ahead = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], axis)
            behind = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], axis)
            x = 0.25 * ahead + 0.5 * x + 0.25 * behind
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, *any) -> (B, 1, size, ...)."""
        out, band = resize(x, self.size), x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            blurred = self.blur(band)
            out = out + torch.tanh(weight * resize(blurred - band, self.size) + bias)
            band = blurred
        return out


class ResidualLevel(nn.Module):
    """Two convolutions added to the input."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        conv = convolution(dims)
        self.first = conv(channels, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.second(functional.silu(self.first(functional.silu(x))))


class KernelPooling(nn.Module):
    """Each kernel's query attends to all positions and reads its own features, (B, K, C)."""

    def __init__(self, kernels: int, channels: int, positions: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(0.02 * torch.randn(positions, channels))
        self.queries = nn.Parameter(torch.randn(kernels, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads)
        self.key_value = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Positions (B, N, C) -> (B, K, C)."""
        x = x + self.position
        x = x + self.attention(self.norm(x))
        key, value = self.key_value(x).chunk(2, dim=-1)
        query = self.queries.expand(x.shape[0], -1, -1)
        parts = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        return functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def regular_centres(count: int, dims: int) -> Tensor:
    """K starting centres spread over the block, (K, d)."""
    side = math.ceil(count ** (1 / dims) - 1e-9)
    cells = list(product(range(side), repeat=dims))
    picked = [cells[int((i + 0.5) * len(cells) / count)] for i in range(count)]
    return (torch.tensor(picked, dtype=torch.float32) + 0.5) / side


class NSMoENetwork(nn.Module):
    """Any image in, any voxel size out; untrained, it gives a smooth image and not the input."""

    start_centres: Tensor

    def __init__(self, config: NSMoEConfig | None = None) -> None:
        super().__init__()
        self.config = config or NSMoEConfig()
        c = self.config
        conv = convolution(c.dims)
        self.resizer = LaplacianResizer(c.bands, c.inner)
        self.body = nn.Sequential(
            conv(1, c.width, 3, padding=1),
            ResidualLevel(c.dims, c.width),
            conv(c.width, 2 * c.width, 2, stride=2),
            ResidualLevel(c.dims, 2 * c.width),
            conv(2 * c.width, 4 * c.width, 2, stride=2),
            ResidualLevel(c.dims, 4 * c.width),
        )
        positions = (c.inner // 4) ** c.dims
        self.pooling = KernelPooling(c.kernels, 4 * c.width, positions, c.heads)
        self.rotation_size = 1 if c.dims == 2 else 4
        self.read = nn.Linear(4 * c.width, 2 * c.dims + 1 + self.rotation_size)
        with torch.no_grad():
            self.read.weight.mul_(0.1)
        start = regular_centres(c.kernels, c.dims)
        self.register_buffer("start_centres", start, persistent=False)

    def encode(self, blocks: Tensor) -> Kernels:
        """Blocks (B, block, ...) of image values to kernels in block coordinates."""
        c = self.config
        axes = tuple(range(1, blocks.dim()))
        mean = blocks.mean(axes, keepdim=True)
        deviation = blocks.std(axes, keepdim=True, unbiased=False) + 1e-4
        x = self.body(self.resizer(((blocks - mean) / deviation)[:, None]))
        read = self.read(self.pooling(x.flatten(2).transpose(1, 2))).float()
        offset, value, scale, rotation = read.split([c.dims, 1, c.dims, self.rotation_size], -1)
        centres = torch.sigmoid(torch.logit(self.start_centres) + offset)
        spread = 0.5 / c.kernels ** (1 / c.dims)
        scales = spread * functional.softplus(scale + math.log(math.e - 1))
        if c.dims == 3:  # near the identity to begin with
            rotation = rotation + rotation.new_tensor([1.0, 0.0, 0.0, 0.0])
        flat = mean.flatten(1) + deviation.flatten(1) * value[..., 0]
        return Kernels(centres, flat, scales, rotation)

    def forward(self, image: Tensor, size_out: tuple[int, ...]) -> Tensor:
        """Image (B, 1, *size), at least half a block on each side, to (B, 1, *size_out)."""
        size_in = tuple(image.shape[2:])
        if len(size_in) != self.config.dims or len(size_out) != self.config.dims:
            raise ValueError(f"this network works in {self.config.dims} dimensions")
        blocks = cut(image, self.config.block)
        outputs = [
            assemble(self.encode(one), size_in, size_out, self.config.block) for one in blocks
        ]
        return torch.stack(outputs)[:, None]
