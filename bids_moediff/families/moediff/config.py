# SPDX-License-Identifier: Apache-2.0
"""All hyperparameters of MoEDiff-SR in one frozen, JSON-serialisable object, and its presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bids_moediff.networks.json_config import JsonConfig

LATENTS = ("haar", "kl", "vq")
GATES = ("token", "slice")
STARTS = ("mean", "low_resolution", "noise")
EXPERTS = ("smooth", "cortex", "junction")
HAAR_CHANNELS = 16
LATENT_FACTOR = 4


@dataclass(frozen=True)
class MoEDiffConfig(JsonConfig):
    """Hyperparameters of the mixture of diffusion experts.

    Attributes
    ----------
    latent, latent_channels, latent_scale
        Autoencoder ("haar", "kl" or "vq"), its channels z, and the factor the latents are
        multiplied by (1; the paper uses 0.2). Latents have a quarter of the image's sides.
    autoencoder_width, codebook_size
        First width of the learned autoencoders and the number of codes of "vq".
    width
        Channels c of the experts at the latent's own resolution.
    context_slices
        Neighbouring slices that enter an expert (odd; the 2.5-D input).
    embed_dim, heads, guidance_channels
        Token dimension d and attention heads of the Swin encoder, and the number of maps that
        guide its training (decision J); at inference they are absent.
    gate, gamma, temperature, usage_decay
        Token or slice gate, strength of the usage regulariser (eq. 4), initial temperature
        (1 is the paper) and decay of the usage average.
    experts, diffusion_steps
        Which experts there are, and the number of time steps T_i of each.
    kappa
        Noise amplitude of the residual-shift bridge in units of the image range.
    condition_dim
        Length of the condition: log2(acquired/output voxel size) and slice-profile width (in
        acquired voxels), each for the three axes.
    start
        Where the reverse process starts: "mean" (image of a regression network),
        "low_resolution" (interpolated input) or "noise" (the paper).
    """

    latent: str = "haar"
    latent_channels: int = HAAR_CHANNELS
    latent_scale: float = 1.0
    autoencoder_width: int = 32
    codebook_size: int = 1024
    width: int = 32
    context_slices: int = 5
    embed_dim: int = 96
    heads: int = 4
    guidance_channels: int = 0
    gate: str = "token"
    gamma: float = 0.1
    temperature: float = 0.1
    usage_decay: float = 0.99
    experts: tuple[str, ...] = EXPERTS
    diffusion_steps: tuple[int, ...] = (500, 2000, 1000)
    kappa: float = 0.05
    condition_dim: int = 6
    start: str = "mean"

    def __post_init__(self) -> None:
        for name, choices in (("latent", LATENTS), ("gate", GATES), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        unknown = [name for name in self.experts if name not in EXPERTS]
        if unknown or not self.experts:
            raise ValueError(f"experts must be chosen from {EXPERTS}, not {self.experts}")
        if len(self.experts) != len(self.diffusion_steps):
            raise ValueError("diffusion_steps needs one number of steps for each expert")
        if self.context_slices % 2 != 1:
            raise ValueError(f"context_slices must be odd, not {self.context_slices}")
        if self.latent == "haar" and self.latent_channels != HAAR_CHANNELS:
            raise ValueError(f"the haar latent has {HAAR_CHANNELS} channels")
        if self.embed_dim % self.heads or self.width % 2:
            raise ValueError("embed_dim must be a multiple of heads, and width must be even")

    @property
    def predicts_noise(self) -> bool:
        """Whether experts predict noise from pure noise (the paper) or a clean residual."""
        return self.start == "noise"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MoEDiffConfig:
        """One of ``PRESETS``, with single settings changed."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        return dataclasses.replace(PRESETS[name], **changes)


PRESETS = {
    "small": MoEDiffConfig(),
    "c48": MoEDiffConfig(width=48),
    "c64": MoEDiffConfig(width=64),
    # Section III-C of the paper; c and d are not stated there and give Expert 1's count best.
    "paper": MoEDiffConfig(
        latent="vq",
        latent_channels=512,
        latent_scale=0.2,
        autoencoder_width=128,
        width=208,
        context_slices=1,
        embed_dim=256,
        heads=8,
        gate="slice",
        temperature=1.0,
        start="noise",
    ),
}
