# SPDX-License-Identifier: Apache-2.0
"""Ask whether an axis was interpolated from coarser voxels: do these reproduce the scan?

What linear interpolation or a cubic spline made lies in the space of the splines whose knots are
the measured voxels, whatever the anatomy. What a scanner measured does not, however soft it is.
"""

from collections.abc import Iterator

import numpy as np

PHASES = 10  # places of the first knot that are tried
SCALES = (0.0, -0.01, 0.01, -0.005, 0.005)  # the factor is known to about a hundredth
ORDERS = (1, 3)
MOST_LINES = 600
FEWEST_LINES = 50
SHARES = (0.6, 0.45, 0.3, 0.2)  # of a line's length, about its middle
LEAST_LENGTH = 24


def middle_of_lines(lines: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
    """Return the middle (m, n) of those lines (k, length) that are valid throughout it.

    The longest middle that enough lines have; None if even the shortest is rare.
    """
    length = lines.shape[1]
    for share in SHARES:
        count = max(LEAST_LENGTH, int(length * share))
        start = (length - count) // 2
        whole = np.flatnonzero(valid[:, max(start, 0) : start + count].all(axis=1))
        if start >= 0 and len(whole) >= FEWEST_LINES:
            chosen = whole[np.linspace(0, len(whole) - 1, min(MOST_LINES, len(whole))).astype(int)]
            return lines[chosen, start : start + count].astype(np.float64)
    return None


def spline_misfit(lines: np.ndarray, factor: float) -> float:
    """Return the mean square that no spline with knots ``factor`` voxels apart explains.

    Parameters
    ----------
    lines
        (m, n) intensities along the axis.
    factor
        Measured over stored voxel size.

    Returns
    -------
    float
        Least mean square over linear and cubic splines, places of the first knot, and factors
        within a hundredth; in squared units of ``lines``.
    """
    power = float((lines**2).sum())
    explained = max(
        float(((lines @ np.linalg.qr(splines)[0]) ** 2).sum())
        for splines in _bases(lines.shape[1], factor)
    )
    return max(power - explained, 0.0) / lines.size


def _bases(count: int, factor: float) -> Iterator[np.ndarray]:
    """Yield B-splines (count, knots) on the voxels of a line."""
    for scale in SCALES:
        spacing = factor * (1 + scale)
        for phase in np.arange(PHASES) / PHASES:
            place = np.arange(count) / spacing - phase
            for order in ORDERS:
                knots = np.arange(np.floor(place[0]) - 1, np.ceil(place[-1]) + 2)
                away = np.abs(place[:, None] - knots)
                values = _linear(away) if order == 1 else _cubic(away)
                yield values[:, values.max(axis=0) > 1e-3]


def _linear(away: np.ndarray) -> np.ndarray:
    return np.clip(1 - away, 0, None)


def _cubic(away: np.ndarray) -> np.ndarray:
    inner = 2 / 3 - away**2 + away**3 / 2
    return np.where(away < 1, inner, np.clip(2 - away, 0, None) ** 3 / 6)
