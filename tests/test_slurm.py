# SPDX-License-Identifier: Apache-2.0
"""The shipped scripts on a real SLURM: one node on this machine, started by the tests."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import local_slurm
from conftest import ROOT
from generated import dataset, untrained_model

pytestmark = pytest.mark.skipif(
    bool(local_slurm.reason_to_skip()), reason=local_slurm.reason_to_skip()
)
SUBMIT = ROOT / "examples" / "slurm" / "submit.sh"
APP = f"{shlex.quote(sys.executable)} -m bids_moediff.cli.app"
PRINT = r"printf '%s\n'"  # instead of the app: a task prints its words
LIGHT = "--cpus-per-task=1 --mem=200"
AMPLE = "--cpus-per-task=1 --mem=4000"
EASY = ("--output-resolution", "3", "--skip-bias-correction", "--nprocs", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a SLURM whose arrays have 99 tasks at most."""
    folder = tmp_path_factory.mktemp("slurm")
    with local_slurm.running(folder, ["MaxArraySize=100"]) as environment:
        yield environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model") / "model")


def submit(
    environment: dict[str, str], folder: Path, job: str, *options: str, **more: str
) -> tuple[list[str], Path]:
    """Submit the data of a folder: identifiers of the four jobs, and where the logs are.

    `job` are the options of sbatch, by which jobs of the examples fit onto this machine.
    """
    more |= {"CPU_OPTIONS": job, "GPU_OPTIONS": f"{job} --gpus=0"}
    folders = [str(folder / name) for name in ("data", "out", "work")]
    run = subprocess.run(
        ["sh", str(SUBMIT), *folders, *options],
        env=environment | more, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    return first.split()[-4:], Path(second.partition(": ")[2])


def labels(logs: Path, stage: str) -> list[list[str]]:
    """Participants that the tasks of a stage printed."""
    return [
        [line for line in path.read_text().splitlines() if line.startswith("sub-")]
        for path in logs.glob(f"moediff-{stage}-*.log")
    ]


def test_more_participants_than_an_array_may_have_tasks(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    expected = [f"sub-{number:04d}" for number in range(1001)]
    for name in expected:
        (tmp_path / "data" / name).mkdir(parents=True)
    jobs, logs = submit(slurm, tmp_path, LIGHT, APP=PRINT)
    local_slurm.wait_for_jobs(slurm)
    for stage in ("preproc", "superres", "report"):
        tasks = labels(logs, stage)
        assert len(tasks) <= 99
        assert sorted(name for task in tasks for name in task) == expected
    assert [local_slurm.exit_codes(slurm, job) for job in jobs] == [{"0:0"}] * 4


def test_one_failure_beside_two_good_participants(
    slurm: dict[str, str], tmp_path: Path, model: Path
) -> None:
    """The group page is made all the same and names who failed; the exit codes say it."""
    dataset(tmp_path / "data", {f"sub-{label}_T1w": n for n, label in enumerate("abc")})
    broken = tmp_path / "data" / "sub-b" / "anat" / "sub-b_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:1000])
    options = (*EASY, "--weights", str(model))
    jobs, logs = submit(slurm, tmp_path, AMPLE, *options, APP=APP, PER_TASK="3")
    local_slurm.wait_for_jobs(slurm)
    text = "".join(path.read_text() for path in logs.glob("*.log"))
    assert [local_slurm.exit_codes(slurm, job) for job in jobs] == [{"1:0"}] * 4, text
    out = tmp_path / "out"
    assert "2 done, 1 failed, 0 missing" in text
    assert len((out / "group_T1w.tsv").read_text().splitlines()) == 3
    assert "sub-b" in (out / "group.html").read_text()
    assert len(list(out.glob("sub-?.html"))) == 3
