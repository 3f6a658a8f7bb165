# SPDX-License-Identifier: Apache-2.0
"""Describe an image that was combined from several scans, for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path, figure_path, parse_name
from bids_moediff.preprocessing.conform import conform
from bids_moediff.reports import facts
from bids_moediff.reports.canvas import NORMAL, PLANES, grey
from bids_moediff.reports.figures import ORDER, Scene, write_row

HEADS = (
    "Scan", "Used", "Moved", "Agreement", "Brightness", "Noise", "Weight", "Residual over noise",
    "Remarks",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A scan at the place in its header, and registered; both on the combined grid."""

    name: str
    before: Path
    after: Path


def summary(record: Mapping[str, Any]) -> str:
    """Return in a sentence or two what was combined; empty for an image of one scan."""
    scans = record.get("CombinedScans") or []
    used = [scan["Scan"] for scan in scans if scan["Used"]]
    if not used:
        return ""
    size = " x ".join(f"{zoom:.3g}" for zoom in record["OutputVoxelSize"])
    return (
        f"{len(used)} of {len(scans)} scans were combined to voxels of {size} mm. Below, the "
        f"input is {used[0]}, the first of them."
    )


def table(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return rows of ``HEADS``: the result for each scan."""
    rows: list[tuple[str, ...]] = []
    for scan in record.get("CombinedScans") or []:
        if not scan["Used"]:
            agreement = facts.number(scan.get("Agreement"))
            rows.append((scan["Scan"], "no", "-", agreement, *["-"] * 4, scan["Reason"]))
            continue
        slices = ", ".join(map(str, scan["SlicesWeighedDown"]))
        rows.append((
            scan["Scan"], "yes", f"{scan['MeanDisplacement']:.2f} mm", f"{scan['Agreement']:.2f}",
            facts.number(scan["Brightness"]), facts.number(scan["EstimatedNoise"]),
            f"{100 * scan['Weight']:.0f} %", f"{scan['ResidualOverNoise']:.2f}",
            f"slices {slices} weighed down" if slices else "",
        ))  # fmt: skip
    return rows


def scan_paths(
    output_dir: Path, sources: Sequence[str], raw_dir: Path | None
) -> dict[str, dict[str, Path]]:
    """Return existing files of each scan of a group, by its name: raw or preproc, and mask."""
    found = {}
    for source in sources:
        name = PurePosixPath(source).name
        entities, suffix, extension = parse_name(name)
        image = AnatomicalImage(Path(), source, entities, suffix, {})
        paths = {
            product: output_dir / derivative_path(image, product)
            for product in ("preproc", "mask")
        }
        if raw_dir is not None:
            paths["raw"] = raw_dir / source
        known = {key: path for key, path in paths.items() if path.exists()}
        found[name.removesuffix(extension)] = known
    return found


def draw_pairs(
    output_dir: Path,
    image: AnatomicalImage,
    scene: Scene,
    record: Mapping[str, Any],
    paths: Mapping[str, Mapping[str, Path]],
) -> list[Pair]:
    """Draw each scan that was used in the slices of the scene, before and after registration.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    image
        The combined image; its name is that of the pictures.
    scene
        Its result is the combined image.
    record
        Record of the combined image.
    paths
        Files of each scan (:func:`scan_paths`).
    """
    pairs = []
    for number, scan in enumerate(record["CombinedScans"], 1):
        files = paths.get(scan["Scan"], {})
        path = files.get("raw") or files.get("preproc")
        if not scan["Used"] or path is None:
            continue
        volume = conform(path)[0]
        brightness = float(scan["Brightness"])
        drawn = []
        for words, move in (("before", np.eye(4)), ("after", np.array(scan["RigidTransform"]))):
            planes = {
                plane: grey(_plane(scene, volume, move, plane) / brightness, scene.window)
                for plane in ORDER
            }
            target = output_dir / figure_path(image, f"scan{number}{words}", ".png")
            title = f"{scan['Scan']}, {words} registration"
            drawn.append(write_row(scene, planes, title, target))
        pairs.append(Pair(scan["Scan"], *drawn))
    return pairs


def _plane(scene: Scene, scan: nib.Nifti1Image, move: np.ndarray, plane: str) -> np.ndarray:
    """Return pixels of a scan in a plane of the scene, on the voxels of its result.

    Linear interpolation, 0 outside the scan. ``move`` maps world coordinates of the scene to those
    of the scan.
    """
    result, (across, up) = scene.enhanced, PLANES[plane]
    columns, rows = (
        result.start[axis] + result.zooms[axis] * (result.index(axis, positions) + 0.5)
        for axis, positions in zip((across, up), scene.frame.positions(plane), strict=True)
    )
    points = np.empty((3, len(rows), len(columns)))
    points[across], points[up] = columns[None, :], rows[:, None]
    points[NORMAL[plane]] = scene.positions[plane]
    to_scan = np.linalg.inv(scan.affine) @ move
    linear = to_scan[:3, :3] @ result.rotation
    places = np.tensordot(linear, points, axes=1) + to_scan[:3, 3][:, None, None]
    data = np.asarray(scan.dataobj, dtype=np.float32)
    pixels: np.ndarray = ndimage.map_coordinates(data, places, order=1, cval=0.0)
    return pixels
