# SPDX-License-Identifier: Apache-2.0
"""Odd files in a data set cost themselves: one sidecar, one statement, one image."""

import gzip
import json
import math
import os
from pathlib import Path

import nibabel as nib
import pytest

from bids_moediff.bids import discover
from bids_moediff.bids import statements as of_sidecars
from bids_moediff.bids.discover import (
    discover_participant,
    near_participants,
    require_an_image,
)
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.statements import read_statements
from bids_moediff.cli.dry_run import print_plan
from bids_moediff.errors import ImageError, NothingToProcessError, UsageError
from bids_moediff.execution import preflight
from bids_moediff.execution.preflight import check_participants
from bids_moediff.settings import load_settings
from bids_moediff.workflows.participant import node_name
from field_data import small_head


def put(root: Path, relative: str, content: bytes = b"stub") -> Path:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def settings_for(root, **options):
    given = {"bids_dir": root, "output_dir": "/out", "analysis_level": "participant"}
    return load_settings({**given, **options}, None, {})


def find(root, label="01", **options):
    return discover_participant(settings_for(root, **options), label)


def statements(root, content, *, remarks):
    """What can be used of a sidecar with these bytes, and that number of remarks."""
    found, words = read_statements(put(root, "x.json", content), "x.json")
    assert len(words) == remarks, words
    json.loads(json.dumps(found, ensure_ascii=False).encode(), parse_constant=pytest.fail)
    return found, words


@pytest.mark.parametrize(
    "content",
    [
        b'[{"MRAcquisitionType": "3D"}]',
        b"null",
        b"3",
        b'{"EchoTime": ',
        b"",
        b"[" * 100_000 + b"]" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_a_sidecar_that_is_no_object_is_left_out(tmp_path, content):
    found, remarks = statements(tmp_path, content, remarks=1)
    assert found == {}
    assert remarks[0].startswith("x.json is left out: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SliceThickness", "NaN"),
        ("SliceThickness", "1e999"),
        ("SliceThickness", "9" * 5000),
        ("SliceThickness", '"4.5 mm"'),
        ("SliceThickness", "[4.5]"),
        ("SliceThickness", "-5"),
        ("SliceThickness", "0.005"),
        ("SliceThickness", "5000"),
        ("SliceThickness", "true"),
        ("SliceThickness", "null"),
        ("MRAcquisitionType", "[1]"),
        ("MRAcquisitionType", '"axial"'),
        ("SliceEncodingDirection", '["k"]'),
        ("SliceEncodingDirection", '"Z"'),
        ("Manufacturer", '"\\ud800"'),
        ("Deep", "[" * 40 + "]" * 40),
        ("Within", '{"a": [1, -Infinity]}'),
        ("subject", '"other"'),
        ("session", '"baseline"'),
        ("run", "1"),
        ("suffix", '"bold"'),
        ("datatype", '["func"]'),
    ],
)
def test_a_statement_that_cannot_be_is_left_out_alone(tmp_path, key, value):
    content = f'{{"EchoTrainLength": 7, "{key}": {value}}}'.encode()
    found, remarks = statements(tmp_path, content, remarks=1)
    assert found == {"EchoTrainLength": 7}
    assert f'"{key}"' in remarks[0] or f"'{key}'" in remarks[0]
    assert len(remarks[0]) < 200


