# SPDX-License-Identifier: Apache-2.0
"""Losses of MoEDiff-SR (equations 6-18), and the function that combines them.

Decisions where the text is open or would not train (docs/science.md, letters D, E, F, L):

* perceptual, Sobel, Fourier and short-time Fourier terms act on decoded pixels;
* squared norms of orthonormal transforms equal the plain squared error (Parseval), so the
  spectral terms use exponent 1 by default; exponent 2 is the paper's;
* the perceptual features are a fixed bank of Gabor filters at three scales
  (:class:`GaborFeatures`): nothing is learned or downloaded;
* expert similarities (eqs 14-16) use residuals over the start latent, because whole latents of a
  super-resolution problem all have a cosine of nearly one; the diversity term of eq. 16 uses
  deviations from the experts' mean, bounded where these are short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.moediff import diffusion
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.networks.precision import full_precision

MAD_TO_DEVIATION = 1.4826
TEMPERATURE_FLOOR = 1e-3
WEIGHT_RANGE = (0.1, 10.0)
STFT_WINDOWS = (8, 16, 32)
DEVIATION_FLOOR = 0.1
TISSUE_EXPERTS = ("smooth", "cortex", "junction")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; the fidelity of the mixture (L1 of pixels) has weight 1.

    ``experts`` weighs eq. 13, ``task`` the expert's own terms in it, ``gating`` eq. 16 before its
    variance weight, ``diversity`` the second term of eq. 16, ``tissue`` the supervision by masks,
    which fades to nothing at ``tissue_until`` of the training. ``fidelity_fraction`` of the
    samples are trained without noise at s = 1, as for the default output.
    """

    fidelity: float = 1.0
    experts: float = 0.2
    task: float = 0.2
    gating: float = 0.002
    diversity: float = 0.01
    tissue: float = 0.02
    tissue_until: float = 0.6
    fidelity_fraction: float = 0.5


@dataclass
class LossState:
    """State of the losses between steps; the fit loop sets ``progress`` (0 to 1)."""

    weights: LossWeights = field(default_factory=LossWeights)
    decay: float = 0.99
    progress: float = 0.0
    gating_mean: float = 0.0
    gating_square: float = 0.0
    updates: int = 0

    def update(self, gating: float) -> float:
        """Follow the gating loss with a moving average and return the weight of eq. 17."""
        self.gating_mean = self.decay * self.gating_mean + (1 - self.decay) * gating
        self.gating_square = self.decay * self.gating_square + (1 - self.decay) * gating**2
        self.updates += 1
        bias = 1.0 - self.decay**self.updates
        mean = self.gating_mean / bias
        return variance_weight(self.gating_square / bias - mean**2)

    def state_dict(self) -> dict[str, float]:
        """Numbers to store in a checkpoint."""
        names = ("progress", "gating_mean", "gating_square", "updates")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Restore :meth:`state_dict`."""
        for name, value in values.items():
            setattr(self, name, type(getattr(self, name))(value))


def variance_weight(variance: float) -> float:
    """Equation 17, w = 1 / variance, clipped to [0.1, 10]."""
    low, high = WEIGHT_RANGE
    return min(max(1.0 / max(variance, 1e-12), low), high)


class GaborFeatures(nn.Module):
    """Fixed perceptual features: Gabor energies at three scales, and the local mean.

    At each dyadic scale, four orientations of an even and odd 7 x 7 Gabor pair (wavelength
    4 pixels, Gaussian sigma 2) give sqrt(even^2 + odd^2), the first layer of a wavelet scattering.
    """

    kernels: Tensor

    def __init__(self, scales: int = 3, orientations: int = 4) -> None:
        super().__init__()
        self.scales = scales
        y, x = torch.meshgrid(torch.arange(-3.0, 4.0), torch.arange(-3.0, 4.0), indexing="ij")
        window = torch.exp(-(x**2 + y**2) / (2 * 2.0**2))
        kernels = []
        for index in range(orientations):
            angle = math.pi * index / orientations
            phase = (2 * math.pi / 4.0) * (x * math.cos(angle) + y * math.sin(angle))
            even, odd = window * torch.cos(phase), window * torch.sin(phase)
            even = even - window * even.sum() / window.sum()  # blind to the mean
            kernels += [even / even.norm(), odd / odd.norm()]
        self.register_buffer("kernels", torch.stack(kernels)[:, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 1, H, W) -> feature maps of each scale, (B, 5, H / 2^k, W / 2^k)."""
        features = []
        for _ in range(self.scales):
            padded = functional.pad(image, (3, 3, 3, 3), mode="replicate")
            pairs = functional.conv2d(padded, self.kernels).unflatten(1, (-1, 2))
            energy = (pairs.square().sum(2) + 1e-8).sqrt()
            features.append(torch.cat([energy, image], dim=1))
            image = functional.avg_pool2d(image, 2)
        return features


