# SPDX-License-Identifier: Apache-2.0
"""Describe the images and participants that discovery finds."""

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
        Why the image cannot be read, in one sentence, if this is visible on disk.
    members
        Scans that it is combined from (``bids.groups``); such an image has no file.
    left_out
        Key of each further scan that cannot be combined, with the reason.
    remarks
        One sentence for each statement of its sidecars that could not be used.
    shape, zooms
        Matrix and voxel size (mm), once the header was read.
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
        """Images of the data set that it is made from."""
        return self.members or (self,)

    @property
    def key(self) -> str:
        """Name of the image in requests, logs and tables: its file name without extension."""
        return self.path.name.removesuffix(".gz").removesuffix(".nii")

    def to_json(self) -> str:
        """Return text that passes between nodes and can be hashed; see :meth:`from_json`.

        It holds size and time of the file and the version of the app, so that an image that was
        replaced between two runs with one working directory is processed again.
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
        """Return the image of a text of :meth:`to_json`."""
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
    """Return size and modification time (ns) of a file, or of the target of a link.

    Empty if there is none.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Participant:
    """A participant and its images.

    Parameters
    ----------
    label
        Without ``sub-``.
    images
        Images to process, in the order of the names.
    notices
        Remarks for the log: files left out, statements that could not be used.
    groups
        Images to be combined from several of ``images``.
    others
        All images that may guide another one, if they are needed.
    passed
        Number of images that were not requested, by suffix and reason in words.
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
        """All images that get a result: images, then groups."""
        return (*self.images, *self.groups)
