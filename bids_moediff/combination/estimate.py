# SPDX-License-Identifier: Apache-2.0
"""Estimate the volume that explains all scans at once and stays near the mean of restored scans.

Minimises sum_i |A_i x - y_i|^2 / sigma_i^2 + |x - m|^2 / s^2 by conjugate gradients (Hestenes and
Stiefel, 1952) in the variable (x - m) / s. In this scaling no eigenvalue is below one, and a few
steps suffice in single precision. They end where the residuals are a share of the noise (Morozov's
discrepancy principle).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .observation import Observation, total

STEPS = 12
CONVERGED = 0.03  # share of the first gradient that ends the iteration
# Residual over noise that ends it: m was made from the same scans and holds a part of their noise,
# so the truth's residual of 1 is not what to stop at (research/notebook.md).
DISCREPANCY = 0.6


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
    discrepancy: float = DISCREPANCY,
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
    discrepancy
        Residual over noise, of all scans together, at which they end; 0 lets them converge.
    progress
        Called with the share that is done.
    """
    residuals = [scan.residual(start) for scan in scans]
    gradient = spread * _back(scans, residuals)
    scaled, direction = torch.zeros_like(start), gradient.clone()
    energy = first = _dot(gradient, gradient)
    done, excess = 0, _excess(scans, residuals, discrepancy)
    while done < steps and energy > CONVERGED**2 * first and excess > 0:
        projected = [scan.forward(spread * direction) for scan in scans]
        curved = direction + spread * _back(scans, projected)
        length, reach = (
            energy / _dot(direction, curved),
            _reach(scans, residuals, projected, excess),
        )
        enough, length = reach <= length, min(length, reach)
        scaled.add_(direction, alpha=length)
        gradient.sub_(curved, alpha=length)
        for residual, change in zip(residuals, projected, strict=True):
            residual.sub_(change, alpha=length)
        excess = 0.0 if enough else _excess(scans, residuals, discrepancy)
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


def _excess(
    scans: Sequence[Observation], residuals: Sequence[torch.Tensor], discrepancy: float
) -> float:
    """Squares of the residuals over the noise, beyond those that are wanted."""
    squares = sum(_product(scan, r, r) for scan, r in zip(scans, residuals, strict=True))
    counts = sum(
        total(scan.weights.expand_as(r)) for scan, r in zip(scans, residuals, strict=True)
    )
    return squares - discrepancy**2 * counts


def _reach(
    scans: Sequence[Observation],
    residuals: Sequence[torch.Tensor],
    changes: Sequence[torch.Tensor],
    excess: float,
) -> float:
    """Length of the step along `changes` that takes the excess away; infinite if none does."""
    slope = sum(_product(s, r, c) for s, r, c in zip(scans, residuals, changes, strict=True))
    curvature = sum(_product(s, c, c) for s, c in zip(scans, changes, strict=True))
    root = slope**2 - curvature * excess
    return (slope - root**0.5) / curvature if root >= 0 else float("inf")


def _product(scan: Observation, first: torch.Tensor, second: torch.Tensor) -> float:
    return total(scan.precision * first * second)


def _dot(first: torch.Tensor, second: torch.Tensor) -> float:
    return total(first * second)
