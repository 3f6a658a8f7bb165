# SPDX-License-Identifier: Apache-2.0
"""Text of others is no markup, closed streams cost nothing but text, workers end with the run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bids_moediff.cli import check
from bids_moediff.errors import WeightsError
from bids_moediff.execution.outcome import failed, print_summary
from bids_moediff.execution.work_folder import make_caches
from bids_moediff.interfaces.step import unexpected
from bids_moediff.runtime.sink import table_text
from bids_moediff.runtime.text import names_only, one_line, visible, without_folders
from bids_moediff.settings import Settings

HOSTILE = "[red]x[/nope] [enforce fail at a.cpp:1] \x1b]0;title\x07 \x9b31m \u202e <img src=x>"


def test_text_of_others_is_shown_as_it_is(capsys):
    print_summary([failed("01", "sub-01_T1w", HOSTILE)], Path("/out"), "")
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    for word in ("[red]x[/nope]", "[enforce fail at a.cpp:1]", "<img src=x>"):
        assert word.replace(" ", "") in printed.replace(" ", "")
    assert not any(mark in printed for mark in "\x1b\x07\x9b\u202e")


def test_tables_hold_no_control_characters():
    table = table_text([{"name": f"a\tb\n{HOSTILE}"}], ["name"])
    assert not any(mark in table for mark in "\x1b\x07\x9b\u202e")
    assert table.count("\n") == 2 and "\t" not in table
    assert visible("a\tb\n") == "a\tb\n"
    assert len(one_line("x" * 5000)) == 400
    assert one_line("short  \n text") == "short text"


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path):
    """A file opened later holds what is written to it, and nothing that is printed."""
    code = (
        "import os, sys; from bids_moediff.runtime.streams import tolerate_streams;"
        "tolerate_streams(); number = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT);"
        "os.write(number, str(number).encode()); print('x'); print('y', file=sys.stderr)"
    )
    call = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "x", sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*call, str(tmp_path / "file")], env=environment, check=True)
    assert (tmp_path / "file").read_text() == "3"


SAY = """
import sys
from bids_moediff.cli.common import run_command
def work(argv):
    for number in range(20000):
        print("größer \\u2500", number, "\\x1b]0;x\\x07")
    open(argv[0], "w").write("done")
    return 3
sys.exit(run_command("test", work, sys.argv[1:]))
"""


@pytest.mark.parametrize("reader", ["| head -1", ">&-", ">/dev/full", "2>&- >&-", "| cat"])
def test_standard_output_costs_nothing_but_text(tmp_path, reader):
    call = (
        f"set -o pipefail; {sys.executable} say.py done.txt {reader}; exit ${{PIPESTATUS[0]:-$?}}"
    )
    (tmp_path / "say.py").write_text(SAY)
    variables = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONPATH": str(Path.cwd())}
    run = subprocess.run(
        ["bash", "-c", call], cwd=tmp_path, capture_output=True, env=variables, timeout=60
    )
    assert run.returncode == 3, run.stderr
    assert (tmp_path / "done.txt").read_text() == "done"
    assert b"Traceback" not in run.stderr and b"\x1b" not in run.stdout
    if reader == "| cat":
        assert run.stdout.startswith("größer \\u2500 0 \\x1b]0;x\\x07\n".encode("latin-1"))


PARENT = """
import os, sys, time
from bids_moediff.execution.isolated_plugin import _begin
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
pool = ProcessPoolExecutor(1, get_context("fork"), _begin, (os.getcwd(), os.getpid()))
pool.submit(time.sleep, 600)
print(pool.submit(os.getpid) and list(pool._processes)[0], flush=True)
time.sleep(600)
"""


def gone(number: int) -> bool:
    for _ in range(200):
        if not psutil.pid_exists(number) or psutil.Process(number).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_a_worker_ends_when_the_run_is_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    run = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    time.sleep(0.5)  # the worker says so at its start
    assert psutil.pid_exists(worker)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert gone(worker)


def test_caches_of_killed_runs_go_and_those_in_use_stay(tmp_path):
    call = (
        "import os, sys, signal; from pathlib import Path\n"
        "from bids_moediff.execution.work_folder import make_caches\n"
        "print(make_caches(Path(sys.argv[1])), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", call, tmp_path], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    own = make_caches(tmp_path)
    assert own.is_dir() and not left.exists()
    other = make_caches(tmp_path)
    assert own.is_dir() and other != own


def test_a_check_that_was_killed_says_so(monkeypatch):
    def run(*words, **named):
        return subprocess.CompletedProcess(words, -signal.SIGKILL, "", "")

    monkeypatch.setattr(check.subprocess, "run", run)
    with pytest.raises(WeightsError, match="ended by signal 9, most likely for want of memory"):
        check.require_weights(Settings(), "cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Unable to allocate 1.2 GiB for an array with shape (3,)"),
        RuntimeError("Exception thrown in SimpleITK: std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_errors_of_allocation_name_the_need(error):
    words = unexpected("BrainMask", error, 3.25)
    assert "ran out of memory: it needs about 3.2 GB" in words
    wrapped = ValueError("odd")
    wrapped.__cause__ = error
    assert "about 3.2 GB" in unexpected("BrainMask", wrapped, 3.25)
    assert "unexpectedly" in unexpected("BrainMask", ValueError("odd"), 3.25)


CHECKING = """
from bids_moediff.cli.check import require_weights
from bids_moediff.settings import Settings
require_weights(Settings(), "cpu")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
def test_a_check_ends_when_the_command_is_killed():
    """From its first moment, while it still loads torch."""
    command = subprocess.Popen([sys.executable, "-c", CHECKING], cwd=Path(__file__).parents[1])
    found: list[psutil.Process] = []
    while not found and command.poll() is None:
        found = psutil.Process(command.pid).children()
        time.sleep(0.01)
    command.kill()
    command.wait()
    assert found and gone(found[0].pid)


