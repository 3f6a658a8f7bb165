# SPDX-License-Identifier: Apache-2.0
"""The shipped scripts on a real SLURM: one node on this machine, started by the tests."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

import pytest

import local_slurm
from conftest import ROOT, long_form
from generated import dataset, untrained_model
from test_packaging import build_wheel

pytestmark = pytest.mark.skipif(
    bool(local_slurm.reason_to_skip()), reason=local_slurm.reason_to_skip()
)
SUBMIT = ROOT / "examples" / "slurm" / "submit.sh"
PRINT = r"printf '%s\n'"  # instead of the app: a task prints its words
LIGHT = "--cpus-per-task=1 --mem-per-cpu=200"
AMPLE = "--cpus-per-task=1 --mem=4000"
EASY = ("--output-resolution", "3", "--skip-bias-correction", "--nprocs", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a SLURM whose arrays have 99 tasks at most."""
    folder = tmp_path_factory.mktemp("slurm")
    with local_slurm.running(folder, ["MaxArraySize=100"]) as environment:
        yield environment | {"OMP_NUM_THREADS": "1"}


def submit(
    environment: dict[str, str], folder: Path, job: str, *options: str, **more: str
) -> tuple[list[str], Path]:
    """Submit the data of a folder: identifiers of the four jobs, and where the logs are.

    `job` are the options of sbatch, by which jobs of the examples fit onto this machine.
    """
    network = f"{job} {more.pop('NETWORK_MEMORY', '')} --gpus=0"
    more |= {"CPU_OPTIONS": job, "GPU_OPTIONS": network}
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
    # A variable of sbatch, as the shell of a job may have it, makes no array of the group's job.
    jobs, logs = submit(slurm, tmp_path, LIGHT, APP=PRINT, SBATCH_ARRAY_INX="1-3")
    local_slurm.wait_for_jobs(slurm)
    for stage in ("preproc", "superres", "report"):
        tasks = labels(logs, stage)
        assert len(tasks) <= 99
        assert sorted(name for task in tasks for name in task) == expected
    assert [local_slurm.exit_codes(slurm, job) for job in jobs] == [{"0:0"}] * 4
    assert len(list(logs.glob("moediff-group-*"))) == 1


