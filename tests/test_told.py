# SPDX-License-Identifier: Apache-2.0
"""What the last layers are told about a scan."""

import math

import pytest

from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.told import EXTRA_NUMBERS, edge_loss, told_numbers

TWOS = (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis("kspace"), 0.0),
        (Axis("box", 1.0), 1 - 2 / math.pi),
        (Axis("gaussian", 1.0), 1 - math.exp(-(math.pi**2) / (16 * math.log(2)))),
    ],
)
def test_the_edge_of_the_band_by_profile(axis, expected):
    assert edge_loss(axis) == pytest.approx(expected)


def test_the_numbers_of_a_scan():
    loss = edge_loss(Axis("box"))
    numbers = told_numbers(Acquisition.uniform("box"), (4.0, 4.0, 4.0), 0.02)
    assert len(numbers) == EXTRA_NUMBERS
    assert numbers == pytest.approx((0.5, 0.5, loss, 0.5 * loss))
    assert told_numbers(Acquisition.uniform("kspace"), TWOS, 0.0) == (0,) * 4


def test_slices_are_told_nothing_and_mixtures_part_of_it():
    box = Acquisition.uniform("box")
    assert told_numbers(box, (4.0, 1.0, 1.0), 0.05) == (0,) * 4
    assert told_numbers(box, (1.0, 1.0, 1.0), 0.05) == (0,) * 4
    whole, half = (told_numbers(box, ratios, 0.05) for ratios in ((4, 4, 4), (4, 2, 2)))
    assert half == pytest.approx([number / 2 for number in whole])
