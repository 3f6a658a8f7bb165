# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of a report: each function writes one file, with the same bytes every time.

The input is shown at its own voxels, never smoothed, in the same window and at the same scale as
the result. So sharpness in a picture is sharpness of the image.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from PIL import Image
from scipy import ndimage

from bids_moediff.reports import canvas
from bids_moediff.reports.canvas import GAP, NORMAL, PLANES, Canvas, Frame, Volume
from bids_moediff.runtime.sink import write_bytes

ORDER = ("axial", "coronal", "sagittal")
MARGIN = 18.0  # mm around the brain
CROP = 44.0  # mm, side of a zoomed crop
WIDEST = 1900  # pixels
THUMBNAIL = 120  # pixels
# Told apart by all eyes (Okabe and Ito).
LABEL_COLOURS = (
    (230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66), (213, 94, 0),
    (0, 114, 178),
)  # fmt: skip
# What the experts of MoEDiff-SR are meant for.
MEANINGS = {
    "smooth": "smooth (white-matter core)",
    "cortex": "cortex",
    "junction": "junction (grey-white border)",
}
DIFFERENCE_MAP = "berlin" if "berlin" in colormaps else "RdBu_r"


@dataclass(frozen=True)
class Overlay:
    """A product to draw over a scene: names of its volumes or labels, and words in the picture."""

    volume: Volume
    names: Sequence[str] = ()
    words: str = ""


@dataclass(frozen=True)
class Expert:
    """Words and colour of an expert."""

    words: str
    colour: tuple[int, int, int]


def experts(overlay: Overlay, count: int) -> list[Expert]:
    """Return words and colours of the first ``count`` experts; colours may repeat."""
    shown = []
    for number in range(count):
        words = f"expert {number + 1}"
        if number < len(overlay.names):
            name = overlay.names[number]
            words += f", {MEANINGS.get(name, name)}"
        shown.append(Expert(words, LABEL_COLOURS[number % len(LABEL_COLOURS)]))
    return shown


