# SPDX-License-Identifier: Apache-2.0
"""Image contents that users reported: hot voxels, wrapped numbers, noisy air, turned headers."""

import gzip
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import check_header, conform
from bids_moediff.preprocessing.head_pose import hesitation, turned, turned_head
from bids_moediff.preprocessing.measured_voxels import slice_axis_remark
from bids_moediff.preprocessing.wrapped import unwrapped
from bids_moediff.quality import input_checks
from bids_moediff.quality.input_checks import doubts_about, prepare
from bids_moediff.settings import Settings
from bids_moediff.workflows.preparation import init_image_preparation_wf
from generated import head

DEMO = Path(__file__).parents[1] / "bids_moediff" / "data" / "demo"


@pytest.fixture(scope="module")
def real() -> nib.Nifti1Image:
    """The demo head at 4 mm."""
    image = nib.as_closest_canonical(conform(DEMO / "sub-01/anat/sub-01_T1w.nii.gz")[0])
    data, zooms = np.asarray(image.dataobj), nib.affines.voxel_sizes(image.affine)
    steps = [max(1, round(4 / zoom)) for zoom in zooms]
    sizes = [size // step * step for size, step in zip(data.shape, steps, strict=True)]
    split = [part for n, k in zip(sizes, steps, strict=True) for part in (n // k, k)]
    data = data[: sizes[0], : sizes[1], : sizes[2]].reshape(split).mean((1, 3, 5))
    affine = image.affine @ np.diag([*steps, 1.0])
    affine[:3, 3] = image.affine[:3] @ [*((np.array(steps) - 1) / 2), 1]
    return nib.Nifti1Image(data.astype(np.float32), affine)


@pytest.fixture(scope="module")
def volume(real) -> float:
    """Brain volume of the head as it is."""
    return float(brain_mask(real)[1]["volume_ml"])


def written(path: Path, data, like: nib.Nifti1Image, dtype=np.int16) -> Path:
    nib.save(nib.Nifti1Image(np.asarray(data).astype(dtype), like.affine), path)
    return path


def values(image) -> np.ndarray:
    return np.asarray(image.dataobj, dtype=np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_hot_voxels_change_neither_mask_nor_the_other_voxels(tmp_path, real, volume, sign):
    data = values(real).round()
    hot = data.copy()
    hot[5:7, 5:7, 5:7] = 32767 * sign
    image, remarks = conform(written(tmp_path / "a.nii.gz", hot, real))
    assert "8 voxels are more than 5 times as bright" in remarks[0]
    assert len(remarks) == 1
    others = hot == data
    assert np.array_equal(values(image)[others], data[others])
    assert np.ptp(values(image)[~others]) == 0
    assert abs(brain_mask(image)[1]["volume_ml"] / volume - 1) < 0.02


@pytest.mark.parametrize("value", [-2000, -32768, 4095, 32767])
def test_padding_is_no_signal(tmp_path, real, volume, value):
    """A block, salt, or all that lies outside a circle holds one value that nobody measured."""
    data = values(real).round()
    block = np.zeros(data.shape, bool)
    block[10:22, 10:22, 10:13] = True
    salt = np.random.default_rng(0).random(data.shape) < 0.01
    x, y = (np.abs(np.linspace(-1, 1, n)) for n in data.shape[:2])
    circle = np.broadcast_to((np.hypot(x[:, None], y) > 0.98)[..., None], data.shape)
    for place in (block, salt, circle):
        path = written(tmp_path / "a.nii.gz", np.where(place, value, data), real)
        image, remarks = conform(path)
        assert [words.split(" voxels hold ")[0] for words in remarks] == [str(place.sum())]
        assert np.array_equal(values(image)[~place], data[~place])
        assert values(image)[place].max() == data.min() == 0
    assert abs(brain_mask(image)[1]["volume_ml"] / volume - 1) < 0.02


def test_masked_maps_are_not_padded(tmp_path, real):
    """Air of 0 beside a narrow range is a mask's."""
    masked = np.where(values(real) > 100, 1000 + 0.2 * values(real), 0).round()
    image, remarks = conform(written(tmp_path / "a.nii.gz", masked, real))
    assert remarks == []
    assert np.array_equal(values(image), masked)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 20.0), (-0.5, 20.0)])
def test_wrapped_integers_are_read_as_what_they_were(tmp_path, real, slope, intercept):
    data = np.clip(values(real) / np.percentile(values(real), 99) * 45000, 0, 65000)
    stored = data.astype(np.uint16).view(np.int16)
    image = nib.Nifti1Image(stored, real.affine)
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(tmp_path / "a.nii.gz")
    conformed, remarks = conform(tmp_path / "a.nii.gz")
    assert np.allclose(values(conformed), np.floor(data) * slope + intercept, rtol=1e-5)
    assert [words[:23] for words in remarks] == ["values wrapped at 32767"]


def put(tmp_path, data, like, dtype=np.float32):
    return conform(written(tmp_path / "a.nii.gz", data, like, dtype))


@pytest.mark.parametrize("limit", [256, 4096, 65536])
def test_values_that_began_again_at_zero_are_refused(tmp_path, real, limit):
    """Tissue beyond the largest integer of its type turned dark; up to it, all is well."""
    bright = np.clip(values(real) / np.percentile(values(real), 99.5), 0, None)
    kind = np.uint8 if limit == 256 else np.uint16
    with pytest.raises(ImageError, match=f"values look wrapped at {limit - 1}: "):
        put(tmp_path, np.round(bright * 1.2 * limit) % limit, real, kind)
    for most in (bright / bright.max(), np.minimum(bright, 1)):
        remarks = put(tmp_path, np.round(most * (limit - 1)), real, kind)[1]
        assert not any("wrapped" in words for words in remarks)


def test_bright_beside_dark_as_often_as_beside_the_middle_is_wrapped():
    """Of noise a quarter as many of the neighbours would be so dark as of the middle."""
    data = np.tile(np.array([250.0, 5, 250, 128])[:, None, None], (6, 20, 20))
    data[0, 0, 0], data[1, 0, 0] = 255, 0
    with pytest.raises(ImageError, match="values look wrapped at 255: "):
        unwrapped(data.astype(np.float32), 1.0, 0.0, [])
    often = np.tile(np.array([250.0, 5] + [250, 128] * 4)[:, None, None], (6, 20, 20))
    often[0, 0, 0], often[1, 0, 0] = 255, 0
    remarks: list[str] = []
    assert unwrapped(often.astype(np.float32), 1.0, 0.0, remarks) is not None and not remarks


def test_signed_values_of_fewer_bits_are_read_as_unsigned(tmp_path, real):
    data = np.round(np.clip(values(real) / np.percentile(values(real), 99) * 2800, 0, 4095))
    image, remarks = put(tmp_path, np.where(data > 2047, data - 4096, data), real, np.int16)
    assert np.array_equal(values(image), data)
    assert remarks[0].startswith("values wrapped at 2047")


SLICES = {"one": [24], "three": [20, 24, 28], "slab": [22, 23, 24, 25], "first": [0, 1]}


@pytest.mark.parametrize("where", SLICES)
@pytest.mark.parametrize("factor", [20.0, 3.0, 0.05])
def test_slices_far_brighter_than_their_neighbours_are_scaled_to_them(
    tmp_path, real, where, factor
):
    if factor < 1 and where == "first":
        pytest.skip("a head becomes dark where it ends")
    for axis in (2, 1):
        planes = np.moveaxis(values(real)[:, :, 8:], axis, 0).copy()
        good = planes.copy()
        places = [place + (8 if axis == 1 and where == "first" else 0) for place in SLICES[where]]
        planes[places] *= factor
        image, remarks = put(tmp_path, np.moveaxis(planes, 0, axis), real)
        name = ("first", "second", "third")[axis]
        assert remarks[0].startswith(
            f"{len(places)} of {len(planes)} slices along the {name} axis"
        )
        error = np.moveaxis(values(image), axis, 0) - good
        tissue = good > np.percentile(good, 70)
        assert np.sqrt(np.mean(error[tissue] ** 2)) < 0.03 * good[tissue].mean()


@pytest.mark.parametrize("shape", [(44, 52, 40), (28, 32, 26), (44, 52, 12)])
def test_heads_that_end_within_a_few_slices_are_left_alone(tmp_path, shape):
    zooms = [158 / shape[0], 187 / shape[1], 168 / shape[2]]
    image = head(shape, tuple(zooms))
    assert put(tmp_path, values(image), image)[1] == []


def test_a_bright_slice_does_not_change_the_mask(tmp_path, real, volume):
    data = values(real).copy()
    data[:, :, data.shape[2] // 2] *= 20
    assert abs(brain_mask(put(tmp_path, data, real)[0])[1]["volume_ml"] / volume - 1) < 0.02


@pytest.mark.parametrize(("factor", "kept"), [(0.9, True), (0.7, True), (0.4, False)])
def test_interleaved_slices_of_other_brightness_are_said(tmp_path, real, factor, kept):
    data = values(real).copy()
    data[:, :, ::2] *= factor
    image, remarks = put(tmp_path, data, real)
    assert np.array_equal(values(image), data) == kept
    words = (
        "interleaved slices, which the result keeps"
        if kept
        else "scaled to these, with their noise"
    )
    assert len(remarks) == 1
    assert remarks[0].endswith(words)
    if kept:
        percent = int(re.findall(r"by (\d+) %", remarks[0])[0])
        assert percent == pytest.approx(100 * (1 / factor - 1), rel=0.1)


def striped(data, amplitude, place):
    """Add the stripes of a spike in k-space; the image stays a magnitude."""
    phase = sum(
        k * np.arange(n).reshape(np.roll([-1, 1, 1], axis)) / n
        for axis, (k, n) in enumerate(zip(place, data.shape, strict=True))
    )
    return np.abs(data + amplitude * np.percentile(data, 99) * np.cos(2 * np.pi * phase))


@pytest.mark.parametrize("place", [(11, 14, 0), (9, -12, 7), (0, 13, -9)])
def test_stripes_are_said_and_strong_ones_refused(tmp_path, real, place):
    remarks = put(tmp_path, striped(values(real), 0.08, place), real)[1]
    assert len(remarks) == 1
    assert "a spike in k-space" in remarks[0]
    with pytest.raises(ImageError, match="a spike in k-space"):
        put(tmp_path, striped(values(real), 0.5, place), real)


def test_a_spike_along_the_slices_is_not_taken_for_dark_slices(tmp_path, real):
    """It adds to each slice: no factor makes these slices like their neighbours."""
    for name, place in {"second": (0, 12, 0), "third": (0, 0, 12)}.items():
        with pytest.raises(ImageError, match="a spike in k-space"):
            put(tmp_path, striped(values(real), 0.4, place), real)
        data = values(real).copy()
        planes = np.moveaxis(data, 1 if name == "second" else 2, 0)
        planes[20:24] += 1.5 * np.percentile(data, 99)
        image, remarks = put(tmp_path, data, real)
        assert np.array_equal(values(image), data)
        assert remarks[0].startswith(f"slices along the {name} axis differ in brightness, but not")


def test_stripes_in_single_slices_are_said_with_their_numbers(tmp_path, real):
    thick = values(real)[:, :, ::4].copy()
    thick[:, :, 6:7] = striped(thick[:, :, 6:7], 0.5, (11, 13, 0))
    remarks = put(tmp_path, thick, real)[1]
    assert remarks[0].startswith(f"1 of {thick.shape[2]} slices along the third axis (7, counted")


def test_a_glaring_end_of_little_tissue_is_scaled(tmp_path, real):
    data = values(real)[:, :, 12:].copy()
    few = np.indices(data.shape[:2]).sum(axis=0) > 0.75 * sum(data.shape[:2])
    data[few, 0] = 0.02 * data[..., 0][few]
    good = data.copy()
    data[..., 0] *= 20
    image, remarks = put(tmp_path, data, real)
    assert remarks[0].startswith(f"1 of {data.shape[2]} slices along the third axis (1, counted")
    assert np.allclose(values(image)[..., 1:], good[..., 1:])
    assert values(image)[..., 0].max() < 1.5 * good.max()


def noisy(planes, places):
    planes[places] = np.random.default_rng(0).uniform(0, planes.max(), planes[places].shape)


def zipper(planes, places):
    top = np.percentile(planes, 99)
    planes[places] += np.random.default_rng(0).choice([0, top], planes[places].shape)


def moved(planes, places):
    planes[places] = np.roll(planes[places], 4, axis=1)


@pytest.mark.parametrize(
    ("fault", "places"),
    [(noisy, [21]), (noisy, [20, 21, 22]), (zipper, [21]), (zipper, [20, 21, 22]), (moved, [21])],
)
def test_slices_unlike_their_neighbours_are_said_with_their_numbers(tmp_path, real, fault, places):
    for axis, name in ((1, "second"), (2, "third")):
        data = values(real).copy()
        fault(np.moveaxis(data, axis, 0), places)
        remarks = put(tmp_path, data, real)[1]
        numbers = ", ".join(str(place + 1) for place in places)
        assert f"unlike the neighbours along the {name} axis" in remarks[-1]
        assert f"({numbers}, counted from 1)" in remarks[-1]


def test_a_constant_that_was_added_is_said(tmp_path, real):
    for added, number in ((32768, "32768"), (500, "500")):
        image, remarks = put(tmp_path, values(real).round() + added, real)
        assert len(remarks) == 1
        assert f"nearly all are above {number}" in remarks[0]
        assert np.array_equal(values(image), values(real).round() + added)


def test_signed_scans_and_ordinary_ones_are_left_alone(tmp_path, real):
    data = values(real)
    signed = 30000 * np.sin(data / data.max() * 3) + np.random.default_rng(0).normal(
        0, 500, data.shape
    )
    for content in (signed, data):
        image, remarks = conform(written(tmp_path / "a.nii.gz", content, real))
        assert remarks == []
        assert np.array_equal(values(image), content.astype(np.int16))


def test_scans_below_zero_are_moved_up_and_saturated_ones_noticed(tmp_path, real):
    data = values(real).round()
    image, remarks = conform(written(tmp_path / "a.nii.gz", data - 3000, real))
    assert np.array_equal(values(image), data - data.min())
    assert "most of the image is negative" in remarks[0]
    top = np.percentile(data, 95)
    remarks = conform(written(tmp_path / "b.nii.gz", np.minimum(data, top), real))[1]
    assert "it is saturated" in remarks[0]
    mask = written(tmp_path / "c.nii.gz", data > 100, real, np.uint8)
    assert conform(mask)[1] == conform(mask, scan=False)[1] == []


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e6])
def test_the_unit_of_intensity_does_not_matter(real, volume, scale):
    scaled = nib.Nifti1Image(values(real) * np.float32(scale), real.affine)
    mask, record = brain_mask(scaled)
    assert record["volume_ml"] == pytest.approx(volume, rel=1e-3)
    first = doubts_about(prepare(real, mask, "T1w"))
    assert doubts_about(prepare(scaled, mask, "T1w")) == first