RESTORING = """
import sys
from pathlib import Path
from bids_moediff.inference.request import ImageRequest, Request
from bids_moediff.interfaces.network import SuperResolve
from bids_moediff.options import Options
folder = Path(sys.argv[1])
image = ImageRequest(key="a", image=str(folder / "a.nii.gz"), out_dir=str(folder))
path = Request(options=Options(model="student"), images=(image,)).write(folder / "request.json")
print("ready", flush=True)
SuperResolve(request=str(path), device="cpu").run(cwd=str(folder))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_network_ends_when_its_step_is_killed(tmp_path, number):
    """No shell stands between the two, which would go on by itself."""
    step = subprocess.Popen(
        [sys.executable, "-c", RESTORING, str(tmp_path)],
        cwd=Path(__file__).parents[1], stdout=subprocess.PIPE,
    )  # fmt: skip
    assert step.stdout is not None
    assert step.stdout.readline() == b"ready\n"
    found: list[psutil.Process] = []
    while not found and step.poll() is None:
        found = psutil.Process(step.pid).children()
        time.sleep(0.01)
    step.send_signal(number)
    step.wait()
    step.stdout.close()
    assert found and gone(found[0].pid)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[Errno 2] No such file: '/home/user/out/sub-01'", "[Errno 2] No such file: 'sub-01'"),
        ("'/a/.x.part' -> '/a/b/page.html'", "'.x.part' -> 'page.html'"),
        ('cannot open "/data/a b/c.nii"', 'cannot open "c.nii"'),
        ("1/2 of 'sub-01/anat' and and/or", "1/2 of 'sub-01/anat' and and/or"),
    ],
)
def test_messages_of_libraries_keep_the_folders_of_the_host_to_themselves(text, shown):
    assert without_folders(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("No image in /data/a b; filters: none", "No image in a b; filters: none"),
        ("No config.json in /opt/models/x.", "No config.json in x."),
        ("(/a/b.json), '/c/d e', /f", "(b.json), 'd e', /f"),
        ("sub-01/anat/x at 1/2 mm, https://a.org/b", "sub-01/anat/x at 1/2 mm, https://a.org/b"),
    ],
)
def test_sentences_on_pages_keep_the_last_names_of_paths(text, shown):
    assert names_only(text, [Path("/data/a b"), Path("/data"), None, 3]) == shown


def test_what_is_in_the_way_in_the_output_folder_is_named(tmp_path):
    (tmp_path / "sub-06").write_text("a file")
    (tmp_path / "sub-09_T1w.nii.gz").mkdir()
    with pytest.raises(NotADirectoryError) as caught:
        (tmp_path / "sub-06" / "anat").mkdir(parents=True)
    words = unexpected("WriteProduct", caught.value)
    assert words == "WriteProduct failed: sub-06 is in the way in the output folder; remove it."
    (tmp_path / "x.part").write_text("")
    with pytest.raises(IsADirectoryError) as caught:
        (tmp_path / "x.part").replace(tmp_path / "sub-09_T1w.nii.gz")
    assert "sub-09_T1w.nii.gz is in the way" in unexpected("WriteProduct", caught.value)


ENDING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from bids_moediff.cli.common import run_command

def work(words):
    ThreadPoolExecutor().submit(time.sleep, 30)
    return 0

code = run_command("test", work, None)
print("done", flush=True)
sys.exit(code)
"""


def test_an_interrupt_while_the_command_ends_leaves_no_traceback():
    """A thread still runs: Python waits for it, and would answer with a traceback."""
    started = [sys.executable, "-c", ENDING]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout.readline() == b"done\n"
        time.sleep(0.5)
        command.send_signal(signal.SIGINT)
        assert command.stderr.read() == b""
    assert command.returncode == -signal.SIGINT
