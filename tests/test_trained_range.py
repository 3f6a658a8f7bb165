# SPDX-License-Identifier: Apache-2.0
"""Warnings at the edges of the trained range, of the residual, and the cost estimate's formula."""

import math

import numpy as np
import pytest

from bids_moediff.families import cost
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.grid import NOT_RESTORED
from bids_moediff.imaging.noise import Noise, air_noise
from bids_moediff.inference.expected_error import Calibration, coarseness, expected_error
from bids_moediff.inference.warnings import estimate_remark, range_warnings, residual_warning
from bids_moediff.options import Options

KSPACE = Acquisition.uniform("kspace")
Triple = tuple[float, float, float]


@pytest.mark.parametrize(
    ("coarse", "fine", "words"),
    [
        ((1, 1, 6.05), (1, 1, 1), None),
        ((1, 1, 6.1), (1, 1, 1), "ratio of 6.1"),
        ((1, 3.02, 4), (1, 1, 1), None),
        ((1, 3.1, 4), (1, 1, 1), "More than one axis has a voxel ratio of 3.1"),
        ((1, 1, 1.19), (1, 1, 1), None),
        ((1, 1, 1.18), (1, 1, 1), "largest voxel ratio, 1.18"),
        ((1, 1.1, 4), (1, 1, 1), None),
        ((0.6, 0.6, 0.6), (0.298, 0.298, 0.298), None),
        ((0.6, 0.6, 0.6), (0.29, 0.3, 0.3), "voxels of 0.29 mm"),
        ((4, 4, 8.05), (2, 2, 2), None),
        ((4, 4, 8.2), (2, 2, 2), "voxels of 8.2 mm"),
        ((1, 1, 1), (1, 1, 1), NOT_RESTORED),
        ((1, 1, 1), (2, 2, 2), NOT_RESTORED),
    ],
)
def test_edges_of_the_trained_range(coarse: Triple, fine: Triple, words: str | None) -> None:
    said = range_warnings(coarse, fine, KSPACE)
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


@pytest.mark.parametrize(
    ("profile", "width", "ratio", "told"),
    [
        ("gaussian", 0.7, 4, False), ("gaussian", 0.694, 4, False), ("gaussian", 0.69, 4, True),
        ("box", 1.2, 4, False), ("box", 1.21, 4, False), ("box", 1.22, 4, True),
        ("box", 0.3, 1.01, False), ("box", 0.3, 1.3, True), ("kspace", 0.3, 4, False),
    ],
)  # fmt: skip
def test_edges_of_slice_widths(profile: str, width: float, ratio: float, told: bool) -> None:
    acquisition = Acquisition((Axis("kspace"), Axis("kspace"), Axis(profile, width)))
    said = range_warnings((2.0, 1, ratio), (1.0, 1, 1), acquisition)
    assert [f"{width:.2f} times as thick" in line for line in said] == [True] * told


def test_a_width_that_was_estimated_is_said_to_be_one() -> None:
    likely = {"gaussian 0.5": 0.31, "box 0.5": 0.46, "box 0.75": 0.18, "gaussian 0.75": 0.05}
    narrow, wide = (Acquisition((Axis(), Axis(), Axis("box", width))) for width in (0.5, 1.0))
    said = estimate_remark(narrow, likely)
    assert said is not None and "box 0.5 46 %, gaussian 0.5 31 %, box 0.75 18 %" in said
    assert estimate_remark(wide, likely) is None


@pytest.mark.parametrize(
    ("relative", "noise", "told"),
    [(0.0109, 1.0, False), (0.0111, 1.0, True), (0.5, 0.0, False), (0.5, -1.0, False),
     (0.00099, 0.001, False), (0.00101, 0.001, True)],
)  # fmt: skip
def test_edges_of_the_residual(relative: float, noise: float, told: bool) -> None:
    data = np.full((4, 5, 6), -100.0)  # its root mean square is 100
    said = residual_warning(data, noise, relative)
    assert (said is not None) is told
    if said:
        assert f"by {relative * 100 / noise:.1f} times" in said


