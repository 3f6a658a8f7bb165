# SPDX-License-Identifier: Apache-2.0
"""Fit scale and smooth shading of one scan relative to another: a polynomial of second degree.

It is the mean ratio of measured to expected values, region by region. A regression would be
biased: noise in the expected values would draw its slope towards zero.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

DEGREE = 2
STRONGEST = 3.0  # times weaker or stronger than its mean: more is a misfit, not shading
DARKEST = 0.1  # of the common range: darker voxels say nothing of the shading
NOISIEST = 2.5  # times the noise: below, magnitudes are mostly noise
# Voxels, standard deviation. Noise that takes part in the choice of voxels changes their ratio: at
# 6 % noise it cost 2.3 dB (research/notebook.md).
SMOOTHING = 2.0
STIFF = 1e-2  # how little the polynomial leaves a constant where no voxel says so
MOST_VOXELS = 200_000


def polynomial(shape: Sequence[int], degree: int = DEGREE) -> np.ndarray:
    """Monomials up to `degree` on a grid, (terms, x, y, z); coordinates run from -1 to 1."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    terms = [
        axes[0] ** i * axes[1] ** j * axes[2] ** k
        for i in range(degree + 1)
        for j in range(degree + 1 - i)
        for k in range(degree + 1 - i - j)
    ]
    return np.stack([np.broadcast_to(term, shape) for term in terms]).astype(np.float32)


def fit_shading(
    measured: np.ndarray, expected: np.ndarray, weights: np.ndarray, sigma: float = 0.0
) -> np.ndarray:
    """Coefficients of the polynomial p with measured = p * expected on average in every region.

    Solves sum w t (measured - p expected) = 0 for every term t of the polynomial. A scan that
    overlaps too little gets a constant.

    Parameters
    ----------
    measured, expected
        (x, y, z) in the same units.
    weights
        Confidence in each voxel, (x, y, z); 0 leaves it out.
    sigma
        Noise of the larger of the two, in the same units.
    """
    step = max(1, int(np.ceil((measured.size / MOST_VOXELS) ** (1 / 3))))
    part = (slice(None, None, step),) * 3
    bright = ndimage.gaussian_filter((measured + expected) / 2, SMOOTHING)
    used = (weights[part] > 0) & (bright[part] > max(DARKEST, NOISIEST * sigma))
    count = len(polynomial((2, 2, 2)))
    constant = np.zeros(count)
    constant[0] = 1.0
    if used.sum() < 20 * count:
        return constant
    terms = polynomial(measured.shape)[(slice(None), *part)][:, used].astype(np.float64)
    weighted = terms * weights[part][used]
    y, e = measured[part][used].astype(np.float64), expected[part][used].astype(np.float64)
    constant[0] = float((weighted[0] @ y) / (weighted[0] @ e))
    system = (weighted * e) @ terms.T
    # A little towards the constant: regions that hold no voxel are not extrapolated wildly.
    ridge = STIFF * system[0, 0] * np.eye(count)
    ridge[0, 0] = 0.0
    return np.asarray(np.linalg.solve(system + ridge, weighted @ y + ridge @ constant))


def shading_map(coefficients: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Values of the polynomial on a grid over the same field of view, float32."""
    values = np.tensordot(coefficients, polynomial(shape), axes=1)
    middle = float(coefficients[0])
    return np.clip(values, middle / STRONGEST, middle * STRONGEST).astype(np.float32)
