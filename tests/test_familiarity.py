# SPDX-License-Identifier: Apache-2.0
"""Scans unlike the training heads are called so; real heads of other people are not."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.quality.familiarity import (
    FAR,
    FIGURES,
    Novelty,
    novelty,
    reference,
    scan_figures,
    summarise,
)
from bids_moediff.quality.figures import judge
from bids_moediff.quality.input_checks import doubts_about, prepare
from conftest import DEMO
from test_input_checks import AFFINE

SHAPE = (80, 96, 80)


def ellipsoid() -> np.ndarray:
    grid = np.indices(SHAPE) - np.array([40, 48, 42])[:, None, None, None]
    return ((grid / np.array([30, 36, 31])[:, None, None, None]) ** 2).sum(axis=0) < 1


def judged(image: nib.Nifti1Image, mask: nib.Nifti1Image, suffix: str = "T1w") -> Novelty:
    scan = prepare(image, mask, suffix)
    figures = scan_figures(scan.data, scan.brain, scan.depth, scan.zooms)
    assert figures is not None
    return novelty(figures, suffix)


def of(data: np.ndarray, brain: np.ndarray, suffix: str = "T1w") -> Novelty:
    mask = nib.Nifti1Image(brain.astype(np.uint8), AFFINE)
    return judged(nib.Nifti1Image(data.astype(np.float32), AFFINE), mask, suffix)


def inverted(data: np.ndarray) -> np.ndarray:
    """Bright for dark, the air left black."""
    top = float(np.percentile(data, 99.5))
    return np.where(data > 0, np.clip(top - data, 0, None), 0).astype(np.float32)


@pytest.fixture(scope="module")
def usual(demo) -> Novelty:
    return judged(*demo)


@pytest.fixture(scope="module")
def demo() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The head that ships: one that trained nothing, with thick slices."""
    image = conform(DEMO / "sub-01" / "anat" / "sub-01_T1w.nii.gz")[0]
    return image, brain_mask(image)[0]


def test_a_real_head_is_usual(usual):
    assert usual.distance < 0.7 * FAR


def test_noise_and_a_ball_of_one_brightness_are_not():
    brain, rng = ellipsoid(), np.random.default_rng(0)
    noise = of(np.abs(rng.normal(100, 30, SHAPE)), brain)
    assert noise.distance > FAR
    assert of(np.where(brain, 100.0, 0.0) + rng.normal(0, 1, SHAPE), brain).distance > FAR


def test_phantoms_of_a_scanner_are_not():
    """A cylinder with bars and a ball full of smaller ones; shells: see test_input_checks.py."""
    grid = (np.indices(SHAPE) - np.array([40, 48, 42])[:, None, None, None]) * 2.0
    radius, rng = np.sqrt((grid**2).sum(axis=0)), np.random.default_rng(0)
    cylinder = (np.hypot(grid[0], grid[1]) < 62) & (np.abs(grid[2]) < 70)
    bars = cylinder & (np.abs(grid[2] - 20) < 20) & (np.round(grid[0] / 12) % 2 == 0)
    balls = np.where(radius < 62, 80.0, 0.0)
    for _ in range(40):
        centre = rng.uniform(-40, 40, 3)[:, None, None, None]
        inside = np.sqrt(((grid - centre) ** 2).sum(axis=0)) < rng.uniform(6, 12)
        balls[inside & (radius < 58)] = rng.uniform(10, 160)
    for data, brain in ((np.where(bars, 15.0, 100.0 * cylinder), cylinder), (balls, radius < 62)):
        noisy = np.hypot(data + rng.normal(0, 3, SHAPE), rng.normal(0, 3, SHAPE))
        assert of(noisy, brain).distance > FAR


def test_an_inverted_head_is_not(demo):
    image, mask = demo
    data = np.asarray(image.dataobj)
    found = judged(nib.Nifti1Image(inverted(data), image.affine), mask)
    assert found.distance > FAR
    assert found.furthest in FIGURES


