# SPDX-License-Identifier: Apache-2.0
"""The volume that explains all scans at once and stays near the mean of what was restored.

Minimises sum_i |A_i x - y_i|^2 / sigma_i^2 + |x - m|^2 / s^2 by conjugate gradients (Hestenes and
Stiefel, 1952) in the variable (x - m) / s. So scaled, no eigenvalue lies below one, and a few
steps suffice in single precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .observation import Observation, total

STEPS = 12
# Share of the first gradient that ends the iteration. An earlier stop, at residuals as large as
# the noise (Morozov's principle), takes one step and costs 0.1 to 0.2 dB (research/notebook.md).
CONVERGED = 0.03


@dataclass(frozen=True)
class Estimate:
    """The volume on the common grid, and the residual of each scan over its noise."""

    volume: torch.Tensor
    misfits: list[float]
    steps: int


def joint_estimate(
    start: torch.Tensor,
    spread: torch.Tensor | float,
    scans: Sequence[Observation],
    *,
    steps: int = STEPS,
    progress: Callable[[float], None] | None = None,
) -> Estimate:
    """Volume that explains `scans` and lies within about `spread` of `start`.

    Parameters
    ----------
    start
        (X, Y, Z) mean of the restored scans.
    spread
        Standard deviation to be expected between start and truth, a number or (X, Y, Z).
    scans
        What was measured.
    steps
        Most steps of conjugate gradients.
    progress
        Called with the share that is done.
    """
    residuals = [scan.residual(start) for scan in scans]
    gradient = spread * _back(scans, residuals)
    scaled, direction = torch.zeros_like(start), gradient.clone()
    energy = first = _dot(gradient, gradient)
    done = 0
    while done < steps and energy > CONVERGED**2 * first:
        projected = [scan.forward(spread * direction) for scan in scans]
        curved = direction + spread * _back(scans, projected)
        length = energy / _dot(direction, curved)
        scaled.add_(direction, alpha=length)
        gradient.sub_(curved, alpha=length)
        for residual, change in zip(residuals, projected, strict=True):
            residual.sub_(change, alpha=length)
        before, energy = energy, _dot(gradient, gradient)
        direction.mul_(energy / before).add_(gradient)
        done += 1
        if progress is not None:
            progress(done / steps)
    misfits = [scan.misfit(rest) for scan, rest in zip(scans, residuals, strict=True)]
    return Estimate(start + spread * scaled, misfits, done)


def _back(scans: Sequence[Observation], residuals: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of the adjoints of the weighted residuals, (X, Y, Z)."""
    total = scans[0].adjoint(scans[0].precision * residuals[0])
    for scan, residual in zip(scans[1:], residuals[1:], strict=True):
        total.add_(scan.adjoint(scan.precision * residual))
    return total


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    return total(first * second)
