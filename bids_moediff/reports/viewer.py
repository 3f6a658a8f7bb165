# SPDX-License-Identifier: Apache-2.0
"""Pack volumes into a report: 8 bits, cropped to the head, for a viewer in the browser.

The viewer is an own script and not NiiVue. NiiVue adds 2.9 MB to each page, needs WebGL 2, which
remote desktops on clusters often lack, resamples overlays to the grid of the first volume, and
has neither cubic interpolation nor a swipe between volumes in a plane. The own one draws
planes of voxels on a 2-D canvas, each volume on its own grid.

A volume is packed as PNG does it, in three dimensions: a voxel is predicted from its seven
neighbours on the near side, and the remainder is deflated. That is lossless, and half the size of
deflated grey levels.
"""

import base64
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps

from bids_moediff.reports.canvas import NORMAL, Volume
from bids_moediff.reports.figures import Overlay, Scene, experts

MOST_BYTES = 15_000_000  # of a page's volumes; its pictures take a few million more
HEADROOM = 1.25  # grey levels reach this far above the window, so that it can be widened
HEAT = "inferno"


@dataclass(frozen=True)
class Reduction:
    """Reduction that fits a volume into a page: mm at each side, grey levels, halvings."""

    margin: float = 0.0
    levels: int = 256
    result: int = 0
    source: int = 0
    words: str = "256 grey levels"


REDUCTIONS = (
    Reduction(),
    Reduction(margin=14.0),
    Reduction(14.0, 64, words="64 grey levels"),
    Reduction(14.0, 256, 1, words="256 grey levels and means over 2 x 2 x 2 voxels of the result"),
    Reduction(14.0, 256, 1, 1, "256 grey levels and means over 2 x 2 x 2 voxels"),
    Reduction(14.0, 256, 2, 1, "256 grey levels and means over 4 x 4 x 4 voxels of the result"),
)


@dataclass(frozen=True)
class Packed:
    """A volume of 8-bit numbers with its place, as text for a page.

    ``low`` and ``high`` are the values of 0 and 255, once the numbers are multiplied by ``gain``.
    """

    name: str
    shape: tuple[int, ...]
    zooms: tuple[float, ...]
    start: tuple[float, ...]
    low: float
    high: float
    gain: float
    text: str

    def describe(self) -> dict[str, Any]:
        """Return everything but the text, for the script of the page."""
        numbers = {key: [round(x, 5) for x in getattr(self, key)] for key in ("zooms", "start")}
        scale = {key: getattr(self, key) for key in ("low", "high", "gain")}
        return {"shape": list(self.shape), **scale, **numbers}


