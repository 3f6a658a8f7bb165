# SPDX-License-Identifier: Apache-2.0
"""Make images agree with a measurement within its noise, by frequency and by place.

Exact agreement puts the measured noise back into a restored image. Here each frequency of the
unexplained measurement counts by how far its power exceeds that of the noise (Wiener's filter with
the power taken from the data; Morozov's discrepancy principle, frequency by frequency), and then
each place of the rest. Without noise both functions are exact. Frequencies are those of the
discrete cosine transform on the measured grid, which has no jump at the border.
"""

import math
from functools import lru_cache

import torch
from torch.nn import functional

from .acquisition import Operator, _along

# Neighbouring frequencies whose power is averaged, along each axis.
BAND = 5
# Voxels of the measurement whose power is averaged, along each axis.
WINDOW = 3
# A network lets some of the noise pass, so less than its power is left unexplained at a place. The
# share was chosen on training images (research/notebook.md).
LEFT_SHARE = 0.5


@lru_cache(maxsize=32)
def cosines(count: int) -> torch.Tensor:
    """Return the orthonormal discrete cosine transform (DCT-II), (count, count)."""
    place = torch.arange(count, dtype=torch.float64)
    rows = torch.cos(math.pi / count * place[:, None] * (place[None] + 0.5))
    rows *= math.sqrt(2 / count)
    rows[0] /= math.sqrt(2)
    return rows.float()


def _matrices(image: torch.Tensor) -> list[torch.Tensor]:
    return [cosines(size).to(image.device) for size in image.shape]


def _band_mean(power: torch.Tensor, size: int = BAND) -> torch.Tensor:
    """Return the mean over neighbouring frequencies or places (X, Y, Z)."""
    padded = functional.pad(power[None, None], (size // 2,) * 6, mode="replicate")
    return functional.avg_pool3d(padded, size, 1)[0, 0]


def _above(values: torch.Tensor, variance: float, size: int) -> torch.Tensor:
    """Return what Wiener's filter leaves of values (X, Y, Z) in noise of a variance."""
    power = _band_mean(values.square(), size).clamp_min(1e-20)
    return values * (1 - variance / power).clamp_min(0)


def agree(
    operator: Operator, fine: torch.Tensor, measured: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """Change an image so that it explains the part of the measurement above the noise.

    The noise is everywhere. What a network took for noise at one place, such as an edge, is
    anatomy and is put back.

    Parameters
    ----------
    operator
        From the fine grid to the measured one.
    fine
        Restored image (X, Y, Z).
    measured
        Scan (x, y, z) on the coarse grid.
    noise
        Standard deviation of its noise; 0 for exact agreement.

    Returns
    -------
    torch.Tensor
        Image (X, Y, Z).
    """
    if noise <= 0:
        return operator.project(fine, measured)
    matrices = _matrices(measured)
    unexplained = measured - operator.forward(fine)
    bands = _above(_along(unexplained, matrices), noise**2, BAND)
    kept = _along(bands, [matrix.T for matrix in matrices])
    kept = kept + _above(unexplained - kept, LEFT_SHARE * noise**2, WINDOW)
    return operator.correct(fine, kept, noise)


def consistent_start(
    operator: Operator, smooth: torch.Tensor, measured: torch.Tensor, noise: float = 0.0
) -> torch.Tensor:
    """Bring an interpolation nearer to the measurement, as far as the noise allows.

    ``smooth`` is a linear function of ``measured``, so it holds the noise too. Each frequency is
    raised to the share that Wiener's filter would leave of it, and never below its share in
    ``smooth``.

    Parameters
    ----------
    operator
        From the fine grid to the measured one.
    smooth
        Interpolation (X, Y, Z) of ``measured``.
    measured
        Scan (x, y, z).
    noise
        Standard deviation of its noise.

    Returns
    -------
    torch.Tensor
        Image (X, Y, Z).
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
