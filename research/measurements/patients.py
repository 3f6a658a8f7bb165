# SPDX-License-Identifier: Apache-2.0
"""Are the lesions of real patients kept? Every bright spot of a FLAIR scan before and after.

``python -m research.measurements.patients OUT --scans FILE… --model NAME`` finds the bright spots
deep in the brain of thick-sliced scans, super-resolves the scans as the app does (sidecars beside
the files are read), and writes the contrast of every spot in the input, after cubic interpolation
and in the result, with a picture of each.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options
from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.preprocessing.measured_voxels import declared_acquisition, find_measured
from bids_moediff.runtime.sink import table_text, write_text

Row = dict[str, Any]
BRIGHT = 2.5  # robust standard deviations above the surroundings
AROUND = 7.0  # mm, width of the surroundings
DEPTH = 10.0  # mm from the outline of the brain
SMALLEST, LARGEST = 30.0, 20_000.0  # mm3
RING = (3.0, 7.0)  # mm around a spot: its surroundings
COLUMNS = (
    "scan", "spot", "volume_mm3", "x", "y", "z", "contrast", "cubic", "result", "peak_cubic",
    "peak_result",
)  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """One bright spot on the input grid: its mask in a box, and the ring around it."""

    box: tuple[slice, slice, slice]
    inside: np.ndarray
    ring: np.ndarray
    centre: tuple[int, int, int]
    volume: float


def find_spots(data: np.ndarray, brain: np.ndarray, zooms: Triple) -> list[Spot]:
    """Bright spots of (x, y, z) `data` deep in the `brain`, largest first."""
    inside, sigma = brain.astype(np.float32), [AROUND / zoom for zoom in zooms]
    share = np.maximum(ndimage.gaussian_filter(inside, sigma), 1e-3)
    above = data - ndimage.gaussian_filter(data * inside, sigma) / share
    depth = ndimage.distance_transform_edt(brain, sampling=zooms)
    bright = (above > BRIGHT * _spread(above[brain])) & (depth > DEPTH)
    values = data[brain]
    bright &= data > np.median(values) + _spread(values)
    labels, count = ndimage.label(bright)
    voxel = float(np.prod(zooms))
    volumes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel
    boxes = ndimage.find_objects(labels)
    spots = []
    for index in np.argsort(-volumes):
        if not SMALLEST <= volumes[index] <= LARGEST:
            continue
        reach = [int(np.ceil(RING[1] / zoom)) + 1 for zoom in zooms]
        box = tuple(
            slice(max(0, part.start - r), min(size, part.stop + r))
            for part, r, size in zip(boxes[index], reach, data.shape, strict=True)
        )
        inside = labels[box] == index + 1
        away = ndimage.distance_transform_edt(~inside, sampling=zooms)
        ring = (away > RING[0]) & (away < RING[1]) & brain[box] & (labels[box] == 0)
        peak = np.unravel_index(np.argmax(np.where(inside, data[box], -np.inf)), inside.shape)
        centre = tuple(int(p) + part.start for p, part in zip(peak, box, strict=True))
        if ring.sum() > 20:
            spots.append(Spot(box, inside, ring, centre, float(volumes[index])))  # type: ignore[arg-type]
    return spots


def _spread(values: np.ndarray) -> float:
    """Robust standard deviation."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def contrast(spot: Spot, image: np.ndarray, ratios: Triple) -> tuple[float, float]:
    """Mean and peak of a spot over the median of its ring, on a grid `ratios` times finer.

    `image` (X, Y, Z) shares the outer corner with the input; a fine voxel belongs to the input
    voxel that holds its centre.
    """
    index, part = [], []
    for axis, cut in enumerate(spot.box):
        where = ((np.arange(image.shape[axis]) + 0.5) / ratios[axis]).astype(int)
        chosen = np.flatnonzero((where >= cut.start) & (where < cut.stop))
        index.append(chosen)
        part.append(where[chosen] - cut.start)
    fine = image[np.ix_(*index)]
    inside, ring = spot.inside[np.ix_(*part)], spot.ring[np.ix_(*part)]
    ground = float(np.median(fine[ring]))
    return float(fine[inside].mean()) - ground, float(np.percentile(fine[inside], 98)) - ground


