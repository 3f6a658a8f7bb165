# SPDX-License-Identifier: Apache-2.0
"""Compute quality figures of a structural scan after MRIQC, under its names.

MRIQC: Esteban et al., PLoS ONE 12:e0184661, 2017. The formulas are those of its anatomical
measures. Tissue classes come from a mixture of three Gaussians inside the brain instead of a
registered segmentation, so figures that need them (cnr, cjv, wm2max, snr_*) can be compared within
this app, but not with MRIQC's numbers. A figure that cannot be computed is None.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.masks import head_mask_array, open_cubes
from bids_moediff.imaging.noise import estimate_noise
from bids_moediff.imaging.spectrum import AxisResolution, acquired_resolution
from bids_moediff.quality.familiarity import novelty, scan_figures
from bids_moediff.quality.input_checks import PreparedScan, doubts_about, prepare

Figures = dict[str, float | str | None]

# What the tissues are called from dark to bright; other contrasts have no such rule.
TISSUE_ORDER = {"T1w": ("csf", "gm", "wm"), "T2w": ("wm", "gm", "csf")}

DESCRIPTIONS: dict[str, str] = {
    "cjv": "coefficient of joint variation of grey and white matter (Ganzetti 2016); lower is "
    "better",
    "cnr": "contrast of white to grey matter over the noise (Magnotta 2006); higher is better",
    "efc": "entropy focus criterion (Atkinson 1997), 0 to 1: ghosting and blurring raise it",
    "fber": "energy in the head over that in the air (median squares); none if air was deleted",
    "fwhm_avg": "mean of the three smoothness widths",
    "fwhm_x": "smoothness (full width at half maximum) along the first voxel axis in mm",
    "fwhm_y": "smoothness along the second voxel axis in mm",
    "fwhm_z": "smoothness along the third voxel axis in mm",
    "noise_sigma": "noise standard deviation in intensity units (flat tissue, else air)",
    "noise_air": "Rayleigh scale of the air in intensity units; none where air was deleted",
    "qi_1": "share of the air with signal far above the noise (after Mortamet 2009); lower is "
    "better",
    "snr_brain": "median intensity in the brain over its noise; higher is better",
    "snr_csf": "median of cerebrospinal fluid over its standard deviation",
    "snr_gm": "median of grey matter over its standard deviation",
    "snr_wm": "median of white matter over its standard deviation",
    "snr_total": "mean of those of snr_csf, snr_gm and snr_wm that are known",
    "snrd_brain": "median intensity in the brain over the air's noise (Dietrich 2007)",
    "distance_from_training": "root mean square of nine figures' distances from the training "
    "images, in standard deviations over their sources; above 2.5 the scan is unlike them",
    "furthest_figure": "the one of these nine that lies furthest off",
    "wm2max": "median of white matter over the 99.95th percentile of the image",
    "brain_volume": "volume of the brain mask in ml",
}
_AXES = ("x", "y", "z")
for _axis, _name in zip(_AXES, ("first", "second", "third"), strict=True):
    DESCRIPTIONS[f"size_{_axis}"] = f"voxels along the {_name} axis"
    DESCRIPTIONS[f"spacing_{_axis}"] = f"voxel size along the {_name} axis in mm"
    DESCRIPTIONS[f"usable_{_axis}"] = (
        f"finest scale with signal above the noise along the {_name} axis in mm"
    )
    DESCRIPTIONS[f"acquired_{_axis}"] = (
        f"voxel size along the {_name} axis in mm before interpolation, if any was found"
    )
    DESCRIPTIONS[f"interpolation_{_axis}"] = (
        f"native, zero-filled, interpolated or unknown, along the {_name} axis"
    )
_STATISTICS = {
    "mean": "mean", "median": "median", "stdv": "standard deviation",
    "mad": "median absolute deviation", "k": "excess kurtosis", "p05": "5th percentile",
    "p95": "95th percentile", "n": "number of voxels",
}  # fmt: skip
for _key, _words in _STATISTICS.items():
    DESCRIPTIONS[f"summary_brain_{_key}"] = f"{_words} inside the brain mask"
    DESCRIPTIONS[f"summary_bg_{_key}"] = f"{_words} outside the head"


@dataclass(frozen=True)
class Tissue:
    """Mean, standard deviation and share of one tissue class inside the brain."""

    mean: float
    deviation: float
    share: float


def tissue_classes(values: np.ndarray, suffix: str) -> dict[str, Tissue] | None:
    """Fit tissue classes as Gaussians to the intensities ``values`` (n,) inside the brain.

    There are three classes, or grey and white matter alone if the brain mask leaves the fluid out.
    None for contrasts without a fixed order of tissues, and if classes cannot be separated: too
    small a share of the brain, neighbours closer than one mean standard deviation, or a fit that
    is hardly better than a single Gaussian.
    """
    order = TISSUE_ORDER.get(suffix)
    low, high = np.percentile(values, [0.1, 99.9]) if len(values) else (0.0, 0.0)
    values = values[(values >= low) & (values <= high)]
    if order is None or len(values) < 1000 or high <= low:
        return None
    sample = np.sort(values)[:: max(1, len(values) // 20000)].astype(np.float64)[:, None]
    three, three_misfit = _mixture(sample, [10, 40, 80], order, 0.03)
    pair = tuple(name for name in order if name != "csf")
    two, two_misfit = _mixture(sample, [25, 75], pair, 0.2)
    return three if three is not None and (two is None or three_misfit < two_misfit) else two


def _mixture(
    sample: np.ndarray, percentiles: list[float], names: tuple[str, ...], least_share: float
) -> tuple[dict[str, Tissue] | None, float]:
    """Return the classes, if they are separable, and the Bayesian information criterion."""
    from sklearn.mixture import GaussianMixture

    start = np.percentile(sample, percentiles)[:, None]
    mixture = GaussianMixture(len(names), means_init=start, random_state=0, tol=1e-4, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unfinished fit is caught by the checks below
        mixture.fit(sample)
    misfit = float(mixture.bic(sample))
    single = float(GaussianMixture(1).fit(sample).bic(sample))
    rank = np.argsort(mixture.means_[:, 0])
    mean = mixture.means_[rank, 0]
    deviation = np.sqrt(mixture.covariances_[rank, 0, 0])
    apart = np.diff(mean) / ((deviation[1:] + deviation[:-1]) / 2)
    better = single - misfit > 0.01 * len(sample)
    if not better or mixture.weights_.min() < least_share or apart.min() < 1:
        return None, misfit
    classes = {
        name: Tissue(float(mean[i]), float(deviation[i]), float(mixture.weights_[rank[i]]))
        for i, name in enumerate(names)
    }
    return classes, misfit


def entropy_focus(data: np.ndarray) -> float:
    """Return EFC, scaled to 1 for a constant image.

    E = - sum (x/X) ln(x/X) with X the root of the sum of squares, over its largest value
    sqrt(n) ln sqrt(n).

    References
    ----------
    Atkinson et al., IEEE Transactions on Medical Imaging 16:903-910, 1997.
    """
    values = np.abs(data[data != 0].astype(np.float64))
    total = np.sqrt(values @ values)
    if total == 0 or data.size < 2:
        return 0.0
    largest = np.sqrt(data.size) * np.log(np.sqrt(data.size))
    values /= total
    return float(-(values @ np.log(values)) / largest)


def foreground_background_ratio(data: np.ndarray, head: np.ndarray) -> float | None:
    """Return FBER: median squared intensity in the head over that in the air; None without air."""
    inside, outside = data[head > 0], data[head == 0]
    if not len(inside) or not len(outside):
        return None
    below = _median_square(outside)
    return _median_square(inside) / below if below > 0 else None


def _median_square(values: np.ndarray) -> float:
    """Return the median of the squares; order statistics of 32-bit floats take half the time."""
    middle = [(len(values) - 1) // 2, len(values) // 2]
    return float(np.mean(np.partition(np.abs(values), middle)[middle].astype(np.float64) ** 2))


def percentiles(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return ``np.percentile`` of 64-bit values from 32-bit ones, in half the time.

    Parameters
    ----------
    values
        (n,), at least one.
    shares
        In percent.
    """
    places = (len(values) - 1) * np.asarray(shares, dtype=np.float64) / 100
    ranks = np.floor(places).astype(int)
    above = np.minimum(ranks + 1, len(values) - 1)
    ordered = np.partition(values, np.unique([*ranks, *above]))
    low, high = ordered[ranks].astype(np.float64), ordered[above].astype(np.float64)
    return np.asarray(low + (high - low) * (places - ranks))


