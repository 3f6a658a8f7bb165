# SPDX-License-Identifier: Apache-2.0
"""Quality warnings on both sides of their limits, on scans that are drawn to lie there."""

from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.quality import input_checks as checks
from bids_moediff.quality.familiarity import FAR, FIGURES
from bids_moediff.quality.input_checks import PreparedScan, doubts_about

SHAPE = (40, 40, 40)


def scan(**changes: Any) -> PreparedScan:
    """A brain of 100 in the middle of dark air, on voxels of 2 mm."""
    radius = np.sqrt(((np.indices(SHAPE) - 19.5) ** 2).sum(0))
    brain = radius < 16
    given = {
        "data": np.where(brain, 100.0, 0.0), "brain": brain, "head": radius < 18,
        "depth": np.clip(2 * (16 - radius), 0, None), "zooms": (2.0, 2.0, 2.0),
        "shape": (160, 160, 160), "full_zooms": (1.0, 1.0, 1.0), "suffix": "T1w", "metadata": {},
        "figures": {},
    }  # fmt: skip
    return PreparedScan(**given | changes)


@pytest.mark.parametrize(
    ("shape", "zooms", "words"),
    [
        ((70, 80, 90), (1.0, 1.0, 1.0), None), ((69, 80, 90), (1.0, 1.0, 1.0), "left-right"),
        ((80, 69, 90), (1.0, 1.0, 1.0), "front-back"), ((80, 80, 10), (1.0, 1.0, 7.0), None),
        ((80, 80, 9), (1.0, 1.0, 8.0), "72 mm in 9 slices in the up-down"),
    ],
)  # fmt: skip
def test_a_slab(shape, zooms, words):
    found = checks.localiser(scan(shape=shape, full_zooms=zooms))
    assert (found is None) if words is None else words in str(found)


@pytest.mark.parametrize(
    ("axis", "end", "voxels", "name"),
    [
        (0, 0, 125, None), (0, 0, 126, "left"), (0, -1, 126, "right"), (1, 0, 126, "back"),
        (1, -1, 126, "front"), (2, -1, 125, None), (2, -1, 126, "upper"), (2, 0, 625, None),
        (2, 0, 626, "lower"),
    ],
)  # fmt: skip
def test_a_cut_brain(axis, end, voxels, name):
    """A voxel has 4 mm2 of a face: 5 cm2 are 125 of them."""
    brain = np.zeros(SHAPE, bool)
    face = np.moveaxis(brain, axis, 0)[end]
    rows = np.zeros(face.size, bool)
    rows[:voxels] = True
    np.moveaxis(brain, axis, 0)[end] = rows.reshape(face.shape)
    found = checks.cropped(scan(brain=brain))
    assert (found is None) if name is None else f"reaches the {name} edge" in str(found)


def contrast(core: float, rim: float, fluid: float, suffix: str) -> str | None:
    """Warning of a brain whose inner part is ``core``, its rim ``rim``, its median 100."""
    made = scan(suffix=suffix)
    data = np.where(made.brain, 100.0, 0.0)
    data[made.depth > 20] = core
    data[(made.depth > 2) & (made.depth < 8)] = rim
    places = np.argwhere((made.depth > 10) & (made.depth < 19))
    data[tuple(places[: int(0.03 * made.brain.sum())].T)] = fluid
    return checks.wrong_contrast(scan(suffix=suffix, data=data))


@pytest.mark.parametrize(
    ("core", "rim", "fluid", "suffix", "words"),
    [
        (114, 100, 150, "T2w", "looks T1-weighted"), (110, 100, 150, "T2w", "fluid is not bright"),
        (114, 100, 205, "T2w", None), (114, 100, 195, "T2w", "looks T1-weighted"),
        (114, 100, 150, "T1w", None), (114, 100, 150, "PDw", None),
        (114, 100, 150, "UNIT1", None),
        (99, 100, 185, "FLAIR", "looks T2-weighted"), (101, 100, 185, "FLAIR", "fluid is bright"),
        (101, 100, 175, "FLAIR", None), (99, 100, 175, "T2w", "fluid is not bright"),
        (94, 100, 155, "T2w", "looks like a FLAIR"), (96, 100, 155, "T2w", "fluid is not bright"),
        (94, 100, 165, "T2w", "fluid is not bright"), (101, 100, 185, "T2w", None),
        (94, 100, 150, "T1w", "looks like a FLAIR"), (94, 100, 150, "FLAIR", None),
    ],
)  # fmt: skip
def test_what_a_contrast_looks_like(core, rim, fluid, suffix, words):
    found = contrast(core, rim, fluid, suffix)
    assert (found is None) if words is None else words in str(found)


