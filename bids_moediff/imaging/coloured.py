# SPDX-License-Identifier: Apache-2.0
"""Make noise with the colour of restoration errors: smoother than white noise.

In units of its local standard deviation, the error of a restored image has 100 to 1,000 times less
power at the highest frequencies than just above those that were measured. Over acquisitions and
scanners its spectrum is near that of white noise after a Gaussian filter of half a voxel
(research/notebook.md).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .acquisition import _along

WIDTH = 0.5  # output voxels, standard deviation


def smoother(size: int, width: float = WIDTH) -> Tensor:
    """Return a Gaussian average along an axis as a matrix (size, size), rows of norm one."""
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.exp(-0.5 * ((place[:, None] - place[None]) / width).square())
    matrix[matrix < 1e-5] = 0.0
    return (matrix / matrix.norm(dim=1, keepdim=True)).float()


def coloured(white: Tensor, measured: Sequence[Tensor | None]) -> Tensor:
    """Return coloured noise (X, Y, Z) with the variance of white noise in the unmeasured part.

    Parameters
    ----------
    white
        Unit white noise (X, Y, Z).
    measured
        R = A^+ A, one matrix for each axis, None for the identity.
    """
    filters = [smoother(size).to(white.device) for size in white.shape]
    # tr P over tr(P C), C = G G^T and P = I - R, as products over the axes.
    whole = kept = 1.0
    for matrix, average in zip(measured, filters, strict=True):
        size = len(average)
        if matrix is None:
            continue
        whole *= float(matrix.diagonal().sum()) / size
        kept *= float((matrix @ average).mul(average).sum()) / size
    gain = math.sqrt(max(1 - whole, 1e-6) / max(1 - kept, 1e-6))
    return gain * _along(white, filters)
