# SPDX-License-Identifier: Apache-2.0
"""Gains by true acquisition and by what was known of it."""

import pytest

from research.measurements.acquisition_gains import table

PSNR = {  # linear, cubic, model
    "x4slices-box0.5+noise2+stated": {"a": (20.0, 21.0, 22.0), "b": (24.0, 23.0, 24.5)},
    "x4slices-box0.5+noise2+untold": {"a": (20.0, 21.0, 21.5), "b": (24.0, 23.0, 23.9)},
    "x4slices-box0.5+noise2": {"a": (20.0, 21.0, 22.0), "b": (24.0, 23.0, 24.0)},
    "x4slices-box0.5+noise2+told-box0.75": {"a": (20.0, 21.0, 22.0), "b": (24.0, 23.0, 25.0)},
}


def test_columns_worst_image_and_share_of_the_best() -> None:
    rows = [
        {"protocol": protocol, "head": head, "method": method, "psnr": psnr}
        for protocol, heads in PSNR.items()
        for head, values in heads.items()
        for method, psnr in zip(("linear", "cubic", "student"), values, strict=True)
    ]
    made = table(rows, "student")
    values = made["values"]
    assert values["x4slices-box0.5+noise2.stated.over_cubic"] == pytest.approx(1.25)
    assert values["x4slices-box0.5+noise2.stated.worst"] == pytest.approx(0.5)
    assert values["x4slices-box0.5+noise2.best.over_cubic"] == pytest.approx(1.5)  # told 0.75
    assert values["x4slices-box0.5+noise2.share"] == pytest.approx(0.7 / 1.5)
    assert values["slices.worst"] == pytest.approx(-0.1)
    (line,) = made["rows"]
    assert line["worst"] == "-0.10 (b)"
    assert line["name"] == "x4 slices, box 0.5, 2 % noise"
