# SPDX-License-Identifier: Apache-2.0
"""Assemble MoEDiff-SR: tokens, gate, experts, and the sampler that mixes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bids_moediff.families.moediff import diffusion
from bids_moediff.families.moediff.config import EXPERTS, MoEDiffConfig
from bids_moediff.families.moediff.experts import EXPERT_CLASSES
from bids_moediff.families.moediff.gating import Gate, GateOutput
from bids_moediff.families.moediff.latents import (
    build_autoencoder,
    haar_filters,
    residual_decode,
)
from bids_moediff.families.moediff.tokens import MultiScaleEncoder, Tokens
from bids_moediff.networks.precision import full_precision

# Typical inverse deviations of Haar bands of a head in [0, 1]: mean, coarse and fine details.
HAAR_GAINS = (0.5,) + (4.0,) * 3 + (8.0,) * 12
RESIDUAL_GAIN = 10.0


@dataclass(frozen=True)
class SampleOutput:
    """A super-resolved slice with its gates and counts.

    ``image`` (B, H, W), ``gates`` (B, K, H/4, W/4), and the number of single expert runs (expert x
    slice x step) that were carried out and that the gate made unnecessary.
    """

    image: Tensor
    gates: Tensor
    evaluated: int
    skipped: int


@dataclass(frozen=True)
class Prepared:
    """Slices in the sampler: everything that does not change from step to step.

    ``centre`` (B, H, W), ``origin`` and ``start_latents`` its latent and that of its
    neighbourhood, ``tokens`` (B, N, d), ``gates`` (B, K, h, w), ``active`` (B, K) the experts
    that run, ``condition`` (B, 6) and ``strength`` (B,).
    """

    centre: Tensor
    origin: Tensor
    start_latents: Tensor
    tokens: Tensor
    gates: Tensor
    active: Tensor
    condition: Tensor
    strength: Tensor


class MoEDiffSR(nn.Module):
    """Mixture of diffusion experts on slices whose head is scaled to about [0, 1].

    Source: MoEDiff-SR, sections II-A to II-C; docs/science.md lists decisions where the text is
    open.
    """

    gains: Tensor

    def __init__(self, config: MoEDiffConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = build_autoencoder(config).requires_grad_(False)
        self.tokens = MultiScaleEncoder(config.embed_dim, config.heads, config.guidance_channels)
        self.gating = Gate(config)
        self.experts = nn.ModuleList(EXPERT_CLASSES[name](config) for name in config.experts)
        plain = (1.0,) * config.latent_channels
        gains = torch.tensor(HAAR_GAINS if config.latent == "haar" else plain)
        self.register_buffer("gains", gains[None, :, None, None], persistent=False)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents of slices (B, S, H, W), slice after slice: (B, S z, H/4, W/4)."""
        batch, slices, height, width = images.shape
        flat = images.float().reshape(batch * slices, 1, height, width)
        with full_precision(images.device):
            latent = self.autoencoder.encode(flat)
        return self.config.latent_scale * latent.reshape(batch, -1, *latent.shape[2:])

    def decode(self, interpolated: Tensor, start: Tensor, clean: Tensor) -> Tensor:
        """Slice (B, H, W) by residual coding: interpolated + D(clean) - D(start)."""
        scale = self.config.latent_scale
        image, start, clean = interpolated[:, None].float(), start / scale, clean / scale
        with full_precision(image.device):
            return residual_decode(self.autoencoder, image, start, clean)[:, 0]

    def centre(self, images: Tensor) -> Tensor:
        """Middle slice (B, H, W) of (B, S, H, W)."""
        return images[:, images.shape[1] // 2]

    def centre_latent(self, start_latents: Tensor) -> Tensor:
        """Middle slice's latent (B, z, h, w) of (B, S z, h, w)."""
        z = self.config.latent_channels
        first = (self.config.context_slices // 2) * z
        return start_latents[:, first : first + z]

    def encode_tokens(self, image: Tensor, guidance: Tensor | None = None) -> Tokens:
        """Tokens z_c of a slice (B, H, W); in training with ``guidance`` (B, 2 G, H, W)."""
        return self.tokens(image[:, None], guidance)

    def gate_tokens(self, tokens: Tokens) -> GateOutput:
        """Gate from tokens, on its own and on the latent grid."""
        return self.gating(tokens)

    def gate(self, image: Tensor) -> Tensor:
        """Gate (B, K, H/4, W/4) of a slice (B, H, W); sums to one over the experts."""
        return self.gating(self.encode_tokens(image)).latent

    def expert_input(self, state: Tensor, start_latents: Tensor) -> Tensor:
        """State and context in numbers of order one; the bridge state as distance from start."""
        slices = self.config.context_slices
        context = start_latents * self.gains.repeat(1, slices, 1, 1)
        if not self.config.predicts_noise:
            state = RESIDUAL_GAIN * (state - self.centre_latent(start_latents))
        return torch.cat([state, context], dim=1)

    def run_expert(
        self,
        index: int,
        state: Tensor,
        s: Tensor,
        start_latents: Tensor,
        tokens: Tensor,
        condition: Tensor,
        strength: Tensor,
    ) -> Tensor:
        """Raw output (B, z, h, w) of one expert: noise, or the residual over start."""
        time = diffusion.step_index(s, self.config.diffusion_steps[index])
        inputs = self.expert_input(state, start_latents)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        out = self.experts[index](inputs, time, tokens, condition, strength)
        return out.float() if self.config.predicts_noise else out.float() / RESIDUAL_GAIN

    def estimate(
        self, index: int, state: Tensor, s: Tensor, start_latents: Tensor, out: Tensor
    ) -> Tensor:
        """Clean latent from an expert's raw output: eq. 8, or start + residual."""
        if self.config.predicts_noise:
            level = diffusion.alpha_bar_at(s, self.config.diffusion_steps[index])
            return diffusion.clean_from_noise(state, out, level)
        return self.centre_latent(start_latents) + out

    def predict(
        self,
        state: Tensor,
        s: Tensor,
        start_latents: Tensor,
        tokens: Tensor | Tokens,
        condition: Tensor,
        strength: Tensor,
    ) -> Tensor:
        """Every expert's estimate of the clean latent, (B, K, z, h, w).

        ``state`` (B, z, h, w), ``s`` (B,) in [0, 1], ``start_latents`` (B, S z, h, w), ``tokens``
        z_c (B, N, d), ``condition`` (B, 6), ``strength`` (B,) in [0, 1].
        """
        values = tokens.values if isinstance(tokens, Tokens) else tokens
        estimates = []
        for index in range(len(self.experts)):
            out = self.run_expert(index, state, s, start_latents, values, condition, strength)
            estimates.append(self.estimate(index, state, s, start_latents, out))
        return torch.stack(estimates, dim=1)

    def latent_noise(self, noise: Tensor | None, like: Tensor) -> Tensor:
        """Unit latent noise (B, z, h, w) from pixel noise (B, H, W), latent noise or none."""
        if noise is None:
            return torch.randn_like(like)
        if noise.dim() == 4:
            return noise
        if like.shape[1] != 16:
            raise ValueError(
                "pixel noise needs a latent of 16 channels; give latent noise instead"
            )
        filters = haar_filters().to(noise)
        with full_precision(noise.device):
            return torch.nn.functional.conv2d(noise[:, None], filters, stride=4)

    @torch.no_grad()
    def sample(
        self,
        start: Tensor,
        condition: Tensor,
        *,
        num_steps: int = 4,
        noise_strength: float = 0.0,
        noise: Tensor | None = None,
        skip_threshold: float = 0.0,
    ) -> SampleOutput:
        """Super-resolve slices.

        Parameters
        ----------
        start
            Start images (B, S, H, W), the slice itself in the middle; sides multiples of 64.
        condition
            (B, 6), see :class:`MoEDiffConfig`.
        num_steps
            Steps of the reverse process. Without noise the bridge is a straight line that the
            first estimate fixes, so one evaluation is made whatever the number.
        noise_strength
            0 gives the fidelity output, 1 the full bridge noise (ignored with ``start="noise"``).
        noise
            Unit noise, (B, H, W) in pixels or (B, z, H/4, W/4); drawn here if absent.
        skip_threshold
            An expert whose gate stays below this over a whole slice is not run for it.
        """
        steps = self.count_steps(num_steps, noise_strength)
        given = self.prepare(start, condition, noise_strength, skip_threshold)
        state = self.first_state(given, noise)
        for step in range(steps):
            s, s_next = 1.0 - step / steps, 1.0 - (step + 1) / steps
            clean = self.clean_latent(given, state, s)
            state = self.next_state(given.origin, state, clean, s, s_next)
        run = int(given.active.sum()) * steps
        image = self.decode(given.centre, given.origin, state)
        return SampleOutput(image, given.gates, run, given.active.numel() * steps - run)

    def count_steps(self, num_steps: int, noise_strength: float) -> int:
        """Return the number of steps that change the result: one for the bridge without noise."""
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {num_steps}")
        return num_steps if self.config.predicts_noise or noise_strength > 0 else 1

    def prepare(
        self, start: Tensor, condition: Tensor, noise_strength: float, skip_threshold: float = 0.0
    ) -> Prepared:
        """Compute what every step of :meth:`sample` needs; the same arguments."""
        if start.shape[1] != self.config.context_slices:
            raise ValueError(
                f"needs {self.config.context_slices} neighbouring slices, not {start.shape[1]}"
            )
        centre = self.centre(start)
        tokens = self.encode_tokens(centre)
        gates, active = self.active_experts(self.gating(tokens).latent, skip_threshold)
        start_latents = self.encode(start)
        origin = self.centre_latent(start_latents)
        strength = torch.full_like(origin[:, 0, 0, 0], noise_strength)
        return Prepared(
            centre, origin, start_latents, tokens.values, gates, active, condition, strength
        )

    def first_state(self, given: Prepared, noise: Tensor | None) -> Tensor:
        """State at s = 1, (B, z, h, w): pure noise, or the start with a little noise."""
        if self.config.predicts_noise:
            return self.latent_noise(noise, given.origin)
        amplitude = (
            self.config.kappa
            * self.config.latent_scale
            * diffusion.along(given.strength, given.origin)
        )
        if not amplitude.any():
            return given.origin
        return given.origin + amplitude * self.latent_noise(noise, given.origin)

    def clean_latent(self, given: Prepared, state: Tensor, s: float) -> Tensor:
        """The mixture's estimate of the clean latent at time s, (B, z, h, w)."""
        return self._mixture(given, state, torch.full_like(given.strength, s))

    def next_state(
        self, origin: Tensor, state: Tensor, clean: Tensor, s: float, s_next: float
    ) -> Tensor:
        """The state at ``s_next``, given the estimate of the clean latent at ``s``."""
        times = [origin.new_full((len(origin),), time) for time in (s, s_next)]
        return self.update(state, clean, origin, times[0], times[1])

    @staticmethod
    def active_experts(gates: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Return gates (B, K, h, w) after skipping experts, and the experts that run (B, K).

        The share of a skipped expert goes to the others. The leading expert of a slice always
        runs.
        """
        peaks = gates.amax((2, 3))
        active = (peaks >= threshold) | (peaks == peaks.amax(1, keepdim=True))
        kept = gates * active[:, :, None, None]
        return kept / kept.sum(1, keepdim=True), active

    def _mixture(self, given: Prepared, state: Tensor, s: Tensor) -> Tensor:
        """Return equation 9; active experts run on the slices that need them only."""
        origin = torch.zeros_like(state)
        if not self.config.predicts_noise:  # mixing residuals keeps "no change" exact
            origin = given.origin
        mixture = origin.clone()
        for index in range(len(self.experts)):
            rows = given.active[:, index].nonzero()[:, 0]
            if len(rows) == 0:
                continue
            part = [
                values[rows]
                for values in (
                    state, s, given.start_latents, given.tokens, given.condition, given.strength
                )
            ]  # fmt: skip
            out = self.run_expert(index, *part)
            clean = self.estimate(index, part[0], part[1], part[2], out)
            gate = given.gates[rows, index, None]
            mixture = mixture.index_add(0, rows, gate * (clean - origin[rows]))
        return mixture

    def update(
        self, state: Tensor, clean: Tensor, start: Tensor, s: Tensor, s_next: Tensor
    ) -> Tensor:
        """One deterministic step of the shared state from s to s_next."""
        if not self.config.predicts_noise:
            return diffusion.bridge_step(state, clean, start, s, s_next)
        steps = max(self.config.diffusion_steps)
        noise = diffusion.noise_from_clean(state, clean, diffusion.alpha_bar_at(s, steps))
        level = diffusion.alpha_bar_at(s_next, steps)
        level = torch.where(s_next > 0, level, torch.ones_like(level))
        return diffusion.add_noise(clean, noise, level)


def parameter_count(module: nn.Module, trainable_only: bool = True) -> int:
    """Number of (trainable) parameters."""
    chosen = (p for p in module.parameters() if p.requires_grad or not trainable_only)
    return sum(p.numel() for p in chosen)


def equal_parameter_single(config: MoEDiffConfig, expert: str = "smooth") -> MoEDiffConfig:
    """A single-expert configuration with (nearly) the parameters of the mixture, for ablation."""
    with torch.device("meta"):
        wanted = parameter_count(MoEDiffSR(config))
        steps = (
            config.diffusion_steps[config.experts.index(expert)]
            if (expert in config.experts)
            else max(config.diffusion_steps)
        )
        best, gap = config, None
        for width in range(config.width, 3 * config.width, 2):
            single = dataclasses.replace(
                config, experts=(expert,), diffusion_steps=(steps,), width=width
            )
            difference = abs(parameter_count(MoEDiffSR(single)) - wanted)
            if gap is None or difference < gap:
                best, gap = single, difference
    return best


__all__ = [
    "EXPERTS",
    "MoEDiffSR",
    "Prepared",
    "SampleOutput",
    "equal_parameter_single",
    "parameter_count",
]
