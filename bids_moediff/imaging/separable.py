# SPDX-License-Identifier: Apache-2.0
"""Operations on volumes that go axis by axis, each axis as one small matrix.

Products of matrices use the processor's wide registers, which the filters of scipy do not: the
same numbers but for rounding, several times as fast. Deterministic for one thread of OpenBLAS.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def along_axes(data: np.ndarray, matrices: Sequence[np.ndarray | None]) -> np.ndarray:
    """Apply to each axis of ``data`` its matrix (size out, size in); None leaves an axis alone."""
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            data = np.moveaxis(np.tensordot(matrix, data, axes=(1, axis)), 0, axis)
    return data


def tent_matrix(
    size_in: int, zoom_in: float, size_out: int, zoom_out: float, shift: float = 0.0
) -> np.ndarray:
    """Linear interpolation, anti-aliased where the output grid is the coarser one.

    The input grid starts ``shift`` mm before the outer corner of the output grid. Returns
    (``size_out``, ``size_in``), rows sum to 1.
    """
    centres_in = (np.arange(size_in) + 0.5) * zoom_in - shift
    centres_out = (np.arange(size_out) + 0.5) * zoom_out
    centres_out = np.clip(centres_out, centres_in[0], centres_in[-1])
    distance = np.abs(centres_out[:, None] - centres_in[None, :])
    weights = np.maximum(0.0, 1.0 - distance / max(zoom_in, zoom_out))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def gaussian(data: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """What ``scipy.ndimage.gaussian_filter`` gives for widths in voxels, in ``data``'s type.

    Worth it for wide filters: the time does not depend on the width.
    """
    matrices = [
        ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0).astype(data.dtype)
        for size, sigma in zip(data.shape, sigmas, strict=True)
    ]
    return along_axes(data, matrices)