def test_units_and_orientation_do_not_matter(demo, usual):
    image, mask = demo
    data, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj)
    turned = image.affine.copy()
    turned[:3] = turned[:3][:, [1, 2, 0, 3]]
    other = judged(
        nib.Nifti1Image(3.7 * np.moveaxis(data, 0, 2), turned),
        nib.Nifti1Image(np.moveaxis(inside, 0, 2), turned),
    )
    assert other.distance == pytest.approx(usual.distance, rel=1e-3)
    assert other.furthest == usual.furthest


def test_the_warning_names_the_figure_and_the_table_holds_the_distance(demo, usual):
    image, mask = demo
    flat = inverted(np.asarray(image.dataobj))
    figures, doubts = judge(nib.Nifti1Image(flat, image.affine), mask, "T1w", {})
    assert isinstance(figures["distance_from_training"], float)
    (sentence,) = [words for words in doubts if "unlike the images" in words]
    assert FIGURES[str(figures["furthest_figure"])] in sentence
    figures |= {"distance_from_training": usual.distance, "furthest_figure": usual.furthest}
    doubts = doubts_about(replace(prepare(image, mask, "T1w"), figures=figures))
    assert not any("unlike the images" in words for words in doubts)


def test_a_source_counts_once():
    """Twenty heads of one source weigh as much as one of another."""
    low, high = dict.fromkeys(FIGURES, 1.0), dict.fromkeys(FIGURES, 3.0)
    summary = summarise([[low] * 20, [high], [dict.fromkeys(FIGURES, 2.0)]])
    assert summary["sources"] == 3
    assert summary["edges"] == [2.0, 1.0]
    far = novelty(dict.fromkeys(FIGURES, 7.0), "T1w", {"all": summary})
    assert far.distance == pytest.approx(5)


def test_rare_contrasts_are_compared_with_all():
    middle = {name: reference()["all"][name][0] for name in FIGURES}
    assert novelty(middle, "T2w").distance == 0
    assert novelty(middle, "T1w").distance > 0
    assert novelty(middle, "UNIT1") == novelty(middle, "T1w")


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        "t1w/ds002748_sub-61_T1w.nii.gz",
        "t1w/ds011_sub-10_T1w.nii.gz",
        "bids_mini/sub-03/anat/sub-03_T2w.nii.gz",
        "clinical_thick/ms_patient04_T2w.nii.gz",
    ],
)
def test_real_heads_that_trained_nothing_are_usual(shared_data: Path, name: str) -> None:
    image = conform(shared_data / name)[0]
    assert judged(image, brain_mask(image)[0], name[-10:-7]).distance < FAR


@pytest.mark.shared
def test_a_t2w_head_named_t1w_is_unusual(shared_data: Path) -> None:
    image = conform(shared_data / "bids_mini/sub-03/anat/sub-03_T2w.nii.gz")[0]
    assert judged(image, brain_mask(image)[0], "T1w").distance > FAR


def test_a_stripped_head_keeps_what_its_mask_left(demo):
    """A mask wider than the one that the network would draw."""
    image, mask = demo
    data = np.asarray(image.dataobj)
    wide = ndimage.binary_dilation(np.asarray(mask.dataobj) > 0, iterations=2)
    found, record = brain_mask(nib.Nifti1Image(np.where(wide, data, 0), image.affine))
    left, kept = np.asarray(found.dataobj) > 0, wide & (data > 0)
    assert record["method"] == "nonzero"
    assert (left & kept).sum() > 0.98 * (left | kept).sum()


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float, float]]:
    """An uneven head on uneven voxels: data, brain, depth in mm and voxel sizes."""
    zooms = (3.0, 3.5, 4.0)
    place = np.indices((44, 46, 34)) - np.array([21, 24, 16])[:, None, None, None]
    size = np.array([58, 72, 54])[:, None, None, None] / np.array(zooms)[:, None, None, None]
    radius = np.sqrt(((place / size) ** 2).sum(axis=0))
    brain, depth = radius < 1, np.clip(54 * (1 - radius), 0, None)
    texture = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=brain.shape), 1)
    data = np.select([radius < 0.2, radius < 0.6, brain], [40.0, 115.0, 80.0], 10.0)
    data += 8 * texture / texture.std() + np.where(place[0] > 5, 9.0, 0.0)
    return data.astype(np.float32), brain, depth, zooms


