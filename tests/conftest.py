# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: the shared brain data, if they are there, and one run of the demo."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("NO_ET", "1")


def _own_processors() -> None:
    """Give each worker of pytest-xdist processors of its own, for itself and what it starts.

    Otherwise every process counts on all of them, and threads wait for those of the other worker.
    Before torch is loaded, which counts once.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker and count and hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[int(worker.removeprefix("gw")) :: int(count)]
        os.sched_setaffinity(0, mine or os.sched_getaffinity(0))


_own_processors()
ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bids_moediff" / "data" / "demo"
# The options of `make demo`; tests/test_readme.py keeps the two the same.
DEMO_OPTIONS = ("--output-resolution", "1")


# A test of minutes of which the default suite holds a short form (`make test-long`).
LONG = bool(os.environ.get("BIDS_MOEDIFF_TEST_LONG"))
long_form = pytest.mark.skipif(
    not LONG, reason="a long form: make test-long, or set BIDS_MOEDIFF_TEST_LONG=1"
)


def _shared_candidates() -> list[Path]:
    candidates = [ROOT.parent / "shared" / "data"]
    if "BIDS_MOEDIFF_SHARED" in os.environ:
        candidates.insert(0, Path(os.environ["BIDS_MOEDIFF_SHARED"]))
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--path-format=absolute", "--git-common-dir"],
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode == 0:
        candidates.append(Path(git.stdout.strip()).parents[1] / "shared" / "data")
    return candidates


# The files that take longest. A worker that began one of them last would work alone for minutes.
LONGEST = ("test_demo.py", "test_training_run.py", "test_end_to_end.py", "test_winograd.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; the order is kept by ``--no-loadscope-reorder`` (Makefile)."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the shared brain MRI (see docs/data.md)."""
    for candidate in _shared_candidates():
        if (candidate / "manifest.tsv").is_file():
            return candidate
    pytest.skip("needs the shared brain data: set BIDS_MOEDIFF_SHARED to their folder")


def run_script(
    name: str, *arguments: object, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a console script of this project, with further environment variables.

    The script beside the running interpreter is what a user types. From a bare checkout (no
    installation) the function it points to is called instead.
    """
    script = Path(sys.executable).with_name(name)
    module = "app" if name == "bids_moediff" else name.removeprefix("bids_moediff-")
    call = f"import sys; from bids_moediff.cli.{module} import main; sys.exit(main())"
    command = [str(script)] if script.is_file() else [sys.executable, "-c", call]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables},
        check=False,
    )


def run_here(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Like :func:`run_script`, without the seconds in which a new process loads its libraries.

    At least one test of each command runs the script itself.
    """
    main = importlib.import_module(f"bids_moediff.cli.{name.removeprefix('bids_moediff-')}").main
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as end:  # --help, and arguments that argparse does not take
            code = end.code
    return subprocess.CompletedProcess([name], code, out.getvalue(), errors.getvalue())


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """One real run of both levels on the demo data: output folder, exit code and printed text.

    The run takes about a minute, so every test of the session shares it, across the workers of
    pytest-xdist too. Tests must not write into the output folder.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    output, record = base / "demo" / "out", base / "demo" / "run.json"
    with FileLock(str(base / "demo.lock")):
        if not record.is_file():
            shutil.rmtree(base / "demo", ignore_errors=True)
            output.parent.mkdir(parents=True)
            record.write_text(json.dumps(_run_demo(output)))
    return {"output": output, **json.loads(record.read_text())}


def _run_demo(output: Path) -> dict[str, object]:
    texts, code = [], 0
    for level, options in (("participant", DEMO_OPTIONS), ("group", ())):
        work = output.parent / "work"
        arguments = (DEMO, output, level, *options, "-w", work)
        run = run_script("bids_moediff", *arguments, cwd=output.parent)
        texts += [run.stdout, run.stderr]
        code = code or run.returncode
    return {"code": code, "text": "\n".join(texts)}


@pytest.fixture(scope="session")
def demo_output(demo_run: dict[str, object]) -> Path:
    """Derivatives of the demo data set; the run must have ended in exit code 0."""
    assert demo_run["code"] == 0, demo_run["text"]
    output = demo_run["output"]
    assert isinstance(output, Path)
    return output
