# SPDX-License-Identifier: Apache-2.0
"""Bright spots of a scan: found, and their contrast measured on any grid."""

import numpy as np
import pytest

from research.measurements.patients import contrast, find_spots, markdown

ZOOMS = (1.0, 1.0, 3.0)
SHAPE = (80, 84, 28)


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A ball of a brain with three bright spots, one of them at its very rim."""
    grid = np.indices(SHAPE) * np.array(ZOOMS)[:, None, None, None]
    centre = np.array(SHAPE) * np.array(ZOOMS) / 2
    radius = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(axis=0))
    brain = radius < 36
    rng = np.random.default_rng(0)
    data = np.where(brain, 100.0, 5.0) + rng.normal(0, 2, SHAPE)
    for place, size in (((35, 40, 42), 4.0), ((50, 45, 45), 3.0), ((40, 42, 76), 3.0)):
        distance = np.sqrt(((grid - np.array(place)[:, None, None, None]) ** 2).sum(axis=0))
        data[distance < size] = 160.0
    return data.astype(np.float32), brain


def test_deep_spots_are_found_and_those_of_the_rim_left_out():
    data, brain = scan()
    spots = find_spots(data, brain, ZOOMS)
    assert len(spots) == 2
    assert spots[0].volume > spots[1].volume > 4 / 3 * np.pi * 2**3
    assert spots[0].volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.35)


def test_contrast_is_the_same_on_finer_voxels_and_halves_when_it_fades():
    data, brain = scan()
    spot = find_spots(data, brain, ZOOMS)[0]
    mean, peak = contrast(spot, data, (1.0, 1.0, 1.0))
    assert mean == pytest.approx(60, abs=2)
    fine = data.repeat(2, axis=0).repeat(3, axis=2)
    assert contrast(spot, fine, (2.0, 1.0, 3.0)) == pytest.approx((mean, peak), rel=1e-5)
    faded = 100 + (fine - 100) / 2
    assert contrast(spot, faded, (2.0, 1.0, 3.0))[0] == pytest.approx(mean / 2, rel=1e-5)
    gone = np.full_like(fine, 100.0)
    assert contrast(spot, gone, (2.0, 1.0, 3.0)) == (0, 0)


def test_the_page_names_the_weakest():
    row = {"scan": "a", "result": 0.9, "cubic": 0.8, "peak_result": 1.1, "peak_cubic": 0.7}
    page = markdown([row, {**row, "result": 0.4}])
    assert "| a | 2 | 0.40, 0.65 | 0.80, 0.80 | 1.10, 1.10 | 0.70, 0.70 |" in page
