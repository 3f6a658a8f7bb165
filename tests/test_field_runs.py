# SPDX-License-Identifier: Apache-2.0
"""Faults of the field through the whole app: one odd name, sidecar or header costs its image."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from field_data import LONG_NAMES, REFUSED, fields, put, runs_with_one_mask, small_head
from generated import dataset, untrained_model

COMMAND = [sys.executable, "-m", "bids_moediff.cli.app"]


@dataclass(frozen=True)
class Run:
    """What a run of the app left: output folder, exit code, text, records by image."""

    output: Path
    code: int
    text: str

    def items(self) -> dict[str, dict]:
        files = sorted(self.output.glob("logs/sub-*/*/run.json"))
        images = [item for path in files for item in json.loads(path.read_text())["images"]]
        return {item["key"]: item for item in images}

    def sidecar(self, key: str) -> dict:
        stem, suffix = key.rsplit("_", 1)
        (path,) = self.output.rglob(f"{stem}_res-*_desc-sr_{suffix}.json")
        return json.loads(path.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def app(model):
    def call(bids: Path, output: Path, *more: str) -> Run:
        options = ["--weights", str(model), "--output-resolution", "4.5", "--sloppy"]
        fast = ["--skip-bias-correction", "--nprocs", "1"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "COLUMNS": "250",
        }
        done = subprocess.run(
            [*COMMAND, str(bids), str(output), "participant", *options, *fast, *more],
            capture_output=True, text=True, check=False, timeout=3000, env=environment,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Run(output, done.returncode, f"{done.stdout}\n{done.stderr}")

    return call


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    runs_with_one_mask(fields(folder / "bids"), folder / "earlier")
    return folder


@pytest.fixture(scope="module")
def field_run(app, study) -> Run:
    """The whole data set, into an output folder with a % in its name (a mounted cloud folder)."""
    earlier = ("--derivatives", str(study / "earlier"))
    return app(study / "bids", study / "Box%20Sync", *earlier)


def test_what_can_be_done_is_done(field_run):
    assert field_run.code == 1
    items = field_run.items()
    refused = {key for key, item in items.items() if item["status"] != "done"}
    assert {next(word for word in REFUSED if word in key) for key in refused} == set(REFUSED)
    assert len(refused) == len(REFUSED)
    done = set(items) - refused
    assert {"sub-01_T1w", "sub-01_acq-B1_T1w", "sub-01_acq-B1+_T1w", "sub-01_acq-half_T1w"} < done
    assert {"sub-02_ses-1_run-01_T1w", "sub-01_acq-gap_T1w", "sub-02_ses-2_run-1_T2w"} < done
    assert sum(len(key) > 150 for key in done) == len(LONG_NAMES) - 1
    assert len(done) == 11
    for label in ("01", "02", "03"):
        assert (field_run.output / f"sub-{label}.html").is_file()
    assert "Step " not in field_run.text  # nothing that nobody foresaw


def test_run_and_dry_run_refuse_the_same_in_the_same_words(field_run, dry_run):
    assert dry_run.code == 1
    assert "11 images, at most" in dry_run.text
    assert "this run may use 1.0 GB" in dry_run.text
    said = " ".join(dry_run.text.split())
    for key, words in REFUSED.items():
        (name,) = (name for name in field_run.items() if key in name)
        message = field_run.items()[name]["message"]
        assert words in message
        assert message in said


@pytest.fixture(scope="module")
def dry_run(app, study) -> Run:
    before = sorted(study.rglob("*"))
    done = app(study / "bids", study / "absent", "--dry-run", "--mem", "1GB")
    assert sorted(study.rglob("*")) == before
    return done


def test_warnings_stand_in_sidecar_and_page(field_run):
    expected = {
        "sub-02_ses-1_run-01_T1w": "'session' is left out",
        "sub-01_acq-half_T1w": "slices are empty, and the head is cut off",
        "sub-01_acq-gap_T1w": "6 mm apart by the header and 7.5 mm by the sidecar",
        "sub-01_acq-annex_T1w": "datalad get sub-01/anat/sub-01_acq-annex_T1w.json",
        "sub-02_ses-2_run-1_T2w": "names no run: it was taken for the first one",
        "sub-02_ses-2_run-2_T2w": "belongs to the first one, run-1",
    }
    for key, words in expected.items():
        assert any(words in warning for warning in field_run.sidecar(key)["Warnings"]), key
        page = (field_run.output / f"{key}.html").read_text()
        assert words.replace("'", "&#39;") in page


def test_a_mark_before_the_json_loses_nothing(field_run):
    warnings = field_run.sidecar("sub-01_acq-bom_T1w")["Warnings"]
    assert "acq-bom_T1w.json" not in f"{warnings} {field_run.text}"


@pytest.fixture(scope="module")
def sessions(app, tmp_path_factory):
    """Sessions a, c and d, then session b, with one work folder; how to go on."""
    folder = tmp_path_factory.mktemp("sessions")
    image = small_head()
    root = dataset(folder / "bids", {})
    for session in "abcd":
        put(root, f"sub-01_ses-{session}_T1w.nii.gz", image)

    def call(*more):
        return app(root, folder / "out", "-w", str(folder / "work"), *more)

    first = [call("--session-label", "a", "c", "d"), call("--session-label", "b")]
    return root, folder / "out", call, first


def products(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*_desc-sr_*.nii.gz")}


def test_one_session_after_the_other_and_again(sessions):
    """Nothing is done twice, but for a report that is gone; then what has changed since."""
    root, output, call, first = sessions
    assert [run.code for run in first] == [0, 0]
    page = (output / "sub-01.html").read_text()
    assert all(f"sub-01_ses-{session}_T1w" in page for session in "abcd")
    before = products(output)
    (output / "sub-01.html").unlink()
    again = call()
    assert again.code == 0
    assert "4 images were finished by an earlier run" in again.text
    assert "sub-01_ses-a_T1w" in (output / "sub-01.html").read_text()
    assert products(output) == before
    # A result that was cut off since, one that is missing, and another image in place of one.
    replaced, cut, lost, kept = sorted(before)
    content, contents = cut.read_bytes(), lost.read_bytes()
    cut.write_bytes(content[:-2000])
    lost.unlink()
    image = small_head(seed=5)
    data = np.asarray(image.dataobj)[:, ::-1]
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = data.shape[1] - 1
    put(root, "sub-01_ses-a_T1w.nii.gz", image.__class__(data, image.affine @ flip))
    mended = call()
    assert "2 images are done again: an output of the earlier run is missing or" in mended.text
    assert "1 image is done again: inputs changed since the last run" in mended.text
    assert cut.read_bytes() == content and lost.read_bytes() == contents
    assert nib.aff2axcodes(nib.load(replaced).affine) == ("R", "P", "S")
    assert products(output).keys() == before.keys()
    assert products(output)[kept] == before[kept]