def predict(voxels: np.ndarray) -> np.ndarray:
    """Predict each voxel from the seven that precede it along the three axes.

    It is the mean of the three planar predictions (Lorenzo's predictor in 2-D); zeros precede the
    first voxel.
    """

    def before(values: np.ndarray, axis: int) -> np.ndarray:
        moved = np.zeros_like(values)
        target = [slice(None)] * 3
        source = [slice(None)] * 3
        target[axis], source[axis] = slice(1, None), slice(None, -1)
        moved[tuple(target)] = values[tuple(source)]
        return moved

    wide = voxels.astype(np.int16)
    x, y, z = (before(wide, axis) for axis in range(3))
    pairs = before(x, 1) + before(x, 2) + before(y, 2)
    forecast: np.ndarray = np.clip((2 * (x + y + z) - pairs + 1) // 3, 0, 255)
    return forecast


def pack(voxels: np.ndarray) -> str:
    """Return a volume (x, y, z) of 8-bit numbers as text; viewer.js unpacks it."""
    left = ((voxels.astype(np.int16) - predict(voxels)) & 255).astype(np.uint8)
    squeeze = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    return base64.b64encode(squeeze.compress(left.tobytes("F")) + squeeze.flush()).decode()


def crop(volume: Volume, low: np.ndarray, high: np.ndarray) -> Volume:
    """Return the part of a volume between two corners in mm, whole voxels."""
    first = np.maximum(np.floor((low - volume.start) / volume.zooms + 1e-6), 0).astype(int)
    last = np.ceil((high - volume.start) / volume.zooms - 1e-6).astype(int)
    last = np.minimum(np.maximum(last, first + 1), volume.data.shape[:3])
    data = volume.data[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return replace(volume, data=data, start=volume.start + first * volume.zooms)


def halve(volume: Volume) -> Volume:
    """Return means of two voxels along each axis that has them; an odd last one is cut."""
    data = volume.data
    for axis in range(3):
        if data.shape[axis] < 2:
            continue
        even = data.take(range(data.shape[axis] // 2 * 2), axis)
        shape = (*even.shape[:axis], -1, 2, *even.shape[axis + 1 :])
        data = even.reshape(shape).mean(axis=axis + 1, dtype=np.float32)
    factor = np.array([2 if size > 1 else 1 for size in volume.data.shape[:3]])
    return replace(volume, data=data, zooms=volume.zooms * factor)


def quantize(name: str, volume: Volume, low: float, high: float, levels: int = 256) -> Packed:
    """Pack the values between ``low`` and ``high`` in even steps; others are clipped."""
    top = levels - 1
    share = (volume.data - np.float32(low)) * np.float32(top / max(high - low, 1e-12))
    voxels = np.clip(np.rint(share, out=share), 0, top).astype(np.uint8)
    place = (tuple(map(float, volume.zooms)), tuple(map(float, volume.start)))
    scale = (float(low), float(high), 255 / top)
    return Packed(name, voxels.shape, *place, *scale, pack(voxels))


def make_view(
    scene: Scene, deviation: Overlay | None = None, gates: Overlay | None = None
) -> dict[str, Any]:
    """Return everything that the viewer needs: packed volumes and a description.

    Parameters
    ----------
    scene
        Input, result and mask, and the frame to crop to.
    deviation
        Expected error in input units, (x, y, z).
    gates
        Weights of the experts, (x, y, z, expert), with their names.

    Returns
    -------
    dict
        ``volumes`` (name to text), ``description`` (JSON-ready) and ``detail``: in words, how
        finely the page shows them.
    """
    shown = experts(gates, gates.volume.data.shape[3]) if gates else []
    for step in REDUCTIONS:
        low, high = scene.frame.low + step.margin, scene.frame.high - step.margin
        packed = _pack_all(scene, deviation, gates, step)
        if sum(len(volume.text) for volume in packed) <= MOST_BYTES:
            break
    description = {
        "volumes": {volume.name: volume.describe() for volume in packed},
        "low": np.round(low, 3).tolist(),
        "high": np.round(high, 3).tolist(),
        "position": [round(scene.positions[plane], 3) for plane in NORMAL],
        "window": list(scene.window),
        "rotation": np.round(scene.original.rotation, 6).tolist(),
        "experts": [list(expert.colour) for expert in shown],
        "names": [expert.words for expert in shown],
        "heat": np.rint(255 * colormaps[HEAT](np.arange(256))[:, :3]).astype(int).tolist(),
    }
    return {
        "volumes": {volume.name: volume.text for volume in packed},
        "description": description,
        "detail": step.words,
    }


def _pack_all(
    scene: Scene, deviation: Overlay | None, gates: Overlay | None, step: Reduction
) -> list[Packed]:
    low, high = scene.frame.low + step.margin, scene.frame.high - step.margin
    bottom, top = scene.window[0], scene.window[0] + HEADROOM * float(np.ptp(scene.window))

    def cut(volume: Volume, times: int) -> Volume:
        part = crop(volume, low, high)
        for _ in range(times):
            part = halve(part)
        return part

    # Overlays are smooth: they are shown at about 1 mm.
    coarse = step.result + (1 if scene.enhanced.zooms.min() < 0.95 and not step.result else 0)
    packed = [
        quantize("input", cut(scene.original, step.source), bottom, top, step.levels),
        quantize("result", cut(scene.enhanced, step.result), bottom, top, step.levels),
    ]
    if scene.mask is not None:
        packed.append(quantize("mask", cut(scene.mask, 0), 0, 255))
    if deviation is not None:
        part = cut(deviation.volume, coarse)
        packed.append(quantize("error", part, 0, float(np.percentile(part.data, 99.9)) or 1.0))
    if gates is not None:
        part = cut(gates.volume, coarse)
        leader = np.argmax(part.data, axis=3).astype(np.uint8)
        packed.append(quantize("expert", replace(part, data=leader), 0, 255))
    return packed
