# SPDX-License-Identifier: Apache-2.0
"""The speed command: what it counts and what it prints. No assertion on times."""

import resource
import subprocess
import sys

import numpy as np
import pytest

from research.measurements import speed
from test_model_choice import student_folder


def test_one_row_adds_up(tmp_path):
    folder = student_folder(tmp_path / "student")
    row = speed.measure(str(folder), (20, 24, 16), "cpu", "fp32")
    assert row.voxels == 29 * 35 * 23
    assert list(row.seconds) == ["interpolate", "student", "consistency"]
    assert all(value > 0 for value in row.seconds.values())
    assert row.total == pytest.approx(sum(row.seconds.values()))
    assert row.gigabytes > 0.1
    assert set(row.fractions) == {"student"} and 0 < row.fractions["student"] < 2


def test_the_fit_finds_a_line():
    voxels = np.array([1.0, 2.0, 3.0, 5.0])
    offset, slope, fit = speed.linear_fit(voxels, 4 + 0.5 * voxels)
    assert (offset, slope, fit) == pytest.approx((4, 0.5, 1))
    assert speed.linear_fit(voxels, voxels**4)[2] < 0.9


def test_the_command_prints_every_model_and_size(tmp_path, capfd):
    folders = [str(student_folder(tmp_path / name)) for name in ("one", "two")]
    speed.main(["--models", *folders, "--sizes", "12", "16", "20", "--device", "cpu"])
    printed = capfd.readouterr().out
    for name in ("one", "two"):
        rows = [line for line in printed.splitlines() if line.startswith(f"| {name} |")]
        assert len(rows) == 3
        assert f"{name}: " in printed and "bytes per voxel" in printed


def test_freed_memory_is_kept() -> None:
    """Eight times four blocks of 28 MB need the pages of once."""
    program = (
        "import resource, sys\n"
        "from bids_moediff.runtime.platform import keep_freed_memory\n"
        "assert sys.argv[1] == 'no' or keep_freed_memory()\n"
        "for _ in range(8):\n"
        "    blocks = [bytearray(b'1') * (28 << 20) for _ in range(4)]\n"
        "    del blocks\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )
    faults = {}
    for word in ("no", "yes"):
        command = [sys.executable, "-c", program, word]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[word] = int(done.stdout)
    assert faults["no"] - faults["yes"] > 3 * 4 * (28 << 20) / resource.getpagesize()
