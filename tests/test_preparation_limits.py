# SPDX-License-Identifier: Apache-2.0
"""Decisions of the preparation, on both sides of each limit, on images made for it.

Intensities and masks of real heads are in ``test_field_images.py``. Here everything is known,
so that a limit that moves, a slice counted wrong or axes mixed up change a result.
"""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing import brain_mask as masks
from bids_moediff.preprocessing.earlier_mask import reuse_mask
from bids_moediff.preprocessing.intensities import sound_intensities
from bids_moediff.preprocessing.odd_slices import odd_slice_remarks, odd_slices
from bids_moediff.preprocessing.planes import distance_remarks, empty_planes, some_planes
from bids_moediff.preprocessing.slice_brightness import even_slices
from bids_moediff.preprocessing.stripes import stripe_height, stripe_remarks
from bids_moediff.preprocessing.wrapped import unwrapped


def stack(factors, axis: int = 2, shape: tuple[int, int] = (24, 20)) -> np.ndarray:
    """Slices of one smooth picture, each with its brightness."""
    x, y = np.meshgrid(*(np.linspace(0, 2 * np.pi, n) for n in shape), indexing="ij")
    picture = 100 + 30 * np.sin(x) + 20 * np.cos(y)
    return np.moveaxis(picture * np.reshape(factors, (-1, 1, 1)), 0, axis).astype(np.float32)


def levels(count: int = 20, **places: float) -> list[float]:
    """Brightness of each slice: 1, but for the slices named ``s<number>``."""
    return [places.get(f"s{number}", 1.0) for number in range(count)]


SCALED, KEPT, SINGLE, BANDS = "were scaled to these", None, "from both neighbours", "as a rule"


@pytest.mark.parametrize(
    ("factors", "expected", "said"),
    [
        (levels(s9=1.38), KEPT, ""),
        (levels(s9=1.45), KEPT, SINGLE),
        (levels(s9=1.95), KEPT, SINGLE),
        (levels(s9=2.1), levels(), SCALED),
        (levels(s9=0.48), levels(), SCALED),
        (levels(s9=0.52), KEPT, SINGLE),
        # Beside an abrupt slice, lesser ones count from 1.6 on.
        (levels(s4=3, s12=1.55), levels(s12=1.55), SCALED),
        (levels(s4=3, s12=1.65), levels(), SCALED),
        # The level of most slices is that of all within 1.3.
        (levels(s4=3, s12=1.25), levels(s12=1.25), SCALED),
        # A head becomes dark where it ends, and not bright.
        (levels(s0=0.3, s1=0.3, s2=0.3, s3=0.3), KEPT, ""),
        (levels(s16=0.3, s17=0.3, s18=0.3, s19=0.3), KEPT, ""),
        (levels(s0=3, s1=3, s2=3, s3=3), levels(), SCALED),
        ([0.3] * 5 + [1.0] * 15, levels(), SCALED),
        ([1.0] * 14 + [3.0] * 6, levels(), SCALED),
        ([3.0] * 14 + [1.0] * 6, [3.0] * 20, SCALED),
        # Bands: neighbours differ as a rule.
        ([1, 1.057] * 10, KEPT, ""),
        ([1, 1.067] * 10, KEPT, BANDS),
        ([1, 1.2] * 6 + [1], KEPT, BANDS),
        ([1, 1.2] * 6, KEPT, ""),
        ([1, 2.5] * 10, [1.0] * 20, SCALED),
    ],
)
@pytest.mark.parametrize("axis", [0, 2])
def test_slices_are_scaled_to_the_level_of_most(factors, expected, said, axis):
    """Expected brightness of each slice (KEPT: as given), and the words of the remark."""
    remarks: list[str] = []
    data = stack(factors, axis)
    found, differ = even_slices(data, remarks, "x")
    wanted = data if expected is KEPT else stack(expected, axis)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert (len(remarks), differ) == ((1, True) if said else (0, False))
    if not said:
        return
    name = ("first", "second", "third")[axis]
    assert said in remarks[0] and f"along the {name} axis" in remarks[0]
    usual = np.median(factors)
    if said is SINGLE:
        (place,) = np.nonzero(np.array(factors) != 1)[0]
        percent = 100 * (max(factors[place], 1 / factors[place]) - 1)
        assert f"({place + 1}, counted from 1)" in remarks[0]
        assert int(re.findall(r"up to (\d+) %", remarks[0])[0]) == pytest.approx(percent, abs=0.6)
    elif said is BANDS:
        percent = 100 * (factors[1] - 1)
        assert int(re.findall(r"by (\d+) %", remarks[0])[0]) == pytest.approx(percent, abs=0.6)
    elif usual != np.mean(factors) and len(set(factors)) == 2 and factors[:2] != [1, 2.5]:
        odd = [n for n, given in enumerate(factors) if given != factors[10]]
        ratio = f"{factors[odd[0]] / factors[10]:.2g}"
        assert remarks[0].startswith(f"{len(odd)} of 20 slices")
        assert f"({some_planes(np.array(odd))}, counted from 1) are {ratio} times" in remarks[0]


