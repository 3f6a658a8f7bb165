# SPDX-License-Identifier: Apache-2.0
"""Label maps, masks and fractions on a finer grid: volumes, averages, borders."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging import label_maps
from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.label_edges import edge_support
from bids_moediff.imaging.label_maps import carry_fractions, carry_labels
from bids_moediff.imaging.map_images import carry_image, carry_images, read_map
from bids_moediff.imaging.nearest_fractions import nearest_fractions, to_simplex
from bids_moediff.imaging.separable import along_axes

FINE = (1.0, 1.0, 1.0)


def ball(side: int, radius: float, centre: float) -> np.ndarray:
    offset = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij")) - centre
    return (offset**2).sum(0) < radius**2


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Three labels in a background on a fine grid of 24 voxels."""
    labels = np.zeros((24, 24, 24), np.int16)
    labels[ball(24, 9.3, 11.2)] = 3
    labels[ball(24, 6.1, 12.7)] = 7
    labels[ball(24, 2.2, 4.6)] = 41
    return labels


def averages(fine: np.ndarray, shape: tuple[int, ...], zooms: tuple[float, ...]) -> np.ndarray:
    matrices = [
        axis_matrix(n_f, 1.0, n_c, zoom, Axis("box"))
        for n_f, n_c, zoom in zip(fine.shape, shape, zooms, strict=True)
    ]
    return along_axes(fine.astype(np.float32), matrices)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize(
    ("shape", "zooms"),
    [((12, 12, 12), (2, 2, 2)), ((24, 24, 6), (1, 1, 4)), ((15, 15, 15), (1.6, 1.6, 1.6))],
)
def test_fractions_keep_the_averages_and_sharpen(tissue, shape, zooms):
    codes = (3, 7, 41)
    given = np.stack([averages(tissue == code, shape, zooms) for code in codes])
    carried = carry_fractions(given, zooms, tissue.shape, FINE)
    assert carried.min() >= 0
    assert carried.max() <= 1 + 1e-5
    assert carried.sum(0).max() <= 1 + 1e-4
    for code, fraction, measured in zip(codes, carried, given, strict=True):
        again = averages(fraction, shape, zooms)
        assert np.abs(again - measured).mean() < 2e-3
        assert fraction.sum() == pytest.approx(measured.sum() * np.prod(zooms), rel=0.01)
        assert dice(fraction > 0.5, tissue == code) > 0.95


@pytest.mark.parametrize(
    ("zoom", "diameter", "limit"),
    [(0.5, 3, 1e-3), (0.5, 6, 1e-3), (0.7, 3, 0.026), (0.7, 6, 0.04)],
)
def test_volumes_and_averages_where_voxels_divide_evenly_or_not(zoom, diameter, limit):
    """At 0.7 mm no fractions have these averages: the least errors are 0.013 and 0.036."""
    lesion = ball(60, 2.0 * diameter, 30.3).astype(np.float32)  # in voxels of 0.25 mm
    given = lesion.reshape(15, 4, 15, 4, 15, 4).mean((1, 3, 5))
    count = int(np.ceil(15 / zoom))
    carried = carry_fractions(given[None], (1, 1, 1), (count,) * 3, (zoom,) * 3)[0]
    assert carried.sum() * zoom**3 == pytest.approx(given.sum(), rel=0.01)
    matrix = axis_matrix(count, zoom, 15, 1.0, Axis("box"))
    error = np.abs(along_axes(carried, [matrix] * 3) - given)
    assert error[(given > 1e-3) & (given < 1 - 1e-3)].mean() < limit


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_the_nearest_fractions(labels):
    """Against the definition: one shift for all that stay above zero, none gains below it."""
    values = np.random.default_rng(labels).normal(0, 1, (labels, 40)).astype(np.float32)
    nearest = to_simplex(values)
    np.testing.assert_allclose(nearest.sum(0), 1, atol=1e-5)
    shift = (values - nearest).max(0)
    np.testing.assert_allclose(nearest, np.maximum(values - shift, 0), atol=1e-5)


