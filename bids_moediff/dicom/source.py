# SPDX-License-Identifier: Apache-2.0
"""Read the DICOM series an image was converted from, and match it by geometry."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from bids_moediff.errors import UsageError
from bids_moediff.imaging.grid import voxel_sizes

# MR Image Storage, Enhanced MR Image Storage, Legacy Converted Enhanced MR Image Storage
MR_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.4{ending}" for ending in ("", ".1", ".4"))
OWN_NAME = "bids_moediff"  # of the equipment, in series that this app has derived
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNREADABLE = (
    pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError,
    KeyError, NotImplementedError, struct.error,
)  # fmt: skip
SAME_SLICE = 0.01  # mm
MILLIMETRES = 0.5  # by which the corners of two fields of view may differ


@dataclass(frozen=True)
class Series:
    """One MR series.

    Parameters
    ----------
    headers
        Headers of its files, without pixels, ordered along the slice axis.
    shape
        Columns, rows and slices.
    affine
        Index (column, row, slice) to RAS mm.
    """

    headers: tuple[Dataset, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def first(self) -> Dataset:
        """The header that represents the series."""
        return self.headers[0]

    @property
    def number(self) -> int:
        """Series number, 0 if there is none."""
        try:
            return int(self.first.get("SeriesNumber") or 0)
        except (ValueError, TypeError):
            return 0

    @property
    def number_word(self) -> str:
        """Series number as text; empty if there is none."""
        return str(self.first.get("SeriesNumber") or "").strip()

    @property
    def uid(self) -> str:
        """Unique identifier of the series."""
        return str(self.first.get("SeriesInstanceUID"))

    @property
    def study(self) -> str:
        """Unique identifier of the study."""
        return str(self.first.get("StudyInstanceUID"))

    @property
    def name(self) -> str:
        """Number and description, for messages."""
        return f"{self.number_word or '?'} {self.first.get('SeriesDescription') or ''}".strip()


def read_series(folder: Path) -> list[Series]:
    """Read the MR series in a folder and its subfolders, if they have a regular grid.

    Raises
    ------
    UsageError
        If the folder is missing or has no MR series.
    """
    if not folder.is_dir():
        raise UsageError(f"--source-dicom {folder}: not a folder.")
    found: dict[str, dict[str, Dataset]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            kind, equipment = header.get("SOPClassUID"), header.get("Manufacturer")
            series, instance = header.SeriesInstanceUID, header.SOPInstanceUID
        except UNREADABLE:
            continue
        if kind in MR_CLASSES and equipment != OWN_NAME and _frames(header):
            # By instance: copies of a file count once.
            found.setdefault(str(series), {})[str(instance)] = header
    several = [_series(list(headers.values())) for headers in found.values()]
    usable = [item for item in several if item is not None]
    if not usable:
        raise UsageError(f"--source-dicom {folder}: no MR series with parallel slices there.")
    return usable


def match_series(
    series: Sequence[Series], shape: Sequence[int], affine: np.ndarray, wanted: str | None = None
) -> Series:
    """Return the series whose field of view is that of an image (``affine`` to RAS mm).

    Converters permute and flip axes, and a super-resolved image may extend by less than one of its
    voxels; otherwise its field of view is that of the source.

    Parameters
    ----------
    series
        The available series.
    shape, affine
        Grid of the image.
    wanted
        Number or unique identifier of the series to take.

    Raises
    ------
    UsageError
        If no series matches, or several do.
    """
    named = [item for item in series if wanted in (None, item.uid, item.number_word)]
    if not named:
        raise UsageError(f"--series {wanted}: not there. Series there: {_list(series)}.")
    matching = [item for item in named if _same_field(item, shape, affine)]
    if not matching:
        raise UsageError(
            f"{'No series of --source-dicom' if wanted is None else f'--series {wanted}'} has the "
            "image's field of view, so it is unclear whose image this is. Series there: "
            f"{_list(named)}."
        )
    if len(matching) > 1:
        of = "" if len({item.study for item in matching}) == 1 else " of several studies"
        raise UsageError(
            f"{len(matching)} series{of} have the image's field of view: {_list(matching)}. "
            "Choose the one that it was made from with --series NUMBER or UID."
        )
    return matching[0]


def _list(series: Sequence[Series]) -> str:
    """Return the series by number, with description and identifier; the first eight."""
    ordered = sorted(series, key=lambda item: (item.number, item.uid))
    words = [f"{item.name} ({item.uid})" for item in ordered[:8]]
    return "; ".join(words) + (f"; {len(series) - 8} more" if len(series) > 8 else "")


def _same_field(series: Series, shape: Sequence[int], affine: np.ndarray) -> bool:
    """Return True if the corners of the image are those of the series, up to a voxel beyond."""
    to_index = np.linalg.inv(series.affine)
    corners = np.array(list(product(*[(-0.5, count - 0.5) for count in shape])))
    places = corners @ affine[:3, :3].T + affine[:3, 3]
    index = places @ to_index[:3, :3].T + to_index[:3, 3]
    low, high = index.min(0), index.max(0)
    sizes = np.array(voxel_sizes(series.affine))
    beyond_low = (-0.5 - low) * sizes
    beyond_high = (high - (np.array(series.shape) - 0.5)) * sizes
    # A turned box would have the same limits, and other corners.
    at_limits = np.isclose(index, low, atol=0.1) | np.isclose(index, high, atol=0.1)
    reach = max(voxel_sizes(affine)) + MILLIMETRES
    beyond = np.concatenate([beyond_low, beyond_high])
    return bool(at_limits.all() and (beyond > -MILLIMETRES).all() and (beyond < reach).all())


def _series(headers: list[Dataset]) -> Series | None:
    """Return a series from the headers of its files, or None without a regular grid.

    Slices may occur several times (echoes, repetitions), and some may be missing.
    """
    frames = [frame for header in headers for frame in _frames(header)]
    sizes = {(header.Columns, header.Rows) for header in headers}
    if len(frames) < 2 or len(sizes) > 1:
        return None
    orientation, spacing = frames[0][1], frames[0][2]
    along_row, along_column = orientation[:3], orientation[3:]
    if any(not np.allclose(frame[1], orientation, atol=1e-4) for frame in frames):
        return None
    positions = np.array([frame[0] for frame in frames])
    depths = positions @ np.cross(along_row, along_column)
    order = np.argsort(depths, kind="stable")
    if len(headers) == len(frames):
        headers = [headers[index] for index in order]
    positions, steps = positions[order], np.diff(depths[order])
    steps = steps[steps > SAME_SLICE]
    step = float(np.median(steps)) if steps.size else 0.0
    if not step or min(spacing) <= 0 or np.abs(steps / step - np.rint(steps / step)).max() > 0.05:
        return None
    slices, (columns, rows) = round(float(steps.sum()) / step) + 1, sizes.pop()
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = (positions[-1] - positions[0]) / (slices - 1)
    affine[:3, 3] = positions[0]
    return Series(tuple(headers), (int(columns), int(rows), slices), LPS_TO_RAS @ affine)


Frame = tuple[np.ndarray, np.ndarray, np.ndarray]


def _frames(header: Dataset) -> list[Frame]:
    """Return position, orientation and pixel spacing (LPS mm) of every slice of a file."""
    if "Rows" not in header or "Columns" not in header:
        return []
    try:
        if "PerFrameFunctionalGroupsSequence" not in header:
            return [_geometry(header, header, header)]
        shared = header.SharedFunctionalGroupsSequence[0]
        return [
            _geometry(
                group.PlanePositionSequence[0],
                _group("PlaneOrientationSequence", group, shared),
                _group("PixelMeasuresSequence", group, shared),
            )
            for group in header.PerFrameFunctionalGroupsSequence
        ]
    except (AttributeError, IndexError, TypeError, ValueError):
        return []  # a localiser or a report: no slice in space


def _geometry(position: Dataset, orientation: Dataset, measures: Dataset) -> Frame:
    return (
        np.array(position.ImagePositionPatient, dtype=float),
        np.array(orientation.ImageOrientationPatient, dtype=float),
        np.array(measures.PixelSpacing, dtype=float),
    )


def _group(name: str, frame: Dataset, shared: Dataset) -> Dataset:
    """Return a functional group of a frame, or the one that all frames share."""
    return (frame if name in frame else shared)[name].value[0]
