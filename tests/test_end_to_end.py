# SPDX-License-Identifier: Apache-2.0
"""The whole app on generated heads, as a user runs it: real processes, real files, no stand-ins.

The model is untrained (it returns the consistent interpolation), which leaves every other part
as it is in a real run.
"""

import gc
import gzip
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from conftest import LONG
from generated import dataset, head, untrained_model

COMMAND = [sys.executable, "-m", "bids_moediff.cli.app"]
CHILD = [sys.executable, "-m", "bids_moediff.cli.superres"]
BAD = "sub-02_T1w"
GOOD = ("sub-01_ses-a_run-01_T1w", "sub-01_ses-b_T2w", "sub-02_FLAIR")


@dataclass(frozen=True)
class Study:
    bids: Path
    model: Path
    folder: Path

    def options(self, output: Path, *more: str, level: str = "participant") -> list[str]:
        # The bias field takes seconds an image and has tests of its own.
        options = ["--weights", str(self.model), "--output-resolution", "3", "--mem", "16"]
        return [str(self.bids), str(output), level, *options, "--skip-bias-correction", *more]


@dataclass(frozen=True)
class Run:
    output: Path
    code: int
    stderr: str

    def products(self) -> dict[str, str]:
        """SHA-256 of everything but logs, work files and pages, by relative path."""
        return {
            path.relative_to(self.output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.output.rglob("*"))
            if path.is_file()
            and path.suffix != ".html"
            and path.relative_to(self.output).parts[0] not in ("logs", ".work")
        }

    def items(self) -> dict[str, dict]:
        """What the first run of each participant says of each image."""
        folders = sorted((self.output / "logs").glob("sub-*"))
        files = [min(folder.glob("*/run.json")) for folder in folders]
        images = [item for path in files for item in json.loads(path.read_text())["images"]]
        return {item["key"]: item for item in images}


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def run_app(study: Study, output: Path, *more: str, level: str = "participant") -> Run:
    command = [*COMMAND, *study.options(output, *more, level=level)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=3000, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Run(output, done.returncode, done.stderr)


def thick_head() -> nib.Nifti1Image:
    """Thick sagittal slices, axes permuted and flipped, tilted by ten degrees."""
    image = head((30, 46, 44), (5.0, 4.0, 4.0), seed=7)
    data = np.ascontiguousarray(np.transpose(np.asanyarray(image.dataobj), (1, 2, 0))[:, ::-1])
    angle = np.deg2rad(10)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    axes = np.array([[0, 0, 5.0], [4.0, 0, 0], [0, -4.0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes
    affine[:3, 3] = -affine[:3, :3] @ (np.array(data.shape) / 2 - 0.5)
    return nib.Nifti1Image(data, affine)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    whole = gzip.compress(head(seed=4).to_bytes())
    images = {GOOD[0]: 1, GOOD[1]: thick_head(), BAD: whole[: len(whole) // 2], GOOD[2]: 3}
    return Study(dataset(folder / "bids", images), untrained_model(folder / "model"), folder)


@pytest.fixture(scope="module")
def linear(study: Study) -> Run:
    return run_app(study, study.folder / "linear", "--nprocs", "1")


@pytest.fixture(scope="module")
def killed(study: Study) -> Run:
    """Two processes at a time; sub-01's network is killed while it works on its first image."""
    output = study.folder / "parallel"
    options = ("--nprocs", "2", "--omp-nthreads", "1", "--keep-workdir")
    command = [*COMMAND, *study.options(output, *options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    network_at_work(process, output / ".work", GOOD[0]).send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=600)
    return Run(output, process.returncode, errors)


def network_at_work(process: subprocess.Popen, work: Path, key: str) -> psutil.Process:
    """Network process at the moment it works on an image."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        for path in work.rglob("sub_01_wf/superres_wf/superres/results.json"):
            try:
                running = json.loads(path.read_text()).get(key, {}).get("status") == "running"
            except ValueError:
                continue
            for child in psutil.Process(process.pid).children(recursive=True) if running else ():
                words = child.cmdline()
                if "bids_moediff.cli.superres" in words and "/sub_01_wf/" in " ".join(words):
                    return child
        time.sleep(0.002)
    raise AssertionError("the network never ran")


@pytest.fixture(scope="module")
def parallel(study: Study, killed: Run) -> Run:
    """The same command again."""
    options = ("--nprocs", "2", "--omp-nthreads", "1", "--keep-workdir")
    return run_app(study, killed.output, *options)


def test_an_unreadable_image_is_named_and_the_others_are_done(linear: Run) -> None:
    assert linear.code == 1
    assert "3 of 4 images done" in linear.stderr
    assert BAD in linear.stderr
    items = linear.items()
    assert {key for key, item in items.items() if item["status"] == "done"} == set(GOOD)
    assert items[BAD]["message"] and "Traceback" not in items[BAD]["message"]
    names = set(linear.products())
    for key in GOOD:
        start, _, suffix = key.rpartition("_")
        assert any(f"{start}_res-3mm_desc-sr_{suffix}.nii.gz" in name for name in names)
    assert not any("sub-02_res-3mm_desc-sr_T1w" in name for name in names)
    assert (linear.output / "sub-02.html").is_file(), "a report in spite of the failure"


def test_progress_is_shown_in_plain_lines(linear: Run) -> None:
    shown = [line for line in linear.stderr.splitlines() if line.startswith(f"{GOOD[0]}: ")]
    assert any(line.endswith("100 %") for line in shown)


def test_a_killed_network_fails_one_image_and_hangs_nothing(killed: Run) -> None:
    assert killed.code == 1
    assert "2 of 4 images done" in killed.stderr
    items = killed.items()
    assert {key for key, item in items.items() if item["status"] == "done"} == set(GOOD[1:])
    message = items[GOOD[0]]["message"]
    assert message.startswith("Super-resolution was killed, most likely for want of memory")
    assert " GB; give it more memory" in message and GOOD[0] in killed.stderr


def test_one_process_and_many_give_the_same_bytes(linear: Run, parallel: Run) -> None:
    assert parallel.code == 1
    assert "3 of 4 images done" in parallel.stderr, "the same command finishes what was missing"
    assert linear.products() == parallel.products()
    assert sum(name.endswith("nii.gz") for name in linear.products()) == 12


def test_output_is_valid_bids(linear: Run) -> None:
    done = subprocess.run(
        ["bids-validator-deno", str(linear.output), "--format", "json"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_the_output_grid_covers_the_input(study: Study, linear: Run) -> None:
    source = nib.load(study.bids / "sub-01/ses-b/anat" / f"{GOOD[1]}.nii.gz")
    result = nib.load(linear.output / "sub-01/ses-b/anat/sub-01_ses-b_res-3mm_desc-sr_T2w.nii.gz")
    assert np.allclose(result.header.get_zooms(), 3, atol=1e-5)
    corner = np.array([-0.5, -0.5, -0.5, 1.0])
    assert np.allclose(source.affine @ corner, result.affine @ corner, atol=1e-4)
    extent = np.array(source.shape) * source.header.get_zooms()
    assert (np.array(result.shape) * 3 >= extent - 1e-3).all()


def test_no_host_path_in_any_derivative(study: Study, linear: Run) -> None:
    secret = str(study.folder)
    for name in linear.products():
        content = (linear.output / name).read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        assert secret.encode() not in content, name
    assert secret not in (linear.output / "sub-01.html").read_text()


def test_logs_hold_settings_and_the_network_s_output(linear: Run) -> None:
    folder = next((linear.output / "logs" / "sub-01").iterdir())
    assert "output_resolution = [3.0, 3.0, 3.0]" in (folder / "config.toml").read_text()
    assert '"stage": "done"' in (folder / "superres_stdout.log").read_text()
    log = (folder / "nipype.log").read_text()
    assert "sub_01_wf" in log and "sub_02_wf" not in log
    methods = (linear.output / "logs" / "CITATION.md").read_text()
    assert "voxel size of 3 mm" in methods and "N4" not in methods


def test_the_work_folder_goes_unless_it_is_wanted(linear: Run, parallel: Run) -> None:
    assert not (linear.output / ".work").exists()
    assert (parallel.output / ".work" / "bids_moediff_wf").is_dir()


def test_stages_in_turn_give_the_same_bytes(study: Study, linear: Run) -> None:
    output, work = study.folder / "stages", study.folder / "work"
    options = ("--nprocs", "1", "--session-label", "b", "-w", str(work))
    prepared = run_app(study, output, *options, "--stage", "preproc")
    assert prepared.code == 0
    assert not any("desc-sr" in name for name in prepared.products())
    assert any("desc-preproc" in name for name in prepared.products())
    network = run_app(study, output, *options, "--stage", "sr")
    assert network.code == 0
    assert not (output / "sub-01.html").exists()
    methods = (output / "logs" / "CITATION.md").read_bytes()
    shutil.rmtree(work / "bids_moediff_wf" / "sub_01_wf" / "superres_wf")
    report = run_app(study, output, *options, "--stage", "report", "--device", "cpu")
    assert report.code == 0
    assert "writing the reports" in report.stderr and "preparing" not in report.stderr
    assert not work.exists(), "the last stage cleans what the plain run cleans"
    records = [json.loads(path.read_text()) for path in output.glob("logs/sub-01/*/run.json")]
    devices = {record["stage"]: record["settings"]["device"] for record in records}
    assert devices["report"] == devices["sr"] != "cpu", "of the job that did the work"
    page = (output / "sub-01.html").read_text()
    assert GOOD[1] in page
    assert "super-resolved to a voxel size of 3 mm" in page, "methods of the stages before"
    assert (output / "logs" / "CITATION.md").read_bytes() == methods, "of the stage that worked"
    whole = linear.products()
    expected = {name: whole[name] for name in whole if "sub-0" not in name or "ses-b" in name}
    assert report.products() == expected, "figures included"


def test_group_level_tells_who_failed(study: Study, linear: Run) -> None:
    group = run_app(study, linear.output, level="group")
    assert group.code == 1
    assert "1 done, 1 failed, 0 missing" in group.stderr
    assert (linear.output / "group.html").is_file()
    assert (linear.output / "logs" / "unfinished.txt").read_text() == "sub-02\n"


def test_group_level_of_nobody_ends_with_1(study: Study) -> None:
    output = study.folder / "nobody"
    group = run_app(study, output, level="group")
    assert group.code == 1
    assert "0 done, 0 failed, 2 missing" in group.stderr
    assert (output / "group.html").is_file()


def test_a_cancelled_run_leaves_no_process_and_no_half_written_file(study: Study) -> None:
    output = study.folder / "cancelled"
    options = ("--nprocs", "2", "--omp-nthreads", "1", "--participant-label", "01")
    command = [*COMMAND, *study.options(output, *options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
    network_at_work(process, output / ".work", GOOD[0])
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert psutil.wait_procs(family, timeout=60)[1] == []
    assert not list(output.rglob("*.part"))
    test_output_is_valid_bids(Run(output, 143, ""))
    assert run_app(study, output, level="group").code == 1
    assert "The run was stopped before it ended" in (output / "group.html").read_text()


def test_the_plain_tool(study: Study, tmp_path: Path) -> None:
    source = study.bids / "sub-02/anat" / f"{GOOD[2]}.nii.gz"
    command = [*CHILD, str(source), str(tmp_path / "out.nii.gz"), "--output-resolution", "3"]
    done = subprocess.run(
        [*command, "--model", str(study.model), "--device", "cpu"],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.allclose(nib.load(tmp_path / "out.nii.gz").header.get_zooms(), 3)
    assert json.loads((tmp_path / "out.json").read_text())["NumberOfSamples"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out.nii.gz", "out.json"}


def test_a_terminated_network_leaves_no_half_written_file(study: Study, tmp_path: Path) -> None:
    source = study.bids / "sub-02/anat" / f"{GOOD[2]}.nii.gz"
    images = [
        {
            "key": str(n),
            "image": str(source),
            "out_dir": str(tmp_path / str(n)),
        }
        for n in range(20)
    ]
    options = {"weights": str(study.model), "output_resolution": 2}
    request = {"options": options, "device": "cpu", "images": images}
    (tmp_path / "request.json").write_text(json.dumps(request))
    results = tmp_path / "results.json"
    command = [*CHILD, "--request", str(tmp_path / "request.json"), "--results", str(results)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if results.exists() and '"done"' in results.read_text():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    states = [item["status"] for item in json.loads(results.read_text()).values()]
    assert states.count("done") >= 1 and states.count("running") <= 1
    assert not list(tmp_path.rglob("*.part"))
    for path in tmp_path.rglob("*.nii.gz"):
        assert np.isfinite(nib.load(path).get_fdata()).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_falls_into_garbage_collection_is_not_lost() -> None:
    from bids_moediff.inference import worker

    class Dying:
        def __del__(self) -> None:
            worker.stop(signal.SIGTERM, None)  # Python prints what this raises and goes on

    progress = worker.ProgressLines(io.StringIO(), follow_parent=False)
    worker.STOP.clear()
    try:
        progress("a", "mean", 0.0)
        Dying()
        gc.collect()
        with pytest.raises(SystemExit) as stop:
            progress("a", "mean", 0.5)
        assert stop.value.code == 143
    finally:
        worker.STOP.clear()


def test_wrong_requests_are_refused_in_one_sentence(tmp_path: Path) -> None:
    from bids_moediff.cli.superres import main

    request = tmp_path / "request.json"
    for content in (
        "{",
        '{"images": [], "devise": "cpu"}',
        '{"images": [], "options": {"random_sed": 1}}',
        '{"images": [], "options": {"num_samples": 0}}',
        '{"images": [{"key": "a"}]}',
        '{"images": ["a"]}',
        "[]",
    ):
        request.write_text(content)
        assert main(["--request", str(request), "--results", str(tmp_path / "r.json")]) == 2
    assert main(["--request", str(request)]) == 2
    assert main([str(request)]) == 2
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("plugin: [", "cannot be read"),
        ("plugin_args: {}", "has no line"),
        ("plugin: Dask", "which Nipype does not have"),
        ("plugin: Linear\nargs: 1", "unknown key"),
    ],
)
def test_wrong_plugin_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    from bids_moediff.errors import UsageError
    from bids_moediff.execution.plugin_choice import read_plugin_file

    path = tmp_path / "plugin.yml"
    path.write_text(content)
    with pytest.raises(UsageError, match=words):
        read_plugin_file(path)


@pytest.fixture(scope="module")
def shared_run(
    shared_data: Path, study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """One real participant with two contrasts, three by `make test-long`; coarse output."""
    output = tmp_path_factory.mktemp("shared") / "out"
    real = Study(shared_data / "bids_mini", study.model, study.folder)
    labels = ("01", "02", "03") if LONG else ("02",)
    options = ("--nprocs", "2", "--omp-nthreads", "1", "--participant-label", *labels)
    yield run_app(real, output, *options)


@pytest.mark.shared
@pytest.mark.slow
def test_real_participants_give_valid_derivatives(shared_run: Run) -> None:
    assert shared_run.code == 0, shared_run.stderr
    made = sum("desc-sr" in name and name.endswith("gz") for name in shared_run.products())
    assert made == (7 if LONG else 2)
    test_output_is_valid_bids(shared_run)


def make_template(home: Path) -> None:
    """A template in TemplateFlow's layout: another head, shifted, with its brain."""
    folder = home / "tpl-TestSpace"
    folder.mkdir(parents=True)
    image = head((44, 52, 44), (4.0, 4.0, 4.0), seed=9)
    mask = (np.asanyarray(image.dataobj) > 200).astype(np.uint8)
    nib.save(image, folder / "tpl-TestSpace_res-01_T1w.nii.gz")
    path = folder / "tpl-TestSpace_res-01_desc-brain_mask.nii.gz"
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def test_mask_of_another_pipeline_gradient_coefficients_and_standard_space(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradunwarp = importlib.import_module("gradunwarp")
    coefficients = Path(gradunwarp.__file__).parent / "core/tests/data/gradunwarp_coeffs.grad"
    make_template(tmp_path / "templates")
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    source = nib.load(study.bids / "sub-02/anat" / f"{GOOD[2]}.nii.gz")
    given = tmp_path / "derivatives" / "sub-02" / "anat"
    given.mkdir(parents=True)
    mask = nib.Nifti1Image((source.get_fdata() > 200).astype(np.uint8), source.affine)
    nib.save(mask, given / "sub-02_space-FLAIR_desc-brain_mask.nii.gz")
    options = ["--derivatives", str(tmp_path / "derivatives"), "--output-spaces", "TestSpace"]
    options += ["--gradient-coefficients", str(coefficients), "--modalities", "FLAIR", "--sloppy"]
    run = run_app(study, tmp_path / "out", "--nprocs", "1", *options)
    assert run.code == 0, run.stderr
    anat = run.output / "sub-02" / "anat"
    moved = nib.load(anat / "sub-02_space-TestSpace_res-3mm_desc-sr_FLAIR.nii.gz")
    assert np.allclose(moved.header.get_zooms(), 3)
    sidecar = json.loads((anat / "sub-02_space-TestSpace_res-3mm_desc-sr_FLAIR.json").read_text())
    assert sidecar["Registration"]["space"] == "TestSpace"
    assert sidecar["SpatialReference"] == "tpl-TestSpace/tpl-TestSpace_res-01_T1w.nii.gz"
    assert sidecar["BrainMask"]["method"] == "derivatives"
    assert any("Gradient distortion was undone" in words for words in sidecar["Warnings"])
    used = nib.load(anat / "sub-02_space-FLAIR_desc-brain_mask.nii.gz")
    assert np.array_equal(np.asanyarray(used.dataobj), np.asanyarray(mask.dataobj))
    test_output_is_valid_bids(run)


@pytest.fixture(scope="module")
def maps(study: Study) -> Run:
    """One image with a segmentation and a cut lesion mask to carry, and the maps of a model."""
    source = nib.load(study.bids / "sub-02/anat" / f"{GOOD[2]}.nii.gz")
    folder = study.folder / "maps"
    given = folder / "derivatives" / "sub-02" / "anat"
    given.mkdir(parents=True)
    labels = np.digitize(source.get_fdata(), [200, 450]).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, source.affine), given / "sub-02_space-FLAIR_dseg.nii.gz")
    (given / "sub-02_space-FLAIR_dseg.tsv").write_text("index\tname\n1\tgrey\n2\twhite\n")
    lesion = nib.Nifti1Image((labels[:, :, 1:] == 2).astype(np.uint8), source.affine)
    nib.save(lesion, given / "sub-02_space-FLAIR_desc-lesion_mask.nii.gz")
    model = Path(shutil.copytree(study.model, folder / "model"))
    calibration = {"factor": 1.4, "spread": [1.2, 1.6], "heads": ["h"]}
    (model / "calibration.json").write_text(json.dumps(calibration))
    options = ["--carry", str(folder / "derivatives"), "--modalities", "FLAIR"]
    options += ["--outputs", "gates", "uncertainty", "--nprocs", "1"]
    return run_app(Study(study.bids, model, folder), folder / "out", *options)


def test_maps_of_another_app_are_carried_along(study: Study, maps: Run) -> None:
    assert maps.code == 0, maps.stderr
    source = nib.load(study.bids / "sub-02/anat" / f"{GOOD[2]}.nii.gz")
    labels = np.digitize(source.get_fdata(), [200, 450])
    anat = maps.output / "sub-02" / "anat"
    image = nib.load(anat / "sub-02_space-FLAIR_res-3mm_dseg.nii.gz")
    result = nib.load(anat / "sub-02_res-3mm_desc-sr_FLAIR.nii.gz")
    assert image.shape == result.shape
    volume = np.prod(source.header.get_zooms()) * (labels == 2).sum()
    assert np.isclose(27 * (image.get_fdata() == 2).sum(), volume, rtol=0.01)
    assert (anat / "sub-02_space-FLAIR_res-3mm_dseg.tsv").exists()
    assert not list(anat.glob("*lesion*"))
    sidecar = json.loads((anat / "sub-02_res-3mm_desc-sr_FLAIR.json").read_text())
    assert any("lesion_mask.nii.gz is not on the grid" in words for words in sidecar["Warnings"])
    test_output_is_valid_bids(maps)


def test_maps_of_the_experts_and_of_the_expected_error(maps: Run) -> None:
    assert maps.code == 0, maps.stderr
    stem = "sub-02/anat/sub-02"
    names = {name for name in maps.products() if name.endswith((".nii.gz", ".tsv"))}
    assert f"{stem}_res-3mm_desc-srstd_FLAIR.nii.gz" in names
    assert any("seg-moegate" in name and name.endswith("probseg.nii.gz") for name in names)
    assert any("seg-moegate" in name and name.endswith("dseg.tsv") for name in names)
    sidecar = json.loads((maps.output / f"{stem}_res-3mm_desc-srstd_FLAIR.json").read_text())
    assert sidecar["ExpectedErrorFactor"] == 1.4
    assert sidecar["ExpectedErrorMeasuredOn"] == ["h"]
    assert "expected from the truth" in (maps.output / "sub-02.html").read_text()


def test_a_template_that_is_not_there_is_told_before_anything_is_written(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    run = run_app(study, tmp_path / "out", "--output-spaces", "MNI152NLin2009cAsym")
    assert run.code == 2
    assert "the template is not in TemplateFlow's folder" in run.stderr
    assert not (tmp_path / "out" / "dataset_description.json").exists()


def test_spellings_of_the_version_before_work_with_a_notice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bids_moediff.cli.superres import _typed, build_parser

    words = ["a.nii", "b.nii", "--zooms", "0.8", "0.8", "1", "--seed", "3", "--model", "./folder"]
    typed = _typed(build_parser().parse_args(words))
    assert typed["output_resolution"] == (0.8, 0.8, 1.0)
    assert typed["random_seed"] == 3
    assert typed["weights"] == Path("folder").absolute() and "model" not in typed
    notices = capsys.readouterr().err
    for name in ("--output-resolution", "--random-seed", "--weights"):
        assert name in notices
