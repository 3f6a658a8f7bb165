# SPDX-License-Identifier: Apache-2.0
"""Handing out devices. The two devices are a fake: nothing but two names and two lock files."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bids_moediff.runtime.device_lock import hold_device, physical_name

WORKER = """
import json, sys, time
from pathlib import Path
from bids_moediff.runtime.device_lock import hold_device
with hold_device(["cuda:0", "cuda:1"], Path(sys.argv[1])) as device:
    start = time.monotonic()
    time.sleep(float(sys.argv[2]))
    print(json.dumps([device, start, time.monotonic()]))
"""


def start(folder: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_fake_devices_hold_one_network_each(tmp_path: Path) -> None:
    workers = [start(tmp_path, 0.3) for _ in range(6)]
    spans = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    by_device = {
        name: sorted((begin, end) for device, begin, end in spans if device == name)
        for name in ("cuda:0", "cuda:1")
    }
    assert all(by_device.values()), "one device was never used"
    for turns in by_device.values():
        for (_, end), (begin, _) in itertools.pairwise(turns):
            assert begin >= end, "two networks on one device"


HELD = """
import sys
from pathlib import Path
from bids_moediff.runtime.device_lock import hold_device
with hold_device(["cuda:0", "cuda:1"], Path(sys.argv[1])) as device:
    Path(sys.argv[2]).write_text(device)
    sys.stdin.read()
"""


def test_no_device_is_idle_while_a_network_waits(tmp_path: Path) -> None:
    """Six networks on two fake devices, ended one by one: each end lets exactly one begin."""
    locks, marks = tmp_path / "locks", tmp_path / "marks"
    marks.mkdir()
    workers = {
        number: subprocess.Popen(
            [sys.executable, "-c", HELD, locks, marks / str(number)], stdin=subprocess.PIPE
        )
        for number in range(6)
    }
    ended: set[int] = set()

    def holders(expected: int) -> dict[int, str]:
        """Who holds which device, when there are as many as expected."""
        deadline = time.monotonic() + 120
        while True:
            found = {int(path.name): path.read_text() for path in marks.iterdir()}
            found = {number: name for number, name in found.items() if number not in ended}
            if (len(found) >= expected and all(found.values())) or time.monotonic() > deadline:
                return found

    try:
        for remaining in range(6, 0, -1):
            now = holders(min(2, remaining))
            time.sleep(0.3)  # time for a third one to slip in
            assert holders(min(2, remaining)) == now
            assert sorted(now.values()) in (["cuda:0", "cuda:1"], ["cuda:0"], ["cuda:1"])
            assert len(now) == min(2, remaining)
            first = min(now)
            ended.add(first)
            workers[first].communicate()
            assert workers[first].returncode == 0
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def test_a_device_that_comes_free_goes_to_the_one_who_waits(tmp_path: Path) -> None:
    """Two fake devices are held; whichever is given back first is the one that is handed out."""
    with hold_device(["cuda:0", "cuda:1"], tmp_path) as first:
        assert first == "cuda:0"
        second = hold_device(["cuda:0", "cuda:1"], tmp_path)
        assert second.__enter__() == "cuda:1"
        waiting = start(tmp_path, 0)
        time.sleep(0.3)
        assert waiting.poll() is None or waiting.returncode != 0, "it should wait"
        second.__exit__(None, None, None)
        device, *_ = json.loads(waiting.communicate(timeout=60)[0])
        assert device == "cuda:1"


def test_the_child_process_begins_nothing_before_it_holds_a_device(tmp_path: Path) -> None:
    """Both fake devices are in use: it waits; one is given back: it takes that one."""
    image = {"key": "a", "image": "absent.nii", "out_dir": str(tmp_path)}
    request = {"device": "cuda:61,cuda:62", "options": {"model": "student"}, "images": [image]}
    (tmp_path / "request.json").write_text(json.dumps(request))
    # Its lock files lie in the folder for temporary files.
    locks = tmp_path / f"bids_moediff-devices-{os.getuid()}"
    command = [sys.executable, "-m", "bids_moediff.cli.superres"]
    command += ["--request", tmp_path / "request.json", "--results", tmp_path / "results.json"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with hold_device(["cuda:61"], locks):
        with hold_device(["cuda:62"], locks):
            child = subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert child.stdout is not None
            assert json.loads(child.stdout.readline())["stage"] == "waiting for a device"
            time.sleep(0.3)
            assert child.poll() is None, "it should wait"
        output, errors = child.communicate(timeout=120)
    assert json.loads(output.splitlines()[0])["stage"] == "loading"
    # There is no such card, and the sentence about it names the one that the child was handed.
    assert child.returncode == 69, errors
    assert "cuda:62" in errors and "Traceback" not in errors


def test_a_killed_holder_leaves_its_device_free(tmp_path: Path) -> None:
    holder = start(tmp_path, 600)
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with hold_device(["cuda:0"], tmp_path) as device:
        assert device == "cuda:0"


def test_the_visible_devices_variable_is_read_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,MIG-11aa/2")
    with hold_device(["cuda:1"], tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["cuda-MIG-11aa-2.lock"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,MIG-11aa/2"
    assert physical_name("cuda", "3,5") == "cuda-3"
    assert physical_name("cuda:1", None) == "cuda-1"


def test_the_processor_needs_no_lock(tmp_path: Path) -> None:
    with hold_device(["cpu"], tmp_path) as first, hold_device(["cpu"], tmp_path) as second:
        assert first == second == "cpu"
    assert not list(tmp_path.iterdir())
