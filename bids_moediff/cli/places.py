# SPDX-License-Identifier: Apache-2.0
"""Check the files of a plain command before anything is computed: no input is overwritten."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bids_moediff.errors import UsageError
from bids_moediff.runtime.given_files import read_json

# Key of the record of an image: names of the other files that the same call wrote.
BESIDE = "FilesBeside"


def stem(path: Path) -> str:
    """Return the name of an image without its extension."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def sidecar_of(path: Path) -> Path:
    """Return the JSON file beside an image."""
    return path.with_name(f"{stem(path)}.json")


def require_image_name(output: Path) -> None:
    """Raise UsageError unless a file has the name of an image."""
    if not output.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"The output {output.name or 'OUT'} does not end in .nii or .nii.gz.")
    if not stem(output):
        raise UsageError(f"The output {output} has no name before its ending.")


def require_places(reads: Mapping[Path, str], writes: Sequence[Path]) -> None:
    """Check that every output can be written, and that none is an input.

    Parameters
    ----------
    reads
        Words for each input file ("the input").
    writes
        Files to write, all of them in folders that exist.

    Raises
    ------
    UsageError
        For the first place that cannot be written.
    """
    for path in writes:
        folder = path.absolute().parent
        _require_folder(folder)
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if (length := len(os.fsencode(path.name))) > longest:
            raise UsageError(
                f"{path.name[:40]}... has {length} characters, the file system allows {longest}; "
                "give the output a shorter name."
            )
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} exists and is not a file; give the output another name.")
        for other, what in reads.items():
            if same_file(path, other):
                raise UsageError(f"{path} is {what}; give another output.")
    if len({path.absolute() for path in writes}) < len(writes):
        raise UsageError("Two files to write have the same name; give the output another name.")


def require_record(output: Path, known: str) -> None:
    """Raise UsageError if the record of an output would replace the sidecar of another image.

    Parameters
    ----------
    output
        Image to write.
    known
        A key that every record of the command has.
    """
    record = sidecar_of(output)
    if not os.path.lexists(record) or output.exists():
        return
    try:
        ours = known in read_json(record)
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise UsageError(
            f"{record} belongs to another image; give the output another name, or remove it."
        )


def remove_earlier(output: Path, written: Sequence[Path], reads: Iterable[Path]) -> None:
    """Remove what an earlier call wrote beside an output, and this one does not.

    Beside the new image it would be taken for a part of it. Only files that the record of the
    earlier call names are removed, and none that this call reads.

    Parameters
    ----------
    output
        Image to write; its record is still the earlier one.
    written
        Files that this call writes.
    reads
        Its input files.
    """
    try:
        names = read_json(sidecar_of(output))[BESIDE]
        paths = [output.with_name(name) for name in names]
    except (OSError, ValueError, TypeError, KeyError):
        return
    kept = [output, *written, *reads]
    for path in paths:
        if path.is_file() and not any(same_file(path, other) for other in kept):
            path.unlink()


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UsageError(f"The folder {folder} does not exist.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"Nothing can be written in {folder}: {error.strerror}.") from error


def same_file(one: Path, other: Path) -> bool:
    """Return True if two paths lead to one file (also by links), or will."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return one.absolute() == other.absolute()
