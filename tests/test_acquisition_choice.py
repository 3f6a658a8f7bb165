# SPDX-License-Identifier: Apache-2.0
"""Acquisitions read from simulated scans, and what the networks are told about them."""

import numpy as np
import pytest
from scipy import ndimage, stats

from bids_moediff.imaging.acquisition import Acquisition, Axis, axis_matrix
from bids_moediff.imaging.acquisition_choice import (
    FIGURE_SPREAD,
    HEADS,
    KSPACE,
    OPEN,
    SLICE_GAINS,
    SLICE_SPREAD,
    SLICES,
    STATED_SPREAD,
    TOLD_SLICES,
    USUAL_SPREAD,
    choose_acquisition,
    filter_weights,
    least_regret,
    readable_axes,
    slice_weights,
)
from bids_moediff.imaging.acquisition_estimate import KspaceFigures, read_kspace, read_slices
from bids_moediff.imaging.separable import along_axes
from bids_moediff.imaging.simulated_filters import add_rician_noise, filter_kspace

SIDE = 128
SIGMA = 0.01


@pytest.fixture(scope="module")
def anatomy() -> np.ndarray:
    """Isotropic texture of edges on many scales, about [0, 1]: power falls as anatomy's does."""
    random = np.random.default_rng(0)
    total = np.zeros((SIDE,) * 3, dtype=np.float32)
    for scale in (1.0, 2.0, 4.0, 8.0):
        noise = random.standard_normal((SIDE,) * 3).astype(np.float32)
        total += (ndimage.gaussian_filter(noise, scale, mode="wrap") > 0) * scale
    return ndimage.gaussian_filter(total / 15, 0.6, mode="wrap")


@pytest.fixture(scope="module")
def everywhere() -> np.ndarray:
    return np.ones((SIDE,) * 3, dtype=bool)


def slices(anatomy: np.ndarray, profile: Axis, noise: float = SIGMA) -> np.ndarray:
    matrix = axis_matrix(SIDE, 1.0, SIDE // 4, 4.0, profile)
    assert matrix is not None
    coarse = along_axes(anatomy, [None, None, matrix.astype(np.float32)])
    return add_rician_noise(coarse, noise, 1)


def test_wider_slices_read_lower(anatomy, everywhere):
    where = everywhere[:, :, ::4]
    readings = [
        read_slices(slices(anatomy, Axis("gaussian", width)), (1, 1, 4), where, SIGMA)
        for width in (1.2, 1.0, 0.75, 0.5)
    ]
    assert readings == sorted(readings)
    assert readings[2] - readings[1] > 0.2
    # A box of the distance acts like a Gaussian of three quarters of it.
    box = read_slices(slices(anatomy, Axis("box", 1.0)), (1, 1, 4), where, SIGMA)
    assert box == pytest.approx(readings[2], abs=0.15)


def test_noise_hardly_moves_the_reading_of_slices(anatomy, everywhere):
    where, profile = everywhere[:, :, ::4], Axis("gaussian", 0.75)
    quiet, loud = (
        read_slices(slices(anatomy, profile, noise), (1, 1, 4), where, noise)
        for noise in (1e-4, 0.03)
    )
    assert loud == pytest.approx(quiet, abs=0.05)


def test_slices_that_are_few_or_thin_are_not_read(anatomy, everywhere):
    assert read_slices(anatomy, (1, 1, 1.2), everywhere, SIGMA) is None
    few = slices(anatomy, Axis("box"))[:, :, :12]
    assert read_slices(few, (1, 1, 4), everywhere[:, :, :12], SIGMA) is None


def test_two_equally_coarse_axes_and_an_image_without_contrast_are_not_read(anatomy, everywhere):
    assert read_slices(anatomy, (2, 2, 1), everywhere, SIGMA) is None
    flat = np.full((SIDE, SIDE, 32), 100, np.float32)
    assert read_slices(flat, (1, 1, 4), everywhere[:, :, ::4], 0.0) is None
    declared = told(flat, (1, 1, 4), everywhere[:, :, ::4])
    assert declared.acquisition.axes[2] == Axis("box", 0.75)


def test_filters_of_k_space_order_the_figures(anatomy, everywhere):
    found = {
        name: read_kspace(
            add_rician_noise(filter_kspace(anatomy, name), SIGMA / 10, 2),
            (2, 2, 2),
            everywhere,
            SIGMA / 10,
        )
        for name in ("hard", "elliptical", "half-hann")
    }
    assert found["half-hann"].fall < found["hard"].fall - 0.2
    assert found["half-hann"].corner == pytest.approx(found["hard"].corner, abs=0.2)
    assert found["elliptical"].corner < found["hard"].corner - 0.5


def test_an_axis_that_was_soft_before_is_not_read(anatomy, everywhere):
    scan = add_rician_noise(anatomy, SIGMA / 10, 2)
    soft = add_rician_noise(ndimage.gaussian_filter1d(anatomy, 0.6, 2), SIGMA / 10, 2)
    usual, uneven = (
        read_kspace(data, (2, 2, 2), everywhere, SIGMA / 10, axes)
        for data, axes in ((scan, (0, 1)), (soft, (0, 1, 2)))
    )
    assert uneven.axes == (0, 1)
    assert (uneven.fall, uneven.corner) == pytest.approx((usual.fall, usual.corner), abs=0.1)


@pytest.mark.parametrize("true", list(SLICES))
def test_the_reading_of_a_profile_speaks_for_it(true):
    weights = slice_weights(SLICES[true], true.fwhm)
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=lambda profile: weights[profile]).fwhm == true.fwhm


