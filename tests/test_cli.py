# SPDX-License-Identifier: Apache-2.0
"""The real command in a process of its own: exit codes, sentences, and what is imported when."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff import __version__
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.cli import app, check, dry_run
from bids_moediff.cli.check import supported
from bids_moediff.cli.common import run_command
from bids_moediff.cli.parser import build_parser
from bids_moediff.errors import DeviceError, NothingToProcessError
from bids_moediff.imaging.grid import NOT_RESTORED
from bids_moediff.runtime import devices
from bids_moediff.runtime.devices import Acceleration, Card, explain_absence
from bids_moediff.settings import Settings, load_settings

ROOT = Path(__file__).parents[1]


def run(*words, environment=None, stdin=""):
    variables = {k: v for k, v in os.environ.items() if not k.startswith("BIDS_MOEDIFF_")}
    variables |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **(environment or {})}
    command = [sys.executable, "-m", "bids_moediff.cli.app", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=variables, input=stdin, check=False
    )


def refused(done, code):
    """One sentence on standard error, no traceback, the documented exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("bids_moediff: ")
    return lines[0]


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "raw"
    for label, shape in (("01", (20, 24, 10)), ("02", (16, 16, 16))):
        folder = root / f"sub-{label}" / "anat"
        folder.mkdir(parents=True)
        volume = nib.Nifti1Image(np.ones(shape, np.int16), np.diag([1, 1, 2, 1]))
        nib.save(volume, folder / f"sub-{label}_T1w.nii.gz")
    description = {"Name": "x", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


@pytest.fixture
def call(dataset):
    def do(*words, level="participant", **options):
        return run(dataset, dataset.parent / "out", level, *words, **options)

    return do


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_version_and_help():
    assert run("--version").stdout == f"bids_moediff {__version__}\n"
    text = run("--help").stdout
    assert "BIDS_DIR OUTPUT_DIR {participant,group}" in text
    assert "69 no such device" in text


def test_nothing_heavy_is_imported_before_arguments_are_parsed():
    """Seconds depend on the machine; what is imported does not."""
    heavy = ["torch", "nipype", "niworkflows", "bids", "nibabel", "numpy", "scipy", "pandas"]
    heavy += ["SimpleITK", "rich", "monai", "matplotlib", "nilearn", "yaml", "templateflow"]
    code = f"""
import sys
from bids_moediff.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported", sorted(set({heavy}) & set(sys.modules)))
"""
    for words in (["--help"], ["--version"], ["--print-config"], ["--bad-option"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "imported []"


def test_every_setting_is_an_option_with_help():
    actions = {action.dest: action for action in build_parser()._actions}
    for name in Settings.__dataclass_fields__:
        assert actions[name].help, name


def test_options_and_folders_in_any_order(dataset, tmp_path):
    out = tmp_path / "o"
    orders = (
        [
            dataset,
            out,
            "participant",
            "--device",
            "cpu",
            "-vv",
            "--output-resolution",
            "1",
            "1",
            "2",
        ],
        [
            "--device",
            "cpu",
            "-vv",
            dataset,
            out,
            "participant",
            "--output-resolution",
            "1",
            "1",
            "2",
        ],
        [
            "-v",
            dataset,
            out,
            "--output-resolution",
            "1",
            "1",
            "2",
            "-v",
            "participant",
            "--device=cpu",
        ],
    )
    printed = {run(*words, "--print-config").stdout for words in orders[:2]}
    assert len(printed) == 1
    assert "output_resolution = [1.0, 1.0, 2.0]" in printed.pop()


def test_printed_configuration_can_be_used(call, tmp_path, dataset):
    options = ["--mem", "3GiB", "--participant-label", "02", "--keep-workdir", "-v"]
    printed = call(*options, "--print-config", environment={"BIDS_MOEDIFF_NPROCS": "3"})
    assert printed.returncode == 0
    path = tmp_path / "settings.toml"
    path.write_text(printed.stdout)
    again = run("--config-file", path, "--print-config")
    assert again.stdout == printed.stdout
    settings = load_settings({}, path, {})
    assert (settings.nprocs, settings.participant_label) == (3, ("02",))
    undone = run("--config-file", path, "--no-keep-workdir", "--print-config")
    assert "keep_workdir = false" in undone.stdout


def test_dry_run_prints_a_table_and_writes_nothing(call, dataset):
    before = listing(dataset.parent)
    done = call("--dry-run", "--output-resolution", "0.5")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if "sub-" in line}
    first = rows["sub-01/anat/sub-01_T1w.nii.gz"]
    for words in ("20 x 24 x 10", "1 x 1 x 2", "40 x 48 x 40", "0.5 x 0.5 x 0.5"):
        assert words in first
    assert len(rows) == 2
    assert "2 images" in done.stdout
    assert "0.0 GB of results" in done.stdout
    assert listing(dataset.parent) == before


def test_dry_run_sums_times_and_names_the_largest_need(dataset, capsys):
    """One image is large: memory is that of the largest, time that of all of them."""
    large = nib.Nifti1Image(np.ones((220, 220, 160), np.uint8), np.eye(4))
    nib.save(large, dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    words = [dataset, dataset.parent / "out", "participant", "--dry-run", "--device", "cpu"]
    assert app.main([*map(str, words), "--output-resolution", "0.7"]) == 0
    text = capsys.readouterr().out
    found = re.findall(r"sub-\S+.* ([\d.]+) \S+ ([\d.]+) \S*$", text, re.MULTILINE)
    needs, minutes = zip(*(map(float, row) for row in found), strict=True)
    assert len(needs) == 3 and max(needs) > min(needs)
    peak, total = re.search(
        r"3 images, at most (\S+) GB at a time, about (\d+) min", text
    ).groups()
    assert float(peak) == max(needs)
    assert float(total) == pytest.approx(sum(minutes), abs=0.7)


PLANNED = {  # matrix and voxels before, and after at 0.8 x 0.9 x 1 mm
    "sub-01/anat/sub-01_T1w.nii.gz": ("220 x 200 x 160", "1 x 1 x 1", "275 x 223 x 160"),
    "sub-01/anat/sub-01_acq-ax_T2w.nii.gz": ("200 x 220 x 30", "1 x 1 x 5", "250 x 245 x 150"),
    "sub-01/anat/sub-01_acq-cor_T2w.nii.gz": ("180 x 40 x 160", "1 x 5 x 1", "225 x 223 x 160"),
    "sub-01/anat/sub-01_acq-sag_T2w.nii.gz": ("40 x 220 x 160", "4 x 1 x 1", "200 x 245 x 160"),
    "sub-01_desc-srcombined_T2w": ("3 scans", "", "252 x 248 x 162"),
    "sub-02/anat/sub-02_FLAIR.nii.gz": ("60 x 64 x 30", "2 x 3 x 4", "150 x 214 x 120"),
    "sub-02/anat/sub-02_T1w.nii.gz": ("64 x 60 x 50", "0.5 x 0.5 x 0.5", "40 x 34 x 25"),
}  # fmt: skip


def planned(words: list[str], capsys) -> tuple[int, dict[str, list[str]], str, str]:
    """Exit code of a dry run, the cells of its table, the lines below it, and the errors."""
    code = app.main([*words, "--device", "cpu", "--nprocs", "2", "--omp-nthreads", "1"])
    said = capsys.readouterr()
    rows = [line.split("│")[1:-1] for line in said.out.splitlines() if line.startswith("│")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    return code, cells, " ".join(said.out.partition("\nModel")[2].split()), said.err


def test_all_that_a_dry_run_says(dataset, capsys):
    """Three stacks to combine, a scan finer than the output, one that cannot be read."""
    for path in dataset.rglob("sub-*.nii.gz"):
        path.unlink()
    for name, (matrix, voxels, _) in PLANNED.items():
        if "/" in name:
            path = dataset / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape, zooms = ([float(n) for n in cell.split(" x ")] for cell in (matrix, voxels))
            data = np.zeros([int(n) for n in shape], np.uint8)
            nib.save(nib.Nifti1Image(data, np.diag([*zooms, 1.0])), path)
    (dataset / "sub-02/anat/sub-02_FLAIR.json").write_text('{"EchoTime": -1}')
    (dataset / "sub-03" / "anat").mkdir(parents=True)
    (dataset / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"no image")
    words = [str(dataset), str(dataset.parent / "out"), "participant", "--dry-run", "--mem", "1"]
    words += ["--output-resolution", "0.8", "0.9", "1", "--model", "moediff"]
    code, cells, below, errors = planned([*words, "--combine", "auto"], capsys)
    assert code == 1 and errors.count("\n") == 2
    assert "sub-02_FLAIR.json: 'EchoTime'" in errors and "sub-03_T1w.nii.gz is not" in errors
    expected = {name: [*found, "0.8 x 0.9 x 1"] for name, found in PLANNED.items()}
    odd = cells.pop("sub-03/anat/sub-03_T1w.nii.gz")
    assert odd == ["cannot be done", *[""] * 5]
    cells.pop("image", None)
    assert {name: found[:4] for name, found in cells.items()} == expected
    needs, minutes = ({n: float(c[k]) for n, c in cells.items()} for k in (4, 5))
    group = "sub-01_desc-srcombined_T2w"
    assert max(needs, key=lambda name: needs[name]) == group and "moediff, asked for" in below
    assert f"7 images, at most {needs[group]:.1f} GB" in below
    fine = "sub-02/anat/sub-02_T1w.nii.gz"
    assert f"{fine}: {NOT_RESTORED}" in below and f"{fine}: {dry_run.COARSER}" in below
    keys = [f"sub-01_acq-{plane}_T2w" for plane in ("ax", "cor", "sag")]
    assert f"{group}: combined from {', '.join(keys)}." in below
    assert f"1.0 GB, but {group} needs about {needs[group]:.1f}" in below
    assert below.endswith("Without an image to process: sub-03.")
    code, alone, below, _ = planned([*words, "--participant-label", "01"], capsys)
    assert code == 0 and set(alone) >= set(list(PLANNED)[:4]) and group not in alone
    files = " ".join(list(PLANNED)[1:4])
    assert f"sub-01_T2w: 3 scans of one contrast ({files})." in below
    assert minutes[group] > 2 * minutes[keys[0].join(("sub-01/anat/", ".nii.gz"))] - 0.2


def test_scans_to_combine_are_counted(tmp_path):
    """Of several sets the first is named, with five of its scans."""
    images = [
        AnatomicalImage(tmp_path / "x", f"{name}.nii", {"sub": sub, "run": str(run)}, kind, {})
        for sub, kind, runs in (("1", "T2w", 7), ("2", "T2w", 2), ("2", "T1w", 1), ("3", "T1w", 2))
        for run in range(1, runs + 1)
        for name in [f"sub-{sub}_run-{run}_{kind}"]
    ]
    (words,) = dry_run._to_combine(images)
    names = " ".join(f"sub-1_run-{run}_T2w.nii" for run in range(1, 6))
    assert words.startswith(
        f"sub-1_T2w (and 2 more sets): 7 scans of one contrast ({names} and 2 more)."
    )
    (words,) = dry_run._to_combine(images[:5])
    assert words.startswith(f"sub-1_T2w: 5 scans of one contrast ({names}).")
    assert list(dry_run._to_combine(images[:1])) == []


def test_dry_run_names_what_cannot_be_read_and_goes_on(call, dataset):
    (dataset / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"no image")
    (dataset / "sub-02/anat/sub-02_T2w.nii.gz").symlink_to("absent")
    done = call("--dry-run")
    assert done.returncode == 1
    assert "1 image, at most" in done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2
    assert "sub-01_T1w.nii.gz is not a readable NIfTI image" in lines[0]
    assert "datalad get sub-02/anat/sub-02_T2w.nii.gz" in lines[1]


def test_unknown_label_is_named_with_the_closest(call):
    sentence = refused(call("--participant-label", "sub-1"), 2)
    assert "sub-1 " in sentence
    assert "did you mean 01?" in sentence


def test_wrong_usage(call, dataset, tmp_path):
    assert "did you mean --participant-label?" in refused(call("--participant-lable", "01"), 2)
    assert "BIDS_DIR" in refused(run(), 2)
    assert "did you mean participant?" in refused(call(level="particpant"), 2)
    assert "--num-steps" in refused(call("--num-steps", "0"), 2)
    assert "same folder" in refused(run(dataset, dataset, "participant"), 2)
    assert "derivatives" in refused(run(dataset, dataset / "out", "participant"), 2)
    assert "does not exist" in refused(run(tmp_path / "absent", tmp_path / "o", "participant"), 2)
    settings = tmp_path / "settings.toml"
    settings.write_text("nprocz = 2\n")
    assert "did you mean nprocs?" in refused(call("--config-file", settings), 2)
    variable = {"BIDS_MOEDIFF_DEVISE": "cpu"}
    assert "did you mean BIDS_MOEDIFF_DEVICE?" in refused(call(environment=variable), 2)


def test_input_that_is_no_data_set(call, dataset):
    (dataset / "dataset_description.json").unlink()
    assert "no dataset_description.json" in refused(call(), 2)
    assert call("--skip-bids-validation", "--dry-run").returncode == 0


def test_output_of_another_pipeline(call, dataset):
    foreign = dataset.parent / "out" / "dataset_description.json"
    foreign.parent.mkdir()
    foreign.write_text('{"Name": "x", "GeneratedBy": [{"Name": "MRIQC"}]}')
    assert "results of MRIQC" in refused(call(), 2)
    assert len(listing(foreign.parent)) == 1


def test_bad_filter_file(call, tmp_path):
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"aquisition": "x"}}')
    assert "did you mean acquisition?" in refused(call("--bids-filter-file", path), 2)
    assert "Cannot read" in refused(call("--bids-filter-file", tmp_path / "absent.json"), 2)


def test_nothing_to_process(call, dataset):
    for words in (["--dry-run"], []):
        sentence = refused(call("--session-label", "x", "--modalities", "T2w", *words), 66)
        assert "filters in force: --session-label x, --modalities T2w" in sentence
    for folder in ("sub-01", "sub-02"):
        (dataset / folder).rename(dataset / f"no-{folder}")
    assert "filters in force: none" in refused(call(), 66)
    assert not (dataset.parent / "out").exists()


def test_the_group_level_says_what_became_of_each_job(call, dataset):
    """Jobs of one participant: no image, a folder that was not fetched, no weights, no job."""
    output = dataset.parent / "out"
    output.mkdir()
    (dataset / "sub-03").symlink_to("not-here")
    (dataset / "sub-04").mkdir()
    wrong = ("--weights", output / "absent")
    for label, code, *words in (
        ("01", 66, "--modalities", "FLAIR"), ("02", 78, *wrong), ("03", 1, "--stage", "preproc"),
    ):  # fmt: skip
        done = call("--participant-label", label, *words)
        assert done.returncode == code, done.stderr
    group = call(level="group")
    assert group.returncode == 1 and "0 done, 2 failed, 2 missing" in group.stderr
    page = (output / "group.html").read_text()
    assert str(dataset.parent) not in page
    for label, words in (
        ("01", "No image to process in [^;]*; filters in force: --modalities FLAIR"),
        ("02", "exit code 78: .*absent"),
        ("03", "datalad get sub-03"),
        ("04", "No run left a record"),
    ):
        assert re.search(f"{words}.*<p class=.names.>sub-{label}", " ".join(page.split()))


@pytest.mark.skipif(
    any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")),
    reason="needs a machine without a GPU",
)
def test_missing_device_names_the_flag(call, dataset):
    sentence = refused(call("--device", "cuda"), 69)
    assert "--nv" in sentence or "--gpus all" in sentence
    inside = call("--device", "cuda:1", environment={"APPTAINER_CONTAINER": "/x.sif"})
    assert "add --nv to the apptainer call" in refused(inside, 69)
    hidden = call("--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert "hides every GPU" in refused(hidden, 69)
    assert not (dataset.parent / "out").exists()


def test_missing_weights(call, tmp_path, dataset):
    sentence = refused(call("--device", "cpu", "--weights", tmp_path), 78)
    assert str(tmp_path) in sentence
    assert not (dataset.parent / "out").exists()


def test_check_says_what_is_there(tmp_path):
    done = run("--check", "--mem", "500MB", "--device", "cpu", "--weights", tmp_path)
    assert done.returncode == 1  # of the first finding that is not in order
    lines = {line[8:].split(":")[0]: line for line in done.stdout.splitlines()}
    assert lines["memory"].startswith("NOT OK  memory: 0.5 GB; a whole head wants")
    assert lines["device"] == "ok      device: cpu"
    assert lines["weights"].startswith("NOT OK")
    assert "Traceback" not in done.stderr


def test_check_speaks_of_no_gpu_where_there_is_none():
    done = run("--check", "--device", "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 69, done.stdout
    weights = [line for line in done.stdout.splitlines() if "weights:" in line]
    assert len(weights) == 1 and "GPU" not in weights[0]


GPU = Card("H200", 141.0, (9, 0))


@pytest.mark.parametrize(
    ("device", "found", "driver", "container", "environment", "words"),
    [
        ("cuda", None, False, "apptainer", {}, "add --nv"),
        ("cuda", None, False, "docker", {}, "--gpus all"),
        ("cuda", None, False, None, {"SLURM_JOB_ID": "1"}, "--gres=gpu:1"),
        ("cuda", None, True, None, {"CUDA_VISIBLE_DEVICES": "-1"}, "unset it"),
        ("cuda", Acceleration("2.13.0+cpu", None, (), ()), True, None, {}, "without CUDA"),
        ("cuda", Acceleration("2.13.0", "13.0", (), ()), True, None, {}, "too old for CUDA 13.0"),
        ("cuda:4", Acceleration("2", "13", (), (GPU, GPU)), True, None, {}, "numbers 0 to 1"),
        ("cuda:1", Acceleration("2", "13", (), (GPU,)), True, None, {}, "numbers 0;"),
    ],
)
def test_why_a_device_is_not_there(device, found, driver, container, environment, words):
    sentence = explain_absence(device, found, driver, container, environment)
    assert words in sentence
    assert sentence.startswith(f"--device {device} was asked for, but")


def test_a_card_beyond_the_last_one_is_not_there(monkeypatch):
    found = Acceleration("2.6", "12.4", (), (Card("A100", 80.0, (8, 0)),) * 2)
    monkeypatch.setattr(devices, "driver_is_visible", lambda: True)
    monkeypatch.setattr(devices, "ask_torch", lambda environment: found)
    assert devices.require_devices("cuda:1", {}) == ["cuda:1"]
    with pytest.raises(DeviceError, match="the numbers 0 to 1"):
        devices.require_devices("cuda:2", {})


def test_the_image_is_known_whatever_runs_it():
    tag = {"BIDS_MOEDIFF_DOCKER_TAG": "0.1.0"}
    assert devices.container_kind(tag) == "docker"
    assert devices.container_kind({**tag, "APPTAINER_CONTAINER": "x.sif"}) == "apptainer"


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        (True, "13.0", "the driver may be too old for CUDA 13.0: update it"),
        (True, None, "was built without CUDA"),
        (False, "13.0", "add --nv to the apptainer call"),
    ],
)
def test_check_says_why_no_gpu_will_be_used(driver, cuda, words, tmp_path, monkeypatch):
    """Torch's answer and the sight of a driver are given; the words are those of the app."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setenv("APPTAINER_CONTAINER", "x.sif")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "DRIVER_FILES", (tmp_path / "nvidiactl",) if driver else ())
    monkeypatch.setattr(devices, "ask_torch", lambda *_: Acceleration("2.13.0", cuda, (), ()))
    subjects = {subject: (good, text) for good, subject, text, _ in check._devices(Settings())}
    assert subjects["device"][0] and subjects["device"][1].startswith("cpu (no GPU will be used")
    assert words in subjects["device"][1]
    assert ("driver" in subjects) is driver
    codes = [code for good, _, _, code in check._devices(Settings(device="cuda")) if not good]
    assert codes == [69]


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 6), ("sm_80",), True),
        ((7, 5), ("sm_80", "sm_90"), False),
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((9, 0), ("sm_90a",), True),
        ((6, 1), (), False),
    ],
)
def test_cards_that_this_torch_was_built_for(capability, architectures, expected):
    assert supported(capability, architectures) is expected


def test_check_without_a_temporary_folder_says_one_sentence(monkeypatch, capsys):
    def nowhere():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert check.print_check(Settings(mem=8.0)) == 2
    *before, last = capsys.readouterr().out.splitlines()
    assert last.startswith("NOT OK") and "--tmpfs /tmp" in last
    assert not any(line.startswith("NOT OK") for line in before)


def test_bare_environment(dataset, tmp_path):
    """No HOME, no writable temporary folder, next to no variables: what a batch job may have."""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "bids_moediff.cli.app",
        dataset,
        out,
        "participant",
        "--dry-run",
    ]
    bare = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 images" in done.stdout


def test_a_command_that_is_interrupted_ends_as_shells_expect(capsys):
    def work(words):
        raise KeyboardInterrupt

    assert run_command("bids_moediff-x", work, []) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_was_left_out_is_said_before_there_is_nothing_to_do(capsys):
    def work(words):
        raise NothingToProcessError("No image.", ["sub-1/anat/t1.nii is left out: no name."])

    assert run_command("bids_moediff-x", work, []) == 66
    remark, sentence = capsys.readouterr().err.splitlines()
    assert remark == "bids_moediff-x: sub-1/anat/t1.nii is left out: no name."
    assert sentence == "bids_moediff-x: No image."


@pytest.mark.parametrize(
    ("sizes", "wanted", "said"),
    [
        ((1.0,), 0.8, []),
        ((0.8,), 0.8, ["sub-1_T1w: no voxel"]),
        (
            (1.0, 0.5, 0.4),
            0.8,
            ["sub-2_T1w and 1 more: no voxel", "sub-2_T1w and 1 more: coarser"],
        ),
    ],
)
def test_dry_run_says_where_nothing_gets_finer(tmp_path, sizes, wanted, said):
    rows = []
    for number, size in enumerate(sizes, 1):
        name = f"sub-{number}_T1w"
        image = AnatomicalImage(tmp_path / name, name, {"sub": str(number)}, "T1w", {})
        rows.append(dry_run.PlannedImage(name, zooms_in=(size,) * 3, source=image))
    settings = Settings(output_resolution=(wanted,) * 3)
    words = {"no voxel": NOT_RESTORED, "coarser": dry_run.COARSER}
    expected = [f"{name}: {words[which]}" for name, which in (line.split(": ") for line in said)]
    assert list(dry_run._remarks(rows, settings)) == expected
