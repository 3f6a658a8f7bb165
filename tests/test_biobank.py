# SPDX-License-Identifier: Apache-2.0
"""The command behind docs/biobank.md, on a small data set and a made-up output folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    record = {"Device": "cpu", "OutputVoxelSize": [0.7, 0.7, 0.7]}
    sidecar = {"Model": "student", "Quality": {"snr_brain": 20.0}, "Warnings": []}
    for label, seconds in (("01", 30.0), ("02", 90.0)):
        image = {"key": f"sub-{label}_T1w", "status": "done", "seconds": seconds}
        image |= {"peak_memory_gb": 2.5, "record": record}
        run = folder / "logs" / f"sub-{label}" / "1"
        run.mkdir(parents=True)
        (run / "run.json").write_text(
            json.dumps({"stage": "all", "images": [image, {"key": "x", "status": "failed"}]})
        )
        anat = folder / f"sub-{label}" / "anat"
        anat.mkdir(parents=True)
        (anat / f"sub-{label}_desc-preproc_T1w.nii.gz").write_bytes(b"0" * 10_000_000)
        (anat / f"sub-{label}_desc-sr_T1w.json").write_text(json.dumps(sidecar))
    return folder


def run(*words):
    command = [sys.executable, ROOT / "tools/biobank.py", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )


def rows(text):
    return {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}


def test_figures_go_into_the_page(tmp_path, outputs):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures: begin -->\nstale\n<!-- figures: end -->\nafter\n")
    done = run("--participants", 40, "--sample", 8, "--outputs", outputs, "--write", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("before\n<!-- figures: begin -->\nMade by")
    assert text.endswith("<!-- figures: end -->\nafter\n")
    assert "stale" not in text
    found = rows(text)
    assert "40, 2" in found["participants (names only), images each"]
    assert "| 60 s | 1 h |" in found["time of the network in that run"]  # 80 images of a minute
    assert "10 MB" in found["disk space"]
    # Three files and two folders for each image.
    assert "| 5 |" in found["files and folders (inodes), mean of 2"]
    assert "40 participants" in text and "processor time" in found["time"]


def test_seconds_of_an_idle_machine_replace_those_of_the_run(outputs):
    given = ["--seconds", "student=45", "all of it, full=180"]
    done = run("--participants", 40, "--sample", 1, "--outputs", outputs, *given)
    found = rows(done.stdout)
    assert "| 45 s | 1 h |" in found["student, as given"]
    assert "| 180 s | 4 h |" in found["all of it, full, as given"]
    assert not [name for name in found if "that run" in name or "memory of the network" in name]
    assert "is not NAME=SECONDS" in run("--seconds", 180).stderr


def test_page_without_marks_and_folder_without_runs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    done = run("--participants", 2, "--sample", 1, "--write", page)
    assert "lacks the lines" in done.stderr
    assert page.read_text() == "nothing"
    assert "holds no image" in run("--outputs", tmp_path).stderr
