# SPDX-License-Identifier: Apache-2.0
"""Runs that are disturbed: afterwards the same bytes, no process left, nothing waits for ever.

BIDS_MOEDIFF_TEST_KILLS=100 does it a hundred times (`make test-long`); by default a few.
BIDS_MOEDIFF_TEST_SEED draws other moments.
"""

import contextlib
import gzip
import hashlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from generated import dataset, head, untrained_model

KILLS = int(os.environ.get("BIDS_MOEDIFF_TEST_KILLS", "2"))
SEED = int(os.environ.get("BIDS_MOEDIFF_TEST_SEED", "0"))
MARK = "BIDS_MOEDIFF_TEST_RUN"  # in the environment of a run: whatever it starts is found by it
WATCHDOG = 1200  # seconds that no run may take
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Study:
    """A data set of two small heads, a small model, and what an undisturbed run makes of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        small = {"shape": (28, 32, 26), "zooms": (6.0, 6.0, 6.5)}
        images = {f"sub-{label}_T1w": head(seed=label, **small) for label in (1, 2)}
        self.data = dataset(root / "bids", images)
        self.model = untrained_model(root / "model")
        started = time.monotonic()
        # Without a network, a home or a place for temporary files of its own.
        apart = ["unshare", "-n"] if _can(["unshare", "-n", "true"]) else []
        home = {"HOME": str(root / "nowhere"), "TMPDIR": str(root / "nowhere")}
        code, text = self.run(root / "reference", before=apart, **home)
        assert code == 0, text
        self.seconds = time.monotonic() - started
        self.files = digests(root / "reference")

    def command(self, output: Path) -> list[str]:
        """Command line of a run."""
        command = [sys.executable, "-m", "bids_moediff.cli.app", self.data, output, "participant"]
        command += ["--weights", self.model, "--output-resolution", "5", "--sloppy"]
        return [*map(str, command), "--nprocs", "2", "--device", "cpu"]

    def start(self, output: Path, before: list[str] | None = None, **variables: str):
        """Start a run in a session of its own."""
        log = output.with_suffix(".log").open("ab")
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), **variables}
        environment[MARK] = str(output)
        return subprocess.Popen(
            [*(before or []), *self.command(output)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )

    def run(self, output: Path, **named):
        """Exit code and text of a run that nobody disturbs."""
        code = self.start(output, **named).wait(WATCHDOG)
        return code, output.with_suffix(".log").read_text(errors="replace")


def _can(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def digests(output: Path) -> dict[str, str]:
    """SHA-256 of all that is not a log."""
    paths = [path for path in output.rglob("*") if path.is_file()]
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if not (name := path.relative_to(output).as_posix()).startswith(("logs/", "sub-"))
        or name.endswith((".nii.gz", ".json", ".tsv"))
        if "/log/" not in f"/{name}" and not name.startswith("logs/")
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return Study(tmp_path_factory.mktemp("faults"))


def members(output: Path) -> Iterator[psutil.Process]:
    """Processes of the runs into a folder, whatever their session or parent; no zombies."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != str(output):
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def disturb(study: Study, output: Path, draw: random.Random) -> str:
    """Start a run, send a signal to one of its processes, and wait for its end.

    What was done, or nothing where the run had ended before.
    """
    fresh, started = not output.exists(), time.monotonic()
    run = study.start(output)
    moment = draw.uniform(0.02, 1) * study.seconds
    try:
        run.wait(moment)
    except subprocess.TimeoutExpired:
        pass
    else:
        if fresh:
            study.seconds = time.monotonic() - started
        return ""
    try:
        alive = sorted(members(output), key=lambda process: process.create_time())
    except psutil.Error:  # one of them ended in between
        alive = []
    if not alive:  # the run ended just now
        run.wait(WATCHDOG)
        return ""
    victim, number = draw.choice([*alive, *alive[:1] * len(alive)]), draw.choice(SIGNALS)
    whom = "main" if victim.pid == run.pid else f"child {alive.index(victim)} of {len(alive)}"
    images = len([*output.rglob("sub-*_desc-preproc_T1w.nii.gz")])
    what = f"{signal.Signals(number).name} to {whom} at {moment:.0f} s, {images} images"
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(number)
    run.wait(WATCHDOG)  # a run that loses a child ends by itself
    limit = time.monotonic() + 20
    while (left := list(members(output))) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left, f"{what}: {[process.cmdline() for process in left]}"
    return what


def check_whole(study: Study, output: Path) -> None:
    """The bytes of an undisturbed run, and nothing else left."""
    assert digests(output) == study.files
    assert not (output / ".work").exists()
    assert not list(output.rglob("*.part"))
    assert "Traceback" not in output.with_suffix(".log").read_text(errors="replace")


def test_killed_anywhere_and_run_again(study, tmp_path):
    output, draw = tmp_path / "out", random.Random(SEED)
    killed = whole = 0
    while killed < KILLS:
        what = disturb(study, output, draw)
        print(what or "whole", flush=True)
        if what:
            killed += 1
        else:  # it had ended before
            check_whole(study, output)
            whole += 1
            shutil.rmtree(output)
    code, text = study.run(output)
    assert code == 0, text
    check_whole(study, output)
    print(f"seed {SEED}: {killed} kills, {whole + 1} whole outputs compared")


def test_nothing_of_the_host_is_in_the_outputs(study):
    words = [str(study.root).encode(), platform.node().encode()]
    for path in (study.root / "reference").rglob("*"):
        if not path.is_file() or "log" in path.relative_to(study.root).as_posix():
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        found = [word for word in words if len(word) > 3 and word in content]
        assert not found, (path, found)
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


MOUNT = ["unshare", "-m"]
# A small file system, a run, room, a run that goes on: its mount lives as long as this shell.
FULL_THEN_ROOM = """
mount -t tmpfs -o size="$1" none "$2" || exit 97
output="$2" kept="$3"
shift 3
"$@" >"$kept/first.log" 2>&1
echo $? >"$kept/first"
cp -a "$output" "$kept/cut" || exit 98
mount -o remount,size=1g "$output" || exit 99
"$@" >"$kept/second.log" 2>&1
echo $? >"$kept/second"
cp -a "$output" "$kept/made"
"""


# Room for this share of all that an undisturbed run leaves: full while the first image is
# prepared, at the end of the networks, while pages are drawn (two of them).
SHARES = [1.5] if KILLS < 5 else [0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.skipif(not _can([*MOUNT, "true"]), reason="needs to mount a file system")
def test_a_full_disk_is_said_and_made_good(study, tmp_path, share):
    """The disk is full at some file, of any size; then there is room, and the same bytes."""
    output = tmp_path / "disk"
    output.mkdir()
    whole = sum(path.stat().st_size for path in (study.root / "reference").rglob("*"))
    room = [str(int(share * whole) // 4096 * 4096), str(output), str(tmp_path)]
    command = [*MOUNT, "sh", "-c", FULL_THEN_ROOM, "sh", *room, *study.command(output / "out")]
    subprocess.run(command, timeout=2 * WATCHDOG, check=True)
    first, second = ((tmp_path / f"{name}.log").read_text() for name in ("first", "second"))
    assert int((tmp_path / "first").read_text()) not in (0, 70), first
    assert "No space left" in first
    assert "Traceback" not in first + second
    assert any(path.is_file() for path in (tmp_path / "cut" / "out").rglob("*"))
    assert int((tmp_path / "second").read_text()) == 0, second
    assert digests(tmp_path / "made" / "out") == study.files
    assert not (tmp_path / "made" / "out" / ".work").exists()
