# SPDX-License-Identifier: Apache-2.0
"""Odd fields of NIfTI headers and files of other kinds: what each is, in a sentence."""

import bz2
import gzip
import io
import logging
import struct
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.conform import check_header, conform, file_zooms
from field_data import small_head

DIMENSIONS, PIXDIM, START, SLOPE, QFORM, SFORM = 40, 76, 108, 112, 252, 254
QUATERNION, ROWS = 256, 280


def written(path: Path, *edits: tuple) -> Path:
    """The head in a file whose header holds something else in some fields."""
    content = bytearray(small_head().to_bytes())
    for offset, layout, *numbers in edits:
        struct.pack_into(f"<{layout}", content, offset, *numbers)
    path.write_bytes(content)
    return path


def extended(size: int) -> bytes:
    """The head with one header extension that claims a size."""
    content = bytearray(small_head().to_bytes())
    content[348:352] = b"\1\0\0\0"
    struct.pack_into("<f", content, START, 368.0)
    return bytes(content[:352] + struct.pack("<2i", size, 6) + b"x" * 8 + content[352:])


def zipped(content: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.nii", content)
    return held.getvalue()


KINDS = {
    "bzip2": bz2.compress,
    "zip archive": zipped,
    "compressed twice": lambda content: gzip.compress(gzip.compress(content)),
    "web page": lambda content: b"<!DOCTYPE html><title>Log in</title>" + bytes(400),
    "DICOM file": lambda content: bytes(128) + b"DICM" + bytes(400),
    "not compressed": lambda content: content,
    "header extensions": lambda content: gzip.compress(extended(-5)),
}


@pytest.mark.parametrize("words", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, words):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(KINDS[words](small_head().to_bytes()))
    for read in (conform, check_header):
        with pytest.raises(ImageError, match=words):
            read(path)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ((DIMENSIONS, "h", 8), "counts 8 dimensions"),
        ((DIMENSIONS, "h", -3), "counts -3 dimensions"),
        ((SFORM, "h13xf", 0, 0.0), None),
        ((START, "f", 348.0), "vox offset 348 too low"),
    ],
)
def test_what_nibabel_calls_by_another_name(tmp_path, edit, sentence):
    path = written(tmp_path / "a.nii", edit)
    if sentence is None:
        assert conform(path)[1] == []
        return
    with pytest.raises(ImageError, match=sentence):
        conform(path)


def test_a_quaternion_that_is_none(tmp_path):
    path = written(tmp_path / "a.nii", (SFORM, "h", 0), (QUATERNION, "3f", 0.9, 0.9, 0.9))
    with pytest.raises(ImageError, match="quaternion of its qform"):
        check_header(path)


def test_a_quaternion_that_is_none_under_a_code_that_is_none(tmp_path):
    broken = (QUATERNION, "3f", 2.0, 2.0, 2.0)
    path = written(tmp_path / "a.nii", (SFORM, "h", 0), (QFORM, "h", 9), broken)
    image, remarks = conform(path)
    assert nib.affines.voxel_sizes(image.affine) == pytest.approx(check_header(path)[1])
    assert any("left and right cannot be told apart" in words for words in remarks)


@pytest.mark.parametrize("code", [6, 99, 32767])
def test_a_code_that_nifti_does_not_know_is_a_statement(tmp_path, code):
    path = written(tmp_path / "a.nii", (SFORM, "h", code), (QFORM, "h", 0), (ROWS, "f", -5.2))
    image, remarks = conform(path)
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert [words[:10] for words in remarks] == ["sform_code"]


def test_a_voxel_size_of_zero_is_no_millimetre(tmp_path):
    """A sform that counts has the size; without one there is none."""
    zero = (PIXDIM + 8, "f", 0.0)
    flat = (ROWS, "12f", *[0.0] * 12)
    counts = conform(written(tmp_path / "a.nii", zero))[0]
    assert np.allclose(nib.affines.voxel_sizes(counts.affine), (5.2, 5.2, 6.0))
    path = written(tmp_path / "b.nii", zero, (SFORM, "h", 0), flat)
    for read in (conform, check_header):
        with pytest.raises(ImageError, match="no voxel size"):
            read(path)
    assert min(file_zooms(path)) == np.inf


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair])
def test_slopes_of_every_format(tmp_path, kind):
    path = tmp_path / ("a.img" if kind is nib.Nifti1Pair else "a.nii")
    head = small_head()
    nib.save(kind(np.asarray(head.dataobj), head.affine), path)
    assert conform(path)[1] == []
    header = path.with_suffix(".hdr") if kind is nib.Nifti1Pair else path
    content = bytearray(header.read_bytes())
    place, layout = (176, "<d") if kind is nib.Nifti2Image else (SLOPE, "<f")
    struct.pack_into(layout, content, place, np.nan)
    header.write_bytes(content)
    assert [words[:9] for words in conform(path)[1]] == ["scl_slope"]


def test_whole_numbers_beyond_single_precision(tmp_path):
    head = small_head()
    data = np.asarray(head.dataobj).astype(np.int64) << 52
    nib.save(nib.Nifti1Image(data, head.affine, dtype=np.int64), tmp_path / "a.nii")
    with pytest.raises(ImageError, match="store it in a unit"):
        conform(tmp_path / "a.nii")


def test_nibabel_stays_quiet(tmp_path, capfd):
    path = written(tmp_path / "a.nii", (PIXDIM + 4, "f", -5.2), (START, "f", 352.5))
    logger = nib.imageglobals.logger
    level = logger.level
    conform(path)
    check_header(path)
    assert capfd.readouterr().err == ""
    assert logger.level == level != logging.CRITICAL
