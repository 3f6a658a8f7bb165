# SPDX-License-Identifier: Apache-2.0
"""The comparison with interpolation: Fourier interpolation, and the least margin of a row."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from research.measurements.no_harm import margins, sinc, table


def wave(count: int, step: float) -> np.ndarray:
    place = (np.arange(count) + 0.5) * step
    return np.cos(2 * np.pi * 3 * place / 32 + 0.4).astype(np.float32)


def test_fourier_interpolation_returns_what_the_band_holds():
    task = SimpleNamespace(
        measured=torch.from_numpy(np.tile(wave(16, 2.0), (3, 4, 1))),
        operator=SimpleNamespace(fine_shape=(3, 4, 32)),
        coarse_zooms=(1.0, 1.0, 2.0),
        zooms=(1.0, 1.0, 1.0),
    )
    assert sinc(task)[1, 2] == pytest.approx(wave(32, 1.0), abs=1e-5)


def test_a_row_is_judged_by_the_best_interpolation_and_named_by_its_worst_head():
    psnr = {"a": (20, 21, 22, 23.0), "soft_b": (20, 24, 22, 23.5), "c": (25, 24, 22, 25.4)}
    rows = [
        {"protocol": "x2iso-kspace+untold", "head": head, "method": method, "psnr": value}
        for head, values in psnr.items()
        for method, value in zip(("linear", "cubic", "sinc", "student"), values, strict=True)
    ]
    made = table(margins(rows, "student"))
    (row,) = made["rows"]
    assert (row["mean"], row["soft"], row["least"]) == ("+0.70", "-0.50", "-0.50")
    assert row["head"] == "soft_b"
    assert made["values"]["loss"] == pytest.approx(0.5)