def test_a_check_sum_that_is_wrong_is_noticed(tmp_path, real):
    path = written(tmp_path / "a.nii.gz", values(real), real)
    good = gzip.decompress(path.read_bytes())
    bad = bytearray(good)
    bad[20_000:24_000] = bad[60_000:64_000]
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(bytes(bad)) + packer.flush()
    end = struct.pack("<II", zlib.crc32(good), len(good))
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + body + end)
    with pytest.raises(ImageError, match=r"damaged \(check sum\)"):
        conform(path)
    path.write_bytes(gzip.compress(good) + gzip.compress(b""))  # written in parts
    assert conform(path)[0].shape == real.shape


def test_noise_in_the_air_of_ratio_images_is_no_brain(tmp_path, real, volume):
    data = values(real) / values(real).max() * 3000
    air = values(real) < 0.06 * np.percentile(values(real), 99)
    noisy = np.where(air, np.random.default_rng(1).uniform(0, 4095, data.shape), data)
    image, remarks = put(tmp_path, noisy.round(), real, np.int16)
    assert remarks == []
    assert abs(brain_mask(image)[1]["volume_ml"] / volume - 1) < 0.05


def test_what_rests_on_a_mask_larger_than_any_brain_is_not_said(real):
    everything = nib.Nifti1Image(np.ones(real.shape, np.uint8), real.affine)
    scan = prepare(real, everything, "T1w", figures={"snr_brain": 1.0})
    assert input_checks.very_noisy(scan) and input_checks.cropped(scan)
    assert doubts_about(scan) == []


