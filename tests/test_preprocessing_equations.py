# SPDX-License-Identifier: Apache-2.0
"""Parts of the preparation against closed forms and loops, on uneven grids."""

from dataclasses import replace
from itertools import permutations, product
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Axis, axis_matrix
from bids_moediff.imaging.spectrum import AxisResolution
from bids_moediff.preprocessing import bias_field as bias
from bids_moediff.preprocessing import measured_voxels, odd_slices, unwarp, wrapped
from bids_moediff.preprocessing import slice_brightness as brightness
from bids_moediff.preprocessing.bias_field import FADE, _enlarge, _extend, bias_field, divide
from bids_moediff.preprocessing.head_pose import _candidates, hesitation, turned, turned_head
from bids_moediff.preprocessing.intensities import (
    _few_values,
    _from_zero,
    _without_extremes,
    _without_padding,
)
from bids_moediff.preprocessing.measured_voxels import (
    Declared,
    Measured,
    declared_acquisition,
    estimated_acquisition,
    find_measured,
    measured_zooms,
    slice_axis_remark,
    thickness_remark,
    to_voxels,
    whole_voxels,
)
from bids_moediff.preprocessing.planes import distance_remarks
from bids_moediff.preprocessing.stripes import _at, _centred, stripe_height

# Orientation of the head


def test_hesitation_is_the_entropy_over_the_mask() -> None:
    """In nats a voxel of the mask, of all voxels; the threshold decides what is mask."""
    logits = np.random.default_rng(0).normal(0, 4, (5, 6, 7))
    logits[0, 0, :2] = 80, -80
    share = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    rest = 1 / (1 + np.exp(np.clip(logits, -30, 30)))
    entropy = -(share * np.log(share) + rest * np.log(rest)).sum()
    for threshold in (0.0, 1.5):
        wanted = entropy / (logits > threshold).sum()
        assert hesitation(logits, threshold) == pytest.approx(wanted)
    assert hesitation(np.array([0.0, 1.0]), 1.0) == np.inf


def test_a_turn_names_the_old_axis_and_direction_of_each_new_one() -> None:
    volume = np.random.default_rng(0).random((3, 4, 5))
    for axes in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            found = turned(volume, (axes, signs))
            for place in np.ndindex(found.shape):
                old = [0, 0, 0]
                for new, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
                    old[axis] = place[new] if sign > 0 else volume.shape[axis] - 1 - place[new]
                assert found[place] == volume[tuple(old)]
            assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("sizes", "own", "count"),
    [((7, 9, 8), 0.13, 0), ((7, 9, 8), 0.14, 3), ((9, 7, 8), 0.01, 23), ((7, 20, 8), 0.01, 23),
     ((7, 19, 8), 0.01, 0), ((9, 9, 8), 0.01, 0)],
)  # fmt: skip
def test_which_turns_are_tried(sizes: tuple[int, int, int], own: float, count: int) -> None:
    """All rotations unless the brain is longest from back to front, and below 200 mm."""
    mask = np.zeros((24, 24, 24), bool)
    mask[2 : 2 + sizes[0], 2 : 2 + sizes[1], 2 : 2 + sizes[2]] = True
    mask[-1, -1, -1] = True  # a stray voxel
    found = list(_candidates(mask, 10.0, own))
    assert len(set(found)) == len(found) == count
    for axes, signs in found:
        matrix = np.zeros((3, 3))
        matrix[range(3), axes] = signs
        assert np.linalg.det(matrix) > 0.5 and not np.array_equal(matrix, np.eye(3))
        assert count == 23 or axes == (0, 1, 2)


def test_without_a_brain_half_turns_are_tried() -> None:
    assert len(list(_candidates(np.zeros((5, 6, 7), bool), 3.0, np.inf))) == 3


@pytest.mark.parametrize(("share", "named"), [(0.94, True), (0.96, False)])
def test_a_turn_is_named_where_the_network_is_clearly_surer(share: float, named: bool) -> None:
    """Undecided voxels of the air make the hesitation; the surest of all turns decides."""
    head = np.zeros((12, 12, 12), np.float32)
    head[1:10, 1:8, 1:9] = 1  # longest from left to right
    head[1, 7, 1] = 2
    best = ((2, 0, 1), (-1, 1, -1))
    asked = []

    def output(given: np.ndarray, undecided: int) -> np.ndarray:
        made = np.where(given > 0, 30.0, -30.0).ravel()
        made[np.flatnonzero(given == 0)[:undecided]] = 0.5
        return made.reshape(given.shape)

    def network(given: np.ndarray) -> np.ndarray:
        asked.append(given)
        is_best = np.array_equal(given, turned(head, best))
        return output(given, round(100 * share) if is_best else 97)

    words = turned_head(head, output(head, 100), network, 3.0, threshold=1.0)
    assert len(asked) == 23 and (words is not None) == named
    if words is not None:  # the new front is the old right, the new up the old back
        assert "face points right" in words and "crown back" in words
    asked.clear()
    assert turned_head(head.swapaxes(0, 1), output(head, 1).swapaxes(0, 1), network, 3.0) is None
    assert not asked  # upright and sure
    turned_head(head.swapaxes(0, 1), output(head, 1).swapaxes(0, 1), network, 30.0)
    assert len(asked) == 23  # of 270 mm no brain is


