# SPDX-License-Identifier: Apache-2.0
"""What discovery finds and the other rooms are handed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_moediff import __version__


@dataclass(frozen=True)
class AnatomicalImage:
    """One image of the input data set.

    Parameters
    ----------
    path
        Absolute path of the NIfTI file.
    relative_path
        The same relative to the data set, in POSIX form.
    entities
        Short BIDS keys in file-name order with values as written, ``{"sub": "01", "run": "01"}``.
    suffix
        ``T1w``, ``T2w``, …
    metadata
        Sidecars merged by the inheritance principle.
    problem
        Why the image cannot be read, in one sentence, where that shows already on disk.
    members
        Scans that it is to be combined from: then there is no such file (``bids.groups``).
    left_out
        Key of each further scan that cannot be combined, and why.
    remarks
        One sentence for each statement of its sidecars that could not be used.
    shape, zooms
        Matrix and voxel size (mm), once the header was looked at.
    """

    path: Path
    relative_path: str
    entities: Mapping[str, str]
    suffix: str
    metadata: Mapping[str, Any]
    problem: str | None = None
    members: tuple["AnatomicalImage", ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    zooms: tuple[float, float, float] | None = None

    @property
    def sources(self) -> tuple["AnatomicalImage", ...]:
        """Images of the data set that it comes from."""
        return self.members or (self,)

    @property
    def key(self) -> str:
        """Name of the image in requests, logs and tables: its file name without extension."""
        return self.path.name.removesuffix(".gz").removesuffix(".nii")

    def to_json(self) -> str:
        """Text that travels between nodes and can be hashed; see :meth:`from_json`.

        Size and time of the file are in it, and the version of the app, so that an image that was
        replaced between two runs with one work folder is processed again.
        """
        fields = {
            "path": str(self.path),
            "relative_path": self.relative_path,
            "entities": dict(self.entities),
            "suffix": self.suffix,
            "metadata": dict(self.metadata),
            "problem": self.problem,
            "members": [member.to_json() for member in self.members],
            "left_out": dict(self.left_out),
            "remarks": self.remarks,
            "shape": self.shape,
            "zooms": self.zooms,
            "stamp": [*stamp(self.path), __version__],
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "AnatomicalImage":
        """Inverse of :meth:`to_json`."""
        fields = json.loads(text)
        del fields["stamp"]
        fields |= {
            name: tuple(fields[name])
            for name in ("remarks", "shape", "zooms")
            if fields[name] is not None
        }
        members = tuple(cls.from_json(member) for member in fields["members"])
        return cls(**fields | {"path": Path(fields["path"]), "members": members})


def stamp(path: Path) -> list[int]:
    """Return size and modification time (ns) of a file or of what a link leads to.

    Empty without one.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Participant:
    """A participant and what was found of it.

    Parameters
    ----------
    label
        Without ``sub-``.
    images
        What is to be processed, in the order of the names.
    notices
        Remarks for the log: files left out, statements that could not be used.
    groups
        Images to be combined from several of ``images``.
    others
        All images that may guide another one, where that is wanted.
    passed
        How many images were not asked for, by suffix and reason in words.
    problems
        One sentence for each folder that could not be read.
    """

    label: str
    images: tuple[AnatomicalImage, ...]
    notices: tuple[str, ...] = ()
    groups: tuple[AnatomicalImage, ...] = ()
    others: tuple[AnatomicalImage, ...] = ()
    passed: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[AnatomicalImage, ...]:
        """Everything that there is to be a result of: images, then groups."""
        return (*self.images, *self.groups)
