# SPDX-License-Identifier: Apache-2.0
"""Warn about acquisitions outside the range that the networks were trained on."""

from collections.abc import Mapping, Sequence

import numpy as np

from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.grid import NOT_RESTORED, gets_finer

# Per axis: input voxel over output voxel (1, an axis left alone, was trained as well), the most of
# it on more than one axis, voxel sizes in mm, and slice thickness over slice spacing
# (docs/science.md, section 7; imaging/simulation.py).
RATIOS = (1.2, 6.0)
SEVERAL_AXES = 3.0
VOXEL_SIZES = (0.3, 8.0)
PROFILE_WIDTHS = (0.7, 1.2)
_TOLERANCE = 1.01
_SAME = 1.02  # smaller differences of two voxel sizes are rounding of headers


def range_warnings(
    coarse: Sequence[float], fine: Sequence[float], acquisition: Acquisition
) -> list[str]:
    """Return one sentence for each way in which an image lies outside the trained range.

    Parameters
    ----------
    coarse, fine
        Voxel sizes in mm of the scan and of the output, by axis.
    acquisition
        How the scan was sampled.
    """
    if not gets_finer(coarse, fine):
        return [NOT_RESTORED]
    ratios = [c / f for c, f in zip(coarse, fine, strict=True)]
    said = []
    if max(ratios) > RATIOS[1] * _TOLERANCE:
        said.append(
            f"The voxel ratio of {max(ratios):.1f} is beyond the {RATIOS[1]:g} the model was "
            "trained for; do not rely on fine detail."
        )
    second = sorted(ratios)[-2]
    if second > SEVERAL_AXES * _TOLERANCE:
        said.append(
            f"More than one axis has a voxel ratio of {second:.1f} or more, beyond the "
            f"{SEVERAL_AXES:g} the model was trained for on several axes at once; do not rely on "
            "fine detail."
        )
    # Beside a larger ratio, a small one lies between two that were trained: 1 and 1.2.
    if max(ratios) < RATIOS[0] / _TOLERANCE:
        said.append(
            f"The largest voxel ratio, {max(ratios):.2f}, is below the {RATIOS[0]:g} that the "
            "model was trained for: it gains little over interpolation."
        )
    if min(fine) < VOXEL_SIZES[0] / _TOLERANCE:
        said.append(
            f"Output voxels of {min(fine):.3g} mm are finer than the {VOXEL_SIZES[0]:g} mm the "
            "model is meant for; do not rely on fine detail."
        )
    if max(coarse) > VOXEL_SIZES[1] * _TOLERANCE:
        said.append(
            f"Scanned voxels of {max(coarse):.3g} mm are coarser than the {VOXEL_SIZES[1]:g} mm "
            "the model is meant for; the result is a guess."
        )
    return said + _width_warnings(ratios, acquisition)


def _width_warnings(ratios: Sequence[float], acquisition: Acquisition) -> list[str]:
    widths = [
        axis.fwhm
        for axis, ratio in zip(acquisition.axes, ratios, strict=True)
        if axis.profile in ("gaussian", "box") and ratio > _SAME
    ]
    low, high = PROFILE_WIDTHS
    outside = [w for w in widths if w < low / _TOLERANCE or w > high * _TOLERANCE]
    if not outside:
        return []
    return [
        f"Slices were taken as {outside[0]:.2f} times as thick as their spacing, outside the "
        f"{low:g} to {high:g} the model was trained for."
    ]


def estimate_remark(acquisition: Acquisition, likelihood: Mapping[str, float]) -> str | None:
    """Return a sentence on slices that were read from the image and lie outside the trained range.

    Parameters
    ----------
    acquisition
        As it was estimated.
    likelihood
        Of each profile that was compared.
    """
    if not likelihood or not _width_warnings((2.0, 2.0, 2.0), acquisition):
        return None
    likely = sorted(likelihood.items(), key=lambda item: -item[1])[:3]
    words = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in likely)
    return (
        f"This thickness is an estimate from the image, not a statement; the likeliest profiles "
        f"(width over distance): {words}. --slice-profile and --slice-thickness overrule it."
    )


def residual_warning(data: np.ndarray, noise: float, relative: float) -> str | None:
    """Return a sentence if a result, measured again, differs from the scan by more than noise.

    Parameters
    ----------
    data
        The scan (x, y, z).
    noise
        Standard deviation of its noise in its units, 0 if unknown.
    relative
        Relative consistency residual ||A x - y|| / ||y||. Below 0.001 it is rounding.
    """
    residual = relative * float(np.sqrt(np.mean(np.square(data, dtype=np.float64))))
    if noise <= 0 or relative < 1e-3 or residual < 1.1 * noise:
        return None
    return (
        f"Measured again, the result differs from the scan by {residual / noise:.1f} times the "
        "scan's noise: it does not explain the scan. Do not rely on it."
    )
