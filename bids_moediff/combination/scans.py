# SPDX-License-Identifier: Apache-2.0
"""Combine scans of one subject and contrast into one volume.

The steps: register the images that were restored one by one, bring them to a common grid, take
their weighted mean, and estimate around it the volume that explains the voxels of every scan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.registration import register

from .alignment import SAME_HEAD, Alignment, align, displacement
from .constant import added_constant
from .copies import is_copy
from .estimate import Estimate, joint_estimate
from .frame import scan_zooms, union_grid
from .mending import mended
from .view import Scan, Setting, View, mean_of, noise_of, range_of, weigh_slices

SPREAD = 2.0  # times the expected error of the mean: what one restored image lacks, others lack
WIDEST = 0.25  # of the range: no voxel may be further from the mean
# Times the noise of the others, as it is read: where one scan has 15 % and the others 3 %, less
# than 4 are read, and that scan cost 0.3 dB (research/notebook.md).
LOUDEST = 3.0
UNSURE = 1.0  # mm between two ways of registering; a right one is at 0.1 to 0.3
QUIETEST = 0.5  # times the noise of the others: a scan that reads as quieter may be smoothed
COUNTED = 0.5  # a slice of less weight is not counted
LEAST_SHARE = 0.25  # of an equal share of the weights: a scan below it is named in the warnings
REWEIGHED = 1.05  # times its noise: a scan with a larger residual is weighed down once

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ScanFigures:
    """What became of one scan.

    ``move``: 4x4 matrix from world coordinates of the result to those of the scan; ``moved``:
    mean shift of the head in mm; ``agreement``: correlation with the scan that it fits best;
    ``brightness``: next to the first scan; ``noise``: in units of the first scan; ``weight``:
    share of all weights; ``misfit``: residual of the scan against the result, over its noise;
    ``dark``: slices that count less than half.
    """

    name: str
    kept: bool
    reason: str
    move: np.ndarray
    moved: float
    agreement: float
    brightness: float = 1.0
    noise: float = 0.0
    weight: float = 0.0
    misfit: float = 0.0
    dark: list[int] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain types, for a sidecar; None for what is not measured of a scan left out."""
        measured = {
            "Brightness": float(f"{self.brightness:.5g}"),
            "EstimatedNoise": float(f"{self.noise:.5g}"),
            "Weight": round(self.weight, 4),
            "ResidualOverNoise": round(self.misfit, 4),
        }
        return {
            "Scan": self.name,
            "Used": self.kept,
            "Reason": self.reason,
            "RigidTransform": np.round(self.move, 6).tolist(),
            "MeanDisplacement": round(self.moved, 3),
            "Agreement": round(self.agreement, 4),
            **(measured if self.kept else dict.fromkeys(measured)),
            "SlicesWeighedDown": self.dark,
        }


@dataclass(frozen=True)
class Combined:
    """One volume from several scans.

    ``image``: float32, in units of the first scan that was used; ``count``: uint8, scans that
    speak at each voxel; ``scans``: what became of each; ``steps``: of the estimate.
    """

    image: nib.Nifti1Image
    count: nib.Nifti1Image
    scans: list[ScanFigures]
    steps: int
    warnings: list[str]


def combine(scans: Sequence[Scan], zooms: Triple, *, progress: Progress | None = None) -> Combined:
    """Combine several scans into one volume on the axes of the first.

    Parameters
    ----------
    scans
        At least two, of one subject and contrast, none with voxels finer than ``zooms`` along the
        nearest axis.
    zooms
        Voxel size (mm) in the axis order of the first scan.
    progress
        Called with a stage and the fraction of it that is done.

    Raises
    ------
    ImageError
        If the scans cannot be registered or brought to one grid.
    """
    if len(scans) < 2:
        raise ValueError("at least two scans are needed")
    report = progress or (lambda stage, fraction: None)
    scans, remarks = _without_constants([replace(scan, noise=noise_of(scan)) for scan in scans])
    report("register", 0.0)
    alignment = align([scan.single for scan in scans])
    report("register", 1.0)
    if alignment.disagreement > UNSURE:
        remarks.append(
            f"Two ways of registering the scans differ by {alignment.disagreement:.1f} mm: the "
            "combined image may be blurred. Compare it with the single results."
        )
    alignment, reasons = _leave_out(scans, alignment)
    used = _not_too_quiet([scans[index] for index in alignment.kept])
    moves = [alignment.moves[index] for index in alignment.kept]
    # The axes are those of the first scan that is used.
    zooms = scan_zooms(used[0].image.affine, scans[0].image.affine, zooms)
    setting = Setting(union_grid([scan.grid for scan in used], moves, zooms), range_of(used[0]))
    views, moves = _bring_together(setting, used, moves, report)
    alignment = alignment.moved(moves)
    estimate, views = _estimate(views, lambda share: report("estimate", share))
    figures = _figures(scans, alignment, reasons, views, estimate, setting.scale)
    counted = np.stack([view.trust.numpy() >= COUNTED for view in views])
    count = np.asarray(counted.sum(axis=0), dtype=np.uint8)
    volume = np.where(count > 0, (estimate.volume * setting.scale).numpy(), np.float32(0))
    return Combined(
        _image(volume, setting.frame.affine, used[0].image),
        _image(count, setting.frame.affine, used[0].image),
        figures,
        estimate.steps,
        remarks + _warnings(figures),
    )


