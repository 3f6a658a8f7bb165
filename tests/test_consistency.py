# SPDX-License-Identifier: Apache-2.0
"""Agreement with a measurement within its noise."""

import numpy as np
import pytest
import torch
from scipy import fft, ndimage

from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.consistency import agree, consistent_start, cosines
from bids_moediff.imaging.interpolation import interpolate

ONES = (1.0, 1.0, 1.0)
TWOS = (2.0, 2.0, 2.0)
FINE, COARSE = (32, 32, 32), (16, 16, 16)
SIGMA = 0.04


def blobs():
    """Smooth shapes with some detail, about [0, 1]."""
    axes = torch.meshgrid(*[torch.linspace(0, 1, 32)] * 3, indexing="ij")
    x, y, z = axes
    return 0.5 + 0.3 * torch.sin(7 * x + 3 * y) * torch.cos(9 * z) + 0.1 * torch.sin(40 * y)


def scan(profile="kspace", sigma=SIGMA, fwhm=1.0):
    """Operator, truth and noisy measurement."""
    operator = Operator.between(FINE, ONES, COARSE, TWOS, Acquisition.uniform(profile, fwhm))
    truth = blobs()
    noise = torch.randn(COARSE, generator=torch.Generator().manual_seed(0))
    return operator, truth, operator.forward(truth) + sigma * noise


@pytest.mark.parametrize("profile", ["kspace", "box", "gaussian"])
def test_without_noise_agreement_is_exact(profile):
    operator, _, measured = scan(profile, 0.0)
    smooth = interpolate(measured, TWOS, FINE, ONES)
    for image in (
        agree(operator, smooth, measured),
        consistent_start(operator, smooth, measured),
    ):
        torch.testing.assert_close(operator.forward(image), measured, atol=1e-4, rtol=0)


def test_noise_is_not_put_back_into_a_denoised_image():
    """An image that kept 40 % of the noise, as those of the networks do."""
    operator, truth, measured = scan()
    exact = operator.project(truth, measured)
    restored = truth + 0.4 * (exact - truth)
    soft = agree(operator, restored, measured, SIGMA)
    assert (soft - restored).norm() < 0.2 * (exact - restored).norm()


def test_anatomy_at_one_place_is_put_back():
    """Its power is small in every band of frequencies, and large where it is."""
    operator, truth, measured = scan()
    restored = truth + 0.4 * (operator.project(truth, measured) - truth)
    lost = torch.zeros(COARSE)
    lost[8, 8, 8] = 10 * SIGMA
    soft = agree(operator, operator.correct(restored, -lost, 0.0), measured, SIGMA)
    back = operator.forward(soft - restored)[8, 8, 8]
    assert abs(float(back)) < 3 * SIGMA  # of the 10 that were lost


def test_detail_above_the_noise_is_put_back():
    operator, truth, measured = scan()
    wrong = truth - 0.1 * torch.sin(40 * torch.linspace(0, 1, 32))[None, :, None]
    soft = agree(operator, wrong, measured, SIGMA)
    assert (soft - truth).norm() < 0.6 * (wrong - truth).norm()


def test_a_start_lies_between_interpolation_and_exact_agreement():
    operator, truth, measured = scan()
    smooth = interpolate(measured, TWOS, FINE, ONES)
    start = consistent_start(operator, smooth, measured, SIGMA)
    left = (operator.forward(start) - measured).norm()
    assert 0 < left < (operator.forward(smooth) - measured).norm()
    assert (start - truth).norm() < 1.001 * (operator.project(smooth, measured) - truth).norm()


def test_directions_that_were_hardly_measured_do_not_explode():
    # A Gaussian of 1.8 voxels leaves the finest detail 6 % of its amplitude.
    operator, truth, measured = scan("gaussian", fwhm=1.8)
    smooth = interpolate(measured, TWOS, FINE, ONES)
    start = consistent_start(operator, smooth, measured, SIGMA)
    assert (start - truth).norm() < (smooth - truth).norm()
    assert (operator.project(smooth, measured) - truth).norm() > 3 * (smooth - truth).norm()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_cosines_are_scipys(count):
    wanted = fft.dct(np.eye(count), axis=0, norm="ortho")
    np.testing.assert_allclose(cosines(count).numpy(), wanted, atol=1e-6)


def spectrum(image):
    return fft.dctn(image.double().numpy(), norm="ortho")


def band_mean(power):
    return ndimage.uniform_filter(power, 5, mode="nearest")


def test_what_stands_above_the_noise_by_frequency_and_place():
    """Against scipy: Wiener's share of each cosine, and then of each place, is put back."""
    operator, _, measured = scan()
    start = interpolate(measured, TWOS, FINE, ONES)
    unexplained = measured - operator.forward(start)
    left = spectrum(unexplained)
    share = np.clip(1 - SIGMA**2 / band_mean(left**2), 0, None)
    kept = fft.idctn(left * share, norm="ortho").astype(np.float32)
    rest = unexplained.numpy() - kept
    power = ndimage.uniform_filter(rest.astype(float) ** 2, 3, mode="nearest")
    kept += rest * np.clip(1 - SIGMA**2 / 2 / power, 0, None)
    wanted = operator.correct(start, torch.from_numpy(kept), SIGMA)
    found = agree(operator, start, measured, SIGMA)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_start_by_scipy():
    operator, _, measured = scan("gaussian")
    smooth = interpolate(measured, TWOS, FINE, ONES)
    whole, reached = spectrum(measured), spectrum(operator.forward(smooth))
    power = band_mean(whole**2)
    wanted = np.clip(1 - SIGMA**2 / power, 0, 1)
    has = np.clip(band_mean(whole * reached) / power, 0, 1)
    gain = np.clip((wanted - has) / np.maximum(1 - has, 1e-3), 0, 1)
    lacking = fft.idctn(gain * (whole - reached), norm="ortho").astype(np.float32)
    found = consistent_start(operator, smooth, measured, SIGMA)
    torch.testing.assert_close(
        found, operator.correct(smooth, torch.from_numpy(lacking), SIGMA), atol=1e-4, rtol=0
    )
