# SPDX-License-Identifier: Apache-2.0
"""Run one network on a device at a time, with no device idle while a network waits.

Workflow engines count GPU slots but assign no device, so two networks may use one GPU. Here every
network takes an advisory lock (``flock``) on a small file named after the device before it uses
it. The kernel drops the lock when the process ends, however it ends, so no stale state remains.
The process that runs the network takes the lock. ``CUDA_VISIBLE_DEVICES`` is only ever read: it
says which physical GPU ``cuda:0`` is, so two jobs with different visible GPUs do not wait for each
other.
"""

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.1


def default_lock_directory() -> Path:
    """Return the folder of the lock files: private to the user, local to the machine."""
    return Path(tempfile.gettempdir()) / f"bids_moediff-devices-{os.getuid()}"


def physical_name(device: str, visible: str | None) -> str:
    """Return a file-name-safe name of the GPU behind ``device``.

    Parameters
    ----------
    device
        Name in torch: ``"cuda"``, ``"cuda:1"`` or any other token (used unchanged).
    visible
        Value of ``CUDA_VISIBLE_DEVICES`` (indices, UUIDs or MIG UUIDs with commas) or None.
    """
    index = device.partition(":")[2] or "0" if device.partition(":")[0] == "cuda" else ""
    tokens = [token.strip() for token in (visible or "").split(",") if token.strip()]
    card = tokens[int(index)] if index.isdigit() and int(index) < len(tokens) else index
    return re.sub(r"[^A-Za-z0-9.-]+", "-", f"cuda-{card}" if index else device)


@contextmanager
def hold_device(
    devices: Sequence[str],
    lock_directory: Path | None = None,
    *,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[str]:
    """Wait for a free device out of ``devices``, hold it, and yield its name.

    The processor is not locked: ``"cpu"`` is yielded at once.
    """
    if not devices:
        raise ValueError("no device to choose from")
    if devices[0] == "cpu":
        yield "cpu"
        return
    directory = lock_directory or default_lock_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, device = _first_free(devices, directory, on_wait)
    try:
        yield device
    finally:
        os.close(descriptor)


def _first_free(
    devices: Sequence[str], directory: Path, on_wait: Callable[[], None] | None
) -> tuple[int, str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    waiting = False
    while True:
        for device in devices:
            path = directory / f"{physical_name(device, visible)}.lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor, device
            except BlockingIOError:
                os.close(descriptor)
        if on_wait and not waiting:
            on_wait()
        waiting = True
        time.sleep(POLL_SECONDS)
