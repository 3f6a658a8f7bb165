# SPDX-License-Identifier: Apache-2.0
"""Gate mass per tissue and its test against chance, on gates whose truth is known."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.errors import ImageError
from research.ablations.tissue import (
    FARTHEST,
    _correlate,
    codes_of,
    head_mass,
    segment,
    verdict,
)

EXPERTS = ("smooth", "cortex", "junction")


def folded_head(seed: int = 0, side: int = 48) -> np.ndarray:
    """Tissue codes of a folded ball: white core, grey ribbon, band in between."""
    rng = np.random.default_rng(seed)
    x, y, z = (np.mgrid[:side, :side, :side] - side / 2) / (side / 2)
    folds = ndimage.gaussian_filter(rng.standard_normal((side,) * 3), 3.0)
    radius = np.sqrt(x**2 + y**2 + z**2) + 2.0 * folds / np.abs(folds).max() * 0.12
    return codes_of(radius < 0.6, (radius >= 0.6) & (radius < 0.85))


def gates_like(codes: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """Smooth random gates that favour the owner of each tissue by a factor exp(strength)."""
    rng = np.random.default_rng(seed)
    logits = [
        ndimage.gaussian_filter(rng.standard_normal(codes.shape), 4.0) * 20
        + strength * ndimage.gaussian_filter((codes == code).astype(float), 1.0)
        for code in (1, 2, 3)
    ]
    values = np.exp(logits)
    return np.moveaxis(values / values.sum(0), 0, -1)


def test_codes_are_core_cortex_and_band() -> None:
    white, grey = np.zeros((2, 20, 20, 20), bool)
    white[2:11, 2:18, 2:18], grey[11:16, 2:18, 2:18] = True, True
    line = codes_of(white, grey)[:, 10, 10].tolist()
    assert line == [0] * 5 + [1] * 3 + [0] * 2 + [3] * 2 + [2] * 4 + [0] * 4


def test_mass_is_the_mean_gate_and_the_statistic_its_advantage() -> None:
    codes = folded_head()
    gates = gates_like(codes, 1.0)
    result = head_mass(gates, codes, EXPERTS)
    expected = [[gates[codes == t, k].mean() for t in (1, 2, 3)] for k in range(3)]
    np.testing.assert_allclose(result.mass, expected)
    np.testing.assert_allclose(result.mass.sum(0), 1)
    own = [
        expected[k][k] - np.mean([expected[k][t] for t in range(3) if t != k]) for k in range(3)
    ]
    assert result.statistic == pytest.approx(np.mean(own))
    # Another order of experts is the same finding.
    turned = head_mass(gates[..., [2, 0, 1]], codes, ("junction", "smooth", "cortex"))
    assert turned.statistic == pytest.approx(result.statistic)


def test_correlation_sums_over_every_shift_without_wrapping() -> None:
    rng = np.random.default_rng(0)
    values, tissue = rng.random((9, 10, 11)), rng.random((9, 10, 11)) > 0.5
    every = _correlate(values, tissue)
    assert every.shape == (17, 19, 21)
    for shift in ((0, 0, 0), (3, -4, 2), (-8, 9, -10)):
        moved = np.zeros_like(values)
        source = tuple(
            slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, values.shape, strict=True)
        )
        target = tuple(
            slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, values.shape, strict=True)
        )
        moved[target] = values[source]
        place = tuple(s + n - 1 for s, n in zip(shift, values.shape, strict=True))
        assert every[place] == pytest.approx(moved[tissue].sum(), abs=1e-3)
    assert FARTHEST > 11


@pytest.mark.parametrize("strength", [0.3, 2.0])
def test_gates_that_follow_the_tissue_are_found(strength: float) -> None:
    heads = []
    for seed in range(3):
        codes = folded_head(seed)
        heads.append(head_mass(gates_like(codes, strength, seed + 10), codes, EXPERTS))
    found = verdict(heads)
    assert found.above_chance and found.p_value < 0.01 and found.statistic > found.chance


def test_gates_that_know_nothing_are_at_chance() -> None:
    """Twelve independent gates, as smooth as real ones: about one in twenty may look special."""
    codes = folded_head()
    found = [
        verdict([head_mass(gates_like(codes, 0.0, seed + 50), codes, EXPERTS)], draws=999)
        for seed in range(12)
    ]
    assert sum(item.above_chance for item in found) <= 2
    assert 0.2 < np.mean([item.p_value for item in found]) < 0.8


def test_constant_and_wrong_gates_are_not_special() -> None:
    codes = folded_head()
    constant = np.broadcast_to(np.array([0.2, 0.3, 0.5]), (*codes.shape, 3))
    even = head_mass(constant, codes, EXPERTS)
    assert even.statistic == pytest.approx(0, abs=1e-6)
    assert not verdict([even]).above_chance
    swapped = head_mass(gates_like(codes, 2.0)[..., [1, 2, 0]], codes, EXPERTS)
    assert swapped.statistic < 0 and verdict([swapped]).p_value > 0.9


def test_a_head_without_a_tissue_is_refused() -> None:
    codes = np.where(folded_head() == 1, 0, folded_head())
    with pytest.raises(ImageError, match="white-matter core"):
        head_mass(gates_like(codes, 0.0), codes, EXPERTS)


@pytest.mark.shared
def test_a_validation_head_has_tissues_that_gates_could_follow(shared_data: Path) -> None:
    """Segmented tissue is anatomy; gates made from it are found, and blind ones are not."""
    image = nib.load(shared_data / "bids_mini" / "sub-03" / "anat" / "sub-03_T1w.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    codes = segment(data, image.affine)
    voxel = np.prod(image.header.get_zooms()[:3]) / 1e6
    litres = [(codes == code).sum() * voxel for code in (1, 2, 3)]
    assert 0.02 < litres[0] < 0.5 and 0.2 < litres[1] < 0.9 and 0.1 < litres[2] < 0.9, litres
    assert np.median(data[codes == 1]) > 1.1 * np.median(data[codes == 2])
    middle = tuple(slice(n // 2 - 40, n // 2 + 40) for n in codes.shape)
    codes = codes[middle]
    assert verdict([head_mass(gates_like(codes, 0.3), codes, EXPERTS)]).above_chance
    assert not verdict([head_mass(gates_like(codes, 0.0), codes, EXPERTS)]).above_chance
