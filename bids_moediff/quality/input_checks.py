# SPDX-License-Identifier: Apache-2.0
"""Quality warnings: what is unusual about a scan before it is super-resolved.

The networks learned from whole heads of adults, measured once, in usual contrasts. A warning never
stops an image: every check returns one sentence, for log, sidecar and report, or None. Checks of
intensities work at about 2 mm on the closest-to-RAS grid.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation
from scipy import ndimage

from bids_moediff.imaging.grid import steps_to, voxel_sizes
from bids_moediff.imaging.masks import distance_to, head_mask_array
from bids_moediff.imaging.separable import gaussian
from bids_moediff.imaging.spectrum import interpolation_warning
from bids_moediff.quality.familiarity import FAR, FIGURES, TINY

WORKING = 2.0  # mm
SIDES = (("left", "right"), ("back", "front"), ("lower", "upper"))
# What suffixes should look like. On the shared heads, core over rim and brightest 2 % over median
# are 1.2 to 2.0 and below 1.9 for T1w, 0.8 to 0.95 and above 2.1 for T2w, 0.86 and below 1.5 for
# FLAIR.
LOOKS = {
    "T1w": "T1-weighted (white matter is brightest)",
    "T2w": "T2-weighted (fluid is brightest)",
    "FLAIR": "like a FLAIR image (grey matter is brightest, fluid is dark)",
}
# Limits that no head of a contrast passes: 1.2 is the least core over rim of T1w, 2.1 the least
# brightness of fluid in T2w, 1.5 the largest in FLAIR.
DARK_CORE, FAINT_FLUID, BRIGHT_FLUID_IN_FLAIR = 1.0, 1.8, 1.8
# Local spread in the calmest tenth of the inner brain over the range of the brain: 0.06 to 0.13 on
# heads, 0.02 to 0.06 in objects of uniform parts (that of noise alone, where they are one part).
LEAST_SPREAD = 0.045
# Brightest tenth of the vein along the top of the brain over white matter: 0.5 to 0.9 on heads
# without a contrast agent, 1.3 with one.
BRIGHT_VEIN = 1.1
EXPECTED = {"T1w": "T1w", "UNIT1": "T1w", "T2w": "T2w", "PDT2": "T2w", "FLAIR": "FLAIR"}
# Shading of coils makes the rim bright. Over the mean within some 12 mm it is gone: there, the
# brightest 2 % of T1w brains are 1.2 to 1.4 times the median (2.6 of a T2w one), and the depth is
# 0.95 to 1.2 times the rim, under shading of up to 6 to 1.
FLAT_SIGMA, FLUID_WITHOUT_SHADING = 12.0, 1.8
DEPTH_WITHOUT_SHADING = 0.93
LARGEST_BRAIN = 2200.0  # ml; a larger mask holds more than a brain
MAPS = {
    "T1map": "relaxation times", "T2map": "relaxation times", "T2star": "relaxation times",
    "PDmap": "proton densities",
}  # fmt: skip
BRIGHT_FLUID = frozenset({"T2w", "PDT2", "inplaneT2"})
# Grids (voxels, at 1 mm) of usual templates: MNI152 of FSL, ICBM 2009c, ICBM 2009a, colin27.
TEMPLATE_SHAPES = ((182, 218, 182), (193, 229, 193), (197, 233, 189), (181, 217, 181))


@dataclass(frozen=True)
class PreparedScan:
    """A scan prepared for the checks: closest-to-RAS, at about 2 mm where it was finer.

    ``depth`` is the distance in mm from the outline of the brain, 0 outside.
    """

    data: np.ndarray
    brain: np.ndarray
    head: np.ndarray
    depth: np.ndarray
    zooms: tuple[float, float, float]
    shape: tuple[int, ...]
    full_zooms: tuple[float, float, float]
    suffix: str
    metadata: Mapping[str, Any]
    figures: Mapping[str, Any]

    @property
    def middle(self) -> float:
        """Median intensity of the brain, at least a tiny number."""
        return max(float(np.median(self.data[self.brain])), TINY) if self.brain.any() else TINY


def prepare(
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    suffix: str,
    metadata: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    head: np.ndarray | None = None,
) -> PreparedScan:
    """Bring an image and its brain mask to the form that the checks need.

    ``head`` is the mask of the head on the grid of the image, where it is known already.
    """
    canonical, brain = nib.as_closest_canonical(image), nib.as_closest_canonical(mask)
    data = np.nan_to_num(np.asarray(canonical.dataobj, dtype=np.float32))
    inside = np.asarray(brain.dataobj) > 0
    full = voxel_sizes(canonical.affine)
    steps = steps_to(full, WORKING)
    part = tuple(slice(step // 2, None, step) for step in steps)
    coarse, inside = ndimage.uniform_filter(data, steps)[part], inside[part]
    zooms = (full[0] * steps[0], full[1] * steps[1], full[2] * steps[2])
    if head is None:
        known = head_mask_array(coarse, zooms)
    else:
        known = apply_orientation(head, nib.io_orientation(image.affine))[part]
    depth = distance_to(np.pad(~inside, 1, constant_values=True), zooms)[1:-1, 1:-1, 1:-1]
    return PreparedScan(
        data=coarse,
        brain=inside,
        head=known | inside,
        depth=depth,
        zooms=zooms,
        shape=data.shape,
        full_zooms=full,
        suffix=suffix,
        metadata=metadata or {},
        figures=figures or {},
    )


def find_doubts(
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    suffix: str,
    metadata: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the quality warnings of a scan, one sentence each, most important first.

    Parameters
    ----------
    image
        3-D scan in any orientation, intensities as measured.
    mask
        Brain mask on the same grid.
    suffix
        BIDS suffix, for example ``T1w``.
    metadata
        Its sidecar, if any.
    figures
        Its quality figures (:func:`bids_moediff.quality.figures.quality_figures`), if any.

    Returns
    -------
    list of str
        Empty if nothing is unusual.
    """
    return doubts_about(prepare(image, mask, suffix, metadata, figures))