def crop(
    image: nib.Nifti1Image, mask: nib.Nifti1Image, most: int
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Box around the brain, with the middle `most` planes along the slice axis at most."""
    inside = np.asarray(mask.dataobj) > 0
    slices = int(np.argmax(voxel_sizes(image.affine)))
    box = []
    for axis, where in enumerate(np.nonzero(inside)):
        low, high = max(0, int(where.min()) - 4), min(inside.shape[axis], int(where.max()) + 5)
        if axis == slices and high - low > most:
            low = (low + high - most) // 2
            high = low + most
        box.append(slice(low, high))
    part = (box[0], box[1], box[2])
    return image.slicer[part], mask.slicer[part]


def examine(
    path: Path, resolver: SuperResolver, zooms: Triple | None = None, most: int = 1000
) -> tuple[list[Row], list[Spot], dict[str, np.ndarray], tuple[Triple, Triple]]:
    """Rows, spots and images (input, cubic, result) of one scan, and both voxel sizes."""
    image = conform(path)[0]
    image, mask = crop(image, brain_mask(image)[0], most)
    stored = voxel_sizes(image.affine)
    target = zooms or tuple(min(size, 1.0) for size in stored)
    measured = find_measured(image, mask)
    inputs = Inputs(mask=measured.mask, acquisition=declared_acquisition(measured, {}).acquisition)
    options = Options(output_resolution=(target[0], target[1], target[2]))
    result = resolver.enhance(measured.image, options, inputs).image
    data = np.asarray(image.dataobj, dtype=np.float32)
    fine = voxel_sizes(result.affine)
    shape = (result.shape[0], result.shape[1], result.shape[2])
    cubic = interpolate(torch.from_numpy(data), stored, shape, fine).numpy()
    images = {"input": data, "cubic": cubic, "result": np.asarray(result.dataobj, np.float32)}
    spots = find_spots(data, np.asarray(mask.dataobj) > 0, stored)
    ones = (1.0, 1.0, 1.0)
    ratios = (stored[0] / fine[0], stored[1] / fine[1], stored[2] / fine[2])
    rows = []
    for number, spot in enumerate(spots, 1):
        own, peak = contrast(spot, data, ones)
        made = {name: contrast(spot, images[name], ratios) for name in ("cubic", "result")}
        rows.append(
            {
                "scan": path.name.split(".")[0], "spot": number, "volume_mm3": spot.volume,
                **dict(zip("xyz", spot.centre, strict=True)), "contrast": own,
                "cubic": made["cubic"][0] / own, "result": made["result"][0] / own,
                "peak_cubic": made["cubic"][1] / peak, "peak_result": made["result"][1] / peak,
            }
        )  # fmt: skip
    return rows, spots, images, (stored, fine)


def draw(
    spots: list[Spot], images: dict[str, np.ndarray], sizes: tuple[Triple, Triple], path: Path,
    most: int = 12,
) -> None:  # fmt: skip
    """Every spot (the largest `most`) in plane and through the slices: input, cubic, result."""
    from matplotlib.figure import Figure

    from bids_moediff.evaluation.summary import save_figure

    spots = spots[:most]
    stored, fine = sizes
    names = list(images)
    figure = Figure(
        figsize=(1.5 * 2 * len(names), 1.5 * len(spots) + 0.3), facecolor="black",
        layout="constrained",
    )  # fmt: skip
    panels = figure.subplots(len(spots), 2 * len(names), squeeze=False)
    slices = int(np.argmax(stored))
    top = float(np.percentile(images["input"][images["input"] > 0], 99.7))
    for row, spot in enumerate(spots):
        for column, (name, view) in enumerate((n, v) for v in (0, 1) for n in names):
            zooms = stored if name == "input" else fine
            # In plane the slice is cut, and then one of the two other axes.
            cut = slices if view == 0 else (slices + 1) % 3
            place = [
                round((c + 0.5) * s / z - 0.5)
                for c, s, z in zip(spot.centre, stored, zooms, strict=True)
            ]
            part: list[Any] = []
            for axis in range(3):
                reach = round(18 / zooms[axis])
                size = images[name].shape[axis]
                wide = slice(max(0, place[axis] - reach), min(size, place[axis] + reach + 1))
                part.append(min(place[axis], size - 1) if axis == cut else wide)
            rest = [axis for axis in range(3) if axis != cut]
            panel = panels[row, column]
            panel.imshow(
                images[name][tuple(part)].T, "gray", origin="lower", vmin=0, vmax=top,
                aspect=zooms[rest[1]] / zooms[rest[0]], interpolation="nearest",
            )  # fmt: skip
            panel.set_axis_off()
            if row == 0:
                panel.set_title(name, color="white", fontsize=8)
    save_figure(figure, path)


def markdown(rows: list[Row]) -> str:
    """Per scan: how many spots, and the least and the median contrast kept."""
    lines = [
        "| scan | bright spots | contrast kept: least, median | cubic | peak kept: least, median "
        "| cubic |",
        "|---|---|---|---|---|---|",
    ]
    for scan in dict.fromkeys(row["scan"] for row in rows):
        mine = [row for row in rows if row["scan"] == scan]
        cells = [
            f"{min(row[name] for row in mine):.2f}, {np.median([row[name] for row in mine]):.2f}"
            for name in ("result", "cubic", "peak_result", "peak_cubic")
        ]
        lines.append(f"| {scan} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Table, page and one picture a scan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--scans", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--model", default="moediff")
    parser.add_argument("--zooms", type=float, nargs=3, metavar="MM", default=None)
    parser.add_argument(
        "--slices", type=int, default=1000, metavar="N", help="only the middle N slices"
    )
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(1)
    resolver = SuperResolver.from_pretrained(options.model)
    zooms = tuple(options.zooms) if options.zooms else None
    rows: list[Row] = []
    for path in options.scans:
        found, spots, images, sizes = examine(path, resolver, zooms, options.slices)
        rows += found
        name = path.name.split(".")[0]
        if spots:
            draw(spots, images, sizes, options.output / f"lesions_{name}.png")
        print(f"{name}: {len(spots)} bright spots", flush=True)
    write_text(table_text(rows, list(COLUMNS)), options.output / "spots.tsv")
    write_text(markdown(rows), options.output / "spots.md")
    print(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
