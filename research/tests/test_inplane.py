# SPDX-License-Identifier: Apache-2.0
"""Figures of slices, air included, and gains over the bicubic filter."""

import numpy as np
import pytest

from research.measurements.inplane import slice_figures, table


def test_slices_count_their_air_and_their_own_peak() -> None:
    truth = np.zeros((40, 40, 3))
    truth[10:30, 10:30, 0], truth[10:30, 10:30, 1] = 100, 50
    image, mask = truth.copy(), truth > 0
    image[10:30, 10:30, 0] += 10  # a quarter of the slice, a tenth of its peak
    image[10:30, 10:30, 1] += 10  # a fifth of its peak
    image[..., 2] += 1000  # shows no head
    found = slice_figures(image, truth, mask)
    one = 10 * np.log10(4) + 20
    other = 10 * np.log10(4) + 20 * np.log10(5)
    assert found["slice_psnr"] == pytest.approx((one + other) / 2)
    assert slice_figures(truth, truth, mask)["slice_ssim"] == pytest.approx(1)
    assert found["slice_ssim"] < 1


def test_gains_are_those_of_the_same_image() -> None:
    figures = {"slice_ssim": 0.9, "psnr": 20.0}
    rows = [
        {"head": head, "method": method, "slice_psnr": value, **figures}
        for head, method, value in (
            ("a", "bicubic", 30.0), ("a", "model", 32.0),
            ("b", "bicubic", 20.0), ("b", "model", 23.0),
            ("c", "bicubic", 99.0),
        )
    ]  # fmt: skip
    model = next(row for row in table(rows) if row["method"] == "model")
    assert model["images"] == 2
    assert model["slice_psnr"] == 27.5 and model["slice_psnr_gain"] == 2.5
    assert (model["slice_psnr_low"], model["slice_psnr_high"]) == (2, 3)
