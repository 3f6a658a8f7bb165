# SPDX-License-Identifier: Apache-2.0
"""A catalogue of odd headers, folders, filters and options: what the dry run says of each.

Headers go through run and dry run alike (``conform`` and ``check_header``); folders, filters and
options through the command. Beside each odd thing lies a good image, which is always planned.
"""

import gzip
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bids_moediff.cli.app import main
from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.conform import check_header, conform
from field_data import small_head
from generated import dataset

RAW = small_head().to_bytes()
GOOD = "sub-01/anat/sub-01_T1w.nii.gz"
# Fields of the header by their places.
DIMENSIONS, KIND, BITS, PIXDIM, START, SCALE, UNITS = 40, 70, 72, 76, 108, 112, 123
QFORM, SFORM, QUATERNION, ROWS, MAGIC, EXTENSION = 252, 254, 256, 280, 344, 348

Edit = tuple[int, str, list[float]]
HEADERS: dict[str, tuple[list[Edit], str | None]] = {
    # What the file holds, and what is refused; None: read as the good one.
    "qfac of 0": ([(SFORM, "h", [0]), (PIXDIM, "f", [0])], None),
    "qfac not a number": ([(SFORM, "h", [0]), (PIXDIM, "f", [np.nan])], None),
    "five axes of one": ([(DIMENSIONS, "6h", [5, 30, 36, 28, 1, 1])], None),
    "seven axes of one": ([(DIMENSIONS, "8h", [7, 30, 36, 28, 1, 1, 1, 1])], None),
    "unknown unit": ([(UNITS, "B", [255])], None),
    "microseconds": ([(UNITS, "B", [24])], None),
    "bits that contradict the type": ([(BITS, "h", [64])], None),
    "start within a byte": ([(START, "f", [352.5])], None),
    "three volumes on the fifth axis": ([(DIMENSIONS, "6h", [5, 30, 36, 28, 1, 3])], "3 volumes"),
    "axes shifted by one": ([(DIMENSIONS, "5h", [4, 1, 30, 36, 28])], "28 volumes"),
    "no axes": ([(DIMENSIONS, "h", [0])], "single slice"),
    "two axes": ([(DIMENSIONS, "h", [2])], "single slice"),
    "eight axes": ([(DIMENSIONS, "h", [8])], "counts 8 dimensions"),
    "no volume": ([(DIMENSIONS, "5h", [4, 30, 36, 28, 0])], "no voxels"),
    "size below zero": ([(DIMENSIONS + 2, "h", [-30])], "too few voxels along an axis: -30"),
    "32767 voxels along each axis": ([(DIMENSIONS + 2, "3h", [32767] * 3)], "cut short"),
    "start beyond the file": ([(START, "f", [1e9])], "cut short"),
    "start at infinity": ([(START, "f", [np.inf])], "not a readable"),
    "start not a number": ([(START, "f", [np.nan])], "not a readable"),
    "start within the header": ([(START, "f", [348])], "vox offset 348 too low"),
    "bits as voxels": ([(KIND, "h", [1])], "data code 1 not supported"),
    "no type": ([(KIND, "h", [0])], "data code 0 not supported"),
    "colours with opacity": ([(KIND, "h", [2304])], "colour image"),
    "no magic": ([(MAGIC, "4B", [0, 0, 0, 0])], "not a readable"),
    "quaternion longer than 1": ([(SFORM, "h", [0]), (QUATERNION, "3f", [0.9] * 3)], "quaternion"),
    "rows far from right angles": ([(ROWS, "4f", [5.2, 4.0, 0, 0])], "is sheared"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_headers(tmp_path, name):
    edits, sentence = HEADERS[name]
    content = bytearray(RAW)
    for place, layout, numbers in edits:
        struct.pack_into(f"<{layout}", content, place, *numbers)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    if sentence is None:
        image, _ = conform(path)
        assert check_header(path)[0] == image.shape == (30, 36, 28)
        assert np.allclose(image.affine[:3, :3], np.diag([5.2, 5.2, 6.0]), atol=1e-4)
        return
    for read in (check_header, conform):
        with pytest.raises(ImageError, match=sentence) as caught:
            read(path)
        assert str(tmp_path) not in str(caught.value)


def plan(capfd, root: Path, *options: str) -> tuple[int, str]:
    """Exit code and text of a dry run."""
    fixed = ["--output-resolution", "4.5", "--model", "student", "--device", "cpu", "--dry-run"]
    code = main([str(root), str(root.parent / "out"), "participant", *fixed, *options])
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    return code, " ".join(f"{said.out} {said.err}".split())


def put(root: Path, relative: str, content: bytes | str | None = None) -> Path:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    content = gzip.compress(RAW, 1) if content is None else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def study(tmp_path) -> Path:
    root = dataset(tmp_path / "bids", {})
    put(root, GOOD)
    return root


def socket_as_image(root: Path) -> None:
    before = Path.cwd()
    os.chdir(root / "sub-01" / "anat")  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("sub-01_T2w.nii.gz")
    os.chdir(before)


def link(relative: str, target: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).symlink_to(target)

    return make


def file(relative: str, content: bytes | str | None = None) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, relative, content)

    return make


def session_of_another(root: Path) -> None:
    put(root, "sub-03/ses-1/anat/sub-03_ses-1_T1w.nii.gz")
    link("sub-02/ses-1", "../sub-03/ses-1")(root)


ANAT = "sub-01/anat/sub-01"
FOLDERS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    # What is made beside the good image, the exit code, and what is said.
    "copy of a file manager": (file(f"{ANAT}_T1w (1).nii.gz"), 0, "is not a BIDS file name"),
    "capital ending": (file(f"{ANAT}_T2w.NII.GZ"), 0, ".NII.GZ is not .nii.gz or .nii"),
    "small suffix": (file(f"{ANAT}_t2w.nii.gz"), 0, "did you mean T2w?"),
    "suffix in the middle": (file(f"{ANAT}_T1w_acq-a.nii.gz"), 0, "is not a BIDS file name"),
    "space in a label": (file(f"{ANAT}_acq-mp rage_T1w.nii.gz"), 0, "is not a BIDS file name"),
    "no participant in the name": (file("sub-01/anat/T1w.nii.gz"), 0, "is not a BIDS file name"),
    "resource fork": (file("sub-01/anat/._sub-01_T2w.nii.gz", b"x"), 0, "1 image, at most"),
    "backup": (file(f"{ANAT}_T2w.nii.gz~", b"x"), 0, "1 image, at most"),
    "socket": (socket_as_image, 1, "is not a regular file"),
    "link to a device": (link(f"{ANAT}_T2w.nii", "/dev/zero"), 1, "is not a regular file"),
    "link to a folder": (link(f"{ANAT}_T2w.nii.gz", "/tmp"), 0, "is left out: it is a folder"),
    "sidecar that is a device": (link(f"{ANAT}_T1w.json", "/dev/zero"), 0, "not a regular file"),
    "root's sidecar a device": (link("T1w.json", "/dev/random"), 0, "not a regular file"),
    "anat of another": (link("sub-02/anat", "../sub-01/anat"), 0, "its folder sub-02"),
    "session of another": (
        session_of_another,
        0, "its name says sub-03/ses-1, its folder sub-02/ses-1",
    ),
    "anat that leads to itself": (link("sub-02/anat", "anat"), 1, "levels of symbolic links"),
    "anat that is a file": (file("sub-02/anat", b"x"), 0, "Without an image to process: sub-02"),
    "label in another case": (file("sub-A1/anat/sub-a1_T1w.nii.gz"), 0, "its folder sub-A1"),
    "label without zeros": (file("sub-1/anat/sub-01_T1w.nii.gz"), 0, "its folder sub-1."),
    "label with a dash": (file("sub-02-a/anat/sub-02-a_T1w.nii.gz"), 0, "letters and digits"),
    "label with a space": (file("sub-02 /anat/sub-02_T1w.nii.gz"), 0, "letters and digits only"),
    "empty label": (file("sub-/anat/sub-_T1w.nii.gz"), 0, "letters and digits only"),
    "nearly a participant": (file("Sub-04/anat/Sub-04_T1w.nii.gz"), 0, "Not looked at: Sub-04;"),
    "one session in another": (file("sub-02/ses-a/ses-b/anat/x.nii.gz"), 0, "process: sub-02"),
    "sidecar with comments": (file(f"{ANAT}_T1w.json", '{"a": 1, // no\n}'), 0, "readable JSON"),
    "two objects in a sidecar": (file(f"{ANAT}_T1w.json", '{"a":1}{"b":2}'), 0, "readable JSON"),
    "sidecar that is a page": (file(f"{ANAT}_T1w.json", "<html></html>"), 0, "readable JSON"),
    "sidecar in UTF-32": (file(f"{ANAT}_T1w.json", "{}".encode("utf-32")), 0, "readable JSON"),
    "thickness as an object": (
        file(f"{ANAT}_T1w.json", '{"SliceThickness": {"value": 5}}'), 0, '{"value": 5} is not a',
    ),
    "colours in a statement": (
        file(f"{ANAT}_T1w.json", '{"SliceThickness": "\\u001b[31mred"}'), 0, "\\x1b[31mred",
    ),
    "distance below zero": (
        file(f"{ANAT}_T1w.json", '{"SpacingBetweenSlices": -6}'), 0, "-6 is not a number from",
    ),
    "description that is a list": (
        file("dataset_description.json", "[1]"), 2, "is not a JSON object",
    ),
    "description in UTF-16": (
        file("dataset_description.json", "{}".encode("utf-16")), 2, "cannot be read as JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_odd_folders(study, capfd, name):
    make, expected, sentence = FOLDERS[name]
    make(study)
    code, said = plan(capfd, study)
    assert code == expected
    assert sentence in said
    assert "\x1b" not in said
    if code != 2:
        assert f"{GOOD} │ 30 x 36 x 28" in said


FILTERS = {
    # A filter file, and which of four images it takes or what is said.
    '{"t1w": {"session": ["1", null]}}': "bare a ses",
    '{"t1w": {"acquisition": "*"}}': "a",
    '{"t1w": {"acquisition": ["*", null]}}': "bare a ses",
    '{"t1w": {"run": ["1", 2]}}': "a",
    '{"t1w": {"acquisition": "a"}, "t2w": {}}': "a",
    '{"t1w": {"extension": "nii.gz", "datatype": "anat"}}': "bare a ses",
    '{"bold": {"task": "x"}}': "bare a ses",
    '{"t1w": {"task": "rest"}}': "left out by --bids-filter-file",
    '{"t1w": {"datatype": "func"}}': "left out by --bids-filter-file",
    '{"t1w": {"acquisition": "A"}}': "left out by --bids-filter-file",
    '{"T1w": {}}': "did you mean t1w?",
    '{"t1w": {"run": 1.0}}': "a whole number",
    '{"t1w": {"acquisition": []}}': "must be text",
    '{"t1w": {"session": {"a": 1}}}': "must be text",
    '{"t1w": null}': "must be an object",
    '{"t1w": {"regex_search": true}}': "is not an entity",
}
IMAGES = {"bare": GOOD, "a": f"{ANAT}_acq-a_run-01_T1w.nii.gz"}
IMAGES["ses"] = "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"


@pytest.mark.parametrize("text", FILTERS)
def test_odd_filters(study, capfd, text):
    for relative in IMAGES.values():
        put(study, relative)
    path = put(study.parent, "filter.json", text)
    code, said = plan(capfd, study, "--bids-filter-file", str(path))
    wanted = set(FILTERS[text].split())
    if wanted <= set(IMAGES):
        assert code == 0
        assert {key for key, name in IMAGES.items() if f"│ {name} " in said} == wanted
    else:
        assert code in (2, 66)
        assert FILTERS[text] in said


OPTIONS = {
    "--participant-label ../sub-01": "is not a label",
    "--participant-label [red]x[/nope]": "'[red]x[/nope]' is not a label",
    "--participant-label 01 --exclude-participant-label 01": "sub-01 is in --participant-label",
    "--session-label 9": "1 T1w (left out by --session-label)",
    "--output-resolution auto auto": "did you mean auto?",
    "--output-resolution 1 1": "one or three voxel sizes",
    "--output-resolution inf": "nor one or three voxel sizes",
    "--mem 1PB": "is not an amount of memory",
    "--nprocs 1e9": "is not a whole number",
    "--random-seed 1e30": "is not a whole number",
    "--modalities T2w": "1 T1w (left out by --modalities)",
    "--weights /dev/zero": "is not a folder with config.json",
}


@pytest.mark.parametrize("words", OPTIONS)
def test_odd_options(study, capfd, words):
    code, said = plan(capfd, study, *words.split())
    assert code in (2, 66, 78)
    assert OPTIONS[words] in said