def smoothness(data: np.ndarray, mask: np.ndarray, zooms: tuple[float, ...]) -> tuple[float, ...]:
    """Return the FWHM in mm per axis from first differences.

    FWHM = d sqrt(-2 ln 2 / ln(1 - var(difference) / (2 var(signal)))), with d the voxel size. It
    is exact for white noise smoothed by a Gaussian, and an upper bound in anatomy. It is 0 without
    any correlation, and infinite if neighbours never differ.

    References
    ----------
    Forman et al., Magnetic Resonance in Medicine 33:636-647, 1995.
    """
    inside = mask > 0
    variance = float(np.var(data[inside], dtype=np.float64)) if inside.any() else 0.0
    widths = []
    for axis, zoom in enumerate(zooms):
        both = np.delete(inside, 0, axis) & np.delete(inside, -1, axis)
        step = np.diff(data, axis=axis)[both].astype(np.float64)
        correlation = 1 - np.mean(step**2) / (2 * variance) if len(step) and variance > 0 else 0.0
        if 0 < correlation < 1:
            width = float(zoom * np.sqrt(-2 * np.log(2) / np.log(correlation)))
        else:
            width = 0.0 if correlation <= 0 else math.inf
        widths.append(width)
    return tuple(widths)


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Return MRIQC's summary of intensities; every entry is None for an empty sample."""
    if not len(values):
        return {**dict.fromkeys(_STATISTICS), "n": 0.0}
    low, middle, high = percentiles(values, (5, 50, 95))
    values = values.astype(np.float64)
    away = np.square(values - values.mean())
    variance = float(away.mean())
    return {
        "mean": float(values.mean()),
        "median": float(middle),
        "stdv": float(np.sqrt(variance)),
        "mad": float(np.median(np.abs(values - middle))),
        "k": float(away @ away) / len(away) / variance**2 - 3 if np.ptp(values) else None,
        "p05": float(low),
        "p95": float(high),
        "n": float(len(values)),
    }