def nested(depth: int) -> list:
    found: list = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("SliceThickness", [0.05, 100.0, 3], [0.049, 100.1]),
        ("SpacingBetweenSlices", [0.05, 100.0], [0.049, 100.1, False]),
        ("EchoTime", [0.0, 100], [-0.001, 100.1, True]),
        ("InversionTime", [0.0, 100], [-0.001, 100.1]),
        ("MRAcquisitionType", ["2D", "3D"], ["4D", 2]),
        ("SliceEncodingDirection", ["i", "j", "k", "i-", "j-", "k-"], ["K", "-k"]),
        ("Nested", [nested(20), {"a": {"b": nested(17)}}], [nested(21), {"a": {"b": nested(19)}}]),
        ("Text", ["µ", {"µ": ["µ"]}], ["\ud800", {"\udfff": 1}, [["a", "\ud801"]]]),
        ("\ud800", [], [1]), ("x\nx", ["\ud7ff\ue000"], []),
    ],
)  # fmt: skip
def test_limits_of_what_a_statement_may_be(tmp_path, key, good, bad):
    for value in good:
        found, _ = statements(tmp_path, json.dumps({key: value}).encode(), remarks=0)
        assert found == {key: value}
    for value in bad:
        found, _ = statements(tmp_path, json.dumps({key: value}).encode(), remarks=1)
        assert found == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"EchoTime": -1}, "-1 is not a number from 0 to 100"), ({"run": "a\nb"}, r"'a\nb'"),
        ({"MRAcquisitionType": [1]}, "[1] is neither 2D"), ({"A": "\ud800"}, "characters"),
        ({"A": [math.nan]}, "finite"), ({"A": nested(21)}, "20 deep"),
        ({"run": "a" * 58}, f"'{'a' * 58}' belongs"),
        ({"run": "a" * 59}, f"'{'a' * 56}... belongs"),
    ],
)  # fmt: skip
def test_why_a_statement_is_left_out(tmp_path, content, words):
    (reason,) = statements(tmp_path, json.dumps(content).encode(), remarks=1)[1]
    assert reason.startswith(f"x.json: '{next(iter(content))}'") and words in reason


def test_long_numbers_and_long_sidecars(tmp_path, monkeypatch):
    number = "9" * 300
    assert statements(tmp_path, f'{{"A": {number}}}'.encode(), remarks=0)[0] == {"A": int(number)}
    assert statements(tmp_path, f'{{"A": {number}9}}'.encode(), remarks=1)[0] == {}
    monkeypatch.setattr(of_sidecars, "MOST_BYTES", 20)
    assert statements(tmp_path, b'{"A": 1}' + 12 * b" ", remarks=0)[0] == {"A": 1}
    assert statements(tmp_path, b'{"A": 1}' + 13 * b" ", remarks=1)[0] == {}


def test_sidecars_are_read_once_for_each_participant(tmp_path):
    """Those at the root once for all; the others again when another participant was in between."""
    for name in ("T1w.json", "sub-01/anat/sub-01_T1w.json", "sub-02/anat/sub-02_T1w.json"):
        put(tmp_path, name, json.dumps({name.split("/")[0]: 1}).encode())
    sidecars = of_sidecars.Sidecars(tmp_path)

    def read(label: str) -> dict:
        path = tmp_path / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii.gz"
        return sidecars.of_image(path, {"sub": label}, "T1w")[0]

    first = {"T1w.json": 1, "sub-01": 1}
    assert read("01") == first
    put(tmp_path, "T1w.json", b'{"new": 1}')
    put(tmp_path, "sub-01/anat/sub-01_T1w.json", b'{"new": 1}')
    put(tmp_path, "sub-01/anat/T1w.json", b'{"new": 2}')
    assert read("01") == first
    assert read("02") == {"T1w.json": 1, "sub-02": 1}
    assert read("01") == {"T1w.json": 1, "new": 1}
    assert sidecars.of_image(tmp_path / "sub-01/anat/x", {"sub": "01"}, "T2w") == ({}, [])


def test_texts_of_dicom_are_padded(tmp_path):
    found, _ = statements(tmp_path, b'{"MRAcquisitionType": "2d "}', remarks=0)
    assert found == {"MRAcquisitionType": "2D"}


def test_a_statement_that_is_made_twice(tmp_path):
    content = b'{"SliceThickness": 5, "SliceThickness": 2, "EchoTime": 1, "EchoTime": 1}'
    found, words = statements(tmp_path, content, remarks=1)
    assert found == {"SliceThickness": 2, "EchoTime": 1}
    assert "'SliceThickness' twice" in words[0]


