# SPDX-License-Identifier: Apache-2.0
"""The scale head: predict the size of the error of a restored image, voxel by voxel.

A small network that sees the restored image, the detail that was added to the interpolation, and
the acquisition. It predicts the logarithms of two standard deviations before a projection: of
noise that is projected onto the unmeasured part, and of noise that is projected onto the measured
part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from bids_moediff.networks.json_config import JsonConfig
from bids_moediff.networks.last_layer import ACQUISITION_NUMBERS, LARGEST_RATIO, WIDEST
from bids_moediff.networks.mean import (
    BLOCK_GAIN,
    DETAIL_GAIN,
    FOLD,
    LEVEL,
    LEVEL_GAIN,
    Block,
    initialise,
)
from bids_moediff.networks.streaming import Chain, Convolution, Residual

NUMBERS = ACQUISITION_NUMBERS + 1
INPUTS, OUTPUTS = 4, 2
NARROWEST = 0.2  # width of a slice profile that the network was trained on
# First guess: what was added, averaged over a neighbourhood (output voxels), times a factor.
NEIGHBOURHOOD, FACTOR, FLOOR = 2.0, 1.5, 0.004
SMALLEST_NOISE = 0.002
MIDDLE_NOISE = 0.02
# The network may change a first guess by at most exp(LIMIT).
LIMIT = 2.5
LARGEST_SHARE = 8.0


@dataclass(frozen=True)
class ScaleConfig(JsonConfig):
    """Hyperparameters: features and residual blocks."""

    channels: int = 32
    blocks: int = 3


def first_guess(added: np.ndarray) -> np.ndarray:
    """Return the standard deviation (X, Y, Z) that the network starts from.

    Parameters
    ----------
    added
        Restored image minus consistent interpolation (X, Y, Z), the image in about [0, 1].
    """
    local = ndimage.gaussian_filter(np.square(added, dtype=np.float32), NEIGHBOURHOOD)
    return np.sqrt(FLOOR**2 + FACTOR**2 * local).astype(np.float32)


def scale_inputs(mean: Tensor, start: Tensor) -> Tensor:
    """Return the images that the network sees, (4, X, Y, Z), all of the order of one.

    Parameters
    ----------
    mean
        Restored image (X, Y, Z) in about [0, 1] that agrees with the measurement.
    start
        Consistent interpolation (X, Y, Z).
    """
    image, added = mean.cpu().numpy(), (mean - start).cpu().numpy()
    guess = first_guess(added)
    parts = np.empty((INPUTS, *image.shape), np.float32)
    parts[0] = LEVEL_GAIN * (image - LEVEL)
    parts[1] = DETAIL_GAIN * (image - ndimage.uniform_filter(image, 5))
    np.clip(added / guess, -LARGEST_SHARE, LARGEST_SHARE, out=parts[2])
    np.log(guess, out=parts[3])
    parts[3] -= math.log(MIDDLE_NOISE)
    return torch.from_numpy(parts).to(mean.device)


def scale_numbers(condition: Tensor, noise: float) -> Tensor:
    """Return the seven numbers of a scan: its acquisition, (6,), and its noise, 0 to 1."""
    ratios, widths = condition[:ACQUISITION_NUMBERS].chunk(2)
    inside = torch.where(widths > 0, widths.clamp(NARROWEST, WIDEST), widths)
    share = condition.new_tensor([noise / (noise + MIDDLE_NOISE)])
    return torch.cat([ratios.clamp(max=math.log2(LARGEST_RATIO)), inside, share])


def log_scales(output: Tensor, log_guess: Tensor, noise: float | Tensor) -> Tensor:
    """Return the logarithms of both standard deviations (..., 2, X, Y, Z).

    Parameters
    ----------
    output
        Output of the network, unfolded, (..., 2, X, Y, Z).
    log_guess
        Logarithm of :func:`first_guess`, (..., X, Y, Z).
    noise
        Standard deviation of the scan's noise, as the engine assumes it.
    """
    change = LIMIT * torch.tanh(output.float() / LIMIT)
    base = torch.log(torch.as_tensor(noise) + SMALLEST_NOISE).expand_as(log_guess)
    return change + torch.stack([log_guess, base.to(log_guess)], dim=-4)


class ScaleNetwork(nn.Module):
    """Residual 3-D network on the folded grid.

    ``forward(inputs, numbers)``: inputs (B, 4, X, Y, Z) of :func:`scale_inputs`, even sizes;
    numbers (B, 7) of :func:`scale_numbers`. Returns (B, 2, X, Y, Z), see :func:`log_scales`.
    """

    def __init__(self, config: ScaleConfig | None = None) -> None:
        super().__init__()
        self.config = config or ScaleConfig()
        width, blocks = self.config.channels, self.config.blocks
        self.head = nn.Conv3d(INPUTS * FOLD**3, width, 3, padding=1)
        self.body = nn.ModuleList(Block(width) for _ in range(blocks))
        self.tail = nn.Conv3d(width, OUTPUTS * FOLD**3, 3, padding=1)
        self.film = nn.Sequential(
            nn.Linear(NUMBERS, 64), nn.SiLU(), nn.Linear(64, 2 * width * blocks + OUTPUTS)
        )
        initialise(self)
        with torch.no_grad():
            for last in (self.tail, self.film[-1]):
                last.weight.mul_(0.1)  # type: ignore[operator]
                last.bias.zero_()  # type: ignore[operator]

    def _modulation(self, numbers: Tensor) -> tuple[list[Tensor], Tensor]:
        """Scales and shifts of all blocks, and one offset for each output (B, 2)."""
        told = self.film(numbers)
        return list(told[:, :-OUTPUTS].chunk(2 * len(self.body), dim=1)), told[:, -OUTPUTS:]

    def forward(self, inputs: Tensor, numbers: Tensor) -> Tensor:
        """Return changes of both log scales on the fine grid."""
        film, offset = self._modulation(numbers)
        x = self.head(fold(inputs).contiguous(memory_format=torch.channels_last_3d))
        for index, block in enumerate(self.body):
            scale, shift = (
                part[..., None, None, None] for part in film[2 * index : 2 * index + 2]
            )
            x = block(x, scale, shift)
        return unfold(self.tail(x)) + offset[..., None, None, None]

    def stream(self, numbers: Tensor, kind: torch.dtype) -> Chain:
        """Return the network between fold and unfold as a pipeline, for the numbers (1, 7)."""
        film, offset = self._modulation(numbers)
        blocks = []
        for index, block in enumerate(self.body):
            scale, shift = 1 + film[2 * index][0], film[2 * index + 1][0]
            first = Convolution(block.first, kind, scale=scale, shift=shift, activate=True)  # type: ignore[arg-type]
            second = Convolution(block.second, kind, scale=BLOCK_GAIN)  # type: ignore[arg-type]
            blocks.append(Residual(Chain(first, second)))
        head = Convolution(self.head, kind)
        last = Convolution(self.tail, kind, shift=offset[0].repeat_interleave(FOLD**3))
        return Chain(head, *blocks, last)


def fold(images: Tensor) -> Tensor:
    """(B, C, 2X, 2Y, 2Z) -> (B, 8 C, X, Y, Z), lossless."""
    batch, channels, x, y, z = images.shape
    parts = images.reshape(batch, channels, x // 2, 2, y // 2, 2, z // 2, 2)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        batch, 8 * channels, x // 2, y // 2, z // 2
    )


def unfold(features: Tensor) -> Tensor:
    """Inverse of :func:`fold`."""
    batch, count, x, y, z = features.shape
    parts = features.reshape(batch, count // 8, 2, 2, 2, x, y, z)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, count // 8, 2 * x, 2 * y, 2 * z)


def scale_loss(variance: Tensor, squares: Tensor, weight: Tensor) -> Tensor:
    """Return the beta-weighted likelihood (beta 1/2) of squared errors under Gaussians.

    Parameters
    ----------
    variance, squares, weight
        (B, X, Y, Z): variance after the projection, squared error, weight of a voxel.

    References
    ----------
    Seitzer et al., On the pitfalls of heteroscedastic uncertainty estimation, ICLR 2022.
    """
    ratio = squares / variance
    limit = 50.0
    beyond = limit * (1 + torch.log(ratio.clamp_min(limit) / limit))
    bounded = torch.where(ratio > limit, beyond, ratio)
    size = variance.detach().sqrt()
    share = weight * size / (weight * size).mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return 0.5 * (share * (torch.log(variance) + bounded)).mean()
