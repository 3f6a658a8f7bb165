# SPDX-License-Identifier: Apache-2.0
"""Least squares of a convolution from moments by lag is least squares of a convolution."""

import pytest
import torch
from torch.nn import functional

from bids_moediff.training.lag_moments import ConditionedMoments, lag_moments


def test_the_kernel_that_made_the_targets_is_found_for_every_condition() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, slope = (torch.randn(2, 3, 3, 3, 3, generator=generator) for _ in range(2))
    bias = torch.tensor([0.3, -0.2])
    inside = functional.pad(torch.ones(8, 8, 8), (3,) * 6)  # features fade out at the border
    moments = ConditionedMoments(3, 2, 2)
    for told in (0.0, 0.5, 1.0):
        features = torch.randn(3, 14, 14, 14, generator=generator) * inside
        wanted = functional.conv3d(features[None], plain + told * slope, bias, padding=1)[0]
        moments.add(*lag_moments(features, wanted, torch.ones(14, 14, 14)), [1.0, told])
    found = moments.solve(1e-7)
    kernel = found[:, :-1].transpose(1, 2).reshape(2, 2, 3, 3, 3, 3)
    torch.testing.assert_close(kernel[0], plain, atol=2e-3, rtol=0)
    torch.testing.assert_close(kernel[1], slope, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0, -1], bias, atol=2e-3, rtol=0)


def test_places_count_by_their_weight() -> None:
    """Half of the volume wants one thing and counts, the other half another and does not."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 24, 12, 12, generator=generator)
    weight = torch.ones(24, 12, 12)
    weight[12:] = 0.0
    wanted = torch.where(weight > 0, 2.0, -5.0)[None] * features
    moments = ConditionedMoments(1, 1, 1)
    moments.add(*lag_moments(features, wanted, weight), [1.0])
    kernel = moments.solve(1e-6)[0, :-1, 0].reshape(3, 3, 3)
    assert abs(float(kernel[1, 1, 1]) - 2.0) < 0.05
    kernel[1, 1, 1] = 0.0
    assert kernel.abs().max() < 0.05


def test_numbers_that_nobody_told_change_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 10, 10, 10, generator=generator)
    moments = ConditionedMoments(2, 1, 2)
    moments.add(*lag_moments(features, features[:1], torch.ones(10, 10, 10)), [0.0, 0.0])
    assert moments.solve(0.1).abs().max() == 0


def test_the_ridge_is_relative_to_the_mean_square_of_the_features() -> None:
    """The ones of the bias do not count: features of 0.01 would hardly be held by it."""
    generator = torch.Generator().manual_seed(3)
    features = 0.01 * torch.randn(1, 12, 12, 12, generator=generator)
    inside = torch.zeros(12, 12, 12)
    inside[2:-2, 2:-2, 2:-2] = 1.0
    moments = ConditionedMoments(1, 1, 1)
    moments.add(*lag_moments(features, 3.0 * features, inside), [1.0])
    kernel = moments.solve(1.0)[0, :-1, 0].reshape(3, 3, 3)
    assert float(kernel[1, 1, 1]) == pytest.approx(1.5, abs=0.15)  # half, by a ridge of its size