def test_a_sidecar_larger_than_memory_costs_itself(tmp_path):
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    with put(tmp_path, "T1w.json").open("wb") as file:
        file.truncate(1 << 36)
    found = find(tmp_path)
    assert found.images[0].problem is None
    assert "68,719,476,736 bytes" in found.notices[0]


def test_two_sidecars_of_one_folder_that_differ(tmp_path):
    put(tmp_path, "sub-01/ses-1/anat/sub-01_ses-1_acq-a_T1w.nii.gz")
    for name, thickness in (("acq-a", 2), ("ses-1", 7), ("ses-1_acq-a", 8)):
        path = f"sub-01/ses-1/anat/sub-01_{name}_T1w.json"
        put(tmp_path, path, b'{"SliceThickness": %d, "EchoTime": 1}' % thickness)
    found = find(tmp_path)
    assert found.images[0].metadata["SliceThickness"] == 8
    (words,) = found.notices  # what is more special may differ
    assert "sub-01_acq-a_T1w.json and sub-01_ses-1_T1w.json differ in 'SliceThickness'" in words


@pytest.mark.parametrize(("encoding", "remarks"), [("utf-8-sig", 0), ("utf-16", 0), ("cp1252", 1)])
def test_other_encodings_are_read(tmp_path, encoding, remarks):
    content = '{"SliceThickness": 4.5, "InstitutionName": "Köln"}'.encode(encoding)
    found, _ = statements(tmp_path, content, remarks=remarks)
    assert found == {"SliceThickness": 4.5, "InstitutionName": "Köln"}


def test_one_odd_sidecar_leaves_the_others_alone(tmp_path):
    odd = {"T1w": b"null", "T2w": b'{"run": 1, "SliceThickness": 4}', "FLAIR": b"{}"}
    for suffix, content in odd.items():
        put(tmp_path, f"sub-01/anat/sub-01_{suffix}.nii.gz")
        put(tmp_path, f"sub-01/anat/sub-01_{suffix}.json", content)
    found = find(tmp_path)
    assert [image.metadata for image in found.images] == [{}, {}, {"SliceThickness": 4}]
    assert len(found.notices) == 2


def test_sidecars_that_are_no_files(tmp_path):
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    folder = tmp_path / "sub-01" / "anat"
    (folder / "sub-01_T1w.json").symlink_to("../../.git/annex/objects/a/b/x")
    os.mkfifo(tmp_path / "T1w.json")
    (tmp_path / "sub-01" / "sub-01_T1w.json").mkdir()
    found = find(tmp_path)
    assert [image.metadata for image in found.images] == [{}]
    pipe, dangling = found.notices[0], found.notices[2]
    assert "not a regular file" in pipe
    assert "datalad get sub-01/anat/sub-01_T1w.json" in dangling


def test_name_and_folder_must_agree(tmp_path):
    put(tmp_path, "sub-04/anat/sub-04_T1w.nii.gz")
    for stem in ("sub-04_T1w", "sub-05_ses-a_T1w"):
        put(tmp_path, f"sub-05/anat/{stem}.nii.gz")
    put(tmp_path, "sub-05/ses-a/anat/sub-05_T2w.nii.gz")
    put(tmp_path, "sub-05/ses-a/anat/sub-05_ses-b_T2w.nii.gz")
    put(tmp_path, "sub-05/ses-a/anat/sub-05_ses-a_T2w.nii.gz")
    link = tmp_path / "sub-05/ses-a/anat/sub-05_ses-a_FLAIR.nii.gz"
    link.symlink_to("../../../sub-04/anat/sub-04_T1w.nii.gz")
    (tmp_path / "sub-06").symlink_to("sub-04")
    found = find(tmp_path, "05")
    assert [image.key for image in found.images] == ["sub-05_ses-a_T2w"]
    assert len(found.notices) == 5
    assert any("name says sub-04, its folder sub-05" in words for words in found.notices)
    assert any("link to an image of sub-04" in words for words in found.notices)
    assert find(tmp_path, "06").images == ()


