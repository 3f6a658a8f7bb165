# SPDX-License-Identifier: Apache-2.0
"""Forward processes, their inversion and the deterministic update of the shared state.

Time s runs from 0 (clean) to 1 (start). Each expert sees s on a grid of its own, with its
number of steps T_i; all act on one state, each estimates the clean latent, and the gate mixes
the estimates.

Two processes:

* the *bridge* (default), a residual shift from the clean latent to the start latent with little
  noise (after ResShift, Yue 2023), so that a few steps suffice and no noise at all is allowed;
* *variance preserving* diffusion as in the paper (eqs 5, 7, 8), from pure noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA_RANGE = (1e-4, 2e-2)  # of DDPM at T = 1000; scaled for other T
MIN_RATE = 1e-3


def step_index(s: Tensor, steps: int) -> Tensor:
    """The step 1 ... T of an expert that is nearest to continuous time s in [0, 1]."""
    return torch.round(s * steps).long().clamp(1, steps)


def along(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) with as many axes as ``like`` (B, ...)."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


def shift_rate(s: Tensor) -> Tensor:
    """eta(s), from clean (0) to start (1): the squared sine of a quarter turn."""
    return torch.sin(0.5 * math.pi * s) ** 2


def bridge_state(
    clean: Tensor, start: Tensor, noise: Tensor, s: Tensor, amplitude: Tensor
) -> Tensor:
    """z_s = z_0 + eta (z_start - z_0) + amplitude sqrt(eta) noise.

    Latents (B, z, h, w); s and amplitude (kappa x strength) are (B,).
    """
    rate = along(shift_rate(s), clean)
    return clean + rate * (start - clean) + along(amplitude, clean) * rate.sqrt() * noise


def bridge_step(state: Tensor, clean: Tensor, start: Tensor, s: Tensor, s_next: Tensor) -> Tensor:
    """Move the state from s to s_next along the estimate of the clean latent, adding no noise.

    The noise that the estimate implies is kept and rescaled with sqrt(eta), as DDIM does.
    """
    rate, rate_next = along(shift_rate(s), state), along(shift_rate(s_next), state)
    implied = state - clean - rate * (start - clean)
    kept = (rate_next / rate.clamp_min(MIN_RATE**2)).sqrt()
    return clean + rate_next * (start - clean) + kept * implied


def alpha_bar(steps: int) -> Tensor:
    """Cumulative products for t = 0 ... T, shape (T + 1,), float64, from 1 downwards.

    Linear betas scaled by 1000 / T, so that all experts reach the same noise at the same s.
    """
    low, high = (min(beta * 1000.0 / steps, 0.999) for beta in BETA_RANGE)
    betas = torch.linspace(low, high, steps, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1.0 - betas, 0)])


def alpha_bar_at(s: Tensor, steps: int) -> Tensor:
    """alpha-bar of an expert with T steps at its step nearest to s, (B,)."""
    table = alpha_bar(steps).to(device=s.device, dtype=torch.float32)
    return table[step_index(s, steps)]


def add_noise(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Equation 5; ``level`` is alpha-bar, (B,)."""
    level = along(level, clean)
    return level.sqrt() * clean + (1.0 - level).sqrt() * noise


def clean_from_noise(state: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Equation 8: the clean latent that a predicted noise implies."""
    level = along(level, state)
    return (state - (1.0 - level).sqrt() * noise) / level.sqrt()


def noise_from_clean(state: Tensor, clean: Tensor, level: Tensor) -> Tensor:
    """The noise that an estimate of the clean latent implies (equation 8 the other way round)."""
    level = along(level, state)
    return (state - level.sqrt() * clean) / (1.0 - level).sqrt()


def mix(clean: Tensor, gates: Tensor) -> Tensor:
    """Equation 9: estimates (B, K, z, h, w) and gates (B, K, h, w) -> (B, z, h, w)."""
    return (clean * gates[:, :, None]).sum(1)
