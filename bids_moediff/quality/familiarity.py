# SPDX-License-Identifier: Apache-2.0
"""Measure how far a scan is from the images that the networks were trained on.

A few figures that anybody can check by eye (contrast, spread, edges, symmetry …). None depends on
the units of the scan, and all use scales that thick slices keep. Each is compared with its median
over the sources of the training images, in units of its standard deviation there (a source counts
once, however many heads it has). The distance of a scan is the root mean square of these, and the
most distant figure is named. Medians and deviations are made by
`python -m research.measurements.training_figures`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from scipy import ndimage

REFERENCE = "training_figures.json"
FEWEST_SOURCES = 8  # with fewer of its contrast, a scan is compared with all contrasts
FAR = 2.5  # distance from which on a scan is called unusual
TINY = 1e-30  # images come in any unit
LARGEST = 20.0  # a single figure counts no more than this

FIGURES: dict[str, str] = {
    "core_over_rim": "brightness of the inner brain over that of its rim",
    "bright_tail": "brightest 2 % of the brain over its median",
    "dark_tail": "darkest 2 % of the brain over its median",
    "spread": "spread of intensities in the brain over their median",
    "skew": "lopsidedness of the intensities in the brain",
    "edges": "strength of edges over the spread of intensities",
    "fine_detail": "detail of 2 to 4 mm over the spread of intensities",
    "detail_balance": "detail of 2 to 4 mm over that of 4 to 8 mm",
    "symmetry": "likeness of the left and the right half",
}


@dataclass(frozen=True)
class Novelty:
    """Distance in standard deviations, the most distant figure, and its own distance."""

    distance: float
    furthest: str
    deviation: float


def scan_figures(
    data: np.ndarray, brain: np.ndarray, depth: np.ndarray, zooms: tuple[float, float, float]
) -> dict[str, float] | None:
    """Return figures of a closest-to-RAS scan of about 2 mm, or None with too little brain.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    brain
        Brain mask (x, y, z).
    depth
        Distance in mm from the outline of the brain (x, y, z).
    zooms
        Voxel sizes in mm.
    """
    values = data[brain].astype(np.float64)
    core, rim = data[depth > 20], data[(depth > 2) & (depth < 8)]
    if min(len(core), len(rim)) < 100:
        return None
    low, lower, middle, upper, high = np.percentile(values, [2, 25, 50, 75, 98])
    middle, width = max(float(middle), TINY), max(float(upper - lower), TINY)
    tails = np.percentile(values, [10, 90])
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(brain))
    part, inside = np.where(brain, data, middle)[box].astype(np.float32), depth[box] > 6
    smooth = [part, *(ndimage.gaussian_filter(part, [s / z for z in zooms]) for s in (2, 4, 8))]
    fine, coarse = (smooth[1] - smooth[2])[inside].std(), (smooth[2] - smooth[3])[inside].std()
    slope = ndimage.gaussian_gradient_magnitude(part, [2 / z for z in zooms])[inside].mean()
    return {
        "core_over_rim": float(np.median(core)) / max(float(np.median(rim)), TINY),
        "bright_tail": float(high) / middle,
        "dark_tail": float(low) / middle,
        "spread": width / middle,
        "skew": float((tails.sum() - 2 * middle) / max(tails[1] - tails[0], TINY)),
        "edges": float(slope) / width,
        "fine_detail": float(fine) / width,
        "detail_balance": float(fine / max(coarse, TINY)),
        "symmetry": _symmetry(smooth[2], brain[box], inside),
    }


def _symmetry(smooth: np.ndarray, brain: np.ndarray, inside: np.ndarray) -> float:
    """Return the correlation of a smoothed brain with its mirror image, at the best shift."""
    best = -1.0
    for shift in range(-2, 3):
        other, mirrored = np.roll(smooth[::-1], shift, 0), np.roll(brain[::-1], shift, 0)
        both = inside & mirrored
        if both.sum() > 100 and smooth[both].std() > 0 and other[both].std() > 0:
            best = max(best, float(np.corrcoef(smooth[both], other[both])[0, 1]))
    return best


def summarise(sources: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return median and standard deviation of every figure over sources, each by its median head.

    A deviation is at least a tenth of the median's size or 0.02, since few sources underestimate
    it.
    """
    summary: dict[str, Any] = {"sources": len(sources)}
    for name in FIGURES:
        values = np.array([np.median([head[name] for head in heads]) for heads in sources])
        middle = float(np.median(values))
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        spread = max(spread, 0.1 * abs(middle), 0.02)
        summary[name] = [round(middle, 4), round(spread, 4)]
    return summary


@lru_cache(maxsize=1)
def reference() -> dict[str, Any]:
    """Return median and deviation of every figure by contrast, and over all contrasts ("all")."""
    text = files("bids_moediff.data").joinpath(REFERENCE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)["contrasts"]
    return found


def novelty(
    figures: Mapping[str, float], suffix: str, known: Mapping[str, Any] | None = None
) -> Novelty:
    """Return the distance of a scan's figures from those of the training images of its contrast.

    ``known`` is by default the output of :func:`reference`. UNIT1 images count as T1w.
    """
    known = known or reference()
    contrast = "T1w" if suffix == "UNIT1" else suffix
    if known.get(contrast, {"sources": 0})["sources"] < FEWEST_SOURCES:
        contrast = "all"
    deviations = {}
    for name in FIGURES:
        middle, spread = known[contrast][name]
        deviations[name] = min(abs(figures[name] - middle) / spread, LARGEST)
    furthest = max(deviations, key=lambda name: deviations[name])
    distance = float(np.sqrt(np.mean([value**2 for value in deviations.values()])))
    return Novelty(distance, furthest, deviations[furthest])