def test_only_what_is_below_the_root_is_an_entity(tmp_path):
    root = tmp_path / "sub-01" / "ses-x" / "func" / "run-7"
    for label in ("01", "02"):
        put(root, f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
        put(root, f"sub-{label}/ses-a/anat/sub-{label}_ses-a_T2w.nii.gz")
    for options in ({}, {"bids_database_dir": tmp_path / "database"}):
        for label in ("01", "02"):
            keys = [image.key for image in find(root, label, **options).images]
            assert keys == [f"sub-{label}_T1w", f"sub-{label}_ses-a_T2w"]
            (only,) = find(root, label, session_label=["a"], **options).images
            assert only.suffix == "T2w"
    assert find(root, "02", session_label=["x"]).images == ()


def test_links_that_lead_back_and_pipes(tmp_path):
    folder = put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz").parent
    (folder / "anat").symlink_to(".")
    (tmp_path / "sub-01" / "ses-a").symlink_to(".")
    os.mkfifo(folder / "sub-01_T2w.nii.gz")
    (folder / "sub-01_FLAIR.nii.gz").mkdir()
    found = find(tmp_path)
    problems = {image.suffix: image.problem for image in found.images}
    assert problems.pop("T1w") is None
    assert problems == {"T2w": "sub-01/anat/sub-01_T2w.nii.gz is not a regular file."}


def test_what_nobody_foresaw_costs_one_image_or_one_participant(tmp_path, monkeypatch):
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    put(tmp_path, "sub-01/anat/sub-01_T2w.nii.gz")

    def fail(path, *words):
        if "T2w" in str(path):
            raise KeyError("odd")

    monkeypatch.setattr(discover, "_problem", fail)
    good, bad = find(tmp_path).images
    assert good.problem is None
    assert "KeyError" in bad.problem
    monkeypatch.setattr(discover, "_select", fail)
    monkeypatch.setattr(discover, "_wanted", lambda *words: 1 / 0)
    with pytest.raises(ImageError, match="ZeroDivisionError"):
        find(tmp_path)


def test_an_image_that_was_replaced_is_another_one_to_the_steps(tmp_path):
    path = put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (image,) = find(tmp_path).images
    first = image.to_json()
    assert AnatomicalImage.from_json(first) == image
    assert image.to_json() == first
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    assert image.to_json() != first


def test_labels_that_differ_in_a_sign_have_steps_of_their_own(tmp_path):
    for label in ("B1", "B1+", "B1x2b"):
        put(tmp_path, f"sub-01/anat/sub-01_acq-{label}_T1w.nii.gz")
    names = {node_name(image) for image in find(tmp_path).images}
    assert len(names) == 3
    assert all(name.replace("_", "").isalnum() for name in names)


def test_names_that_no_encoding_reads_and_names_of_255_characters(tmp_path):
    put(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    folder = os.fsencode(tmp_path / "sub-01" / "anat")
    for name in (b"sub-01_acq-\xff\xe4_T1w.nii.gz", b"sub-01_acq-a\nb\x1b[31m_T1w.nii.gz"):
        (Path(os.fsdecode(folder)) / os.fsdecode(name)).write_bytes(b"stub")
    label = "x" * (255 - len("sub-01_acq-_T1w.nii.gz"))
    put(tmp_path, f"sub-01/anat/sub-01_acq-{label}_T1w.nii.gz")
    (tmp_path / os.fsdecode(b"sub-\xff")).mkdir()
    found = find(tmp_path)
    assert [len(image.path.name) for image in found.images] == [17, 255]
    assert len(found.notices) == 2
    odd = find(tmp_path, os.fsdecode(b"\xff"))
    for words in (*found.notices, *odd.notices):
        assert "is left out" in words
        assert words.isprintable()


def test_a_folder_that_cannot_be_read_leaves_the_other_session_alone(tmp_path, monkeypatch):
    for session in ("a", "b"):
        put(tmp_path, f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz")
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("ses-b/anat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # a superuser may read every folder
    found = find(tmp_path)
    assert [image.key for image in found.images] == ["sub-01_ses-a_T1w"]
    assert found.problems == ("The folder sub-01/ses-b/anat cannot be read: Permission denied.",)

    # Where nothing else is there, the run still says so in its place.
    alone = settings_for(tmp_path, session_label=["b"])
    assert require_an_image(alone, ["01"]) is None

    # The run names the folder and does not end with 0, though the other session is fine.
    nib.save(small_head(), tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    (checked,) = check_participants(settings_for(tmp_path), ["01"])
    assert [image.key for image in checked.participant.images] == ["sub-01_ses-a_T1w"]
    assert [(item.label, item.image) for item in checked.refusals] == [("01", None)]
    assert "sub-01/ses-b/anat" in checked.refusals[0].message
    assert print_plan(settings_for(tmp_path, dry_run=True, device="cpu")) == 1


def test_series_for_maps_are_taken_when_asked_for(tmp_path):
    for stem in (
        "inv-1_part-mag_MP2RAGE",
        "inv-2_part-phase_MP2RAGE",
        "echo-1_MESE",
        "flip-1_VFA",
        "flip-2_mt-on_echo-3_MPM",
        "inv-1_IRT1",
        "mt-on_MTR",
        "defacemask",
        "T1w",
    ):
        put(tmp_path, f"sub-01/anat/sub-01_{stem}.nii.gz")
    asked = ["MP2RAGE", "MESE", "VFA", "MTR", "IRT1"]
    found = find(tmp_path, modalities=asked)
    assert {image.suffix for image in found.images} == set(asked)
    assert "part-phase is not a magnitude image" in found.notices[0]
    assert found.passed["T1w (left out by --modalities)"] == 1
    assert found.passed["defacemask (not offered)"] == 1


def test_no_image_says_what_is_there_instead(tmp_path):
    put(tmp_path / "mp2rage", "sub-01/anat/sub-01_inv-1_part-mag_MP2RAGE.nii.gz")
    put(tmp_path / "mp2rage", "sub-01/anat/sub-01_inv-2_part-mag_MP2RAGE.nii.gz")
    put(tmp_path / "derived", "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz")
    put(tmp_path / "study", "sourcedata/raw/sub-01/anat/sub-01_T1w.nii.gz")

    def refused(name):
        settings = settings_for(tmp_path / name)
        with pytest.raises(NothingToProcessError) as caught:
            discover.require_an_image(settings, discover.find_participants(settings))
        return caught.value

    assert "2 MP2RAGE (to be had with --modalities MP2RAGE)" in str(refused("mp2rage"))
    (remark,) = refused("derived").remarks
    assert "sub-01_desc-preproc_T1w.nii.gz is left out: it is a derivative" in remark
    assert "participants in sourcedata/raw" in str(refused("study"))


def test_a_session_that_nobody_has(tmp_path):
    for label, session in (("01", "pre"), ("02", "post1")):
        put(tmp_path, f"sub-{label}/ses-{session}/anat/sub-{label}_ses-{session}_T1w.nii.gz")
    settings = settings_for(tmp_path, session_label=["post"])
    with pytest.raises(UsageError, match=r"did you mean post1\?.*post1, pre"):
        discover.require_an_image(settings, ["01", "02"])
    discover.require_an_image(settings_for(tmp_path, session_label=["post1"]), ["01", "02"])


def test_images_and_folders_in_a_place_nearby(tmp_path):
    put(tmp_path, "sub-01/sub-01_T1w.nii.gz")
    put(tmp_path, "sub-01/Anat/sub-01_T1w.nii.gz")
    put(tmp_path, "sub-01/ses_1/anat/sub-01_T1w.nii.gz")
    put(tmp_path, "sub-01/anat/sub-01_T1w.JSON")
    for name in ("Sub-02", "sub_03", "subject04", "sub-P05", "code", "sub", "subcortex"):
        (tmp_path / name).mkdir()
    assert near_participants(tmp_path) == ["Sub-02", "sub_03", "subject04"]
    found = find(tmp_path)
    assert found.images == ()
    starts = [words.split(" is ")[0] for words in found.notices]
    assert starts == [
        "sub-01/Anat",
        "sub-01/ses_1",
        "sub-01/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T1w.JSON",
    ]


def test_two_endings_and_a_link_to_itself(tmp_path):
    """x.nii.gz.nii would write over the outputs of x.nii.gz."""
    for name in ("T1w.nii.gz", "T1w.nii.gz.nii", "T2w.nii.nii.gz"):
        put(tmp_path, f"sub-01/anat/sub-01_{name}")
    (tmp_path / "sub-01/anat/sub-01_FLAIR.nii").symlink_to("sub-01_FLAIR.nii")
    found = find(tmp_path)
    assert [image.path.name for image in found.images] == ["sub-01_T1w.nii.gz"]
    assert sum(".nii is not .nii.gz or .nii" in words for words in found.notices) == 1
    assert any("a link that leads back to itself" in words for words in found.notices)
    assert str(tmp_path) not in " ".join(found.notices)


def test_names_that_differ_in_case_only(tmp_path, monkeypatch):
    """Both are done, unless the output folder takes the two names for one."""
    for stem in ("sub-A1/anat/sub-A1_acq-a", "sub-A1/anat/sub-A1_acq-A", "sub-a1/anat/sub-a1"):
        put(tmp_path, f"{stem}_T1w.nii.gz", small_head().to_bytes())
    for path in tmp_path.rglob("*.nii.gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    settings = settings_for(tmp_path)

    def checked():
        found = list(check_participants(settings, ["A1", "a1"]))
        keys = [image.key for item in found for image in item.participant.images]
        return keys, [words.message for item in found for words in item.refusals]

    assert checked() == (["sub-A1_acq-A_T1w", "sub-A1_acq-a_T1w", "sub-a1_T1w"], [])
    monkeypatch.setattr(preflight, "ignores_case", lambda folder: True)
    keys, refused = checked()
    assert keys == ["sub-A1_acq-A_T1w"]
    assert "sub-A1_acq-a_T1w.nii.gz differs from sub-A1/anat/sub-A1_acq-A_T1w" in refused[0]
    assert "sub-a1 differs from sub-A1 in upper and lower case only" in refused[1]


@pytest.mark.parametrize("names", [["a", "B1"], ["1", "A", "a"]])
def test_a_folder_that_tells_cases_apart(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
    assert not preflight.ignores_case(tmp_path / "later" / "out")


def test_a_folder_that_takes_cases_for_one(tmp_path, monkeypatch):
    (tmp_path / "Data").mkdir()
    exists = Path.exists
    blind = {tmp_path / "dATA"}
    monkeypatch.setattr(Path, "exists", lambda path: path in blind or exists(path))
    assert preflight.ignores_case(tmp_path / "out")


def test_a_scan_that_its_header_puts_out_of_its_group_is_named(tmp_path):
    for plane in ("ax", "cor"):
        path = put(tmp_path, f"sub-01/anat/sub-01_acq-{plane}_T2w.nii.gz")
        nib.save(small_head(), path)
    put(tmp_path, "sub-01/anat/sub-01_acq-sag_T2w.nii.gz")  # found out when its header is read
    settings = settings_for(tmp_path, combine="auto")
    (group,) = discover_participant(settings, "01").groups
    assert len(group.members) == 3
    (checked,) = check_participants(settings, ["01"])
    (group,) = checked.participant.groups
    assert len(group.members) == 2
    assert [words for words in checked.participant.notices if "sub-01_acq-sag_T2w" in words]
