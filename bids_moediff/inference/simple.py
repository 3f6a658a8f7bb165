# SPDX-License-Identifier: Apache-2.0
"""Restore images without BIDS: ``bids_moediff-superres`` and ``bids_moediff.super_resolve``."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

import nibabel as nib

from bids_moediff.errors import UsageError
from bids_moediff.imaging.reference import use_reference
from bids_moediff.imaging.spectrum import interpolation_warning
from bids_moediff.options import Options
from bids_moediff.preprocessing.conform import conform_loaded

from .request import ImageRequest, Request
from .several import CombinedResult, combine_images
from .super_resolver import Result
from .worker import Scan, enhance_image, held_device, load

LENGTHS = ("SliceThickness", "SpacingBetweenSlices")
LENGTH_RANGE = (0.05, 100.0)  # mm, as in sidecars

Progress = Callable[[str | None, str, float], None]


def super_resolve(
    image: nib.spatialimages.SpatialImage | Sequence[nib.spatialimages.SpatialImage],
    output_resolution: Any = "auto",
    *,
    mask: nib.spatialimages.SpatialImage | None = None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    reference: nib.spatialimages.SpatialImage | None = None,
    device: str = "auto",
    **options: Any,
) -> nib.Nifti1Image:
    """Restore one image at finer voxels, or combine several scans of one subject and contrast.

    Parameters
    ----------
    image
        3-D image as nibabel loads it. A list is combined into one image on the axes of the first;
        a warning names each scan that was left out.
    output_resolution
        ``"auto"`` (0.7 mm, no axis coarser than the input), or one or three voxel sizes in mm.
    mask
        Brain mask on the grid of ``image``. Without it, the head is found by brightness.
    metadata
        Content of a BIDS sidecar, such as ``{"SliceThickness": 2.5}`` (mm). For a list of images,
        a list of the same length.
    reference
        Another contrast of the subject, for ``model="crfm"``. It is left out with a warning if it
        cannot be registered.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    **options
        Further fields of :class:`bids_moediff.options.Options`, such as ``model="moediff"``.

    Returns
    -------
    nibabel.Nifti1Image
        float32, in the units, orientation and world coordinates of ``image``.

    Raises
    ------
    ImageError, UsageError, DeviceError, WeightsError
        If the image cannot be restored, an option is wrong, or device or weights are missing.

    Examples
    --------
    >>> import nibabel
    >>> from bids_moediff import super_resolve
    >>> fine = super_resolve(nibabel.load("in.nii.gz"))  # doctest: +SKIP
    """
    asked = Options.from_dict({"output_resolution": output_resolution, **options}, "super_resolve")
    _check_metadata(metadata)
    if asked.draws_samples or asked.outputs:
        raise UsageError(
            "super_resolve: it returns one image; for samples and further outputs use "
            "SuperResolver.enhance, or bids_moediff-superres --num-samples N."
        )
    if isinstance(image, Sequence):
        _check_several(image, mask, metadata, reference)
        return _combined(image, asked, metadata, device)
    where = None if mask is None else _plain(mask, "the mask", scan=False)
    return _one(Scan(_plain(image, "the image"), where), asked, metadata, reference, device)


def _one(
    scan: Scan,
    options: Options,
    metadata: Any,
    reference: nib.spatialimages.SpatialImage | None,
    device: str,
) -> nib.Nifti1Image:
    """Restore one image; a warning says why a reference was not used."""
    if isinstance(metadata, Sequence):
        raise UsageError("super_resolve: a list of metadata goes with a list of images.")
    other = None if reference is None else _plain(reference, "the reference")
    result = restore(scan, options, metadata=metadata, device=device, reference=other)
    if other is not None and not result.record["Reference"]["Used"]:
        warnings.warn(result.record["Reference"]["Reason"], stacklevel=3)
    return result.image


def _combined(
    images: Sequence[nib.spatialimages.SpatialImage], options: Options, metadata: Any, device: str
) -> nib.Nifti1Image:
    """Combine several scans; a warning names each that was left out."""
    scans = [Scan(_plain(scan, f"scan {place}")) for place, scan in enumerate(images, 1)]
    found = restore_several(scans, options, metadata=metadata, device=device).combined
    for words in found.warnings:
        warnings.warn(words, stacklevel=3)
    return found.image


def _check_several(images: Sequence[Any], mask: Any, metadata: Any, reference: Any) -> None:
    """Raise UsageError for an argument that cannot be combined with a list of images."""
    if reference is not None:
        raise UsageError("super_resolve: a reference goes with one image, not with a list.")
    if not all(hasattr(image, "dataobj") for image in images):
        raise UsageError(
            "super_resolve: expected an image, or a list of images, as nibabel.load returns them."
        )
    if isinstance(metadata, Sequence) and len(metadata) != len(images):
        raise UsageError(
            f"super_resolve: {len(images)} scans need as many entries of metadata, not "
            f"{len(metadata)}; {{}} says nothing of a scan."
        )
    if mask is not None or isinstance(metadata, Mapping) or len(images) < 2:
        raise UsageError(
            "super_resolve: several scans take no mask, and a list of metadata; a list holds two "
            "scans or more."
        )


def restore(
    scan: Scan,
    options: Options,
    *,
    metadata: Mapping[str, Any] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    key: str = "image",
    reference: nib.Nifti1Image | None = None,
) -> Result:
    """Restore a conformed scan.

    Parameters
    ----------
    scan
        Image, with mask and bias field on its grid if there are any.
    options
        What decides the result.
    metadata
        Content of the BIDS sidecar.
    device
        As for :func:`super_resolve`.
    progress
        Called with ``key``, the stage and the fraction done (0 to 1).
    key
        Name of the image in progress.
    reference
        Another contrast of the same subject; it is registered first.

    Returns
    -------
    Result
        Its record holds the keys of a sidecar.

    Raises
    ------
    ImageError, DeviceError, WeightsError
        As for :func:`super_resolve`.
    """
    report = progress or (lambda key, stage, fraction: None)
    record: dict[str, Any] = {}
    if reference is not None:
        options = replace(options, reference=options.reference or "auto")
        aligned = use_reference(scan.image, reference)
        record = aligned.record
        scan = replace(scan, reference=aligned.image)
    request = Request(options=options, images=(), device=device)
    with held_device(device, report) as place:
        loaded = load(request, place)
        told = ImageRequest(
            key=key, image="", out_dir="", metadata=metadata or {}, reference_record=record
        )
        result = enhance_image(loaded.resolver, scan, told, options, partial(report, key))
    result.record["ModelChoice"] = loaded.model_reason
    if result.record["AcquiredVoxelSizeFrom"] == "spectrum":  # no quality figures say so here
        sizes = (result.record[f"{kind}VoxelSize"] for kind in ("Input", "Acquired"))
        if sentence := interpolation_warning(*sizes):
            result.record["Warnings"].append(sentence)
    return result


def restore_several(
    scans: Sequence[Scan],
    options: Options,
    *,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    keys: Sequence[str] | None = None,
) -> CombinedResult:
    """Combine conformed scans of one subject and contrast.

    Parameters
    ----------
    scans
        At least two; the first gives the axes of the result.
    options, device, progress
        As for :func:`restore`.
    metadata
        Content of the BIDS sidecar of each scan.
    keys
        Name of each scan in progress and record.

    Raises
    ------
    ImageError, DeviceError, WeightsError
        As for :func:`super_resolve`, and if the scans cannot be combined.
    """
    report = progress or (lambda key, stage, fraction: None)
    names = keys or [f"scan {index + 1}" for index in range(len(scans))]
    known = metadata or [{} for _ in scans]
    told = [
        ImageRequest(key=name, image="", out_dir="", metadata=content or {})
        for name, content in zip(names, known, strict=True)
    ]
    with held_device(device, report) as place:
        loaded = load(Request(options=options, images=(), device=device), place)
        pairs = list(zip(told, scans, strict=True))
        result = combine_images(loaded.resolver, pairs, options, report)
    result.record["ModelChoice"] = loaded.model_reason
    return result


def _plain(image: Any, name: str, *, scan: bool = True) -> nib.Nifti1Image:
    """Return the image as the commands read it from a file; a warning names each correction."""
    if not hasattr(image, "dataobj"):
        raise UsageError(
            "super_resolve: expected an image, or a list of images, as nibabel.load returns them."
        )
    plain, remarks = conform_loaded(image, name, scan=scan)
    for words in remarks:
        warnings.warn(f"{name}: {words}.", stacklevel=3)
    return plain


def _check_metadata(metadata: Any) -> None:
    """Raise UsageError for statements on lengths that no scan has."""
    low, high = LENGTH_RANGE
    for content in metadata if isinstance(metadata, Sequence) else [metadata]:
        if not isinstance(content, Mapping | None):
            raise UsageError("super_resolve: metadata is a dictionary, or a list of them.")
        for key in LENGTHS:
            value = (content or {}).get(key)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and low <= value <= high):
                raise UsageError(
                    f"super_resolve: {key} is {value!r}; expected a number from {low:g} to "
                    f"{high:g} (mm)."
                )
