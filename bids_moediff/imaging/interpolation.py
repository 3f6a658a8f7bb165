# SPDX-License-Identifier: Apache-2.0
"""Interpolate to the output grid, with or without agreement with the scan.

These are the baselines of every comparison, and the start of every network.
"""

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from .acquisition import Operator, _along
from .grid import Shape, Triple


@lru_cache(maxsize=64)
def _spline_matrix(
    n_coarse: int, d_coarse: float, n_fine: int, d_fine: float, order: int
) -> np.ndarray | None:
    """Return the matrix (n_fine, n_coarse) of scipy's spline interpolation along one axis."""
    if n_fine == n_coarse and abs(d_coarse / d_fine - 1) < 1e-4:
        return None
    position = (np.arange(n_fine) + 0.5) * d_fine / d_coarse - 0.5
    if order == 3:
        columns = ndimage.spline_filter1d(np.eye(n_coarse), order, axis=0, mode="mirror")
        return _bspline_rows(position, columns)
    grid = np.meshgrid(position, np.arange(n_coarse), indexing="ij")
    return ndimage.map_coordinates(np.eye(n_coarse), grid, order=order, mode="nearest")


def _bspline_rows(position: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return cubic B-spline sums of coefficients (n, n) along axis 0, with mirrored ends."""
    count = coefficients.shape[0]
    base = np.floor(position).astype(int)
    offset = position - base
    weights = [
        (1 - offset) ** 3 / 6,
        (3 * offset**3 - 6 * offset**2 + 4) / 6,
        (-3 * offset**3 + 3 * offset**2 + 3 * offset + 1) / 6,
        offset**3 / 6,
    ]
    period = max(2 * (count - 1), 1)
    rows = np.zeros((position.size, count))
    for step, weight in zip((-1, 0, 1, 2), weights, strict=True):
        index = np.abs((base + step) % period)
        index = np.where(index >= count, period - index, index)
        rows += weight[:, None] * coefficients[index]
    return rows


def bicubic(volume: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return a volume made finer or coarser by Keys' bicubic filter, with antialiasing.

    What computer vision calls bicubic: the kernel is stretched where voxels become coarser. Axes
    of the same size are left alone.

    Parameters
    ----------
    volume
        Intensities (x, y, z).
    shape
        New size of each axis; the outer corners stay.

    References
    ----------
    Keys, IEEE Transactions on Acoustics, Speech and Signal Processing 29:1153-1160, 1981.
    """
    for axis, size in enumerate(shape):
        if size != volume.shape[axis]:
            lines = volume.movedim(axis, -1)
            flat = lines.reshape(1, 1, -1, lines.shape[-1])
            made = torch.nn.functional.interpolate(
                flat, (flat.shape[2], size), mode="bicubic", align_corners=False, antialias=True
            )
            volume = made.reshape(*lines.shape[:-1], size).movedim(-1, axis)
    return volume.contiguous()


def interpolate(
    coarse: torch.Tensor,
    coarse_zooms: Triple,
    fine_shape: Shape,
    fine_zooms: Triple,
    order: int = 3,
) -> torch.Tensor:
    """Interpolate a volume by splines to a grid with the same outer corner.

    The result equals that of scipy.ndimage with mirrored ends.

    Parameters
    ----------
    coarse
        Volume (x, y, z).
    coarse_zooms, fine_zooms
        Voxel sizes in mm.
    fine_shape
        Voxel counts of the result.
    order
        1 (linear) or 3 (cubic).
    """
    matrices = []
    for n_c, d_c, n_f, d_f in zip(coarse.shape, coarse_zooms, fine_shape, fine_zooms, strict=True):
        matrix = _spline_matrix(n_c, round(d_c, 6), n_f, round(d_f, 6), order)
        matrices.append(
            None
            if matrix is None
            else torch.as_tensor(matrix, dtype=torch.float32, device=coarse.device)
        )
    return _along(coarse, matrices)


def back_projection(
    start: torch.Tensor,
    coarse: torch.Tensor,
    operator: Operator,
    coarse_zooms: Triple,
    fine_zooms: Triple,
    iterations: int = 10,
) -> torch.Tensor:
    """Apply iterative back-projection, x += up(y - A x).

    Parameters
    ----------
    start
        First estimate (X, Y, Z).
    coarse
        Scan y (x, y, z).
    operator
        A.
    coarse_zooms, fine_zooms
        Voxel sizes in mm.
    iterations
        Number of updates.

    References
    ----------
    Irani and Peleg, Improving resolution by image registration, CVGIP 53:231-239, 1991.
    """
    image = start
    shape: Shape = (start.shape[0], start.shape[1], start.shape[2])
    for _ in range(iterations):
        residual = coarse - operator.forward(image)
        image = image + interpolate(residual, coarse_zooms, shape, fine_zooms)
    return image


def initial_estimate(
    coarse: torch.Tensor,
    operator: Operator,
    coarse_zooms: Triple,
    fine_zooms: Triple,
    noise: float = 0.0,
) -> torch.Tensor:
    """Return cubic interpolation that agrees with the measurement: the start of every network.

    Parameters
    ----------
    coarse
        Scan (x, y, z).
    operator
        From the fine grid to the grid of the scan.
    coarse_zooms, fine_zooms
        Voxel sizes in mm.
    noise
        Standard deviation of the noise of the scan.
    """
    cubic = interpolate(coarse, coarse_zooms, operator.fine_shape, fine_zooms)
    return operator.project(cubic, coarse, noise)