def air_artefact(data: np.ndarray, head: np.ndarray, scale: float | None) -> float | None:
    """Return the share of the air whose signal exceeds Rayleigh noise of ``scale`` (after QI1).

    It counts voxels above the 99.9th percentile of the noise that survive a morphological opening,
    over all voxels outside the head.

    References
    ----------
    Mortamet et al., Magnetic Resonance in Medicine 62:365-372, 2009.
    """
    air = head == 0
    if scale is None or not air.any():
        return None
    bright = (data > scale * np.sqrt(-2 * np.log(1e-3))) & air
    return float(open_cubes(bright).sum() / air.sum())


def _tissue_figures(
    classes: dict[str, Tissue] | None, noise: float | None, top: float
) -> dict[str, float | None]:
    names = ("cjv", "cnr", "wm2max", "snr_csf", "snr_gm", "snr_wm", "snr_total")
    if classes is None:
        return dict.fromkeys(names)
    grey, white = classes["gm"], classes["wm"]
    contrast = abs(white.mean - grey.mean)
    spread = np.sqrt((noise or 0.0) ** 2 + grey.deviation**2 + white.deviation**2)
    ratios = {f"snr_{name}": tissue.mean / tissue.deviation for name, tissue in classes.items()}
    ratios["snr_total"] = sum(ratios.values()) / len(ratios)
    return {
        "snr_csf": None,
        "cjv": (grey.deviation + white.deviation) / contrast,
        "cnr": float(contrast / spread),
        "wm2max": white.mean / top,
        **ratios,
    }


def _resolution_figures(axes: tuple[AxisResolution, ...]) -> Figures:
    figures: Figures = {}
    for name, axis in zip(_AXES, axes, strict=True):
        known = axis.kind != "unknown"
        figures[f"usable_{name}"] = axis.usable if known else None
        figures[f"acquired_{name}"] = axis.acquired
        figures[f"interpolation_{name}"] = axis.kind
    return figures


def _novelty_figures(scan: PreparedScan) -> Figures:
    figures = scan_figures(scan.data, scan.brain, scan.depth, scan.zooms)
    if figures is None:
        return {"distance_from_training": None, "furthest_figure": None}
    found = novelty(figures, scan.suffix)
    return {"distance_from_training": found.distance, "furthest_figure": found.furthest}