@pytest.mark.parametrize(("shape", "zooms"), [((12, 12, 12), (2, 2, 2)), ((24, 24, 6), (1, 1, 4))])
def test_labels_keep_their_volumes(tissue, shape, zooms):
    given = np.zeros(shape, np.int16)
    for code in (3, 7, 41):
        given[averages(tissue == code, shape, zooms) >= 0.5] = code
    carried = carry_labels(given, zooms, tissue.shape, FINE)
    assert carried.dtype == given.dtype
    nearest = given
    for axis, zoom in enumerate(zooms):
        nearest = np.repeat(nearest, zoom, axis=axis)
    for code in (3, 7, 41):
        assert (carried == code).sum() == pytest.approx((nearest == code).sum(), rel=0.01, abs=1)
    assert dice(carried == 7, tissue == 7) > dice(nearest == 7, tissue == 7)


def test_a_small_lesion_beside_a_large_one_keeps_its_volume():
    given = np.zeros((20, 20, 20), np.uint8)
    given[ball(20, 6.0, 8.0)] = 1
    given[17, 17, 17] = 1
    carried = carry_labels(given, (2.0, 2.0, 2.0), (40, 40, 40), FINE)
    assert carried[32:, 32:, 32:].sum() == pytest.approx(8, abs=1)


def test_tiles_leave_no_seams(tissue, monkeypatch):
    given = np.stack([averages(tissue == code, (12,) * 3, (2,) * 3) for code in (3, 7)])
    whole = carry_fractions(given, (2.0,) * 3, tissue.shape, FINE)
    monkeypatch.setattr("bids_moediff.imaging.label_maps.TILE", 9)
    np.testing.assert_allclose(
        carry_fractions(given, (2.0,) * 3, tissue.shape, FINE), whole, atol=0.02
    )


def test_masks_that_overlap_are_carried_alone():
    given = np.stack([ball(12, 4.0, 5.5), ball(12, 3.0, 5.5)]).astype(np.float32)
    both = carry_fractions(given, (2.0,) * 3, (24,) * 3, FINE)
    alone = carry_fractions(given[1:], (2.0,) * 3, (24,) * 3, FINE)
    np.testing.assert_array_equal(both[1:], alone)
    assert both.sum(0).max() > 1.5


def blank(shape: tuple[int, ...], affine: np.ndarray) -> nib.Nifti1Image:
    """An image without edges on the output grid."""
    return nib.Nifti1Image(np.zeros(shape, np.float32), affine)


@pytest.mark.parametrize("wanted", [(0.7, 0.7, 0.7), (1.0, 1.0, 3.0)])
def test_an_image_goes_to_the_output_grid(tissue, wanted):
    affine = np.diag([-1.0, 1.0, 1.2, 1.0])
    affine[:3, 3] = (90, -50, -20)
    image = nib.Nifti1Image(tissue, affine)
    shape, new = output_grid(tissue.shape, affine, wanted)
    carried = carry_image(image, blank(shape, new))
    assert carried.shape == shape
    assert carried.get_data_dtype() == np.int16
    np.testing.assert_allclose(carried.affine, new, atol=1e-5)
    for code in (3, 7):
        volume = (np.asarray(carried.dataobj) == code).sum() * np.prod(voxel_sizes(new))
        tolerance = 0.01 if wanted[2] < 1 else 0.1  # thick voxels cannot keep it
        assert volume == pytest.approx((tissue == code).sum() * 1.2, rel=tolerance)


@pytest.mark.parametrize("contrast", [-80.0, 80.0])
def test_borders_of_labels_are_drawn_to_the_edges_of_the_image(tissue, contrast):
    """Two shifted balls have one coarse mask; the image says where the border is."""
    given = np.zeros((12, 12, 12), np.uint8)
    truth = tissue == 7
    given[averages(truth, (12,) * 3, (2,) * 3) >= 0.5] = 1
    noise = np.random.default_rng(0).normal(0, 8, truth.shape)
    guide = (200 + contrast * truth + noise).astype(np.float32)
    alone = carry_labels(given, (2.0,) * 3, truth.shape, FINE)
    drawn = carry_labels(given, (2.0,) * 3, truth.shape, FINE, guide)
    flat = carry_labels(given, (2.0,) * 3, truth.shape, FINE, np.full_like(guide, 200))
    assert dice(drawn == 1, truth) > dice(alone == 1, truth) + 0.01
    assert drawn.sum() == pytest.approx(8 * given.sum(), abs=1)
    np.testing.assert_array_equal(flat, alone)