def _without_constants(scans: Sequence[Scan]) -> tuple[list[Scan], list[str]]:
    """The scans, air at about zero in each, and a sentence for each that was changed."""
    found, remarks = [], []
    for scan in scans:
        constant = added_constant(np.asarray(scan.image.dataobj, dtype=np.float32))
        if constant:
            image, single = (
                nib.Nifti1Image(
                    np.asarray(item.dataobj, dtype=np.float32) - np.float32(constant),
                    item.affine,
                    item.header,
                )
                for item in (scan.image, scan.single)
            )
            scan = replace(scan, image=image, single=single)
            remarks.append(
                f"{scan.name}: a constant of {constant:.4g} was subtracted, so that air is dark."
            )
        found.append(scan)
    return found, remarks


def _leave_out(scans: Sequence[Scan], alignment: Alignment) -> tuple[Alignment, dict[int, str]]:
    """Leave out copies, and scans far noisier than most; with the reason for each."""
    reasons = {
        index: f"agrees too little with the other scans (correlation {value:.2f}, at least "
        f"{SAME_HEAD} is needed)"
        for index, value in enumerate(alignment.agreement)
        if index not in alignment.kept
    }
    reasons |= _copies(scans, alignment)
    kept = [index for index in alignment.kept if index not in reasons]
    # By the range of each: the units of scans may differ.
    noise, usual = _relative_noise([scans[index] for index in kept])
    for index, level in zip(kept, noise, strict=True):
        if level > LOUDEST * usual > 0:
            reasons[index] = f"is {level / usual:.1f} times as noisy as the other scans"
    kept = [index for index in kept if index not in reasons]
    if kept[0] != alignment.kept[0]:
        back = np.linalg.inv(alignment.moves[kept[0]])
        alignment = replace(alignment, moves=[move @ back for move in alignment.moves])
    return replace(alignment, kept=kept), reasons


def _copies(scans: Sequence[Scan], alignment: Alignment) -> dict[int, str]:
    """The reason to leave out each copy of another scan; the largest copy stays, or the first."""
    reasons: dict[int, str] = {}
    for place, index in enumerate(alignment.kept):
        for earlier in alignment.kept[:place]:
            move = alignment.moves[index] @ np.linalg.inv(alignment.moves[earlier])
            if earlier in reasons or not is_copy(scans[earlier], scans[index], move):
                continue
            sizes = [int(np.prod(scans[k].image.shape)) for k in (earlier, index)]
            smaller, whole = (earlier, index) if sizes[0] < sizes[1] else (index, earlier)
            what = "copy" if sizes[0] == sizes[1] else "part"
            reasons[smaller] = f"is a {what} of {scans[whole].name}"
            if smaller == index:
                break
    return reasons