# Measured voxels


def axis(kind: str, acquired: float, voxel: float) -> Any:
    fields = dict.fromkeys(AxisResolution.__dataclass_fields__)
    return AxisResolution(**(fields | {"kind": kind, "acquired": acquired, "voxel": voxel}))


def test_voxels_that_keep_all_measured_detail() -> None:
    cases = [
        ("zero-filled", 2.0, 1.0, 60, 1.03), ("interpolated", 2.0, 1.0, 60, 1.0),
        ("interpolated", 1.5, 1.0, 50, 1.0), ("native", 2.0, 1.0, 60, None),
        ("interpolated", 1.14, 1.0, 60, None), ("interpolated", 1.15, 1.0, 60, 1.0),
        ("zero-filled", 1.18, 1.0, 60, None), ("zero-filled", 1.19, 1.0, 60, 1.03),
        ("interpolated", 1.8, 0.6, 41, 1.0),
    ]  # fmt: skip
    for kind, acquired, voxel, count, margin in cases:
        wanted = voxel
        if margin is not None:
            wanted = voxel * count / int(np.ceil(count * voxel * margin / acquired - 0.05))
        axes = [axis("native", 1.0, 1.0), axis(kind, acquired, voxel), axis("native", 2.0, 2.0)]
        assert measured_zooms(axes, (30, count, 20)) == pytest.approx((1.0, wanted, 2.0))


def test_wanted_voxels_fill_the_field_of_view() -> None:
    found = whole_voxels((2.1, 1.2, 50.0), (1.0, 1.2, 2.0), (41, 30, 20))
    assert found == pytest.approx((41 / 20, 1.2, 20.0))
    assert whole_voxels((1.009, 1.02, 0.5), (1, 1, 1), (50, 50, 50)) == pytest.approx(
        (1, 50 / 49, 1)
    )


def image(data: np.ndarray, zooms: list[float], code: int = 2) -> nib.Nifti1Image:
    made = nib.Nifti1Image(
        data.astype(np.float32), nib.affines.from_matvec(np.diag(zooms), [3, -7, 11])
    )
    made.set_sform(made.affine, code)
    made.set_qform(made.affine, code)
    return made


@pytest.mark.parametrize("profile", ["kspace", "box"])
def test_an_image_on_coarser_voxels(profile: str) -> None:
    data = np.random.default_rng(0).random((8, 9, 12))
    source = image(data, [1.0, 2.0, 1.5], code=3)
    found = to_voxels(source, (2.0, 2.0, 4.5), profile)
    first = axis_matrix(8, 1.0, 4, 2.0, Axis(profile))
    third = axis_matrix(12, 1.5, 4, 4.5, Axis(profile))
    wanted = np.einsum("ai,ijk,ck->ajc", first, data, third)
    assert np.asarray(found.dataobj) == pytest.approx(wanted, abs=1e-5)
    corner = [-0.5, -0.5, -0.5, 1]
    assert found.affine @ corner == pytest.approx(source.affine @ corner)
    codes = [int(found.header[name]) for name in ("sform_code", "qform_code")]
    assert codes == [3, 3] and found.get_data_dtype() == np.float32
    assert to_voxels(source, (1.0005, 2.0, 1.5), profile) is source


def test_everything_known_of_a_scan_goes_to_the_measured_voxels() -> None:
    generator = np.random.default_rng(0)
    source = image(generator.random((8, 9, 12)), [1.0, 2.0, 1.5])
    mask = image(generator.random((8, 9, 12)) > 0.4, [1.0, 2.0, 1.5])
    field = image(1 + generator.random((8, 9, 12)), [1.0, 2.0, 1.5])
    found = find_measured(source, mask, field, (2.0, 1.0, 4.4))
    new = (2.0, 2.0, 4.5)
    assert found.zooms == pytest.approx(new) and found.stored == pytest.approx((1, 2, 1.5))
    assert (found.changed, found.source) == ((True, False, True), "option")
    assert np.array_equal(np.asarray(found.image.dataobj),
                          np.asarray(to_voxels(source, new).dataobj))  # fmt: skip
    assert found.mask is not None and found.bias_field is not None
    share = np.asarray(to_voxels(mask, new, "box").dataobj)
    assert np.array_equal(np.asarray(found.mask.dataobj), share >= 0.5)
    assert found.mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(found.bias_field.dataobj),
                          np.asarray(to_voxels(field, new, "box").dataobj))  # fmt: skip
    same = find_measured(source, mask, field, (0.5, 0.5, 0.5))
    assert same.image is source and same.mask is mask and same.bias_field is field
    assert same.changed == (False, False, False) and same.source == "option"
    header = find_measured(source, mask, field, "header")
    assert header == Measured(source, mask, field, (False, False, False), "header")


