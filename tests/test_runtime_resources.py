# SPDX-License-Identifier: Apache-2.0
"""Limits of the job on generated control-group folders and environments."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bids_moediff.runtime.allocation import is_out_of_memory
from bids_moediff.runtime.platform import cgroup_folders
from bids_moediff.runtime.resources import (
    Limits,
    available_cpus,
    available_memory_gb,
    has_bfloat16,
    memory_warning,
    parse_memory,
    plan,
    visible_devices,
)
from conftest import ROOT


@pytest.mark.parametrize(
    ("text", "gigabytes"),
    [
        *[(8, 8), ("8", 8), ("8GB", 8), ("8 gb", 8), ("8000MB", 8), ("8G", 8), ("0.5T", 500)],
        *[("8GiB", 8.589934592), ("1024KiB", 0.001048576), (0.25, 0.25), ("2e9B", 2)],
    ],
)
def test_memory_in_words(text, gigabytes):
    assert parse_memory(text) == pytest.approx(gigabytes, rel=1e-12)


@pytest.mark.parametrize("text", ["", "0", "-1", "GB", "8 XB", "8GBB", "many", "nan", True])
def test_memory_that_is_none(text):
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_memory(text)


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def test_version_2_takes_the_tightest_level(tmp_path):
    root = write(tmp_path / "fs")
    write(root / "job", cpu__max="400000 100000", memory__max="max")
    write(root / "job" / "step", cpu__max="max 100000", memory__max="3000000000")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    folders = cgroup_folders("cpu", root, membership)
    assert folders == [root / "job" / "step", root / "job", root]
    assert available_cpus({}, folders, affinity=64) == 4
    assert available_memory_gb({}, folders, 64e9) == 3


def test_version_1_quota_and_limit(tmp_path):
    root = tmp_path / "fs"
    write(root / "cpu,cpuacct" / "a", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write(root / "cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    write(root / "memory" / "a", memory__limit_in_bytes="5000000000")
    write(root / "memory", memory__limit_in_bytes="9223372036854771712")
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n")
    assert available_cpus({}, cgroup_folders("cpu", root, membership), affinity=16) == 2
    assert available_memory_gb({}, cgroup_folders("memory", root, membership), 16e9) == 5


def test_container_that_hides_the_path_of_its_group(tmp_path):
    root = write(tmp_path / "fs", cpu__max="50000 100000", memory__max="2000000000")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/not/visible/here\n")
    assert available_cpus({}, cgroup_folders("cpu", root, membership), affinity=8) == 1
    assert available_memory_gb({}, cgroup_folders("memory", root, membership), 8e9) == 2


def test_slurm_allocation():
    assert available_cpus({"SLURM_CPUS_PER_TASK": "3"}, [], affinity=8) == 3
    assert available_cpus({"SLURM_CPUS_PER_TASK": "12"}, [], affinity=8) == 8
    mebibyte = 1024**2 / 1e9
    assert available_memory_gb({"SLURM_MEM_PER_NODE": "4000"}, [], 64e9) == pytest.approx(
        4000 * mebibyte
    )
    assert available_memory_gb({"SLURM_MEM_PER_NODE": "0"}, [], 64e9) == 64
    per_cpu = {"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_PER_TASK": "3"}
    assert available_memory_gb(per_cpu, [], 64e9) == pytest.approx(3000 * mebibyte)
    per_gpu = {"SLURM_MEM_PER_GPU": "8000", "SLURM_GPUS_ON_NODE": "2"}
    assert available_memory_gb(per_gpu, [], 64e9) == pytest.approx(16000 * mebibyte)


def test_limits_of_the_job_are_read_from_its_own_environment(monkeypatch):
    for name in ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("SLURM_CPUS_PER_TASK", "1"), ("SLURM_MEM_PER_NODE", "10"),
        ("CUDA_VISIBLE_DEVICES", "3,4"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    memory = 10 * 1024**2 / 1e9
    assert available_cpus() == 1 == available_cpus(folders=[], affinity=9)
    assert available_memory_gb() == memory == available_memory_gb(folders=[])
    assert visible_devices("cuda") == ["cuda:0", "cuda:1"]
    assert plan() == Limits(1, 1, memory) and plan(2, None, 3.0) == Limits(2, 2, 3.0)
    assert plan(20) == Limits(20, 8, memory)


def test_plan_keeps_what_was_asked_for_and_threads_within_processors():
    limits = plan(4, 16, 6.0)
    assert (limits.nprocs, limits.omp_nthreads, limits.memory_gb) == (4, 4, 6.0)
    found = plan()
    assert found.nprocs >= found.omp_nthreads >= 1
    assert found.memory_gb > 0.1


@pytest.mark.parametrize(
    ("device", "environment", "count", "expected"),
    [
        ("cpu", {"CUDA_VISIBLE_DEVICES": "0"}, 1, ["cpu"]),
        ("auto", {}, None, ["cpu"]),
        ("auto", {}, 2, ["cuda:0", "cuda:1"]),
        ("cuda", {}, None, ["cuda:0"]),
        ("cuda", {}, 0, []),
        ("cuda:3", {}, 4, ["cuda:3"]),
        ("auto", {"CUDA_VISIBLE_DEVICES": ""}, 0, ["cpu"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "5,7"}, None, ["cuda:0", "cuda:1"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "2,-1,3"}, None, ["cuda:0"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "MIG-aa,MIG-bb"}, 2, ["cuda:0", "cuda:1"]),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}, 1, ["cuda:0"]),
    ],
)
def test_devices_to_hand_out(device, environment, count, expected):
    before = dict(environment)
    assert visible_devices(device, environment, count) == expected
    assert environment == before


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="needs processor affinity: run on Linux"
)
def test_a_process_that_is_bound_to_one_processor_uses_one():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from bids_moediff.runtime.resources import available_cpus, plan
print(available_cpus({}, []), plan().nprocs, plan().omp_nthreads)
"""
    environment = {name: value for name, value in os.environ.items() if "SLURM" not in name}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1", "1"]


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("model name\t: X\nflags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512f avx512_bf16\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("model name\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("Features\t: fp asimd bf16\n", False),  # no kernels of ours were measured there
    ],
)
def test_bfloat16_is_read_from_the_flags_of_the_processor(tmp_path, text, there):
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bfloat16(tmp_path / "cpuinfo") is there


def test_a_system_that_does_not_tell_has_no_bfloat16(tmp_path):
    assert has_bfloat16(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("given", "turns"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_of_openmp_wait_without_turning_in_a_loop(given, turns):
    """What torch's OpenMP has read when the package was imported first; a user's own wins."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    kept = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", "import bids_moediff, torch"],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT), **given},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("needs a torch with GNU's OpenMP, which that of PyPI for Linux has")
    if turns is None:
        assert "GOMP_SPINCOUNT = '1000'" not in done.stderr
    else:
        assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr


def test_exhausted_memory_is_known_through_the_errors_that_follow() -> None:
    """Libraries raise another error from it, or while they handle it."""
    for first in (MemoryError(), RuntimeError("bad allocation"), OSError(errno.ENOMEM, "")):
        later, wrapped = ValueError("no result"), ValueError("no result")
        later.__context__, wrapped.__cause__ = first, first
        assert all(map(is_out_of_memory, (first, later, wrapped)))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "")) and not is_out_of_memory(None)


def test_memory_is_warned_of_if_it_is_not_enough() -> None:
    assert memory_warning(4.0, "x", 4.0) == ""
    words = memory_warning(4.1, "x", 4.0)
    assert "may use 4.0 GB, but x needs about 4.1 GB" in words and "--mem=5G" in words
