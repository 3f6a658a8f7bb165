# SPDX-License-Identifier: Apache-2.0
"""The acquisition operator against direct computations, and its projections."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator, axis_matrix
from bids_moediff.imaging.grid import covering_shape
from bids_moediff.imaging.interpolation import (
    back_projection,
    initial_estimate,
    interpolate,
)

ONES = (1.0, 1.0, 1.0)


def image(shape=(24, 30, 20), seed=0) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal(shape)
    smooth = ndimage.gaussian_filter(noise, 1.2)
    return torch.from_numpy((1 + smooth / smooth.std() * 0.2).astype(np.float32))


def test_box_is_the_block_mean():
    fine = image()
    operator = Operator.between(
        (24, 30, 20), ONES, (12, 15, 10), (2.0, 2.0, 2.0), Acquisition.uniform("box")
    )
    expected = fine.reshape(12, 2, 15, 2, 10, 2).mean(dim=(1, 3, 5))
    torch.testing.assert_close(operator.forward(fine), expected, atol=1e-5, rtol=0)


def test_kspace_is_the_cropped_fourier_transform():
    """Against numpy's FFT: zero the high frequencies, shift half a voxel, take every other."""
    fine = image((24, 1, 1))[:, 0, 0].double().numpy()
    matrix = axis_matrix(24, 1.0, 12, 2.0, Axis("kspace"))
    spectrum = np.fft.fft(fine)
    frequency = np.fft.fftfreq(24)
    keep = np.where(np.abs(frequency) < 0.25, 1.0, np.where(np.abs(frequency) == 0.25, 0.5, 0))
    shifted = np.fft.ifft(spectrum * keep * np.exp(2j * np.pi * frequency * 0.5)).real
    np.testing.assert_allclose(matrix @ fine, shifted[::2], atol=1e-10)


def test_gaussian_is_a_filtered_sample():
    fine = image((40, 1, 1))[:, 0, 0].double().numpy()
    matrix = axis_matrix(40, 1.0, 10, 4.0, Axis("gaussian", 1.0))
    dense = np.repeat(fine, 1)
    sigma = 4.0 / 2.354820045
    weights = np.exp(-0.5 * ((np.arange(40) + 0.5 - (4 * 5 + 2)) / sigma) ** 2)
    assert matrix[5] @ fine == pytest.approx((weights * dense).sum() / weights.sum(), abs=1e-4)