def doubts_about(scan: PreparedScan) -> list[str]:
    """Return the quality warnings of a prepared scan.

    If the mask is larger than a brain, checks that depend on it are left out.
    """
    volume = float(scan.brain.sum() * np.prod(scan.zooms)) / 1000
    checks = CHECKS if volume <= LARGEST_BRAIN else CHECKS_WITHOUT_MASK
    sentences = [check(scan) for check in checks]
    return [sentence for sentence in sentences if sentence]


def localiser(scan: PreparedScan) -> str | None:
    """Warn of fewer than 10 slices or less than 70 mm along an axis."""
    for axis, (count, zoom) in enumerate(zip(scan.shape, scan.full_zooms, strict=True)):
        if count < 10 or count * zoom < 70:
            name = ("left-right", "front-back", "up-down")[axis]
            return (
                f"The image covers only {count * zoom:.0f} mm in {count} slices in the {name} "
                "direction: a localiser or a slab, not a whole head."
            )
    return None


def cropped(scan: PreparedScan) -> str | None:
    """Warn of brain at the face of the field of view, except at the spinal cord."""
    cut = []
    for axis, names in enumerate(SIDES):
        area = np.prod([zoom for k, zoom in enumerate(scan.zooms) if k != axis]) / 100
        for index, name in zip((0, -1), names, strict=True):
            limit = 25.0 if name == "lower" else 5.0  # cm2; brainstem and cerebellum leave below
            if np.take(scan.brain, index, axis=axis).sum() * area > limit:
                cut.append(name)
    if not cut:
        return None
    return (
        f"The brain reaches the {' and the '.join(cut)} edge of the image: part of it is not "
        "covered, and the result is less certain there."
    )


def quantitative(scan: PreparedScan) -> str | None:
    """Warn of a quantitative map, by its suffix."""
    if scan.suffix not in MAPS:
        return None
    return (
        f"A {scan.suffix} holds {MAPS[scan.suffix]}, not signal: averaging and sharpening it is "
        "not what a finer measurement would give. Super-resolve the weighted images and fit them."
    )


