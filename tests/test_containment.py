# SPDX-License-Identifier: Apache-2.0
"""What nobody foresaw costs one image, one participant or one row, and two runs share a folder."""

import errno
import json
import logging
import os
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.dataset import prepare_output
from bids_moediff.bids.groups import ScanGroup
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.execution import batch, preflight
from bids_moediff.execution.execute import run_logs
from bids_moediff.execution.finished import find_finished, words_on_finished
from bids_moediff.execution.memory import plan_memory
from bids_moediff.execution.outcome import RunResult
from bids_moediff.execution.preflight import Checked, check_participants, closing_remarks
from bids_moediff.execution.work_folder import own_work, participant_folder
from bids_moediff.interfaces.run_record import ImageStatus
from bids_moediff.reports import participant as pages
from bids_moediff.reports.group import read_rows
from bids_moediff.settings import Settings, load_settings
from bids_moediff.workflows import participant as graphs
from bids_moediff.workflows.made_with import made_with
from bids_moediff.workflows.participant import RunPlan, run_file
from generated import dataset
from report_data import make_image

PLAN = RunPlan("student", "", ("cpu",), 1, "run")


def image(name: str = "sub-01_T1w") -> AnatomicalImage:
    path = f"sub-01/anat/{name}.nii.gz"
    return AnatomicalImage(Path("/nowhere") / path, path, {"sub": "01"}, name.split("_")[-1], {})


def settings_for(root: Path, **options) -> Settings:
    given = {"bids_dir": root, "output_dir": root.parent / "out", "analysis_level": "participant"}
    return load_settings({**given, **options}, None, {})


def without_a_graph(odd, monkeypatch):
    """Let the graph of the image ``odd`` fail for a reason that nobody foresaw."""
    prepare = graphs.init_image_preparation_wf

    def fail(**given):
        if given["source"] is odd:
            raise KeyError("nobody foresaw this")
        return prepare(**given)

    monkeypatch.setattr(graphs, "init_image_preparation_wf", fail)


def test_an_image_without_a_graph_leaves_the_others(tmp_path, monkeypatch):
    good, odd = image(), image("sub-01_T2w")
    without_a_graph(odd, monkeypatch)
    settings = Settings(output_dir=tmp_path, stage="preproc")
    workflow, (found,) = batch._build(settings, [Checked(Participant("01", (good, odd)))], PLAN)
    assert found.participant.images == (good,)
    (refused,) = found.refusals
    assert refused.image is odd
    nodes = [str(node) for node in workflow._create_flat_graph().nodes()]
    assert any("prepare_T1w_wf" in node for node in nodes)
    row = batch._outcome(settings, PLAN, refused)
    assert (row.image, row.exit_code) == ("sub-01_T2w", 1)
    log = tmp_path / row.message.rsplit("Log: ", 1)[1]
    assert "nobody foresaw this" in log.read_text()
    assert "Traceback" in log.read_text()


def test_warnings_go_to_the_log_and_a_full_disk_costs_the_log_only(tmp_path, capfd):
    settings = Settings(output_dir=tmp_path, work_dir=tmp_path / "work")
    kept, lost = (Participant(label, ()) for label in ("01", "02"))
    full = run_file(settings, PLAN, lost).parent / "nipype.log"
    full.parent.mkdir(parents=True)
    full.symlink_to("/dev/full")
    before = logging.raiseExceptions
    with run_logs(settings, PLAN, [kept, lost]):
        warnings.warn("odd numbers", RuntimeWarning, stacklevel=1)
    log = run_file(settings, PLAN, kept).parent / "nipype.log"
    assert "RuntimeWarning: odd numbers" in log.read_text()
    said = capfd.readouterr().err
    assert said == "bids_moediff: logs could not be written: No space left on device.\n"
    assert logging.raiseExceptions is before


def test_a_participant_of_whom_every_image_is_refused_has_a_record_and_no_network(tmp_path):
    lost = Checked(Participant("01", ()), (preflight.Refusal("01", image(), "It is odd."),))
    settings = Settings(output_dir=tmp_path)
    workflow, (found,) = batch._build(settings, [lost], PLAN)
    assert found is lost
    nodes = sorted(node.name for node in workflow._create_flat_graph().nodes())
    assert nodes == ["collect", "report", "statuses"]


def test_two_images_of_one_step_name(tmp_path):
    twice = Checked(Participant("01", (image(), image())))
    settings = Settings(output_dir=tmp_path, stage="preproc")
    _, (found,) = batch._build(settings, [twice], PLAN)
    assert len(found.participant.images) == len(found.refusals) == 1


