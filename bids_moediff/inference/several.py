# SPDX-License-Identifier: Apache-2.0
"""Restore several scans one by one and combine them into one volume."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.combination.frame import frame_zooms, scan_zooms
from bids_moediff.combination.scans import Combined, combine
from bids_moediff.combination.view import Scan as RestoredScan
from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.options import FINEST_DEFAULT, Options

from .request import ImageRequest
from .super_resolver import SuperResolver
from .worker import Prepared, Scan, enhance_prepared, prepare

Progress = Callable[[str, str, float], None]
# What the record of a combined volume takes from that of its first scan.
SHARED_KEYS = (
    "Model", "ModelFamily", "ModelVersion", "ModelSHA256", "NetworksRun", "Sampler",
    "NumberOfSteps", "RandomSeed", "Precision", "Device",
)  # fmt: skip


@dataclass(frozen=True)
class Alone:
    """One restored scan: image, map of the expected error if there is one, and record."""

    image: nib.Nifti1Image
    error: nib.Nifti1Image | None
    record: Mapping[str, Any]


@dataclass(frozen=True)
class CombinedResult:
    """The combined volume and the record for the sidecar."""

    combined: Combined
    record: dict[str, Any]


def combine_images(
    resolver: SuperResolver,
    scans: Sequence[tuple[ImageRequest, Scan]],
    options: Options,
    progress: Progress | None = None,
) -> CombinedResult:
    """Restore scans of one subject and contrast one by one, and combine them.

    Parameters
    ----------
    resolver
        The network.
    scans
        At least two; the first gives the axes of the result.
    options
        ``output_resolution`` is in the axis order of the first scan. "auto" is 0.7 mm, or finer
        along an axis where a scan is finer.
    progress
        Called with the name of a scan (or "combined"), the stage and the fraction done.

    Raises
    ------
    ImageError
        If a scan cannot be super-resolved or the scans cannot be combined.
    """
    report = progress or (lambda key, stage, fraction: None)
    frame = scans[0][1].image.affine
    zooms = _zooms([scan.image.affine for _, scan in scans], options)
    ready = []
    for told, scan in scans:
        own = replace(
            options,
            output_resolution=scan_zooms(scan.image.affine, frame, zooms),
            outputs=("uncertainty",),
            num_samples=1,
            sample=None,
        )
        ready.append((told, scan, _prepared(told, scan, own), own))
    restored: list[RestoredScan] = []
    record: Mapping[str, Any] = {}
    # All scans were looked at before minutes are spent on the first.
    for told, scan, prepared, own in ready:
        result = enhance_prepared(resolver, scan, prepared, own, partial(report, told.key))
        alone = Alone(result.image, result.standard_deviation, result.record)
        restored.append(_restored(told.key, prepared, alone))
        record = record or result.record
    combined = combine(restored, zooms, progress=partial(report, "combined"))
    return CombinedResult(combined, _record(combined, record))


def combine_restored(
    scans: Sequence[tuple[ImageRequest, Scan, Alone]],
    zooms: Sequence[float],
    options: Options,
    progress: Callable[[str, float], None],
    lost: Mapping[str, str],
) -> CombinedResult:
    """Combine scans that were restored one by one.

    Parameters
    ----------
    scans
        At least two; the first gives the axes of the result.
    zooms
        Voxel size of the result (mm) in the axis order of the first scan.
    options
        The options that the scans were restored with.
    progress
        Called with the stage and the fraction done.
    lost
        Name of each further scan of the group that could not be used, and why; for the record.

    Raises
    ------
    ImageError
        If the scans cannot be combined.
    """
    frame = scans[0][1].image.affine
    first, second, third = zooms
    restored = []
    for told, scan, alone in scans:
        own = replace(options, output_resolution=scan_zooms(scan.image.affine, frame, zooms))
        restored.append(_restored(told.key, _prepared(told, scan, own), alone))
    combined = combine(restored, (first, second, third), progress=progress)
    record = _record(combined, scans[0][2].record)
    record["CombinedScans"] += [
        {"Scan": name, "Used": False, "Reason": words} for name, words in lost.items()
    ]
    record["Warnings"] += [f"{name} was left out: {words}" for name, words in lost.items()]
    return CombinedResult(combined, record)


def _zooms(affines: Sequence[np.ndarray], options: Options) -> Triple:
    """Return the voxel size of the result (mm) in the axis order of the first scan."""
    if isinstance(options.output_resolution, tuple):
        return options.output_resolution
    return frame_zooms(affines, (FINEST_DEFAULT,) * 3)


def _prepared(told: ImageRequest, scan: Scan, options: Options) -> Prepared:
    """Prepare a scan; raise ImageError if its voxels are finer than those of the result."""
    prepared = prepare(scan, told, options)
    sizes = voxel_sizes(prepared.measured.image.affine)
    if any(own < asked * 0.999 for own, asked in zip(sizes, options.zooms, strict=True)):
        raise ImageError(
            f"{told.key} has voxels of {' x '.join(f'{z:.3g}' for z in sizes)} mm, finer than the "
            "output voxels asked for: to combine scans ask for --output-resolution auto."
        )
    return prepared


def _restored(key: str, prepared: Prepared, alone: Alone) -> RestoredScan:
    image = prepared.measured.image
    data = np.asarray(image.dataobj, dtype=np.float32)
    return RestoredScan(
        key,
        nib.Nifti1Image(data, image.affine, image.header),
        prepared.sampling.acquisition,
        alone.image,
        alone.error,
        prepared.noise.sigma or None,
    )


def _record(combined: Combined, first: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the combined volume; ``first`` is the record of the first scan."""
    return {
        **{key: first[key] for key in SHARED_KEYS if key in first},
        "OutputVoxelSize": [round(size, 6) for size in voxel_sizes(combined.image.affine)],
        "CombinedScans": [scan.record() for scan in combined.scans],
        "CombinationSteps": combined.steps,
        "Warnings": combined.warnings,
    }