def wrong_contrast(scan: PreparedScan) -> str | None:
    """Warn of another contrast: core against rim of the brain, and fluid against both."""
    core, rim = scan.data[scan.depth > 20], scan.data[(scan.depth > 2) & (scan.depth < 8)]
    if len(core) < 100 or len(rim) < 100:
        return None
    ratio = float(np.median(core)) / max(float(np.median(rim)), TINY)
    fluid = float(np.percentile(scan.data[scan.brain], 98)) / scan.middle
    seen = ""
    if ratio > 1.12 and fluid < 2.0:
        seen = "T1w"
    elif ratio < 1.0 and fluid > 1.8:
        seen = "T2w"
    elif ratio < 0.95 and fluid < 1.6:
        seen = "FLAIR"
    expected = EXPECTED.get(scan.suffix)
    if expected == "T1w" and ratio < DARK_CORE and seen != "FLAIR" and _only_shaded(scan):
        return None
    if not seen or expected is None or seen == expected:
        return _against_its_name(scan.suffix, ratio, fluid)
    return f"The image is named {scan.suffix} but looks {LOOKS[seen]}: check the name."


def _only_shaded(scan: PreparedScan) -> bool:
    """Return True if a dark core is coil shading: locally, the image is T1-weighted."""
    sigma = [FLAT_SIGMA / zoom for zoom in scan.zooms]
    weights = np.maximum(gaussian(scan.brain.astype(np.float32), sigma), 1e-3)
    flat = scan.data * weights / np.maximum(gaussian(scan.data * scan.brain, sigma), TINY)
    rim, below = (scan.depth > 2) & (scan.depth < 6), (scan.depth > 8) & (scan.depth < 20)
    if not rim.any() or not below.any():
        return False
    fluid = float(np.percentile(flat[scan.brain], 98) / np.median(flat[scan.brain]))
    depth = float(np.median(flat[below]) / np.median(flat[rim]))
    return fluid < FLUID_WITHOUT_SHADING and depth > DEPTH_WITHOUT_SHADING


def _against_its_name(suffix: str, ratio: float, fluid: float) -> str | None:
    """Warn of values that a contrast never has, if it does not look like another one either."""
    if EXPECTED.get(suffix) == "T1w" and ratio < DARK_CORE:
        odd = f"its inner brain is darker ({ratio:.2f} times) than the rim"
    elif suffix == "T2w" and fluid < FAINT_FLUID:
        odd = f"its fluid is not bright (brightest part {fluid:.1f} times the median)"
    elif suffix == "FLAIR" and fluid > BRIGHT_FLUID_IN_FLAIR:
        odd = f"its fluid is bright (brightest part {fluid:.1f} times the median)"
    else:
        return None
    return (
        f"The image is named {suffix}, but {odd}: inverted, another contrast or a brain in its "
        "first year. The networks saw no such image."
    )


def contrast_agent(scan: PreparedScan) -> str | None:
    """Warn of an agent in the sidecar, or of a vein brighter than white matter."""
    keys = ("ContrastBolusIngredient", "ContrastBolusAgent")
    agents = [str(scan.metadata[key]) for key in keys if scan.metadata.get(key)]
    care = (
        "the networks learned from scans without one, look at vessels and enhancing lesions with "
        "care."
    )
    if agents and agents[0].lower() not in ("none", "n/a", "no"):
        return f"The sidecar names a contrast agent ({agents[0]}): {care}"
    if EXPECTED.get(scan.suffix) != "T1w" or wrong_contrast(scan):
        return None
    brightness = vein_brightness(scan)
    if brightness is None or brightness < BRIGHT_VEIN:
        return None
    return (
        f"The vein along the top of the brain is brighter than white matter ({brightness:.2f} "
        f"times): probably a contrast agent that the sidecar does not name; {care}"
    )


