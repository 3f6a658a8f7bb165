# SPDX-License-Identifier: Apache-2.0
"""How surely interpolated input is recognised: a set made from real heads, and the counts.

``python -m research.measurements.interpolated FOLDER [OUT.tsv]`` takes every NIfTI file below a
folder. Each axis is first cropped in k-space, so that its spectrum reaches Nyquist whatever was
done to the file before: that is the native case. Then it is zero-filled or interpolated to finer
voxels. Thick slices (fewer than 120 voxels along the axis) are taken as they are.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.spectrum import axis_resolution
from bids_moediff.runtime.sink import table_text, write_text

KEPT = 0.45  # share of k-space: below the cut-off of every file that is zero-filled already
HALF_WIDTH = 28  # voxels to either side of the middle, across the axis
Row = dict[str, Any]
NATIVE = "native"
WAYS = {
    "zero filling": (1.25, 1.5, 2.0, 3.0),
    "cubic": (1.25, 1.5, 2.0),
    "linear": (1.5, 2.0),
}


def resize_spectrum(data: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Magnitude of ``data`` with ``count`` samples along ``axis``: k-space cropped or filled."""
    size = data.shape[axis]
    space = np.fft.fftshift(np.fft.fft(data, axis=axis), axes=axis)
    low = abs(count // 2 - size // 2)
    if count < size:
        space = np.take(space, np.arange(low, low + count), axis=axis)
    else:
        pad = [(low, count - size - low) if k == axis else (0, 0) for k in range(data.ndim)]
        space = np.pad(space, pad)
    return np.abs(np.fft.ifft(np.fft.ifftshift(space, axes=axis), axis=axis)) * (count / size)


def upsample(data: np.ndarray, axis: int, factor: float, order: int) -> np.ndarray:
    """Spline interpolation to ``factor`` times as many voxels, outer corner kept."""
    zoom = [factor if k == axis else 1.0 for k in range(3)]
    return ndimage.zoom(data, zoom, order=order, mode="nearest", grid_mode=True)


def _same_extent(mask: np.ndarray, axis: int, count: int) -> np.ndarray:
    """The mask with another number of voxels along an axis."""
    place = ((np.arange(count) + 0.5) * mask.shape[axis] / count).astype(int)
    return np.take(mask, place, axis=axis)


def cases(
    data: np.ndarray, mask: np.ndarray, axis: int
) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """Way, factor, image and mask: first the native case (factor 1), then the interpolated ones.

    Values are rounded to integers, as they are stored.
    """
    count = data.shape[axis]
    if count >= 120:
        count = round(KEPT * count)
        data, mask = resize_spectrum(data, axis, count), _same_extent(mask, axis, count)
    yield NATIVE, 1.0, np.rint(data), mask
    for way, factors in WAYS.items():
        for factor in factors:
            if way == "zero filling":
                fine = resize_spectrum(data, axis, round(factor * count))
            else:
                fine = upsample(data, axis, factor, 3 if way == "cubic" else 1)
            yield way, factor, np.rint(fine), _same_extent(mask, axis, fine.shape[axis])


def evaluate(path: Path) -> list[Row]:
    """Verdict on every case of one head: rows of the table."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    zooms = tuple(float(zoom) for zoom in nib.affines.voxel_sizes(image.affine))  # type: ignore[attr-defined]
    head = head_mask_array(data, zooms)
    centre = [int(place) for place in ndimage.center_of_mass(head)]
    rows: list[Row] = []
    for axis in range(3):
        part = tuple(
            slice(None) if k == axis else slice(max(place - HALF_WIDTH, 0), place + HALF_WIDTH)
            for k, place in enumerate(centre)
        )
        for way, factor, made, mask in cases(data[part], head[part], axis):
            found = axis_resolution(made, mask, axis, 1.0)
            row: Row = {"file": path.name, "axis": axis, "way": way, "factor": factor}
            rows.append(row | {"verdict": found.kind, "found_factor": round(found.acquired, 3)})
    return rows


def summarise(rows: list[Row]) -> list[Row]:
    """Per way and factor: axes judged, axes called interpolated, and those with the right factor.

    The factor is right within 10 %; axes that are too short to be judged are left out.
    """
    result = []
    for way, factor in dict.fromkeys((row["way"], row["factor"]) for row in rows):
        judged = [
            row
            for row in rows
            if (row["way"], row["factor"]) == (way, factor) and row["verdict"] != "unknown"
        ]
        called = [row for row in judged if row["verdict"] != "native"]
        right = [row for row in called if abs(row["found_factor"] / factor - 1) <= 0.1]
        result.append(
            {"way": way, "factor": factor, "judged": len(judged), "called": len(called),
             "right": len(right)}
        )  # fmt: skip
    return result


def markdown(rows: list[Row]) -> str:
    """The counts as a table, with sensitivity and specificity and their 95 % intervals."""
    lines = ["| way | factor | called interpolated | factor within 10 % |", "|---|---|---|---|"]
    counts = summarise(rows)
    for entry in counts:
        share = f"{entry['called']} of {entry['judged']}"
        right = str(entry["right"]) if entry["way"] != NATIVE else ""
        lines.append(f"| {entry['way']} | {entry['factor']:g} | {share} | {right} |")
    made = [entry for entry in counts if entry["way"] != NATIVE]
    found, total = sum(e["called"] for e in made), sum(e["judged"] for e in made)
    native = [entry for entry in counts if entry["way"] == NATIVE]
    kept, all_native = (
        sum(e["judged"] - e["called"] for e in native),
        sum(e["judged"] for e in native),
    )
    for name, good, count in (("Sensitivity", found, total), ("Specificity", kept, all_native)):
        if count:
            low, high = wilson_interval(good, count)
            lines += ["", f"{name} {good / count:.3f} [{low:.3f}, {high:.3f}] ({good} of {count})"]
    return "\n".join(lines) + "\n"


def wilson_interval(good: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    share, z2 = good / count, 1.96**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = (z2 * (share * (1 - share) / count + z2 / (4 * count**2))) ** 0.5 / (1 + z2 / count)
    return middle - half, middle + half


def find_files(folder: Path) -> list[Path]:
    """Images of a folder: those of its manifest.tsv, else every NIfTI file below it."""
    manifest = folder / "manifest.tsv"
    if not manifest.is_file():
        return sorted(folder.rglob("*.nii.gz"))
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    names = [row["file"] for row in rows if row["file"].endswith(".nii.gz")]
    return [folder / name for name in sorted(names) if not name.startswith("labels")]


def main(arguments: list[str]) -> int:
    """Print the counts and write every verdict."""
    rows: list[Row] = []
    for path in find_files(Path(arguments[0])):
        rows += evaluate(path)
        print(path.name, flush=True)
    if len(arguments) > 1:
        write_text(table_text(rows, list(rows[0])), Path(arguments[1]))
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
