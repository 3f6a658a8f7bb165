# SPDX-License-Identifier: Apache-2.0
"""Align a reference contrast to another image of the same subject.

Six parameters are found by mutual information and written into the affine of the reference, so
that its voxels are interpolated only once, onto the grid where they are needed. Mutual information
can fail without a sign. So the agreement of the edges of the two images is checked afterwards.
"""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import Shape, output_grid, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.registration import register

COMPARED_AT = 2.0  # mm: finer edges are lost in thick slices
DEEP = 4.0  # mm inside the outline of the head: outlines agree between any two heads
# Pairs of one subject reach .82 to .98, of two subjects at most .78 (docs/reference.md).
LEAST_EDGES = 0.82
# From here on a reference counts in full. A mirrored one can reach .87 once it is registered.
SURE_EDGES = 0.90
STRONG = 0.5  # share of the voxels whose edges are too faint to count


@dataclass(frozen=True)
class AlignedReference:
    """A reference whose affine was moved onto another image.

    Parameters
    ----------
    image
        The voxels of the reference, with an affine in the world coordinates of the target.
    move
        4x4, from world coordinates of the target to those of the reference (mm).
    overlap
        Agreement of edges after the registration (:func:`gradient_overlap`).
    overlap_before
        Agreement of edges before it.
    """

    image: nib.Nifti1Image
    move: np.ndarray
    overlap: float
    overlap_before: float


def align_reference(target: nib.Nifti1Image, reference: nib.Nifti1Image) -> AlignedReference:
    """Register a reference to an image of the same subject, in six parameters.

    Where the edges do not agree afterwards, it is tried again from the other side: the image is
    registered to the reference. An image of head and neck is led astray by what the reference does
    not show; the other way round only what both show counts. The better one by its edges is kept.

    Parameters
    ----------
    target, reference
        3-D images on any grids.

    Raises
    ------
    ImageError
        If no head is found or the registration fails.
    """
    before = gradient_overlap(target, reference)
    found = _moved(target, reference, register(target, reference, other_contrast=True), before)
    if found.overlap >= LEAST_EDGES:
        return found
    try:
        back = register(reference, target, other_contrast=True)
    except ImageError:  # the reference shows no head
        return found
    second = _moved(target, reference, np.linalg.inv(back), before)
    return max(found, second, key=lambda one: one.overlap)


def _moved(
    target: nib.Nifti1Image, reference: nib.Nifti1Image, move: np.ndarray, before: float
) -> AlignedReference:
    moved = _with_affine(reference, np.linalg.inv(move) @ reference.affine)
    return AlignedReference(moved, move, gradient_overlap(target, moved), before)


def _with_affine(image: nib.Nifti1Image, affine: np.ndarray) -> nib.Nifti1Image:
    moved = nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), affine)
    moved.header.set_xyzt_units("mm", "sec")
    return moved


@dataclass(frozen=True)
class Choice:
    """A reference that can be used (aligned), or None, and its record for the sidecar."""

    image: nib.Nifti1Image | None
    record: dict[str, Any]
    aligned: AlignedReference | None = None


def use_reference(target: nib.Nifti1Image, reference: nib.Nifti1Image) -> Choice:
    """Align a reference, and reject it if its edges do not follow those of the target.

    Parameters
    ----------
    target, reference
        3-D images on any grids.

    Returns
    -------
    Choice
        Its record has ``Used``, ``Reason`` (one sentence), ``EdgeOverlap``, ``EdgeOverlapBefore``,
        ``Weight`` (:func:`reference_weight`) and ``Move`` (4x4, world coordinates of the target to
        those of the reference, mm).
    """
    try:
        aligned = align_reference(target, reference)
    except ImageError as error:
        return Choice(None, {"Used": False, "Reason": f"No reference was used: {error}"})
    record: dict[str, Any] = {
        "Used": aligned.overlap >= LEAST_EDGES,
        "Reason": "",
        "EdgeOverlap": round(aligned.overlap, 3),
        "EdgeOverlapBefore": round(aligned.overlap_before, 3),
        "Weight": round(reference_weight(aligned.overlap), 3),
        "Move": np.round(aligned.move, 5).tolist(),
    }
    if not record["Used"]:
        record["Reason"] = (
            "No reference was used: its edges do not run along those of the image (overlap "
            f"{aligned.overlap:.2f}, at least {LEAST_EDGES:.2f} is needed). Is it the same "
            "subject, and do the fields of view meet?"
        )
    return Choice(aligned.image if record["Used"] else None, record, aligned)