def test_too_little_of_a_brain_has_no_contrast():
    made = scan(suffix="T2w")
    few = np.where(made.depth > 20, 0.0, made.depth)
    few.ravel()[np.flatnonzero(made.depth.ravel() > 20)[:99]] = 21
    assert checks.wrong_contrast(scan(suffix="T2w", depth=few)) is None
    few.ravel()[np.flatnonzero(made.depth.ravel() > 20)[:101]] = 21
    assert checks.wrong_contrast(scan(suffix="T2w", depth=few)) is not None


@pytest.mark.parametrize(
    ("check", "figures", "said"),
    [
        (checks.averaged, {"snr_brain": 110.0}, False), (checks.averaged, {}, False),
        (checks.averaged, {"snr_brain": 111.0}, True),
        (checks.very_noisy, {"snr_brain": 5.0}, False),
        (checks.very_noisy, {"snr_brain": 4.9}, True), (checks.very_noisy, {}, False),
        (checks.unusual, {"distance_from_training": FAR - 0.01}, False),
        (checks.unusual, {"distance_from_training": FAR, "furthest_figure": min(FIGURES)}, True),
        (checks.unusual, {}, False),
    ],
)  # fmt: skip
def test_figures_that_are_far_off(check, figures, said):
    assert (check(scan(figures=figures)) is not None) == said


@pytest.mark.parametrize(
    ("shape", "zooms", "said"),
    [
        ((182, 218, 182), (1.0, 1.0, 1.0), True), ((91, 109, 91), (2.0, 2.0, 2.0), True),
        ((193, 229, 193), (1.0, 1.0, 1.0), True), ((197, 233, 189), (1.0, 1.0, 1.0), True),
        ((181, 217, 181), (1.0, 1.0, 1.0), True), ((182, 218, 181), (1.0, 1.0, 1.0), False),
        ((182, 218, 91), (1.0, 1.0, 2.0), False),
    ],
)  # fmt: skip
def test_the_grid_of_a_template(shape, zooms, said):
    assert (checks.averaged(scan(shape=shape, full_zooms=zooms)) is not None) == said


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"ContrastBolusIngredient": "GADO"}, "(GADO)"), ({"ContrastBolusAgent": "x"}, "(x)"),
        ({"ContrastBolusAgent": "NONE"}, None), ({"ContrastBolusAgent": "n/a"}, None),
        ({"ContrastBolusIngredient": "no", "ContrastBolusAgent": "x"}, None), ({}, None),
    ],
)  # fmt: skip
def test_an_agent_of_the_sidecar(metadata, words):
    found = checks.contrast_agent(scan(metadata=metadata, suffix="T2w"))
    assert (found is None) if words is None else words in str(found)


@pytest.mark.parametrize(("brightness", "said"), [(1.05, False), (1.15, True)])
@pytest.mark.parametrize("suffix", ["T1w", "UNIT1", "FLAIR", "PDw"])
def test_a_vein_as_bright_as_white_matter(monkeypatch, brightness, said, suffix):
    monkeypatch.setattr(checks, "vein_brightness", lambda _: brightness)
    found = checks.contrast_agent(scan(suffix=suffix))
    assert (found is not None) == (said and suffix in ("T1w", "UNIT1"))


def test_how_bright_a_vein_is():
    """A strip of 18 mm in the upper half, along the outline; its brightest tenth counts."""
    made = scan()
    across, _, height = np.indices(SHAPE)
    random = np.random.default_rng(0)
    data = np.where(made.brain, 100 + random.uniform(-5, 5, SHAPE), 1.0)
    rim = (made.depth < 5) & (made.head | made.brain)
    for far, high, expected in ((4, True, 1.5), (4, False, 1.0), (12, True, 1.3)):
        where = rim & (np.abs(across - 19.5) < far) & ((height > 19.5) == high)
        bright = np.where(where, 155.0, data)
        found = checks.vein_brightness(scan(data=bright))
        assert found == pytest.approx(expected, abs=0.15), (far, high)
    aside = rim & (np.abs(across - 19.5) > 6)
    assert checks.vein_brightness(scan(data=np.where(aside, 155.0, data))) < 1.1


@pytest.mark.parametrize(("level", "said"), [(34.0, False), (36.0, True)])
@pytest.mark.parametrize("suffix", ["T1w", "UNIT1", "T1map", "T2map"])
def test_bright_air(level, said, suffix):
    """Five of the six faces count: the lowest shows the neck."""
    made = scan(suffix=suffix)
    data = np.where(made.brain, 100.0, level)
    data[..., 0] = 1000 if not said else 0
    found = checks.bright_air(scan(data=data, suffix=suffix))
    assert (found is not None) == (said and suffix not in ("T1map", "T2map"))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("ghost", "said"), [(5.6, True), (4.4, False)])