@pytest.mark.parametrize("unit", [1.0, 1000.0])
def test_support_is_the_distance_from_the_means_in_the_noise_around(unit):
    labels = np.zeros((20, 20, 20), np.int16)
    labels[10:] = 1
    noise = np.random.default_rng(0).normal(0, 0.8, labels.shape)
    guide = unit * (1 + 2 * labels + noise).astype(np.float32)
    index = np.flatnonzero(np.abs(np.indices(labels.shape)[0] - 9.5) < 2)
    support = edge_support(guide, labels, index, np.tile([0, 1], (len(index), 1)), FINE)
    away = np.square(guide.ravel()[index, None] / unit - [1, 3]) / (2 * 0.8**2)
    expected = np.clip(away.min(1, keepdims=True) - away, -4, 0)
    assert np.abs(support - expected).mean() < 0.2


def test_support_is_that_of_sums_written_out():
    """Three labels on voxels of three sizes, some at the faces of the image."""
    random, zooms, shape = np.random.default_rng(3), (1.0, 2.0, 4.0), (13, 7, 6)
    labels = (ndimage.gaussian_filter(random.normal(size=shape), (3, 1.5, 1)) > 0).astype(int)
    labels[9:, 4:], labels[0, 0, 0] = 2, 2
    guide = (20 * labels + random.normal(0, 6, shape)).astype(np.float32)
    reach, places = (4, 2, 1), list(np.ndindex(shape))  # 9 mm, at least three voxels

    def box(at: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(max(0, p - r), p + r + 1) for p, r in zip(at, reach, strict=True))

    means, rest = np.full((3, *shape), np.nan), np.zeros(shape)
    for number in range(3):
        own = labels == number
        weight = np.where(ndimage.binary_erosion(own, border_value=1), 1, 0.1 * own)
        for at in places:
            if weight[box(at)].sum() > 0.05:
                means[(number, *at)] = np.average(guide[box(at)], weights=weight[box(at)])
        rest[own] = np.square(guide - means[number])[own]
    around = np.pad(rest, [(r, r) for r in reach], mode="symmetric")
    sizes = tuple(2 * r + 1 for r in reach)
    spread = np.lib.stride_tricks.sliding_window_view(around, sizes).mean((3, 4, 5))
    spread += (1e-3 * np.abs(guide).max()) ** 2
    index = np.arange(0, guide.size, 3)
    candidates = random.permuted(np.tile([0, 1, 2], (len(index), 1)), axis=1)[:, :2]
    candidates[::5, 1] = -1
    found = edge_support(guide, labels, index, candidates, zooms)
    for row, at in enumerate(index):
        place = np.unravel_index(at, shape)
        known = [n for n in candidates[row] if n >= 0]
        away = [(guide[place] - means[(n, *place)]) ** 2 / (2 * spread[place]) for n in known]
        expected = np.clip(min(away) - np.array(away), -4, 0)
        if np.isnan(away).any():
            expected[:] = 0
        assert found[row, : len(known)] == pytest.approx(expected, abs=2e-3)


def test_nothing_is_said_where_a_label_has_no_brightness_nearby():
    labels = np.zeros((30, 6, 6), np.int16)
    labels[3:], labels[20:] = 1, 2
    guide = np.arange(3, dtype=np.float32)[labels]
    index = np.flatnonzero(np.indices(labels.shape)[0] == 3)
    several = np.tile([0, 1, 2], (len(index), 1))
    assert not edge_support(guide, labels, index, several, FINE).any()
    assert edge_support(guide, labels, index, several[:, :2], FINE)[:, 0].max() < -3


@pytest.mark.parametrize("border", [(1.0, 1.0), (0.3, 0.8), (0.1, 0.4)])
def test_a_region_on_voxels_that_do_not_divide_evenly_keeps_its_volume(border):
    average = axis_matrix(20, 0.7, 14, 1.0, Axis("box")).astype(np.float32)
    inside = np.zeros((14, 1, 1), np.float32)
    inside[4:9], inside[4], inside[8] = 1, *border
    start = np.full((2, 20, 1, 1), 0.5, np.float32)
    made = nearest_fractions(start, np.stack([1 - inside, inside]), [average, None, None])
    assert made[1].sum() * 0.7 == pytest.approx(inside.sum(), abs=1e-3)
    np.testing.assert_allclose(made.sum(0), 1, atol=1e-5)


GRID = np.diag([-2.0, 2.0, 2.0, 1.0])
SHAPE = (12, 12, 12)