@pytest.mark.parametrize("name", list(KSPACE))
def test_the_figures_of_a_filter_speak_for_it(name):
    weights = filter_weights(KspaceFigures(*KSPACE[name]))
    assert max(weights, key=lambda each: weights[each]) == name


def test_figures_that_no_filter_explains_say_nothing():
    assert filter_weights(KspaceFigures(0.5, 0.5)) == {}


def told(data, zooms, where, stated=None):
    thickness = None if stated is None else stated * max(zooms)
    slices_declared = max(zooms) > 1.9 * min(zooms)
    declared = (
        Acquisition.of_slices(zooms, thickness=thickness)
        if slices_declared
        else Acquisition.uniform("kspace")
    )
    return choose_acquisition(declared, data, zooms, where, SIGMA, stated)


def test_overlapping_slices_are_told_from_others(anatomy, everywhere):
    where = everywhere[:, :, ::4]
    wide = told(slices(anatomy, Axis("gaussian", 1.15)), (1, 1, 4), where)
    usual = told(slices(anatomy, Axis("box", 0.75)), (1, 1, 4), where)
    assert wide.acquisition.axes[2] == Axis("gaussian", 0.8)
    assert usual.acquisition.axes[2] == Axis("box", 0.75)
    assert wide.weights["gaussian 1"] > 0.8


def test_a_stated_thickness_is_kept_unless_the_scan_speaks_against_it(anatomy, everywhere):
    where = everywhere[:, :, ::4]
    same = told(slices(anatomy, Axis("box", 0.9)), (1, 1, 4), where, stated=0.9)
    assert same.acquisition.axes[2] == Axis("box", 0.9)
    assert same.acquisition.axes[0] == Axis("kspace")


def test_a_statement_wider_than_the_distance_has_to_show(anatomy, everywhere):
    where = everywhere[:, :, ::4]
    for true in (0.5, 0.75, 1.0):
        scan = slices(anatomy, Axis("box", true))
        assert told(scan, (1, 1, 4), where, stated=1.6).acquisition.axes[2].fwhm <= 1


@pytest.mark.parametrize("reading", np.linspace(-0.8, 0.8, 17))
def test_no_choice_loses_under_a_profile_that_is_still_open(reading):
    weights = slice_weights(float(reading))
    chosen = TOLD_SLICES.index(least_regret(weights, SLICE_GAINS, TOLD_SLICES, Axis("box", 0.75)))
    assert all(
        SLICE_GAINS[true][chosen] >= 0 for true, weight in weights.items() if weight >= OPEN
    )


def test_fine_voxels_are_taken_as_declared(anatomy, everywhere):
    choice = told(anatomy, (1.0, 1.0, 1.0), everywhere)
    assert choice.acquisition == Acquisition.uniform("kspace")
    assert choice.weights == {}


@pytest.mark.parametrize(
    ("zooms", "axes"),
    [
        ((2.0, 2.7, 2.7), (0, 1, 2)),  # about cubic
        ((2.5, 3.3, 3.3), (0, 1, 2)),  # by their mean, as here and
        ((1.3, 1.7, 1.7), (1, 2)),  # here
        ((1.7, 1.7, 1.0), (0, 1)),  # two coarse axes, a fine one
        ((1.0, 2.0, 2.0), (1, 2)),
        ((0.9, 0.9, 2.5), ()),  # one axis is not enough
        ((2.0, 2.0, 4.0), ()),  # the two would be the fine ones
        ((1.0, 1.0, 1.0), ()),
        ((1.6, 1.6, 1.6), ()),  # an infant may be as soft
    ],
)
def test_a_filter_is_read_on_axes_of_about_equal_coarse_voxels(zooms, axes):
    assert readable_axes(zooms) == axes


def test_a_filter_read_in_plane_is_told_there_alone(anatomy, everywhere):
    scan = add_rician_noise(anatomy, SIGMA, 3)  # soft enough to look filtered
    first, second, third = told(scan, (1.7, 1.7, 1.0), everywhere).acquisition.axes
    assert first == second != Axis("kspace")
    assert third == Axis("kspace")


