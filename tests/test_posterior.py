# SPDX-License-Identifier: Apache-2.0
"""Null space, scale head and the sampler on it, on generated data."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bids_moediff.evaluation.sampling import Scene, crps, volumes
from bids_moediff.evaluation.tissue_classes import Classes
from bids_moediff.families.posterior import LocalScale, local_scale, texture, white
from bids_moediff.families.protocol import Problem
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.simulation import ONES, Grids
from bids_moediff.networks.scale import (
    ScaleConfig,
    ScaleNetwork,
    fold,
    log_scales,
    scale_inputs,
    scale_loss,
    scale_numbers,
    unfold,
)
from bids_moediff.networks.scale_file import ScaleHead

SLICES = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian")))
CASES = [
    ((2.0, 2.0, 2.0), Acquisition.uniform("kspace")),
    ((1.0, 1.0, 4.0), SLICES),
    ((1.0, 1.5, 1.5), Acquisition.uniform("box")),
]


def _operator(ratios, acquisition, shape=(12, 18, 24)):
    return Grids.inside(shape, ONES, ratios).operator(acquisition)


@pytest.mark.parametrize(("ratios", "acquisition"), CASES)
def test_null_space_holds_what_was_not_measured(ratios, acquisition):
    operator = _operator(ratios, acquisition)
    space = NullSpace(operator)
    image = torch.randn(operator.fine_shape, generator=torch.Generator().manual_seed(0))
    missing = space.project(image)
    assert float(operator.forward(missing).abs().max()) < 2e-4
    torch.testing.assert_close(space.project(missing), missing, atol=1e-4, rtol=0)
    torch.testing.assert_close(missing + space.measured(image), image, atol=1e-5, rtol=0)
    assert float(missing.std()) > 0.3


@pytest.mark.parametrize(("ratios", "acquisition"), CASES)
def test_closed_form_is_the_variance_of_projected_noise(ratios, acquisition):
    """Beside a step of the scale too, against many draws."""
    operator = _operator(ratios, acquisition)
    space = NullSpace(operator)
    scale = torch.ones(operator.fine_shape)
    scale[:6] = 5.0
    generator = torch.Generator().manual_seed(0)
    count = 3000
    squares, known = torch.zeros_like(scale), torch.zeros_like(scale)
    for _ in range(count):
        noise = scale * torch.randn(scale.shape, generator=generator)
        part = space.measured(noise)
        squares += (noise - part).square() / count
        known += part.square() / count
    for found, expected in (
        (squares, space.variance(scale.square())),
        (known, space.measured_variance(scale.square())),
    ):
        ratio = found / expected
        assert abs(float(ratio.mean()) - 1) < 0.01
        assert float(ratio.std()) < 0.04  # of 3000 draws: sqrt(2 / 3000) = 0.026


def _problem(noise=0.0, ratios=(2.0, 1.0, 2.0)):
    acquisition = Acquisition.uniform("kspace")
    operator = _operator(ratios, acquisition, (22, 20, 26))
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(operator.fine_shape, generator=generator)
    measured = operator.forward(truth)
    start = operator.project(torch.full(operator.fine_shape, 0.5), measured)
    condition = torch.tensor(acquisition.condition(ONES, ratios))
    problem = Problem(
        measured=measured,
        start=lambda: start,
        condition=condition,
        told=condition,
        acquisition=acquisition,
        ratios=ratios,
        noise=noise,
        agree=lambda volume: operator.project(volume, measured),
        operator=operator,
    )
    added = 0.1 * torch.randn(start.shape, generator=generator)
    return problem, problem.agree(start + added), start


def _network(seed=0):
    torch.manual_seed(seed)
    network = ScaleNetwork(ScaleConfig(channels=8, blocks=2)).eval()
    torch.nn.init.normal_(network.film[-1].weight, std=0.1)
    return network


def test_streamed_scale_is_that_of_the_whole_volume():
    """In any number of planes, with axes in another order and odd sizes."""
    problem, mean, start = _problem(noise=0.02)
    network = _network()
    found = local_scale(network, problem, mean, start, "fp32", max_voxels=4 * 20 * 26)
    whole = local_scale(network, problem, mean, start, "fp32")
    torch.testing.assert_close(found.missing, whole.missing, rtol=1e-4, atol=1e-6)
    order = [1, 0, 2]  # by voxel ratio
    told = problem.condition[[1, 0, 2, 4, 3, 5]]
    inputs = scale_inputs(mean.permute(order).contiguous(), start.permute(order).contiguous())
    with torch.inference_mode():
        output = network(inputs[None], scale_numbers(told, 0.02)[None])[0]
    logs = log_scales(output, inputs[3] + torch.tensor(0.02).log(), 0.02)
    torch.testing.assert_close(whole.missing, logs[0].exp().permute(1, 0, 2), rtol=1e-3, atol=1e-6)
    assert whole.measured is not None
    torch.testing.assert_close(
        whole.measured, logs[1].exp().permute(1, 0, 2), rtol=1e-3, atol=1e-6
    )


def test_samples_agree_with_the_measurement_and_have_the_variance_they_claim():
    problem, mean, start = _problem()
    scale = local_scale(_network(), problem, mean, start, "fp32", factor=1.5)
    assert scale.measured is None
    draws = torch.stack([scale.draw(seed) for seed in range(400)])
    assert problem.operator is not None
    residual = problem.operator.forward(mean + draws[0]) - problem.measured
    assert float(residual.abs().max()) < 1e-4
    ratio = draws.square().mean() / scale.deviation.square().mean()
    assert abs(float(ratio) - 1) < 0.02
    assert torch.equal(draws[3], scale.draw(3))
    assert not torch.equal(draws[3], draws[4])
    plain = local_scale(_network(), problem, mean, start, "fp32")
    torch.testing.assert_close(scale.missing, 1.5 * plain.missing)


def test_noise_of_the_scan_adds_doubt_about_what_was_measured():
    problem, mean, start = _problem()
    noisy = replace(problem, noise=0.05)
    scale = local_scale(_network(), noisy, mean, start, "fp32")
    assert scale.measured is not None
    assert (scale.deviation > scale.missing_deviation).all()
    draws = torch.stack([scale.draw(seed) for seed in range(400)])
    ratio = draws.square().mean() / scale.deviation.square().mean()
    assert abs(float(ratio) - 1) < 0.02
    both = torch.stack([scale.missing_noise(5).flatten(), scale.measured_noise(5).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05


def _pull(factor, true, squares):
    """Gradient by the logarithm of the variance, of either half of a field."""
    logs = (factor * true).log().requires_grad_()
    scale_loss(logs.exp(), squares, torch.ones_like(true)).backward()
    assert logs.grad is not None
    return logs.grad[:, :10].sum(), logs.grad[:, 10:].sum()


def test_loss_pulls_towards_the_true_variance():
    """Both where it is small and where it is large; an outlier stays finite."""
    generator = torch.Generator().manual_seed(0)
    true = torch.full((1, 20, 20, 20), 1e-4)
    true[:, 10:] = 9e-4
    squares = true * torch.randn(true.shape, generator=generator).square()
    above, below, level = (_pull(factor, true, squares) for factor in (1.3, 0.7, 1.0))
    for half in range(2):
        assert above[half] > 0.02 > -0.02 > below[half]
        assert abs(level[half]) < 0.015
    squares[0, 0, 0, 0] = 1e6
    assert all(torch.isfinite(part) for part in _pull(1.0, true, squares))


def test_fold_is_lossless():
    images = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    assert torch.equal(unfold(fold(images)), images)


def test_white_noise_depends_on_seed_and_stream_alone():
    like = torch.empty(5, 6, 7)
    assert torch.equal(white(like, 3), white(like, 3))
    assert not torch.equal(white(like, 3), white(like, 3 + 2**40))
    assert not torch.equal(white(like, (3, 1)), white(like, 3))


def test_the_continuous_ranked_probability_score_is_without_bias():
    """E|X - y| - E|X - X'| / 2 over all pairs of different samples."""
    generator = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(5, 40, generator=generator), torch.randn(40, generator=generator)
    far = (samples - truth).abs().mean()
    pairs = [(samples[i] - samples[j]).abs().mean() for i in range(5) for j in range(i)]
    assert crps(samples, truth) == pytest.approx(
        float(far - torch.stack(pairs).mean() / 2), rel=1e-4
    )


