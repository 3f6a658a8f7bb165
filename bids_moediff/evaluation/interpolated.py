# SPDX-License-Identifier: Apache-2.0
"""How surely interpolated input is recognised: a set made from real heads, and the counts.

``python -m bids_moediff.evaluation.interpolated FOLDER [OUT.tsv]`` takes every NIfTI file below a
folder. Each axis is first cropped in k-space, so that its spectrum reaches Nyquist whatever was
done to the file before: that is the native case. Then it is zero-filled or interpolated to finer
voxels. Thick slices (fewer than 120 voxels along the axis) are taken as they are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.bids.sink import table_text, write_text
from bids_moediff.engine.masks import head_mask_array
from bids_moediff.engine.spectrum import axis_resolution

KEPT = 0.45  # share of k-space: below the cut-off of every file that is zero-filled already
HALF_WIDTH = 28  # voxels to either side of the middle, across the axis
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
    yield "native", 1.0, np.rint(data), mask
    for way, factors in WAYS.items():
        for factor in factors:
            if way == "zero filling":
                fine = resize_spectrum(data, axis, round(factor * count))
            else:
                fine = upsample(data, axis, factor, 3 if way == "cubic" else 1)
            yield way, factor, np.rint(fine), _same_extent(mask, axis, fine.shape[axis])


def evaluate(path: Path) -> list[dict[str, str | float]]:
    """Verdict on every case of one head: rows of the table."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    zooms = tuple(float(zoom) for zoom in nib.affines.voxel_sizes(image.affine))  # type: ignore[attr-defined]
    head = head_mask_array(data, zooms)
    centre = [int(place) for place in ndimage.center_of_mass(head)]
    rows: list[dict[str, str | float]] = []
    for axis in range(3):
        part = tuple(
            slice(None) if k == axis else slice(max(place - HALF_WIDTH, 0), place + HALF_WIDTH)
            for k, place in enumerate(centre)
        )
        for way, factor, made, mask in cases(data[part], head[part], axis):
            verdict = axis_resolution(made, mask, axis, 1.0).kind
            rows.append(
                {"file": path.name, "axis": axis, "way": way, "factor": factor, "verdict": verdict}
            )
    return rows


def summarise(rows: list[dict[str, str | float]]) -> list[tuple[str, float, int, int]]:
    """Way, factor, cases that were judged, and cases that were called interpolated."""
    result = []
    for way, factor in dict.fromkeys((row["way"], row["factor"]) for row in rows):
        verdicts = [
            row["verdict"]
            for row in rows
            if (row["way"], row["factor"]) == (way, factor) and row["verdict"] != "unknown"
        ]
        found = sum(verdict != "native" for verdict in verdicts)
        result.append((str(way), float(factor), len(verdicts), found))
    return result


def main(arguments: list[str]) -> int:
    """Print the counts and write every verdict."""
    rows: list[dict[str, str | float]] = []
    for path in sorted(Path(arguments[0]).rglob("*.nii.gz")):
        rows += evaluate(path)
        print(path.name, flush=True)
    if len(arguments) > 1:
        write_text(table_text(rows, list(rows[0])), Path(arguments[1]))
    for way, factor, judged, found in summarise(rows):
        print(f"{way:14} x{factor:<5g} {found:4d} of {judged:4d} called interpolated")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