def test_slices_without_a_common_level_are_refused():
    """Of 20 slices 13 have a level of their own."""
    steps = np.cumprod([1.8, 2.2] * 6 + [1.8]).tolist()
    with pytest.raises(ImageError, match=r"x: most of its slices along the third axis"):
        even_slices(stack([1.0] * 5 + steps), [], "x")
    found, _ = even_slices(stack([1.0] * 9 + steps), [], "x")
    assert found.max() < 400, "most slices share a level"


def test_what_was_added_to_a_slice_is_no_factor():
    data = stack(levels())
    data[..., 9] += 200
    remarks: list[str] = []
    found, differ = even_slices(data, remarks)
    assert found is data and differ is False
    assert remarks[0].startswith("slices along the third axis differ in brightness, but not by")


@pytest.mark.parametrize(("count", "scaled"), [(5, False), (6, True)])
def test_a_few_thick_slices_differ_by_themselves(count, scaled):
    found, _ = even_slices(stack([1.0] * (count - 3) + [3.0] + [1.0] * 2), [])
    assert (np.ptp(found.mean(axis=(0, 1))) < 1) == scaled


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_unlike_alike_neighbours_are_named_along_their_axis(axis):
    random = np.random.default_rng(0)
    data = stack(levels(40), axis)
    planes = np.moveaxis(data, axis, 0)
    for places in ([11], [20, 21], [30, 31, 32]):
        planes[places] = random.uniform(0, 150, planes[places].shape)
    assert odd_slices(data, axis).tolist() == [11, 20, 21, 30, 31, 32]
    name = ("first", "second", "third")[axis]
    # Noise through whole slices makes single ones along the other axes odd too.
    (words,) = (words for words in odd_slice_remarks(data) if f"the {name} axis" in words)
    assert words.startswith("6 slices are unlike the neighbours")
    assert "(12, 21, 22, ..., counted from 1)" in words
    planes[33:36] = random.uniform(0, 150, planes[33:36].shape)  # six side by side are too many
    assert odd_slices(data, axis).tolist() == [11, 20, 21]


def test_slices_are_unlike_from_six_hundredths_of_a_correlation_on():
    """The middle slice has its correlation with both, which are the same."""
    for missing, said in ((0.05, False), (0.07, True)):
        data = stack(levels(30)).astype(np.float64)
        picture = data[..., 0] - data[..., 0].mean()
        other = np.random.default_rng(0).standard_normal(picture.shape)
        other -= other.mean() + picture * (other * picture).sum() / (picture**2).sum()
        other *= np.linalg.norm(picture) / np.linalg.norm(other)
        alike = 1 - missing
        data[..., 12] = 100 + alike * picture + np.sqrt(1 - alike**2) * other
        assert odd_slices(data, 2).tolist() == ([12] if said else [])


