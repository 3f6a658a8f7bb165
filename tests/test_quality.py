# SPDX-License-Identifier: Apache-2.0
"""Quality figures and noise against analytic values and independent computations."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.imaging.noise import air_noise, estimate_noise, tissue_noise
from bids_moediff.imaging.spectrum import AxisResolution
from bids_moediff.quality import figures as quality
from bids_moediff.quality import input_checks
from bids_moediff.reports.captions import MAIN_FIGURES
from test_familiarity import drawn


def ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    return (grid**2).sum(axis=0) <= radius**2


def rician(signal: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    real, imaginary = rng.normal(0, sigma, (2, *signal.shape))
    return np.hypot(signal + real, imaginary).astype(np.float32)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, np.ndarray]:
    brain = ball((96, 96, 96), 30)
    signal = np.where(brain, 60.0, 0.0) + 40.0 * ball((96, 96, 96), 20)
    return signal, brain


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_noise_is_recovered_in_tissue_and_air(phantom, sigma):
    signal, brain = phantom
    data = rician(signal, sigma)
    noise = estimate_noise(data, brain, brain, (1.0, 1.0, 1.0))
    assert noise.tissue == pytest.approx(sigma, rel=0.05)
    assert noise.air == pytest.approx(sigma, rel=0.02)
    assert noise.sigma == noise.tissue


def test_noise_without_air_comes_from_tissue(phantom):
    signal, brain = phantom
    stripped = rician(signal, 2.0) * brain
    noise = estimate_noise(stripped, brain, brain, (1.0, 1.0, 1.0))
    assert noise.air is None
    assert noise.sigma == pytest.approx(2.0, rel=0.05)


def test_noise_of_an_empty_mask_is_unknown(phantom):
    signal, brain = phantom
    assert tissue_noise(signal, np.zeros_like(brain)) is None
    assert air_noise(np.zeros_like(signal), brain, (1.0, 1.0, 1.0)) is None


def test_efc_has_its_analytic_limits():
    assert quality.entropy_focus(np.full((8, 8, 8), 7.0)) == pytest.approx(1.0)
    single = np.zeros((8, 8, 8))
    single[1, 2, 3] = 5
    assert quality.entropy_focus(single) == pytest.approx(0.0)


def test_efc_agrees_with_the_published_formula():
    data = np.random.default_rng(1).gamma(2.0, 10.0, (7, 8, 9))
    largest = data.size * (1 / np.sqrt(data.size)) * np.log(1 / np.sqrt(data.size))
    top = np.sqrt((data**2).sum())
    expected = (1.0 / largest) * np.sum((data / top) * np.log((data + 1e-16) / top))
    assert quality.entropy_focus(data) == pytest.approx(expected, rel=1e-9)


def test_fber_is_the_ratio_of_median_energies(phantom):
    signal, brain = phantom
    data = np.where(brain, 50.0, 2.0)
    assert quality.foreground_background_ratio(data, brain) == pytest.approx(625.0)
    assert quality.foreground_background_ratio(signal * brain, brain) is None


def test_smoothness_of_filtered_white_noise():
    rng = np.random.default_rng(0)
    wanted = (4.0, 6.0, 5.0)
    zooms = (1.0, 2.0, 0.5)
    sigma = [f / z / np.sqrt(8 * np.log(2)) for f, z in zip(wanted, zooms, strict=True)]
    data = ndimage.gaussian_filter(rng.normal(size=(96, 96, 96)), sigma)
    found = quality.smoothness(data, np.ones(data.shape), zooms)
    assert found == pytest.approx(wanted, rel=0.05)
    white = quality.smoothness(rng.normal(size=(64, 64, 64)), np.ones((64, 64, 64)), (1, 1, 1))
    assert max(white) < 0.6
    # The widths are those in mm, whatever the voxels; so a page must not call them anything else.
    assert {name: unit for name, _, unit in MAIN_FIGURES}["fwhm_avg"] == "mm"


def tissue_sample(suffix: str = "T1w") -> np.ndarray:
    rng = np.random.default_rng(2)
    parts = [(30, 8, 20000), (70, 6, 50000), (110, 5, 60000)]
    return np.concatenate([rng.normal(mean, spread, n) for mean, spread, n in parts])


def test_tissue_classes_are_the_gaussians_that_made_the_sample():
    classes = quality.tissue_classes(tissue_sample(), "T1w")
    assert classes is not None
    assert list(classes) == ["csf", "gm", "wm"]
    assert classes["gm"].mean == pytest.approx(70, abs=1)
    assert classes["wm"].deviation == pytest.approx(5, rel=0.1)
    assert classes["csf"].share == pytest.approx(20 / 130, abs=0.02)
    inverse = quality.tissue_classes(tissue_sample(), "T2w")
    assert inverse is not None
    assert inverse["wm"].mean == pytest.approx(30, abs=2)


def test_tissue_classes_without_fluid_and_without_a_rule():
    bare = tissue_sample()[20000:]
    classes = quality.tissue_classes(bare, "T1w")
    assert classes is not None
    assert set(classes) == {"gm", "wm"}
    assert quality.tissue_classes(tissue_sample(), "FLAIR") is None
    uniform = np.random.default_rng(0).normal(100, 5, 50000)
    assert quality.tissue_classes(uniform, "T1w") is None


def test_cjv_and_cnr_follow_their_formulas():
    classes = quality.tissue_classes(tissue_sample(), "T1w")
    figures = quality._tissue_figures(classes, 3.0, 120.0)
    assert figures["cjv"] == pytest.approx((6 + 5) / 40, rel=0.1)
    assert figures["cnr"] == pytest.approx(40 / np.sqrt(9 + 36 + 25), rel=0.1)
    assert figures["wm2max"] == pytest.approx(110 / 120, rel=0.02)


def test_summary_matches_numpy_and_survives_nothing():
    values = np.arange(101.0)
    found = quality.summary(values)
    assert (found["mean"], found["median"], found["mad"]) == (50, 50, 25)
    assert (found["p05"], found["p95"], found["n"]) == (5, 95, 101)
    assert quality.summary(values[:0])["mean"] is None
    assert quality.summary(np.ones(5))["k"] is None


# Of the head below, as they were when somebody last looked at each of them.
FIGURES = {
    "cjv": 0.22387, "cnr": 6.0167, "efc": 0.5441, "fber": 945.52, "fwhm_avg": 9.0173,
    "fwhm_x": 8.1902, "fwhm_y": 9.825, "fwhm_z": 9.0367, "noise_sigma": 4.423,
    "noise_air": 2.0156, "qi_1": 0.012415, "snr_brain": 16.639, "snr_csf": 5.9846,
    "snr_gm": 15.37, "snr_wm": 25.169, "snr_total": 15.508, "snrd_brain": 36.512,
    "distance_from_training": 1.8742, "furthest_figure": "skew", "wm2max": 0.90052,
    "brain_volume": 946.218, "size_x": 44, "spacing_x": 3, "usable_x": 5.962, "acquired_x": 3,
    "interpolation_x": "native", "size_y": 46, "spacing_y": 3.5, "usable_y": 7.3391,
    "acquired_y": 3.5, "interpolation_y": "native", "size_z": 34, "spacing_z": 4,
    "usable_z": 8.3207, "acquired_z": 4, "interpolation_z": "native",
    "summary_brain_mean": 81.456, "summary_brain_median": 73.594, "summary_brain_stdv": 26.007,
    "summary_brain_mad": 10.774, "summary_brain_k": -0.34151, "summary_brain_p05": 26.038,
    "summary_brain_p95": 114.96, "summary_brain_n": 22529, "summary_bg_mean": 2.6371,
    "summary_bg_median": 2.3852, "summary_bg_stdv": 1.6818, "summary_bg_mad": 0.91385,
    "summary_bg_k": 10.065, "summary_bg_p05": 0.65489, "summary_bg_p95": 5.1489,
    "summary_bg_n": 45912,
}  # fmt: skip


def test_every_figure_of_a_head_that_was_drawn():
    """Three tissues with texture, noise of 2, something bright in the air, uneven voxels."""
    _, brain, depth, zooms = drawn()
    signal = np.select([depth > 30, depth > 12, brain], [25.0, 110.0, 70.0], 0.0)
    signal += np.where(brain, np.random.default_rng(1).normal(0, 4, brain.shape), 0)
    data = rician(signal, 2.0)
    data[:4, 20:28] += 9
    affine = np.diag([*zooms, 1.0])
    odd = data.copy()
    odd[0, 0, :3] = np.nan, np.inf, -np.inf
    data[0, 0, :3] = 0
    found = quality.quality_figures(odd, affine, brain, "T1w")
    assert set(found) == set(quality.DESCRIPTIONS)
    assert all(type(value) in (float, str) for value in found.values())
    words = {name: value for name, value in FIGURES.items() if isinstance(value, str)}
    assert {name: found[name] for name in words} == words
    numbers = {name: value for name, value in FIGURES.items() if name not in words}
    assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=2e-3)
    image, mask = (nib.Nifti1Image(part, affine) for part in (data, brain.astype(np.uint8)))
    assert quality.judge(image, mask, "T1w", {"ImageType": "MIP"}) == (
        found,
        input_checks.find_doubts(image, mask, "T1w", {"ImageType": "MIP"}, found),
    )


def test_ghost_in_the_air_raises_qi_1(phantom):
    signal, brain = phantom
    ghost = 0.15 * np.roll(signal, 40, axis=1)
    clean = quality.quality_figures(rician(signal, 1.0), np.eye(4), brain)
    ghosted = quality.quality_figures(rician(signal + ghost, 1.0), np.eye(4), brain)
    assert ghosted["qi_1"] > 10 * clean["qi_1"] + 0.005
    assert ghosted["efc"] > clean["efc"]


def test_a_mask_of_another_shape_is_refused(phantom):
    signal, brain = phantom
    with pytest.raises(ValueError, match="differ in shape"):
        quality.quality_figures(signal, np.eye(4), brain[1:])
    empty = quality.quality_figures(signal, np.eye(4), np.zeros(signal.shape))
    assert empty["snr_brain"] is None


def test_a_figure_that_cannot_be_computed_is_none(phantom, monkeypatch):
    signal, brain = phantom
    monkeypatch.setattr(quality, "entropy_focus", lambda data: float("nan"))
    monkeypatch.setattr(quality, "air_artefact", lambda *data: float("inf"))
    figures = quality.quality_figures(rician(signal, 2.0), np.eye(4), brain, "T1w")
    assert (figures["efc"], figures["qi_1"]) == (None, None)
    assert figures["fber"] is not None


def test_contrast_is_over_the_noise_of_the_air() -> None:
    """Also where the tissue is much noisier than the air (textured)."""
    shape = (64, 64, 64)
    brain = ball(shape, 23)
    signal = np.where(brain, 60.0, 0.0) + 40.0 * ball(shape, 18) - 40.0 * ball(shape, 7)
    texture = np.random.default_rng(3).normal(0, 4, signal.shape)
    data = rician(np.where(brain, signal + texture, 0.0), 1.0)
    figures = quality.quality_figures(data, np.eye(4), brain, "T1w")
    classes = quality.tissue_classes(data[brain], "T1w")
    assert classes is not None and figures["noise_sigma"] > 2 * figures["noise_air"]
    grey, white = classes["gm"], classes["wm"]
    spread = np.sqrt(figures["noise_air"] ** 2 + grey.deviation**2 + white.deviation**2)
    assert figures["cnr"] == pytest.approx(abs(white.mean - grey.mean) / spread, rel=0.005)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_order_statistics_are_those_of_double_precision(count: int) -> None:
    values = np.random.default_rng(count).normal(100, 30, count).astype(np.float32)
    wanted = np.percentile(values.astype(np.float64), [5, 50, 95])
    assert quality.percentiles(values, (5, 50, 95)) == pytest.approx(wanted, rel=1e-14)
    ratio = quality.foreground_background_ratio(np.append(values, 2), np.append(np.ones(count), 0))
    assert ratio == pytest.approx(np.median(values.astype(np.float64) ** 2) / 4, rel=1e-14)


@pytest.mark.parametrize(("brightness", "share"), [(3.5, 0.0), (4.0, 1.0)])
def test_artefacts_in_air_are_brighter_than_all_but_a_thousandth_of_noise(brightness, share):
    """The 99.9th percentile of Rayleigh noise is 3.717 times its scale."""
    head = np.zeros((24, 24, 24), dtype=bool)
    data = np.zeros(head.shape, dtype=np.float32)
    data[8:16, 8:16, 8:16] = 2.0 * brightness
    found = quality.air_artefact(data, head, 2.0)
    assert found == pytest.approx(share * 512 / head.size, rel=0.2)


def test_tissues_that_overlap_are_not_told_apart():
    """Grey and white matter closer than their spread: no contrast is reported."""
    rng = np.random.default_rng(0)
    parts = (rng.normal(20, 4, 9000), rng.normal(100, 5, 30000), rng.normal(103, 20, 30000))
    overlapping = np.concatenate(parts)
    assert quality.tissue_classes(overlapping, "T1w") is None


def test_an_axis_that_cannot_be_judged_states_no_usable_resolution():
    axes = (
        AxisResolution(1.0, 1.3, "native", 1.0), AxisResolution(2.0, 2.6, "zero-filled", 4.0),
        AxisResolution(5.0, 5.0, "unknown", 5.0),
    )  # fmt: skip
    assert quality._resolution_figures(axes) == {
        "usable_x": 1.3, "acquired_x": 1.0, "interpolation_x": "native",
        "usable_y": 2.6, "acquired_y": 4.0, "interpolation_y": "zero-filled",
        "usable_z": None, "acquired_z": 5.0, "interpolation_z": "unknown",
    }  # fmt: skip
