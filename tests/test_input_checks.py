# SPDX-License-Identifier: Apache-2.0
"""Every warning has an image that triggers it, and an ordinary head triggers none."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.quality import input_checks
from bids_moediff.quality.figures import quality_figures
from bids_moediff.quality.input_checks import find_doubts

SHAPE = (80, 96, 80)  # at 2 mm
DRAWN = "Parts of the inner brain are uniform"
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def distance(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    grid = np.indices(SHAPE, dtype=float)
    shifted = [(g - c) / r for g, c, r in zip(grid, centre, radii, strict=True)]
    return np.sqrt(sum(s**2 for s in shifted))


def phantom(suffix: str = "T1w", noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Head with scalp, skull, fluid, cortex, white matter and ventricles; and its brain mask."""
    levels = {"T1w": (25, 70, 110, 130), "T2w": (180, 90, 70, 60), "FLAIR": (20, 95, 75, 60)}
    fluid, grey, white, scalp = levels[suffix]
    out = distance((40, 48, 42), (34, 42, 36))
    brain = out < 0.85
    data = np.select([out < 0.65, out < 0.8, out < 0.85, out < 0.92, out < 1],
                     [white, grey, fluid, 8, scalp], 0.0)  # fmt: skip
    data[distance((40, 48, 42), (3, 9, 4)) < 1] = fluid
    rng = np.random.default_rng(0)
    real, imaginary = rng.normal(0, noise, (2, *SHAPE))
    return np.hypot(data + real, imaginary).astype(np.float32), brain


def doubts(
    data: np.ndarray,
    brain: np.ndarray,
    suffix: str = "T1w",
    metadata: Mapping[str, Any] | None = None,
    affine: np.ndarray = AFFINE,
    measured: bool = False,
) -> list[str]:
    figures = quality_figures(data, affine, brain, suffix) if measured else None
    mask = nib.Nifti1Image(brain.astype(np.uint8), affine)
    found = find_doubts(nib.Nifti1Image(data, affine), mask, suffix, metadata, figures)
    # These heads are drawn, which is found too: that has a test of its own.
    return [sentence for sentence in found if not sentence.startswith(DRAWN)]


def only(sentences: list[str]) -> str:
    (sentence,) = sentences
    return sentence


@pytest.mark.parametrize("suffix", ["T1w", "T2w", "FLAIR"])
def test_an_ordinary_head_raises_no_doubt(suffix):
    data, brain = phantom(suffix)
    assert doubts(data, brain, suffix, {"ImageType": ["ORIGINAL", "PRIMARY", "M"]}) == []


def test_no_doubt_in_any_orientation():
    data, brain = phantom()
    turned = np.diag([-2.0, 2.0, 2.0, 1.0])[:, [2, 0, 1, 3]]
    image = (np.moveaxis(part, (0, 1, 2), (1, 2, 0)) for part in (data, brain))
    assert doubts(*image, affine=turned) == []


@pytest.mark.parametrize(
    ("named", "words"),
    [("T1w", "T2w T2-weighted"), ("T2w", "T1w T1-weighted"), ("T1w", "FLAIR like a FLAIR")],
)
def test_wrong_contrast(named, words):
    made, seen = words.split(" ", 1)
    sentence = only(doubts(*phantom(made), named))
    assert f"named {named} but looks {seen}" in sentence


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("T1w", "inner brain is darker"),
        ("T2w", "fluid is not bright"),
        ("FLAIR", "fluid is bright (brightest part"),
    ],
)
def test_an_image_that_is_the_opposite_of_its_name(suffix, words):
    """Bright for dark in the brain; none of them looks like one of the other contrasts."""
    data, brain = phantom(suffix)
    scan = input_checks.prepare(
        nib.Nifti1Image(data, AFFINE), nib.Nifti1Image(brain.astype(np.uint8), AFFINE), suffix
    )
    assert input_checks.wrong_contrast(scan) is None
    top = np.percentile(data[brain], 99.5)
    # So much is added that the opposite does not look like one of the other contrasts.
    low = {"T1w": 0.25, "T2w": 1.0, "FLAIR": 0.05}[suffix] * top
    opposite = replace(scan, data=np.clip(low + top - scan.data, 0, None))
    assert words in str(input_checks.wrong_contrast(opposite))


def test_localiser():
    data, brain = phantom()
    affine = np.diag([2.0, 2.0, 10.0, 1.0])
    sentences = doubts(data[:, :, 38:43], brain[:, :, 38:43], affine=affine)
    assert "covers only 50 mm in 5 slices in the up-down direction" in sentences[0]


def test_cropped_field_of_view():
    data, brain = phantom()
    sentence = only(doubts(data[:, :, :60], brain[:, :, :60]))
    assert "reaches the upper edge" in sentence


def test_motion_ghosts():
    data, brain = phantom()
    ghost = 0.12 * (np.roll(data, 24, axis=1) + np.roll(data, -24, axis=1))
    sentence = only(doubts(data + ghost, brain))
    assert "beside the head in the front-back direction" in sentence


def test_ghosts_in_deleted_air_are_not_guessed():
    data, brain = phantom()
    assert doubts(np.where(brain, data, 0), brain) == []


def test_contrast_agent_by_sidecar():
    data, brain = phantom()
    sentence = only(doubts(data, brain, metadata={"ContrastBolusIngredient": "GADOLINIUM"}))
    assert "contrast agent (GADOLINIUM)" in sentence
    assert doubts(data, brain, metadata={"ContrastBolusAgent": "none"}) == []