def test_the_spectrum_is_read_in_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    source = image(np.random.default_rng(0).random((8, 9, 12)), [1.0, 2.0, 1.5])
    mask = image(np.random.default_rng(1).random((8, 9, 12)) > 0.4, [1.0, 2.0, 1.5])
    asked: list[Any] = []

    def resolution(data: np.ndarray, zooms: Any, inside: np.ndarray) -> list[Any]:
        asked.append((data, zooms, inside))
        return [axis("interpolated", 2.0, 1.0), axis("native", 2.0, 2.0), axis("soft", 1.5, 1.5)]

    monkeypatch.setattr(measured_voxels, "acquired_resolution", resolution)
    found = find_measured(source, mask)
    assert (found.changed, found.source) == ((True, False, False), "spectrum")
    assert found.zooms == pytest.approx((2.0, 2.0, 1.5))
    data, zooms, inside = asked[0]
    assert np.array_equal(data, np.asarray(source.dataobj)) and zooms == pytest.approx((1, 2, 1.5))
    assert np.array_equal(inside, np.asarray(mask.dataobj) > 0)


def measured(zooms: list[float], stored: list[float] | None = None, **fields: Any) -> Measured:
    plain = Measured(
        image(np.ones((6, 7, 8)), zooms), None, None, (False, False, False), "header",
        None if stored is None else (stored[0], stored[1], stored[2]),
    )  # fmt: skip
    return replace(plain, **fields)


@pytest.mark.parametrize(
    ("zooms", "stored", "wanted"),
    [([1, 3, 2], None, 1), ([2.9, 1, 3], None, 2), ([2.9, 1, 3], [2, 1, 1.5], 0),
     ([2.6, 1, 3], [2, 1, 1.5], 2)],
)  # fmt: skip
def test_slices_lie_along_the_coarsest_axis_as_stored(
    zooms: list[float], stored: list[float] | None, wanted: int
) -> None:
    assert measured(zooms, stored).slice_axis == wanted


@pytest.mark.parametrize(
    ("metadata", "zooms", "said"),
    [
        ({"SliceEncodingDirection": "i", "MRAcquisitionType": "2d"}, (1, 1, 1.05), True),
        ({"SliceEncodingDirection": "i-", "MRAcquisitionType": "2D"}, (1, 1, 3), True),
        ({"SliceEncodingDirection": "i", "MRAcquisitionType": "2D"}, (1, 1, 1.04), False),
        ({"SliceEncodingDirection": "k", "MRAcquisitionType": "2D"}, (1, 1, 3), False),
        ({"SliceEncodingDirection": "i", "MRAcquisitionType": "3D"}, (1, 1, 3), False),
        ({"SliceEncodingDirection": "i"}, (1, 1, 3), False), ({}, (1, 1, 3), False),
        ({"SliceEncodingDirection": "x", "MRAcquisitionType": "2D"}, (1, 1, 3), False),
    ],
)  # fmt: skip
def test_slices_along_another_axis_than_stated(
    metadata: dict[str, str], zooms: tuple[float, ...], said: bool
) -> None:
    assert (slice_axis_remark(metadata, zooms) is not None) == said


@pytest.mark.parametrize(
    ("source", "stated", "given", "said"),
    [("stated", 0.5, None, True), ("stated", 0.6, None, False), ("stated", 6.1, None, True),
     ("stated", 6.0, None, False), ("assumed", 0.5, None, False), ("stated", 3.0, 0.5, True),
     ("option", 0.1, 3.0, False), ("option", 0.1, 9.0, True)],
)  # fmt: skip
def test_thickness_from_a_fifth_to_twice_the_distance_is_used(
    source: str, stated: float, given: float | None, said: bool
) -> None:
    scan = measured([1, 3, 2])
    found = thickness_remark(
        scan, {"SliceThickness": stated}, Declared(Acquisition.uniform("box"), source), given
    )
    assert (found is not None) == said


def test_the_declared_sampling() -> None:
    scan = measured([1, 3, 1])
    box = Acquisition((Axis("kspace"), Axis("box", 2 / 3), Axis("kspace")))
    flat = {"MRAcquisitionType": "2D", "SliceThickness": 2.0}
    assert declared_acquisition(scan, flat) == Declared(box, "stated")
    thick = {"SliceThickness": 2.0}
    assert declared_acquisition(scan, thick) == Declared(box, "stated")
    usual = Acquisition((Axis("kspace"), Axis("box", 0.75), Axis("kspace")))
    assert declared_acquisition(scan, {"MRAcquisitionType": "2D"}) == Declared(usual, "assumed")
    whole = Declared(Acquisition.uniform("kspace"), "assumed")
    assert declared_acquisition(scan, {"MRAcquisitionType": "3D", "SliceThickness": 2}) == whole
    # An axis whose interpolation was undone is Fourier-encoded, unless the slices are stated.
    undone = replace(scan, changed=(False, True, False))
    assert declared_acquisition(undone, thick) == whole
    assert declared_acquisition(undone, {**flat, "MRAcquisitionType": "2d"}).source == "stated"
    gauss = Acquisition((Axis("kspace"), Axis("gaussian", 1.0), Axis("kspace")))
    assert declared_acquisition(undone, flat, "gaussian") == Declared(gauss, "option")
    told = Acquisition((Axis("kspace"), Axis("box", 0.5), Axis("kspace")))
    assert declared_acquisition(scan, flat, slice_thickness=1.5) == Declared(told, "option")