def test_half_a_head_is_not_called_turned(real):
    data = values(real).copy()
    data[..., -(data.shape[2] * 2 // 5) :] = 0
    words = brain_mask(nib.Nifti1Image(data, real.affine))[1]["warnings"]
    assert not any("does not lie as the header says" in sentence for sentence in words)


TURNS = [((0, 1, 2), (-1, -1, 1)), ((0, 1, 2), (1, -1, -1)), ((0, 2, 1), (1, -1, 1))]


def test_headers_that_turn_the_head_are_noticed(real):
    assert brain_mask(real)[1]["warnings"] == []
    data = values(real)
    for turn in TURNS[1:]:
        zooms = nib.affines.voxel_sizes(real.affine)[list(turn[0])]
        other = nib.Nifti1Image(turned(data, turn), np.diag([*zooms, 1.0]))
        assert "does not lie as the header says" in brain_mask(other)[1]["warnings"][0]


def test_the_surest_of_all_turns_is_named():
    """A network that is sure of one corner alone finds it wherever it was turned to."""
    shape = (20, 24, 20)
    upright = np.zeros(shape, np.float32)
    upright[4:16, 2:22, 4:16] = 1
    upright[5, 20, 5] = 2

    def network(volume):
        sure = 8.0 if volume.shape == shape and volume[5, 20, 5] == 2 else 0.3
        return np.where(volume > 0, sure, -sure)

    for turn in TURNS:
        back = np.argsort(turn[0])
        signs = tuple(int(np.array(turn[1])[k]) for k in back)
        other = turned(upright, (tuple(int(k) for k in back), signs))
        words = turned_head(other, network(other), network, 8.0)
        assert words is not None
        assert "crown up" in words if turn is TURNS[0] else "crown up" not in words
    assert turned_head(upright, network(upright), network, 8.0) is None
    assert hesitation(np.zeros(4) - 1, 0.0) == np.inf


@pytest.mark.parametrize("suffix", ["T1w", "PDmap", "T1map", "T2map", "T2star", "UNIT1"])
def test_maps_and_ratios_get_no_bias_field_and_maps_a_warning(tmp_path, suffix):
    from bids_moediff.bids.image import AnatomicalImage

    source = AnatomicalImage(
        tmp_path, f"sub-01/anat/sub-01_{suffix}.nii", {"sub": "01"}, suffix, {}
    )
    settings = replace(Settings(), output_dir=tmp_path).for_image((1, 1, 1))
    workflow = init_image_preparation_wf(settings=settings, source=source, gigabytes=0.1)
    assert workflow.get_node("bias_field").inputs.skip == (suffix != "T1w")
    image = head()
    mask = nib.Nifti1Image((values(image) > 100).astype(np.uint8), image.affine)
    said = input_checks.quantitative(prepare(image, mask, suffix))
    assert bool(said) == (suffix not in ("T1w", "UNIT1"))


def test_shading_of_coils_is_no_other_contrast(real):
    mask = brain_mask(real)[0]
    places = np.argwhere(np.asarray(mask.dataobj))
    grid = np.indices(real.shape) - places.mean(0)[:, None, None, None]
    zooms = nib.affines.voxel_sizes(real.affine)
    far = np.sqrt(sum((part * zoom) ** 2 for part, zoom in zip(grid, zooms, strict=True)))
    shaded = nib.Nifti1Image((values(real) * (1 + 5 * (far / 80) ** 2)).astype("f4"), real.affine)
    assert input_checks.wrong_contrast(prepare(shaded, mask, "T1w")) is None


@pytest.mark.parametrize(
    ("stated", "kind", "said"),
    [
        ("j", "2D", True),
        ("j-", "2D", True),
        ("k", "2D", False),
        ("j", "3D", False),
        (3, "2D", False),
    ],
)
def test_slices_along_another_axis_than_the_coarsest(stated, kind, said):
    metadata = {"SliceEncodingDirection": stated, "MRAcquisitionType": kind}
    assert bool(slice_axis_remark(metadata, (1.0, 2.0, 5.0))) == said
    assert slice_axis_remark(metadata, (1.0, 1.0, 1.0)) is None


def changed(path: Path, like: nib.Nifti1Image, *edits: tuple) -> Path:
    """A file in which fields of the header (offset, layout, values) hold something else."""
    image = nib.Nifti1Image(values(like).astype(np.int16), like.affine)
    image.set_qform(like.affine, 1)
    image.set_sform(like.affine, 1)
    content = bytearray(image.to_bytes())
    for offset, layout, *numbers in edits:
        struct.pack_into(f"<{layout}", content, offset, *numbers)
    path.write_bytes(content)
    return path


VOXELS, UNITS, SLOPE, FORMS, SFORM = 108, 123, 112, 252, 280
FAR = (5.2, 0, 0, 1e30, 0, 5.2, 0, 0, 0, 0, 6.0, 0)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ((VOXELS, "f", 0.0), "voxels begin at byte 0, within the header"),
        ((VOXELS, "f", -8.0), "not a readable NIfTI image"),
        ((SLOPE, "2f", 1e30, 0.0), "store it in a unit"),
        ((SLOPE, "2f", 1e-30, 0.0), "store it in a unit"),
        ((70, "h", 9999), "data code 9999"),
        ((SLOPE, "2f", 1.0, np.nan), "invalid intercept"),
    ],
)
def test_headers_that_cannot_be_meant_are_refused_by_their_name(tmp_path, real, edit, sentence):
    with pytest.raises(ImageError, match=sentence) as caught:
        conform(changed(tmp_path / "a.nii", real, edit))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("slope", [np.nan, np.inf])
