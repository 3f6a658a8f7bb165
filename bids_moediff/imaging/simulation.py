# SPDX-License-Identifier: Apache-2.0
"""Draw random acquisitions for training, and simulate them (docs/science.md, section 7)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import Shape, Triple, covering_shape
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
    """Draw ratios that studies report: x2 and x1.5 isotropic, x2 and x4 slices."""
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
    """Draw ratios from 1.25 to 6: one thick axis, in-plane and slice, or all axes."""
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
    """Draw an acquisition: more than half canonical, the rest general.

    With ``spare_first`` the first axis, which has no true detail, keeps its voxels.
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
    """Return an acquisition of ACQUISITIONS without noise; ``spare_first`` as in :func:`draw`."""
    ratios, profile = ACQUISITIONS[name]
    first = 1.0 if spare_first else ratios[0]
    return Degradation((first, *ratios[1:]), Acquisition.uniform(profile), 0.0)


@dataclass(frozen=True)
class Grids:
    """A fine grid and the coarse grid of a scanner, outer corners shared.

    Parameters
    ----------
    fine_shape, coarse_shape
        Voxel counts.
    zooms, coarse_zooms
        Voxel sizes in mm (or in fine voxels).
    device
        Where operators are kept.
    """

    fine_shape: Shape
    coarse_shape: Shape
    zooms: Triple
    coarse_zooms: Triple
    device: torch.device | str = "cpu"

    @classmethod
    def inside(
        cls, shape: Sequence[int], zooms: Triple, ratios: Triple, multiple: int = 1
    ) -> "Grids":
        """Return grids of whole coarse voxels only; a remainder is cut off.

        ``multiple`` cuts the fine grid further, to sizes that a network takes.
        """
        counts = [int(size / ratio + 1e-6) for size, ratio in zip(shape, ratios, strict=True)]
        coarse = (counts[0], counts[1], counts[2])
        sizes = (zooms[0] * ratios[0], zooms[1] * ratios[1], zooms[2] * ratios[2])
        x, y, z = (size - size % multiple for size in covering_shape(coarse, sizes, zooms))
        return cls((x, y, z), coarse, zooms, sizes)

    @classmethod
    def outside(
        cls, shape: Sequence[int], zooms: Triple, coarse_shape: Shape, coarse_zooms: Triple
    ) -> "Grids":
        """Return coarse voxels that cover the whole field of view."""
        return cls(
            covering_shape(coarse_shape, coarse_zooms, zooms), coarse_shape, zooms, coarse_zooms
        )

    def operator(self, acquisition: Acquisition) -> Operator:
        """Return the operator from the fine grid to the coarse one."""
        return Operator.between(
            self.fine_shape,
            self.zooms,
            self.coarse_shape,
            self.coarse_zooms,
            acquisition,
            self.device,
        )

    def covered(self, fine: torch.Tensor) -> torch.Tensor:
        """Return (X, Y, Z) on the fine grid: cut to it, or with its last planes repeated."""
        extra = [max(0, new - old) for old, new in zip(fine.shape, self.fine_shape, strict=True)]
        if any(extra):
            padding = [amount for after in reversed(extra) for amount in (0, after)]
            fine = torch.nn.functional.pad(fine[None, None], padding, mode="replicate")[0, 0]
        x, y, z = self.fine_shape
        return fine[:x, :y, :z]


Fields = tuple[float, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Measured:
    """A fine volume as a scanner with coarser voxels measures it.

    ``truth`` (X, Y, Z) on the fine grid, ``coarse`` (x, y, z), and the map between them.
    """

    truth: torch.Tensor
    coarse: torch.Tensor
    operator: Operator


def measure(
    fine: torch.Tensor, grids: Grids, acquisition: Acquisition, noise: Fields | None = None
) -> Measured:
    """Measure a fine volume; training, evaluation and the degrade command all use this function.

    Parameters
    ----------
    fine
        (X, Y, Z) intensities.
    grids
        Cut to whole coarse voxels, or covering the field of view.
    acquisition
        How each axis is sampled.
    noise
        Standard deviation and two fields (x, y, z) of unit white noise, the real and the imaginary
        part. The magnitude is taken, so the noise is Rician. The caller draws the fields, so that
        it keeps its own order of random draws.
    """
    truth = grids.covered(fine)
    operator = grids.operator(acquisition)
    coarse = operator.forward(truth)
    if noise is not None:
        sigma, real, imaginary = noise
        coarse = torch.hypot(coarse + sigma * real, sigma * imaginary)
    return Measured(truth, coarse, operator)


@dataclass(frozen=True)
class Degraded:
    """A fine volume as the scanner would have measured it, with the start of the networks.

    ``start``, ``truth`` (X, Y, Z) on the grid that the measurement covers; ``condition`` (6
    numbers); ``plan`` is the acquisition.
    """

    start: torch.Tensor
    truth: torch.Tensor
    condition: tuple[float, ...]
    operator: Operator
    measured: torch.Tensor
    noise: float
    plan: Degradation


def degrade(
    fine: torch.Tensor, degradation: Degradation, generator: torch.Generator | None = None
) -> Degraded:
    """Measure (X, Y, Z) coarsely, with Rician noise, and interpolate consistently.

    Parameters
    ----------
    fine
        (X, Y, Z), about [0, 1] in the head.
    degradation
        The acquisition.
    generator
        Source of the noise.
    """
    ratios, acquisition, sigma = degradation.ratios, degradation.acquisition, degradation.noise
    grids = replace(Grids.inside(fine.shape, ONES, ratios), device=fine.device)
    noise = None
    if sigma > 0:
        first, second = (
            torch.randn(grids.coarse_shape, generator=generator, device=fine.device)
            for _ in range(2)
        )
        noise = (sigma, first, second)
    made = measure(fine, grids, acquisition, noise)
    start = initial_estimate(made.coarse, made.operator, ratios, ONES, sigma)
    condition = acquisition.condition(ONES, ratios)
    return Degraded(start, made.truth, condition, made.operator, made.coarse, sigma, degradation)