def test_the_scan_may_contradict_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Declared(Acquisition((Axis("kspace"), Axis("box", 2 / 3), Axis("kspace"))), "stated")
    data = np.random.default_rng(0).random((6, 7, 8)) - 0.3
    inside = image(np.random.default_rng(1).random((6, 7, 8)) > 0.5, [1, 3, 1])
    scan = measured([1, 3, 1], image=image(data, [1, 3, 1]), mask=inside)
    other = Acquisition.uniform("kspace")
    asked: list[Any] = []

    def choose(*given: Any) -> Any:
        asked.append(given)
        return SimpleNamespace(acquisition=other, weights={"a": 0.7})

    monkeypatch.setattr(measured_voxels, "choose_acquisition", choose)
    found = estimated_acquisition(box, scan, {"SliceThickness": 2.0}, 0.1)
    assert found == (Declared(other, "estimated"), {"a": 0.7})
    declared, values, zooms, where, sigma, stated = asked[0]
    assert declared is box.acquisition and sigma == 0.1 and stated == pytest.approx(2 / 3)
    assert np.array_equal(values, data.astype(np.float32)) and zooms == pytest.approx((1, 3, 1))
    assert np.array_equal(where, np.asarray(inside.dataobj) > 0)
    bare = replace(scan, mask=None)
    assumed = replace(box, source="assumed")
    estimated_acquisition(assumed, bare, {"SliceThickness": 2.0}, 0.1)
    assert np.array_equal(asked[1][3], data.astype(np.float32) > 0) and asked[1][5] is None
    whole = Declared(other, "assumed")
    assert estimated_acquisition(whole, scan, {}, 0.1) == (whole, {"a": 0.7})
    asked.clear()
    # Where interpolation was undone along the axes in question, the scan is not asked.
    across, plane = (
        replace(scan, changed=c) for c in ((False, True, False), (True, False, False))
    )
    assert estimated_acquisition(box, across, {"SliceThickness": 2.0}, 0.1) == (box, {})
    assert estimated_acquisition(whole, plane, {}, 0.1) == (whole, {}) and not asked
    estimated_acquisition(box, plane, {"SliceThickness": 2.0}, 0.1)
    assert len(asked) == 1


# Bias field


def test_a_field_is_enlarged_by_splines() -> None:
    data = np.random.default_rng(0).random((5, 6, 4))
    wanted = ndimage.zoom(data, (2, 1, 3), order=3, mode="nearest", grid_mode=True)[:9, :, :11]
    assert _enlarge(data, (2, 1, 3), (9, 6, 11)) == pytest.approx(wanted, abs=1e-9)


def test_a_field_fades_to_its_smooth_extension() -> None:
    generator = np.random.default_rng(0)
    shape, zooms = (20, 16, 14), [5.0, 6.0, 4.5]
    use = np.zeros(shape, bool)
    use[3:10, 4:11, 2:9] = generator.random((7, 7, 7)) > 0.2
    field = 0.3 * np.indices(shape)[0] / 20 + 0.02 * generator.standard_normal(shape)
    field[4, 5, 3] = 5.0 if use[4, 5, 3] else field[4, 5, 3]
    sigmas = [FADE / zoom for zoom in zooms]
    middle = field[use].mean()
    low, high = np.percentile(field[use], [0.5, 99.5])
    weight = ndimage.gaussian_filter(use.astype(float), sigmas, truncate=6)
    total = ndimage.gaussian_filter(np.where(use, field - middle, 0), sigmas, truncate=6)
    away = ndimage.distance_transform_edt(~use, sampling=zooms)
    share = np.where(away >= FADE, 0, 0.5 + 0.5 * np.cos(np.pi * away / FADE))
    both = share * np.clip(field, low, high)
    both = both + (1 - share) * (middle + total / (weight + 1e-3))
    wanted = ndimage.gaussian_filter(both, [6 / zoom for zoom in zooms])
    assert _extend(field, use, zooms) == pytest.approx(wanted, abs=1e-4)


def test_an_image_is_divided_by_its_field() -> None:
    generator = np.random.default_rng(0)
    source = image(generator.random((4, 5, 6)) * 100, [1, 2, 3], code=4)
    source.header.set_data_dtype(np.int16)
    field = image(1 + generator.random((4, 5, 6)), [1, 2, 3])
    found = divide(source, field)
    wanted = np.asarray(source.dataobj) / np.asarray(field.dataobj)
    assert np.asarray(found.dataobj) == pytest.approx(wanted)
    assert found.get_data_dtype() == np.float32 and int(found.header["sform_code"]) == 4


# Gradients


def test_nodes_lie_every_eight_millimetres_from_end_to_end() -> None:
    source = image(np.ones((20, 9, 33)), [3.0, 2.0, 1.0])
    nodes = unwarp._node_positions(source)
    assert [len(axis) for axis in nodes] == [9, 4, 6]
    for axis_nodes, size in zip(nodes, (20, 9, 33), strict=True):
        assert axis_nodes == pytest.approx(np.linspace(0, size - 1, len(axis_nodes)))
    inside = unwarp._inverse_positions(nodes, (20, 9, 33))
    for places, axis_nodes in zip(inside, nodes, strict=True):
        back = np.interp(places, np.arange(len(axis_nodes)), axis_nodes)
        assert back == pytest.approx(np.arange(len(places)))


