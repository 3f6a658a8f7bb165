# SPDX-License-Identifier: Apache-2.0
"""Agreement of what the tools found in a restored image and in the true one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .tools import TISSUES, Anatomy

DICE = tuple(f"dice_{name}" for name in TISSUES)
VOLUMES = tuple(f"ml_{name}" for name in TISSUES)
MEASURES = (*VOLUMES, "thickness")  # of one image; the tools give them on the truth, too
FIGURES = (*MEASURES, *DICE, "thickness_bias", "thickness_difference")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Return twice the common voxels over the sum of both (boolean arrays)."""
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))


def compare(found: Anatomy, truth: Anatomy) -> dict[str, float]:
    """Return the figures of one image.

    Thickness is the mean about the central surface, each image's own; its difference is absolute,
    voxel by voxel where both images have that surface.
    """
    here, there = found.labels, truth.labels
    row = {f"ml_{name}": value for name, value in found.volumes().items()}
    row["thickness"] = float(found.thickness[found.cortex].mean())
    for number, name in enumerate(TISSUES, 1):
        row[f"dice_{name}"] = dice(here == number, there == number)
    row["thickness_bias"] = row["thickness"] - float(truth.thickness[truth.cortex].mean())
    both = found.cortex & truth.cortex
    apart = np.abs(found.thickness - truth.thickness)[both]
    return row | {"thickness_difference": float(apart.mean()) if both.any() else float("nan")}


def bland_altman(values: Sequence[float], truths: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the differences and half the width of the limits of agreement.

    References
    ----------
    Bland and Altman, Lancet 1986: the limits are the mean difference and 1.96 standard deviations.
    """
    apart = np.subtract(values, truths)
    return float(apart.mean()), float(1.96 * apart.std(ddof=1)) if len(apart) > 1 else float("nan")


def intraclass(values: Sequence[float], truths: Sequence[float]) -> float:
    """Return the intraclass correlation for absolute agreement of two measurements of each image.

    References
    ----------
    McGraw and Wong, Psychological Methods 1996: ICC(A,1).
    """
    table = np.stack([values, truths], axis=1).astype(np.float64)
    images, raters = table.shape
    if images < 3:
        return float("nan")
    mean, by_image, by_rater = table.mean(), table.mean(1), table.mean(0)
    rows = raters * ((by_image - mean) ** 2).sum() / (images - 1)
    columns = images * ((by_rater - mean) ** 2).sum() / (raters - 1)
    left = table - by_image[:, None] - by_rater + mean
    error = (left**2).sum() / ((images - 1) * (raters - 1))
    spread = rows + (raters - 1) * error + raters * (columns - error) / images
    return float((rows - error) / spread) if spread else float("nan")


def interval(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over images."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(np.asarray(values), (draws, len(values))).mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a protocol and method: means, intervals, agreement with the truth."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    truth = {}
    for row in rows:
        if row["method"] == "truth":
            truth[row["protocol"], row["head"]] = row
        else:
            groups.setdefault((row["protocol"], row["method"]), []).append(row)
    found = []
    for (protocol, method), members in groups.items():
        entry: dict[str, Any] = {"protocol": protocol, "method": method, "images": len(members)}
        for name in FIGURES:
            values = [float(row[name]) for row in members]
            entry[name] = float(np.mean(values))
            entry[f"{name}_low"], entry[f"{name}_high"] = interval(values)
        for name in MEASURES:
            pair = [
                (float(row[name]), float(truth[protocol, row["head"]][name])) for row in members
            ]
            values, truths = (list(side) for side in zip(*pair, strict=True))
            entry[f"{name}_apart"], entry[f"{name}_limits"] = bland_altman(values, truths)
            entry[f"{name}_icc"] = intraclass(values, truths)
        found.append(entry)
    return found