def test_cost_is_a_line_in_the_voxels_of_the_output() -> None:
    def of(shape: tuple[int, ...], zooms: Triple, **more: object) -> cost.Estimate:
        options = Options(output_resolution=(1.0, 1.0, 1.0))
        return cost.estimate(shape, zooms, options, model="student", bfloat16=True, **more)

    one, two = of((100, 100, 50), (1, 1, 2)), of((100, 100, 50), (1, 1, 4))
    assert one.shape == (100, 100, 100) and two.shape == (100, 100, 200)
    assert two.gigabytes - one.gigabytes == pytest.approx(0.065, abs=0.011)
    assert one.job_gigabytes == pytest.approx(one.gigabytes + 0.4)
    threads = of((100, 100, 50), (1, 1, 2), threads=2)
    assert one.seconds - 5 == pytest.approx(2 * (threads.seconds - 5), abs=0.2)
    slow = cost.seconds_per_voxel({}, Options(), bfloat16=False)
    assert slow == pytest.approx(101_000 / 18e9)
    assert cost.seconds_per_voxel({}, Options(), bfloat16=True) == pytest.approx(101_000 / 63e9)
    gpu = cost.seconds_per_voxel({}, Options(), device="cuda:1", threads=8)
    assert gpu == pytest.approx(101_000 / 20_000e9)


def test_tissue_noise_counts_before_that_of_the_air() -> None:
    assert Noise(1.0, 2.0).sigma == 1.0
    assert Noise(None, 2.0).sigma == 2.0
    assert Noise(0.0, 2.0).sigma == 0.0
    assert Noise(None, None).sigma is None


@pytest.mark.parametrize(("share", "known"), [(0.55, True), (0.45, False)])
def test_air_that_is_mostly_zero_was_deleted(share: float, known: bool) -> None:
    rng = np.random.default_rng(0)
    air = np.hypot(*rng.normal(0, 3, (2, 60, 60, 60)))
    air[rng.random(air.shape) > share] = 0
    head = np.zeros(air.shape, bool)
    head[0, 0, 0] = True
    found = air_noise(air, head, (1.0, 1.0, 1.0))
    assert (found is not None) is known
    assert found is None or found == pytest.approx(3, rel=0.03)


@pytest.mark.parametrize(
    ("ratios", "factor"),
    [((9, 1, 1), 2.0), ((2, 9, 1), 2.0), ((2.5, 1, 9), 2.5), ((3, 3, 1), 3.0), ((5, 9, 9), 3.0)],
)
def test_the_factor_rises_between_two_and_three(ratios: Triple, factor: float) -> None:
    assert Calibration(2.0, coarse=3.0).at(ratios) == pytest.approx(factor)
    assert Calibration(2.0).at(ratios) == 2.0
    assert coarseness(ratios) == sorted(ratios)[1]


def test_the_expected_error_by_hand() -> None:
    """One voxel of added detail: a fifth of the mean everywhere, the rest a Gaussian around it."""
    added = np.zeros((25, 25, 25), np.float32)
    added[12, 12, 12] = 10
    head = np.ones(added.shape, bool)
    found = expected_error(added, head, 1.5)
    mean = 0.2 * 100 / 25**3
    assert found[0, 0, 0] == pytest.approx(1.5 * math.sqrt(mean), rel=1e-3)
    peak = 100 / (2 * math.pi * 2.0**2) ** 1.5
    assert found[12, 12, 12] == pytest.approx(1.5 * math.sqrt(0.8 * peak + mean), rel=0.01)
    more = expected_error(added, head, 1.5, np.full(added.shape, 4.0))
    assert more[0, 0, 0] == pytest.approx(math.sqrt(found[0, 0, 0] ** 2 + 4), rel=1e-3)
    none = expected_error(added, np.zeros_like(head), 1.5)
    assert none[0, 0, 0] == 0
