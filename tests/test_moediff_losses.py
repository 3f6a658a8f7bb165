# SPDX-License-Identifier: Apache-2.0
"""Equations 6 and 10-18 against numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.moediff.training import losses

TINY = MoEDiffConfig(width=8, embed_dim=16, heads=2)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(4)


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.rand(2, 1, 64, 48)
    return truth, truth + 0.1 * torch.randn_like(truth)


def test_sobel() -> None:
    image = torch.rand(1, 1, 12, 9)
    found, x = numpy_of(losses.sobel(image))[0], numpy_of(image)[0, 0]
    for channel, axis in ((0, 1), (1, 0)):
        assert np.allclose(found[channel], ndimage.sobel(x, axis, mode="nearest") / 8, atol=1e-6)


def test_spectral_terms_of_the_paper_are_parsevals_squared_error() -> None:
    truth, estimate = images()
    squared = ((numpy_of(truth) - numpy_of(estimate)) ** 2).mean((1, 2, 3))
    assert np.allclose(numpy_of(losses.spectral(truth, estimate, 2.0)), squared, rtol=1e-4)


def test_spectral_is_the_mean_modulus() -> None:
    truth, estimate = images()
    spectrum = np.fft.fft2(numpy_of(truth) - numpy_of(estimate), norm="ortho")
    wanted = np.abs(spectrum).mean((1, 2, 3))
    assert np.allclose(numpy_of(losses.spectral(truth, estimate)), wanted, rtol=1e-4)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_short_time_spectral(exponent: float) -> None:
    truth, estimate = images()
    difference, wanted = (numpy_of(truth) - numpy_of(estimate))[:, 0], np.zeros(2)
    for size in (8, 16, 32):
        hann = np.sin(np.pi * np.arange(size) / size) ** 2
        cells = [
            np.fft.fft2(difference[:, r : r + size, c : c + size] * np.outer(hann, hann))
            for r in range(0, 64 - size + 1, size // 2)
            for c in range(0, 48 - size + 1, size // 2)
        ]
        wanted += (np.abs(np.stack(cells) / size) ** exponent).mean((0, 2, 3))
    found = losses.short_time_spectral(truth, estimate, exponent)
    assert np.allclose(numpy_of(found), wanted, rtol=1e-4)


def test_gabor_features_are_blind_to_the_mean_and_see_blur() -> None:
    features = losses.GaborFeatures()
    flat = features(torch.full((1, 1, 32, 32), 0.7))
    assert [tuple(f.shape) for f in flat] == [(1, 5, 32, 32), (1, 5, 16, 16), (1, 5, 8, 8)]
    assert max(float(f[:, :4].max()) for f in flat) < 2e-3
    stripes = torch.sin(torch.arange(32.0) * np.pi / 2).expand(1, 1, 32, 32)
    energy = features(stripes)[0][0, :4, 8:-8, 8:-8].mean((1, 2))
    assert energy.argmax() == 0 and energy[0] > 4 * energy[2]  # varies across, wavelength 4
    truth = torch.rand(1, 1, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert losses.perceptual(features, truth, truth) == 0
    half = 0.5 * (truth + blurred)
    near, far = (losses.perceptual(features, truth, image) for image in (half, blurred))
    assert 0 < near < far


def test_equations_14_and_15() -> None:
    cosines = torch.rand(3, 3, 3, 5) * 2 - 1
    x = numpy_of(cosines)
    temperature = 1.4826 * stats.median_abs_deviation(x, axis=None)
    assert float(losses.mad_temperature(cosines)) == pytest.approx(temperature, rel=1e-5)
    power = np.exp(x / temperature)
    wanted = power / power.sum(1, keepdims=True)
    assert np.allclose(numpy_of(losses.selection_targets(cosines)), wanted, rtol=1e-4)
    assert float(losses.mad_temperature(torch.ones(2, 3, 1, 1))) == pytest.approx(1e-3)
    assert not losses.selection_targets(cosines.requires_grad_()).requires_grad


def test_pooled_cosine() -> None:
    a, b = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8)
    found = losses.pooled_cosine(a, b, (2, 4))
    assert found.shape == (2, 3, 2, 4)
    x, y = (numpy_of(t)[1, 2, :, 4:8, 2:4].ravel() for t in (a, b))
    wanted = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert float(found[1, 2, 1, 1]) == pytest.approx(wanted, abs=1e-5)
    assert torch.allclose(losses.pooled_cosine(a, a, (1, 1)), torch.ones(2, 3, 1, 1))


def test_equation_16() -> None:
    targets, gates = torch.rand(2, 3, 4, 4).softmax(1), torch.rand(2, 3, 4, 4).softmax(1)
    wanted = -(numpy_of(targets) * np.log(numpy_of(gates))).sum(1).mean() / 3
    assert float(losses.supervised_gating(targets, gates)) == pytest.approx(wanted, rel=1e-5)
    estimates = torch.randn(2, 3, 4, 5, 5)
    x = numpy_of(estimates - estimates.mean(1, keepdim=True)).reshape(2, 3, -1)
    terms = []
    for sample in x:
        unit = sample / np.linalg.norm(sample, axis=1, keepdims=True)
        cosines = unit @ unit.T
        nearest = [max(cosines[i, j] for j in range(3) if j != i) for i in range(3)]
        terms.append(np.log(1 + sum(nearest) / 3))
    wanted = torch.randn(2, 4, 5, 5)
    assert float(losses.diversity(estimates, wanted)) == pytest.approx(np.mean(terms), rel=1e-4)
    two = torch.stack([estimates[:, 0], estimates[:, 1]], 1)
    assert torch.isfinite(losses.diversity(two, wanted))
    assert losses.diversity(estimates[:, :1], wanted) == 0


def test_diversity_has_no_steep_gradient_where_the_experts_add_nothing_yet() -> None:
    wanted = torch.randn(2, 4, 5, 5)
    lengths = []
    for size in (1e-5, 1e-3, 1.0):
        estimates = (size * torch.randn(2, 3, 4, 5, 5)).requires_grad_()
        losses.diversity(estimates, wanted).backward()
        lengths.append(float(estimates.grad.norm()))
    assert lengths[0] < lengths[1] < 2 * lengths[2]


def test_equation_17_is_clipped_inverse_variance() -> None:
    assert losses.variance_weight(0.5) == 2.0
    assert losses.variance_weight(0.0) == 10.0
    assert losses.variance_weight(1e6) == 0.1
    state, values = losses.LossState(), [1.0, 4.0, 2.0, 3.0]
    shares = np.array([0.99**k for k in range(3, -1, -1)])
    mean = np.average(values, weights=shares)
    variance = np.average((np.array(values) - mean) ** 2, weights=shares)
    weight = [state.update(value) for value in values][-1]
    assert weight == pytest.approx(1 / variance, rel=1e-6)
    restored = losses.LossState()
    restored.load_state_dict(state.state_dict())
    assert restored.update(1.5) == state.update(1.5)


def test_tissue_supervision_wants_the_masks_experts() -> None:
    tissue = torch.zeros(2, 3, 32, 32)
    tissue[:, 0, :, :16], tissue[:, 1, :, 16:] = 1, 1
    good = torch.full((2, 3, 2, 2), 0.05)
    good[:, 0, :, 0], good[:, 1, :, 1] = 0.9, 0.9
    valid, order = torch.tensor([True, True]), TINY.experts
    right = losses.tissue_gating(good, tissue, valid, order)
    assert float(right) == pytest.approx(-np.log(0.9), rel=1e-5)
    assert losses.tissue_gating(good.flip(3), tissue, valid, order) > 2.9
    bad_second = torch.stack([good[0], good[1].flip(2, 1)])
    only_first = torch.tensor([True, False])
    assert torch.allclose(losses.tissue_gating(bad_second, tissue, only_first, order), right)
    assert losses.tissue_gating(good, tissue, ~valid, order) == 0


def test_equation_13_weighs_each_expert_by_its_gate() -> None:
    network = MoEDiffSR(TINY)
    truth, start = torch.rand(2, 64, 64), torch.rand(2, 64, 64)
    origin = network.encode(start[:, None])
    clean = origin[:, None] + 0.1 * torch.randn(2, 3, 16, 16, 16)
    estimates = losses.Estimates(clean, torch.rand(2, 3, 16, 16))
    features, total = losses.GaborFeatures(), 0.0
    share = torch.tensor([0.2, 0.5, 0.3])
    for index, name in enumerate(TINY.experts):
        pixels = network.decode(start, origin, clean[:, index])[:, None]
        task = losses.task_loss(name, truth[:, None], pixels, features).mean()
        single = estimates.diffusion[:, index].mean() + 0.5 * task
        total = total + share[index] * single
    gates = share.reshape(1, 3, 1, 1).expand(2, 3, 16, 16)
    found = losses.expert_losses(network, truth, start, origin, estimates, gates, 0.5)
    assert float(found) == pytest.approx(float(total), rel=1e-5)


def batch_of(network: MoEDiffSR) -> dict[str, torch.Tensor]:
    start = torch.rand(2, network.config.context_slices, 64, 64)
    target = start[:, 2] + 0.05 * torch.randn(2, 64, 64)
    return {"start": start, "target": target, "condition": torch.zeros(2, 6)}


def test_untrained_fidelity_is_the_starts_error_whatever_the_gate() -> None:
    network = MoEDiffSR(TINY).train()
    batch = batch_of(network)
    wanted = float((batch["start"][:, 2] - batch["target"]).abs().mean())
    for uniform in (True, False):
        state = losses.LossState()
        _, logs = losses.joint_loss(network, batch, state, uniform_gate=uniform)
        assert logs["fidelity"] == pytest.approx(wanted, rel=1e-4)
    weight = torch.zeros(2, 64, 64)
    weight[0, :8] = 1
    _, logs = losses.joint_loss(
        network, batch | {"weight": weight}, losses.LossState(), uniform_gate=True
    )
    part = (batch["start"][0, 2, :8] - batch["target"][0, :8]).abs().mean()
    assert logs["fidelity"] == pytest.approx(float(part), rel=1e-4)


def test_equation_18_adds_up() -> None:
    network = MoEDiffSR(TINY).train()
    weights = losses.LossWeights(fidelity=2.0, experts=0.3, gating=0.01, diversity=0.5)
    state = losses.LossState(weights)
    _, logs = losses.joint_loss(network, batch_of(network), state, uniform_gate=False)
    gating = logs["gating"] + 0.5 * logs["diversity"]
    wanted = 2.0 * logs["fidelity"] + 0.3 * logs["experts"]
    wanted += 0.01 * logs["gating_weight"] * gating
    assert logs["loss"] == pytest.approx(wanted, rel=1e-4)


def test_tissue_supervision_fades_with_progress() -> None:
    network = MoEDiffSR(TINY).train()
    batch = batch_of(network) | {"tissue": torch.rand(2, 3, 64, 64).softmax(1)}
    for progress, there in ((0.0, True), (0.5, True), (0.7, False)):
        state = losses.LossState(progress=progress)
        _, logs = losses.joint_loss(network, batch, state, uniform_gate=False)
        assert ("tissue" in logs) is there


def test_single_expert_has_no_gating_loss() -> None:
    config = MoEDiffConfig(
        width=8, embed_dim=16, heads=2, experts=("cortex",), diffusion_steps=(100,)
    )
    network = MoEDiffSR(config).train()
    _, logs = losses.joint_loss(network, batch_of(network), losses.LossState(), uniform_gate=False)
    assert "gating" not in logs and logs["loss"] > 0


def test_times_cover_the_default_output_and_the_whole_bridge() -> None:
    s, strength = losses.draw_times(4000, 0.5, torch.device("cpu"))
    fidelity = strength == 0
    assert torch.equal(s[fidelity], torch.ones(int(fidelity.sum())))
    assert abs(float(fidelity.float().mean()) - 0.5) < 0.05
    assert s[~fidelity].min() < 0.01 and s[~fidelity].max() > 0.99 and s.min() > 0