def vein_brightness(scan: PreparedScan) -> float | None:
    """Return the brightness of the superior sagittal sinus over white matter, or None.

    The brightest tenth of a strip counts. The strip is 18 mm wide, in the upper half, within 5 mm
    of the brain's outline on both sides. White matter is the mean, within some 15 mm, of voxels
    brighter than the local mean. Blood without a contrast agent is darker than white matter.
    """
    sigma = [15 / zoom for zoom in scan.zooms]

    def local_mean(where: np.ndarray) -> np.ndarray:
        weights = gaussian(where.astype(np.float32), sigma)
        return gaussian(scan.data * where, sigma) / np.maximum(weights, 1e-3)

    deep = scan.brain & (scan.depth > 2)
    white = local_mean(deep & (scan.data > local_mean(scan.brain & (scan.depth > 4))))
    middle = np.median(np.argwhere(scan.brain), axis=0) if scan.brain.any() else np.zeros(3)
    width, _, height = (np.arange(n) - m for n, m in zip(scan.brain.shape, middle, strict=True))
    outside = distance_to(scan.brain, scan.zooms)
    strip = (scan.depth < 5) & (outside < 5) & (scan.data > 0)
    strip &= (np.abs(width) * scan.zooms[0] < 9)[:, None, None] & (height > 0)
    if strip.sum() * np.prod(scan.zooms) < 2000:  # mm3
        return None
    return float(np.percentile(scan.data[strip] / np.maximum(white[strip], TINY), 90))


def ghosting(scan: PreparedScan) -> str | None:
    """Warn of more signal in the air beside the head along an axis than in the other air."""
    air = ~ndimage.binary_dilation(scan.head, iterations=3)
    measured = air & (scan.data > 0)
    if measured.sum() < 0.5 * max(int(air.sum()), 1) or measured.sum() < 2000:
        return None  # deleted air tells nothing
    worst, along = 0.0, ""
    for axis, name in enumerate(("left-right", "front-back", "up-down")):
        shadow = np.broadcast_to(scan.head.any(axis=axis, keepdims=True), scan.head.shape)
        beside, elsewhere = scan.data[measured & shadow], scan.data[measured & ~shadow]
        if len(beside) < 500 or len(elsewhere) < 500:
            continue
        excess = (float(np.mean(beside)) - float(np.mean(elsewhere))) / scan.middle
        if excess > worst:
            worst, along = excess, name
    if worst < 0.05:
        return None
    return (
        f"There is signal in the air beside the head in the {along} direction "
        f"({100 * worst:.0f} % of the brain's): the head probably moved during the scan. "
        "Super-resolution sharpens such ghosts, too."
    )


def bright_air(scan: PreparedScan) -> str | None:
    """Warn of air as bright as tissue: an image without background suppression."""
    if scan.suffix in ("T1map", "T2map"):
        return None
    # Faces of the image but the lowest, which shows the neck: head masks cannot be trusted here.
    faces = [np.take(scan.data, index, axis=axis) for axis in (0, 1) for index in (0, -1)]
    faces.append(scan.data[:, :, -1])
    level = float(np.median(np.concatenate([face.ravel() for face in faces])))
    if level < 0.35 * scan.middle:
        return None
    return (
        "The air is about as bright as the brain (an MP2RAGE image without background "
        "suppression?): head and brain masks may be wrong."
    )


def averaged(scan: PreparedScan) -> str | None:
    """Warn of almost no noise, or of the grid of a template."""
    ratio = scan.figures.get("snr_brain")
    shape = tuple(round(n * z) for n, z in zip(scan.shape, scan.full_zooms, strict=True))
    on_template = shape in TEMPLATE_SHAPES and len(set(np.round(scan.full_zooms, 3))) == 1
    if on_template:
        return (
            "The grid is that of a standard template: a template or an image that was brought to "
            "standard space, so interpolated. Give the original scan instead."
        )
    if ratio is not None and ratio > 110:
        return (
            f"The image has hardly any noise (signal-to-noise ratio {ratio:.0f}): averaged, "
            "denoised or synthetic. There may be nothing left to recover."
        )
    return None


def very_noisy(scan: PreparedScan) -> str | None:
    """Warn of a signal-to-noise ratio below 5."""
    ratio = scan.figures.get("snr_brain")
    if ratio is None or ratio >= 5:
        return None
    return (
        f"The image is very noisy (signal-to-noise ratio {ratio:.1f}): fine detail of the result "
        "will mostly be a guess."
    )