def test_signal_beside_the_head(axis, ghost, said):
    made = scan()
    shadow = np.broadcast_to(made.head.any(axis=axis, keepdims=True), SHAPE)
    data = np.where(made.brain, 100.0, np.where(shadow, 1.0 + ghost, 1.0))
    found = checks.ghosting(scan(data=data))
    assert (found is not None) == said
    if said:
        name = ("left-right", "front-back", "up-down")[axis]
        assert f"in the {name} direction (6 %" in str(found)
    assert checks.ghosting(scan(data=np.where(made.brain, 100.0, 0.0))) is None, "deleted air"


@pytest.mark.parametrize(("radius", "said"), [(9.4, False), (11.0, True)])
@pytest.mark.parametrize(
    ("suffix", "level"), [("T1w", 45.0), ("T2w", 175.0), ("inplaneT2", 175.0), ("PDT2", 175.0)]
)
def test_a_large_space_of_fluid(radius, said, suffix, level):
    """A ball of 35 ml has a radius of 20.3 mm."""
    away = np.sqrt(((np.indices(SHAPE) - 19.5) ** 2).sum(0))
    made = scan(suffix=suffix)
    data = np.where(away < radius, level, made.data)
    found = checks.cavity(scan(data=data, suffix=suffix))
    assert (found is not None) == said
    weak = np.where(away < radius, 55.0 if level < 100 else 165.0, made.data)
    assert checks.cavity(scan(data=weak, suffix=suffix)) is None
    if said:
        volume = float(str(found).split("(")[1].split(" ml")[0])
        assert volume == pytest.approx(8e-3 * (away < radius).sum(), rel=0.15)


def test_of_several_spaces_of_fluid_the_largest_counts():
    """A small one before it and one behind, on voxels of 3 mm."""
    made = scan()
    data = made.data.copy()
    grid = np.indices(SHAPE)
    for centre, radius in (((11.5, 19.5, 19.5), 3), ((23.5, 19.5, 19.5), 7.2), ((19, 10, 19), 2)):
        away = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)))
        data[away < radius] = 30.0
    found = str(checks.cavity(scan(data=data, zooms=(3.0, 3.0, 3.0))))
    volume = float(found.split("(")[1].split(" ml")[0])
    assert volume == pytest.approx(4 / 3 * np.pi * 2.16**3, rel=0.15)


@pytest.mark.parametrize(("strength", "said"), [(0.10, False), (0.02, True)])
def test_parts_without_structure(strength, said):
    """Noise of a share of the range between a dark core and a bright rim."""
    made = scan()
    noise = np.random.default_rng(0).normal(0, 1, SHAPE)
    halves = np.where(made.depth > 11, 100.0, 200.0)
    data = np.where(made.brain, halves + 100 * strength * noise, 0.0)
    found = checks.phantom(scan(data=data))
    assert (found is not None) == said
    assert checks.phantom(scan(depth=np.minimum(made.depth, 20), data=data)) is None


@pytest.mark.parametrize(("values", "said"), [(29, True), (30, False)])
def test_few_values_are_a_label_map(values, said):
    made = scan()
    data = np.zeros(SHAPE)
    data[made.brain] = np.random.default_rng(0).integers(values, size=int(made.brain.sum()))
    assert (checks.derived(scan(data=data)) is not None) == said


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        (["ORIGINAL", "PRIMARY", "M", "MOSAIC"], None), ("DERIVED\\SECONDARY\\mip", "MIP"),
        (["reformatted"], "REFORMATTED"), (["MPR", "MINIP"], "MINIP"), (7, None), ([7], None),
        (["PROJECTION IMAGE"], "PROJECTION IMAGE"),
    ],
)  # fmt: skip
def test_what_the_sidecar_calls_derived(stated, word):
    made = scan(data=np.random.default_rng(0).random(SHAPE), metadata={"ImageType": stated})
    found = checks.derived(made)
    assert (found is None) if word is None else f"calls the image {word}:" in str(found)


def test_interpolation_is_told_for_the_axes_that_have_it():
    kinds = {"interpolation_x": "native", "interpolation_y": "zero-filled"}
    sizes = {f"spacing_{axis}": 0.5 for axis in "xyz"} | {
        f"acquired_{axis}": 1.0 for axis in "xyz"
    }
    found = str(checks.interpolated(scan(figures=kinds | sizes)))
    assert "second axis" in found and "first" not in found and "third" not in found
    assert checks.interpolated(scan(figures=sizes)) is None
    both = kinds | {"interpolation_z": "interpolated"} | sizes
    assert "third axis" in str(checks.interpolated(scan(figures=both)))


