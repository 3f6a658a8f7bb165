# SPDX-License-Identifier: Apache-2.0
"""A small 3-D U-Net that segments the brain in any contrast."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


class _Block(nn.Module):
    """``depth`` convolutions of 3 voxels with leaky rectifiers.

    No normalisation layer: its statistics would change with the field of view.
    """

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        for before, after in pairwise([inputs] + [outputs] * depth):
            convolution = nn.Conv3d(before, after, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, a=0.1)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            self.convolutions.append(convolution)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            volume = functional.leaky_relu(convolution(volume), 0.1)
        return volume


class BrainMaskNet(nn.Module):
    """Predict the logit of brain per voxel.

    Parameters
    ----------
    widths
        Channels per level; each level halves the grid. The finest level has one convolution
        each way, the others two: the fine grid costs most and matters least.

    Notes
    -----
    ``forward`` takes (batch, 1, x, y, z) intensities in [0, 1], RAS axes, each size a multiple
    of ``2 ** (len(widths) - 1)``, and returns logits of the same shape.
    """

    def __init__(self, widths: Sequence[int] = (12, 24, 48, 72)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        encoder_inputs = [1, *self.widths[:-1]]
        self.encoder = nn.ModuleList(
            _Block(before, after, 1 if level == 0 else 2)
            for level, (before, after) in enumerate(zip(encoder_inputs, self.widths, strict=True))
        )
        self.decoder = nn.ModuleList(
            _Block(self.widths[level] + self.widths[level + 1], self.widths[level], 1)
            for level in range(len(self.widths) - 1)
        )
        self.head = nn.Conv3d(self.widths[0] + 1, 1, 1)

    @property
    def multiple(self) -> int:
        """Every grid size must be a multiple of this."""
        return int(2 ** (len(self.widths) - 1))

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Logits of brain, see the class."""
        features, skips = volume, []
        for level, block in enumerate(self.encoder):
            features = block(functional.max_pool3d(features, 2) if level else features)
            skips.append(features)
        for level in reversed(range(len(self.decoder))):
            features = functional.interpolate(features, scale_factor=2, mode="nearest")
            features = self.decoder[level](torch.cat([features, skips[level]], 1))
        logits: torch.Tensor = self.head(torch.cat([features, volume], 1))
        return logits
