# SPDX-License-Identifier: Apache-2.0
"""Simulated measurements against brute-force sums, FFTs and closed forms."""

import math

import numpy as np
import pytest
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator, axis_matrix
from bids_moediff.imaging.grid import covering_shape
from bids_moediff.imaging.interpolation import back_projection, interpolate
from bids_moediff.imaging.simulated_filters import (
    FILTERS,
    add_rician_noise,
    filter_kspace,
    kspace_radius,
    window,
)
from bids_moediff.imaging.simulation import Degradation, Grids, degrade, draw, fixed, measure

ONES = (1.0, 1.0, 1.0)
# Fine count, fine size, coarse count, coarse size (mm): whole and broken ratios, even and odd.
AXES = [
    (24, 1.0, 12, 2.0), (25, 1.0, 12, 2.0), (23, 0.7, 8, 2.0), (27, 0.8, 16, 1.3),
    (15, 1.0, 3, 5.0), (21, 0.5, 7, 1.5), (9, 1.0, 6, 1.5), (22, 0.9, 3, 6.1),
]  # fmt: skip


def signal(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal(count)


def by_box(x: np.ndarray, fine: float, count: int, coarse: float, width: float) -> list[float]:
    """Mean of the step function with values x over each slice, interval by interval."""
    means = []
    for slice_ in range(count):
        start, stop = ((slice_ + 0.5) * coarse + sign * width / 2 for sign in (-1, 1))
        lengths = [
            max(0.0, min((k + 1) * fine, stop) - max(k * fine, start)) for k in range(len(x))
        ]
        means.append(sum(map(lambda a, b: a * b, lengths, x)) / sum(lengths))
    return means


def by_gaussian(x: np.ndarray, fine: float, count: int, coarse: float, fwhm: float) -> list[float]:
    means = []
    for slice_ in range(count):
        total = weight = 0.0
        for k, value in enumerate(x):
            away = abs((k + 0.5) * fine - (slice_ + 0.5) * coarse)
            share = 0.5 ** ((2 * away / fwhm) ** 2)  # one half at half the width
            if away < 4.5 * fwhm / 2.354820045:
                total, weight = total + share * value, weight + share
        means.append(total / weight)
    return means


def by_fourier(
    x: np.ndarray, fine: float, count: int, coarse: float, name: str = "hard"
) -> np.ndarray:
    """The Fourier series of x up to the coarse Nyquist frequency, at the coarse centres."""
    spectrum = np.fft.fft(x) / len(x)
    nyquist = len(x) * fine / (2 * coarse)
    place = ((np.arange(count) + 0.5) * coarse / fine - 0.5) / len(x)
    total = np.full(count, spectrum[0])
    for harmonic in range(1, len(x) // 2 + 1):
        if harmonic > nyquist + 1e-9:
            break
        share = window(name, np.array([harmonic / nyquist]))[0]
        share *= 0.5 if math.isclose(harmonic, nyquist) else 1.0
        turn = np.exp(2j * np.pi * harmonic * place)
        total = total + share * (spectrum[harmonic] * turn + spectrum[-harmonic] * turn.conj())
    return total.real


@pytest.mark.parametrize("sizes", AXES)
@pytest.mark.parametrize("width", [0.5, 1.0, 1.4])
def test_slices_are_sums(sizes: tuple[int, float, int, float], width: float) -> None:
    n_fine, fine, n_coarse, coarse = sizes
    x = signal(n_fine)
    box = axis_matrix(n_fine, fine, n_coarse, coarse, Axis("box", width))
    wanted = by_box(x, fine, n_coarse, coarse, max(width * coarse, fine))
    np.testing.assert_allclose(box @ x, wanted, atol=1e-9)
    gaussian = axis_matrix(n_fine, fine, n_coarse, coarse, Axis("gaussian", width))
    wanted = by_gaussian(x, fine, n_coarse, coarse, width * coarse)
    np.testing.assert_allclose(gaussian @ x, wanted, atol=1e-9)


@pytest.mark.parametrize("sizes", AXES)
@pytest.mark.parametrize("name", FILTERS)
def test_kspace_is_a_cut_fourier_series(sizes: tuple[int, float, int, float], name: str) -> None:
    n_fine, fine, n_coarse, coarse = sizes
    x = signal(n_fine)
    matrix = axis_matrix(n_fine, fine, n_coarse, coarse, Axis("kspace", filter=name))
    wanted = by_fourier(x, fine, n_coarse, coarse, name)
    np.testing.assert_allclose(matrix @ x, wanted, atol=1e-9)


def test_an_axis_that_is_not_degraded() -> None:
    assert axis_matrix(8, 1.0, 8, 1.00005, Axis("box")) is None
    assert axis_matrix(8, 1.0, 8, 1.0002, Axis("box")) is not None
    assert axis_matrix(8, 1.0, 7, 1.0, Axis("box")) is not None
    with pytest.raises(ValueError, match="same voxels"):
        axis_matrix(8, 1.0, 4, 2.0, Axis("none"))


def small() -> tuple[Operator, np.ndarray, torch.Tensor, torch.Tensor]:
    """Three unlike axes, their operator as one big matrix, an image and a measurement."""
    acquisition = Acquisition((Axis("box", 0.8), Axis("kspace"), Axis("gaussian", 1.2)))
    fine, coarse, ratios = (6, 7, 8), (3, 5, 2), (2.0, 1.4, 4.0)
    operator = Operator.between(fine, ONES, coarse, ratios, acquisition)
    one, two, three = (
        axis_matrix(n, 1.0, m, ratio, axis)
        for n, m, ratio, axis in zip(fine, coarse, ratios, acquisition.axes, strict=True)
    )
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal(fine).astype(np.float32))
    y = torch.from_numpy(rng.standard_normal(coarse).astype(np.float32))
    return operator, np.kron(np.kron(one, two), three), x, y


def test_the_operator_is_one_matrix() -> None:
    operator, matrix, x, y = small()
    np.testing.assert_allclose(
        operator.forward(x).numpy().ravel(), matrix @ x.ravel().numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        operator.adjoint(y).numpy().ravel(), matrix.T @ y.ravel().numpy(), atol=1e-5
    )


def test_projection_is_the_pseudo_inverse() -> None:
    operator, matrix, x, y = small()
    residual = y.numpy().ravel() - matrix @ x.numpy().ravel()
    wanted = x.numpy().ravel() + np.linalg.pinv(matrix) @ residual
    np.testing.assert_allclose(operator.project(x, y).numpy().ravel(), wanted, atol=2e-3)


def test_with_noise_it_is_tikhonovs_solution_at_the_noise() -> None:
    operator, matrix, x, y = small()
    sigma = 0.3
    found = operator.project(x, y, sigma).double().numpy().ravel()
    residual = y.double().numpy().ravel() - matrix @ found
    assert np.linalg.norm(residual) == pytest.approx(sigma * math.sqrt(y.numel()), rel=0.02)
    # The weight that leaves this residual, from the change: A^T r = weight * change.
    change = found - x.double().numpy().ravel()
    weight = (matrix.T @ residual) @ change / (change @ change)
    np.testing.assert_allclose(matrix.T @ residual, weight * change, atol=1e-3)


def test_a_correction_follows_weak_directions_no_further_than_their_noise() -> None:
    operator, matrix, x, y = small()
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    power = singular**2
    missing = float((y.double() ** 2).mean()) / power.mean()
    gain = singular / np.maximum(power, 0.2**2 / missing)
    wanted = x.numpy().ravel() + right.T @ (gain * (left.T @ y.numpy().ravel()))
    found = operator.correct(x, y, 0.2).numpy().ravel()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "values"),
    [  # at 0, 1/2, 3/4, 0.9, 1 and 1.1 of Nyquist
        ("hard", (1, 1, 1, 1, 1, 1)),
        ("elliptical", (1, 1, 1, 1, 1, 0)),
        ("fermi", (1, 0.999665, 0.952574, 0.5, 0.119203, 0.017986)),
        ("hann", (1, 0.5, 0.146447, 0.024472, 0, 0)),
        ("half-hann", (1, 0.75, 0.573223, 0.512236, 0.5, 0.5)),
        ("tukey", (1, 1, 0.5, 0.095492, 0, 0)),
    ],
)
def test_filters_at_known_places(name: str, values: tuple[float, ...]) -> None:
    radius = np.array([0, 0.5, 0.75, 0.9, 1.0, 1.1])
    np.testing.assert_allclose(window(name, radius), values, atol=2e-6)