def per_sample(values: Tensor) -> Tensor:
    """Mean over all but the first axis, (B, ...) -> (B,)."""
    return values.flatten(1).mean(1)


def perceptual(features: GaborFeatures, truth: Tensor, estimate: Tensor) -> Tensor:
    """Second term of eq. 10 with fixed features, (B, 1, H, W) x 2 -> (B,)."""
    pairs = zip(features(truth), features(estimate), strict=True)
    return torch.stack([per_sample((a - b).square()) for a, b in pairs]).mean(0)


def sobel(image: Tensor) -> Tensor:
    """Sobel derivatives across and down, (B, 1, H, W) -> (B, 2, H, W), edges replicated."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernel = torch.stack([across, across.T])[:, None].to(image)
    return functional.conv2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)


def spectral(truth: Tensor, estimate: Tensor, exponent: float = 1.0) -> Tensor:
    """Second term of eq. 11: |F(truth) - F(estimate)|^exponent, orthonormal transform, (B,)."""
    difference = torch.fft.fft2((truth - estimate).float(), norm="ortho")
    return per_sample(difference.abs() ** exponent)


def short_time_spectral(
    truth: Tensor,
    estimate: Tensor,
    exponent: float = 1.0,
    windows: tuple[int, ...] = STFT_WINDOWS,
) -> Tensor:
    """Equation 12: half-overlapping Hann windows of each size, orthonormal FFT, (B,)."""
    difference = (truth - estimate).float()
    total = difference.new_zeros(difference.shape[0])
    for size in windows:
        hann = torch.hann_window(size, device=difference.device)
        cells = difference[:, 0].unfold(1, size, size // 2).unfold(2, size, size // 2)
        spectrum = torch.fft.fft2(cells * torch.outer(hann, hann), norm="ortho")
        total = total + per_sample(spectrum.abs() ** exponent)
    return total


def task_loss(name: str, truth: Tensor, estimate: Tensor, features: GaborFeatures) -> Tensor:
    """Pixel terms of eqs 10-12 for one expert, (B, 1, H, W) x 2 -> (B,)."""
    if name == "smooth":
        return per_sample((truth - estimate).abs()) + perceptual(features, truth, estimate)
    if name == "cortex":
        edges = per_sample((sobel(truth) - sobel(estimate)).abs())
        return edges + spectral(truth, estimate)
    return short_time_spectral(truth, estimate)


def pooled_cosine(a: Tensor, b: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine between latents (..., z, h, w) within each cell of a coarser grid, (..., R, C)."""

    def pool(product: Tensor) -> Tensor:
        flat = product.sum(-3).flatten(0, -3)[:, None]
        pooled = functional.adaptive_avg_pool2d(flat, grid)
        return pooled[:, 0].unflatten(0, product.shape[:-3])

    norms = pool(a * a).sqrt() * pool(b * b).sqrt()
    return pool(a * b) / norms.clamp_min(1e-8)


def mad_temperature(cosines: Tensor) -> Tensor:
    """Equation 14 over batch, experts and cells, at least 1e-3 (a scalar)."""
    deviation = (cosines - cosines.median()).abs().median()
    return (MAD_TO_DEVIATION * deviation).clamp_min(TEMPERATURE_FLOOR)


def selection_targets(cosines: Tensor) -> Tensor:
    """Equation 15: G* (B, K, R, C) from cosines of the same shape; without gradient."""
    cosines = cosines.detach()
    return torch.softmax(cosines / mad_temperature(cosines), dim=1)


def supervised_gating(targets: Tensor, gates: Tensor) -> Tensor:
    """First term of eq. 16, averaged over slices and cells."""
    cross_entropy = -(targets * gates.clamp_min(1e-8).log()).mean(1)
    return cross_entropy.mean()


