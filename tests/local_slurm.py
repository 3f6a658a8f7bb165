# SPDX-License-Identifier: Apache-2.0
"""A SLURM on this machine for tests of the scripts in examples/slurm, where it is installed."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "setpriv")


def reason_to_skip() -> str:
    """Why there can be no SLURM here and what to do, or nothing."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"no {absent[0]}: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM is started as root only"


@contextmanager
def running(folder: Path, lines: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Start a SLURM of one node with further lines of slurm.conf; gives the environment to use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "SLURM_TEST_PORT": str(port)}
    command = ["sh", str(ROOT / "tools" / "local_slurm.sh"), str(folder), *lines]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as daemons:
        assert daemons.stdout and daemons.stdout.readline() == "ready\n"
        try:
            yield {**environment, "SLURM_CONF": str(folder / "slurm.conf")}
        finally:
            daemons.terminate()


def wait_for_jobs(environment: dict[str, str], seconds: float = 1200.0) -> None:
    """Wait until the queue is empty."""
    end = time.monotonic() + seconds
    while subprocess.check_output(["squeue", "-h"], env=environment):
        assert time.monotonic() < end, "jobs are still in the queue"
        time.sleep(0.2)


def exit_codes(environment: dict[str, str], job: str) -> set[str]:
    """Exit code and signal (``1:0``) of a job or of each task of an array, as SLURM has them."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    text = subprocess.check_output(command, env=environment, text=True)
    return set(re.findall(r"ExitCode=(\S+)", text))