@dataclass(frozen=True)
class Scene:
    """Shared content of the pictures of one image: volumes, frame, slices and grey window."""

    original: Volume
    enhanced: Volume
    mask: Volume | None
    frame: Frame
    positions: Mapping[str, float]
    window: tuple[float, float]

    @property
    def panels(self) -> dict[str, tuple[int, int]]:
        """Return left edge and width of each plane's panel in a row of the three planes."""
        left, result = 0, {}
        for plane in ORDER:
            width = self.frame.size(plane)[0]
            result[plane] = (left, width)
            left += width + GAP
        return result

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of a row of the three planes."""
        width = sum(self.frame.size(plane)[0] for plane in ORDER) + 2 * GAP
        return width, max(self.frame.size(plane)[1] for plane in ORDER)


def make_scene(
    original: nib.Nifti1Image, enhanced: nib.Nifti1Image, mask: nib.Nifti1Image | None = None
) -> Scene:
    """Set the frame around the brain, slices through its middle, and a window from the tissue.

    Parameters
    ----------
    original, enhanced
        3-D images with the same orientation and field of view.
    mask
        Brain mask on the grid of ``original``; without it, the brightest half counts as brain.
    """
    source, result = Volume.from_image(original), Volume.from_image(enhanced)
    brain = None if mask is None else Volume.from_image(mask)
    if brain is not None and brain.data.any():
        where = brain.data > 0
    else:
        where = source.data > np.percentile(source.data, 50)
        where = where if where.any() else np.ones_like(where)
    # Voxels of the brain in each slice: one pass an axis, where a centre of mass makes many.
    counts = [where.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    centre = np.array([np.average(np.arange(len(c)), weights=c) for c in counts])
    box = [(int(i.min()), int(i.max()) + 1) for c in counts for i in np.nonzero(c)]
    low, high = (
        source.start + source.zooms * np.array([edges[end] for edges in box]) for end in (0, 1)
    )
    low, high = np.maximum(low - MARGIN, source.start), np.minimum(high + MARGIN, source.stop)
    middle = source.start + source.zooms * (centre + 0.5)
    # Slightly off the midline, where a sagittal slice shows cortex and not the falx.
    middle[0] += min(8.0, 0.1 * (high[0] - low[0]))
    values = source.data[where]
    low_grey, high_grey = np.percentile(values, [0.5, 99.7])
    window = (float(min(low_grey, 0.0)), float(1.05 * high_grey))
    positions = {plane: float(middle[NORMAL[plane]]) for plane in ORDER}
    frame = Frame(low, high, _scale(low, high, result))
    return Scene(source, result, brain, frame, positions, window)


def _scale(low: np.ndarray, high: np.ndarray, result: Volume) -> float:
    """Return pixels per mm: whole pixels per voxel of the result, as many as fit."""
    extent = high - low
    total = sum(extent[PLANES[plane][0]] for plane in ORDER)
    finest = float(result.zooms.min())
    pixels = max(1, int(WIDEST * finest / total))
    return min(pixels / finest, WIDEST / total) if pixels == 1 else pixels / finest


def _zooms(volume: Volume) -> str:
    return " x ".join(f"{zoom:.3g}" for zoom in volume.zooms) + " mm"


def _row(scene: Scene, paint: Mapping[str, np.ndarray], title: str, extra: int = 0) -> Canvas:
    """Return a row of the three planes with letters, slice positions, scale bar and a title."""
    width, height = scene.size
    board = Canvas(width + extra, height + 30)
    middle = (scene.frame.low + scene.frame.high) / 2
    board.write(title, 6, 6, fontweight="bold")
    for plane, (left, panel_width) in scene.panels.items():
        top = 30 + (height - scene.frame.size(plane)[1]) // 2
        board.put(paint[plane], left, top)
        board.letters(plane, left, top, scene.frame.size(plane))
        axis = "xyz"[NORMAL[plane]]
        place = scene.original.world(plane, scene.positions[plane], middle)
        words = f"{axis} = {place:.0f} mm"
        board.write(words, left + panel_width - 6, top + 4, "right", fontsize=9)
    board.scale_bar(0, 30 + height, scene.frame.scale, 20)
    return board


def _greys(scene: Scene, volume: Volume) -> dict[str, np.ndarray]:
    return {
        plane: canvas.grey(
            canvas.draw_plane(volume, scene.frame, plane, scene.positions[plane]), scene.window
        )
        for plane in ORDER
    }


def write_row(scene: Scene, paint: Mapping[str, np.ndarray], title: str, path: Path) -> Path:
    """Write pixels of the three planes (height, width, 3), with letters, positions and a title."""
    return _row(scene, paint, title).save(path)


def write_input(scene: Scene, path: Path) -> Path:
    """Write the input at its own voxels in three planes."""
    title = f"Input, voxels of {_zooms(scene.original)}"
    return _row(scene, _greys(scene, scene.original), title).save(path)


def write_result(scene: Scene, path: Path) -> Path:
    """Write the super-resolved image: same planes, window and scale as :func:`write_input`."""
    title = f"Super-resolved, voxels of {_zooms(scene.enhanced)}"
    return _row(scene, _greys(scene, scene.enhanced), title).save(path)


def write_thumbnail(scene: Scene, path: Path) -> Path:
    """Write the axial plane of the result, small, for lists of images."""
    drawn = canvas.draw_plane(scene.enhanced, scene.frame, "axial", scene.positions["axial"])
    picture = Image.fromarray(canvas.grey(drawn, scene.window)[..., 0])
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=9)
    return write_bytes(stream.getvalue(), path)


@dataclass(frozen=True)
class CubicVolume(Volume):
    """Cubic B-spline interpolation of the input on the grid of the result, in visible slices only.

    ``data`` has the right shape but no values: the whole volume would cost a minute for nothing.
    """

    slices: Mapping[str, np.ndarray]

    def slice_at(self, plane: str, position: float) -> np.ndarray:
        """Return the voxels (horizontal, vertical) of the visible slice of this plane."""
        return self.slices[plane]


def cubic_on(scene: Scene) -> CubicVolume:
    """Return cubic B-spline interpolation of the input on the grid of the result."""
    original, enhanced = scene.original, scene.enhanced
    ratio = enhanced.zooms / original.zooms
    corner = (enhanced.start + enhanced.zooms / 2 - original.start) / original.zooms - 0.5
    coefficients = ndimage.spline_filter(original.data, output=np.float32)
    slices = {}
    for plane, position in scene.positions.items():
        axis, shape, first = NORMAL[plane], list(enhanced.data.shape), corner.copy()
        index = int(np.clip(enhanced.index(axis, position), 0, shape[axis] - 1))
        shape[axis], first[axis] = 1, first[axis] + index * ratio[axis]
        part = ndimage.affine_transform(
            coefficients, ratio, first, tuple(shape), mode="mirror", prefilter=False
        )
        slices[plane] = np.take(part, 0, axis=axis)
    space = np.broadcast_to(np.float32(0), enhanced.data.shape)
    return CubicVolume(space, enhanced.zooms, enhanced.start, enhanced.rotation, slices)


def _changes(scene: Scene, cubic: Volume) -> np.ndarray:
    """Return result minus cubic interpolation at the visible pixels.

    Only inside the brain if there is a mask: the rim of a stripped head would dominate.
    """
    parts = []
    for plane, place in scene.positions.items():
        change = canvas.draw_plane(scene.enhanced, scene.frame, plane, place)
        change = change - canvas.draw_plane(cubic, scene.frame, plane, place)
        if scene.mask is not None:
            inside = canvas.draw_plane(scene.mask, scene.frame, plane, place) > 0.5
            change = change[canvas.erode(inside, 6)]
        parts.append(change.ravel())
    return np.concatenate(parts)


def change(scene: Scene, cubic: Volume) -> float:
    """Return the root mean square of result minus cubic interpolation, in input units."""
    changes = _changes(scene, cubic)
    return float(np.sqrt(np.mean(changes**2))) if changes.size else 0.0


def difference_limit(scene: Scene, cubic: Volume) -> float:
    """Return half the width of the difference's colour scale: its 99.5th percentile."""
    sizes = np.abs(_changes(scene, cubic))
    return (float(np.percentile(sizes, 99.5)) if sizes.size else 0.0) or 1.0