def diversity(estimates: Tensor, wanted: Tensor) -> Tensor:
    """Second term of eq. 16 on deviations from the experts' mean, (B, K, z, h, w) -> scalar.

    A deviation is divided by its length, or by a tenth of ``wanted`` (B, z, h, w) if that is
    longer. ``wanted`` is the difference between target and start. Without this bound the first,
    nearly vanishing outputs have an unbounded gradient. Once the whole gradient is clipped,
    nothing is left of the other losses, and no expert ever leaves its start
    (research/notebook.md).
    """
    count = estimates.shape[1]
    if count < 2:
        return estimates.new_zeros(())
    shortest = DEVIATION_FLOOR * wanted.flatten(1).norm(dim=1)[:, None, None]
    flat = (estimates - estimates.mean(1, keepdim=True)).flatten(2)
    flat = flat / torch.maximum(flat.norm(dim=2, keepdim=True), shortest.clamp_min(1e-8))
    cosines = flat @ flat.transpose(1, 2)
    itself = torch.eye(count, dtype=torch.bool, device=flat.device)
    nearest = cosines.masked_fill(itself, -math.inf).amax(2)
    # two opposite experts give -1, whose logarithm would be minus infinity
    return torch.log((1.0 + nearest.mean(1)).clamp_min(1e-2)).mean()


def tissue_gating(
    gates: Tensor, tissue: Tensor, valid: Tensor, experts: tuple[str, ...]
) -> Tensor:
    """Cross-entropy between gates (B, K, R, C) and tissue masks (B, 3, H, W) where they are valid.

    The masks are, in this order, white-matter core, cortex and grey-white band; a cell counts by
    the share of it that they cover.
    """
    order = [TISSUE_EXPERTS.index(name) for name in experts]
    share = functional.adaptive_avg_pool2d(
        tissue[:, order].float(), (gates.shape[2], gates.shape[3])
    )
    share = share * valid.float().reshape(-1, 1, 1, 1)
    return -(share * gates.clamp_min(1e-8).log()).sum() / share.sum().clamp_min(1.0)


