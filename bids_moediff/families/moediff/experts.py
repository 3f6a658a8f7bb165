# SPDX-License-Identifier: Apache-2.0
"""The three experts of section II-C: smooth white matter, cortex, grey-white junction.

All are small U-shaped networks on the latent with the same skeleton (:class:`Expert`) and differ
in their blocks. Every block takes features (B, C, h, w) and the embedding (B, e) of time,
acquisition and noise strength. There is no normalisation: it blurs intensity, which a
super-resolution network has to keep. The last convolution starts at zero, so an untrained expert
predicts no change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.moediff.config import MoEDiffConfig

GROWTH = 16
RESIDUAL_START = 0.1
DENSE_LAYERS = 4


def conv3(channels_in: int, channels_out: int, dilation: int = 1) -> nn.Conv2d:
    """3 x 3 convolution that keeps the size."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)


def zeroed(layer: nn.Module) -> nn.Module:
    """Set all parameters of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def initialise(expert: nn.Module) -> None:
    """Keep the features' size through the depth, with residual branches starting small.

    Without normalisation PyTorch's default start shrinks them threefold a layer; this one learns
    about twice as fast in the first hundred steps. Layers that are zero stay zero.
    """
    for layer in expert.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.weight.is_meta:
            continue
        if bool(layer.weight.any()) and layer.bias is not None:
            fan_in = layer.weight[0].numel()
            if isinstance(layer, nn.ConvTranspose2d):  # stride 2: a quarter of the kernel meets
                fan_in = layer.weight.shape[0] * layer.weight[0, 0].numel() // 4
            nn.init.normal_(layer.weight, std=math.sqrt(2.0 / fan_in))
            nn.init.zeros_(layer.bias)
    for block in expert.modules():
        if isinstance(block, ResidualBlock):
            with torch.no_grad():
                block.second.weight.mul_(RESIDUAL_START)


class Modulation(nn.Module):
    """Scale and shift features by the embedding; starts as the identity."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.project = zeroed(nn.Linear(embedding, 2 * channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w), (B, e) -> (B, C, h, w)."""
        scale, shift = self.project(embedding)[:, :, None, None].chunk(2, dim=1)
        return x * (1.0 + scale) + shift


