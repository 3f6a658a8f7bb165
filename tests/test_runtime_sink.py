# SPDX-License-Identifier: Apache-2.0
"""Atomic, deterministic writes."""

import json
import multiprocessing
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.runtime import sink
from bids_moediff.runtime.sink import (
    atomic,
    table_text,
    write_bytes,
    write_json,
    write_nifti,
    write_text,
)


def image():
    values = np.random.default_rng(3).normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.array([[0.8, 0.1, 0, -4], [-0.1, 0.8, 0, 5], [0, 0, 1.2, 6], [0, 0, 0, 1]])
    return nib.Nifti1Image(values, affine)


def test_same_image_same_bytes_whenever_and_wherever(tmp_path, monkeypatch):
    first = write_nifti(image(), tmp_path / "a" / "x.nii.gz").read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert write_nifti(image(), tmp_path / "b" / "other.nii.gz").read_bytes() == first
    assert struct.unpack("<I", first[4:8]) == (0,)  # modification time of the gzip header
    assert first[3] == 0  # flags: no file name
    loaded = nib.load(tmp_path / "a" / "x.nii.gz")
    np.testing.assert_array_equal(np.asarray(loaded.dataobj), np.asarray(image().dataobj))
    np.testing.assert_allclose(loaded.affine, image().affine, atol=1e-6)


def test_names_of_persons_and_hosts_do_not_pass(tmp_path):
    source = image()
    source.header["aux_file"] = b"/home/someone/x"
    for field in ("db_name", "descrip", "intent_name", "data_type"):
        source.header[field] = b"someone"
    source.header["cal_max"], source.header["cal_min"] = 123.0, 7.0
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    content = write_nifti(source, tmp_path / "x.nii").read_bytes()
    assert b"someone" not in content
    assert b"Jane" not in content
    header = nib.load(tmp_path / "x.nii").header
    assert (header["cal_max"], header["cal_min"]) == (0, 0)
    assert content[:4] == struct.pack("<I", 348), "not compressed"
    assert len(source.header.extensions) == 1  # the caller's image is left as it was


def test_nothing_is_left_of_a_failed_write(tmp_path):
    target = write_text("old", tmp_path / "x.txt")
    with pytest.raises(ZeroDivisionError), atomic(target) as stream:
        stream.write(b"half")
        1 / 0  # noqa: B018
    with pytest.raises(ValueError, match="JSON"):
        write_json({"x": float("nan")}, target)
    with pytest.raises(TypeError, match="PosixPath"):
        write_json({"x": target}, target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_numbers_of_numpy_and_letters_of_the_world(tmp_path):
    path = write_json({"b": np.float32(0.5), "a": np.arange(2), "c": "µ"}, tmp_path / "x.json")
    assert json.loads(path.read_text(encoding="utf-8")) == {"b": 0.5, "a": [0, 1], "c": "µ"}
    assert path.read_text(encoding="utf-8").index('"b"') < path.read_text().index('"a"')
    assert "µ" in path.read_text(encoding="utf-8")


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_text("x", tmp_path / "x.txt")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def _write_many(path, letter):
    for _ in range(30):
        write_text(letter * 100_000, path)


def test_readers_never_see_a_torn_file(tmp_path):
    path = write_text("a" * 100_000, tmp_path / "x.txt")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, letter)) for letter in "abcd"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1
    assert all(writer.exitcode == 0 for writer in writers)
    assert [item.name for item in tmp_path.iterdir()] == ["x.txt"]


def test_image_and_sidecar_appear_together(tmp_path):
    """When the sidecar is written the image is whole and lacks its name only."""
    whole = write_nifti(image(), tmp_path / "whole.nii.gz").read_bytes()
    target, sidecar = tmp_path / "anat" / "x.nii.gz", tmp_path / "anat" / "x.json"

    def write_sidecar():
        (waiting,) = target.parent.iterdir()
        assert waiting.name.startswith(".") and waiting.read_bytes() == whole
        write_json({"a": 1}, sidecar)

    write_nifti(image(), target, write_sidecar)
    assert {path.name for path in target.parent.iterdir()} == {"x.nii.gz", "x.json"}
    assert target.read_bytes() == whole


def test_no_sidecar_no_image(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_nifti(
            image(), tmp_path / "x.nii.gz", lambda: write_json({"a": float("inf")}, tmp_path / "x")
        )
    assert list(tmp_path.iterdir()) == []


def test_table():
    rows = [{"a": 1, "b": None}, {"b": "x"}, {"a": "1\t\t2\r\n3", "b": "\x1b[0m", "c": "no"}]
    cells = ["a\tb", "1\tn/a", "n/a\tx", "1 2 3\t\\x1b[0m"]
    assert table_text(rows, ["a", "b"]) == "\n".join(cells) + "\n"


def test_an_image_of_several_pieces(tmp_path, monkeypatch):
    """Pieces are put together again, and air takes hardly any room."""
    monkeypatch.setattr(sink, "PIECE", 100)
    path = write_nifti(image(), tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(nib.load(path).get_fdata(), image().get_fdata())
    monkeypatch.setattr(sink, "PIECE", 1 << 24)
    assert write_nifti(image(), tmp_path / "y.nii.gz").stat().st_size <= path.stat().st_size
    air = nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), np.eye(4))
    assert write_nifti(air, tmp_path / "z.nii.gz").stat().st_size < 256_000 / 100


def test_whole_numbers_of_a_step(tmp_path):
    values = np.array([[[-1.3, 0.0, 0.49, 2.6]]], dtype=np.float32)
    source = nib.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0]))
    source.header["descrip"] = b"someone"
    found = nib.load(write_nifti(source, tmp_path / "x.nii", step=0.5))
    assert found.get_data_dtype() == np.int16 and found.header["descrip"] == b""
    assert found.dataobj.get_unscaled().ravel().tolist() == [-3, 0, 1, 5]
    np.testing.assert_allclose(found.get_fdata().ravel(), [-1.5, 0, 0.5, 2.5])
    assert (found.dataobj.slope, found.dataobj.inter) == (0.5, 0.0)
    np.testing.assert_array_equal(found.affine, source.affine)
    assert source.get_data_dtype() == np.float32, "the caller's image is left as it was"


def test_text_as_it_is_and_names_that_no_encoding_reads(tmp_path):
    path = write_text("a\r\nb\ud800ü", tmp_path / "new" / "folder" / "x.txt")
    assert path.read_bytes() == b"a\r\nb\\ud800" + "ü".encode()
    assert write_bytes(b"\0\xff", path) == path and path.read_bytes() == b"\0\xff"
    text = write_json({"a": [1, np.int16(2)]}, tmp_path / "x.json").read_text()
    assert text == '{\n  "a": [\n    1,\n    2\n  ]\n}\n'