def test_contrast_agent_that_no_sidecar_names():
    data, brain = phantom()
    outline = distance((40, 48, 42), (34, 42, 36))
    across, _, height = np.indices(SHAPE)
    vein = (np.abs(across - 40) < 3) & (outline > 0.8) & (outline < 0.88) & (height > 42)
    bright = np.where(vein, 200, data).astype(np.float32)
    assert "vein along the top of the brain is brighter" in only(doubts(bright, brain))
    assert doubts(bright, brain, "FLAIR") == doubts(data, brain, "FLAIR")


def test_a_vein_that_was_stripped_tells_nothing():
    data, brain = phantom()
    scan = input_checks.prepare(
        nib.Nifti1Image(np.zeros_like(data), AFFINE),
        nib.Nifti1Image(brain.astype(np.uint8), AFFINE),
        "T1w",
    )
    assert input_checks.vein_brightness(scan) is None


def test_air_as_bright_as_tissue():
    data, brain = phantom()
    rng = np.random.default_rng(1)
    head = ndimage.binary_dilation(brain, iterations=6)
    sentences = doubts(np.where(head, data, rng.uniform(0, 160, SHAPE)), brain, "UNIT1")
    assert any("air is about as bright as the brain" in words for words in sentences)


def test_template_grid():
    data, brain = phantom()
    template = np.zeros((91, 109, 91), np.float32)
    inside = np.zeros(template.shape, bool)
    template[5:85, 6:102, 5:85], inside[5:85, 6:102, 5:85] = data, brain
    assert "grid is that of a standard template" in only(doubts(template, inside))


def test_image_without_noise_and_image_of_noise():
    clean, brain = phantom(noise=0.2)
    sentence = only(doubts(clean, brain, measured=True))
    assert "hardly any noise" in sentence
    noisy, _ = phantom(noise=40.0)
    assert any("very noisy" in words for words in doubts(noisy, brain, measured=True))


def test_derived_image_and_label_map():
    data, brain = phantom()
    kinds = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    assert "calls the image MPR" in only(doubts(data, brain, metadata=kinds))
    scan = input_checks.prepare(
        nib.Nifti1Image((data > 60).astype(np.float32), AFFINE),
        nib.Nifti1Image(brain.astype(np.uint8), AFFINE),
        "T1w",
    )
    assert "label map" in str(input_checks.derived(scan))


def test_interpolated_input_is_told_with_its_detail():
    data, brain = phantom()
    fine = ndimage.zoom(data, (1, 1, 2), order=3, mode="nearest", grid_mode=True)
    mask = brain.repeat(2, axis=2)
    affine = np.diag([2.0, 2.0, 1.0, 1.0])
    sentence = only(doubts(fine, mask, affine=affine, measured=True))
    assert "instead of 1 mm along the third axis" in sentence


def test_a_phantom_of_uniform_parts():
    data, brain = phantom()
    mask = nib.Nifti1Image(brain.astype(np.uint8), AFFINE)
    sentence = only(find_doubts(nib.Nifti1Image(data, AFFINE), mask, "T1w"))
    assert sentence.startswith(DRAWN)
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=SHAPE), 1.5)
    real = (data + np.where(brain, 15 * texture / texture.std(), 0)).astype(np.float32)
    assert find_doubts(nib.Nifti1Image(real, AFFINE), mask, "T1w") == []


def test_large_cavity():
    data, brain = phantom()
    data[distance((53, 52, 46), (11, 11, 10)) < 1] = 20
    sentence = only(doubts(data, brain))
    assert "large space of fluid" in sentence
    volume = float(sentence.split("(")[1].split(" ml")[0])
    assert volume == pytest.approx(4 / 3 * np.pi * 22 * 22 * 20 / 1000, rel=0.25)


def test_every_check_has_been_triggered_here():
    # The last one is triggered in test_familiarity.py, that on maps in test_field_images.py.
    assert len(input_checks.CHECKS) == 14, "a new check needs a test that triggers it"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "contrast_agent"),
    [("t1w/vs_gk_T1w_gd.nii.gz", True), ("t1w/skyra_child_T1w.nii.gz", False)],
)
def test_contrast_agent_in_real_heads(shared_data: Path, name: str, contrast_agent: bool) -> None:
    image = conform(shared_data / name)[0]
    scan = input_checks.prepare(image, brain_mask(image)[0], "T1w")
    assert (input_checks.contrast_agent(scan) is not None) == contrast_agent
    assert input_checks.wrong_contrast(scan) is None
    assert input_checks.phantom(scan) is None


def test_a_cut_is_measured_on_the_face_that_it_lies_in():
    """6.4 cm2 of thick slices at the front of the image, and 3.2 cm2 on a face of thin ones."""
    brain = np.zeros((40, 48, 20), np.uint8)
    brain[10:30, 10:40, 5:15] = 1
    affine = np.diag([2.0, 2.0, 8.0, 1.0])

    def said(**faces: tuple[slice, ...]) -> str | None:
        cut = brain.copy()
        for place in faces.values():
            cut[place] = 1
        images = [nib.Nifti1Image(part, affine) for part in (cut.astype(np.float32), cut)]
        return input_checks.cropped(input_checks.prepare(*images, "T1w"))

    assert said() is None
    front = said(front=(slice(15, 23), slice(40, 48), slice(7, 12)))
    assert front is not None and "front edge" in front
    assert said(top=(slice(15, 23), slice(20, 30), slice(15, 20))) is None
