# SPDX-License-Identifier: Apache-2.0
"""Discovery on generated data sets (file names and sidecars; the images are stubs)."""

import json
import os
import re
from pathlib import Path

import pytest

from bids_moediff.bids import listing
from bids_moediff.bids.discover import (
    discover_participant,
    find_participants,
    nothing_to_process,
    with_others,
)
from bids_moediff.errors import ImageError, NothingToProcessError, UsageError
from bids_moediff.settings import load_settings


def put(root: Path, relative: str, content: object = "stub") -> Path:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "raw"
    put(root, "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    return root


def settings_for(root, **options):
    given = {"bids_dir": root, "output_dir": root.parent / "out", "analysis_level": "participant"}
    return load_settings({**given, **options}, None, {})


def names(participant):
    return [Path(image.relative_path).name for image in participant.images]


def test_contrasts_sessions_runs_and_acquisitions(dataset):
    for name in (
        "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "sub-01/ses-a/anat/sub-01_ses-a_FLAIR.nii",
        "sub-01/ses-b/anat/sub-01_ses-b_acq-hi_run-01_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_acq-hi_run-02_T1w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_inplaneT2.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T1map.nii.gz",
        "sub-01/ses-b/func/sub-01_ses-b_task-rest_bold.nii.gz",
        "sub-010/anat/sub-010_T1w.nii.gz",
    ):
        put(dataset, name)
    found = discover_participant(settings_for(dataset), "01")
    assert [image.suffix for image in found.images] == ["FLAIR", "T1w", "T1w", "T1w", "inplaneT2"]
    second = found.images[3]
    assert dict(second.entities) == {"sub": "01", "ses": "b", "acq": "hi", "run": "02"}
    assert second.relative_path == "sub-01/ses-b/anat/sub-01_ses-b_acq-hi_run-02_T1w.nii.gz"
    assert second.path == dataset / second.relative_path
    assert found.notices == ()
    by_map = discover_participant(settings_for(dataset, modalities=["T1map"]), "01")
    assert names(by_map) == ["sub-01_ses-b_T1map.nii.gz"]
    by_session = discover_participant(settings_for(dataset, session_label=["ses-a"]), "01")
    assert names(by_session) == ["sub-01_ses-a_FLAIR.nii", "sub-01_ses-a_T1w.nii.gz"]


def test_a_reference_may_come_from_a_session_that_is_not_asked_for(dataset):
    put(dataset, "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")
    put(dataset, "sub-01/ses-b/anat/sub-01_ses-b_T2w.nii.gz")
    settings = settings_for(dataset, session_label=["b"], modalities=["T2w"])
    found = with_others(settings, discover_participant(settings, "01"))
    assert names(found) == ["sub-01_ses-b_T2w.nii.gz"]
    assert [image.key for image in found.others] == ["sub-01_ses-a_T1w", "sub-01_ses-b_T2w"]


def test_sidecars_are_inherited_from_every_level(dataset):
    put(dataset, "T1w.json", {"MagneticFieldStrength": 3, "EchoTime": 1, "FlipAngle": 1})
    put(dataset, "acq-hi_T1w.json", {"FlipAngle": 9})
    put(dataset, "T2w.json", {"EchoTime": 99})
    put(dataset, "sub-01/sub-01_T1w.json", {"EchoTime": 2})
    put(dataset, "sub-01/ses-a/sub-01_ses-a_T1w.json", {"SliceThickness": 4})
    put(dataset, "sub-01/ses-a/anat/sub-01_ses-a_acq-hi_T1w.json", {"EchoTime": 3})
    put(dataset, "sub-01/ses-a/anat/sub-01_ses-a_acq-hi_T1w.nii.gz")
    put(dataset, "sub-01/ses-a/anat/sub-01_ses-a_acq-lo_T1w.nii.gz")
    high, low = discover_participant(settings_for(dataset), "01").images
    expected = {"MagneticFieldStrength": 3, "SliceThickness": 4}
    assert dict(high.metadata) == expected | {"EchoTime": 3, "FlipAngle": 9}
    assert dict(low.metadata) == expected | {"EchoTime": 2, "FlipAngle": 1}


def test_only_the_participant_asked_for_is_listed(dataset, monkeypatch):
    put(dataset, "T1w.json", {"EchoTime": 1})
    put(dataset, "participants.tsv")
    put(dataset, "derivatives/x/sub-0007/anat/sub-0007_T1w.nii.gz")
    for number in range(500):
        for suffix in ("T1w", "T2w"):
            put(dataset, f"sub-{number:04d}/anat/sub-{number:04d}_{suffix}.nii.gz")
        put(dataset, f"sub-{number:04d}/func/sub-{number:04d}_task-rest_bold.nii.gz")
        put(dataset, f"sub-{number:04d}/anat/sub-{number:04d}_T1w.json", {"EchoTime": number})
    settings = settings_for(dataset)
    assert len(find_participants(settings)) == 500
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(listing.os, "scandir", lambda path: listed.append(path) or scandir(path))
    first, _ = discover_participant(settings, "0007").images
    folders = {Path(path).relative_to(dataset).as_posix() for path in listed}
    assert folders == {".", "sub-0007", "sub-0007/anat"}
    assert dict(first.metadata) == {"EchoTime": 7}


def test_other_participants_never_matter(dataset):
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    folder = put(dataset, "sub-02/anat/sub-02_T1w.json", "{broken").parent
    (folder / "sub-02_T1w.nii.gz").symlink_to("../../.git/annex/objects/absent")
    (folder / "sub-02_T2w.json").symlink_to("absent.json")
    (dataset / "sub-03").symlink_to("absent")
    locked = dataset / "sub-04"
    locked.mkdir(mode=0)
    try:
        assert names(discover_participant(settings_for(dataset), "01")) == ["sub-01_T1w.nii.gz"]
    finally:
        locked.chmod(0o755)


def test_unfetched_content_is_a_problem_of_its_image_only(dataset):
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    folder = dataset / "sub-01" / "anat"
    (folder / "sub-01_T2w.nii.gz").symlink_to("../../.git/annex/objects/absent")
    put(dataset, "sub-01/anat/sub-01_FLAIR.nii.gz", "/annex/objects/MD5E-s1--0.nii.gz\n")
    put(dataset, "sub-01/anat/sub-01_PDw.nii.gz", "")
    flair, pdw, t1w, t2w = discover_participant(settings_for(dataset), "01").images
    assert t1w.problem is None
    assert "git-annex pointer" in flair.problem
    for image in (flair, t2w):
        assert image.problem.endswith(f"datalad get {image.relative_path}")
    assert "dangling" in t2w.problem
    assert pdw.problem == "sub-01/anat/sub-01_PDw.nii.gz is empty."


def test_broken_sidecars_are_left_out_and_named(dataset):
    put(dataset, "T1w.json", "not JSON")
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    (dataset / "sub-01/anat/sub-01_T1w.json").symlink_to("absent")
    found = discover_participant(settings_for(dataset), "01")
    assert [dict(image.metadata) for image in found.images] == [{}]
    assert [notice.split(" is ")[0] for notice in found.notices] == [
        *("T1w.json", "sub-01/anat/sub-01_T1w.json")
    ]


def test_odd_files_are_left_out_with_a_reason(dataset):
    for name in (
        "sub-01_T1w.nii.gz",
        "sub-01_T1w.nii",
        "sub-01_part-phase_T2w.nii.gz",
        "sub-01_part-real_T2w.nii.gz",
        "sub-01_part-mag_T2w.nii.gz",
        "sub-01_desc-preproc_T1w.nii.gz",
        "sub-01_run-1_acq-x_T1w.nii.gz",
        "sub-01_dir-AP_T1w.nii.gz",
        "sub-01_T1w_old.nii.gz",
        "sub-01_t1w.nii.gz",
        "sub-01_PDw.mgz",
        "sub-01_FLAIR.NII.GZ",
        ".sub-01_T1w.nii.gz",
    ):
        put(dataset, f"sub-01/anat/{name}")
    found = discover_participant(settings_for(dataset), "01")
    assert names(found) == ["sub-01_T1w.nii.gz", "sub-01_part-mag_T2w.nii.gz"]
    reasons = dict(re.fullmatch(r".*/(\S+) is left out: (.*)", n).groups() for n in found.notices)
    assert "derivative" in reasons["sub-01_desc-preproc_T1w.nii.gz"]
    assert "magnitude" in reasons["sub-01_part-phase_T2w.nii.gz"]
    assert ".nii.gz of the same name" in reasons["sub-01_T1w.nii"]
    assert "order" in reasons["sub-01_run-1_acq-x_T1w.nii.gz"]
    assert "no dir-" in reasons["sub-01_dir-AP_T1w.nii.gz"]
    assert "not a BIDS file name" in reasons["sub-01_T1w_old.nii.gz"]
    assert "did you mean T1w?" in reasons["sub-01_t1w.nii.gz"]
    assert ".mgz is not .nii.gz" in reasons["sub-01_PDw.mgz"]
    assert ".NII.GZ is not .nii.gz" in reasons["sub-01_FLAIR.NII.GZ"]
    assert len(reasons) == 10


def test_labels(dataset):
    for label in ("01", "02", "pilot"):
        put(dataset, f"sub-{label}/anat/sub-{label}_T1w.nii.gz")
    assert find_participants(settings_for(dataset)) == ["01", "02", "pilot"]
    asked = settings_for(dataset, participant_label=["sub-pilot", "01"])
    assert find_participants(asked) == ["01", "pilot"]
    assert find_participants(settings_for(dataset, exclude_participant_label=["02"])) == [
        *("01", "pilot")
    ]
    for option in ("participant_label", "exclude_participant_label"):
        with pytest.raises(UsageError, match=r"sub-piolt .*did you mean pilot\?"):
            find_participants(settings_for(dataset, **{option: ["piolt"]}))


def test_nothing_to_process_names_the_filters(dataset):
    with pytest.raises(NothingToProcessError, match="filters in force: none"):
        find_participants(settings_for(dataset))
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    narrow = settings_for(dataset, session_label=["x"], modalities=["T2w", "FLAIR"])
    assert discover_participant(narrow, "01").images == ()
    assert "--session-label x, --modalities T2w FLAIR" in str(nothing_to_process(narrow))


def test_dangling_participant(dataset):
    (dataset / "sub-01").symlink_to("absent")
    assert find_participants(settings_for(dataset)) == ["01"]
    with pytest.raises(ImageError, match="datalad get sub-01"):
        discover_participant(settings_for(dataset), "01")


def test_filter_file(dataset, tmp_path):
    for stem in ("ses-a", "ses-a_acq-x", "ses-b", "ses-b_run-01", "ses-b_run-02"):
        folder = f"sub-01/{stem.split('_')[0]}/anat"
        put(dataset, f"{folder}/sub-01_{stem}_T1w.nii.gz")
    put(dataset, "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz")

    def select(query):
        path = put(tmp_path, "filter.json", query)
        return names(discover_participant(settings_for(dataset, bids_filter_file=path), "01"))

    t2w = "sub-01_ses-a_T2w.nii.gz"
    assert select({"t1w": {"session": "a", "acquisition": None}}) == [
        "sub-01_ses-a_T1w.nii.gz",
        t2w,
    ]
    assert select({"t1w": {"acquisition": "*"}}) == [t2w, "sub-01_ses-a_acq-x_T1w.nii.gz"]
    assert select({"t1w": {"run": 2}}) == [t2w, "sub-01_ses-b_run-02_T1w.nii.gz"]
    assert select({"t1w": {"acquisition": [None, "y"], "run": [None]}, "t2w": {"task": "x"}}) == [
        *("sub-01_ses-a_T1w.nii.gz", "sub-01_ses-b_T1w.nii.gz")
    ]
    assert select({"t1w": {"subject": "02"}}) == [t2w]
    runs = select({"t1w": {"run": ["01", "02"]}, "t2w": {"session": "b"}, "bold": {"foo": 1}})
    assert runs == ["sub-01_ses-b_run-01_T1w.nii.gz", "sub-01_ses-b_run-02_T1w.nii.gz"]


FILTERS = [
    {"run": 1},
    {"run": "01"},
    {"run": ["1", "02"]},
    {"run": None},
    {"run": "*"},
    {"echo": "2"},
    {"echo": ["*"]},
    {"acquisition": ["x", None]},
    {"acquisition": "X"},
    {"acquisition": "B1+"},
    {"subject": "01"},
    {"subject": ["02"]},
    {"task": None},
    {"task": "rest", "acquisition": None},
    {"part": ["mag", None]},
    {"extension": ".nii"},
    {"extension": [".nii.gz", "nii"]},
    {"datatype": "anat"},
    {"datatype": "func"},
    {"suffix": "T2w"},
    {"suffix": ["T2w", "T1w"], "session": None},
]


@pytest.mark.parametrize("query", FILTERS, ids=str)
def test_filters_mean_what_they_mean_to_pybids(dataset, tmp_path, query):
    """Independent of our own reading of names: pybids' index and queries, with its enums."""
    from bids.layout import BIDSLayout, Query

    for stem in (
        *("T1w", "run-1_T1w", "run-02_T1w", "acq-x_T1w", "acq-B1+_T1w", "acq-x_run-2_T1w"),
        *("echo-2_T1w", "echo-02_T1w", "task-rest_T1w", "part-mag_T1w", "part-mag_T2w", "T2w"),
    ):
        put(dataset, f"sub-01/anat/sub-01_{stem}.nii.gz")
    put(dataset, "sub-01/anat/sub-01_acq-y_T1w.nii")

    def enum(value):
        return {None: Query.NONE, "*": Query.ANY}.get(value, value)

    asked = {
        key: [enum(item) for item in value] if isinstance(value, list) else enum(value)
        for key, value in query.items()
    }
    layout = BIDSLayout(dataset, validate=False)
    given = {"subject": "01", "suffix": "T1w", "datatype": "anat"}
    given["extension"] = [".nii", ".nii.gz"]
    files = [] if asked.pop("subject", "01") not in ("01", ["01"]) else layout.get(**given | asked)
    path = put(tmp_path, "filter.json", {"t1w": query})
    settings = settings_for(dataset, bids_filter_file=path, modalities=["T1w"])
    ours = names(discover_participant(settings, "01"))
    assert ours == sorted(Path(file.path).name for file in files)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"t1": {}}, "did you mean t1w"),
        ({"t1w": {"sesion": "a"}}, "did you mean session"),
        ({"t1w": {"session": {"a": 1}}}, "text, a whole number, null or a list"),
        ({"t1w": {"run": True}}, "text, a whole number, null or a list"),
        ({"t1w": "a"}, "must be an object"),
        ([1], "object of queries"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_filter_files(dataset, tmp_path, content, words):
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    path = put(tmp_path, "filter.json", content)
    with pytest.raises(UsageError, match=words):
        discover_participant(settings_for(dataset, bids_filter_file=path), "01")


def test_database_is_made_once_and_reused(dataset, tmp_path):
    put(dataset, "T1w.json", {"EchoTime": 1})
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    put(dataset, "sub-02/anat/sub-02_T1w.nii.gz")
    put(dataset, "sub-02/anat/sub-02_T1w.json", "{broken")
    folder = tmp_path / "cache" / "database"
    settings = settings_for(dataset, bids_database_dir=folder)
    first = discover_participant(settings, "01")
    assert first == discover_participant(settings_for(dataset), "01")
    assert [item.name for item in folder.parent.iterdir()] == ["database"]
    before = {item: item.stat().st_mtime_ns for item in folder.iterdir()}
    assert names(discover_participant(settings, "02")) == ["sub-02_T1w.nii.gz"]
    assert {item: item.stat().st_mtime_ns for item in folder.iterdir()} == before
    other = tmp_path / "other"
    put(other, "sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(UsageError, match="another data set"):
        discover_participant(settings_for(other, bids_database_dir=folder), "01")


def test_folders_that_are_written_in_an_odd_way(dataset, monkeypatch):
    put(dataset, "sub-01/anat/sub-01_T1w.nii.gz")
    link = dataset.parent / "link"
    link.symlink_to(dataset)
    monkeypatch.chdir(dataset)
    for root in (link, Path(), Path("../raw"), Path("../raw/sub-01/..")):
        given = {"bids_dir": root, "output_dir": "/o", "analysis_level": "participant"}
        found = discover_participant(load_settings(given, None, {}), "01")
        assert [image.relative_path for image in found.images] == ["sub-01/anat/sub-01_T1w.nii.gz"]


def test_names_table_accepts_every_discovered_image(dataset):
    from bids_moediff.bids.names import derivative_path

    put(dataset, "sub-01/anat/sub-01_acq-x_ce-gd_rec-norm_run-1_part-mag_chunk-2_T1w.nii.gz")
    (image,) = discover_participant(settings_for(dataset), "01").images
    name = derivative_path(image, "preproc").name
    assert name == ("sub-01_acq-x_ce-gd_rec-norm_run-1_part-mag_chunk-2_desc-preproc_T1w.nii.gz")
