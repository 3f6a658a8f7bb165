# SPDX-License-Identifier: Apache-2.0
"""Metrics against closed forms."""

import numpy as np
import pytest

from bids_moediff.imaging import metrics


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = 1 + 0.1 * rng.standard_normal((32, 30, 28)).astype(np.float32)
    mask = np.zeros(truth.shape, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    return truth, mask


def test_psnr_of_a_constant_error(pair):
    truth, mask = pair
    image = truth.copy()
    image[mask] += 0.1
    image[~mask] += 5  # outside the mask nothing counts
    expected = 20 * np.log10(np.percentile(truth[mask], 99.5) / 0.1)
    assert metrics.psnr(image, truth, mask) == pytest.approx(expected, abs=1e-3)
    assert metrics.nrmse(image, truth, mask) == pytest.approx(
        0.1 / np.sqrt((truth[mask] ** 2).mean()), rel=1e-4
    )


def test_perfect_images(pair):
    truth, mask = pair
    assert metrics.ssim(truth, truth, mask) == pytest.approx(1)
    assert metrics.hfen(truth, truth, mask) == 0
    assert metrics.flicker(truth, truth, mask) == pytest.approx((1, 1, 1))
    spectrum = metrics.recovered_spectrum(truth, truth, mask, (2, 2, 2))
    assert spectrum["correlation"] == pytest.approx(1)
    assert spectrum["power"] == pytest.approx(1)


def test_flicker_sees_alternating_slices(pair):
    truth, mask = pair
    image = truth.copy()
    image[:, :, ::2] *= 1.3
    across = metrics.flicker(image, truth, mask)
    assert across[2] > 2
    assert max(across[:2]) < 1.4


def test_spectrum_of_a_band_limited_image_is_empty():
    axis = np.arange(64)
    low = np.cos(2 * np.pi * 4 * axis / 64)[:, None, None] * np.ones((64, 48, 48))
    high = np.cos(2 * np.pi * 24 * axis / 64)[:, None, None] * np.ones((64, 48, 48))
    mask = np.zeros(low.shape, bool)
    mask[12:-12, 12:-12, 12:-12] = True
    spectrum = metrics.recovered_spectrum(low, low + high, mask, (2, 1, 1))
    assert spectrum["power"] < 0.01


def test_bootstrap_interval_covers_the_mean():
    values = np.random.default_rng(1).normal(2.0, 0.5, 40)
    low, high = metrics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.2)