def rippled(share: float, shape=(40, 36, 32), wave=(9, 7, 0)) -> np.ndarray:
    """A smooth head with the stripes of one point of k-space, ``share`` of its brightness."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    smooth = 100 * np.exp(-3 * sum(axis**2 for axis in axes))
    phase = sum(k * np.arange(n).reshape(np.roll([-1, 1, 1], a)) / n
                for a, (k, n) in enumerate(zip(wave, shape, strict=True)))  # fmt: skip
    bright = np.percentile(smooth, 99)
    return (smooth + share * bright * np.cos(2 * np.pi * phase)).astype(np.float32)


@pytest.mark.parametrize("wave", [(9, 7, 0), (0, -8, 6), (11, 0, 0), (0, 0, 11), (-9, 5, 7)])
def test_the_height_of_stripes_is_that_of_the_wave(wave):
    data = rippled(0.1, wave=wave)
    flat = rippled(0.0)
    height = 0.1 * np.percentile(flat, 99)
    assert stripe_height(data) == pytest.approx(height, rel=0.05)
    assert stripe_height(flat) == 0
    # Where slices are known to differ, stripes along one axis are theirs.
    several = np.count_nonzero(wave) > 1
    assert (stripe_height(data, slices_differ=True) > 0) == several


@pytest.mark.parametrize(
    ("share", "said"), [(0.016, None), (0.025, "2.5 %"), (0.13, "13 %"), (0.18, ImageError)]
)
def test_stripes_are_said_from_two_percent_on_and_refused_from_fifteen(share, said):
    data = rippled(share)
    if said is ImageError:
        with pytest.raises(ImageError, match=r"x has stripes of 1[789] % of its brightness"):
            stripe_remarks(data, "x")
        return
    words = stripe_remarks(data)
    assert len(words) == (said is not None)
    if said:
        percent = float(re.findall(r"stripes of ([\d.]+) %", words[0])[0])
        assert percent == pytest.approx(100 * share, rel=0.15)


@pytest.mark.parametrize(("strong", "refused"), [(2, False), (3, True)])
def test_stripes_of_single_slices_are_refused_from_a_fifth_of_them_on(strong, refused):
    """Of ten slices; one more has weak stripes."""
    clean, weak, loud = (rippled(share, (40, 36, 1), (9, 7, 0)) for share in (0, 0.08, 0.4))
    data = np.concatenate([clean] * (9 - strong) + [weak] + [loud] * strong, axis=2)
    if refused:
        with pytest.raises(ImageError, match=r"x: 4 of 10 slices along the third axis \(7, 8, 9"):
            stripe_remarks(data, "x")
        return
    (words,) = stripe_remarks(data)
    assert words.startswith("3 of 10 slices along the third axis (8, 9, 10, counted from 1)")
    assert int(re.findall(r"up to (\d+) %", words)[0]) == pytest.approx(40, abs=5)


def integers(values: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, list[str]]:
    remarks: list[str] = []
    found = unwrapped((values * slope + intercept).astype(np.float32), slope, intercept, remarks)
    return (found - intercept) / slope, remarks


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, 10), (-2, 10)])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_unsigned_values_stored_as_signed_are_read_as_they_were(bits, slope, intercept):
    period = 2**bits
    top = 0.9 * period
    smooth = np.round(top * np.sin(np.linspace(0, np.pi, 40))[:, None, None] * np.ones((40, 6, 6)))
    stored = np.where(smooth >= period / 2, smooth - period, smooth)
    found, remarks = integers(stored, slope, intercept)
    np.testing.assert_allclose(found, smooth, atol=0.02)
    assert remarks[0].startswith(f"values wrapped at {period // 2 - 1}: {(stored < 0).sum()} vox")
    # What spans less than three quarters of the period was not wrapped.
    narrow = np.clip(stored, -0.36 * period, 0.36 * period).round()
    found, remarks = integers(narrow, slope, intercept)
    np.testing.assert_allclose(found, narrow, atol=0.02)
    assert remarks == []


def test_values_that_were_not_integers_did_not_wrap():
    smooth = np.round(230 * np.sin(np.linspace(0, np.pi, 40))[:, None, None] * np.ones((40, 6, 6)))
    stored = np.where(smooth >= 128, smooth - 256, smooth) + 0.3
    found, remarks = integers(stored, 1, 0)
    np.testing.assert_allclose(found, stored, atol=1e-4)
    assert remarks == []


def test_a_few_bright_voxels_beside_dark_ones_are_a_remark():
    """Pairs enough to be seen, too few for a refusal: at most one in 10,000 voxels."""
    for size, refused in ((100, False), (40, True)):
        data = np.full((size, size, size), 128.0)
        data[0, 0, 0], data[-1, -1, -1] = 0, 255
        data[10:16, 10:16, 10] = np.where(np.indices((6, 6)).sum(0) % 2, 250, 5)
        if refused:
            with pytest.raises(ImageError, match="x: values look wrapped at 255: 56 %"):
                unwrapped(data.astype(np.float32), 1, 0, [], "x")
            continue
        remarks: list[str] = []
        found = unwrapped(data.astype(np.float32), 1, 0, remarks, "x")
        assert np.array_equal(found, data)
        assert "may have turned dark" in remarks[0]


def test_empty_planes_at_an_end_count_from_a_twentieth_on():
    block = np.random.default_rng(0).uniform(50, 100, (12, 12, 60)).astype(np.float32)
    for at_front in (False, True):
        for count, said in ((2, False), (3, True)):
            data = block.copy()
            data[..., : count if at_front else None][..., None if at_front else -count :] = 0
            words = empty_planes(data)
            where = "first" if at_front else "last"
            expected = [f"the {where} {count} of 60 slices are empty"] if said else []
            assert [one[: len(expected[0])] for one in words] == expected


def test_slices_lie_as_far_apart_as_stated_within_a_twentieth():
    image = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.diag([2.0, 2.0, 6.0, 1.0]))
    for stated, said in ((5.65, True), (5.75, False), (6.25, False), (6.35, True)):
        assert bool(distance_remarks(image, {"SpacingBetweenSlices": stated})) == said


def scan(values, zoom: float = 1.0) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(values, np.float32), np.diag([zoom, zoom, zoom, 1.0]))


@pytest.mark.parametrize(
    ("volume", "outcome"),
    [
        (49, "no brain found"), (51, "holds 51 ml, unusual"), (698, "holds 698 ml, unusual"),
        (702, None), (2198, None), (2202, "holds 2202 ml, unusual"), (2990, "holds 2990 ml"),
        (3010, "would have 3010 ml"),
    ],
)  # fmt: skip
def test_the_volume_of_a_brain(monkeypatch, volume, outcome):
    """Voxels of 1 ml; the network finds ``volume`` of them in a row."""
    logits = np.full(4096, -1.0)
    logits[:volume] = 1.0
    logits = logits.reshape(16, 16, 16)
    record = {"model": "m", "sha256": "s", "threshold": 0.0}
    monkeypatch.setattr(masks, "_network_logits", lambda *_: (logits, dict(record)))
    image = scan(np.random.default_rng(0).uniform(10, 20, (16, 16, 16)), 10.0)
    if outcome and ("no brain" in outcome or "would have" in outcome):
        with pytest.raises(ImageError, match=outcome):
            masks.brain_mask(image)
        return
    mask, found = masks.brain_mask(image)
    assert np.array_equal(np.asarray(mask.dataobj), (logits > 0).astype(np.uint8))
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, image.affine)
    warnings = found.pop("warnings")
    wanted = {"model": "m", "sha256": "s", "method": "network", "volume_ml": float(volume)}
    assert found == wanted
    assert len(warnings) == (outcome is not None)
    assert outcome is None or outcome in warnings[0]


@pytest.mark.parametrize(("share", "overlap", "stripped"), [
    (1.0, 1.0, True), (0.92, 1.0, True), (0.88, 1.0, False), (1.0, 0.8, True), (1.0, 0.7, False),
])  # fmt: skip
def test_a_stripped_head_has_air_of_zero_and_the_brain_that_was_found(share, overlap, stripped):
    """``share`` of the outer faces are zero; the network finds ``overlap`` of what is left."""
    random = np.random.default_rng(0)
    data = np.zeros((30, 30, 30), np.float32)
    inside = np.sqrt(((np.indices(data.shape) - 14.5) ** 2).sum(0)) < 11
    data[inside] = random.uniform(80, 120, int(inside.sum()))
    for axis in range(3):
        for end in (0, -1):
            face = np.moveaxis(data, axis, 0)[end]
            face[random.random(face.shape) > share] = 1e-3
    places = np.argwhere(inside)
    found = np.zeros(data.shape, bool)
    found[tuple(places[: int(overlap * len(places))].T)] = True
    left = masks._stripped_brain(data, (2.0, 2.0, 2.0), found)
    assert (left is not None) == stripped
    if left is not None:
        assert (left & inside).sum() > 0.95 * inside.sum() and (left & ~inside).sum() < 100


@pytest.mark.parametrize("slab", ["first", "last", "second axis"])
def test_air_of_noise_over_the_whole_range_turns_dark(slab):
    """In one slab at the border is enough: the head touches the others."""
    data = np.full((30, 30, 30), 500.0, np.float32)
    data[8:22, 8:22, 8:22] = 700
    data[10:14, 10:14, 10:14], data[16:20, 16:20, 16:20] = 0, 1000
    noise = np.random.default_rng(0).uniform(0, 1000, data.shape).astype(np.float32)
    place = {"first": np.s_[:6], "last": np.s_[-6:], "second axis": np.s_[:, :6]}[slab]
    noisy = data.copy()
    noisy[place] = noise[place]
    result = masks.without_noisy_air(noisy)
    middle = {"first": np.s_[1:4], "last": np.s_[-4:-1], "second axis": np.s_[:, 1:4]}[slab]
    assert (result[middle] == noisy.min()).mean() > 0.95
    assert np.array_equal(result[17:21, 17:21, 17:21], noisy[17:21, 17:21, 17:21])
    quiet = data.copy()
    quiet[place] = 500 + 0.4 * (noise[place] - 500)
    assert masks.without_noisy_air(quiet) is quiet


def test_brightness_for_the_network_goes_from_air_to_the_brightest_tissue():
    values = np.concatenate([np.zeros(500), np.linspace(10, 1000, 1000), [1e5]])
    found = masks.normalise(values)
    assert found.min() == 0 and found.max() == 1 and found.dtype == np.float32
    tissue = values[values > 2000 * 0.0 + 0.02 * 1e5]
    assert found[600] == pytest.approx(values[600] / np.percentile(tissue, 99.5))
    plain = np.concatenate([np.full(500, 7.0), np.linspace(107, 1007, 1000)])
    top = np.percentile(plain[500:], 99.5)
    np.testing.assert_allclose(masks.normalise(plain), np.clip((plain - 7) / (top - 7), 0, 1))


def test_a_mask_of_another_pipeline_keeps_its_place(tmp_path: Path):
    """On the same grid voxel by voxel, on another one cut at one half; too small is refused."""
    inside = np.zeros((20, 22, 24), np.uint8)
    inside[5:15, 6:16, 7:17] = 1
    mask = nib.Nifti1Image(inside, np.diag([4.0, 4.0, 4.0, 1.0]))
    nib.save(mask, tmp_path / "m.nii.gz")
    same, record = reuse_mask(tmp_path / "m.nii.gz", scan(np.zeros(inside.shape), 4.0))
    assert np.array_equal(np.asarray(same.dataobj), inside)
    assert record == {
        "method": "derivatives", "file": "m.nii.gz", "volume_ml": 64.0, "warnings": [],
    }  # fmt: skip
    target = nib.Nifti1Image(np.zeros((40, 44, 48), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    target.affine[:3, 3] = -1.0
    finer, record = reuse_mask(tmp_path / "m.nii.gz", target)
    wanted = inside.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    corners = np.argwhere(np.asarray(finer.dataobj) != wanted)
    assert len(corners) == 8, "the mean of the eight around them is less than one half"
    assert "lies on another grid" in record["warnings"][0] and record["volume_ml"] == 63.9
    moved = nib.Nifti1Image(np.zeros(inside.shape, np.float32), mask.affine.copy())
    moved.affine[0, 3] = 4.0 * 9.0
    with pytest.raises(ImageError, match=r"m\.nii\.gz does not cover the image"):
        reuse_mask(tmp_path / "m.nii.gz", nib.Nifti1Image(np.zeros(inside.shape), moved.affine))


def head_of(values: np.ndarray) -> np.ndarray:
    """A smooth ball of tissue in air, 0 to 1000."""
    radius = np.sqrt(((np.indices((24, 24, 24)) - 11.5) ** 2).sum(0))
    ball = 1000 * np.clip(1.2 - radius / 8, 0, 1) ** 0.7 + values
    return ball.astype(np.float32)


@pytest.mark.parametrize(
    ("change", "said", "expected"),
    [
        (lambda data: None, None, None),
        # Hot voxels: more than five times as bright as the rest, or as far below it.
        (lambda data: data.__setitem__((3, 4, 5), 5200), "more than 5 times as bright", "cut"),
        (lambda data: data.__setitem__((3, 4, 5), 4800), None, None),
        (lambda data: data.__setitem__((3, 4, 5), -4300), "more than 5 times as bright", "cut"),
        (lambda data: data.__setitem__((3, 4, 5), -3700), None, None),
        # Padding: one value in many voxels, farther away than the others from one another.
        (lambda data: data.__setitem__(np.s_[:2], -1500), "padding, not signal", "padding"),
        (lambda data: data.__setitem__(np.s_[:2], -700), None, None),
        (lambda data: data.__setitem__(np.s_[:2], 4000), "padding, not signal", "padding"),
        (lambda data: data.__setitem__((slice(0, 2), 0, slice(0, 3)), -2500), None, None),
        # Nothing near zero, or most of it below.
        (lambda data: data.__iadd__(450), None, None),
        (lambda data: data.__iadd__(600), "nearly all are above 6", None),
        (lambda data: data.__isub__(80), None, None),
        (lambda data: data.__isub__(150), "most of the image is negative", "moved"),
        # Cut at the top.
        (lambda data: np.minimum(data, 900, out=data), "it is saturated", None),
    ],
)
def test_values_that_were_not_measured(change, said, expected):
    data = head_of(np.random.default_rng(0).uniform(0, 20, (24, 24, 24)))
    good = data.copy()
    change(data)
    remarks: list[str] = []
    found = sound_intensities(data.copy(), 1.0, 0.0, remarks)
    # A hot voxel makes the slices through it unlike their neighbours.
    remarks = [words for words in remarks if "unlike the neighbours" not in words]
    assert len(remarks) == (said is not None)
    assert said is None or said in remarks[0]
    if expected is None:
        assert np.array_equal(found, data)
    elif expected == "moved":
        assert np.allclose(found, good - good.min(), atol=1e-3)
    else:
        same = data == good
        assert np.array_equal(found[same], good[same])
        edges = np.percentile(data, [0.1, 99.9])
        value = good[same].min() if expected == "padding" else edges[int(data[3, 4, 5] > 0)]
        assert np.allclose(found[~same], value)


def test_what_is_left_of_a_stripped_head_is_its_mask(monkeypatch):
    data = np.zeros((30, 30, 30), np.float32)
    inside = np.sqrt(((np.indices(data.shape) - 14.5) ** 2).sum(0)) < 11
    data[inside] = np.random.default_rng(0).uniform(80, 120, int(inside.sum()))
    logits = np.where(np.sqrt(((np.indices(data.shape) - 14.5) ** 2).sum(0)) < 10.2, 1.0, -1.0)
    record = {"model": "m", "sha256": "s", "threshold": 0.0}
    monkeypatch.setattr(masks, "_network_logits", lambda *_: (logits, dict(record)))
    mask, found = masks.brain_mask(scan(data, 4.0))
    assert found["method"] == "nonzero"
    assert np.asarray(mask.dataobj).sum() > 1.1 * (logits > 0).sum()
    data[~inside] = 1.0
    assert masks.brain_mask(scan(data, 4.0))[1]["method"] == "network"


def test_the_threshold_of_the_network_is_that_of_its_model(monkeypatch):
    logits = np.full((16, 16, 16), -1.0)
    logits[:8] = 0.5
    record = {"model": "m", "sha256": "s", "threshold": 0.6}
    monkeypatch.setattr(masks, "_network_logits", lambda *_: (logits, dict(record)))
    noise = np.random.default_rng(0).uniform(10, 20, logits.shape)
    with pytest.raises(ImageError, match="no brain"):
        masks.brain_mask(scan(noise, 10.0))
    record["threshold"] = 0.4
    assert masks.brain_mask(scan(noise, 10.0))[1]["volume_ml"] == 2048.0


@pytest.mark.parametrize(("share", "kept"), [(0.45, False), (0.55, True)])
def test_a_mask_of_fractions_is_cut_at_one_half(tmp_path: Path, share, kept):
    fractions = np.zeros((20, 20, 20), np.float32)
    fractions[2:10, 2:10, 2:10] = 1.0
    fractions[10:18, 2:10, 2:10] = share
    nib.save(scan(fractions, 5.0), tmp_path / "m.nii.gz")
    mask, _ = reuse_mask(tmp_path / "m.nii.gz", scan(np.zeros((20, 20, 20)), 5.0))
    assert np.asarray(mask.dataobj).sum() == (1024 if kept else 512)


@pytest.mark.parametrize(("lowest", "moved"), [(-85, False), (-115, True)])
def test_images_are_moved_up_if_their_middle_is_a_tenth_below_zero(lowest, moved):
    """Half of the voxels are air, at ``lowest``; the brightest reach 1000 above it."""
    data = np.full((24, 24, 24), float(lowest), np.float32)
    ramp = np.linspace(0, 1000, 24 * 24 * 10).reshape(24, 24, 10)
    data[..., 14:] = lowest + ramp
    remarks: list[str] = []
    found = sound_intensities(data, 1.0, 0.0, remarks)
    assert any("was added to all" in words for words in remarks) == moved
    assert found.min() == pytest.approx(0 if moved else lowest)


@pytest.mark.parametrize(("share", "said"), [(0.35, True), (0.25, False)])
def test_slices_with_little_tissue_are_not_compared(share, said):
    """The slice before the odd one shows a share of the tissue of the others."""
    data = stack(levels(30)).astype(np.float64)
    random = np.random.default_rng(0)
    data[..., 12] = random.uniform(0, 150, data[..., 12].shape)
    rows = round((1 - share) * data.shape[0])
    data[:rows, :, 11] *= 0.01
    data[:rows, :, 13] *= 0.01
    found = odd_slices(data, 2).tolist()
    assert (found == [12]) == said


@pytest.mark.parametrize(("count", "widest"), [(16, 1), (24, 2), (32, 3), (48, 3)])
def test_how_many_slices_side_by_side_are_looked_for(count, widest):
    """Eight slices for each step between the two around."""
    for width in (1, 2, 3):
        data = stack(levels(count)).astype(np.float64)
        random = np.random.default_rng(0)
        data[..., 6 : 6 + width] = random.uniform(0, 150, (*data.shape[:2], width))
        assert len(odd_slices(data, 2)) == (width if width <= widest else 0)


@pytest.mark.parametrize(
    ("masked", "brightness", "said"),
    [(False, 0.18, False), (False, 0.22, True), (True, 0.45, False), (True, 0.55, True)],
)
def test_a_head_is_cut_off_where_its_last_plane_is_as_bright_as_its_middle(
    masked, brightness, said
):
    """Against the median of all planes; of masked images most voxels are one value."""
    random = np.random.default_rng(0)
    data = random.uniform(0.9, 1.1, (12, 12, 40)).astype(np.float32)
    data[:3] += 100  # the tissue of each plane
    if masked:
        data[3:] = 0
    data[:3, :, 33:36] *= brightness
    data[..., 36:] = 0
    assert bool(empty_planes(data)) == said


def test_empty_planes_beside_the_rim_of_a_mask_are_no_loss():
    """A plane of a few voxels beyond the mask; a tenth of the usual number is a part of it."""
    random = np.random.default_rng(0)
    data = np.zeros((20, 30, 20), np.float32)
    data[4:16, 6:24, 4:16] = random.uniform(50, 100, (12, 18, 12))
    for voxels, said in ((10, False), (18, True)):
        some = data.copy()
        some[4:16, 3, 5] = np.where(np.arange(12) < voxels, 50, 0)
        some[4:16, 3, 6] = np.where(np.arange(12) + 12 < voxels, 50, 0)
        words = [one for one in empty_planes(some) if "second axis" in one]
        assert bool(words) == said
        assert not said or "2 of 30 slices" in words[0]
