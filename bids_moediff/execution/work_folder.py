# SPDX-License-Identifier: Apache-2.0
"""Manage the working directory: who uses it, what a new run may reuse, what is removed.

Jobs may share a working directory (that of the output folder is the default). So a run uses the
folders of its own participants only, and has its own caches.
"""

import atexit
import fcntl
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from bids_moediff.runtime.locks import FileLock
from bids_moediff.settings import Settings
from bids_moediff.workflows.folder_names import WORKFLOW_NAME, participant_workflow_name


def participant_folder(work_folder: Path, label: str) -> Path:
    """Return the folder of the steps of one participant."""
    return work_folder / WORKFLOW_NAME / participant_workflow_name(label)


def forget_failures(work_folder: Path, labels: Iterable[str]) -> None:
    """Remove the steps that failed in an earlier run, so that they run again.

    A step returns its failure as output instead of raising (see interfaces/step.py), which Nipype
    would reuse as a result.
    """
    from bids_moediff.interfaces.step import FAILED_FILE

    for label in labels:
        for mark in list(participant_folder(work_folder, label).rglob(FAILED_FILE)):
            shutil.rmtree(mark.parent, ignore_errors=True)


@contextmanager
def own_work(settings: Settings, labels: Sequence[str], run_id: str) -> Iterator[Settings]:
    """Give the settings with a working directory that no other run uses for these participants.

    This is the requested one, which keeps the work of an interrupted run; or a folder below it, if
    another run works on one of the participants (a second session, a requeued job).

    Parameters
    ----------
    settings
        Options of the run.
    labels
        Participants; they are locked until the end of the block.
    run_id
        Name of this run.
    """
    work = settings.work_folder
    locks = [FileLock(participant_folder(work, label).with_suffix(".lock")) for label in labels]
    try:
        free = [lock.take() for lock in locks]
        taken = [label for label, mine in zip(labels, free, strict=True) if not mine]
        if not taken:
            if settings.rerun:
                remove_work(work, labels)
            yield settings
            return
        for lock in locks:
            lock.drop()
        apart = work / f"run-{run_id}"
        print(
            f"bids_moediff: another run works on sub-{taken[0]} in {work}; this run keeps its "
            f"intermediate files in {apart}.",
            file=sys.stderr,
        )
        try:
            yield replace(settings, work_dir=apart)
        finally:  # a later stage would not look there
            if not settings.keep_workdir:
                shutil.rmtree(apart, ignore_errors=True)
    finally:
        for lock in locks:
            lock.drop()
        _remove_if_empty(work / WORKFLOW_NAME)
        _remove_if_empty(work)


def make_caches(work_folder: Path) -> Path:
    """Make a folder for the caches of libraries; it is removed when this process ends.

    Folders of killed runs on this machine are removed now: nobody holds their lock.
    """
    work_folder.mkdir(parents=True, exist_ok=True)
    machine = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    for left in work_folder.glob(f"cache-{machine}-*"):
        with suppress(OSError):
            os.close(_lock(left))
            shutil.rmtree(left, ignore_errors=True)
    caches = Path(tempfile.mkdtemp(prefix=f"cache-{machine}-", dir=work_folder))
    with suppress(OSError):  # a file system without locks: the folder stays after a kill
        _lock(caches)  # until this process ends
    atexit.register(_remove_caches, caches)
    return caches


def _lock(caches: Path) -> int:
    """Return a descriptor that holds the lock of a folder of caches; OSError if it is taken."""
    descriptor = os.open(caches / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_caches(caches: Path) -> None:
    shutil.rmtree(caches, ignore_errors=True)
    _remove_if_empty(caches.parent)


def remove_work(work_folder: Path, labels: Iterable[str]) -> None:
    """Remove the work of these participants, and the working directory once it is empty."""
    for label in labels:
        shutil.rmtree(participant_folder(work_folder, label), ignore_errors=True)
    _remove_if_empty(work_folder / WORKFLOW_NAME)
    _remove_if_empty(work_folder)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