def there_and_back(path, data: np.ndarray, affine: np.ndarray = GRID) -> np.ndarray:
    """A map written to ``path``, read, and carried to 1 mm."""
    nib.save(nib.Nifti1Image(data, affine, dtype=data.dtype), path)
    carried = carry_image(read_map(path, SHAPE, GRID), blank(*output_grid(SHAPE, GRID, FINE)))
    return np.asarray(carried.dataobj)


def test_four_dimensional_fractions(tmp_path):
    part = averages(ball(24, 7.0, 11.0), SHAPE, (2, 2, 2))
    given = np.stack([part, 1 - part], axis=-1)
    carried = there_and_back(tmp_path / "a.nii", given)
    assert carried.shape == (24, 24, 24, 2)
    np.testing.assert_allclose(carried.sum(-1), 1, atol=1e-3)
    rounded = there_and_back(tmp_path / "a.nii", given * 1.02)  # stored in coarse steps
    np.testing.assert_allclose(rounded.sum(-1), 1, atol=1e-3)


def test_files_of_one_partition_are_carried_together(tmp_path):
    """Grey and white matter in a file each keep a sum of at most one."""
    inner = averages(ball(24, 6.0, 11.0), SHAPE, (2, 2, 2))
    outer = averages(ball(24, 9.0, 11.0), SHAPE, (2, 2, 2)) - inner
    mask = (inner > 0.5).astype(np.uint8)
    images = []
    for number, data in enumerate((inner, mask, outer)):
        nib.save(nib.Nifti1Image(data, GRID), tmp_path / f"{number}.nii")
        images.append(read_map(tmp_path / f"{number}.nii", SHAPE, GRID))
    target = blank(*output_grid(SHAPE, GRID, FINE))
    first, labels, second = (np.asarray(image.dataobj) for image in carry_images(images, target))
    assert (first + second).max() <= 1 + 1e-4
    np.testing.assert_allclose((first + second)[ball(24, 7.0, 11.0)], 1, atol=1e-3)
    assert labels.dtype == np.uint8
    overlapping = carry_images([images[0], images[0]], target)
    alone = np.asarray(carry_image(images[0], target).dataobj)
    np.testing.assert_array_equal(np.asarray(overlapping[1].dataobj), alone)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("centre", [11.0, 16.0])  # within one tissue, and across both
def test_a_lesion_leaves_the_tissues_a_partition(place, centre):
    inner = averages(ball(24, 6.0, 11.0), SHAPE, (2, 2, 2))
    outer = averages(ball(24, 9.0, 11.0), SHAPE, (2, 2, 2)) - inner
    maps = [inner, outer]
    maps.insert(place, averages(ball(24, 3.0, centre), SHAPE, (2, 2, 2)))
    target = blank(*output_grid(SHAPE, GRID, FINE))
    images = [nib.Nifti1Image(data.astype(np.float32), GRID) for data in maps]
    carried = [np.asarray(image.dataobj) for image in carry_images(images, target)]
    lesion = carried.pop(place)
    np.testing.assert_array_equal(lesion, carry_image(images[place], target).dataobj)
    assert sum(carried).max() <= 1 + 1e-4


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint32, np.int16])
def test_labels_may_be_stored_in_any_type(tmp_path, kind):
    data = (ball(12, 4.0, 5.0) * 2035).astype(kind)
    if data.dtype.kind == "f":
        data[data > 0] -= 1e-4
        data[0, 0, 0] = np.nan
    carried = there_and_back(tmp_path / "a.nii", data)
    assert carried.dtype == np.int16
    assert set(np.unique(carried)) == {0, 2035}
    assert np.count_nonzero(carried) == pytest.approx(8 * ball(12, 4.0, 5.0).sum(), rel=0.01)


