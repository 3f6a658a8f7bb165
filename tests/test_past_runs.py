# SPDX-License-Identifier: Apache-2.0
"""What is known of an image after runs that ended, and after runs that were killed."""

import json
from pathlib import Path

import pytest

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.bids.past_runs import (
    NOTE,
    STOPPED,
    Past,
    last_items,
    last_record,
    read_past,
    write_note,
    write_plan,
)
from bids_moediff.errors import UsageError
from bids_moediff.execution.group import participant_state
from bids_moediff.execution.notes import note_error
from bids_moediff.interfaces.run_record import ImageStatus, with_earlier
from bids_moediff.settings import Settings


def ended(folder: Path, status: str, stage: str = "sr") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    item = {"key": "sub-1_T1w", "status": status, "message": "" if status == "done" else "bad"}
    (folder / "run.json").write_text(json.dumps({"stage": stage, "images": [item]}))


def planned(folder: Path, available: float) -> None:
    folder.mkdir(parents=True)
    write_plan(folder, available, {"sub-1_T1w": 1.5})


def test_a_plan_without_a_record_was_stopped(tmp_path: Path) -> None:
    planned(tmp_path / "1", 1.0)
    item = last_items(tmp_path)["sub-1_T1w"]
    assert item["status"] == "failed"
    assert "killed at 1.0 GB; this image needs about 1.5 GB" in item["message"]
    ended(tmp_path / "1", "done")
    assert last_items(tmp_path)["sub-1_T1w"]["status"] == "done"


def test_memory_is_not_blamed_where_it_was_enough(tmp_path: Path) -> None:
    planned(tmp_path / "1", 4.0)
    message = last_items(tmp_path)["sub-1_T1w"]["message"]
    assert "GB" not in message and "cancelled" in message


@pytest.mark.parametrize(("before", "after"), [("done", ""), ("failed", "killed at 1.0 GB")])
def test_the_last_word_on_an_image(tmp_path: Path, before: str, after: str) -> None:
    """Files of an image that was done are whole; a failure is told by the latest run."""
    ended(tmp_path / "1", before)
    planned(tmp_path / "2", 1.0)
    ended(tmp_path / "3", "failed", stage="preproc")
    assert after in last_items(tmp_path)["sub-1_T1w"]["message"]
    assert (last_items(tmp_path)["sub-1_T1w"]["status"] == "done") == (before == "done")
    assert last_record(tmp_path)["images"][0]["status"] == before


def test_the_last_run_that_ended_counts(tmp_path: Path) -> None:
    """A page made anew shows versions and settings of the run that made the result."""
    ended(tmp_path / "1", "failed")
    ended(tmp_path / "2", "done")
    ended(tmp_path / "3", "failed", stage="report")
    assert last_record(tmp_path)["images"][0]["status"] == "done"


def test_nothing_ran(tmp_path: Path) -> None:
    assert last_items(tmp_path / "absent") == {}
    assert last_record(tmp_path / "absent") == {}


def test_a_participant_without_a_report_is_not_done(tmp_path: Path) -> None:
    """Whose report job was killed looks done by the records alone."""
    ended(tmp_path / "logs" / "sub-1" / "1", "done")
    assert "no report" in participant_state(tmp_path, "1")["message"]
    (tmp_path / "sub-1.html").touch()
    assert participant_state(tmp_path, "1") == {"status": "done", "message": ""}


def noted(output: Path, run: str, message: str, code: int) -> None:
    write_note(output, "1", run, message, code)


@pytest.mark.parametrize(("code", "status"), [(66, "missing"), (69, "failed"), (1, "failed")])
def test_who_left_a_note_only(tmp_path: Path, code: int, status: str) -> None:
    noted(tmp_path, "1", "Why.", code)
    assert participant_state(tmp_path, "1") == {"status": status, "message": "Why."}