def derived(scan: PreparedScan) -> str | None:
    """Warn of a derived image by its sidecar, or of a label map by its few values."""
    stated = scan.metadata.get("ImageType")
    if isinstance(stated, str):  # some converters keep DICOM's own spelling
        stated = stated.split("\\")
    kinds = [str(kind).upper() for kind in stated] if isinstance(stated, list) else []
    # Not MOSAIC: Siemens writes the slices of any acquisition into one picture.
    made = {"MPR", "PROJECTION IMAGE", "MIP", "MINIP", "REFORMATTED", "SECONDARY"}
    if found := sorted(made & set(kinds)):
        return (
            f"The sidecar calls the image {found[0]}: it was computed from another one, which "
            "would be the better input."
        )
    values = scan.data[scan.brain]
    if len(values) and len(np.unique(values[:: max(1, len(values) // 5000)])) < 30:
        return "The image has only a few different values: a label map or mask, not a scan?"
    return None


def interpolated(scan: PreparedScan) -> str | None:
    """Warn of interpolation that the spectra of the quality figures found."""
    axes = [
        axis
        for axis in "xyz"
        if scan.figures.get(f"interpolation_{axis}") in ("zero-filled", "interpolated")
    ]
    sizes = [scan.figures.get(f"spacing_{axis}", 0.0) for axis in "xyz"]
    acquired = [scan.figures[f"acquired_{axis}"] if axis in axes else 0.0 for axis in "xyz"]
    return interpolation_warning(sizes, acquired) if axes else None


def cavity(scan: PreparedScan) -> str | None:
    """Warn of a space of fluid of more than 35 ml that a ball of 5 mm radius fits through."""
    if scan.suffix in BRIGHT_FLUID:
        fluid = scan.data > 1.7 * scan.middle
    else:
        fluid = scan.data < 0.5 * scan.middle
    fluid &= scan.depth > 8
    core = distance_to(~fluid, scan.zooms) > 5
    labels, count = ndimage.label(core)
    if not count:
        return None
    largest = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    grown = distance_to(largest, scan.zooms) <= 5
    volume = float((grown & fluid).sum() * np.prod(scan.zooms) / 1000)
    if volume < 35:
        return None
    return (
        f"There is a large space of fluid in the brain ({volume:.0f} ml): enlarged ventricles, a "
        "cyst, an old stroke or a cavity after surgery. The networks saw few such brains."
    )


def phantom(scan: PreparedScan) -> str | None:
    """Warn of parts of the inner brain without any structure."""
    core = scan.depth > 20
    if core.sum() < 100:
        return None
    sigma = [4 / zoom for zoom in scan.zooms]
    weights = np.maximum(gaussian(scan.brain.astype(np.float32), sigma), 1e-3)
    part = np.where(scan.brain, scan.data, 0).astype(np.float64)
    mean, square = (gaussian(part**k, sigma) / weights for k in (1, 2))
    low, high = np.percentile(scan.data[scan.brain], [2, 98])
    spread = np.sqrt(np.clip(square - mean**2, 0, None))[core] / max(float(high - low), TINY)
    least = float(np.percentile(spread, 10))
    if least > LEAST_SPREAD:
        return None
    return (
        f"Parts of the inner brain are uniform (local spread {100 * least:.0f} % of the range; "
        "brains have 6 % or more): a phantom or a drawn image, not a head? The networks only saw "
        "heads."
    )


def unusual(scan: PreparedScan) -> str | None:
    """Warn of a large distance in the figures of :mod:`bids_moediff.quality.familiarity`."""
    distance = scan.figures.get("distance_from_training")
    if distance is None or distance < FAR:
        return None
    words = FIGURES[scan.figures["furthest_figure"]]
    return (
        f"The image is unlike the images that the networks learned from (distance {distance:.1f}, "
        f"usual is below {FAR:g}), most of all in the {words}: look at the result with care."
    )


CHECKS: tuple[Callable[[PreparedScan], str | None], ...] = (
    localiser, derived, quantitative, wrong_contrast, averaged, interpolated, ghosting, bright_air,
    cropped, contrast_agent, cavity, very_noisy, phantom, unusual,
)  # fmt: skip
CHECKS_WITHOUT_MASK = (localiser, derived, quantitative, interpolated)
