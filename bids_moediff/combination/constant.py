# SPDX-License-Identifier: Apache-2.0
"""A constant that was added to every voxel of a scan: air is then far from zero."""

import numpy as np

LOW, HIGH = 1.0, 99.5  # percentiles


def added_constant(data: np.ndarray) -> float:
    """Level of the air, where it is further from zero than the scan's range; else 0.

    A smaller one is not told from a field of view without air.
    """
    low, high = np.percentile(data[np.isfinite(data)], (LOW, HIGH))
    return float(low) if abs(low) > high - low > 0 else 0.0