def test_an_unknown_filter_is_named() -> None:
    with pytest.raises(ValueError, match="sharp"):
        window("sharp", np.zeros(1))


@pytest.mark.parametrize("shape", [(6, 7, 8), (5, 8, 7), (4, 4, 9)])
def test_a_radial_filter_is_a_product_in_kspace(shape: tuple[int, int, int]) -> None:
    data = np.random.default_rng(0).standard_normal(shape)
    where = np.meshgrid(*[2 * np.fft.fftfreq(size) for size in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in where))
    np.testing.assert_allclose(kspace_radius(shape), radius[..., : shape[2] // 2 + 1], atol=1e-6)
    for name in FILTERS:
        wanted = np.fft.ifftn(np.fft.fftn(data) * window(name, radius)).real
        np.testing.assert_allclose(filter_kspace(data, name), wanted, atol=1e-5)


def test_rician_noise_has_the_moments_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    air = add_rician_noise(np.zeros((40, 40, 40), np.float32), 2.0, 1)
    assert air.mean() == pytest.approx(2 * math.sqrt(math.pi / 2), rel=0.01)
    bright = add_rician_noise(np.full((40, 40, 40), 50, np.float32), 2.0, 1)
    assert (bright**2).mean() == pytest.approx(50**2 + 2 * 2**2, rel=0.002)
    assert bright.std() == pytest.approx(2.0, rel=0.02)
    image = rng.random((4, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(add_rician_noise(image, 0.0, 1), image)
    assert (add_rician_noise(image, 1.0, 1) != add_rician_noise(image, 1.0, 2)).all()


def test_linear_interpolation_is_a_straight_line() -> None:
    coarse = torch.arange(5.0)[:, None, None].expand(5, 3, 3).contiguous() ** 2
    fine = interpolate(coarse, (2.0, 1.0, 1.0), (10, 3, 3), ONES, order=1)[:, 1, 1]
    place = np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4)
    np.testing.assert_allclose(fine.numpy(), np.interp(place, range(5), np.arange(5.0) ** 2))


def test_back_projection_step_by_step() -> None:
    grids = Grids.inside((8, 8, 8), ONES, (2.0, 2.0, 2.0))
    operator = grids.operator(Acquisition.uniform("gaussian"))
    truth = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = operator.forward(truth)
    image = torch.zeros(8, 8, 8)
    for _ in range(3):
        image = image + interpolate(coarse - operator.forward(image), (2.0,) * 3, (8, 8, 8), ONES)
    start = torch.zeros(8, 8, 8)
    found = back_projection(start, coarse, operator, (2.0,) * 3, ONES, iterations=3)
    torch.testing.assert_close(found, image)
    assert torch.equal(back_projection(start, coarse, operator, (2.0,) * 3, ONES, 0), start)
    ten = back_projection(start, coarse, operator, (2.0,) * 3, ONES)
    torch.testing.assert_close(
        ten, back_projection(start, coarse, operator, (2.0,) * 3, ONES, iterations=10)
    )


def test_whole_voxels_only_or_the_whole_field_of_view() -> None:
    grids = Grids.inside((21, 20, 9), (0.5, 1.0, 1.0), (2.0, 1.5, 4.0))
    assert grids.coarse_shape == (10, 13, 2)
    assert grids.coarse_zooms == (1.0, 1.5, 4.0)
    assert grids.fine_shape == (20, 20, 8)
    assert Grids.inside((21, 20, 9), (0.5, 1.0, 1.0), (2.0, 1.5, 4.0), 8).fine_shape == (16, 16, 8)
    around = Grids.outside((21, 20, 9), ONES, (11, 10, 3), (2.0, 2.0, 4.0))
    assert around.fine_shape == (22, 20, 12)
    fine = torch.rand(21, 20, 9)
    covered = around.covered(fine)
    assert torch.equal(covered[:21, :20, :9], fine)
    assert torch.equal(covered[21], covered[20]) and torch.equal(
        covered[:, :, 11], covered[..., 8]
    )
    cut = Grids((20, 18, 8), (10, 9, 4), ONES, (2.0, 2.0, 2.0)).covered(fine)
    assert torch.equal(cut, fine[:20, :18, :8])


def test_a_noisy_measurement_is_a_magnitude() -> None:
    grids = Grids.inside((8, 8, 8), ONES, (2.0, 2.0, 2.0))
    fine, real, imaginary = torch.rand(8, 8, 8), torch.randn(4, 4, 4), torch.randn(4, 4, 4)
    quiet = measure(fine, grids, Acquisition.uniform("box"))
    means = fine.reshape(4, 2, 4, 2, 4, 2).mean(dim=(1, 3, 5))
    torch.testing.assert_close(quiet.coarse, means)
    noisy = measure(fine, grids, Acquisition.uniform("box"), (0.3, real, imaginary))
    wanted = ((means + 0.3 * real) ** 2 + (0.3 * imaginary) ** 2).sqrt()
    torch.testing.assert_close(noisy.coarse, wanted)
    assert torch.equal(noisy.truth, fine)


def test_degrading_draws_its_noise_from_the_generator() -> None:
    truth = torch.rand(12, 12, 12) + 1
    how = Degradation((2.0, 2.0, 2.0), Acquisition.uniform("box"), 0.1)
    one, same, other = (
        degrade(truth, how, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.measured, same.measured)
    assert not torch.equal(one.measured, other.measured)
    assert one.noise == 0.1 and one.condition == pytest.approx((1, 1, 1, 1, 1, 1))
    quiet = degrade(truth, Degradation((2.0, 2.0, 2.0), Acquisition.uniform("box"), 0.0))
    torch.testing.assert_close(quiet.measured, quiet.operator.forward(truth))
    torch.testing.assert_close(quiet.operator.forward(quiet.start), quiet.measured)


def test_acquisitions_of_training_stay_in_the_documented_ranges() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(3000)]
    ratios = np.array([one.ratios for one in drawn])
    assert (np.diff(ratios) >= 0).all() and ratios.min() >= 1 and 5.5 < ratios.max() <= 6
    canonical = {(1, 1, 2), (1, 1, 4), (2, 2, 2), (1.5, 1.5, 1.5)}
    shares = {name: np.mean([one == name for one in map(tuple, ratios)]) for name in canonical}
    assert shares[2, 2, 2] == pytest.approx(0.6 * 0.4, abs=0.03)
    assert shares[1.5, 1.5, 1.5] == pytest.approx(0.6 * 0.15, abs=0.03)
    assert shares[1, 1, 4] == pytest.approx(0.6 * 0.28, abs=0.03)
    assert shares[1, 1, 2] == pytest.approx(0.6 * 0.17, abs=0.03)
    noise = np.array([one.noise for one in drawn])
    assert (noise == 0).mean() == pytest.approx(0.6, abs=0.03)
    assert 0.004 <= noise[noise > 0].min() < 0.0045 and 0.045 < noise.max() <= 0.05
    assert np.median(noise[noise > 0]) == pytest.approx(math.sqrt(0.004 * 0.05), rel=0.15)
    last = [one.acquisition.axes[2] for one in drawn]
    for profile, share in (("kspace", 0.45), ("gaussian", 0.3), ("box", 0.25)):
        found = np.mean([axis.profile == profile for axis in last])
        assert found == pytest.approx(share, abs=0.03)
    widths = np.array([axis.fwhm for axis in last if axis.profile != "kspace"])
    assert 0.7 <= widths.min() < 0.72 and 1.18 < widths.max() <= 1.2
    assert (widths == 1).mean() == pytest.approx(0.5, abs=0.04)
    for one in drawn:
        thickest = np.array(one.ratios) == max(one.ratios)
        if thickest.sum() == 1 and one.acquisition.axes[2].profile != "kspace":
            assert [axis.profile for axis in one.acquisition.axes[:2]] == ["kspace"] * 2
        elif thickest.sum() == 3:
            assert len(set(one.acquisition.axes)) == 1
    several = ratios[ratios[:, 0] > 1]
    assert several[:, 1].max() <= 3.0 and several[:, 0].max() <= 3.0
    spared = [draw(rng, 1.0, spare_first=True) for _ in range(50)]
    assert {one.ratios[0] for one in spared} == {1.0} and min(one.noise for one in spared) > 0
    assert max(draw(rng, 0.0).noise for _ in range(50)) == 0


def test_named_acquisitions() -> None:
    name = "x2 isotropic"
    assert fixed(name) == Degradation((2.0,) * 3, Acquisition.uniform("kspace"), 0.0)
    assert fixed(name, spare_first=True).ratios == (1.0, 2.0, 2.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.9), (1.0, 1.0, 1.91)])
def test_which_scans_count_as_slices(spacing: tuple[float, float, float]) -> None:
    found = Acquisition.from_metadata({}, spacing)
    assert found.has_slices is (spacing[2] > 1.9)
    assert Acquisition.from_metadata({"MRAcquisitionType": "2d"}, spacing).axes[2].fwhm == 0.75
    assert not Acquisition.from_metadata({"MRAcquisitionType": "3D"}, (1, 1, 9)).has_slices


@pytest.mark.parametrize(
    ("thickness", "profile", "width"),
    [
        (None, "auto", 0.75), (None, "gaussian", 1.0), (5.0, "auto", 1.0), (0.5, "box", 0.2),
        (1.0, "box", 0.2), (15.0, "gaussian", 2.0), (4.0, "kspace", 0.8),
    ],
)  # fmt: skip
def test_width_of_slices(thickness: float | None, profile: str, width: float) -> None:
    axes = Acquisition.of_slices((1.0, 5.0, 2.0), profile, thickness).axes
    assert (axes[1].profile, axes[1].fwhm) == ("box" if profile == "auto" else profile, width)
    assert axes[0] == axes[2] == Axis("kspace")


def test_what_the_networks_are_told() -> None:
    acquisition = Acquisition((Axis("kspace"), Axis("gaussian", 0.8), Axis("box", 1.5)))
    found = acquisition.condition((1.0, 1.0, 1.0), (2.0, 1.0005, 6.0))
    assert found == pytest.approx((1.0, math.log2(1.0005), math.log2(6), 1.2067, 0.0, 1.5))
    assert Axis("none").effective_fwhm == 0
    assert acquisition.has_slices and not acquisition.erases_detail
    assert Acquisition.uniform("gaussian", 1.51).erases_detail
    assert not Acquisition.uniform("kspace", 1.6).erases_detail


@pytest.mark.parametrize("width", [0.0, -1.0, 10.0])
def test_widths_that_cannot_be(width: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 10"):
        Axis("box", width)
    assert Axis("box", 9.99).fwhm == 9.99


def test_covering_counts() -> None:
    assert covering_shape((10, 10, 1), (1.0, 1.0, 1.0), (3.0, 2.0, 4.0)) == (4, 5, 1)


def test_axes_that_are_a_little_coarser_are_told_as_coarser() -> None:
    acquisition = Acquisition.uniform("box", 0.9)
    found = acquisition.condition((1.0, 1.0, 1.0), (1.0, 1.2, 1.1))
    assert found[3:] == pytest.approx((0.0, 0.9, 0.9))
