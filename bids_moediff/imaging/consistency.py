# SPDX-License-Identifier: Apache-2.0
"""Agreement with a measurement as far as its noise goes, frequency by frequency.

Exact agreement puts the measured noise back into a restored image. Here each frequency of what is
left unexplained counts by how far its power stands above that of the noise (Wiener's filter with
the power taken from the data; Morozov's discrepancy principle, frequency by frequency). Without
noise both functions are exact. Frequencies are those of the discrete cosine transform on the
measured grid, which knows no jump at the border.
"""

import math
from functools import lru_cache

import torch
from torch.nn import functional

from .acquisition import Operator, _along

# Neighbouring frequencies whose power is averaged, along each axis.
BAND = 5


@lru_cache(maxsize=32)
def cosines(count: int) -> torch.Tensor:
    """Orthonormal discrete cosine transform (DCT-II), (count, count)."""
    place = torch.arange(count, dtype=torch.float64)
    rows = torch.cos(math.pi / count * place[:, None] * (place[None] + 0.5))
    rows *= math.sqrt(2 / count)
    rows[0] /= math.sqrt(2)
    return rows.float()


def _matrices(image: torch.Tensor) -> list[torch.Tensor]:
    return [cosines(size).to(image.device) for size in image.shape]


def _band_mean(power: torch.Tensor) -> torch.Tensor:
    """Mean over neighbouring frequencies (X, Y, Z)."""
    padded = functional.pad(power[None, None], (BAND // 2,) * 6, mode="replicate")
    return functional.avg_pool3d(padded, BAND, 1)[0, 0]


def agree(
    operator: Operator, fine: torch.Tensor, measured: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """`fine` (X, Y, Z) changed so that it explains what of `measured` stands above the noise.

    Parameters
    ----------
    operator
        From the fine grid to the measured one.
    fine
        A restored image whose errors know nothing of the noise.
    measured
        What the scanner gave, on the coarse grid.
    noise
        Standard deviation of its noise; 0: exact agreement.
    """
    if noise <= 0:
        return operator.project(fine, measured)
    matrices = _matrices(measured)
    unexplained = _along(measured - operator.forward(fine), matrices)
    power = _band_mean(unexplained.square()).clamp_min(1e-20)
    kept = unexplained * (1 - noise**2 / power).clamp_min(0)
    return operator.correct(fine, _along(kept, [matrix.T for matrix in matrices]), noise)


def consistent_start(
    operator: Operator, smooth: torch.Tensor, measured: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """An interpolation (X, Y, Z) brought nearer to `measured`, as far as the noise allows.

    `smooth` is a linear function of `measured` and so holds its noise too. Each frequency is
    raised to the share that Wiener's filter would leave of it, and never below what `smooth` has.
    """
    if noise <= 0:
        return operator.project(smooth, measured)
    matrices = _matrices(measured)
    whole = _along(measured, matrices)
    reached = _along(operator.forward(smooth), matrices)
    power = _band_mean(whole.square()).clamp_min(1e-20)
    wanted = (1 - noise**2 / power).clamp(0, 1)
    has = (_band_mean(whole * reached) / power).clamp(0, 1)
    gain = ((wanted - has) / (1 - has).clamp_min(1e-3)).clamp(0, 1)
    lacking = _along(gain * (whole - reached), [matrix.T for matrix in matrices])
    return operator.correct(smooth, lacking, noise)
