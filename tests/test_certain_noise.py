# SPDX-License-Identifier: Apache-2.0
"""How much of a reading of the noise a result may differ from its scan."""

import numpy as np
import pytest

from bids_moediff.imaging.noise_level import NoiseReading
from bids_moediff.inference.worker import certain_noise

DATA = np.full((8, 8, 8), 1000.0, np.float32)


@pytest.mark.parametrize(
    ("source", "sigma", "expected"),
    [
        ("option", 5.0, 5.0),
        ("none", 0.0, 0.0),
        ("spectrum", 19.0, 0.0),
        ("spectrum", 30.0, 22.36),
        ("air", 17.0, 0.0),
        ("spectrum and air", 9.0, 0.0),
        ("spectrum and air", 40.0, 38.73),
    ],
)
def test_readings_count_beyond_what_anatomy_reads_as(source, sigma, expected):
    assert certain_noise(NoiseReading(sigma, source, 1.0), DATA) == pytest.approx(
        expected, abs=0.01
    )


def test_brightness_is_that_of_the_voxels_above_zero():
    """Whatever share of the image is air, and however bright a few vessels are."""
    data = np.concatenate([np.zeros((300, 8, 8), np.float32), DATA])
    data[-1, 0, 0] = 9000
    found = certain_noise(NoiseReading(30.0, "spectrum", 1.0), data)
    assert found == pytest.approx(22.36, abs=0.01)


def test_noise_of_one_level_counts_in_full():
    assert certain_noise(NoiseReading(19.0, "spectrum", 1.0, even=True), DATA) == 19.0


def test_noise_beside_much_detail_does_not_count():
    assert certain_noise(NoiseReading(30.0, "spectrum", 1.0, detailed=True), DATA) == 0


def test_an_empty_image_has_no_brightness():
    assert certain_noise(NoiseReading(3.0, "spectrum and air", 1.0), np.zeros((4, 4, 4))) == 0
