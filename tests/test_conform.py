# SPDX-License-Identifier: Apache-2.0
"""What a scan may look like on disk, and the sentence for everything it may not."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.conform import conform, stated_zooms

SHAPE = (12, 14, 10)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 200, SHAPE)


def oblique(zooms: tuple[float, float, float] = (1.0, 1.2, 3.0)) -> np.ndarray:
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1.0]]
    )
    return nib.affines.from_matvec(turn @ np.diag(zooms), [11.0, -7.0, 3.5])


def write(
    path: Path, data: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None
) -> Path:
    image = nib.Nifti1Image(data, None)
    known = next((affine for affine in (sform, qform) if affine is not None), np.eye(4))
    image.header.set_zooms([*nib.affines.voxel_sizes(known), *[1.0] * (data.ndim - 3)])
    image.header.set_sform(sform, 1 if sform is not None else 0)
    if qform is not None:
        image.header.set_qform(qform, 1)
    else:
        image.header["qform_code"] = 0
    image.to_filename(path)
    return path


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32", "float64"])
def test_values_grid_and_orientation_stay(tmp_path: Path, values: np.ndarray, kind: str) -> None:
    affine = oblique()
    path = write(tmp_path / "a.nii.gz", values.astype(kind), affine, affine)
    image, remarks = conform(path)
    assert image.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(image.dataobj), values.astype(np.float32))
    for form in (image.affine, image.get_sform(), image.get_qform()):
        assert np.allclose(form, affine, atol=1e-4)
    assert remarks == []


def test_scaling_is_applied_once(tmp_path: Path, values: np.ndarray) -> None:
    image = nib.Nifti1Image(values.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.25, 10.0)
    image.to_filename(tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())  # nibabel rescales; put the integers back
    raw[352:] = values.astype("<i2").tobytes(order="F")
    raw[112:120] = np.array([0.25, 10.0], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    conformed, _ = conform(tmp_path / "a.nii")
    assert np.allclose(conformed.get_fdata(), values * 0.25 + 10.0)
    conformed.to_filename(tmp_path / "b.nii.gz")
    again, _ = conform(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asarray(again.dataobj), np.asarray(conformed.dataobj))


def test_a_fourth_axis_of_one_volume_goes(tmp_path: Path, values: np.ndarray) -> None:
    affine = oblique()
    path = write(tmp_path / "a.nii.gz", values[..., None].astype(np.int16), affine, affine)
    assert conform(path)[0].shape == SHAPE


def test_not_a_number_and_infinity_are_replaced_with_a_remark(
    tmp_path: Path, values: np.ndarray
) -> None:
    data = values.astype(np.float32)
    data[0, 0, 0], data[1, 0, 0], data[2, 0, 0] = np.nan, np.inf, -np.inf
    image, remarks = conform(write(tmp_path / "a.nii", data, np.eye(4), np.eye(4)))
    result = np.asarray(image.dataobj)
    finite = data[np.isfinite(data)]
    assert (result[0, 0, 0], result[1, 0, 0], result[2, 0, 0]) == (0, finite.max(), finite.min())
    assert len(remarks) == 1 and remarks[0].startswith("3 voxels")


def test_not_a_number_is_nothing_where_all_values_are_positive(
    tmp_path: Path, values: np.ndarray
) -> None:
    data = values.astype(np.float32) + 50
    data[0, 0, 0] = np.nan
    image, _ = conform(write(tmp_path / "a.nii", data, np.eye(4), np.eye(4)))
    assert np.asarray(image.dataobj)[0, 0, 0] == 0


def test_sform_wins_over_another_qform_with_a_remark(tmp_path: Path, values: np.ndarray) -> None:
    other = oblique()
    other[:3, 3] += 5.0
    image, remarks = conform(write(tmp_path / "a.nii", values.astype("i2"), oblique(), other))
    assert np.allclose(image.affine, oblique(), atol=1e-4)
    assert "disagree" in remarks[0]
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)


def test_qform_serves_where_the_sform_is_absent(tmp_path: Path, values: np.ndarray) -> None:
    image, remarks = conform(write(tmp_path / "a.nii", values.astype("i2"), None, oblique()))
    assert np.allclose(image.affine, oblique(), atol=1e-4) and remarks == []


def test_a_slight_shear_becomes_the_nearest_rotation_and_more_is_refused(
    tmp_path: Path, values: np.ndarray
) -> None:
    sheared = oblique()
    sheared[0, 1] += 0.03
    image, remarks = conform(write(tmp_path / "a.nii", values.astype("i2"), sheared, None))
    assert np.allclose(image.affine, sheared, atol=0.03)
    sizes = nib.affines.voxel_sizes(image.affine)
    assert np.allclose(sizes, nib.affines.voxel_sizes(sheared), atol=1e-4)
    directions = image.affine[:3, :3] / sizes
    assert np.allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    assert len(remarks) == 1 and "sheared" in remarks[0]
    sheared[0, 1] += 0.4
    path = write(tmp_path / "b.nii", values.astype("i2"), sheared, oblique())
    with pytest.raises(ImageError, match="is sheared"):
        conform(path)


@pytest.mark.parametrize("pixdim", [3.2, 0.0, np.nan])
def test_pixdim_loses_against_a_good_sform(
    tmp_path: Path, values: np.ndarray, pixdim: float
) -> None:
    path = write(tmp_path / "a.nii", values.astype("i2"), oblique(), None)
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.full(3, pixdim, "<f4").tobytes()
    path.write_bytes(raw)
    image, remarks = conform(path)
    assert np.allclose(image.affine, oblique(), atol=1e-4)
    assert len(remarks) == 1 and "pixdim" in remarks[0]
    assert np.allclose(stated_zooms(nib.load(path).header), (1.0, 1.2, 3.0), atol=1e-4)


@pytest.mark.parametrize("size", [1e30, 1e-5, np.inf])
def test_a_voxel_size_that_cannot_be_is_refused(
    tmp_path: Path, values: np.ndarray, size: float
) -> None:
    path = write(tmp_path / "a.nii", values.astype("i2"), None, None)
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.full(3, size, "<f4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(ImageError, match="voxel size"):
        conform(path)


def test_without_any_form_the_voxel_size_is_kept_and_the_doubt_is_stated(
    tmp_path: Path, values: np.ndarray
) -> None:
    image = nib.Nifti1Image(values.astype("i2"), None)
    image.header.set_zooms((1.5, 2.0, 2.5))
    image.to_filename(tmp_path / "a.nii")
    conformed, remarks = conform(tmp_path / "a.nii")
    assert np.allclose(nib.affines.voxel_sizes(conformed.affine), (1.5, 2.0, 2.5))
    assert "left and right" in remarks[0]
    assert conformed.header["sform_code"] == conformed.header["qform_code"] == 1


def test_metres_become_millimetres(tmp_path: Path, values: np.ndarray) -> None:
    affine = np.diag([0.001, 0.001, 0.002, 1.0])
    path = write(tmp_path / "a.nii", values.astype("i2"), affine, affine)
    image = nib.load(path)
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "b.nii")
    conformed, remarks = conform(tmp_path / "b.nii")
    assert np.allclose(conformed.header.get_zooms(), (1.0, 1.0, 2.0))
    assert "unit" in remarks[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (np.ones((8, 8, 8, 5), np.int16), "5 volumes"),
        (np.arange(64, dtype=np.int16).reshape(8, 8), "single slice"),
        (np.arange(64, dtype=np.int16).reshape(8, 8, 1), "single slice"),
        (np.arange(192, dtype=np.int16).reshape(8, 8, 3), "too few voxels"),
        (np.zeros((8, 8, 8), np.int16), "same value"),
        (np.full((8, 8, 8), np.nan, np.float32), "no finite value"),
        (np.ones((8, 8, 8), np.complex64), "complex"),
        (np.ones((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
    ],
)
def test_what_is_not_a_volume_is_refused(tmp_path: Path, data: np.ndarray, says: str) -> None:
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=says) as caught:
        conform(tmp_path / "a.nii.gz")
    assert str(tmp_path) not in str(caught.value)


def test_files_that_are_not_there_or_broken(tmp_path: Path, values: np.ndarray) -> None:
    whole = write(tmp_path / "whole.nii.gz", values.astype("i2"), oblique(), oblique())
    content = whole.read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(content)[:-500])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    (tmp_path / "text.nii.gz").write_text("not an image at all" * 100)
    (tmp_path / "empty.nii.gz").touch()
    (tmp_path / "pointer.nii.gz").write_text("/annex/objects/MD5E-s123--abc.nii.gz\n")
    (tmp_path / "link.nii.gz").symlink_to("../.git/annex/objects/xx/yy/MD5E-s1--a.nii.gz")
    (tmp_path / "dangling.nii.gz").symlink_to("nowhere.nii.gz")
    expected = {
        "cut.nii.gz": "cut short", "cut.nii": "cut short", "flipped.nii.gz": "damaged|readable",
        "text.nii.gz": "not a readable", "empty.nii.gz": "empty", "pointer.nii.gz": "datalad get",
        "link.nii.gz": "datalad get", "dangling.nii.gz": "points to a missing file",
        "absent.nii.gz": "does not exist",
    }  # fmt: skip
    for name, says in expected.items():
        with pytest.raises(ImageError, match=says):
            conform(tmp_path / name)


def raw_header(path: Path, offset: int, values: np.ndarray) -> Path:
    raw = bytearray(path.read_bytes())
    raw[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("size", "taken"), [(5, False), (6, True)])
def test_the_smallest_volume(tmp_path: Path, size: int, taken: bool) -> None:
    data = np.arange(8 * size * 9, dtype=np.int16).reshape(8, size, 9)
    nib.Nifti1Image(data, np.eye(4)).to_filename(tmp_path / "a.nii")
    if taken:
        assert conform(tmp_path / "a.nii")[0].shape == (8, size, 9)
    else:
        with pytest.raises(ImageError, match="8 x 5 x 9"):
            conform(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("size", "taken"), [(0.0049, False), (0.0051, True), (99.0, True), (101.0, False)]
)
def test_the_smallest_and_largest_voxel(
    tmp_path: Path, values: np.ndarray, size: float, taken: bool
) -> None:
    affine = np.diag([1.0, size, 1.0, 1.0])
    path = write(tmp_path / "a.nii", values.astype("i2"), affine, affine)
    if taken:
        assert nib.affines.voxel_sizes(conform(path)[0].affine)[1] == pytest.approx(size, rel=1e-5)
    else:
        with pytest.raises(ImageError, match="impossible"):
            conform(path)


@pytest.mark.parametrize(
    ("degrees", "outcome"), [(0.02, "same"), (0.2, "straight"), (4.9, "straight"), (5.1, "no")]
)
def test_how_much_shear(tmp_path: Path, values: np.ndarray, degrees: float, outcome: str) -> None:
    sine = np.sin(np.radians(degrees))
    sheared = np.array([[1, sine, 0, 0], [0, np.cos(np.radians(degrees)), 0, 0],
                        [0, 0, 2.0, 0], [0, 0, 0, 1]])  # fmt: skip
    path = write(tmp_path / "a.nii", values.astype("i2"), sheared, None)
    if outcome == "no":
        with pytest.raises(ImageError, match="5 degrees"):
            conform(path)
        return
    image, remarks = conform(path)
    assert len(remarks) == (outcome == "straight")
    # The axes are less than a right angle apart: each turns away by half of what lacks.
    turn = -np.radians(degrees) / 2 if outcome == "straight" else 0.0
    assert image.affine[1, 0] == pytest.approx(np.sin(turn), abs=1e-6)
    assert nib.affines.voxel_sizes(image.affine) == pytest.approx((1, 1, 2), abs=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [("micron", 1e3), ("meter", 1e-3), ("unknown", 1.0)])
def test_units_of_length(tmp_path: Path, values: np.ndarray, unit: str, scale: float) -> None:
    affine = np.diag([scale, scale, 2 * scale, 1.0])
    affine[:3, 3] = 5 * scale
    for name, sform, qform in (("s.nii", affine, None), ("q.nii", None, affine)):
        image = nib.load(write(tmp_path / name, values.astype("i2"), sform, qform))
        image.header.set_xyzt_units(unit)
        image.to_filename(tmp_path / f"u{name}")
        conformed, remarks = conform(tmp_path / f"u{name}")
        wanted = nib.affines.from_matvec(np.diag([1, 1, 2]), [5, 5, 5])
        assert np.allclose(conformed.affine, wanted, atol=1e-4)
        assert len(remarks) == (unit != "unknown")
        assert conformed.header.get_xyzt_units()[0] == "mm"
        assert np.allclose(stated_zooms(nib.load(tmp_path / f"u{name}").header), (1, 1, 2))


@pytest.mark.parametrize("moved", [0.09, 0.11])
def test_forms_that_differ_by_a_tenth_of_a_voxel(
    tmp_path: Path, values: np.ndarray, moved: float
) -> None:
    qform = np.diag([2.0, 2.0, 2.0, 1.0])
    sform = qform.copy()
    sform[0, 3] += 2 * moved
    image, remarks = conform(write(tmp_path / "a.nii", values.astype("i2"), sform, qform))
    assert np.allclose(image.affine, sform, atol=1e-6)
    assert len(remarks) == (moved > 0.1)


@pytest.mark.parametrize(("off", "remark"), [(1.005, 0), (1.02, 1)])
def test_pixdim_that_differs_by_a_hundredth(
    tmp_path: Path, values: np.ndarray, off: float, remark: int
) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    path = write(tmp_path / "a.nii", values.astype("i2"), affine, None)
    raw_header(path, 80, np.array([2, 2, 2 * off], "<f4"))
    image, remarks = conform(path)
    assert np.allclose(image.affine, affine) and len(remarks) == remark


def test_a_flat_sform_gives_way_to_the_qform(tmp_path: Path, values: np.ndarray) -> None:
    path = write(tmp_path / "a.nii", values.astype("i2"), oblique(), oblique())
    flat = oblique()
    flat[:3, 2] = flat[:3, 0]
    raw_header(path, 280, flat[:3].astype("<f4"))
    image, remarks = conform(path)
    assert np.allclose(image.affine, oblique(), atol=1e-4)
    assert len(remarks) == 1 and "qform was used" in remarks[0]


def test_without_a_form_the_volume_is_centred(tmp_path: Path, values: np.ndarray) -> None:
    path = write(tmp_path / "a.nii", values.astype("i2"), None, None)
    raw_header(path, 80, np.array([1.5, 2, 2.5], "<f4"))
    image, _ = conform(path)
    middle = nib.affines.apply_affine(image.affine, (np.array(SHAPE) - 1) / 2)
    assert np.allclose(middle, 0, atol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti2Image, nib.MGHImage, nib.Spm99AnalyzeImage])
def test_other_formats_lie_where_nibabel_puts_them(
    tmp_path: Path, values: np.ndarray, kind: type
) -> None:
    suffix = {"Nifti2Image": "nii", "MGHImage": "mgz"}.get(kind.__name__, "img")
    affine = oblique() if suffix != "img" else np.diag([-1.0, 1.2, 3, 1])
    data = values.astype(np.float32)
    kind(data, affine).to_filename(tmp_path / f"a.{suffix}")
    image, remarks = conform(tmp_path / f"a.{suffix}")
    assert remarks == []
    assert isinstance(image, nib.Nifti1Image)
    loaded = nib.load(tmp_path / f"a.{suffix}")
    assert np.allclose(image.affine, loaded.affine, atol=1e-4)
    assert np.allclose(image.get_fdata(), data, atol=1e-3)


def test_analyze_does_not_know_left_from_right(tmp_path: Path, values: np.ndarray) -> None:
    nib.AnalyzeImage(values.astype(np.float32), np.eye(4)).to_filename(tmp_path / "a.img")
    (words,) = conform(tmp_path / "a.img")[1]
    assert "left and right cannot be told apart" in words


def test_a_pointer_is_a_small_file_only(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_text("version https://git-lfs" + " " * 1000)
    with pytest.raises(ImageError, match="git lfs pull"):
        conform(tmp_path / "a.nii")
    (tmp_path / "b.nii").write_text("version https://git-lfs" + " " * 1001)
    with pytest.raises(ImageError, match="not a readable"):
        conform(tmp_path / "b.nii")


@pytest.mark.shared
def test_every_shared_scan_conforms(shared_data: Path) -> None:
    for path in sorted(shared_data.glob("bids_mini/sub-*/anat/*.nii.gz")):
        image, remarks = conform(path)
        assert np.allclose(image.affine, nib.load(path).affine, atol=1e-4), path.name
        assert remarks == [], path.name


def test_voxel_sizes_below_zero_leave_the_orientation_of_the_qform(
    tmp_path: Path, values: np.ndarray
) -> None:
    path = write(tmp_path / "a.nii", values.astype("i2"), None, oblique())
    raw = bytearray(path.read_bytes())
    raw[80:92] = (-np.frombuffer(raw[80:92], "<f4")).tobytes()
    path.write_bytes(raw)
    image, remarks = conform(path)
    assert np.allclose(image.affine, oblique(), atol=1e-4)
    assert remarks == []
