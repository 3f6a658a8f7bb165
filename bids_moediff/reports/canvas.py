# SPDX-License-Identifier: Apache-2.0
"""Draw planes of a volume as pixels: true scale, radiological orientation, nothing resampled.

Plotting libraries resample to a world-aligned grid first, which would hide the voxels that these
pictures show. Here a pixel takes the value of the voxel that it lies in, and volumes on different
grids are drawn in the same frame of millimetres. The same input gives the same bytes.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy import ndimage

from bids_moediff.runtime.sink import write_bytes

GAP = 8  # pixels between panels
DOTS = 100
FOREGROUND = "#f2f2f2"
FONT = 11.0
# Horizontal and vertical axis of each plane in RAS order, and the letters at its four sides:
# left, right, top, bottom. Radiological: the patient's right is at the viewer's left.
PLANES = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}
LETTERS = {
    "axial": ("R", "L", "A", "P"),
    "coronal": ("R", "L", "S", "I"),
    "sagittal": ("A", "P", "S", "I"),
}
NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class Volume:
    """A volume in closest-to-RAS voxel order, with its place in a frame of millimetres.

    The axes of the frame are the voxel axes of the volume. So oblique scans are not interpolated,
    and two grids of the same orientation share a frame. ``start`` is the outer corner of the first
    voxel in mm.
    """

    data: np.ndarray
    zooms: np.ndarray
    start: np.ndarray
    rotation: np.ndarray

    @classmethod
    def from_image(cls, image: nib.Nifti1Image, dtype: type = np.float32) -> "Volume":
        """Return the volume of a 3-D image (or 4-D: the last axis is kept)."""
        canonical = nib.as_closest_canonical(image)
        affine = canonical.affine
        zooms = nib.affines.voxel_sizes(affine)
        rotation = affine[:3, :3] / zooms
        corner = affine[:3, 3] - affine[:3, :3] @ np.full(3, 0.5)
        start = np.linalg.solve(rotation, corner)
        return cls(np.asarray(canonical.dataobj, dtype=dtype), zooms, start, rotation)

    @property
    def stop(self) -> np.ndarray:
        """Outer corner of the last voxel in mm."""
        return self.start + self.zooms * self.data.shape[:3]

    def index(self, axis: int, position: np.ndarray | float) -> np.ndarray:
        """Return the voxel index of positions in mm along an axis; outside the grid it runs on."""
        return np.floor((np.asarray(position) - self.start[axis]) / self.zooms[axis]).astype(int)

    def slice_at(self, plane: str, position: float) -> np.ndarray:
        """Return the voxels (horizontal, vertical) of the slice at ``position``."""
        axis = NORMAL[plane]
        index = int(np.clip(self.index(axis, position), 0, self.data.shape[axis] - 1))
        # Not np.take: it copies a whole volume whose first axis runs fastest, as NIfTI's does.
        return np.moveaxis(self.data, axis, 0)[index]

    def world(self, plane: str, position: float, centre: np.ndarray) -> float:
        """Return the scanner coordinate (mm, RAS) of a slice at the ``centre`` of the view."""
        axis = NORMAL[plane]
        point = np.array(centre, dtype=float)
        point[axis] = position
        return float((self.rotation @ point)[axis])


@dataclass(frozen=True)
class Frame:
    """Visible part of a plane: ``low`` and ``high`` corners in mm (three axes), pixels per mm."""

    low: np.ndarray
    high: np.ndarray
    scale: float

    def size(self, plane: str) -> tuple[int, int]:
        """Return width and height in pixels."""
        across, up = PLANES[plane]
        extent = np.maximum(np.rint((self.high - self.low) * self.scale), 1).astype(int)
        return int(extent[across]), int(extent[up])

    def positions(self, plane: str) -> tuple[np.ndarray, np.ndarray]:
        """Return positions in mm of pixel columns (left to right) and rows (top to bottom)."""
        across, up = PLANES[plane]
        width, height = self.size(plane)
        columns = self.low[across] + (np.arange(width) + 0.5) / self.scale
        rows = self.low[up] + (np.arange(height) + 0.5) / self.scale
        # Right at the viewer's left in axial and coronal planes, anterior at the left in sagittal.
        return columns[::-1], rows[::-1]


def draw_plane(volume: Volume, frame: Frame, plane: str, position: float) -> np.ndarray:
    """Return pixels (height, width[, channels]) of a plane; 0 outside the volume."""
    across, up = PLANES[plane]
    columns, rows = frame.positions(plane)
    values = volume.slice_at(plane, position)
    x, y = volume.index(across, columns), volume.index(up, rows)
    known_x, known_y = (x >= 0) & (x < values.shape[0]), (y >= 0) & (y < values.shape[1])
    known = known_x[None, :] & known_y[:, None]
    x, y = np.clip(x, 0, values.shape[0] - 1), np.clip(y, 0, values.shape[1] - 1)
    drawn = values[x[None, :], y[:, None]]
    return drawn * (known if drawn.ndim == 2 else known[..., None])


def grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Return grey pixels (..., 3) in 8 bits of values in a display window."""
    low, high = window
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.rint(255 * share).astype(np.uint8)[..., None], 3, axis=-1)