@pytest.mark.parametrize("profile", ["box", "gaussian", "kspace"])
@pytest.mark.parametrize("ratios", [(2.0, 2.0, 2.0), (1.0, 1.0, 4.0), (1.5, 1.3, 2.7)])
def test_constant_keeps_its_value_and_adjoint_is_the_transpose(profile, ratios):
    coarse = tuple(int(s / r) for s, r in zip((24, 30, 20), ratios, strict=True))
    shape = covering_shape(coarse, ratios, ONES)
    operator = Operator.between(shape, ONES, coarse, ratios, Acquisition.uniform(profile))
    torch.testing.assert_close(
        operator.forward(torch.ones(shape)), torch.ones(coarse), atol=2e-5, rtol=0
    )
    x, y = image(shape, 1), image(coarse, 2)
    left = (operator.forward(x).double() * y).sum()
    right = (x.double() * operator.adjoint(y)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


@pytest.mark.parametrize("profile", ["box", "gaussian", "kspace"])
@pytest.mark.parametrize("ratios", [(2.0, 2.0, 2.0), (1.0, 1.0, 4.0), (1.5, 1.3, 2.7)])
def test_projection_is_consistent_and_idempotent(profile, ratios):
    coarse = tuple(int(s / r) for s, r in zip((24, 30, 20), ratios, strict=True))
    shape = covering_shape(coarse, ratios, ONES)
    operator = Operator.between(shape, ONES, coarse, ratios, Acquisition.uniform(profile))
    measured = operator.forward(image(shape))
    start = interpolate(measured, ratios, shape, ONES)
    once = operator.project(start, measured)
    residual = (operator.forward(once) - measured).norm() / measured.norm()
    assert residual < 1e-3
    torch.testing.assert_close(operator.project(once, measured), once, atol=2e-4, rtol=0)
    # The nearest consistent image: the change is orthogonal to the null space.
    null = image(shape, 5)
    null = null - operator.project(torch.zeros(shape), operator.forward(null))
    change = once - start
    cosine = (change * null).sum() / (change.norm() * null.norm())
    assert abs(cosine) < 5e-3


def test_discrepancy_principle_leaves_the_noise_out():
    acquisition = Acquisition.uniform("gaussian")
    truth = image((48, 48, 48))
    operator = Operator.between((48, 48, 48), ONES, (24, 24, 24), (2.0, 2.0, 2.0), acquisition)
    sigma = 0.05
    noise = sigma * torch.randn((24, 24, 24), generator=torch.Generator().manual_seed(0))
    measured = operator.forward(truth) + noise
    start = interpolate(measured, (2.0, 2.0, 2.0), (48, 48, 48), ONES)
    soft = operator.project(start, measured, sigma)
    hard = operator.project(start, measured)
    left_over = (operator.forward(soft) - measured).std()
    assert left_over == pytest.approx(sigma, rel=0.05)
    assert (soft - truth).norm() < 0.9 * (hard - truth).norm()


def test_an_image_that_explains_the_data_is_returned_untouched():
    operator = Operator.between(
        (8, 8, 8), ONES, (4, 4, 4), (2.0, 2.0, 2.0), Acquisition.uniform("box")
    )
    truth = image((8, 8, 8))
    measured = operator.forward(truth)
    assert operator.project(truth, measured + 0.01, noise=0.02) is truth


def test_a_filter_of_kspace_is_undone_as_if_it_had_not_been():
    """Filtered along the axes and told so, a quiet scan gives what an unfiltered one does."""
    truth = image((24, 24, 24))
    hard, told = (
        Operator.between(
            (24, 24, 24), ONES, (12, 12, 12), (2.0, 2.0, 2.0),
            Acquisition((Axis("kspace", filter=name),) * 3),
        )
        for name in ("hard", "half-hann")
    )  # fmt: skip
    filtered = told.forward(truth)
    assert (filtered - hard.forward(truth)).norm() > 0.05 * filtered.norm()
    restored = told.project(torch.zeros_like(truth), filtered)
    torch.testing.assert_close(hard.forward(restored), hard.forward(truth), atol=1e-3, rtol=0)


def test_a_filter_is_written_and_read():
    made = Acquisition((Axis("kspace", filter="fermi"), Axis("kspace"), Axis("box", 0.5)))
    assert Acquisition.from_dict(made.to_dict()) == made
    assert "filter" not in made.to_dict()["axes"][1]
    with pytest.raises(ValueError, match="no filter"):
        Axis("box", filter="hann")


def test_cubic_agrees_with_scipy():
    coarse = image((11, 12, 13))
    fine = interpolate(coarse, (2.0, 1.7, 1.3), (22, 20, 16), ONES)
    grid = np.meshgrid(
        *[
            (np.arange(n) + 0.5) / r - 0.5
            for n, r in zip((22, 20, 16), (2, 1.7, 1.3), strict=True)
        ],
        indexing="ij",
    )
    expected = ndimage.map_coordinates(coarse.double().numpy(), grid, order=3, mode="mirror")
    np.testing.assert_allclose(fine.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("profile", ["box", "gaussian", "kspace"])
def test_consistency_beats_interpolation(profile):
    truth = image((48, 48, 48), 3)
    acquisition = Acquisition.uniform(profile)
    operator = Operator.between((48,) * 3, ONES, (24,) * 3, (2.0,) * 3, acquisition)
    measured = operator.forward(truth)
    cubic = interpolate(measured, (2.0,) * 3, (48,) * 3, ONES)
    consistent = initial_estimate(measured, operator, (2.0,) * 3, ONES)
    projected = back_projection(cubic, measured, operator, (2.0,) * 3, ONES)
    error = [(x - truth).norm().item() for x in (cubic, projected, consistent)]
    assert error[1] < error[0]
    assert error[2] < error[0]


def test_metadata_of_a_thick_2d_scan():
    meta = {"MRAcquisitionType": "2D", "SliceThickness": 4.0}
    acquisition = Acquisition.from_metadata(meta, (0.7, 0.7, 5.0))
    assert [axis.profile for axis in acquisition.axes] == ["kspace", "kspace", "box"]
    assert acquisition.axes[2].fwhm == pytest.approx(0.8)
    three = Acquisition.from_metadata({"MRAcquisitionType": "3D"}, (1.0, 1.0, 3.0))
    assert [axis.profile for axis in three.axes] == ["kspace"] * 3
    assert Acquisition.from_dict(acquisition.to_dict()) == acquisition


def test_unknown_profiles_are_refused():
    with pytest.raises(ValueError, match="unknown profile"):
        Axis("triangle")