def test_a_slope_that_is_no_number_is_told(tmp_path, real, slope):
    image, remarks = conform(changed(tmp_path / "a.nii", real, (SLOPE, "2f", slope, 0.0)))
    assert np.array_equal(values(image), values(real).astype(np.int16))
    assert remarks[0].startswith(f"scl_slope of the header is {slope:g}; the stored values")
    assert conform(changed(tmp_path / "b.nii", real, (SLOPE, "2f", 0.0, 0.0)))[1] == []


@pytest.mark.parametrize("edit", [(SFORM, "12f", *FAR), (SFORM, "12f", *FAR[:3], -2e4, *FAR[4:])])
def test_an_image_far_from_the_scanner_is_centred(tmp_path, real, edit):
    image, remarks = conform(changed(tmp_path / "a.nii", real, edit))
    assert any("m away from the scanner; it was centred" in words for words in remarks)
    centre = (np.array(image.shape) - 1) / 2
    assert np.allclose(nib.affines.apply_affine(image.affine, centre), 0, atol=1e-3)


@pytest.mark.parametrize("unit", [1, 3])
def test_a_unit_that_no_head_has_is_not_believed(tmp_path, real, unit):
    path = changed(tmp_path / "a.nii", real, (UNITS, "B", unit))
    image, remarks = conform(path)
    assert np.allclose(nib.affines.voxel_sizes(image.affine), nib.affines.voxel_sizes(real.affine))
    assert any("were read as mm" in words for words in remarks)
    assert check_header(path)[1] == pytest.approx(nib.affines.voxel_sizes(real.affine), rel=1e-5)


def test_values_beyond_single_precision_and_below_zero(tmp_path, real):
    huge = written(tmp_path / "a.nii.gz", values(real).astype(float) * 1e300, real, float)
    with pytest.raises(ImageError, match="store it in a unit"):
        conform(huge)
    image, remarks = conform(written(tmp_path / "b.nii.gz", -values(real), real))
    assert values(image).min() == 0
    assert "was added to all values" in remarks[0]


@pytest.mark.parametrize(
    ("behind", "sentence"), [(b"junk", "other bytes stand behind"), (None, "cut short")]
)
def test_what_stands_behind_a_packed_image(tmp_path, real, behind, sentence):
    path = written(tmp_path / "a.nii.gz", values(real), real)
    content = path.read_bytes()
    path.write_bytes(content[:-5] if behind is None else content + behind)
    for read in (conform, check_header):
        with pytest.raises(ImageError, match=sentence):
            read(path)
