# SPDX-License-Identifier: Apache-2.0
"""Simulate real scans: filtered, with gaps, noisy, and of an acquisition that is known in part.

They train last layers, which learn how far to follow a network's correction. Each draw is measured
twice. The first measurement, with the acquisition that the engine would assume, gives the
features. The second, without noise or filter and with the true acquisition, is for the teacher.
Since it holds everything that the first does, the mean of the teacher's output given the first is
the mean of the truth given the first.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.consistency import consistent_start
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.simulated_filters import (
    FILTERS,
    add_coil_noise,
    add_ghost,
    add_rician_noise,
    filter_kspace,
)
from bids_moediff.imaging.simulation import ONES, Grids
from bids_moediff.imaging.simulation import measure as measure_exactly
from bids_moediff.imaging.told import told_numbers

from .tensor_filters import gaussian

# How often each filter of FILTERS is drawn.
FILTER_SHARES = (0.4, 0.12, 0.14, 0.11, 0.12, 0.06, 0.05)
# The filter that an estimate takes for another one, if it errs.
MISTAKEN = {
    "fermi": "hard", "tukey": "half-hann", "quarter-hann": "hard", "half-hann": "quarter-hann",
    "hann": "tukey",
}  # fmt: skip
NOISE = (0.005, 0.06)  # of the head's intensities
NOISE_SPREAD = 0.08  # of its estimate, as a logarithm
NOISE_UNKNOWN = 0.06  # share of noisy scans of which it is not known
UNKNOWN_WIDTH = 0.75
SOFT_SHARE, SOFT = 0.12, (0.6, 1.1)
THIN = 0.65  # slices that the teacher was not trained for
GHOST_SHARE, GHOST = 0.15, (0.01, 0.05)
COIL_SHARE, COILS = 0.3, (2, 9)


@dataclass(frozen=True)
class UncertainPlan:
    """One acquisition and what is known of it.

    `ramp` is the part of the slices' width over which their flanks rise (trapezoids); noise and
    `told_noise` are fractions of the range; `blur` (standard deviation in voxels) makes the head
    itself soft. `ghost` is its share of the brightness, along `ghost_axis`; more than one of
    `coils` makes the noise noncentral chi.
    """

    ratios: Triple
    true: Acquisition
    told: Acquisition
    filter: str = "hard"
    ramp: float = 0.0
    noise: float = 0.0
    told_noise: float = 0.0
    blur: float = 0.0
    ghost: float = 0.0
    ghost_axis: int = 0
    coils: int = 1

    @property
    def beyond_teacher(self) -> bool:
        """Whether the teacher knows no better than the truth: soft heads, thin slices."""
        thin = min(axis.effective_fwhm for axis in self.true.axes)
        return self.blur > 0 or thin < THIN


def _ratios(rng: np.random.Generator) -> tuple[str, list[float]]:
    choice, which = rng.random(), rng.random()
    if choice < 0.46:
        common = 2.0 if which < 0.5 else 1.5 if which < 0.72 else _between(rng, 1.25, 3)
        return "isotropic", [common] * 3
    if choice < 0.93:
        usual = ((0.35, 4.0), (0.5, 2.0), (0.58, 3.0), (0.66, 6.0))
        thick = next((ratio for share, ratio in usual if which < share), 0.0)
        return "slices", [1.0, 1.0, thick or _between(rng, 1.25, 8)]
    plane = _between(rng, 1.2, 2)
    return "both", sorted([plane, plane, _between(rng, 2, 6)])


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _slices(rng: np.random.Generator) -> tuple[Axis, float]:
    """True slice profile, and the ramp of a trapezoid."""
    width = float(rng.uniform(0.25, 1.2) if rng.random() < 0.6 else rng.choice([0.5, 0.75, 1, 1]))
    kind = rng.random()
    if kind < 0.35:
        return Axis("box", width), 0.0
    if kind < 0.7:
        return Axis("gaussian", width), 0.0
    return Axis("box", width), float(rng.uniform(0.1, 0.6))


def _told_slices(rng: np.random.Generator, true: Axis) -> Axis:
    """Stated as a box of its width, unknown, or estimated rightly."""
    choice = rng.random()
    if choice < 0.45:
        return Axis("box", max(true.fwhm, 0.2))
    return Axis("box", UNKNOWN_WIDTH) if choice < 0.75 else true


def _told_filter(rng: np.random.Generator, true: str) -> str:
    """Estimated rightly, taken for a similar one, or not looked for."""
    if true in ("hard", "elliptical"):
        return "hard"
    choice = rng.random()
    return MISTAKEN[true] if choice < 0.35 else "hard" if choice < 0.5 else true


def _told_kspace(rng: np.random.Generator, filtered: str, isotropic: bool) -> Axis:
    """A filter, or the slice profile that stands for one in the choice of the acquisition."""
    known = Axis("kspace", filter=_told_filter(rng, filtered))
    share = 0.6 if filtered in ("half-hann", "hann") else 0.12
    if not isotropic or rng.random() >= share:
        return known
    if rng.random() < 0.7:
        return Axis("gaussian", 0.7)
    return Axis("gaussian", 0.6) if rng.random() < 0.5 else Axis("box", 1.0)


def draw_uncertain(rng: np.random.Generator, *, spare_first: bool = False) -> UncertainPlan:
    """A random plan; with `spare_first` the first axis keeps its voxels."""
    kind, ratios = _ratios(rng)
    if spare_first:
        ratios[0] = 1.0
    filtered = str(rng.choice(FILTERS, p=FILTER_SHARES)) if kind != "slices" else "hard"
    known = _told_kspace(rng, filtered, kind == "isotropic")
    plain, ramp = Axis("kspace"), 0.0
    true, told = [plain] * 3, [known] * 3
    if kind != "isotropic":
        true[2], ramp = _slices(rng)
        told[2] = _told_slices(rng, true[2])
    noise = _between(rng, *NOISE) if rng.random() < 0.7 else 0.0
    estimate = noise * float(np.exp(rng.normal(0, NOISE_SPREAD)))
    if rng.random() < NOISE_UNKNOWN:
        estimate = 0.0
    blur = float(rng.uniform(*SOFT)) if rng.random() < SOFT_SHARE else 0.0
    return UncertainPlan(
        (ratios[0], ratios[1], ratios[2]),
        Acquisition((true[0], true[1], true[2])),
        Acquisition((told[0], told[1], told[2])),
        filtered, ramp, noise, estimate, blur,
    )  # fmt: skip


def draw_disturbed(rng: np.random.Generator, *, spare_first: bool = False) -> UncertainPlan:
    """A random plan with ghosts and the noise of several coils besides.

    Their order is the scanner's: profile, filter and ghost are linear and commute, the noise comes
    last, and the coils are combined after it.
    """
    plan = draw_uncertain(rng, spare_first=spare_first)
    ghost = float(rng.uniform(*GHOST)) if rng.random() < GHOST_SHARE else 0.0
    axis, coils = int(rng.integers(2)), int(rng.integers(*COILS))
    if rng.random() >= COIL_SHARE:
        coils = 1
    return replace(plan, ghost=ghost, ghost_axis=axis, coils=coils)


@dataclass(frozen=True)
class Uncertain:
    """A fine volume as it was measured; all images (X, Y, Z) on the grid that is covered.

    `start` and `condition` (6 numbers and those of :mod:`bids_moediff.imaging.told`) are what a
    network gets; `clear_start` and `clear_condition` (6) what the teacher gets; `by_truth` says
    that the truth is to be learnt instead of its output; `told_noise` is the noise that is told.
    """

    start: torch.Tensor
    condition: tuple[float, ...]
    truth: torch.Tensor
    clear_start: torch.Tensor
    clear_condition: tuple[float, ...]
    by_truth: bool
    told_noise: float


def measure(fine: torch.Tensor, plan: UncertainPlan, seed: int) -> Uncertain:
    """Measure (X, Y, Z) as planned."""
    ratios = plan.ratios
    if plan.blur > 0:
        fine = gaussian(fine, plan.blur)
    grids = replace(Grids.inside(fine.shape, ONES, ratios), device=fine.device)
    shape = grids.fine_shape

    def start(operator: Operator, scan: torch.Tensor, noise: float) -> torch.Tensor:
        return consistent_start(operator, interpolate(scan, ratios, shape, ONES), scan, noise)

    made = measure_exactly(fine, grids, plan.true)
    truth, clear = made.truth, made.coarse
    scan = clear
    if plan.ramp > 0:  # a trapezoid is a mean of boxes
        slices = plan.true.axes[2]
        widths = [max(0.1, slices.fwhm * (1 + step * plan.ramp)) for step in (-0.5, 0.0, 0.5)]
        stacks = [
            measure_exactly(
                fine, grids, Acquisition((*plan.true.axes[:2], Axis("box", width)))
            ).coarse
            for width in widths
        ]
        scan = torch.stack(stacks).mean(0)
    array = filter_kspace(scan.cpu().numpy(), plan.filter)
    if plan.ghost > 0:
        array = add_ghost(array, plan.ghost, plan.ghost_axis)
    if plan.noise > 0 and plan.coils > 1:
        array = add_coil_noise(array, plan.noise, plan.coils, seed)
    elif plan.noise > 0:
        array = add_rician_noise(array, plan.noise, seed)
    scan = torch.from_numpy(array).to(fine.device)
    extra = told_numbers(plan.told, ratios, plan.told_noise)
    return Uncertain(
        start(grids.operator(plan.told), scan, plan.told_noise),
        plan.told.condition(ONES, ratios) + extra,
        truth,
        start(made.operator, clear, 0.0),
        plan.true.condition(ONES, ratios),
        plan.beyond_teacher,
        plan.told_noise,
    )
