# SPDX-License-Identifier: Apache-2.0
"""Features of Linux only, each with a replacement for other systems.

These are affinity, control groups, ``/proc``, the allocator of the GNU C library and the signal at
the death of a parent. Elsewhere (macOS) all processors and the whole memory count, bfloat16 counts
as absent, the allocator is unchanged, and children of a killed run continue until they report. No
other module calls functions that some POSIX systems lack.
"""

import ctypes
import os
import platform
import resource
import signal
import sys
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_INFORMATION = Path("/proc/cpuinfo")
# Numbers of mallopt(3) in the GNU C library, and the largest block that it agrees to keep. What is
# larger (whole volumes, not the slabs that networks work on) still goes back at once.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_KEPT = 2**31 - 1, 32 << 20

_PR_SET_PDEATHSIG = 1


# Variable by which a command is told the number of the process that waits for it.
PARENT_VARIABLE = "MOEDIFF_PARENT_PROCESS"


def die_with_parent(parent: int | None = None) -> bool:
    """Let the kernel kill this process as soon as its parent has ended.

    Parameters
    ----------
    parent
        Process number of the parent, if known: it may have ended a moment ago.

    Returns
    -------
    bool
        False if the system has no such signal.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return False
    done = prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if parent is not None and os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    return done


def allowed_processors() -> int:
    """Return the processors that this process may use; all of them without affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_memory() -> float:
    """Return the memory of the machine in bytes."""
    return float(psutil.virtual_memory().total)


def peak_memory_gb() -> float:
    """Return the peak memory of this process so far, in GiB."""
    # Linux counts KiB, macOS bytes (getrusage(2)).
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**3, 3)


def processor_information(path: Path = CPU_INFORMATION) -> list[str]:
    """Return the lines in which the kernel describes the processor, or none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def processor_name() -> str:
    """Return the model of the processor, or its kind if the system does not name the model."""
    names = [
        line.split(":", 1)[1] for line in processor_information() if line[:10] == "model name"
    ]
    return names[0].strip() if names else platform.processor() or platform.machine()


def _first_number(path: Path) -> float | None:
    try:
        word = path.read_text(encoding="ascii").split()[0]
        return None if word == "max" else float(word)
    except (OSError, ValueError, IndexError):
        return None


def cgroup_folders(
    controller: str, root: Path = CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")
) -> list[Path]:
    """Return the folders of this process's control groups, innermost first, ending at the root.

    Reads version 2 (``0::/path``) and version 1 (``N:controllers:/path``). A limit may be set at
    any level, so callers take the smallest.
    """
    bases: list[tuple[Path, str]] = []
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            bases.append((root, path))
        elif controller in names.split(","):
            bases += [(root / names, path), (root / controller, path)]
    # Inside a container the path of the host is often not visible, the root then is our group.
    bases += [(root, "/"), (root / controller, "/")]
    folders: list[Path] = []
    for base, path in bases:
        folder = base / path.strip("/")
        while folder != base.parent:
            if folder.is_dir() and folder not in folders:
                folders.append(folder)
            folder = folder.parent
    return folders


def processor_quota(folder: Path) -> float | None:
    """Return the number of processors that a control group may use, or None without a limit."""
    try:
        words = (folder / "cpu.max").read_text(encoding="ascii").split()
        if words and words[0] != "max":
            return float(words[0]) / float(words[1] if len(words) > 1 else 100000)
    except (OSError, ValueError):
        pass
    quota = _first_number(folder / "cpu.cfs_quota_us")
    period = _first_number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def memory_limit(folder: Path) -> float | None:
    """Return the bytes that a control group may use, or None without a limit."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _first_number(folder / name)
        if limit is not None and limit > 0:  # version 1 writes about 2^63 for "no limit"
            return limit
    return None


def keep_freed_memory() -> bool:
    """Keep freed memory for the next tensor, for the rest of this process.

    The C library returns every large block at once, and the system fills the next one with zeros
    page by page: a fifth of the time of a whole head (docs/speed.md). Returns False if the C
    library has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    kept = bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT))
    return kept and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
