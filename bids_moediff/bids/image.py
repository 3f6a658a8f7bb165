# SPDX-License-Identifier: Apache-2.0
"""What discovery finds and the other rooms are handed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """

    path: Path
    relative_path: str
    entities: Mapping[str, str]
    suffix: str
    metadata: Mapping[str, Any]
    problem: str | None = None
    members: tuple["AnatomicalImage", ...] = ()

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

        Size and time of the file are in it, so that an image that was replaced between two runs
        with one work folder is processed again.
        """
        fields = {
            "path": str(self.path),
            "relative_path": self.relative_path,
            "entities": dict(self.entities),
            "suffix": self.suffix,
            "metadata": dict(self.metadata),
            "problem": self.problem,
            "members": [member.to_json() for member in self.members],
            "stamp": _stamp(self.path),
        }
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "AnatomicalImage":
        """Inverse of :meth:`to_json`."""
        fields = json.loads(text)
        del fields["stamp"]
        members = tuple(cls.from_json(member) for member in fields["members"])
        return cls(**{**fields, "path": Path(fields["path"]), "members": members})


def _stamp(path: Path) -> list[int]:
    """Size and modification time (ns) of a file or of what a link leads to; empty without one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Participant:
    """A participant (label without ``sub-``), the images to process and remarks for the log.

    ``groups``: images to be combined from several of ``images``.
    ``others`` are all images of the participant that may guide another one, where that is wanted.
    """

    label: str
    images: tuple[AnatomicalImage, ...]
    notices: tuple[str, ...] = ()
    groups: tuple[AnatomicalImage, ...] = ()
    others: tuple[AnatomicalImage, ...] = ()

    @property
    def results(self) -> tuple[AnatomicalImage, ...]:
        """Everything that there is to be a result of: images, then groups."""
        return (*self.images, *self.groups)
