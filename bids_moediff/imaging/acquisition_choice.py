# SPDX-License-Identifier: Apache-2.0
"""Choose the acquisition that the networks get, by its cost if another one is true.

The estimate from the scan (:mod:`.acquisition_estimate`) leaves several acquisitions open. The
choice has the least expected regret over them; it need not be the most likely one. An acquisition
that would lose against interpolation under another open one is never chosen. Means and spreads of
the estimates, and the gains, were measured (docs/acquisition.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.acquisition_estimate import KspaceFigures, read_kspace, read_slices

# Slices: reading of read_slices by true profile, and its spread over heads (a head whose own
# sharpness differs between the axes moves all of them alike).
SLICES: dict[Axis, float] = {
    Axis("gaussian", 1.0): -0.38,
    Axis("gaussian", 0.75): 0.02,
    Axis("gaussian", 0.5): 0.28,
    Axis("box", 1.0): 0.10,
    Axis("box", 0.75): 0.21,
    Axis("box", 0.5): 0.38,
}
SLICE_SPREAD = 0.15
STATED_SPREAD = 0.15  # of the true width around the stated one, in slice distances
# Widest box that is kept because a sidecar states it: told 1.5 times the distance where 1.0 or 0.5
# is true, a head lost 0.9 or 3.6 dB; told 1.0 where 1.2 or 1.5 is true, 0.1 or 0.4.
WIDEST_KEPT = 1.0
# Gain over cubic interpolation in dB at x4 by true profile, for each profile told.
TOLD_SLICES = (
    Axis("gaussian", 1.0), Axis("gaussian", 0.8), Axis("gaussian", 0.6), Axis("gaussian", 0.4),
    Axis("box", 1.0), Axis("box", 0.75), Axis("box", 0.5),
)  # fmt: skip
SLICE_GAINS: dict[Axis, Sequence[float]] = {
    Axis("gaussian", 1.0): (2.06, 2.09, 1.61, 1.07, 1.90, 1.63, 1.08),
    Axis("gaussian", 0.75): (0.26, 1.49, 1.65, 1.30, 1.71, 1.68, 1.31),
    Axis("gaussian", 0.5): (-1.72, 0.19, 1.07, 1.15, 0.74, 1.10, 1.20),
    Axis("box", 1.0): (-0.30, 1.17, 1.52, 1.27, 1.54, 1.57, 1.30),
    Axis("box", 0.75): (-1.18, 0.62, 1.32, 1.26, 1.12, 1.36, 1.30),
    Axis("box", 0.5): (-2.69, -0.68, 0.46, 0.81, -0.03, 0.49, 0.88),
}
# K-space: fall along the axes and towards the corner, by filter.
KSPACE: dict[str, tuple[float, float]] = {
    "hard": (-0.96, -0.62),
    "box": (-1.03, -0.62),
    "elliptical": (-1.42, -1.50),
    "fermi": (-2.15, -1.55),
    "half-hann": (-1.30, -0.68),
    "gaussian": (-1.49, -1.02),
    "hann": (-2.15, -0.15),
    "hann, no noise": (-4.0, -1.6),
}
# Covariance of both figures over heads (eleven training scans of nine sites).
HEADS = np.array([[0.0121, 0.0050], [0.0050, 0.0056]])
PLANE = 0.10  # by how much less the power falls to a corner between two axes than between three
FIGURE_SPREAD = {"elliptical": 0.2, "fermi": 0.25, "hann": 0.25, "hann, no noise": 0.5}
USUAL_SPREAD = 0.05
LOWEST = (-4.0, -1.6)  # below, only the noise's own uncertainty is read
STRANGE = 20.0  # squared distance in spreads at which no filter explains a scan
# Gain over the better of linear and cubic interpolation in dB at x2 isotropic, 2 % noise, mean of
# four training heads (research/notebook.md). A quarter of a Hann window stands for stronger
# filters: half of it gains more where it is true, but costs 5 dB under a hard edge.
TOLD_KSPACE = (
    Axis("kspace"), Axis("box", 1.0), Axis("gaussian", 0.6), Axis("kspace", 1.0, "quarter-hann"),
)  # fmt: skip
KSPACE_GAINS: dict[str, Sequence[float]] = {
    "hard": (1.49, 0.39, -0.11, -0.40),
    "box": (1.12, 1.45, 1.37, 0.45),
    "elliptical": (0.92, 0.25, -0.01, -0.12),
    "fermi": (0.67, 0.52, 0.39, 0.40),
    "half-hann": (0.70, 1.52, 1.52, 2.01),
    "gaussian": (0.72, 1.50, 1.54, 1.88),
    "hann": (0.17, 0.46, 0.40, 0.38),
    "hann, no noise": (0.17, 0.46, 0.40, 0.38),
}
# In mm. The figures were measured on voxels up to 3.2. Below 1.65 a spectrum that falls may be
# that of soft anatomy, such as an infant's, whose detail ends at 1.3 to 2 mm.
READABLE_VOXELS = (1.65, 3.2)
OPEN = 0.1  # an acquisition of at least this weight is still open
WORTHWHILE = 0.1  # dB of expected regret for which what was declared is given up
KEPT_WEIGHT = 0.01

Key = TypeVar("Key")


@dataclass(frozen=True)
class Choice:
    """The chosen acquisition, and the likelihood of each; empty if nothing could be estimated."""

    acquisition: Acquisition
    weights: Mapping[str, float]


def choose_acquisition(
    declared: Acquisition,
    data: np.ndarray,
    zooms: tuple[float, float, float],
    head: np.ndarray,
    sigma: float,
    stated_width: float | None = None,
) -> Choice:
    """Return the acquisition for the networks, from the declared one and from the scan.

    Parameters
    ----------
    declared
        Acquisition that is assumed without looking at the scan.
    data
        (x, y, z) on the voxels that were measured.
    zooms
        Voxel sizes in mm.
    head
        (x, y, z) boolean, where to look.
    sigma
        Standard deviation of the noise.
    stated_width
        Slice thickness over slice distance, if a sidecar states it.
    """
    if declared.has_slices:
        reading = read_slices(data, zooms, head, sigma)
        if reading is None:
            return Choice(declared, {})
        weights = slice_weights(reading, stated_width)
        axis = int(np.argmax(zooms))
        axes = list(declared.axes)
        usual = replace(axes[axis], fwhm=min(axes[axis].fwhm, WIDEST_KEPT))
        axes[axis] = least_regret(weights, SLICE_GAINS, TOLD_SLICES, usual)
        named = {f"{true.profile} {true.fwhm:g}": weight for true, weight in weights.items()}
        return Choice(Acquisition((axes[0], axes[1], axes[2])), _kept(named))
    axes_read = readable_axes(zooms)
    figures = read_kspace(data, zooms, head, sigma, axes_read) if axes_read else None
    if figures is not None and len(figures.axes) == 2:
        figures = replace(figures, corner=figures.corner - PLANE)
    weights_by_filter = {} if figures is None else filter_weights(figures)
    if not weights_by_filter:
        return Choice(declared, {})
    told = least_regret(weights_by_filter, KSPACE_GAINS, TOLD_KSPACE, Axis("kspace"))
    first, second, third = (told if axis in axes_read else Axis("kspace") for axis in range(3))
    return Choice(Acquisition((first, second, third)), _kept(weights_by_filter))


def readable_axes(zooms: tuple[float, float, float]) -> tuple[int, ...]:
    """Return the axes on which a filter can be read: all, two of about equal voxels, or none."""
    low, high = READABLE_VOXELS
    if max(zooms) <= 1.5 * min(zooms) and low <= np.prod(zooms) ** (1 / 3) <= high:
        return (0, 1, 2)
    coarse = tuple(axis for axis in range(3) if low <= zooms[axis] <= high)
    sizes = [zooms[axis] for axis in coarse]
    plane = len(coarse) == 2 and min(zooms) < min(sizes) and max(sizes) <= 1.5 * min(sizes)
    return coarse if plane else ()


def slice_weights(reading: float, stated_width: float | None = None) -> dict[Axis, float]:
    """Return weights of the profiles that may have given a ``reading``; they sum to one."""
    weights = {}
    for true, mean in SLICES.items():
        weights[true] = _tailed((reading - mean) / SLICE_SPREAD)
        if stated_width is not None:
            away = true.fwhm - min(max(stated_width, 0.5), 1.0)
            weights[true] *= float(np.exp(-0.5 * (away / STATED_SPREAD) ** 2))
    total = sum(weights.values())
    return {true: weight / total for true, weight in weights.items()}


def filter_weights(figures: KspaceFigures) -> dict[str, float]:
    """Return weights of the filters, which sum to one; empty if none explains the figures."""
    read = np.maximum((figures.fall, figures.corner), LOWEST)
    logs = {}
    for name, mean in KSPACE.items():
        spread = FIGURE_SPREAD.get(name, USUAL_SPREAD)
        covariance = HEADS + spread**2 * np.eye(2)
        away = read - mean
        distance = float(away @ np.linalg.solve(covariance, away))
        logs[name] = -0.5 * distance - 0.5 * float(np.log(np.linalg.det(covariance)))
        logs[name] = logs[name] if distance < STRANGE else -np.inf
    largest = max(logs.values())
    if not np.isfinite(largest):
        return {}
    weights = {name: float(np.exp(log - largest)) for name, log in logs.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def _tailed(distance: float) -> float:
    """Return the density of Student's t with five degrees of freedom, not normalised."""
    return float((1 + distance**2 / 5) ** -3)


def least_regret(
    weights: Mapping[Key, float],
    gains: Mapping[Key, Sequence[float]],
    told: Sequence[Axis],
    usual: Axis,
) -> Axis:
    """Return the choice of least regret.

    It is ``usual`` if nothing else is clearly better, or if every choice might do harm.
    """
    table = np.array([gains[true] for true in weights])
    weight = np.array(list(weights.values()))
    safe = ~(table[weight >= OPEN] < 0).any(axis=0)
    if not safe.any():
        return usual
    regret = np.where(safe, weight @ (table.max(axis=1, keepdims=True) - table), np.inf)
    best = int(np.argmin(regret))
    alike = [
        abs(axis.fwhm - usual.fwhm) if axis.profile == usual.profile else np.inf for axis in told
    ]
    nearest = int(np.argmin(alike))
    return usual if regret[nearest] - regret[best] < WORTHWHILE else told[best]


def _kept(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: round(weight, 3) for name, weight in weights.items() if weight >= KEPT_WEIGHT}