def coloured(values: np.ndarray, window: tuple[float, float], name: str) -> np.ndarray:
    """Return colour-mapped pixels (..., 3) in 8 bits of values in a window."""
    low, high = window
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.rint(255 * colormaps[name](share)[..., :3]).astype(np.uint8)


def erode(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return a mask without its outermost ``pixels``; beyond the picture it continues."""
    if pixels < 1:
        return mask
    return ndimage.binary_erosion(mask, iterations=pixels, border_value=1)


def outline(mask: np.ndarray, width: int = 2) -> np.ndarray:
    """Return the inner border of a mask of pixels."""
    return mask & ~erode(mask, width)


def slope(drawn: np.ndarray, width: float, axis: int) -> np.ndarray:
    """Return the derivative of pixels along ``axis`` (0 vertical, 1 horizontal), smoothed."""
    order = (1, 0) if axis == 0 else (0, 1)
    return ndimage.gaussian_filter(drawn.astype(np.float32), 0.6 * width, order=order)


class Canvas:
    """An image to place panels and words on, then to write as PNG."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.zeros((height, width, 3), dtype=np.uint8)
        self._figure = Figure(figsize=(width / DOTS, height / DOTS), dpi=DOTS)

    def put(self, panel: np.ndarray, left: int, top: int) -> None:
        """Place pixels (height, width, 3) with their upper left corner at (left, top)."""
        height, width = panel.shape[:2]
        self.pixels[top : top + height, left : left + width] = panel

    def write(
        self, words: str, left: float, top: float, align: str = "left", **style: Any
    ) -> None:
        """Write words below ``top``; ``align`` is left, center or right of ``left``."""
        height, width = self.pixels.shape[:2]
        # A dark rim keeps letters legible on bright tissue.
        rim = [withStroke(linewidth=2.5, foreground="black")]
        style = {"color": FOREGROUND, "fontsize": FONT, "path_effects": rim, **style}
        self._figure.text(left / width, 1 - top / height, words, ha=align, va="top", **style)

    def letters(self, plane: str, left: int, top: int, size: tuple[int, int]) -> None:
        """Write the sides of the patient at the four sides of a panel."""
        width, height = size
        first, second, upper, lower = LETTERS[plane]
        style: dict[str, Any] = {"fontweight": "bold", "color": "#ffd75e"}
        self.write(first, left + 5, top + height / 2 - 8, **style)
        self.write(second, left + width - 5, top + height / 2 - 8, "right", **style)
        self.write(upper, left + width / 2, top + 4, "center", **style)
        self.write(lower, left + width / 2, top + height - 22, "center", **style)

    def scale_bar(self, left: int, bottom: int, scale: float, length: int) -> None:
        """Draw a bar of ``length`` mm with its lower left corner near (left, bottom)."""
        pixels = round(length * scale)
        self.pixels[bottom - 7 : bottom - 4, left + 8 : left + 8 + pixels] = 242
        self.write(f"{length} mm", left + 8, bottom - 26, fontsize=9)

    def colour_bar(
        self, left: int, top: int, height: int, window: tuple[float, float], name: str, unit: str
    ) -> None:
        """Draw a vertical bar with labels at its ends and middle."""
        ramp = np.linspace(window[1], window[0], height)[:, None].repeat(14, axis=1)
        self.put(coloured(ramp, window, name), left, top)
        for share in (0.0, 0.5, 1.0):
            value = window[1] + share * (window[0] - window[1])
            self.write(f"{value:.3g}", left + 20, top + share * (height - 16), fontsize=9)
        self.write(unit, left, top + height + 6, fontsize=9)

    def save(self, path: Path) -> Path:
        """Write as PNG: the same bytes for the same content."""
        height, width = self.pixels.shape[:2]
        self._figure.patch.set_alpha(0)
        canvas = FigureCanvasAgg(self._figure)
        canvas.draw()
        words = np.asarray(canvas.buffer_rgba())[:height, :width].astype(np.float32)
        cover = words[..., 3:] / 255
        mixed = self.pixels * (1 - cover) + words[..., :3] * cover
        stream = io.BytesIO()
        pixels = np.rint(mixed).astype(np.uint8)
        Image.fromarray(pixels).save(stream, "PNG", compress_level=7)
        return write_bytes(stream.getvalue(), path)