def quality_figures(
    data: np.ndarray, affine: np.ndarray, mask: np.ndarray, suffix: str = "T1w"
) -> Figures:
    """Return all quality figures of a scan.

    Parameters
    ----------
    data
        (x, y, z) intensities.
    affine
        4x4, voxel to mm.
    mask
        (x, y, z) brain mask, non-zero inside.
    suffix
        BIDS suffix; tissue classes are separated for T1w and T2w only.

    Returns
    -------
    dict
        Names are the keys of :data:`DESCRIPTIONS`; a figure that cannot be computed is None.

    Raises
    ------
    ValueError
        If the mask has another shape than the image.
    """
    data = np.nan_to_num(np.asarray(data, dtype=np.float32), posinf=0.0, neginf=0.0)
    inside = np.asarray(mask) > 0
    if inside.shape != data.shape:
        raise ValueError(f"mask {inside.shape} and image {data.shape} differ in shape")
    image = nib.Nifti1Image(data, affine)
    scan = prepare(image, nib.Nifti1Image(inside.astype(np.uint8), affine), suffix)
    head = head_mask_array(data, voxel_sizes(affine)) | inside
    return _figures(data, inside, head, voxel_sizes(affine), scan)


def judge(
    image: nib.Nifti1Image, mask: nib.Nifti1Image, suffix: str, metadata: Mapping[str, Any]
) -> tuple[Figures, list[str]]:
    """Return quality figures of a conformed scan, and its quality warnings.

    The same as :func:`quality_figures` and then
    :func:`bids_moediff.quality.input_checks.find_doubts`, which share half of their work.
    """
    # In C order: values inside a mask are then read in the order of memory.
    data = np.ascontiguousarray(image.dataobj, dtype=np.float32)
    inside = np.ascontiguousarray(mask.dataobj) > 0
    zooms = voxel_sizes(image.affine)
    head = head_mask_array(data, zooms) | inside
    scan = prepare(image, mask, suffix, metadata, head=head)
    figures = _figures(data, inside, head, zooms, scan)
    return figures, doubts_about(replace(scan, figures=figures))


def _figures(
    data: np.ndarray,
    inside: np.ndarray,
    head: np.ndarray,
    zooms: tuple[float, float, float],
    scan: PreparedScan,
) -> Figures:
    """Return all figures of finite data; ``scan`` is the same, prepared for the checks."""
    noise = estimate_noise(data, inside, head, zooms)
    brain = data[inside]
    middle = float(np.median(brain)) if len(brain) else None
    top = float(np.percentile(data, 99.95)) or 1.0
    widths = smoothness(data, inside, zooms)
    figures: Figures = {
        **_tissue_figures(tissue_classes(brain[brain != 0], scan.suffix), noise.air, top),
        "efc": entropy_focus(data),
        "fber": foreground_background_ratio(data, head),
        "qi_1": air_artefact(data, head, noise.air),
        "noise_sigma": noise.sigma,
        "noise_air": noise.air,
        "snr_brain": middle / noise.sigma if middle is not None and noise.sigma else None,
        # Dietrich's sqrt(2 / (4 - pi)) times the deviation of Rayleigh air is its scale.
        "snrd_brain": middle / noise.air if middle is not None and noise.air else None,
        "fwhm_avg": float(np.mean(widths)),
        "brain_volume": float(inside.sum() * np.prod(zooms) / 1000),
        **_resolution_figures(acquired_resolution(data, zooms, inside)),
        **_novelty_figures(scan),
    }
    for axis, name in enumerate(_AXES):
        figures[f"fwhm_{name}"] = widths[axis]
        figures[f"size_{name}"] = float(data.shape[axis])
        figures[f"spacing_{name}"] = zooms[axis]
    for region, where in (("brain", inside), ("bg", ~head)):
        for key, value in summary(data[where]).items():
            figures[f"summary_{region}_{key}"] = value
    return {name: _known(figures[name]) for name in DESCRIPTIONS}


def _known(value: float | str | None) -> float | str | None:
    """Return a figure, or None if it is not a finite number (JSON has no other word for that)."""
    if isinstance(value, str) or value is None:
        return value
    return value if math.isfinite(value) else None