@pytest.mark.parametrize(
    ("ratios", "factor"), [((1, 1, 4), 2.0), ((2, 2, 2), 0.5), ((1, 2, 4), 1.0), ((1, 1, 1), 2.0)]
)
def test_thick_slices_have_a_factor_of_their_own(ratios, factor):
    config = {"sha256": "0" * 64, "factors": {"slices": 2.0, "isotropic": 0.5}}
    head = ScaleHead(ScaleNetwork(ScaleConfig(8, 1)), config)
    assert head.factor(ratios) == pytest.approx(factor)


def test_the_two_noises_of_a_sample_have_nothing_in_common():
    """At a step of the scale, where they would add up otherwise; in each plane."""
    operator = _operator((2.0, 2.0, 2.0), Acquisition.uniform("kspace"))
    scale = torch.ones(operator.fine_shape)
    scale[:6] = 5.0
    local = LocalScale(scale, scale, NullSpace(operator))
    squares = torch.stack([local.draw(seed).square() for seed in range(200)]).mean(0)
    ratio = squares.mean((1, 2)) / local.deviation.square().mean((1, 2))
    assert float((ratio - 1).abs().max()) < 0.1


@pytest.mark.parametrize("share", [0.3, 1.0, 6.0])
def test_texture_gives_the_unmeasured_detail_the_power_of_the_truth(share):
    """Amplified up to three times its power, the rest by noise."""
    space = NullSpace(_operator((2.0, 2.0, 2.0), Acquisition.uniform("kspace"), (32, 32, 32)))
    noise = torch.randn(32, 32, 32, generator=torch.Generator().manual_seed(0))
    detail = space.project(noise)
    scale = LocalScale(torch.full_like(noise, share**0.5), None, space)
    made = detail + texture(detail, scale, 1)
    power = (1 + share) * detail.square().mean()
    assert float(made.square().mean()) == pytest.approx(float(power), rel=0.02)