def test_a_linear_distortion_is_undone_with_its_change_of_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Apparent = true + M (true - centre): the image is looked up there, times det(1 + M)."""
    matrix = np.array([[0.02, 0.01, 0.0], [-0.01, 0.03, 0.02], [0.0, -0.02, -0.04]])
    monkeypatch.setattr(unwarp, "displacement", lambda points, _: points @ matrix.T + [0.5, -1, 2])
    turn = Rotation.from_euler("xyz", [10, -20, 15], degrees=True).as_matrix()
    where = nib.affines.from_matvec(turn @ np.diag([2.0, 3.0, 2.5]), [-20, -25, -22])
    shape = (22, 18, 20)
    x, y, z = np.indices(shape)
    data = np.sin(x / 4) + np.cos(y / 5) + np.sin(z / 4) + 3
    source = nib.Nifti1Image(data.astype(np.float32), where)
    source.set_sform(where, 1)
    places = np.moveaxis(np.indices(shape), 0, -1)
    points = nib.affines.apply_affine(where, places)
    moved = points + points @ matrix.T + [0.5, -1, 2]
    inner = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(where), moved), -1, 0)
    looked_up = ndimage.map_coordinates(data, inner, order=3, mode="constant")
    volume = np.linalg.det(np.eye(3) + matrix)
    for jacobian, factor in ((True, volume), (False, 1.0)):
        found, record = unwarp.unwarp(source, None, jacobian)
        edge = (slice(2, -2),) * 3
        known = looked_up[edge] > 0
        close = (np.asarray(found.dataobj) - factor * looked_up)[edge][known]
        assert np.abs(close).max() < 1e-2
        assert np.array_equal(found.affine, source.affine)
        away = np.linalg.norm(moved - points, axis=-1).max()
        assert record == {
            "largest_displacement_mm": pytest.approx(away, rel=0.06), "jacobian": jacobian,
            "warnings": [],
        }  # fmt: skip


def test_a_change_of_volume_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwarp, "displacement", lambda points, _: points * [8.0, -2.0, 0.0])
    source = image(np.ones((9, 9, 9)), [3.0, 2.0, 1.0])
    shift, change = unwarp._at_nodes(source, unwarp._node_positions(source), None)
    assert change == pytest.approx(9.0)  # |9 x -1 x 1|
    monkeypatch.setattr(unwarp, "displacement", lambda points, _: points * 8.0)
    change = unwarp._at_nodes(source, unwarp._node_positions(source), None)[1]
    assert change == pytest.approx(unwarp.LARGEST_JACOBIAN) and len(shift) == 3


# Slices and stripes


@pytest.mark.parametrize("which", [0, 1, 2])
def test_steps_of_brightness_are_median_ratios(which: int) -> None:
    generator = np.random.default_rng(0)
    shape = [30, 26, 28]
    shape[which] = 9
    object_ = 100 * (1 + generator.random([n for k, n in enumerate(shape) if k != which]))
    factors = np.array([1, 1.1, 1, 2.2, 1, 1, 0.9, 1, 1])
    planes = factors[:, None, None] * (object_ + generator.normal(0, 3, (9, *object_.shape)))
    planes[:, :5] = 4.0
    steps = brightness._steps(np.moveaxis(planes, 0, which).astype(np.float32), which)
    flat = planes.reshape(9, -1)
    level = np.percentile(flat, 98, axis=1)
    for k in range(8):
        both = (flat[k] > 0.3 * level[k]) & (flat[k + 1] > 0.3 * level[k + 1])
        wanted = np.log(np.median(flat[k + 1][both] / flat[k][both]))
        assert steps[k] == pytest.approx(wanted, abs=1e-4)
    blank = np.moveaxis(planes, 0, which).astype(np.float32)
    np.moveaxis(blank, which, 0)[4] = generator.random(object_.shape)
    found = brightness._steps(blank, which)
    assert np.isnan(found[3:5]).all() and np.isfinite(np.delete(found, [3, 4])).all()


def test_levels_of_runs_between_jumps() -> None:
    """Relative to the level that most slices share; up and down again is the mean of both."""
    up = np.log([2.0, 1 / 2.1])
    found = brightness._levels(up, np.array([6, 1, 5]))
    assert found == pytest.approx([0, np.log(2 * 2.1) / 2, 0])
    # Two levels: most slices have the second.
    found = brightness._levels(np.log([1 / 2]), np.array([4, 9]))
    assert found == pytest.approx([np.log(2), 0])
    # A dark end of less than a quarter is a head that ends; a bright one is not.
    assert brightness._levels(np.log([1 / 2]), np.array([9, 2])).tolist() == [0, 0]
    assert brightness._levels(np.log([1 / 2]), np.array([9, 3])) == pytest.approx([0, -np.log(2)])
    assert brightness._levels(np.log([2]), np.array([9, 2])) == pytest.approx([0, np.log(2)])
    assert brightness._levels(np.log([2]), np.array([2, 9])).tolist() == [0, 0]
    # Stretches that can be compared have levels of their own; short ones none.
    steps = np.array([0, 0, np.log(3), -np.log(3), 0, 0, np.nan, 0, np.log(3), 0, 0])
    wanted = [0, 0, 0, np.log(3), 0, 0, 0, 0, 0, 0, 0, 0]
    assert brightness._slice_levels(steps) == pytest.approx(wanted)


def test_correlations_of_neighbouring_rows() -> None:
    rows = np.random.default_rng(0).random((5, 40))
    rows[3] = 7.0
    wanted = [np.corrcoef(rows[k], rows[k + 1])[0, 1] if k < 2 else 0 for k in range(4)]
    assert brightness._correlations(rows) == pytest.approx(wanted)


def test_coefficients_of_a_half_spectrum_at_any_frequency() -> None:
    for shape in ((6, 7, 8), (5, 4, 9)):
        data = np.random.default_rng(0).random(shape)
        half, full = np.abs(np.fft.rfftn(data)), np.abs(np.fft.fftn(data))
        places = np.random.default_rng(1).integers(-12, 12, (60, 3))
        wanted = [full[tuple(place % shape)] for place in places]
        assert _at(half, places, shape) == pytest.approx(wanted)
        centred = _centred(places % shape, shape)
        assert ((centred - places) % shape == 0).all()
        assert (np.abs(centred) <= np.array(shape) / 2).all()


@pytest.mark.parametrize("wave", [(9, 0, 0), (0, 8, 5), (7, 9, 6), (-8, 7, 0)])
def test_the_height_of_a_wave_on_uneven_sizes(wave: tuple[int, int, int]) -> None:
    shape = (36, 40, 32)
    x, y, z = np.indices(shape)
    phase = 2 * np.pi * (wave[0] * x / 36 + wave[1] * y / 40 + wave[2] * z / 32)
    smooth = 100 * np.exp(
        -sum(((k - n / 2) / n * 3) ** 2 for k, n in zip((x, y, z), shape, strict=True))
    )
    data = smooth + 6 * np.cos(phase + 0.4)
    assert stripe_height(data.astype(np.float32)) == pytest.approx(6, rel=0.05)
    several = sum(abs(k) >= 3 for k in wave) >= 2
    found = stripe_height(data.astype(np.float32), slices_differ=True)
    assert found == (pytest.approx(6, rel=0.05) if several else 0)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_slices_that_are_unlike_both_neighbours(which: int) -> None:
    generator = np.random.default_rng(0)
    planes = np.empty((30, 24, 22))
    planes[0] = generator.random((24, 22))
    for k in range(1, 30):  # each resembles those near it
        planes[k] = 0.95 * planes[k - 1] + 0.05 * generator.random((24, 22)) * 2
    planes[7] = planes[7] + generator.normal(0, 0.4, (24, 22))
    planes[18:20] = planes[18:20] + generator.normal(0, 0.4, (2, 24, 22))
    data = np.moveaxis(planes + 1, 0, which).astype(np.float32)
    assert odd_slices.odd_slices(data, which).tolist() == [7, 18, 19]
    (remark,) = [
        r for r in odd_slices.odd_slice_remarks(data) if ("first", "second", "third")[which] in r
    ]
    assert "8, 19, 20" in remark and remark.startswith("3 ")


# Intensities


def test_neighbours_are_counted_in_both_directions() -> None:
    some, others = np.random.default_rng(0).random((2, 5, 4, 6)) > 0.5
    count = 0
    for place in np.argwhere(some):
        for axis_ in range(3):
            for step in (-1, 1):
                beside = place.copy()
                beside[axis_] += step
                if 0 <= beside[axis_] < some.shape[axis_]:
                    count += int(others[tuple(beside)])
    assert wrapped._beside(some, others) == count
    data = np.random.default_rng(1).random((5, 4, 6))
    steps = sum(np.abs(np.diff(data, axis=k)).sum() for k in range(3))
    assert wrapped._total_steps(data) == pytest.approx(steps)


def test_voxels_far_beyond_all_others_are_cut_to_their_range() -> None:
    data = np.linspace(10, 110, 4000).reshape(20, 20, 10).astype(np.float32)
    low, high = 20.0, 70.0  # limits: 20 - 4 x 50 and 70 + 4 x 50
    data[0, 0, :4] = 271, 269, -181, -179
    remarks: list[str] = []
    found = _without_extremes(data, low, high, remarks)
    assert found[0, 0, :4].tolist() == [70, 269, 20, -179]
    assert np.array_equal(np.delete(found, range(4)), np.delete(data, range(4)))
    assert len(remarks) == 1 and remarks[0].startswith("2 voxels") and "271" in remarks[0]
    assert _without_extremes(found, low, high, remarks) is found and len(remarks) == 1
    data[0, 0, 0] = 0
    _without_extremes(data, low, high, remarks)
    assert remarks[1].startswith("1 ") and "-181" in remarks[1]


def test_one_value_beyond_all_others_is_padding() -> None:
    generator = np.random.default_rng(0)
    data = generator.uniform(100, 200, (20, 20, 20)).astype(np.float32)
    lowest = float(data.min())
    for share, value, known in (
        (0.0004, -500, False), (0.0006, -500, True), (0.59, -500, True), (0.61, -500, False),
        (0.3, 900, True), (0.3, 250, False), (0.3, 0, False), (0.3, -1, True), (0.3, 50, False),
    ):  # fmt: skip
        padded = data.copy().ravel()
        padded[: int(share * padded.size)] = value
        padded = padded.reshape(data.shape)
        remarks: list[str] = []
        found = _without_padding(padded, remarks)
        assert bool(remarks) == known, (share, value)
        if known:
            rest = float(padded[padded != value].min())
            assert rest >= lowest
            assert np.array_equal(found, np.where(padded == value, np.float32(rest), padded))
        else:
            assert found is padded


def test_an_image_is_moved_up_if_its_middle_is_negative() -> None:
    data = np.linspace(-50, 50, 1000).reshape(10, 10, 10).astype(np.float32)
    for middle, high, moved in ((-9.9, 50, False), (-10.1, 50, True), (5, -1, True), (0, 0, True)):
        remarks: list[str] = []
        found = _from_zero(data, middle, high, 100.0, remarks)
        assert bool(remarks) == moved
        assert float(found.min()) == (0 if moved else -50)
        assert np.ptp(found) == pytest.approx(100)
    assert _few_values(np.arange(1000).reshape(10, 10, 10) % 9)
    assert not _few_values(np.arange(1000).reshape(10, 10, 10) % 10)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"SpacingBetweenSlices": 3.16}, "flat"), ({"SpacingBetweenSlices": 3.14}, None),
        ({"SpacingBetweenSlices": 2.84}, "long"), ({"SpacingBetweenSlices": 2.86}, None),
        ({"SpacingBetweenSlices": 9, "MRAcquisitionType": "3D"}, None), ({}, None),
        ({"SpacingBetweenSlices": 2.0, "SliceEncodingDirection": "k-"}, None),
        ({"SpacingBetweenSlices": 2.0, "SliceEncodingDirection": "j"}, "long"),
        ({"SpacingBetweenSlices": 1.0, "SliceEncodingDirection": "i"}, None),
        ({"SpacingBetweenSlices": 3.0, "SliceEncodingDirection": "i"}, "flat"),
    ],
)  # fmt: skip
def test_the_distance_of_slices_by_header_and_sidecar(
    metadata: dict[str, Any], said: str | None
) -> None:
    found = distance_remarks(image(np.ones((6, 6, 6)), [1.0, 3.0, 2.0]), metadata)
    assert len(found) == (said is not None) and (said is None or said in found[0])


def test_slices_of_no_common_level_are_refused() -> None:
    levels = np.array([0, 1.0, 0, 1, 0, 1, 0, 0, 0, 0])
    steps = np.full(9, 0.1)
    brightness._refuse_most(levels, steps, "first", "x")
    steps[4:] = np.nan  # of four pairs that were compared, three slices are odd
    with pytest.raises(ImageError, match="x: most"):
        brightness._refuse_most(levels, steps, "first", "x")


def test_single_slices_and_bands_are_told_apart() -> None:
    """A slice counts where it differs from both neighbours in one direction, by 40 % or more."""
    up, little = np.log(1.5), np.log(1.38)
    for steps, said in (
        ([0, up, -up, 0, 0, 0], "(3, counted"), ([0, -up, up, 0, 0, 0], "(3, counted"),
        ([0, little, -little, 0, 0, 0], None), ([0, up, -little, 0, 0, 0], None),
        ([0, up, up, 0, 0, 0], None), ([0, 0, up, -up, 0, up, -up], "2 slices"),
        ([up, -up, 0, 0], None), ([np.nan, 0, up, -up, 0, 0], "(4, counted"),
    ):  # fmt: skip
        found = brightness._unevenness(np.array(steps, float), "first")
        assert len(found) == (said is not None) and (said is None or said in found[0]), steps
        if said is not None:
            assert "50 %" in found[0]
    bands = np.tile([0.065, -0.065], 6)
    assert "bands" in brightness._unevenness(bands, "first")[0]
    assert "7 %" in brightness._unevenness(bands, "first")[0]
    assert brightness._unevenness(bands * 0.055 / 0.065, "first") == []
    assert brightness._unevenness(bands[:11], "first") == []


def test_a_glaring_slice_counts_however_little_tissue_it_shows() -> None:
    generator = np.random.default_rng(0)
    object_ = 100 * (1 + generator.random((30, 26)))
    planes = np.repeat(object_[None], 12, axis=0) + generator.normal(0, 2, (12, 30, 26))
    planes[5, 4:] *= 0.01
    planes[5, :4] *= 2.5  # 104 of 780 voxels; over twice the others
    planes[9, 4:] *= 0.01
    steps = brightness._steps(planes.astype(np.float32), 0)
    found = np.isfinite(steps)
    alike = brightness._correlations(planes.reshape(12, -1)) > brightness.LEAST_ALIKE
    level = np.percentile(planes.reshape(12, -1), 98, axis=1)
    bright = level > 2 * np.percentile(level, 90)
    assert bright.tolist() == [k == 5 for k in range(12)]
    for k in range(11):
        rows = [planes.reshape(12, -1)[n] > 0.3 * level[n] for n in (k, k + 1)]
        enough = (rows[0] & rows[1]).sum() >= 0.3 * 780
        assert found[k] == (alike[k] and (enough or bright[k] or bright[k + 1])), k


def test_the_field_is_read_from_bright_voxels_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """On blocks of about 5 mm, of which half is bright at least; then it has a mean of 1."""
    generator = np.random.default_rng(0)
    shape, zooms = (26, 24, 22), [2.5, 5.0, 1.2]
    data = generator.uniform(50, 100, shape)
    data[8:12, 8:12, 8:12] = 5  # dark, as fluid: below a tenth of the upper quarter
    data[12:15] = -1
    mask = np.zeros(shape, np.uint8)
    mask[3:22, 3:20, 3:19] = 1
    asked: list[Any] = []
    known = generator.normal(0, 0.1, (13, 24, 6))

    def log_field(coarse: np.ndarray, use: np.ndarray, sizes: list[float]) -> np.ndarray:
        asked.append((coarse, use, sizes))
        return known

    monkeypatch.setattr(bias, "_log_field", log_field)
    found = bias_field(image(data, zooms, code=4), image(mask, zooms))
    bright = (mask > 0) & (data > 0)
    bright &= data > 0.1 * np.percentile(data[bright], 75)
    padded = [np.pad(part, ((0, 0), (0, 0), (0, 2)), mode="edge").reshape(13, 2, 24, 1, 6, 4)
              for part in (bright.astype(float), np.where(bright, data, 0))]  # fmt: skip
    share, total = (part.mean((1, 3, 5)) for part in padded)
    coarse, use, sizes = asked[0]
    assert sizes == pytest.approx([5.0, 5.0, 4.8])
    assert np.array_equal(use, share >= 0.5) and 0 < use.mean() < 0.6
    assert coarse[use] == pytest.approx((total / np.maximum(share, 1e-6))[use], rel=1e-4)
    smooth = np.exp(_enlarge(_extend(known, use, sizes), (2, 1, 4), shape))
    wanted = smooth / smooth[mask > 0].mean()
    assert np.asarray(found.dataobj) == pytest.approx(wanted, rel=1e-4)
    assert found.get_data_dtype() == np.float32 and int(found.header["sform_code"]) == 4
    with pytest.raises(ImageError, match="another grid"):
        bias_field(image(data, zooms), image(mask, [2.5, 5.0, 1.21]))
    few = np.zeros(shape, np.uint8)
    few[:24, :9, :4] = 1  # 12 x 9 x 1 blocks, of which one row is dark
    with pytest.raises(ImageError, match="too little"):
        bias_field(image(data + 10, zooms), image(few, zooms))
    few[:24, :10, :4] = 1
    bias_field(image(data + 10, zooms), image(few, zooms))


@pytest.mark.parametrize(
    ("pairs", "bright", "dark", "said"),
    [(49, 950, 50, None), (50, 950, 50, "remark"), (51, 950, 50, "remark"), (52, 950, 50, "error"),
     (60, 900, 50, None), (60, 950, 100, None), (60, 1000, 50, None), (60, 950, 0, None)],
)  # fmt: skip
def test_bright_voxels_beside_dark_ones_are_counted(
    pairs: int, bright: int, dark: int, said: str | None
) -> None:
    """Within a tenth of the range from its ends, without these; from fifty pairs on."""
    data = np.full((80, 80, 80), 200, np.float32)
    data[0, 0, 0], data[0, 0, 40] = 0, 1000
    for k in range(pairs):
        data[4 + 2 * (k // 9), 4, 4 * (k % 9)] = bright
        data[4 + 2 * (k // 9), 5, 4 * (k % 9)] = dark
    remarks: list[str] = []
    if said == "error":
        with pytest.raises(ImageError, match="x: values look wrapped at 1023"):
            wrapped._refuse_wrapped(data, 1024, 1000, remarks, "x")
    else:
        wrapped._refuse_wrapped(data, 1024, 1000, remarks, "x")
    assert bool(remarks) == (said == "remark")


@pytest.mark.parametrize(("middle", "refused"), [(2, True), (3, False)])
def test_neighbours_of_the_middle_excuse_dark_ones(middle: int, refused: bool) -> None:
    """One dark neighbour against 1.5 times a quarter of those in the middle: 0.75 or 1.125."""
    data = np.full((80, 80, 80), 200, np.float32)
    data[0, 0, 0], data[0, 0, 40] = 0, 1000
    for k in range(60):
        x, z = 4 + 3 * (k // 9), 4 + 4 * (k % 9)
        data[x, 4, z], data[x, 5, z] = 950, 50
        for place in ((x, 3, z), (x, 4, z + 1), (x, 4, z - 1))[:middle]:
            data[place] = 500
    other = np.where(data == 500, np.float32(750), data)  # not in the middle
    for given, found in ((data, refused), (other, True)):
        if found:
            with pytest.raises(ImageError, match="17 %"):
                wrapped._refuse_wrapped(given, 1024, 1000, [], "x")
        else:
            remarks: list[str] = []
            wrapped._refuse_wrapped(given, 1024, 1000, remarks, "x")
            assert not remarks


def test_both_steps_of_a_glaring_slice_are_known_however_little_it_shows():
    data = np.full((80, 80, 12), 5.0)
    data[30:52, 30:52] = 100.0  # 484 voxels of tissue
    data[..., 6] = 20.0
    data[30:45, 30:39, 6] = 400.0  # 135, less than three tenths of the usual
    data += 0.1 * np.random.default_rng(0).standard_normal(data.shape)
    steps = brightness._steps(data, 2)
    assert steps[5] == pytest.approx(np.log(4), abs=0.05)
    assert steps[6] == pytest.approx(-np.log(4), abs=0.05)