def test_the_corner_of_a_plane_counts_as_that_of_three_axes(anatomy, everywhere):
    """The same texture has the same filter, whether two or three of its axes are coarse."""
    scan, declared = add_rician_noise(anatomy, SIGMA / 10, 2), Acquisition.uniform("kspace")
    plane, cubic = (
        choose_acquisition(declared, scan, zooms, everywhere, SIGMA / 10).weights
        for zooms in ((1.7, 1.7, 1.0), (1.7, 1.7, 1.7))
    )
    assert plane == pytest.approx(cubic, abs=0.03)


def test_a_stated_width_counts_up_to_the_widest_that_was_measured():
    assert slice_weights(0.0, 1.6) == slice_weights(0.0, 1.0)
    assert slice_weights(0.0, 0.3) == slice_weights(0.0, 0.5)


def test_the_middle_of_the_head_is_read_wherever_it_lies(anatomy, everywhere):
    beside = np.random.default_rng(3).normal(0, 5, (64, SIDE, SIDE)).astype(np.float32)
    moved = np.concatenate([beside, anatomy])
    where = np.concatenate([np.zeros(beside.shape, dtype=bool), everywhere])
    alone = read_kspace(anatomy, (1.0, 1.0, 1.0), everywhere, SIGMA)
    assert read_kspace(moved, (1.0, 1.0, 1.0), where, SIGMA) == alone


def test_weights_of_profiles_are_densities_of_students_t():
    """And of a normal width around the stated one."""
    for reading, stated in ((-0.3, None), (0.05, 0.8), (0.9, None)):
        density = {
            true: stats.t(5).pdf((reading - mean) / SLICE_SPREAD)
            * (1 if stated is None else stats.norm.pdf(true.fwhm, stated, STATED_SPREAD))
            for true, mean in SLICES.items()
        }
        expected = {true: value / sum(density.values()) for true, value in density.items()}
        assert slice_weights(reading, stated) == pytest.approx(expected)


@pytest.mark.parametrize("figures", [(-1.2, -0.8), (-2.0, -1.4), (-1.0, -0.6), (-3.0, -1.0)])
def test_weights_of_filters_are_normal_densities(figures):
    """Of the figures around those of each filter: spread over heads, and of the reading."""
    density = {
        name: stats.multivariate_normal.pdf(
            figures, mean, HEADS + FIGURE_SPREAD.get(name, USUAL_SPREAD) ** 2 * np.eye(2)
        )
        for name, mean in KSPACE.items()
    }
    expected = {name: value / sum(density.values()) for name, value in density.items()}
    assert filter_weights(KspaceFigures(*figures)) == pytest.approx(expected, abs=1e-4)


def test_below_the_lowest_figures_only_noise_is_read():
    assert filter_weights(KspaceFigures(-7.0, -3.0)) == filter_weights(KspaceFigures(-4.0, -1.6))


TOLD = (Axis("kspace"), Axis("box", 1.0), Axis("box", 0.5))


@pytest.mark.parametrize(
    ("weights", "gains", "chosen"),
    [
        ((0.7, 0.3), ((1.0, 0.8, 0.9), (0.2, 1.0, 0.1)), 1),  # 0.76, 0.86 and 0.66 dB
        ((0.7, 0.3), ((1.0, 0.9, 0.9), (0.5, 1.0, 0.1)), 0),  # 0.08 dB more is not worth it
        ((0.7, 0.3), ((0.5, 3.0, 0.9), (0.5, -0.1, 0.9)), 2),  # harm where it is still open
        ((0.95, 0.05), ((0.5, 3.0, 0.9), (0.5, -0.1, 0.9)), 1),  # and where it is not
        ((0.7, 0.3), ((-0.5, 3.0, 0.9), (0.5, -0.1, -0.9)), 0),  # all may harm
    ],
)
def test_the_choice_gains_most_and_harms_under_no_open_acquisition(weights, gains, chosen):
    of = dict(zip("ab", weights, strict=True))
    found = least_regret(of, dict(zip("ab", gains, strict=True)), TOLD, Axis("kspace"))
    assert found == TOLD[chosen]


def test_a_choice_tells_weights_of_a_hundredth_or_more(anatomy, everywhere):
    """To three digits; slices lie along the largest voxels."""
    stack = np.moveaxis(slices(anatomy, Axis("gaussian", 1.0)), 2, 1)
    declared = [Axis("kspace"), Axis("box", 0.75), Axis("kspace")]
    choice = choose_acquisition(
        Acquisition(tuple(declared)), stack, (1, 4, 1), everywhere[:, ::4], SIGMA
    )
    reading = read_slices(stack, (1, 4, 1), everywhere[:, ::4], SIGMA)
    expected = {
        f"{true.profile} {true.fwhm:g}": round(weight, 3)
        for true, weight in slice_weights(reading).items()
        if weight >= 0.01
    }
    assert choice.weights == expected and len(expected) < len(SLICES)
    assert choice.acquisition.axes[1] == least_regret(
        slice_weights(reading), SLICE_GAINS, TOLD_SLICES, declared[1]
    )
    assert choice.acquisition.axes[::2] == (Axis("kspace"),) * 2
