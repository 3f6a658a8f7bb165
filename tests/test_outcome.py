# SPDX-License-Identifier: Apache-2.0
"""What a run says of its failures, on a data set without a single good image (so: in seconds)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.execution.outcome import Outcome, exit_code, failed, print_summary
from bids_moediff.execution.run import _next_command
from bids_moediff.inference.request import ImageResult, write_results
from bids_moediff.interfaces.network import _settle, end_sentence
from bids_moediff.settings import Settings
from bids_moediff.workflows.participant import RunPlan
from bids_moediff.workflows.planned import planned_items
from generated import dataset

COMMAND = [sys.executable, "-m", "bids_moediff.cli.app"]


def run_app(bids: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
    return subprocess.run(
        [*COMMAND, str(bids), str(output), "participant", "--stage", "preproc", *more],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = {"sub-01_T1w": b"no image", "sub-02_T1w": b"", "sub-02_T2w": b"\x1f\x8bno gzip"}
    return dataset(tmp_path_factory.mktemp("bad") / "bids", images)


def test_only_bad_images(bad: Path, tmp_path: Path) -> None:
    done = run_app(bad, tmp_path / "out", "--nprocs", "2", "--write-graph")
    assert done.returncode == 1
    assert "0 of 3 images done" in done.stderr
    assert "not a readable NIfTI image" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    graph = (tmp_path / "out/logs/graph.dot").read_text()
    assert '"bids_moediff_wf.sub_01_wf.statuses" -> "bids_moediff_wf.sub_01_wf.collect"' in graph
    assert "prepare" not in graph, "what the header rules out gets no step"
    (record,) = (tmp_path / "out/logs/sub-02").glob("*/run.json")
    items = json.loads(record.read_text())["images"]
    assert [item["status"] for item in items] == ["failed", "failed"]
    assert "not a readable NIfTI image" in items[1]["message"]


def test_methods_text_and_graph_without_running_anything(bad: Path, tmp_path: Path) -> None:
    done = run_app(bad, tmp_path / "out", "--boilerplate-only")
    assert done.returncode == 0, done.stderr
    logs = tmp_path / "out" / "logs"
    text, page = (logs / "CITATION.md").read_text(), (logs / "CITATION.html").read_text()
    assert "[@nipype]" in text and "N4 algorithm" in text
    assert text.count("Preparation of the images") == 1, "said once, not once an image"
    assert "<p>" in page and "N4 algorithm" in page and "http" not in page.split("References")[0]
    assert not list((tmp_path / "out").rglob("sub-*.nii.gz"))


def test_stop_on_first_crash_stops_with_the_sentence(bad: Path, tmp_path: Path) -> None:
    done = run_app(bad, tmp_path / "out", "--nprocs", "1", "--stop-on-first-crash")
    assert done.returncode == 1
    assert "sub-01_T1w.nii.gz is not a readable NIfTI image" in done.stderr
    assert not list((tmp_path / "out").rglob("run.json"))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([Outcome("01", "a", "done")], 0),
        ([Outcome("01", "a", "done"), failed("02", "b", "no")], 1),
        ([failed("01", "a", "no", 78), failed("02", "b", "no")], 78),
    ],
)
def test_exit_code(outcomes: list[Outcome], code: int) -> None:
    assert exit_code(outcomes) == code


def test_the_summary_says_what_to_look_at_and_what_comes_next(tmp_path, capsys):
    (tmp_path / "sub-01.html").write_text("x")
    outcomes = [
        Outcome("01", "sub-01_T1w", "done", warnings=("Slices are thick.", "Noisy.")),
        Outcome("02", "sub-02_T1w", "done", warnings=("Slices are thick.",)),
        failed("03", "sub-03_T1w", "The file is truncated."),
    ]
    print_summary(outcomes, tmp_path, "bids_moediff /data /out group", skipped=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 3 images done; remarks on files: 2" in said
    assert "sub-01_T1w (2 images): Slices are thick." in said
    assert "Warning, sub-01_T1w: Noisy." in said
    assert "The file is truncated." in said
    assert str(tmp_path / "sub-01.html") in said
    assert said.endswith("Next: bids_moediff /data /out group")


@pytest.mark.parametrize(
    ("stage", "code", "there"),
    [("all", 0, True), ("report", 0, True), ("sr", 0, False), ("all", 1, False)],
)
def test_the_group_level_comes_after_runs_that_did_everything(stage, code, there):
    settings = Settings(bids_dir=Path("/data"), output_dir=Path("/out"), stage=stage)
    assert _next_command(settings, code) == ("bids_moediff /data /out group" if there else "")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "was killed"),
        (137, "was killed"),
        (143, "signal 15"),
        (70, "70: Last."),
        (78, "Last."),
    ],
)
def test_why_the_network_ended(code, words):
    said = end_sentence(code, "First.\nbids_moediff-superres: Last.\n", 2.0)
    assert words in said and "First" not in said


@pytest.mark.parametrize(("size", "runs"), [(1.0, True), (0.5, False)])
def test_a_planned_run_names_a_network_only_where_voxels_get_smaller(size, runs):
    """The methods text that --boilerplate-only writes says what will run."""
    name = "sub-01/anat/sub-01_T1w.nii.gz"
    image = AnatomicalImage(
        Path("/nowhere") / name, name, {"sub": "01"}, "T1w", {}, shape=(9,) * 3, zooms=(size,) * 3
    )
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    (item,) = planned_items([Participant("01", (image,))], Settings(), plan)
    assert bool(item["record"]["NetworksRun"]) is runs


@pytest.mark.parametrize(("code", "left"), [(69, []), (-9, ["c"])])
def test_what_concerns_the_whole_call_is_not_tried_again(tmp_path, code, left):
    """A device that is gone fails every image left; one that is killed fails its own alone."""
    results = tmp_path / "results.json"
    write_results({"a": ImageResult(status="done"), "b": ImageResult(status="running")}, results)
    runtime = SimpleNamespace(returncode=code, stderr="bids_moediff-superres: No GPU is left.")
    found = _settle(results, ["a", "b", "c"], runtime, 2.0)
    assert found["a"].done and found["b"].status == "failed"
    assert [key for key in "abc" if key not in found] == left
