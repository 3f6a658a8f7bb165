# SPDX-License-Identifier: Apache-2.0
"""Slices to latents and back: a lossless wavelet, a variational and a quantised autoencoder.

All of them halve the sides twice and share one interface: ``encode`` (B, 1, H, W) -> (B, z, H/4,
W/4), ``decode`` the other way round, and ``reconstruct`` for their own training. Super-resolved
slices are coded as residuals (:func:`residual_decode`), so that an autoencoder's own error cancels
and a latent that is left alone gives the interpolated slice back exactly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.moediff.config import MoEDiffConfig


class Autoencoder(nn.Module):
    """The interface; ``channels`` is z."""

    channels: int

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 1, H, W) to latent (B, z, H/4, W/4)."""
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, z, H/4, W/4) to image (B, 1, H, W)."""
        raise NotImplementedError

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and the regularising loss (a scalar) for training the autoencoder."""
        return self.decode(self.encode(image)), image.new_zeros(())


def residual_decode(
    autoencoder: Autoencoder, interpolated: Tensor, start: Tensor, clean: Tensor
) -> Tensor:
    """Add what the latent changed: ``interpolated + D(clean) - D(start)``, (B, 1, H, W)."""
    if isinstance(autoencoder, HaarAutoencoder):
        return interpolated + autoencoder.decode(clean - start)
    return interpolated + (autoencoder.decode(clean) - autoencoder.decode(start))


def haar_filters() -> Tensor:
    """The 16 orthonormal analysis filters (16, 1, 4, 4) of a two-level Haar transform.

    Order: the mean, three details of the coarse level, then the three details of the fine level
    at each of the four 2x2 positions.
    """
    low, high = np.array([1.0, 1.0]), np.array([1.0, -1.0])
    details = [np.outer(a, b) / 2 for a, b in ((low, high), (high, low), (high, high))]
    ones = np.ones((2, 2)) / 2
    filters = [np.kron(band, ones) for band in (np.outer(low, low) / 2, *details)]
    for band in details:
        filters += [np.kron(cell.reshape(2, 2), band) for cell in np.eye(4)]
    return torch.from_numpy(np.stack(filters).astype(np.float32))[:, None]


class HaarAutoencoder(Autoencoder):
    """Two-level orthonormal Haar wavelet: 16 channels, nothing lost, nothing learned."""

    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.channels = 16
        self.register_buffer("filters", haar_filters(), persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        """Analysis: one convolution with stride 4."""
        return functional.conv2d(image, self.filters.to(image.dtype), stride=4)

    def decode(self, latent: Tensor) -> Tensor:
        """Synthesis: the transpose, which is the inverse."""
        return functional.conv_transpose2d(latent, self.filters.to(latent.dtype), stride=4)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _encoder(width: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        _Residual(2 * width),
        nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
        _Residual(4 * width),
        nn.Conv2d(4 * width, channels_out, 3, padding=1),
    )


def _decoder(width: int, channels_in: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, 4 * width, 3, padding=1),
        _Residual(4 * width),
        nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
        _Residual(2 * width),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 1, 3, padding=1),
    )


class KLAutoencoder(Autoencoder):
    """Variational autoencoder (Kingma and Welling 2014); ``encode`` returns the mean."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.encoder = _encoder(width, 2 * channels)
        self.decoder = _decoder(width, channels)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, each (B, z, H/4, W/4)."""
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, image: Tensor) -> Tensor:
        """The posterior mean: deterministic."""
        return self.moments(image)[0]

    def decode(self, latent: Tensor) -> Tensor:
        """Decoded slice."""
        return self.decoder(latent)

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one posterior sample; the loss is the Kullback-Leibler divergence to N(0, I)."""
        mean, log_variance = self.moments(image)
        sample = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1.0 - log_variance).mean()
        return self.decode(sample), divergence


class VQAutoencoder(Autoencoder):
    """Vector-quantised autoencoder (van den Oord 2017).

    ``encode`` returns the continuous latent, because a residual cannot be added to a code; the
    codebook is looked up in ``decode``.
    """

    def __init__(self, channels: int, width: int, codebook_size: int) -> None:
        super().__init__()
        self.channels = channels
        self.encoder = _encoder(width, channels)
        self.decoder = _decoder(width, channels)
        self.codebook = nn.Parameter(torch.empty(codebook_size, channels))
        nn.init.uniform_(self.codebook, -1.0 / codebook_size, 1.0 / codebook_size)

    def codes(self, latent: Tensor) -> Tensor:
        """Index of the nearest code at every position, (B, H/4, W/4)."""
        flat = latent.permute(0, 2, 3, 1).reshape(-1, self.channels)
        distances = (self.codebook**2).sum(1) - 2 * flat @ self.codebook.T
        return distances.argmin(1).reshape(latent.shape[0], *latent.shape[2:])

    def quantise(self, latent: Tensor) -> Tensor:
        """Replace every position by its nearest code, (B, z, H/4, W/4)."""
        return self.codebook[self.codes(latent)].permute(0, 3, 1, 2)

    def encode(self, image: Tensor) -> Tensor:
        """The latent before quantisation."""
        return self.encoder(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Quantise (gradients pass straight through) and decode."""
        return self.decoder(latent + (self.quantise(latent) - latent).detach())

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded slice, and codebook loss + 0.25 x commitment loss."""
        latent = self.encode(image)
        quantised = self.quantise(latent)
        codebook = functional.mse_loss(quantised, latent.detach())
        commitment = functional.mse_loss(latent, quantised.detach())
        return self.decode(latent), codebook + 0.25 * commitment


def build_autoencoder(config: MoEDiffConfig) -> Autoencoder:
    """The autoencoder that the configuration names."""
    if config.latent == "haar":
        return HaarAutoencoder()
    if config.latent == "kl":
        return KLAutoencoder(config.latent_channels, config.autoencoder_width)
    return VQAutoencoder(config.latent_channels, config.autoencoder_width, config.codebook_size)
