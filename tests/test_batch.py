# SPDX-License-Identifier: Apache-2.0
"""A batch of participants from the check to the outcomes; only the steps are not run."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.errors import DeviceError, ImageError
from bids_moediff.execution import batch
from bids_moediff.execution.group import participant_state
from bids_moediff.execution.outcome import Outcome, RunResult, exit_code
from bids_moediff.execution.work_folder import participant_folder
from bids_moediff.runtime.resources import Limits
from bids_moediff.settings import Settings, load_settings
from bids_moediff.workflows.participant import RunPlan
from field_data import small_head
from generated import dataset

LIMITS = Limits(2, 3, 5.0)


@dataclass
class Study:
    """A data set, and the graphs that would have run on it: stage and names of the steps."""

    root: Path
    ran: list[tuple[str, list[str]]] = field(default_factory=list)
    odd: dict[str, dict[str, Any]] = field(default_factory=dict)
    crash: str = ""

    def settings(self, **more: Any) -> Settings:
        given = {
            "bids_dir": str(self.root / "bids"), "output_dir": str(self.root / "out"),
            "analysis_level": "participant", "output_resolution": "4",
        }  # fmt: skip
        return load_settings({**given, **more}, None, {})

    def run(self, labels: list[str], run_id: str, **more: Any) -> RunResult:
        result = RunResult()
        plan = RunPlan("student", "why", ("cpu",), 1, run_id)
        batch.run_batch(self.settings(**more), labels, plan, LIMITS, result)
        return result

    def execute(self, settings: Settings, workflow: Any, plan: RunPlan, limits: Limits) -> Path:
        """Write what the steps of a graph would have left."""
        assert limits is LIMITS
        steps = [node.fullname for node in workflow._create_flat_graph().nodes()]
        self.ran.append((settings.stage, steps))
        crashes = self.root / "crashes"
        crashes.mkdir(exist_ok=True)
        for name in workflow.list_node_names():
            node = workflow.get_node(name)
            if not name.endswith(".collect"):
                continue
            label = node.inputs.label
            if self.crash:
                text = f"Node: bids_moediff_wf.sub_{label}_wf.report\n"
                text += f"Traceback (most recent call last):\n  ValueError: {self.crash}\n"
                (crashes / "crash-1-report.txt").write_text(text)
            items = list(node.inputs.refused)
            for other in workflow.list_node_names():
                if f"sub_{label}_wf.status_" in other:
                    items.append(self.done(settings, workflow.get_node(other).inputs))
            record = {"stage": settings.stage, "images": items}
            Path(node.inputs.run_file).write_text(json.dumps(record))
        return crashes

    def done(self, settings: Settings, status: Any) -> dict[str, Any]:
        source = AnatomicalImage.from_json(status.source)
        path = settings.output_dir / derivative_path(source, "sr", status.zooms)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4)), path)
        path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text("{}")
        return {
            "key": source.key, "source": source.relative_path, "status": "done", "message": "",
            "warnings": ["w", "w"], "made_with": dict(status.made_with or {}),
            "products": {"sr": str(path.relative_to(settings.output_dir))},
        } | self.odd.get(source.key, {})  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    images = {
        "sub-01_T1w": small_head(), "sub-01_T2w": b"no image", "sub-02_T1w": small_head(),
        "sub-03_T1map": small_head(), "sub-04_T1w": b"",
    }  # fmt: skip
    dataset(tmp_path / "bids", images)
    (tmp_path / "out").mkdir()
    made = Study(tmp_path)
    monkeypatch.setattr(batch, "execute", made.execute)
    return made


def rows(result: RunResult) -> list[tuple[str, str, str]]:
    return [(row.participant, row.image, row.status) for row in result.outcomes]


EVERYBODY = [
    ("01", "sub-01_T1w", "done"), ("01", "sub-01_T2w", "failed"),
    ("02", "sub-02_T1w", "done"), ("04", "sub-04_T1w", "failed"),
]  # fmt: skip
LABELS = ["01", "02", "03", "04"]


def test_each_image_has_its_outcome_and_each_participant_its_logs(study, capsys):
    result = study.run(LABELS, "1")
    assert sorted(rows(result)) == EVERYBODY
    assert exit_code(result.outcomes) == 1
    (good,) = (row for row in result.outcomes if row.image == "sub-01_T1w")
    assert good == Outcome("01", "sub-01_T1w", "done", warnings=("w",))
    assert [one.label for one in result.participants] == LABELS
    ((stage, steps),) = study.ran
    assert stage == "all"
    assert any("sub_01_wf.prepare_T1w_wf.conform" in step for step in steps)
    assert not any("T2w" in step or "sub_03" in step for step in steps)
    told = {item["key"]: item["status"] for item in result.told}
    assert told == {key: status for _, key, status in EVERYBODY}
    logs = study.root / "out" / "logs"
    plan = json.loads((logs / "sub-01" / "1" / "plan.json").read_text())
    assert plan["available_gb"] == 5.0 and list(plan["needed_gb"]) == ["sub-01_T1w"]
    assert plan["needed_gb"]["sub-01_T1w"] > 0.3
    assert "output_resolution" in (logs / "sub-01" / "1" / "config.toml").read_text()
    note = json.loads((logs / "sub-03" / "1" / "not_processed.json").read_text())
    assert note["exit_code"] == 66 and "1 T1map" in note["message"]
    assert not (logs / "sub-01" / "1" / "not_processed.json").exists(), "its record has all"
    assert participant_state(study.root / "out", "03")["status"] == "missing"


def test_remarks_on_all_participants_are_counted(study, monkeypatch, capsys):
    """Each once, whoever it is said of."""
    checking = batch.check_participants

    def with_notices(settings, labels):
        for checked in checking(settings, labels):
            own = (f"Of {checked.participant.label}.", "Of everybody.")
            participant = replace(checked.participant, notices=own)
            yield replace(checked, participant=participant)

    monkeypatch.setattr(batch, "check_participants", with_notices)
    assert study.run(LABELS, "1").num_remarks == len(LABELS) + 1
    assert "bids_moediff: Of 02." in capsys.readouterr().err


def test_what_is_finished_is_skipped_and_a_page_that_is_gone_is_made(study, capsys):
    study.run(["01", "02"], "1")
    for label in ("01", "02"):
        (study.root / "out" / f"sub-{label}.html").touch()
    study.ran.clear()
    result = study.run(["01", "02"], "2")
    assert sorted(rows(result)) == EVERYBODY[:3]
    # Of the participant with a broken image only the page is made, in the graph of this run.
    ((stage, steps),) = study.ran
    assert stage == "all" and not any("conform" in step or "sub_02" in step for step in steps)
    assert "2 images were finished by an earlier run" in capsys.readouterr().err
    assert {row.warnings for row in result.outcomes if row.status == "done"} == {("w",)}
    assert {"sub-01_T1w", "sub-02_T1w"} <= {item["key"] for item in result.told}
    study.ran.clear()
    (study.root / "out" / "sub-02.html").unlink()
    study.run(["02"], "3")
    assert [stage for stage, _ in study.ran] == ["report"]
    study.ran.clear()
    study.run(["02"], "4", rerun=True)
    assert any("conform" in step for step in study.ran[0][1])
    study.ran.clear()
    study.run(["02"], "5", random_seed=3)
    assert "1 image is done again: options changed" in capsys.readouterr().err
    assert any("conform" in step for step in study.ran[0][1])


def test_only_the_methods_text(study):
    result = study.run(["01", "02"], "1", boilerplate_only=True)
    assert study.ran == []
    keys = [item["key"] for item in result.told]
    assert keys == ["sub-01_T1w", "sub-01_T2w", "sub-02_T1w"], "no header is read"
    assert not list((study.root / "out" / "logs").rglob("not_processed.json"))


def test_the_first_refusal_stops_a_run_that_wants_it(study):
    with pytest.raises(ImageError, match=r"sub-01_T2w\.nii\.gz is not a readable"):
        study.run(["01"], "1", stop_on_first_crash=True)
    assert study.ran == []


def test_what_the_records_do_not_have_is_noted(study):
    """The page of a participant crashed: its images are done, and the run says what happened."""
    study.crash = "no room"
    result = study.run(["02"], "1")
    assert rows(result) == [("02", "sub-02_T1w", "done"), ("02", "", "failed")]
    note = study.root / "out" / "logs" / "sub-02" / "1" / "not_processed.json"
    assert "Step report failed: ValueError: no room" in json.loads(note.read_text())["message"]
    assert participant_state(study.root / "out", "02")["status"] == "failed"


@pytest.mark.parametrize(("code", "expected"), [(69, 69), (2, 2), (-9, 1), (137, 1)])
def test_the_code_of_a_failure_is_that_of_the_run_if_it_concerns_all(study, code, expected):
    study.odd["sub-02_T1w"] = {"status": "failed", "message": "Gone.", "exit_code": code}
    result = study.run(["02"], "1")
    assert [row.message for row in result.outcomes] == ["Gone."]
    assert exit_code(result.outcomes) == expected


def test_steps_that_failed_before_run_again(study):
    failed = participant_folder(study.settings().work_folder, "02") / "step"
    other = participant_folder(study.settings().work_folder, "01") / "step"
    for folder in (failed, other):
        folder.mkdir(parents=True)
        (folder / "failed.txt").touch()
    study.run(["02"], "1")
    assert not failed.exists() and other.exists()


def test_an_error_that_concerns_every_image_ends_the_run(study, monkeypatch):
    def fail(*_: Any) -> None:
        raise DeviceError("No GPU.")

    monkeypatch.setattr(batch, "find_finished", fail)
    with pytest.raises(DeviceError):
        study.run(["02"], "1")
    monkeypatch.setattr(batch, "find_finished", lambda *_: 1 / 0)
    assert rows(study.run(["02"], "2")) == [("02", "sub-02_T1w", "done")], "it is processed"


@pytest.mark.parametrize("stage", ["preproc", "report", "sr"])
def test_stages_have_their_own_graph(study, stage):
    result = study.run(["02"], "1", stage=stage)
    ((ran, steps),) = study.ran
    assert ran == stage and rows(result) == [("02", "sub-02_T1w", "done")]
    names = {step.rpartition(".")[2] for step in steps}
    assert ("conform" in names, "superres" in names, "report" in names) == {
        "preproc": (True, False, False), "report": (False, False, True),
        "sr": (True, True, False),
    }[stage]  # fmt: skip
    planned = (study.root / "out" / "logs" / "sub-02" / "1" / "plan.json").exists()
    assert planned == (stage == "sr")


def test_a_folder_of_logs_that_cannot_be_made_costs_its_participant(study):
    (study.root / "out" / "logs").mkdir()
    (study.root / "out" / "logs" / "sub-01").touch()
    result = study.run(["01", "02"], "1")
    assert ("02", "sub-02_T1w", "done") in rows(result)
    (bad,) = (row for row in result.outcomes if row.participant == "01")
    assert (bad.image, bad.status) == ("", "failed") and "cannot be made" in bad.message
