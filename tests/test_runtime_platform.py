# SPDX-License-Identifier: Apache-2.0
"""A system without what only Linux has: all processors, all memory, and no failure."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bids_moediff.runtime import platform
from conftest import ROOT


def test_the_package_runs_without_what_only_linux_has():
    # As on macOS: no affinity, no /proc, no control groups, another platform name.
    code = """
import os, pathlib, sys, psutil, multiprocessing
os.__dict__.pop("sched_getaffinity", None)
sys.platform = "darwin"
whole = pathlib.Path.read_text
def read_text(self, *args, **kwargs):
    if str(self).startswith(("/proc", "/sys")):
        raise FileNotFoundError(self)
    return whole(self, *args, **kwargs)
pathlib.Path.read_text = read_text
from bids_moediff.runtime import platform, resources
from bids_moediff.cli import app, superres
limits = resources.plan()
print(limits.nprocs, limits.memory_gb, resources.has_bfloat16(), platform.keep_freed_memory())
assert platform.processor_name()
"""
    environment = {name: text for name, text in os.environ.items() if "SLURM" not in name}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    processors, memory, bfloat16, kept = run.stdout.split()
    assert int(processors) == os.cpu_count()
    assert float(memory) <= psutil.virtual_memory().total / 1e9 + 1e-6
    assert (bfloat16, kept) == ("False", "False")


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_is_counted_in_the_units_of_the_system(monkeypatch, system, unit):
    class Usage:
        ru_maxrss = 3 * 1024**3 // unit

    monkeypatch.setattr(platform.sys, "platform", system)
    monkeypatch.setattr(platform.resource, "getrusage", lambda _who: Usage)
    assert platform.peak_memory_gb() == 3


def test_no_other_module_calls_what_only_linux_has():
    only_linux = ("sched_getaffinity", '"/proc', '"/sys/', "prctl", "mallopt", "ru_maxrss")
    package = Path(platform.__file__).parents[1]
    found = [
        (path.name, word)
        for path in package.rglob("*.py")
        if path.name != "platform.py"
        for word in only_linux
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