def test_labels_below_zero_stay_what_they_are(tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[2:6], labels[7:10] = -5, 100
    assert set(np.unique(there_and_back(tmp_path / "a.nii.gz", labels))) == {-5, 0, 100}


def test_nifti_2_and_broken_headers(tmp_path):
    data = ball(12, 4.0, 5.0).astype(np.uint8)
    expected = there_and_back(tmp_path / "a.nii", data)
    nib.save(nib.Nifti2Image(data, GRID), tmp_path / "b.nii")
    carried = carry_image(
        read_map(tmp_path / "b.nii", SHAPE, GRID), blank(*output_grid(SHAPE, GRID, FINE))
    )
    np.testing.assert_array_equal(np.asarray(carried.dataobj), expected)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[70:72] = (7777).to_bytes(2, "little")  # no such type of data
    (tmp_path / "c.nii").write_bytes(content)
    with pytest.raises(ImageError, match="not a readable"):
        read_map(tmp_path / "c.nii", SHAPE, GRID)


def test_small_fractions_are_no_labels(tmp_path):
    data = ball(12, 4.0, 5.0) * np.float32(2e-4)
    carried = there_and_back(tmp_path / "a.nii", data)
    assert carried.sum() == pytest.approx(8 * data.sum(), rel=0.05)


@pytest.mark.parametrize("value", [0, 1])
def test_an_empty_and_a_full_mask(tmp_path, value):
    carried = there_and_back(tmp_path / "a.nii", np.full(SHAPE, value, np.uint8))
    assert (carried == value).all()


def test_a_map_with_other_axes_is_turned(tmp_path):
    """The same voxels, stored as another program likes them."""
    data = ball(12, 3.0, 4.0).astype(np.uint8)
    expected = there_and_back(tmp_path / "a.nii", data)
    turned = nib.Nifti1Image(data, GRID).as_reoriented([[2, -1], [0, 1], [1, -1]])
    again = there_and_back(tmp_path / "b.nii", np.asarray(turned.dataobj), turned.affine)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 2)])
def test_axes_of_one_voxel_do_not_count(tmp_path, axes):
    data = np.broadcast_to(ball(12, 4.0, 5.0)[..., None, None], (*SHAPE, 1, 2)) * 0.9
    data = data[..., : axes[-1]].reshape(*SHAPE, *axes).astype(np.float32)
    assert there_and_back(tmp_path / "a.nii", data).shape[3:] == ((2,) if axes[-1] == 2 else ())


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.nii", np.linspace(0, 80, 1728, dtype="f4").reshape(SHAPE), "between 0 and 1"),
        ("a.nii", np.random.default_rng(0).integers(0, 900, SHAPE).astype("i2"), "intensities"),
        ("a_dseg.nii", ball(12, 4.0, 5.0) * np.float32(0.3), "not labels"),
        ("a_mask.nii", np.full(SHAPE, np.nan, np.float32), "holds no numbers"),
        ("a_probseg.nii", ball(12, 4.0, 5.0) * np.uint8(100), "from 0 to 100"),
        ("a.nii", np.where(ball(12, 4.0, 5.0), np.inf, 0).astype("f4"), "infinite"),
        ("a.nii", np.full(SHAPE, 2**40, np.int64), "labels above"),
        ("a.nii", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        ("a.nii", np.zeros((*SHAPE, 2), np.int16) + np.int16(4), "between 0 and 1"),
        ("a.nii", np.zeros((12, 12, 11), np.uint8), "12 x 12 x 11"),
        ("a.nii", np.zeros((12, 12), np.uint8), "not on the grid"),
    ],
)
def test_what_is_no_map_is_named(tmp_path, name, data, words):
    with pytest.raises(ImageError, match=words):
        there_and_back(tmp_path / name, data)


@pytest.mark.parametrize(("shift", "taken"), [(0.06, True), (0.3, False)])
def test_a_map_may_lie_off_by_what_a_header_rounds(tmp_path, shift, taken):
    moved, data = GRID.copy(), ball(12, 4.0, 5.0).astype(np.uint8)
    moved[1, 3] += shift  # mm; voxels have 2
    if taken:
        assert there_and_back(tmp_path / "a.nii", data, moved).any()
        return
    with pytest.raises(ImageError, match="mm away"):
        there_and_back(tmp_path / "a.nii", data, moved)


def test_voxels_that_touch_by_a_corner_are_one_region():
    labels = np.zeros((5, 5, 5), np.int16)
    labels[1, 1, 1] = labels[2, 2, 2] = labels[3, 3, 2] = 7
    labels[4, 0, 0] = 7
    regions, codes, counts = label_maps._regions(labels)
    assert codes.tolist() == [0, 7, 7] and counts.tolist() == [121, 3, 1]
    assert regions[1, 1, 1] == regions[2, 2, 2] == regions[3, 3, 2] != regions[4, 0, 0]
