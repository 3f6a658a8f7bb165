# SPDX-License-Identifier: Apache-2.0
"""Random acquisitions for training (docs/science.md, section 7)."""

from dataclasses import dataclass

import numpy as np
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import Shape, covering_shape
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.protocols import ACQUISITIONS

ONES = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Degradation:
    """One random acquisition: voxel ratio per axis, profiles, noise (fraction of the range)."""

    ratios: tuple[float, float, float]
    acquisition: Acquisition
    noise: float


def _profile(rng: np.random.Generator, thick: bool) -> Axis:
    kind = rng.choice(["kspace", "gaussian", "box"], p=[0.45, 0.3, 0.25])
    if kind == "kspace":
        return Axis("kspace")
    low = 0.7 if thick else 0.8
    width = 1.0 if rng.random() < 0.5 else float(rng.uniform(low, 1.2))
    return Axis(str(kind), round(width, 3))


def _canonical(rng: np.random.Generator) -> tuple[np.ndarray, Axis]:
    """Ratios that studies report: x2 and x1.5 isotropic, x2 and x4 slices."""
    ratios = np.ones(3)
    choice = rng.random()
    if choice < 0.4:
        ratios[:] = 2.0
    elif choice < 0.55:
        ratios[:] = 1.5
    else:
        ratios[rng.integers(3)] = 4.0 if choice < 0.83 else 2.0
    return ratios, _profile(rng, thick=False)


def _general(rng: np.random.Generator) -> tuple[np.ndarray, Axis]:
    """Ratios from 1.25 to 6: one thick axis, in-plane and slice, or all axes."""
    ratios = np.ones(3)
    choice = rng.random()
    slice_axis = rng.integers(3)
    if choice < 0.55:
        ratios[slice_axis] = np.exp(rng.uniform(np.log(1.25), np.log(6)))
    elif choice < 0.75:
        ratios[:] = np.exp(rng.uniform(np.log(1.2), np.log(2.2)))
        ratios[slice_axis] = np.exp(rng.uniform(np.log(2), np.log(6)))
    else:
        ratios[:] = np.exp(rng.uniform(np.log(1.2), np.log(3)))
    return ratios, _profile(rng, thick=True)


def draw(
    rng: np.random.Generator, noise_share: float = 0.4, *, spare_first: bool = False
) -> Degradation:
    """Draw an acquisition: more than half canonical, the rest anything.

    With `spare_first` the first axis, which holds no detail to be recovered, keeps its voxels.
    """
    ratios, axis = _canonical(rng) if rng.random() < 0.6 else _general(rng)
    ratios = np.sort(ratios)  # heads come in any orientation; the networks know one
    if spare_first:
        ratios[0] = 1.0
    slices = ratios == ratios.max()
    axes = [axis, axis, axis]
    if slices.sum() == 1 and axis.profile != "kspace":
        # 2-D imaging: the pulse shapes the slice, Fourier encoding the plane.
        axes = [axis if thick else Axis("kspace") for thick in slices]
    noise = 0.0
    if rng.random() < noise_share:
        noise = float(np.exp(rng.uniform(np.log(0.004), np.log(0.05))))
    return Degradation(
        (float(ratios[0]), float(ratios[1]), float(ratios[2])),
        Acquisition((axes[0], axes[1], axes[2])),
        noise,
    )


def fixed(name: str, *, spare_first: bool = False) -> Degradation:
    """An acquisition of ACQUISITIONS without noise; `spare_first` as in :func:`draw`."""
    ratios, profile = ACQUISITIONS[name]
    first = 1.0 if spare_first else ratios[0]
    return Degradation((first, *ratios[1:]), Acquisition.uniform(profile), 0.0)


@dataclass(frozen=True)
class Degraded:
    """A fine volume as the scanner would have measured it, and where the networks start.

    `start`, `truth` (X, Y, Z) on the grid that the measurement covers; `condition` (6 numbers).
    """

    start: torch.Tensor
    truth: torch.Tensor
    condition: tuple[float, ...]
    operator: Operator
    measured: torch.Tensor
    noise: float


def degrade(
    fine: torch.Tensor, degradation: Degradation, generator: torch.Generator | None = None
) -> Degraded:
    """Measure (X, Y, Z) coarsely, with Rician noise, and interpolate consistently."""
    ratios = degradation.ratios
    counts = [int(n / ratio + 1e-6) for n, ratio in zip(fine.shape, ratios, strict=True)]
    coarse: Shape = (counts[0], counts[1], counts[2])
    shape = covering_shape(coarse, ratios, ONES)
    truth = fine[: shape[0], : shape[1], : shape[2]]
    operator = Operator.between(shape, ONES, coarse, ratios, degradation.acquisition, fine.device)
    measured = operator.forward(truth)
    sigma = degradation.noise
    if sigma > 0:
        first, second = (
            torch.randn(measured.shape, generator=generator, device=fine.device) for _ in range(2)
        )
        measured = torch.hypot(measured + sigma * first, sigma * second)
    start = initial_estimate(measured, operator, ratios, ONES, sigma)
    condition = degradation.acquisition.condition(ONES, ratios)
    return Degraded(start, truth, condition, operator, measured, sigma)