def reference_weight(overlap: float) -> float:
    """Return how far the detail of a reference counts, 0 to 1, from the overlap of edges."""
    return min(max((overlap - LEAST_EDGES) / (SURE_EDGES - LEAST_EDGES), 0.0), 1.0)


def resample_reference(image: nib.Nifti1Image, shape: Shape, affine: np.ndarray) -> np.ndarray:
    """Return an image on another grid, float32 (X, Y, Z), 0 outside its field of view.

    Cubic interpolation, once; for larger voxels, several points are averaged.

    Parameters
    ----------
    image
        3-D image.
    shape, affine
        The grid.
    """
    own, new = np.array(voxel_sizes(image.affine)), np.array(voxel_sizes(affine))
    along = np.abs(np.linalg.inv(image.affine[:3, :3] / own) @ (affine[:3, :3] / new))
    finest = 1 / (along / own[:, None]).max(axis=0)  # of the reference, along the new axes
    counts = np.maximum(1, np.ceil(new / finest - 0.05)).astype(int)
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = (data != 0).astype(np.float32)
    spline = ndimage.spline_filter(data, order=3, output=np.float32, mode="mirror")
    total = np.zeros(shape, dtype=np.float32)
    for index in np.ndindex(*counts):
        shift = (np.array(index) + 0.5) / counts - 0.5
        to_image = np.linalg.inv(image.affine) @ affine
        offset = to_image[:3, 3] + to_image[:3, :3] @ shift
        total += ndimage.affine_transform(
            spline, to_image[:3, :3], offset, shape, np.float32, order=3, mode="constant",
            prefilter=False,
        )  # fmt: skip
    centre = np.linalg.inv(image.affine) @ affine
    seen = ndimage.affine_transform(
        inside, centre[:3, :3], centre[:3, 3], shape, np.float32, order=1, mode="constant"
    )
    result: np.ndarray = np.where(seen > 0.99, total / float(counts.prod()), 0).clip(0)
    return result


def gradient_overlap(target: nib.Nifti1Image, reference: nib.Nifti1Image) -> float:
    """Return the agreement of edges: 1 if all are parallel, 1/3 by chance.

    It is the mean squared cosine between the gradients of the two images at 2 mm, inside the head,
    where both have edges, weighted by edge strength.

    Parameters
    ----------
    target, reference
        Images on any grids, in the same world coordinates.
    """
    shape, affine = output_grid(target.shape, target.affine, (COMPARED_AT,) * 3)
    views = [_smoothed(image, shape, affine) for image in (target, reference)]
    zooms = voxel_sizes(affine)
    head = ndimage.distance_transform_edt(head_mask_array(views[0], zooms), zooms) > DEEP
    known = ndimage.binary_erosion(views[1] > 0, iterations=2) & head
    if known.sum() < 1000:
        return 0.0
    slopes = [np.stack(np.gradient(view)) for view in views]
    sizes = [np.sqrt((slope**2).sum(0)) for slope in slopes]
    for size in sizes:
        known &= size > np.quantile(size[known], STRONG) if known.any() else known
    if not known.any():
        return 0.0
    cosine = (slopes[0] * slopes[1]).sum(0)[known] ** 2
    weight = (sizes[0] * sizes[1])[known]
    return float((cosine / weight).sum() / weight.sum())


def _smoothed(image: nib.Nifti1Image, shape: Shape, affine: np.ndarray) -> np.ndarray:
    """Return an image on a coarse grid, smoothed first if its own voxels are finer."""
    data = np.asarray(image.dataobj, dtype=np.float32)
    sigma = 0.5 * COMPARED_AT / np.array(voxel_sizes(image.affine))
    to_image = np.linalg.inv(image.affine) @ affine
    result: np.ndarray = ndimage.affine_transform(
        ndimage.gaussian_filter(data, sigma), to_image[:3, :3], to_image[:3, 3], shape, order=1
    )
    return result