def write_difference(scene: Scene, cubic: Volume, path: Path) -> Path:
    """Write the detail added to cubic interpolation: signed, centred, in input units."""
    limit = difference_limit(scene, cubic)
    paint = {
        plane: canvas.coloured(
            canvas.draw_plane(scene.enhanced, scene.frame, plane, place)
            - canvas.draw_plane(cubic, scene.frame, plane, place),
            (-limit, limit),
            DIFFERENCE_MAP,
        )
        for plane, place in scene.positions.items()
    }
    title = "Super-resolved minus cubic interpolation"
    board = _row(scene, paint, title, extra=90)
    board.colour_bar(scene.size[0] + 16, 60, 260, (-limit, limit), DIFFERENCE_MAP, "input units")
    return board.save(path)


def write_mask(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write the outline of a mask on the input, in three planes."""
    paint = _greys(scene, scene.original)
    for plane, place in scene.positions.items():
        drawn = canvas.draw_plane(overlay.volume, scene.frame, plane, place) > 0.5
        paint[plane][canvas.outline(drawn)] = (255, 92, 92)
    return _row(scene, paint, overlay.words).save(path)


def write_amount(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write a map in input units from zero upwards, such as the expected error."""
    volume = overlay.volume
    top = float(np.percentile(volume.data[::2, ::2, ::2], 99.8)) or 1.0
    paint = {
        plane: canvas.coloured(
            canvas.draw_plane(volume, scene.frame, plane, place), (0, top), "inferno"
        )
        for plane, place in scene.positions.items()
    }
    board = _row(scene, paint, overlay.words, extra=90)
    board.colour_bar(scene.size[0] + 16, 60, 260, (0, top), "inferno", "input units")
    return board.save(path)


def write_gates(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write the weight of each expert (last axis), a row per expert, over the result."""
    tissue = _greys(scene, scene.enhanced)
    weights = {
        plane: canvas.draw_plane(overlay.volume, scene.frame, plane, place)
        for plane, place in scene.positions.items()
    }
    width, height = scene.size
    shown = experts(overlay, overlay.volume.data.shape[3])
    board = Canvas(width + 90, len(shown) * (height + 30))
    for number, expert in enumerate(shown):
        top = number * (height + 30)
        board.write(f"Weight of {expert.words}", 6, top + 6, fontweight="bold")
        for plane, (left, _) in scene.panels.items():
            colour = canvas.coloured(weights[plane][..., number], (0, 1), "viridis")
            panel = np.rint(colour * (0.25 + 0.75 / 255 * tissue[plane])).astype(np.uint8)
            size = scene.frame.size(plane)
            board.put(panel, left, top + 30 + (height - size[1]) // 2)
            board.letters(plane, left, top + 30 + (height - size[1]) // 2, size)
        board.colour_bar(width + 16, top + 60, 220, (0, 1), "viridis", "weight")
    return board.save(path)


def write_changes(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write signed changes by the experts (last axis), a row per expert, on one colour scale."""
    data = overlay.volume.data
    top = float(np.percentile(np.abs(data[::2, ::2, ::2]).max(3), 99.8)) or 1.0
    drawn = {
        plane: canvas.draw_plane(overlay.volume, scene.frame, plane, place)
        for plane, place in scene.positions.items()
    }
    width, height = scene.size
    shown = experts(overlay, data.shape[3])
    board = Canvas(width + 90, len(shown) * (height + 30))
    for number, expert in enumerate(shown):
        row = number * (height + 30)
        board.write(f"Added by {expert.words}", 6, row + 6, fontweight="bold")
        for plane, (left, _) in scene.panels.items():
            panel = canvas.coloured(drawn[plane][..., number], (-top, top), DIFFERENCE_MAP)
            size = scene.frame.size(plane)
            board.put(panel, left, row + 30 + (height - size[1]) // 2)
            board.letters(plane, left, row + 30 + (height - size[1]) // 2, size)
    board.colour_bar(width + 16, 60, 220, (-top, top), DIFFERENCE_MAP, "input units")
    return board.save(path)


def write_winner(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write the expert with the largest weight (labels from 1), in colours over the result."""
    shown = experts(overlay, max(len(overlay.names), int(overlay.volume.data.max()), 1))
    table = np.array([expert.colour for expert in shown], dtype=np.float32)
    paint = _greys(scene, scene.enhanced)
    for plane, place in scene.positions.items():
        drawn = canvas.draw_plane(overlay.volume, scene.frame, plane, place).astype(int)
        # Brightness stays the tissue's, hue is the expert's.
        shade = 0.25 + 0.75 * table[np.maximum(drawn, 1) - 1] / 255
        paint[plane] = np.rint(paint[plane] * shade).astype(np.uint8)
    board = _row(scene, paint, overlay.words)
    left = 330.0
    for expert in shown:
        colour = "#{:02x}{:02x}{:02x}".format(*expert.colour)
        board.write("■ " + expert.words, left, 6, color=colour)
        left += 40 + 8 * len(expert.words)
    return board.save(path)


def write_kernels(scene: Scene, overlay: Overlay, path: Path) -> Path:
    """Write labels of a small region, each in a colour over the result, enlarged."""
    places = [np.flatnonzero(overlay.volume.data.any(tuple({0, 1, 2} - {a}))) for a in range(3)]
    if not all(len(found) for found in places):
        places = [np.arange(size) for size in overlay.volume.data.shape[:3]]
    table = np.array([(255, 255, 255), *LABEL_COLOURS], dtype=np.float32)
    side = 320
    board = Canvas(3 * (side + GAP), side + 30)
    board.write(overlay.words, 6, 6, fontweight="bold")
    for number, plane in enumerate(ORDER):
        axis = NORMAL[plane]
        cut: list[Any] = [slice(found[0], found[-1] + 1) for found in places]
        cut[axis] = int(places[axis][len(places[axis]) // 2])
        labels = overlay.volume.data[tuple(cut)].astype(int)
        tissue = canvas.grey(scene.enhanced.data[tuple(cut)], scene.window).astype(np.float32)
        colour = table[np.where(labels > 0, 1 + labels % len(LABEL_COLOURS), 0)]
        panel = np.rint(tissue * (0.35 + 0.65 * colour / 255)).astype(np.uint8)
        panel = panel.swapaxes(0, 1)[::-1, ::-1]  # right and front at the left, as elsewhere
        factor = max(1, side // max(panel.shape[:2]))
        panel = panel.repeat(factor, 0).repeat(factor, 1)[:side, :side]
        board.put(panel, number * (side + GAP), 30)
        board.letters(plane, number * (side + GAP), 30, (panel.shape[1], panel.shape[0]))
    return board.save(path)


# Drawers of products, by the name in their row (bids/products.py).
DRAW: Mapping[str, Callable[[Scene, Overlay, Path], Path]] = {
    "outline": write_mask,
    "amount": write_amount,
    "expert weights": write_gates,
    "leading expert": write_winner,
    "changes": write_changes,
    "kernels": write_kernels,
}


def depth_in_brain(scene: Scene, plane: str) -> np.ndarray:
    """Return the distance in mm (in the plane) of each pixel to the brain's outline; 0 outside."""
    position = scene.positions[plane]
    if scene.mask is None:
        inside = canvas.draw_plane(scene.original, scene.frame, plane, position) > 0
    else:
        inside = canvas.draw_plane(scene.mask, scene.frame, plane, position) > 0.5
    return ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] / scene.frame.scale


def informative_places(scene: Scene) -> dict[str, Frame]:
    """Return in each plane the square of 44 mm with most cortex edges, by the input alone."""
    places = {}
    for plane, position in scene.positions.items():
        drawn = canvas.draw_plane(scene.original, scene.frame, plane, position)
        depth = depth_in_brain(scene, plane)
        energy = ndimage.gaussian_gradient_magnitude(drawn, 1.0 * scene.frame.scale)
        # Edges inside the brain but near its outline: neither the rim of the head nor ventricles.
        # Capped, so that many edges count for more than one strong one.
        near = (depth > 4) & (depth < 35)
        cap = np.percentile(energy[near], 85) if near.any() else 0.0
        energy = np.where(near, np.minimum(energy, cap), 0)
        side = max(3, round(CROP * scene.frame.scale))
        score = ndimage.uniform_filter(energy, side, mode="constant")
        score = np.where((depth > 12) & (depth < 26), score, 0)
        row, column = np.unravel_index(int(np.argmax(score)), score.shape)
        columns, rows = scene.frame.positions(plane)
        across, up = PLANES[plane]
        centre = np.zeros(3)
        centre[across], centre[up] = columns[column], rows[row]
        scale = max(1, round(8 * scene.enhanced.zooms.min())) / scene.enhanced.zooms.min()
        places[plane] = Frame(centre - CROP / 2, centre + CROP / 2, float(scale))
    return places


def write_crops(scene: Scene, cubic: Volume, path: Path) -> Path:
    """Write enlarged squares: input, cubic interpolation, result, and result minus cubic."""
    places = informative_places(scene)
    limit = difference_limit(scene, cubic)
    side = next(iter(places.values())).size("axial")[0]
    board = Canvas(4 * side + 3 * GAP + 90, 3 * (side + GAP) + 30)
    heads = ("Input", "Cubic interpolation", "Super-resolved", "Super-resolved - cubic")
    for column, words in enumerate(heads):
        board.write(words, column * (side + GAP) + 6, 6, fontweight="bold")
    for row, (plane, frame) in enumerate(places.items()):
        top, place = 30 + row * (side + GAP), scene.positions[plane]
        volumes = (scene.original, cubic, scene.enhanced)
        drawn = [canvas.draw_plane(volume, frame, plane, place) for volume in volumes]
        panels = [canvas.grey(values, scene.window) for values in drawn]
        panels.append(canvas.coloured(drawn[2] - drawn[1], (-limit, limit), DIFFERENCE_MAP))
        for column, panel in enumerate(panels):
            board.put(panel, column * (side + GAP), top)
        board.letters(plane, 0, top, (side, side))
        board.scale_bar(0, top + side, frame.scale, 10)
    left = 4 * side + 3 * GAP + 16
    board.colour_bar(left, 60, 220, (-limit, limit), DIFFERENCE_MAP, "input units")
    return board.save(path)
