# SPDX-License-Identifier: Apache-2.0
"""``--combine`` through the app: three stacks, a contrast of one scan, and a broken scan."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.cli.app import main
from bids_moediff.inference.request import ImageRequest
from bids_moediff.interfaces.groups import PlannedGroup, request_groups
from bids_moediff.options import Options
from generated import dataset, untrained_model

COMMAND = [sys.executable, "-m", "bids_moediff.cli.app"]
CHILD = [sys.executable, "-m", "bids_moediff.cli.superres"]
STACKS = Path(__file__).parent / "data" / "three_stacks" / "bids"
SCANS = [f"sub-01_acq-{plane}_T1w" for plane in ("axial", "coronal", "sagittal")]
COMBINED = "sub-01/anat/sub-01_res-2p4mm_desc-srcombined_T1w"
BROKEN = "sub-02_acq-b_T1w"
TURNS = ("before", "after")
SECOND = [f"{name}_for_group" for name in SCANS]


@dataclass(frozen=True)
class Run:
    output: Path
    code: int
    stderr: str

    def items(self, subject: str) -> dict[str, dict]:
        (file,) = (self.output / "logs" / subject).glob("*/run.json")
        return {item["key"]: item for item in json.loads(file.read_text())["images"]}

    def names(self, pattern: str) -> set[str]:
        return {path.name for path in self.output.rglob(pattern)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(STACKS, folder / "bids")
    whole = (STACKS / "sub-01/anat" / f"{SCANS[0]}.nii.gz").read_bytes()
    images = {"sub-02_acq-a_T1w": whole, BROKEN: whole[: len(whole) // 2], "sub-02_T2w": whole}
    dataset(folder / "bids", images)
    untrained_model(folder / "model")
    return folder


def run_app(study: Path, name: str, *more: str) -> Run:
    output = study / name
    command = [
        *COMMAND, str(study / "bids"), str(output), "participant", "--weights",
        str(study / "model"), "--output-resolution", "2.4", "--mem", "16", "--nprocs", "1",
        "--skip-bias-correction", *more,
    ]  # fmt: skip
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=900, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Run(output, done.returncode, done.stderr)


@pytest.fixture(scope="module")
def auto(study: Path) -> Run:
    return run_app(study, "auto", "--combine", "auto", "--keep-workdir")


def test_three_stacks_are_combined(auto: Run) -> None:
    image = nib.Nifti1Image.from_filename(auto.output / f"{COMBINED}.nii.gz")
    count = nib.Nifti1Image.from_filename(
        auto.output / f"{COMBINED.replace('combined', 'count')}.nii.gz"
    )
    assert count.shape == image.shape and int(np.asarray(count.dataobj).max()) == 3
    sidecar = json.loads((auto.output / f"{COMBINED}.json").read_text())
    assert sidecar["Sources"] == [f"bids:raw:sub-01/anat/{name}.nii.gz" for name in SCANS]
    assert [scan["Scan"] for scan in sidecar["CombinedScans"]] == SCANS
    assert all(scan["ResidualOverNoise"] < 1.1 for scan in sidecar["CombinedScans"])
    assert sidecar["OutputVoxelSize"] == [2.4] * 3
    item = auto.items("sub-01")["sub-01_desc-srcombined_T1w"]
    assert item["status"] == "done" and set(item["products"]) == {"srcombined", "srcount"}


def test_single_results_are_there_too_and_say_nothing_of_combining(auto: Run) -> None:
    singles = auto.names("*_desc-sr_*.nii.gz")
    assert len(singles) == 5 and not auto.names("*_desc-srstd_*")
    sidecar = next(auto.output.rglob(f"{SCANS[0][:-4]}_res-2p4mm_desc-sr_T1w.json")).read_text()
    assert "ExpectedError" not in sidecar and "never compared" not in sidecar


def test_a_broken_scan_leaves_the_rest_alone_and_is_said(auto: Run) -> None:
    assert auto.code == 1
    assert "5 of 6 images done, 1 of 2 groups combined" in auto.stderr
    items = auto.items("sub-02")
    failed = items["sub-02_desc-srcombined_T1w"]
    assert failed["status"] == "failed" and BROKEN in failed["message"]
    assert "one scan could be used" in failed["message"]
    assert items["sub-02_T2w"]["status"] == items["sub-02_acq-a_T1w"]["status"] == "done"


def test_outputs_are_valid_bids(auto: Run) -> None:
    done = subprocess.run(
        ["bids-validator-deno", str(auto.output), "--format", "json"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_a_killed_child_goes_on_with_the_group(auto: Run, tmp_path: Path) -> None:
    (work,) = (auto.output / ".work").rglob("sub_01_wf/superres_wf/superres")
    (request,) = (auto.output / ".work").rglob("sub_01_wf/superres_wf/write_request/request.json")
    shutil.copytree(work, tmp_path / "again")
    results = tmp_path / "again" / "results.json"
    items = json.loads(results.read_text())
    first = Path(items.pop("sub-01_desc-srcombined_T1w")["files"]["srcombined"])
    before = (tmp_path / "again" / first).read_bytes()
    (tmp_path / "again" / first).unlink()
    results.write_text(json.dumps(items))
    command = [*CHILD, "--request", str(request), "--results", "results.json"]
    done = subprocess.run(command, cwd=results.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["key"] for line in lines} == {None, "sub-01_desc-srcombined_T1w"}
    assert (tmp_path / "again" / first).read_bytes() == before


def test_two_named_scans_without_results_of_their_own(study: Path, auto: Run) -> None:
    names = [f"sub-01/anat/{name}.nii.gz" for name in SCANS[:2]]
    (study / "groups.json").write_text(
        json.dumps([names, ["sub-09/x_T1w.nii", "sub-09/y_T1w.nii"]])
    )
    more = ["--combine", str(study / "groups.json"), "--combine-only", "--participant-label", "01"]
    run = run_app(study, "named", *more)
    assert run.code == 0, run.stderr
    assert run.names("*_desc-sr_*.nii.gz") == {"sub-01_acq-sagittal_res-2p4mm_desc-sr_T1w.nii.gz"}
    assert len(json.loads((run.output / f"{COMBINED}.json").read_text())["Sources"]) == 2
    single = run.names("*acq-sagittal*desc-sr_*.nii.gz").pop()
    one, other = (next(found.output.rglob(single)).read_bytes() for found in (run, auto))
    assert one == other, "a single result does not depend on what is combined"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "JSON"),
        ('{"a": 1}', "list of groups"),
        ('[["sub-01/anat/sub-01_T1w.nii.gz"]]', "list of groups"),
        ('[["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz"]]', "different"),
        ('[["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"]]', "one subject"),
        ('[["sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz"]]', "one suffix"),
    ],
)
def test_a_wrong_file_of_groups(content: str, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "groups.json").write_text(content)
    arguments = [str(STACKS), str(tmp_path / "out"), "participant"]
    assert main([*arguments, "--combine", str(tmp_path / "groups.json")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_combine_only_needs_combine(tmp_path: Path, capsys) -> None:
    assert main([str(STACKS), str(tmp_path / "out"), "participant", "--combine-only"]) == 2
    assert "--combine auto" in capsys.readouterr().err


def test_report_and_group_table_show_the_scans(study: Path, auto: Run) -> None:
    page = (auto.output / "sub-01_desc-srcombined_T1w.html").read_text()
    assert all(
        page.count(f"{name} {words} registration") == 1 for name in SCANS for words in TURNS
    )
    assert "3 of 3 scans were combined" in page and "could not be drawn" not in page
    assert main([str(study / "bids"), str(auto.output), "group"]) == 1
    table = (auto.output / "group_T1w.tsv").read_text().splitlines()
    place = table[0].split("\t").index("scans")
    rows = {line.split("\t")[0]: line.split("\t")[place] for line in table[1:]}
    assert rows["sub-01_res-2p4mm_desc-srcombined_T1w"] == "3"
    assert rows["sub-01_acq-axial_res-2p4mm_T1w"] == "1"


@pytest.mark.parametrize(
    ("size", "only", "keys", "combined"),
    [
        (2.4, False, SCANS, SCANS),
        ("auto", False, [*SCANS, *SECOND], SECOND),
        ("auto", True, SCANS, SCANS),
    ],
)
def test_what_is_restored_for_a_group(
    size: str | float, only: bool, keys: list[str], combined: list[str]
) -> None:
    """A scan is restored twice where its own result has other voxels than the combined image."""
    paths = {name: str(STACKS / "sub-01/anat" / f"{name}.nii.gz") for name in SCANS}
    images = {key: ImageRequest(key=key, image=path, out_dir=key) for key, path in paths.items()}
    frame = nib.Nifti1Image.from_filename(paths[SCANS[0]]).affine.tolist()
    group = PlannedGroup(
        "group", [*SCANS, "lost"], (2.4, 2.4, 2.0 if size == "auto" else 2.4), frame,
        {"torn": "It is cut short."},
    )  # fmt: skip
    options = Options.from_dict({"output_resolution": size}, "test")
    restored, (found,) = request_groups(images, {"lost": "It is empty."}, [group], options, only)
    assert [image.key for image in restored] == keys
    assert list(found.scans.values()) == combined and dict(found.lost) == {
        "lost": "It is empty.", "torn": "It is cut short.",
    }  # fmt: skip
    assert all(image.with_error for image in restored if image.key in combined)
