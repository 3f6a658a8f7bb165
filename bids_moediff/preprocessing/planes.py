# SPDX-License-Identifier: Apache-2.0
"""Check the planes of an image: empty ones, and their distance by header and sidecar."""

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np

TOLERANCE = 0.05  # of a distance
LEAST_SHARE = 0.05  # of the planes, for an empty block at one end
# Plane before an empty block over a middle one: a head tapers, a broken copy does not.
ABRUPT = 0.2
ABRUPT_MASKED = 0.5  # where the air is one value: maps are as bright at the crown as within
FAINT = 0.1  # of the usual share of voxels: planes beside a mask's end hold a few
AXES = ("first", "second", "third")


def empty_planes(data: np.ndarray) -> list[str]:
    """Return a sentence on planes of one value: between others, or as a block that cuts the head.

    Parameters
    ----------
    data
        (x, y, z), finite.

    Notes
    -----
    A block at an end is reported along the slowest axis alone, where an interrupted copy leaves
    it. Empty planes at both ends are padding.
    """
    remarks = []
    for axis, name in enumerate(AXES):
        planes = np.moveaxis(data, axis, 0)
        others = tuple(k for k in range(3) if k != axis)
        empty = data.min(axis=others) == data.max(axis=others)
        full = np.nonzero(~empty)[0]
        if not len(full):
            continue
        first, last = int(full[0]), int(full[-1])
        inner = _between_full_ones(planes, np.nonzero(empty[first:last])[0] + first, full)
        if len(inner):
            remarks.append(
                f"{len(inner)} of {len(empty)} slices along the {name} axis are empty between "
                f"others ({some_planes(inner)}, counted from 1): data are missing there"
            )
        front, back = first, len(empty) - 1 - last
        count = 0 if front and back else front + back
        long = count >= LEAST_SHARE * len(empty)
        if axis == 2 and long and _abrupt(planes, full, front > 0):
            where = "first" if front else "last"
            remarks.append(
                f"the {where} {count} of {len(empty)} slices are empty, and the head is cut "
                "off there: was the file copied to its end?"
            )
    return remarks


def _between_full_ones(planes: np.ndarray, inner: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Those of the empty planes that have planes of the head on both sides, not a mask's rim."""
    if not len(inner):
        return inner
    filled = (planes != np.median(planes[full])).mean(axis=(1, 2))
    usual = FAINT * float(np.median(filled[full]))
    places = np.searchsorted(full, inner)
    beside = np.minimum(filled[full[places - 1]], filled[full[places]])
    return inner[beside >= usual]


def some_planes(places: np.ndarray) -> str:
    """Return the numbers of the first three planes, counted from 1."""
    words = ", ".join(str(place + 1) for place in places[:3])
    return words + (", ..." if len(places) > 3 else "")


def _abrupt(planes: np.ndarray, full: np.ndarray, at_front: bool) -> bool:
    """Return True if the last whole plane before the empty block is as bright as the middle."""
    if len(full) < 4:
        return False
    air = np.median(planes[full])
    brightness = np.abs(planes[full] - air).reshape(len(full), -1).mean(axis=1)
    edge = brightness[1] if at_front else brightness[-2]
    masked = np.mean(planes[full] == air) > 0.5
    return bool(edge > (ABRUPT_MASKED if masked else ABRUPT) * np.median(brightness))


def distance_remarks(image: nib.Nifti1Image, metadata: Mapping[str, Any]) -> list[str]:
    """Return sentences if header and sidecar disagree on the distance of the slices.

    Parameters
    ----------
    image
        Conformed image.
    metadata
        Its sidecar.

    Notes
    -----
    Slices are those across the axis in the sidecar, or across the coarsest. For a 3-D acquisition,
    sidecars give the distance before interpolation.
    """
    stated = metadata.get("SpacingBetweenSlices")
    if stated is None or metadata.get("MRAcquisitionType") == "3D":
        return []
    zooms = nib.affines.voxel_sizes(image.affine)
    axis = {"i": 0, "j": 1, "k": 2}.get(str(metadata.get("SliceEncodingDirection"))[:1])
    found = float(zooms[int(np.argmax(zooms)) if axis is None else axis])
    if abs(stated - found) <= TOLERANCE * found:
        return []
    return [
        f"the slices lie {found:.3g} mm apart by the header and {stated:.3g} mm by the sidecar "
        "(SpacingBetweenSlices); the header was used: if the sidecar is right, the result is too "
        f"{'flat' if stated > found else 'long'} along that axis"
    ]