def test_a_header_nobody_foresaw(tmp_path, monkeypatch):
    root = dataset(tmp_path / "bids", {"sub-01_T1w": 1, "sub-01_T2w": 2})
    check = preflight.check_image

    def fail(found, settings):
        if found.suffix == "T2w":
            raise ZeroDivisionError("odd\x1b[31m header")
        return check(found, settings)

    monkeypatch.setattr(preflight, "check_image", fail)
    (checked,) = check_participants(settings_for(root), ["01"])
    assert [found.suffix for found in checked.participant.images] == ["T1w"]
    (refused,) = checked.refusals
    assert "ZeroDivisionError" in refused.message
    assert refused.message.isprintable()
    assert "Traceback" in refused.log


def test_a_file_in_the_way_of_the_logs_costs_its_participant(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-01").touch()
    checked = Checked(Participant("01", (image(),)))
    found = batch._recordable(Settings(output_dir=tmp_path), checked, PLAN)
    assert found.participant.images == ()
    assert "cannot be made" in found.refusals[0].message


@pytest.mark.parametrize(
    "content", ["{", '{"images": 3}', '{"images": [{"key": 1}]}', "[]", "\udcff"]
)
def test_an_odd_record_is_a_failure_in_words(tmp_path, content):
    settings = Settings(output_dir=tmp_path)
    path = graphs.run_file(settings, PLAN, Participant("01", ()))
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    (row,) = batch._outcomes_of(settings, Participant("01", (image(),)), PLAN, tmp_path)
    assert (row.status, row.message) == ("failed", "The image was not processed.")


def test_a_status_that_cannot_be_gathered(tmp_path):
    notes = tmp_path / "notes.json"
    notes.write_text("{")
    step = ImageStatus(
        source=image().to_json(), output_dir=str(tmp_path), zooms=(1.0, 1.0, 1.0),
        notes=str(notes), run_id="x",
    )  # fmt: skip
    found = json.loads(Path(step.run(cwd=str(tmp_path)).outputs.status).read_text())
    assert found["status"] == "failed"
    assert "ImageStatus failed unexpectedly" in found["message"]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 5000,
        '{"Warnings": [3]}',
        '{"Quality": 7}',
        '{"SourceVoxelSize": ["a", "b", "c"]}',
        "[]",
    ],
)
def test_an_odd_derivative_costs_its_row_of_the_group_page(tmp_path, content):
    folder = tmp_path / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_res-1mm_desc-sr_T1w.json").write_text(content)
    (folder / "sub-01_res-1mm_desc-sr_T2w.json").write_text("{}")
    rows, unreadable = read_rows(tmp_path)
    assert len(rows["T2w"]) == 1
    assert len(rows.get("T1w", ())) + len(unreadable) == 1


def test_a_full_disk_while_pictures_are_drawn_is_no_success(tmp_path, monkeypatch):
    run = {"images": [make_image(tmp_path, "01")]}

    def fail(kind):
        def draw(*_):
            raise OSError(kind, "words")

        monkeypatch.setattr(pages, "draw_pictures", draw)

    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="words"):
        pages.write_participant_report(tmp_path, "01", run)
    fail(errno.EISDIR)
    page = pages.write_participant_report(tmp_path, "01", run)
    assert "could not be drawn" in page.read_text()


def test_odd_files_in_the_output_folder(tmp_path):
    root = dataset(tmp_path / "bids", {})
    about = {"Name": "x", "BIDSVersion": "1.10.0", "License": {"a": 1}, "GeneratedBy": "me"}
    (root / "dataset_description.json").write_text("\ufeff" + json.dumps(about), encoding="utf-8")
    settings = settings_for(root)
    settings.output_dir.mkdir()
    (settings.output_dir / ".bidsignore").write_bytes(b"\xff\xfe")
    prepare_output(settings, {})
    assert "figures" in (settings.output_dir / ".bidsignore").read_text()
    assert json.loads((settings.output_dir / "dataset_description.json").read_text())["Name"]


def test_two_runs_on_one_participant(tmp_path, capsys):
    settings = Settings(output_dir=tmp_path)
    with own_work(settings, ["01", "02"], "a") as first:
        assert first.work_folder == settings.work_folder
        with own_work(settings, ["02", "03"], "b") as second:
            assert second.work_folder == settings.work_folder / "run-b"
            assert "another run works on sub-02" in capsys.readouterr().err
            participant_folder(second.work_folder, "02").mkdir(parents=True)
            with own_work(settings, ["03"], "c") as third:  # nobody holds it
                assert third.work_folder == settings.work_folder
    assert not settings.work_folder.exists(), "nobody would find what lies apart"
    kept = Settings(output_dir=tmp_path / "other", keep_workdir=True)
    with own_work(kept, ["01"], "a"), own_work(kept, ["01"], "b") as second:
        participant_folder(second.work_folder, "01").mkdir(parents=True)
    assert participant_folder(kept.work_folder / "run-b", "01").is_dir()
    participant_folder(settings.work_folder, "01").mkdir(parents=True)
    with own_work(settings, ["01"], "d"):
        assert participant_folder(settings.work_folder, "01").is_dir(), (
            "an interrupted run goes on"
        )
    with own_work(Settings(output_dir=tmp_path, rerun=True), ["01"], "e"):
        assert not participant_folder(settings.work_folder, "01").exists()


