# SPDX-License-Identifier: Apache-2.0
"""Draw line plots of a report, as SVG with the same bytes every time."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from bids_moediff.reports import canvas
from bids_moediff.reports.canvas import PLANES, Volume
from bids_moediff.reports.figures import Scene, depth_in_brain
from bids_moediff.runtime.sink import write_bytes

LENGTH = 32.0  # mm of a profile
STYLES: dict[str, dict[str, Any]] = {
    "input": {"color": "#777777", "linewidth": 1.4},
    "cubic interpolation": {"color": "#0072b2", "linewidth": 1.4, "linestyle": "--"},
    "super-resolved": {"color": "#d55e00", "linewidth": 1.8},
}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "bids_moediff",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def _save(figure: Figure, path: Path) -> Path:
    stream = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return write_bytes(stream.getvalue(), path)


def profile_place(scene: Scene) -> tuple[str, int, float, float]:
    """Return plane, voxel axis, position across it and centre along it (mm) of the profile.

    It is the axis that gained most, and the line that crosses most edges of the input near the
    outline of the brain, in a slice of the other pictures.
    """
    gain = scene.original.zooms / scene.enhanced.zooms
    gain = gain + np.array([0.002, 0.001, 0])  # of equal gains the first axis
    axis = int(np.argmax(gain))
    plane = next(p for p in ("axial", "coronal", "sagittal") if axis in PLANES[p])
    across, up = PLANES[plane]
    drawn = canvas.draw_plane(scene.original, scene.frame, plane, scene.positions[plane])
    along = 1 if axis == across else 0
    width = scene.frame.scale * float(scene.original.zooms[axis])
    depth = depth_in_brain(scene, plane)
    near = (depth > 6) & (depth < 28)
    steep = np.where(near, np.abs(canvas.slope(drawn, width, along)), 0)
    # Capped and summed along the line: many folds count for more than one strong edge.
    cap = np.percentile(steep[near], 85) if near.any() else 0.0
    length = max(3, round(0.75 * LENGTH * scene.frame.scale))
    steep = ndimage.uniform_filter1d(np.minimum(steep, cap), length, axis=along) * (depth > 10)
    row, column = np.unravel_index(int(np.argmax(steep)), steep.shape)
    columns, rows = scene.frame.positions(plane)
    places = {across: float(columns[column]), up: float(rows[row])}
    other = up if axis == across else across
    return plane, axis, places[other], places[axis]


def profile(
    volume: Volume, plane: str, axis: int, slice_place: float, across: float, centre: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (mm) and values of the voxels along a line, without interpolation."""
    values = volume.slice_at(plane, slice_place)
    first, second = PLANES[plane]
    other = second if axis == first else first
    size = values.shape[1 if axis == first else 0]
    index = int(np.clip(volume.index(other, across), 0, size - 1))
    line = values[:, index] if axis == first else values[index, :]
    positions = volume.start[axis] + (np.arange(len(line)) + 0.5) * volume.zooms[axis]
    near = np.abs(positions - centre) <= LENGTH / 2
    return positions[near], line[near]


def write_profile(scene: Scene, cubic: Volume, path: Path) -> Path:
    """Write intensity along a line across cortex: input as steps, cubic and result as lines."""
    plane, axis, across, centre = profile_place(scene)
    place = scene.positions[plane]
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 2.4))
        _locate(left, scene, plane, axis, across, centre)
        for words, volume in (
            ("input", scene.original),
            ("cubic interpolation", cubic),
            ("super-resolved", scene.enhanced),
        ):
            positions, values = profile(volume, plane, axis, place, across, centre)
            options = dict(STYLES[words], label=words)
            if words == "input":
                right.step(positions - centre, values, where="mid", **options)
            else:
                right.plot(positions - centre, values, **options)
        direction = ("left-right", "posterior-anterior", "inferior-superior")[axis]
        right.set_xlabel(f"mm along the line ({direction})")
        right.set_ylabel("intensity (input units)")
        right.legend(frameon=False, loc="best")
    return _save(figure, path)


def _locate(axes: Axes, scene: Scene, plane: str, axis: int, across: float, centre: float) -> None:
    """Draw a small picture of the plane with the line in it."""
    drawn = canvas.draw_plane(scene.original, scene.frame, plane, scene.positions[plane])
    columns, rows = scene.frame.positions(plane)
    step = max(1, len(columns) // 220)
    axes.imshow(
        canvas.grey(drawn, scene.window)[::step, ::step],
        extent=(columns[0], columns[-1], rows[-1], rows[0]),
        interpolation="nearest",
    )
    ends = np.array([centre - LENGTH / 2, centre + LENGTH / 2])
    fixed = np.array([across, across])
    horizontal = PLANES[plane][0] == axis
    axes.plot(*((ends, fixed) if horizontal else (fixed, ends)), color="#d55e00", linewidth=1.5)
    axes.set_axis_off()
    axes.set_title(f"{plane} plane", fontsize=9)


def intensity_step(values: np.ndarray) -> float:
    """Return the step between intensities stored as whole numbers; 0 if there is none."""
    found = np.unique(values[:: max(1, values.shape[0] // 40)])
    if len(found) < 2 or len(found) > 65536:
        return 0.0
    gaps = np.diff(found)
    step = float(gaps.min())
    whole = np.abs(gaps / step - np.rint(gaps / step)).max() < 0.01
    return step if whole and step > 1e-4 * float(np.ptp(found)) else 0.0


def bin_edges(low: float, high: float, step: float, count: int = 160) -> np.ndarray:
    """Return edges of about ``count`` bins; each holds the same number of intensity steps.

    Bins of other widths would hold now two, now three of the intensities of the scan: a comb.
    """
    if step <= 0:
        return np.linspace(low, high, count + 1)
    width = step * max(1, round((high - low) / count / step))
    first = np.floor(low / step) * step - step / 2
    return np.arange(first, high + width, width)


def write_histogram(scene: Scene, path: Path) -> Path:
    """Write intensities inside the brain mask, input and result: the contrast must not move."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.5, 2.8), layout="constrained")
        axes = figure.subplots()
        low, high = scene.window
        edges = bin_edges(low, 1.1 * high, intensity_step(scene.original.data))
        for words, volume in (("input", scene.original), ("super-resolved", scene.enhanced)):
            density, _ = np.histogram(_inside(scene, volume), edges, density=True)
            axes.stairs(density, edges, label=words, **STYLES[words])
        axes.set_xlabel("intensity (input units)")
        axes.set_ylabel("share of brain voxels")
        axes.set_yticks([])
        axes.legend(frameon=False)
    return _save(figure, path)


def _inside(scene: Scene, volume: Volume) -> np.ndarray:
    """Return values of a volume at voxels whose centre is in the brain mask."""
    if scene.mask is None:
        return volume.data[volume.data > 0]
    picks = []
    for axis in range(3):
        count = np.arange(volume.data.shape[axis])
        centres = volume.start[axis] + (count + 0.5) * volume.zooms[axis]
        picks.append(np.clip(scene.mask.index(axis, centres), 0, scene.mask.data.shape[axis] - 1))
    inside = scene.mask.data > 0
    for axis, pick in enumerate(picks):
        inside = inside.take(pick, axis)
    return volume.data[inside]