def test_the_latest_run_says_why_nothing_was_done(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "sub-1"
    (logs / "0").mkdir(parents=True)
    assert "stopped" in participant_state(tmp_path, "1")["message"]
    ended(logs / "1", "failed", stage="preproc")
    assert participant_state(tmp_path, "1")["message"] == "sub-1_T1w: bad"
    noted(tmp_path, "2", "No device.", 69)
    (logs / "3").mkdir()  # a report that was killed
    assert participant_state(tmp_path, "1")["message"] == "No device."
    ended(logs / "4", "failed")
    assert participant_state(tmp_path, "1")["message"] == "sub-1_T1w: bad"
    planned(logs / "5", 1.0)
    noted(tmp_path, "5", "Step x failed.", 1)
    assert participant_state(tmp_path, "1")["message"] == "Step x failed."
    ended(logs / "6", "done")
    noted(tmp_path, "7", "No image.", 66)  # of another contrast
    (tmp_path / "sub-1.html").touch()
    assert participant_state(tmp_path, "1")["status"] == "done"
    ended(logs / "8", "done")
    noted(tmp_path, "8", "ses-2 cannot be read.", 1)
    assert participant_state(tmp_path, "1") == {
        "status": "failed",
        "message": "ses-2 cannot be read.",
    }


def test_a_preparation_is_no_result(tmp_path: Path) -> None:
    ended(tmp_path / "logs" / "sub-1" / "1", "done", stage="preproc")
    state = participant_state(tmp_path, "1")
    assert state["status"] == "missing" and "not super-resolved yet" in state["message"]


def test_reports_made_anew_show_the_voxel_size_that_was_made(tmp_path: Path) -> None:
    """Otherwise ``--reports-only`` without the same ``--output-resolution`` finds no image."""
    names = {"sub": "1"}
    image = AnatomicalImage(tmp_path / "sub-1_T1w.nii.gz", "sub-1_T1w.nii.gz", names, "T1w", {})
    made = derivative_path(image, "sr", (1.0, 1.0, 1.0))
    (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / made).touch()
    run = tmp_path / "logs" / "sub-1" / "1"
    ended(run, "done")
    record = json.loads((run / "run.json").read_text())
    record["images"][0]["products"] = {"sr": str(made), "srstd": "sub-1/anat/gone.nii.gz"}
    (run / "run.json").write_text(json.dumps(record))
    step = ImageStatus(
        source=image.to_json(), stage="report", output_dir=str(tmp_path), zooms=(0.7, 0.7, 0.7),
        run_id="2",
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    status = Path(step.run(cwd=str(tmp_path / "work")).outputs.status)
    assert json.loads(status.read_text())["products"] == {"sr": str(made)}


def test_a_page_that_is_made_later_ends_the_failure_of_the_page(tmp_path: Path) -> None:
    """The first run did the image and could not write the page, the second one wrote the page."""
    logs = tmp_path / "logs" / "sub-1"
    ended(logs / "1", "done", "all")
    write_note(tmp_path, "1", "1", "Step report failed: no room.", 1)
    (tmp_path / "sub-1.html").write_text("page")
    assert participant_state(tmp_path, "1")["message"] == "Step report failed: no room."
    ended(logs / "2", "done", "report")
    assert participant_state(tmp_path, "1") == {"status": "done", "message": ""}


def test_a_run_that_was_stopped_says_nothing_of_other_images(tmp_path: Path) -> None:
    ended(tmp_path / "1", "done")
    (tmp_path / "2").mkdir()
    write_plan(tmp_path / "2", 1.0, {"sub-1_T2w": 1.5})
    found = last_items(tmp_path)
    assert {key: item["status"] for key, item in found.items()} == {
        "sub-1_T1w": "done",
        "sub-1_T2w": "failed",
    }


def test_a_page_has_the_images_of_earlier_runs_too(tmp_path: Path) -> None:
    """Sessions may be processed one after the other; what this run says of an image counts."""
    run = tmp_path / "logs" / "sub-1" / "1"
    run.mkdir(parents=True)
    keys = {"sub-1_T1w": "b", "sub-1_T2w": "a", "sub-1_FLAIR": None}
    items = [
        {"key": key, "status": "failed", "message": "old", "source": source}
        for key, source in keys.items()
    ]
    (run / "run.json").write_text(json.dumps({"stage": "sr", "images": items}))
    own = {"key": "sub-1_T1w", "status": "done", "message": "", "source": "b"}
    assert with_earlier([own], tmp_path, "1") == [items[1], own]


def test_a_run_that_ends_is_noted_for_those_who_are_there(tmp_path: Path) -> None:
    """A label that does not exist must not appear as a participant of the group level."""
    for folder in ("raw/sub-1", "out"):
        (tmp_path / folder).mkdir(parents=True)
    settings = Settings(
        bids_dir=tmp_path / "raw", output_dir=tmp_path / "out", participant_label=("1", "9")
    )
    note_error(settings, "run", UsageError("There is no sub-9."))
    assert [path.name for path in (tmp_path / "out" / "logs").iterdir()] == ["sub-1"]
    state = participant_state(tmp_path / "out", "1")
    assert state["status"] == "failed" and "exit code 2: There is no sub-9." in state["message"]


@pytest.mark.parametrize(
    "note",
    [{"message": 3, "exit_code": 1}, {"message": "x", "exit_code": "1"}, {"message": "x"}, [1]],
)
def test_a_note_of_another_form_is_passed_over(tmp_path: Path, note: object) -> None:
    run = tmp_path / "20260101T000000Z_a"
    run.mkdir()
    (run / NOTE).write_text(json.dumps(note))
    assert read_past(tmp_path) == Past(note=STOPPED, exit_code=1)
    (run / NOTE).write_text(json.dumps({"message": "It is odd.", "exit_code": 69}))
    assert read_past(tmp_path) == Past(note="It is odd.", exit_code=69)
