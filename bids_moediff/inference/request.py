# SPDX-License-Identifier: Apache-2.0
"""Messages between the app and its child process: one request, one result for each image or group.

Both sides read and write these classes, so each key is written once. The module imports neither
torch nor numpy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError, closest
from bids_moediff.options import Options
from bids_moediff.runtime.given_files import read_json
from bids_moediff.runtime.sink import write_json

# Statements of a sidecar by which an image's acquisition is known.
ACQUISITION_KEYS = (
    "MRAcquisitionType",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SliceEncodingDirection",
    "AcquisitionMatrixPE",
    "PartialFourier",
    "PulseSequenceType",
)


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One image for the network.

    Parameters
    ----------
    key
        Name of the image in progress and results.
    image, mask, bias_field
        NIfTI files on one grid; mask and bias field are optional.
    out_dir
        Folder for the results of this image.
    metadata
        Statements of the sidecar (``ACQUISITION_KEYS``).
    acquisition
        How the image was sampled, as ``Acquisition.to_dict`` gives it; it overrides the sidecar
        and the options.
    zooms
        Voxel size of the result (mm, axis order of the image); it overrides that of the options.
    with_error
        Whether the expected error is mapped even if the options do not ask for it.
    reference
        NIfTI file of another contrast in the world coordinates of the image; optional.
    reference_record
        How the reference was chosen and aligned, for the sidecar.
    """

    key: str
    image: str
    out_dir: str
    mask: str | None = None
    bias_field: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    acquisition: Mapping[str, Any] | None = None
    zooms: Sequence[float] | None = None
    with_error: bool = False
    reference: str | None = None
    reference_record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GroupRequest:
    """Scans that are combined once each is restored.

    Parameters
    ----------
    key
        Name of the group in progress and results.
    out_dir
        Folder for the results of this group.
    zooms
        Voxel size of the result in mm, in the axis order of the first of ``scans``.
    scans
        Name of each scan, and the key of its image in this request.
    lost
        Name of each scan of the group that could not be prepared, with the reason in one sentence.
    """

    key: str
    out_dir: str
    zooms: Sequence[float]
    scans: Mapping[str, str]
    lost: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """All images of a participant, the groups to combine, and the options.

    ``device`` may list several devices with commas; one of them is taken. ``model_reason`` says
    why this model was chosen, for the record.
    """

    options: Options
    images: tuple[ImageRequest, ...]
    groups: tuple[GroupRequest, ...] = ()
    device: str = "auto"
    model_reason: str = ""

    @property
    def items(self) -> tuple[ImageRequest | GroupRequest, ...]:
        """Return the keys of all images and groups, in order."""
        return (*self.images, *self.groups)

    def write(self, path: Path) -> Path:
        """Write the request file."""
        content = {
            "options": self.options.to_dict(),
            "device": self.device,
            "model_reason": self.model_reason,
            "images": [asdict(image) for image in self.images],
            "groups": [asdict(group) for group in self.groups],
        }
        return write_json(content, path)

    @classmethod
    def read(cls, path: Path) -> "Request":
        """Read a request file; absent keys get their defaults.

        Raises
        ------
        UsageError
            For a file that cannot be read, an unknown key or a wrong value.
        """
        where = f"The request file {path.name}"
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{where} cannot be read: {error}.") from error
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise UsageError(f"{where} has no list 'images'.")
        _check_keys(content, cls, where)
        for entry in content["images"]:
            _check_keys(entry, ImageRequest, f"An image of {path.name}")
        for entry in content.get("groups", ()):
            _check_keys(entry, GroupRequest, f"A group of {path.name}")
        read = {
            "options": Options.from_dict(content.get("options", {}), where),
            "images": tuple(ImageRequest(**entry) for entry in content["images"]),
            "groups": tuple(GroupRequest(**entry) for entry in content.get("groups", ())),
        }
        return cls(**{**content, **read})


def _check_keys(content: Any, kind: type, where: str) -> None:
    """Raise UsageError for a missing or an unknown key."""
    known = {item.name for item in fields(kind)}
    if not isinstance(content, dict):
        raise UsageError(f"{where} is not a table of keys and values.")
    for key in content:
        if key not in known:
            raise UsageError(f"{where} has the unknown key {key!r}{closest(key, known)}.")
    needed = [
        item.name
        for item in fields(kind)
        if item.default is MISSING and item.default_factory is MISSING and item.name != "options"
    ]
    if missing := [key for key in needed if key not in content]:
        raise UsageError(f"{where} lacks {', '.join(missing)}.")


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """Result of one image or group.

    Parameters
    ----------
    status
        ``"running"``, ``"done"`` or ``"failed"``.
    message
        One sentence if it failed.
    files
        NIfTI files by the key of their product.
    record
        What ran, for the sidecar.
    seconds, peak_memory_gb
        Time for this image, and the peak memory of the process so far.
    exit_code
        Exit code of the process, if it ended on this image.
    """

    status: str
    message: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    peak_memory_gb: float | None = None
    exit_code: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status == "done"

    @property
    def settled(self) -> bool:
        """Whether no further attempt is needed."""
        return self.status in ("done", "failed")


def read_results(path: Path) -> dict[str, ImageResult]:
    """Return the results by key, empty if the file does not exist yet."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: ImageResult(**item) for key, item in content.items()}


def write_results(results: Mapping[str, ImageResult], path: Path) -> Path:
    """Write the results file atomically."""
    return write_json({key: result.to_dict() for key, result in results.items()}, path)