def draw_times(
    count: int, fidelity_fraction: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Time s and noise strength, (B,) each: a share at s = 1 without noise, the rest uniform."""
    fidelity = torch.rand(count, device=device) < fidelity_fraction
    s = torch.rand(count, device=device).clamp_min(1e-3)
    strength = torch.rand(count, device=device)
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    return torch.where(fidelity, one, s), torch.where(fidelity, zero, strength)


def weighted_error(image: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean absolute error, weighted pixel by pixel where a weight is given; a scalar."""
    error = (image - target).abs()
    if weight is None:
        return error.mean()
    return (weight * error).sum() / weight.sum().clamp_min(1.0)


@dataclass(frozen=True)
class Estimates:
    """Clean latents of the experts (B, K, z, h, w) and their diffusion losses (B, K, h, w)."""

    clean: Tensor
    diffusion: Tensor


def _bridge_estimates(
    model: MoEDiffSR,
    truth: Tensor,
    start: Tensor,
    tokens: Tensor,
    batch: Mapping[str, Any],
    fidelity_fraction: float,
) -> Estimates:
    origin = model.centre_latent(start)
    s, strength = draw_times(len(truth), fidelity_fraction, truth.device)
    amplitude = model.config.kappa * model.config.latent_scale * strength
    state = diffusion.bridge_state(truth, origin, torch.randn_like(truth), s, amplitude)
    clean = model.predict(state, s, start, tokens, batch["condition"], strength)
    return Estimates(clean, (clean - truth[:, None]).abs().mean(2))


def _noise_estimates(
    model: MoEDiffSR, truth: Tensor, start: Tensor, tokens: Tensor, batch: Mapping[str, Any]
) -> Estimates:
    """Equations 5, 7 and 8: every expert has its own noise, level and error."""
    s = torch.rand(len(truth), device=truth.device)
    strength = torch.ones_like(s)
    clean, losses = [], []
    for index, steps in enumerate(model.config.diffusion_steps):
        noise = torch.randn_like(truth)
        state = diffusion.add_noise(truth, noise, diffusion.alpha_bar_at(s, steps))
        out = model.run_expert(index, state, s, start, tokens, batch["condition"], strength)
        losses.append((out - noise).square().mean(1))
        clean.append(model.estimate(index, state, s, start, out))
    return Estimates(torch.stack(clean, 1), torch.stack(losses, 1))


_FEATURES: dict[torch.device, GaborFeatures] = {}


def _features(device: torch.device) -> GaborFeatures:
    if device not in _FEATURES:
        _FEATURES[device] = GaborFeatures().to(device)
    return _FEATURES[device]


def expert_losses(
    model: MoEDiffSR,
    target: Tensor,
    centre: Tensor,
    origin: Tensor,
    estimates: Estimates,
    gates: Tensor,
    task_weight: float,
) -> Tensor:
    """Equations 6 and 13: gate-weighted diffusion and task losses of all experts, a scalar.

    Equation 6's diffusion term is weighed place by place, the task terms by the slice's mean gate.
    """
    features = _features(target.device)
    total = (gates * estimates.diffusion).sum(1).mean()
    for index, name in enumerate(model.config.experts):
        pixels = model.decode(centre, origin, estimates.clean[:, index])[:, None]
        task = task_loss(name, target[:, None], pixels, features)
        total = total + task_weight * (gates[:, index].mean((1, 2)) * task).mean()
    return total


def gating_losses(
    estimates: Tensor, truth: Tensor, origin: Tensor, gates: Tensor, diversity_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 16: total, supervised part, diversity part (scalars).

    ``gates`` (B, K, R, C) on the gate's own grid; G* is made on the same grid.
    """
    grid = (gates.shape[2], gates.shape[3])
    moved = estimates.detach() - origin[:, None]
    wanted = (truth - origin)[:, None].expand_as(moved)
    supervised = supervised_gating(selection_targets(pooled_cosine(moved, wanted, grid)), gates)
    apart = diversity(estimates, truth - origin)
    return supervised + diversity_weight * apart, supervised, apart


def joint_loss(
    model: MoEDiffSR, batch: Mapping[str, Any], state: LossState, *, uniform_gate: bool
) -> tuple[Tensor, dict[str, float]]:
    """Equation 18 for one batch, with the fidelity of the mixture on top.

    Parameters
    ----------
    model
        In training mode. A distributed wrapper must be removed (``.module``) or call this inside
        its own forward.
    batch
        ``start`` (B, S, H, W), ``target`` (B, H, W), ``condition`` (B, 6); optionally ``tissue``
        (B, 3, H, W) with ``tissue_valid`` (B,), ``guidance`` (B, 2 G, H, W) for the tokens, and
        ``weight`` (B, H, W), the share of every pixel in the fidelity term (1 in the head, less
        outside).
    state
        Memory of the losses; its ``progress`` fades the tissue supervision.
    uniform_gate
        Mix the experts equally (the first part of the training); the gate itself learns already.

    Returns
    -------
    The loss (a scalar with gradient) and its parts as numbers.
    """
    weights, target = state.weights, batch["target"]
    centre = model.centre(batch["start"])
    tokens = model.encode_tokens(centre, batch.get("guidance"))
    gate = model.gate_tokens(tokens)
    with torch.no_grad():
        start = model.encode(batch["start"])
        truth = model.encode(target[:, None])
    origin = model.centre_latent(start)
    if model.config.predicts_noise:
        estimates = _noise_estimates(model, truth, start, tokens.values, batch)
    else:
        estimates = _bridge_estimates(
            model, truth, start, tokens.values, batch, weights.fidelity_fraction
        )
    mixing = torch.full_like(gate.latent, 1.0 / gate.latent.shape[1])
    if not uniform_gate:
        mixing = gate.latent
    with full_precision(target.device):
        mixture = model.decode(centre, origin, diffusion.mix(estimates.clean, mixing))
        fidelity = weighted_error(mixture, target, batch.get("weight"))
        experts = expert_losses(model, target, centre, origin, estimates, mixing, weights.task)
        loss = weights.fidelity * fidelity + weights.experts * experts
        logs = {"fidelity": float(fidelity.detach()), "experts": float(experts.detach())}
        if len(model.config.experts) > 1:
            extra, more = _gate_terms(
                model, batch, state, estimates.clean, truth, origin, gate.coarse
            )
            loss, logs = loss + extra, logs | more
    return loss, logs | {"loss": float(loss.detach())}


def _gate_terms(
    model: MoEDiffSR,
    batch: Mapping[str, Any],
    state: LossState,
    estimates: Tensor,
    truth: Tensor,
    origin: Tensor,
    gates: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    weights = state.weights
    gating, supervised, apart = gating_losses(estimates, truth, origin, gates, weights.diversity)
    balance = state.update(float(gating.detach()))
    total = weights.gating * balance * gating
    usage = gates.mean((0, 2, 3)).tolist()
    logs = {
        "gating": float(supervised.detach()),
        "diversity": float(apart.detach()),
        "gating_weight": balance,
    }
    logs |= {f"gate_{name}": usage[i] for i, name in enumerate(model.config.experts)}
    fading = max(0.0, 1.0 - state.progress / max(weights.tissue_until, 1e-6))
    if "tissue" in batch and fading > 0:
        valid = batch.get("tissue_valid", torch.ones(len(gates), device=gates.device))
        tissue = tissue_gating(gates, batch["tissue"], valid, model.config.experts)
        total = total + weights.tissue * fading * tissue
        logs["tissue"] = float(tissue.detach())
    return total, logs