class Level(nn.Module):
    """Blocks one after the other, all with the same embedding."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, C, h, w), (B, e) -> (B, C', h, w)."""
        for block in self.blocks:
            x = block(x, embedding)
        return x


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a modulation, added to the (projected) input."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = conv3(channels_in, channels), conv3(channels, channels)
        self.modulation = Modulation(embedding, channels)
        self.skip: nn.Module = nn.Identity()
        if channels_in != channels:
            self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels, h, w)."""
        hidden = self.modulation(self.first(functional.silu(x)), embedding)
        return self.skip(x) + self.second(functional.silu(hidden))


class EdgeBlock(nn.Module):
    """Edge enhancement: add a learned mix of the features' Laplacians.

    The mix starts at zero: at random it makes the features six times as large, most of it noise of
    single pixels, and the expert learns nothing from them (research/notebook.md).
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.mix = zeroed(nn.Conv2d(channels, channels, 1))

    def laplacian(self, x: Tensor) -> Tensor:
        """Five-point Laplacian of every channel, edges replicated."""
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        padded = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv2d(padded, kernel, groups=x.shape[1])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Add the mixed Laplacian."""
        return x + self.mix(self.laplacian(x))


class DilatedBlock(nn.Module):
    """One 3 x 3 convolution with dilation 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels, dilation=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Same shape."""
        return self.conv(functional.silu(x))


class DenseBlock(nn.Module):
    """Four layers of growth 16, each seeing all maps before it; a 1 x 1 convolution follows."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            conv3(channels_in + index * GROWTH, GROWTH) for index in range(DENSE_LAYERS)
        )
        self.gather = nn.Conv2d(channels_in + DENSE_LAYERS * GROWTH, channels, 1)
        self.modulation = Modulation(embedding, channels)
        self.same = channels_in == channels

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels, h, w)."""
        maps = x
        for layer in self.layers:
            maps = torch.cat([maps, functional.silu(layer(maps))], dim=1)
        out = self.modulation(self.gather(maps), embedding)
        return x + out if self.same else out


class ComplexConv(nn.Module):
    """Convolution of complex maps: the first half of the channels is real, the second imaginary.

    (A + iB)(x + iy) = (Ax - By) + i(Ay + Bx), as one real convolution with an assembled kernel.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        shape = (channels_out // 2, channels_in // 2, 3, 3)
        deviation = math.sqrt(1.0 / (9 * channels_in // 2))
        self.real = nn.Parameter(nn.init.normal_(torch.empty(shape), std=deviation))
        self.imaginary = nn.Parameter(nn.init.normal_(torch.empty(shape), std=deviation))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels_out, h, w)."""
        real = torch.cat([self.real, -self.imaginary], dim=1)
        imaginary = torch.cat([self.imaginary, self.real], dim=1)
        return functional.conv2d(x, torch.cat([real, imaginary]), self.bias, padding=1)


class ComplexBlock(nn.Module):
    """Two complex convolutions, added to the input."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = (ComplexConv(channels, channels) for _ in range(2))
        self.modulation = Modulation(embedding, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Same shape."""
        hidden = self.modulation(self.first(functional.silu(x)), embedding)
        return x + self.second(functional.silu(hidden))


class ConvBlock(nn.Module):
    """One modulated 3 x 3 convolution."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.conv = conv3(channels_in, channels)
        self.modulation = Modulation(embedding, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels, h, w)."""
        return functional.silu(self.modulation(self.conv(x), embedding))


class ChannelAttention(nn.Module):
    """Squeeze and excitation (Hu 2018), reduction 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // 4)
        self.excite = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Weigh the channels."""
        weight = torch.sigmoid(self.excite(functional.silu(self.squeeze(x.mean((2, 3))))))
        return x * weight[:, :, None, None]


class NonLocalBlock(nn.Module):
    """Softmax attention between all positions (Wang 2018), added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * (channels // 2), 1)
        self.fuse = zeroed(nn.Conv2d(channels // 2, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Same shape."""
        query, key, value = (
            part.flatten(2).transpose(1, 2)[:, None] for part in self.qkv(x).chunk(3, dim=1)
        )
        out = functional.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.fuse(out.transpose(1, 2).unflatten(2, x.shape[2:]))


class CrossAttention(nn.Module):
    """Bottleneck positions (queries) read from the tokens z_c (keys and values)."""

    def __init__(self, channels: int, embed_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(channels, embed_dim, 1)
        self.key_value = nn.Linear(embed_dim, 2 * embed_dim)
        self.project = zeroed(nn.Conv2d(embed_dim, channels, 1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Features (B, C, h, w), tokens (B, N, d) -> (B, C, h, w)."""
        query = self.query(x).flatten(2).transpose(1, 2)
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        split = [t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value)]
        out = functional.scaled_dot_product_attention(*split)
        out = out.transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.project(out)


def sinusoid(time: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding (B, dim) of time steps (B,), as in the transformer and in DDPM."""
    rates = torch.exp(
        -math.log(10_000.0) * torch.arange(dim // 2, device=time.device) / (dim // 2)
    )
    angles = time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ConditionEmbedding(nn.Module):
    """Time step, acquisition and noise strength, summed into one vector."""

    def __init__(self, condition_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.time = nn.Linear(dim, dim)
        self.condition = nn.Linear(condition_dim, dim)
        self.strength = nn.Linear(1, dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, time: Tensor, condition: Tensor, strength: Tensor) -> Tensor:
        """(B,), (B, condition_dim), (B,) -> (B, dim)."""
        total = self.time(sinusoid(time, self.dim)) + self.condition(condition)
        total = total + self.strength(strength[:, None])
        return functional.silu(self.mix(functional.silu(total)))


class Expert(nn.Module):
    """Common skeleton: two levels down, a bottleneck that reads the tokens, two levels up."""

    def __init__(self, config: MoEDiffConfig) -> None:
        super().__init__()
        width, z = config.width, config.latent_channels
        self.embedding_dim = 4 * width
        self.embedding = ConditionEmbedding(config.condition_dim, self.embedding_dim)
        self.enter = conv3(z * (1 + config.context_slices), width)
        self.down1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)
        self.cross = CrossAttention(4 * width, config.embed_dim, config.heads)
        self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.leave = zeroed(nn.Conv2d(width, z, 1))
        stages = self.stages(width, self.embedding_dim)
        self.encode0, self.encode1, self.encode2, self.middle, self.decode1, self.decode0 = stages
        initialise(self)

    def stages(self, width: int, embedding: int) -> tuple[Level, ...]:
        """Blocks at c, 2c, 4c, in the bottleneck, and in the decoder (in: 4c -> 2c, 2c -> c)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, condition: Tensor, strength: Tensor
    ) -> Tensor:
        """Latents (B, z (1 + context), h, w), steps (B,), tokens (B, N, d) -> (B, z, h, w)."""
        embedding = self.embedding(time, condition, strength)
        level0 = self.encode0(self.enter(x), embedding)
        level1 = self.encode1(self.down1(level0), embedding)
        level2 = self.encode2(self.down2(level1), embedding)
        level2 = self.cross(self.middle(level2, embedding), tokens)
        level1 = self.decode1(torch.cat([self.up1(level2), level1], dim=1), embedding)
        level0 = self.decode0(torch.cat([self.up2(level1), level0], dim=1), embedding)
        return self.leave(functional.silu(level0))


class SmoothExpert(Expert):
    """Expert 1, centrum semiovale: residual blocks, Laplacian edges, dilated bottleneck."""

    def stages(self, width: int, embedding: int) -> tuple[Level, ...]:
        """See :meth:`Expert.stages`."""
        return (
            Level(ResidualBlock(width, width, embedding), EdgeBlock(width)),
            Level(ResidualBlock(2 * width, 2 * width, embedding)),
            Level(ResidualBlock(4 * width, 4 * width, embedding)),
            Level(DilatedBlock(4 * width), ResidualBlock(4 * width, 4 * width, embedding)),
            Level(ResidualBlock(4 * width, 2 * width, embedding)),
            Level(ResidualBlock(2 * width, width, embedding)),
        )


class CortexExpert(Expert):
    """Expert 2, cortex: dense blocks and a complex convolution at the bottleneck."""

    def stages(self, width: int, embedding: int) -> tuple[Level, ...]:
        """See :meth:`Expert.stages`."""
        return (
            Level(),
            Level(DenseBlock(2 * width, 2 * width, embedding)),
            Level(DenseBlock(4 * width, 4 * width, embedding)),
            Level(ComplexBlock(4 * width, embedding)),
            Level(DenseBlock(4 * width, 2 * width, embedding)),
            Level(DenseBlock(2 * width, width, embedding)),
        )


class JunctionExpert(Expert):
    """Expert 3, grey-white junction: channel attention and a non-local block in the decoder."""

    def stages(self, width: int, embedding: int) -> tuple[Level, ...]:
        """See :meth:`Expert.stages`."""

        def attended(channels_in: int, channels: int) -> tuple[nn.Module, nn.Module]:
            return ConvBlock(channels_in, channels, embedding), ChannelAttention(channels)

        return (
            Level(),
            Level(*attended(2 * width, 2 * width)),
            Level(*attended(4 * width, 4 * width)),
            Level(
                ConvBlock(4 * width, 4 * width, embedding),
                ResidualBlock(4 * width, 4 * width, embedding),
            ),
            Level(*attended(4 * width, 2 * width), NonLocalBlock(2 * width)),
            Level(*attended(2 * width, width)),
        )


EXPERT_CLASSES: dict[str, type[Expert]] = {
    "smooth": SmoothExpert,
    "cortex": CortexExpert,
    "junction": JunctionExpert,
}
