# SPDX-License-Identifier: Apache-2.0
"""Multi-scale patch tokens and their Swin encoder (section II-A of the paper, eq. 1).

A slice is cut into patches of 64, 32 and 16 pixels. The tokens of each scale form a grid of their
own, on which two Swin blocks (plain and shifted windows) run; one global attention layer over all
tokens then joins the scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.attention import Attention

PATCH_SIZES = (64, 32, 16)
WINDOWS = (4, 4, 8)


@dataclass(frozen=True)
class Tokens:
    """Encoded tokens z_c (B, N, d), coarse scale first, and the grid (rows, columns) of each."""

    values: Tensor
    grids: tuple[tuple[int, int], ...]

    def finest(self) -> Tensor:
        """Tokens of the smallest patches as a map, (B, d, H/16, W/16)."""
        rows, columns = self.grids[-1]
        values = self.values[:, -rows * columns :]
        return values.transpose(1, 2).reshape(values.shape[0], -1, rows, columns)


def mlp(dim: int, ratio: int = 2) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))


def relative_index(window: int) -> Tensor:
    """Row of the relative-position table for each pair of window cells, (w*w, w*w)."""
    offsets = torch.arange((2 * window - 1) ** 2).view(2 * window - 1, 2 * window - 1)
    pairs = offsets.unfold(0, window, 1).unfold(1, window, 1).flip(0, 1)  # from, from, to, to
    return pairs.permute(2, 3, 0, 1).reshape(window**2, window**2)


def partition(x: Tensor, window: int) -> Tensor:
    """(B, R, C, d) -> (B * windows, w*w, d)."""
    batch, rows, columns, dim = x.shape
    x = x.reshape(batch, rows // window, window, columns // window, window, dim)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, dim)


def merge(x: Tensor, window: int, rows: int, columns: int) -> Tensor:
    """Inverse of :func:`partition`."""
    dim = x.shape[-1]
    x = x.reshape(-1, rows // window, columns // window, window, window, dim)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, dim)


class SwinBlock(nn.Module):
    """One Swin transformer block (Liu 2021) on a grid of any size.

    The grid is padded to whole windows; padding and cells that a cyclic shift brought together
    from opposite edges do not see each other.
    """

    index: Tensor

    def __init__(self, dim: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = mlp(dim)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)

    def regions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Additive mask (windows, 1, w*w, w*w): -inf between cells that must not meet."""
        padded = [-(-size // self.window) * self.window for size in (rows, columns)]
        labels = []
        for size, length in zip((rows, columns), padded, strict=True):
            place = torch.arange(length, device=device)
            label = (place >= size).long()
            if self.shift and length > self.window:
                label = label + 2 * (place < self.shift).long()
            labels.append(label)
        grid = (4 * labels[0][:, None] + labels[1][None, :])[None, :, :, None]
        shift = [self.shift if length > self.window else 0 for length in padded]
        cells = partition(torch.roll(grid, (-shift[0], -shift[1]), (1, 2)), self.window)[..., 0]
        apart = cells[:, :, None] != cells[:, None, :]
        mask = torch.zeros(apart.shape, device=device).masked_fill(apart, float("-inf"))
        return mask[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, C, d) -> the same."""
        _, rows, columns, _ = x.shape
        residual = functional.pad(
            self.norm1(x), (0, 0, 0, -columns % self.window, 0, -rows % self.window)
        )
        padded = residual.shape[1:3]
        shift = [self.shift if length > self.window else 0 for length in padded]
        residual = torch.roll(residual, (-shift[0], -shift[1]), (1, 2))
        windows = partition(residual, self.window)
        mask = self.regions(rows, columns, x.device)
        bias = self.table[self.index].permute(2, 0, 1)[None]
        bias = (bias + mask).repeat(x.shape[0], 1, 1, 1)
        windows = self.attention(windows, bias)
        residual = merge(windows, self.window, padded[0], padded[1])
        residual = torch.roll(residual, (shift[0], shift[1]), (1, 2))[:, :rows, :columns]
        x = x + residual
        return x + self.mlp(self.norm2(x))


class MultiScaleEncoder(nn.Module):
    """Patch embeddings, Swin blocks per scale, one global layer: eq. 1 of the paper."""

    def __init__(self, dim: int, heads: int, guidance: int = 0) -> None:
        super().__init__()
        # Guidance maps are smooth, so their mean over a patch is all that a token needs. Without
        # bias: a map that is absent (zero) adds nothing.
        self.guides = nn.ModuleList(
            nn.Linear(2 * guidance, dim, bias=False) for _ in PATCH_SIZES if guidance
        )
        self.embeddings = nn.ModuleList(
            nn.Conv2d(1, dim, kernel_size=size, stride=size) for size in PATCH_SIZES
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(SwinBlock(dim, heads, window, shifted) for shifted in (False, True)))
            for window in WINDOWS
        )
        self.scales = nn.Parameter(torch.zeros(len(PATCH_SIZES), dim))
        nn.init.trunc_normal_(self.scales, std=0.02)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = mlp(dim)
        self.norm = nn.LayerNorm(dim)

    def embed(self, image: Tensor) -> list[Tensor]:
        """F_large, F_medium, F_small of a slice (B, 1, H, W), each (B, R, C, d)."""
        height, width = image.shape[-2:]
        if height % PATCH_SIZES[0] or width % PATCH_SIZES[0]:
            raise ValueError(f"slice sides must be multiples of 64, not {height} x {width}")
        return [embed(image).permute(0, 2, 3, 1) for embed in self.embeddings]

    def forward(self, image: Tensor, guidance: Tensor | None = None) -> Tokens:
        """Slice (B, 1, H, W), sides multiples of 64, to tokens z_c (B, N, d).

        ``guidance`` (B, 2 G, H, W): G maps and where each is known; only in training.
        """
        grids, flat = [], []
        for scale, (cells, blocks) in enumerate(zip(self.embed(image), self.blocks, strict=True)):
            if guidance is not None and len(self.guides) > 0:
                pooled = functional.avg_pool2d(guidance, PATCH_SIZES[scale])
                cells = cells + self.guides[scale](pooled.permute(0, 2, 3, 1))
            cells = blocks(cells)
            grids.append((cells.shape[1], cells.shape[2]))
            flat.append(cells.flatten(1, 2) + self.scales[scale])
        values = torch.cat(flat, dim=1)
        values = values + self.attention(self.norm1(values))
        values = values + self.mlp(self.norm2(values))
        return Tokens(self.norm(values), tuple(grids))
