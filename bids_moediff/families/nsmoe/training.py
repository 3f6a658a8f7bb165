# SPDX-License-Identifier: Apache-2.0
"""What only the training of N-SMoE needs: the critic."""

from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.nsmoe.network import convolution


class Critic(nn.Module):
    """U-Net critic with spectral normalisation: a realness logit for every pixel or voxel."""

    def __init__(self, dims: int = 2, width: int = 32) -> None:
        super().__init__()
        conv, normalise = convolution(dims), nn.utils.parametrizations.spectral_norm
        self.enter = conv(1, width, 3, padding=1)
        self.down1 = normalise(conv(width, 2 * width, 4, stride=2, padding=1))
        self.down2 = normalise(conv(2 * width, 4 * width, 4, stride=2, padding=1))
        self.up1 = normalise(conv(4 * width, 2 * width, 3, padding=1))
        self.up2 = normalise(conv(2 * width, width, 3, padding=1))
        self.leave = conv(width, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, *size), multiples of 4, -> the same."""
        level0 = functional.leaky_relu(self.enter(image), 0.2)
        level1 = functional.leaky_relu(self.down1(level0), 0.2)
        level2 = functional.leaky_relu(self.down2(level1), 0.2)
        mode = "bilinear" if image.dim() == 4 else "trilinear"

        def grow(x: Tensor, like: Tensor) -> Tensor:
            return functional.interpolate(x, size=tuple(like.shape[2:]), mode=mode)

        level1 = level1 + functional.leaky_relu(self.up1(grow(level2, level1)), 0.2)
        level0 = level0 + functional.leaky_relu(self.up2(grow(level1, level0)), 0.2)
        return self.leave(level0)