def test_a_requeued_task_starts_anew_and_keeps_its_log(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    """As after the reboot of a node: the jobs behind it wait."""
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    app = tmp_path / "app"
    waits = '[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || case $* in *preproc*) sleep 600 ;; esac'
    app.write_text(f'#!/bin/sh\necho "start: $*"\n{waits}\n')
    app.chmod(0o755)
    jobs, logs = submit(slurm, tmp_path, LIGHT, APP=str(app))
    log, end = logs / f"moediff-preproc-{jobs[0]}_1.log", time.monotonic() + 60
    while not (log.is_file() and log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    task = f"{jobs[0]}_1"
    subprocess.run(["scontrol", "requeue", task], env=slurm, check=True)
    at_once = ["scontrol", "update", f"JobId={task}", "StartTime=now"]  # not in two minutes
    while log.read_text().count("start: ") < 2:
        subprocess.run(at_once, env=slurm, check=False, capture_output=True)
        assert time.monotonic() < end
        time.sleep(1)
    local_slurm.wait_for_jobs(slurm, 120)
    assert log.read_text().count("start: ") == 2
    assert [local_slurm.exit_codes(slurm, job) for job in jobs] == [{"0:0"}] * 4


def test_the_group_says_why_nothing_came_of_a_task(slurm: dict[str, str], tmp_path: Path) -> None:
    """A participant without an image (exit code 66), and one whose folder was not fetched."""
    folder = tmp_path / "a study"
    dataset(folder / "data", {})
    (folder / "data" / "sub-a").mkdir()
    (folder / "data" / "sub-b").symlink_to("not here")
    app = f"{shlex.quote(sys.executable)} -m bids_moediff.cli.app"
    options = ("--weights", str(untrained_model(folder / "model")))
    jobs, logs = submit(slurm, folder, AMPLE, *options, APP=app)
    local_slurm.wait_for_jobs(slurm)
    assert "66:0" in local_slurm.exit_codes(slurm, jobs[0])
    said = "".join(path.read_text() for path in logs.glob("moediff-group-*"))
    assert "0 done, 1 failed, 1 missing" in said
    page = (folder / "out" / "group.html").read_text()
    assert "No image to process in" in page and "datalad get sub-b" in page


@dataclass(frozen=True)
class Submission:
    """What is left of one call of submit.sh."""

    codes: list[set[str]]  # exit code and signal of the four jobs
    logs: str
    page: str  # of participant a
    group: str


@dataclass(frozen=True)
class Walk:
    """Build, check, submit with too little memory, submit the unfinished again."""

    folder: Path
    check: subprocess.CompletedProcess[str]
    small: Submission
    ample: Submission


def build(folder: Path) -> str:
    """Unpack a wheel of this checkout and return the call of its app, as a shell reads it."""
    with ZipFile(build_wheel(folder / "sources")) as archive:
        archive.extractall(folder / "installed")
    where = shlex.quote(f"PYTHONPATH={folder / 'installed'}")
    return f"env {where} {shlex.quote(sys.executable)} -m bids_moediff.cli.app"


@pytest.fixture(scope="module")
def walk(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Walk:
    folder = tmp_path_factory.mktemp("walk") / "an administrator's study"
    model = untrained_model(folder / "model")
    app = build(folder / "the app")
    check = subprocess.run(
        ["sh", "-c", f"{app} --check --device cpu --mem 8 --weights \"$WEIGHTS\""],
        env=slurm | {"WEIGHTS": str(model)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    dataset(folder / "data", {f"sub-{label}_T1w": n for n, label in enumerate("abc")})
    broken = folder / "data" / "sub-b" / "anat" / "sub-b_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:1000])

    def submission(memory: str, **more: str) -> Submission:
        more |= {"APP": app, "PER_TASK": "3", "NETWORK_MEMORY": memory}
        jobs, logs = submit(slurm, folder, AMPLE, *EASY, "--weights", str(model), **more)
        local_slurm.wait_for_jobs(slurm)
        return Submission(
            [local_slurm.exit_codes(slurm, job) for job in jobs],
            "".join(path.read_text() for path in sorted(logs.glob("*.log"))),
            (folder / "out" / "sub-a.html").read_text(),
            (folder / "out" / "group.html").read_text(),
        )

    small = submission("--mem=600M")
    return Walk(folder, check, small, submission(AMPLE, ONLY_UNFINISHED="1"))


@pytest.mark.slow
def test_check_finds_the_weights(walk: Walk) -> None:
    assert walk.check.returncode == 0, walk.check.stdout + walk.check.stderr
    assert "untrained" in walk.check.stdout


@pytest.mark.slow
def test_a_job_under_a_memory_limit_gets_its_sentence(walk: Walk) -> None:
    """Before it starts, in its log; after it was killed, on its page and on that of the group."""
    assert walk.small.codes[1] == {"0:9"}, walk.small.logs
    assert "this run may use 0.6 GB" in walk.small.logs
    killed = re.compile(r"killed at 0\.6 GB; this image needs about 1\.\d GB")
    assert killed.search(walk.small.page)
    assert killed.search(walk.small.group)
    assert walk.small.codes[3] == {"1:0"}


@pytest.mark.slow
def test_one_failure_beside_two_good_participants(walk: Walk) -> None:
    """The group page is made all the same and names who failed; the exit codes say it."""
    assert walk.ample.codes == [{"1:0"}] * 4, walk.ample.logs
    assert "2 done, 1 failed, 0 missing" in walk.ample.logs
    assert "sub-b" in walk.ample.group and "cut short" in walk.ample.group
    assert "killed at" not in walk.ample.group + walk.ample.page
    out = walk.folder / "out"
    assert len((out / "group_T1w.tsv").read_text().splitlines()) == 3
    assert len(list(out.glob("sub-?.html"))) == 3
    assert (out / "logs" / "unfinished.txt").read_text() == "sub-b\n"


@pytest.mark.slow
def test_the_last_stage_cleans_up(walk: Walk) -> None:
    assert not list((walk.folder / "work").rglob("*.nii*"))


@long_form  # tests/test_end_to_end.py cancels a run without SLURM
@pytest.mark.slow
def test_a_cancelled_job_is_named_and_runs_again(slurm: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "a cancelled study"
    dataset(folder / "data", {"sub-a_T1w": 0})
    app = f"{shlex.quote(sys.executable)} -m bids_moediff.cli.app"
    options = (*EASY, "--weights", str(untrained_model(folder / "model")))
    jobs, _ = submit(slurm, folder, AMPLE, *options, APP=app)
    out, end = folder / "out", time.monotonic() + 600
    while not list(out.glob("logs/sub-a/*/plan.json")):  # the network is about to start
        assert time.monotonic() < end
        time.sleep(0.1)
    subprocess.run(["scancel", jobs[1]], env=slurm, check=True)
    local_slurm.wait_for_jobs(slurm)
    assert [local_slurm.exit_codes(slurm, job) for job in jobs[1::2]] == [{"0:15"}, {"1:0"}]
    assert "The run was stopped before it ended" in (out / "group.html").read_text()
    jobs, _ = submit(slurm, folder, AMPLE, *options, APP=app, ONLY_UNFINISHED="1")
    local_slurm.wait_for_jobs(slurm)
    assert [local_slurm.exit_codes(slurm, job) for job in jobs] == [{"0:0"}] * 4
    assert (out / "logs" / "unfinished.txt").read_text() == ""