@pytest.mark.parametrize(
    ("suffix", "said"),
    [("T1map", True), ("T2map", True), ("T2star", True), ("PDmap", True), ("T2starw", False)],
)
def test_maps_hold_no_signal(suffix, said):
    assert (checks.quantitative(scan(suffix=suffix)) is not None) == said


def test_warnings_come_in_their_order_and_without_the_mask_where_it_is_no_brain():
    figures = {"snr_brain": 4.0, "distance_from_training": 9.0, "furthest_figure": min(FIGURES)}
    made = scan(
        shape=(60, 160, 160), figures=figures, suffix="T1map", metadata={"ImageType": "MIP"}
    )
    starts = ("The image covers", "The sidecar calls", "A T1map holds")
    found = doubts_about(made)
    assert [words[: len(start)] for words, start in zip(found, starts, strict=False)] == [*starts]
    assert any("very noisy" in words for words in found) and "unlike" in found[-1]
    # 2,200 ml are 275,000 voxels of 8 mm3; here a voxel has 130 mm3.
    large = doubts_about(scan(**{**vars(made), "zooms": (5.0, 5.0, 5.2)}))
    assert [words[: len(start)] for words, start in zip(large, starts, strict=True)] == [*starts]


def test_a_vein_says_nothing_in_an_image_of_another_contrast(monkeypatch):
    monkeypatch.setattr(checks, "vein_brightness", lambda _: 1.5)
    monkeypatch.setattr(checks, "wrong_contrast", lambda _: None)
    assert checks.contrast_agent(scan()) is not None
    monkeypatch.setattr(checks, "wrong_contrast", lambda _: "It looks T2-weighted.")
    assert checks.contrast_agent(scan()) is None


def test_how_a_scan_is_prepared():
    """Axes turned to RAS, means of blocks of about 2 mm, one voxel of each block of the masks."""
    rng = np.random.default_rng(0)
    data = rng.uniform(50, 100, (24, 14, 8)).astype(np.float32)  # x, y, z of RAS
    brain = np.zeros(data.shape, np.uint8)
    brain[5:20, 3:12, 0:6] = 3
    head = np.zeros(data.shape, bool)
    head[2:22, 2:13] = True
    data[0, 0, 0] = np.nan
    affine = np.diag([0.5, 1.0, 2.0, 1.0])

    def as_stored(part: np.ndarray) -> np.ndarray:
        return np.moveaxis(part, 0, 2)[:, :, ::-1]  # y, z, x to the left

    turned = np.zeros((4, 4))
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = -0.5, 1.0, 2.0, 1.0
    image, mask = (nib.Nifti1Image(as_stored(part), turned) for part in (data, brain))
    given = {"metadata": {"a": 1}, "figures": {"b": 2}}
    found = checks.prepare(image, mask, "T2w", **given, head=as_stored(head))
    assert (found.shape, found.full_zooms) == (data.shape, (0.5, 1.0, 2.0))
    assert (found.zooms, found.suffix) == ((2.0, 2.0, 2.0), "T2w")
    assert (found.metadata, found.figures) == ({"a": 1}, {"b": 2})
    blocks = np.nan_to_num(data).reshape(6, 4, 7, 2, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(found.data, blocks, rtol=1e-5)
    np.testing.assert_array_equal(found.brain, brain[2::4, 1::2] > 0)
    np.testing.assert_array_equal(found.head, head[2::4, 1::2])
    # 10 mm, 10 mm and 12 mm long: outside of the image is outside of the brain.
    assert found.depth[:, 3, 3].tolist() == [0, 2, 4, 4, 2, 0]
    assert found.depth[2, 3].tolist() == [2, 4, 4, 4, 4, 2, 0, 0]
    assert found.middle == np.median(blocks[found.brain])
    plain = checks.prepare(nib.Nifti1Image(data, affine), nib.Nifti1Image(brain, affine), "T2w")
    np.testing.assert_array_equal(plain.brain, found.brain)
    np.testing.assert_allclose(plain.data, found.data, rtol=1e-5)
    assert (plain.metadata, plain.figures) == ({}, {})
    assert (plain.head | found.brain == plain.head).all()
    none = checks.prepare(nib.Nifti1Image(data, affine), nib.Nifti1Image(0 * brain, affine), "T2w")
    assert none.middle == checks.TINY