def _layers(dark: int, middle: int) -> torch.Tensor:
    """A block of 30 planes in three brightnesses."""
    lines = torch.tensor([0.0] * dark + [1.0] * middle + [2.0] * (30 - dark - middle))
    return lines[:, None, None].expand(30, 6, 6).contiguous()


@pytest.mark.parametrize(("moved", "held"), [(0, 1), (5, 1), (6, 0)])
def test_the_interval_of_a_volume_is_that_of_one_more_sample(moved, held):
    """Two samples 2 planes to either side: 1.645 sqrt(8) sqrt(1.5) = 5.7 planes."""
    image, truth = _layers(10, 10), _layers(10 + moved, 10 - moved)
    errors = torch.stack([_layers(12, 8) - image, _layers(8, 12) - image])
    mask = torch.ones(image.shape, dtype=torch.bool)
    classes = Classes.of(truth.numpy(), mask.numpy())
    space = NullSpace(_operator((2.0, 1.0, 1.0), Acquisition.uniform("kspace"), (30, 6, 6)))
    found = volumes(Scene(truth, image, mask, space, (2.0, 1.0, 1.0), classes), errors)
    assert found["volume_dark"] == found["volume_middle"] == held
    assert found["volume_bright"] == 1
    assert found["bias_dark"] == pytest.approx(10 / (10 + moved) - 1)


def test_every_patch_counts_the_same_in_the_loss_of_the_scale():
    """Seitzer et al. 2022 with beta 1/2, the weights of a patch divided by their own mean."""
    generator = torch.Generator().manual_seed(4)
    variance = 0.5 + torch.rand((2, 3, 4, 5), generator=generator)
    variance[1] *= 100.0  # a patch with large errors
    squares = variance * torch.rand((2, 3, 4, 5), generator=generator) * 3
    weight = torch.rand((2, 3, 4, 5), generator=generator)
    losses = []
    for v, s, w in zip(variance.numpy(), squares.numpy(), weight.numpy(), strict=True):
        share = w * np.sqrt(v)
        losses.append(0.5 * np.mean(share / share.mean() * (np.log(v) + s / v)))
    found = float(scale_loss(variance, squares, weight))
    assert found == pytest.approx(float(np.mean(losses)), rel=1e-5)