def test_memory_is_that_of_the_largest_image_of_all_participants(tmp_path, capsys):
    zooms = (1.0, 1.0, 1.0)
    large, small = (
        replace(image(f"sub-01_{suffix}"), shape=(size,) * 3, zooms=zooms)
        for suffix, size in (("T1w", 256), ("T2w", 64))
    )
    people = [Participant("01", (small, large)), Participant("02", (small,))]
    plan_memory(settings_for(tmp_path), people, PLAN, 0.1)
    assert "0.1 GB, but sub-01_T1w needs" in capsys.readouterr().err


def test_what_is_said_at_the_end(tmp_path):
    root = dataset(tmp_path / "bids", {})
    (root / ".bidsignore").write_text("# nothing\n\n")
    found = [
        Participant("01", (image(),), passed={"T1map (to be had with x)": 2}),
        Participant("02", ()),
    ]
    words = closing_remarks(settings_for(root), found)
    assert words == [
        "Not taken: 2 T1map (to be had with x).",
        "Without an image to process: sub-02.",
    ]
    (root / ".bidsignore").write_text("sub-01/\n")
    assert "not applied" in closing_remarks(settings_for(root), found)[-1]
    assert "--rerun" in words_on_finished(Counter(), 3)[0]
    assert RunResult().num_remarks == 0


def test_a_group_goes_with_a_scan_that_has_no_graph(tmp_path, monkeypatch):
    one, two, odd = (image(f"sub-01_acq-{name}_T2w") for name in ("ax", "cor", "odd"))
    without_a_graph(odd, monkeypatch)
    groups = tuple(ScanGroup(members).image for members in ((one, two), (one, odd)))
    checked = Checked(Participant("01", (one, two, odd), groups=groups))
    found = batch._buildable(Settings(output_dir=tmp_path, stage="preproc"), checked, PLAN)
    assert found.participant.images == (one, two)
    assert [group.members for group in found.participant.groups] == [(one, two)]


@pytest.mark.parametrize(("age", "missing"), [(None, True), (10.0, True), (-10.0, False)])
def test_a_page_older_than_the_last_record_is_made_again(tmp_path, age, missing):
    """``age``: seconds by which the page is older than the record; None: there is no page."""
    settings = settings_for(tmp_path / "bids")
    made = settings.output_dir / "sub-01" / "anat" / "sub-01_res-1mm_desc-sr_T1w.nii.gz"
    made.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), np.eye(4)), made)
    made.with_name("sub-01_res-1mm_desc-sr_T1w.json").touch()
    item = {
        "key": image().key, "status": "done", "source": image().relative_path,
        "products": {"sr": str(made.relative_to(settings.output_dir))},
        "made_with": made_with(image(), settings, "student"),
    }  # fmt: skip
    record = graphs.run_file(settings, PLAN, Participant("01", ()))
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"stage": "all", "images": [item]}))
    os.utime(record, (1e9, 1e9))
    if age is not None:
        page = settings.output_dir / "sub-01.html"
        page.touch()
        os.utime(page, (1e9 - age, 1e9 - age))
    found = find_finished(Participant("01", (image(),)), settings, "student")
    assert list(found.done) == [image().key] and found.participant.images == ()
    assert found.report_missing is missing
    seeded = settings_for(tmp_path / "bids", random_seed=5)
    again = find_finished(Participant("01", (image(),)), seeded, "student")
    assert again.participant.images == (image(),) and not again.report_missing


@pytest.mark.parametrize(
    ("option", "value", "same"),
    [
        ("random_seed", 1, False), ("num_steps", 3, False), ("noise", 5.0, False),
        ("output_resolution", (0.8,) * 3, False), ("skip_bias_correction", True, False),
        ("batch_size", 2, True), ("nprocs", 3, True), ("work_dir", Path("/elsewhere"), True),
    ],
)  # fmt: skip
def test_what_makes_an_earlier_result_another_one(option, value, same):
    settings = Settings(output_dir=Path("/out"))
    changed = replace(settings, **{option: value})
    before, now = (made_with(image(), given, "student") for given in (settings, changed))
    assert (before == now) is same