def test_the_nine_figures_of_a_head_that_was_drawn():
    data, brain, depth, zooms = drawn()
    found = scan_figures(data, brain, depth, zooms)
    values, middle = data[brain].astype(float), float(np.median(data[brain]))
    low, ninth, lower, upper, high_tail, high = np.percentile(values, [2, 10, 25, 75, 90, 98])
    rim = np.median(data[(depth > 2) & (depth < 8)])
    by_hand = {
        "core_over_rim": np.median(data[depth > 20]) / rim,
        "bright_tail": high / middle, "dark_tail": low / middle,
        "spread": (upper - lower) / middle,
        "skew": (ninth + high_tail - 2 * middle) / (high_tail - ninth),
    }  # fmt: skip
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand, rel=1e-6)
    assert {name: found[name] for name in FIGURES if name not in by_hand} == pytest.approx(
        {"edges": 0.44356, "fine_detail": 0.24706, "detail_balance": 0.86245, "symmetry": 0.86594},
        rel=1e-3,
    )
    few = np.where(depth > 20, 20, depth)
    few.ravel()[np.flatnonzero(depth > 20)[:99]] = 21
    assert scan_figures(data, brain, few, zooms) is None
    few.ravel()[np.flatnonzero(depth > 20)[:100]] = 21
    assert scan_figures(data, brain, few, zooms) is not None
    bare = np.where((depth > 2) & (depth < 8), 8, depth)
    assert scan_figures(data, brain, bare, zooms) is None


def test_limits_of_the_reference_and_of_the_distance():
    """Two sources have the scatter of n - 1; few sources that agree have a least scatter."""
    heads = [dict.fromkeys(FIGURES, value) for value in (4.0, 4.0, 0.1, 0.1)]
    heads[1] |= {"skew": 7.0}
    heads[3] |= {"skew": -0.1}
    found = summarise([[heads[0]], [heads[1]]])
    assert (found["sources"], found["edges"], found["skew"]) == (2, [4.0, 0.4], [5.5, 2.1213])
    found = summarise([[heads[2]], [heads[3]]])
    assert found["edges"] == [0.1, 0.02] and found["skew"] == [0.0, 0.1414]
    assert summarise([[heads[3]]])["skew"] == [-0.1, 0.02]
    assert summarise([[dict.fromkeys(FIGURES, -4.0)]])["skew"] == [-4.0, 0.4]


def test_the_contrast_counts_that_has_sources_enough():
    names = list(FIGURES)
    known = {
        key: {"sources": count, **{name: [middle, 0.5] for name in FIGURES}}
        for key, count, middle in (("T1w", 8, 1.0), ("T2w", 7, 2.0), ("all", 15, 3.0))
    }
    scan = dict.fromkeys(FIGURES, 1.0) | {names[3]: -0.5, names[5]: 2.0}
    near = novelty(scan, "T1w", known)
    assert near == Novelty(pytest.approx(np.sqrt((9 + 4) / 9)), names[3], pytest.approx(3))
    assert novelty(scan, "UNIT1", known) == near
    for suffix in ("T2w", "FLAIR"):
        assert novelty(scan, suffix, known).deviation == pytest.approx(7)
    far = novelty(scan | {names[0]: 1e9}, "T1w", known)
    assert far == Novelty(pytest.approx(np.sqrt((400 + 13) / 9)), names[0], 20.0)