def _relative_noise(scans: Sequence[Scan]) -> tuple[list[float], float]:
    """Noise of each scan over its range, so in no unit, and the usual one.

    That is not the quietest: a scan that was smoothed must not oust all others.
    """
    noise = [noise_of(scan) / range_of(scan) for scan in scans]
    return noise, sorted(noise)[(len(noise) - 1) // 2]


def _not_too_quiet(scans: Sequence[Scan]) -> list[Scan]:
    """The scans, none with less than a share of the usual noise: blur is an error as well."""
    _, usual = _relative_noise(scans)
    least = [QUIETEST * usual * range_of(scan) for scan in scans]
    return [
        replace(scan, noise=max(noise_of(scan), floor))
        for scan, floor in zip(scans, least, strict=True)
    ]


def _bring_together(
    setting: Setting, scans: Sequence[Scan], moves: list[np.ndarray], report: Progress
) -> tuple[list[View], list[np.ndarray]]:
    """Every scan on the common grid, mended and once more where slices turn out to be bad.

    And the moves, found anew where a scan was mended.
    """
    views: list[View] = []
    for scan, move in zip(scans, moves, strict=True):
        views.append(setting.view(scan, move, views[0] if views else None))
        report("bring together", len(views) / len(scans))
    if len(views) == 1:
        return views, moves
    weights = []
    for view in views:
        weights.append(weigh_slices(view, [other for other in views if other is not view]))
    if all(found.min() == 1 for found in weights):
        return views, moves
    return _mended(setting, views, moves, weights)


def _mended(
    setting: Setting, views: list[View], moves: list[np.ndarray], weights: list[np.ndarray]
) -> tuple[list[View], list[np.ndarray]]:
    """Views of scans whose bad slices count for little; what was torn is registered anew."""
    scans = [
        mended(view, found) if found.min() < 1 == found.max() else view.scan
        for view, found in zip(views, weights, strict=True)
    ]
    again: list[View] = []
    better = list(moves)
    for index, (scan, found) in enumerate(zip(scans, weights, strict=True)):
        if index and min(found.min(), weights[0].min()) < 1:
            better[index] = register(scans[0].single, scan.single)
        again.append(setting.view(scan, better[index], again[0] if again else None, found))
    return again, better


def _estimate(views: list[View], progress: Callable[[float], None]) -> tuple[Estimate, list[View]]:
    """The joint estimate; once more where a scan differs by more than its noise."""
    start, variance = mean_of(views)
    spread = (SPREAD * variance.sqrt_()).clamp_max_(WIDEST)
    estimate = joint_estimate(
        start, spread, [view.observation for view in views], progress=progress
    )
    if max(estimate.misfits) <= REWEIGHED:
        return estimate, views
    views = [
        replace(view, observation=replace(view.observation, sigma=view.observation.sigma * factor))
        for view, factor in zip(views, [max(1.0, m) for m in estimate.misfits], strict=True)
    ]
    estimate = joint_estimate(
        start, spread, [view.observation for view in views], progress=progress
    )
    return estimate, views


def _figures(
    scans: Sequence[Scan],
    alignment: Alignment,
    reasons: Mapping[int, str],
    views: Sequence[View],
    estimate: Estimate,
    scale: float,
) -> list[ScanFigures]:
    """Return the figures of every scan, those left out included."""
    by_name = dict(zip(alignment.kept, zip(views, estimate.misfits, strict=True), strict=True))
    powers = [float(view.observation.precision.mean()) for view in views]
    figures = []
    for index, scan in enumerate(scans):
        move, agreement = alignment.moves[index], alignment.agreement[index]
        moved = displacement(scans[alignment.kept[0]].single, move)
        if index not in by_name:
            figures.append(ScanFigures(scan.name, False, reasons[index], move, moved, agreement))
            continue
        view, misfit = by_name[index]
        figures.append(
            ScanFigures(
                scan.name,
                True,
                "",
                move,
                moved,
                agreement,
                view.brightness,
                view.observation.sigma * scale,
                float(view.observation.precision.mean()) / sum(powers),
                misfit,
                np.flatnonzero(view.slices < COUNTED).tolist()
                if view.scan.axis is not None
                else [],
            )
        )
    return figures


def _warnings(figures: Sequence[ScanFigures]) -> list[str]:
    """Return one sentence for each scan that was left out or counts for little."""
    used = [item for item in figures if item.kept]
    found = (
        [f"Nothing was combined: {used[0].name} is the only scan that was used."]
        if len(used) == 1
        else []
    )
    found += [f"{item.name} was left out: it {item.reason}." for item in figures if not item.kept]
    found += [
        f"{item.name} counts for little ({100 * item.weight:.0f} % of the weights): it is noisier "
        "than the others or does not fit them."
        for item in used
        if item.weight < LEAST_SHARE / len(used)
    ]
    found += [
        f"{item.name} was weighed down where it does not fit the other scans: slices "
        f"{', '.join(map(str, item.dark))}."
        for item in used
        if item.dark
    ]
    return found


def _image(data: np.ndarray, affine: np.ndarray, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """Image on the common grid with the coordinate codes of the first scan."""
    image = nib.Nifti1Image(data, affine)
    code = int(source.header["sform_code"]) or int(source.header["qform_code"]) or 1
    image.set_sform(affine, code)
    image.set_qform(affine, int(source.header["qform_code"]) or code)
    image.header.set_xyzt_units("mm", "sec")
    return image
