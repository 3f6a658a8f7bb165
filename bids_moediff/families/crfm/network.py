# SPDX-License-Identifier: Apache-2.0
"""Cross-contrast refinement by iterative projection between a coarse and a fine grid.

An own design from the published abstract of CRFM (docs/science.md): features F of the coarse
target and Q of the fine reference exchange what they know in six projection blocks; the result
is a residual over cubic interpolation. An edge that only the reference has must not survive:
that is for the training data and for the projection onto the measured data afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.json_config import JsonConfig


@dataclass(frozen=True)
class CRFMConfig(JsonConfig):
    """Hyperparameters: feature channels, projection blocks, reduction of the attention."""

    channels: int = 32
    blocks: int = 6
    reduction: int = 4


def resize_linear(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Trilinear, outer corners aligned, (B, C, ...) -> (B, C, *size)."""
    return functional.interpolate(x, size=size, mode="trilinear", align_corners=False)


def resize_area(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Average over the fine voxels in each coarse one, (B, C, ...) -> (B, C, *size)."""
    return functional.interpolate(x, size=size, mode="area")


def cubic_matrix(count_in: int, count_out: int) -> Tensor:
    """Cubic convolution (Keys 1981, a = -1/2), outer corners aligned, (count_out, count_in).

    Unlike the kernel in torch (a = -3/4) it reproduces straight lines. The border is replicated.
    """
    centre = (torch.arange(count_out) + 0.5) * count_in / count_out - 0.5
    taps = torch.floor(centre).long()[:, None] + torch.arange(-1, 3)
    x = (centre[:, None] - taps).abs()
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
    matrix = torch.zeros(count_out, count_in)
    return matrix.scatter_add(1, taps.clamp(0, count_in - 1), weights)


def resize_cubic(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Separable cubic convolution, outer corners aligned, (B, C, X, Y, Z) -> (B, C, *size)."""
    matrices = [cubic_matrix(a, b).to(x) for a, b in zip(x.shape[2:], size, strict=True)]
    return torch.einsum("bcxyz,ix,jy,kz->bcijk", x, *matrices)


def scaled_gradient(image: Tensor) -> Tensor:
    """Central differences over their 99th percentile, (B, 1, X, Y, Z) -> (B, 3, X, Y, Z).

    A sample without any edge stays zero.
    """
    padded = functional.pad(image, (1, 1, 1, 1, 1, 1), mode="replicate")
    inner = slice(1, -1)
    gradient = torch.cat(
        [
            padded[:, :, 2:, inner, inner] - padded[:, :, :-2, inner, inner],
            padded[:, :, inner, 2:, inner] - padded[:, :, inner, :-2, inner],
            padded[:, :, inner, inner, 2:] - padded[:, :, inner, inner, :-2],
        ],
        dim=1,
    )
    gradient = 0.5 * gradient
    flat = gradient.abs().flatten(1).float()
    rank = max(1, round(0.99 * flat.shape[1]))
    scale = flat.kthvalue(rank, dim=1).values.clamp_min(1e-6)
    return gradient / scale.reshape(-1, 1, 1, 1, 1).to(gradient.dtype)


def conv3(channels_in: int, channels_out: int) -> nn.Conv3d:
    """3 x 3 x 3 convolution that keeps the size."""
    return nn.Conv3d(channels_in, channels_out, 3, padding=1)


class ProjectionBlock(nn.Module):
    """Up-project the coarse features, correct by what a round trip loses, update both grids.

    After the last block nobody reads the coarse features, so it leaves them as they are.
    """

    def __init__(self, channels: int, last: bool = False) -> None:
        super().__init__()
        self.coarse = None if last else conv3(2 * channels, channels)
        self.fine = conv3(2 * channels, channels)

    @staticmethod
    def back_project(coarse: Tensor, size: tuple[int, ...]) -> Tensor:
        """H' = up(F) - up(down(up(F)) - F) on the fine grid."""
        up = resize_linear(coarse, size)
        lost = resize_area(up, tuple(coarse.shape[2:])) - coarse
        return up - resize_linear(lost, size)

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F (B, C, x, y, z), Q (B, C, X, Y, Z) -> new F, new Q, and H' on the fine grid."""
        projected = self.back_project(coarse, tuple(fine.shape[2:]))
        refined = fine + functional.silu(self.fine(torch.cat([projected, fine], dim=1)))
        if self.coarse is not None:
            small = tuple(coarse.shape[2:])
            seen = torch.cat([resize_area(projected, small), resize_area(fine, small)], dim=1)
            coarse = coarse + functional.silu(self.coarse(seen))
        return coarse, refined, projected


class Fusion(nn.Module):
    """Channel attention and spatial attention side by side, then a 1 x 1 x 1 convolution."""

    def __init__(self, channels_in: int, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels_in // reduction)
        self.squeeze, self.excite = nn.Linear(channels_in, hidden), nn.Linear(hidden, channels_in)
        self.place = conv3(2, 1)
        self.merge = nn.Conv3d(2 * channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, X, Y, Z) -> (B, channels, X, Y, Z)."""
        weight = torch.sigmoid(self.excite(functional.silu(self.squeeze(x.mean((2, 3, 4))))))
        by_channel = x * weight[:, :, None, None, None]
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        by_place = x * torch.sigmoid(self.place(summary))
        return self.merge(torch.cat([by_channel, by_place], dim=1))


class CRFMNetwork(nn.Module):
    """Sharpen a coarse target with a fine, rigidly aligned reference of another contrast.

    ``forward(target, reference)``: target (B, 1, x, y, z) on the coarse grid, reference (B, 1, X,
    Y, Z) on the fine one, both covering the same field of view and scaled to about [0, 1]; the
    ratio may be any, and differ by axis. Returns (B, 1, X, Y, Z). The last layer starts at zero:
    an untrained network returns the cubic interpolation of the target.
    """

    def __init__(self, config: CRFMConfig | None = None) -> None:
        super().__init__()
        self.config = config or CRFMConfig()
        channels, blocks = self.config.channels, self.config.blocks
        self.enter_target = conv3(1, channels)
        self.enter_reference = conv3(4, channels)
        self.projections = nn.ModuleList(
            ProjectionBlock(channels, last=index == blocks - 1) for index in range(blocks)
        )
        self.fusion = Fusion((blocks + 1) * channels, channels, self.config.reduction)
        self.leave = conv3(channels, 1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, target: Tensor, reference: Tensor) -> Tensor:
        """See the class."""
        size = tuple(reference.shape[2:])
        if any(fine < coarse for fine, coarse in zip(size, target.shape[2:], strict=True)):
            raise ValueError("the reference must be at least as fine as the target on every axis")
        coarse = self.enter_target(target)
        fine = self.enter_reference(torch.cat([reference, scaled_gradient(reference)], dim=1))
        projected = []
        for block in self.projections:
            coarse, fine, seen = block(coarse, fine)
            projected.append(seen)
        fused = self.fusion(torch.cat([*projected, fine], dim=1))
        return resize_cubic(target, size) + self.leave(fused)
