# SPDX-License-Identifier: Apache-2.0
"""Describe one scan of the common volume: its own linear map and noise."""

from dataclasses import dataclass

import torch

from bids_moediff.imaging.acquisition import Operator

from .resampling import Resampler


def total(values: torch.Tensor) -> float:
    """Sum of (X, Y, Z) in double precision, the same whatever the number of threads."""
    # Threads share out the rows; a sum to one number would be shared out itself.
    return float(values.sum(dim=-1, dtype=torch.float64).numpy().sum())


@dataclass(frozen=True)
class Observation:
    """One scan as equations: measured = shading * A(move(volume)) + noise.

    Parameters
    ----------
    measured
        (x, y, z) voxels of the scan, on the common scale.
    resampler
        From the common grid to the scan's fine grid.
    operator
        From the scan's fine grid to its voxels.
    sigma
        Standard deviation of the noise on the common scale.
    shading
        Smooth factor at the scan's voxels, relative to the first scan.
    weights
        Confidence (0 to 1) in each voxel, of a shape that broadcasts to the scan's.
    """

    measured: torch.Tensor
    resampler: Resampler
    operator: Operator
    sigma: float
    shading: torch.Tensor
    weights: torch.Tensor

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the scan (x, y, z) that ``volume`` (X, Y, Z) would give."""
        return self.shading * self.operator.forward(self.resampler.forward(volume))

    def adjoint(self, coarse: torch.Tensor) -> torch.Tensor:
        """Adjoint of :meth:`forward`."""
        return self.resampler.adjoint(self.operator.adjoint(self.shading * coarse))

    @property
    def precision(self) -> torch.Tensor:
        """Inverse variance of each voxel."""
        return self.weights / self.sigma**2

    def residual(self, volume: torch.Tensor) -> torch.Tensor:
        """Return measured minus expected of ``volume``."""
        return self.measured - self.forward(volume)

    def misfit(self, residual: torch.Tensor) -> float:
        """Return the root mean square of a residual over the noise, weighted by voxel."""
        weights = self.weights.expand_as(residual)
        squares = total(weights * residual * residual)
        return (squares / max(total(weights), 1.0)) ** 0.5 / self.sigma
