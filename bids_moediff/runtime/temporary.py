# SPDX-License-Identifier: Apache-2.0
"""Check that folders are writable before anything is written."""

import os
import tempfile
from pathlib import Path

from bids_moediff.errors import UsageError


def require_temporary_folder() -> None:
    """Check that there is a folder for temporary files.

    Raises
    ------
    UsageError
        If there is none, as in a read-only container without a ``/tmp``.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UsageError(
            "No folder for temporary files can be written, and matplotlib and others need one: "
            "add --tmpfs /tmp to the call of a read-only container, or set TMPDIR to a folder "
            "that can be written."
        ) from error


def refuse_lost_links(folder: Path, what: str) -> None:
    """Check that no part of a path is a link to nothing or to itself: no folder can be made there.

    Raises
    ------
    UsageError
        If one is; ``what`` is the subject of the sentence.
    """
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise UsageError(
                f"{what} {folder} cannot be made: {path} is a link to something that is not "
                "there; make that folder, or give another one."
            )


def require_writable(folder: Path, what: str) -> None:
    """Check that a folder can be written, or created if missing; leave no trace.

    Parameters
    ----------
    folder
        Folder that need not exist yet.
    what
        Its purpose, as the subject of a sentence.

    Raises
    ------
    UsageError
        If it or the nearest folder above it cannot be written.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{what} {folder} cannot be made: {existing} is a file.")
    reason = "" if os.access(existing, os.W_OK | os.X_OK) else "permission denied"
    if existing == folder and not reason and not os.access(folder, os.R_OK):
        raise UsageError(f"{what} {folder} cannot be read (permission denied); give another one.")
    if existing != folder and not reason:
        try:  # permissions do not tell everything: root cannot make a folder in /proc
            tempfile.TemporaryDirectory(prefix=".writable-", dir=existing).cleanup()
        except OSError as error:
            reason = error.strerror or str(error)
    if reason:
        raise UsageError(f"{what} {folder} cannot be written ({reason}); give another one.")
