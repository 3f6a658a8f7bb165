# SPDX-License-Identifier: Apache-2.0
"""Metrics against scikit-image, brute force and closed forms."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics as skimage_metrics

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


@pytest.fixture
def blurred(pair):
    truth, mask = pair
    return ndimage.gaussian_filter(truth, 0.7) + 0.02, truth, mask


def test_range_is_the_percentile_in_the_mask():
    truth = np.arange(1001.0).reshape(7, 11, 13)
    mask = np.ones(truth.shape, bool)
    assert metrics.intensity_range(truth, mask) == pytest.approx(995)
    mask[truth > 200] = False
    assert metrics.intensity_range(truth, mask) == pytest.approx(199)


def test_error_figures_agree_with_scikit_image(blurred):
    image, truth, mask = blurred
    wanted = skimage_metrics.peak_signal_noise_ratio(
        truth[mask], image[mask], data_range=np.percentile(truth[mask], 99.5)
    )
    assert metrics.psnr(image, truth, mask) == pytest.approx(wanted, abs=1e-4)
    wanted = skimage_metrics.normalized_root_mse(truth[mask], image[mask])
    assert metrics.nrmse(image, truth, mask) == pytest.approx(wanted, rel=1e-4)


def test_ssim_is_wangs_formula(blurred):
    """Means, variances and covariance under a Gaussian window of 1.5 voxels, 11 wide."""
    image, truth, mask = blurred
    x, y = image.astype(float), truth.astype(float)

    def local(values):
        return ndimage.gaussian_filter(values, 1.5, truncate=3.5, mode="reflect")

    first, second = local(x), local(y)
    variances = local(x * x) - first**2, local(y * y) - second**2
    together = local(x * y) - first * second
    height = np.percentile(truth[mask], 99.5)
    low, high = (0.01 * height) ** 2, (0.03 * height) ** 2
    whole = (2 * first * second + low) * (2 * together + high)
    whole /= (first**2 + second**2 + low) * (variances[0] + variances[1] + high)
    assert metrics.ssim(image, truth, mask) == pytest.approx(whole[mask].mean(), abs=1e-4)


def test_hfen_of_a_wave_is_the_change_of_its_amplitude():
    """A Laplacian of Gaussian keeps a wave a wave: halved, half of its edges are missing."""
    wave = np.cos(np.arange(40) * 0.9)[:, None, None] * np.ones((40, 12, 12))
    mask = np.zeros(wave.shape, bool)
    mask[10:-10] = True
    assert metrics.hfen(0.5 * wave, wave, mask) == pytest.approx(0.5, abs=1e-5)
    assert metrics.hfen(wave + 7, wave, mask) < 0.02
    # exp(-sigma^2 k^2 / 2) k^2 weighs one wave against another: sigma is 1.5 voxels.
    slow = np.cos(np.arange(40) * 0.45)[:, None, None] * np.ones((40, 12, 12))
    weight = [k**2 * np.exp(-1.125 * k**2) for k in (0.9, 0.45)]
    share = np.linalg.norm(slow[mask]) / np.linalg.norm(wave[mask]) * weight[1] / weight[0]
    assert metrics.hfen(wave + slow, wave, mask) == pytest.approx(share, rel=0.02)


def test_flicker_by_counting(blurred):
    image, truth, mask = blurred
    for axis, found in enumerate(metrics.flicker(image, truth, mask)):
        one, two, inside = (np.moveaxis(array, axis, 0) for array in (image, truth, mask))
        steps = np.zeros(2)
        for k in range(len(inside) - 1):
            both = inside[k] & inside[k + 1]
            steps += [np.abs(a[k] - a[k + 1])[both].sum() for a in (one, two)]
        assert found == pytest.approx(steps[0] / steps[1], rel=1e-4)


@pytest.mark.parametrize("ratios", [(2, 2, 2), (1, 1, 4), (1.5, 1, 3)])
def test_recovered_band_by_a_whole_fourier_transform(blurred, ratios):
    image, truth, mask = blurred
    window = ndimage.gaussian_filter(mask.astype(float), 2)
    first, second = (np.fft.fftn(array * window) for array in (image, truth))
    places = np.stack(np.meshgrid(*map(np.fft.fftfreq, truth.shape), indexing="ij"))
    edges = np.array([0.5 / ratio for ratio in ratios])[:, None, None, None]
    band = (np.abs(places) > edges).any(0) & (np.abs(places) <= 0.45).all(0)
    # rfftn holds each pair of opposite frequencies once, the plane of zero twice.
    band &= places[2] >= 0
    a, b = first[band], second[band]
    found = metrics.recovered_spectrum(image, truth, mask, ratios)
    power = [(np.abs(values) ** 2).sum() for values in (a, b)]
    assert found["power"] == pytest.approx(power[0] / power[1], rel=1e-3)
    correlation = (a * b.conj()).real.sum() / np.sqrt(power[0] * power[1])
    assert found["correlation"] == pytest.approx(correlation, rel=1e-3)


def test_no_band_no_figure(pair):
    truth, mask = pair
    spectrum = metrics.recovered_spectrum(truth, truth, mask, (1, 1, 1))
    assert np.isnan(spectrum["power"]) and np.isnan(spectrum["correlation"])
    # Opposite detail: correlation -1, the same power.
    spectrum = metrics.recovered_spectrum(-2 * truth, truth, mask, (2, 2, 2))
    assert spectrum["correlation"] == pytest.approx(-1)
    assert spectrum["power"] == pytest.approx(4)


def test_slow_figures_are_the_single_ones(blurred):
    image, truth, mask = blurred
    image = image.copy()
    image[:, :, ::2] *= 1.2
    band = metrics.recovered_spectrum(image, truth, mask, (1, 1, 3))
    assert metrics.slow_figures(image, truth, mask, (1, 1, 3)) == {
        "ssim": metrics.ssim(image, truth, mask),
        "hfen": metrics.hfen(image, truth, mask),
        "flicker": metrics.flicker(image, truth, mask)[2],
        "band_correlation": band["correlation"],
        "band_power": band["power"],
    }


def test_bootstrap_level_and_seed():
    values = np.random.default_rng(1).normal(2.0, 0.5, 40)
    wide, narrow = (metrics.bootstrap_interval(values, level) for level in (0.95, 0.5))
    ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
    assert ratio == pytest.approx(1.96 / 0.6745, rel=0.05)
    assert metrics.bootstrap_interval(values) == wide
    assert metrics.bootstrap_interval(values, seed=1) != wide
    assert metrics.bootstrap_interval([3.0]) == (3.0, 3.0)
    # Tails are even, so a mirrored sample has the mirrored interval.
    low, high = metrics.bootstrap_interval([0, 0, 0, 10], 0.8)
    assert (low, high) == (0.0, 5.0)
