# SPDX-License-Identifier: Apache-2.0
"""What discovery finds and the other rooms are handed."""

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
    """

    path: Path
    relative_path: str
    entities: Mapping[str, str]
    suffix: str
    metadata: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Participant:
    """A participant (label without ``sub-``), the images to process and remarks for the log."""

    label: str
    images: tuple[AnatomicalImage, ...]
    notices: tuple[str, ...] = ()
