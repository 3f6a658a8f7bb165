# SPDX-License-Identifier: Apache-2.0
"""Find the voxels of the head: the region in which figures of merit are computed."""

from collections.abc import Sequence
from itertools import product

import nibabel as nib
import numpy as np
import SimpleITK
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import block_reduce

from bids_moediff.imaging.grid import steps_to
from bids_moediff.imaging.separable import along_axes, tent_matrix


def head_mask(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the mask of the head (scalp included), filled, without deleted voxels.

    Parameters
    ----------
    image
        3-D image of any contrast, orientation and data type.

    Returns
    -------
    nib.Nifti1Image
        ``uint8``, 1 in the head, on the grid of ``image``. Air inside the head counts as head;
        voxels that defacing or skull-stripping set to exactly 0 do not.
    """
    zooms = tuple(float(zoom) for zoom in nib.affines.voxel_sizes(image.affine))
    mask = head_mask_array(np.asarray(image.dataobj, dtype=np.float32), zooms)
    result = nib.Nifti1Image(mask.astype(np.uint8), image.affine)
    result.header.set_xyzt_units("mm")
    return result


def head_mask_array(data: np.ndarray, zooms: tuple[float, ...]) -> np.ndarray:
    """Return the boolean head mask of an array; see :func:`head_mask`.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    zooms
        Voxel sizes in mm.
    """
    data = np.asarray(data, dtype=np.float32)
    if not np.isfinite(data).all():
        data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
    deleted = outside_zeros(data)
    if deleted.all():
        return np.zeros(data.shape, dtype=bool)
    # Two millimetres are fine enough for an outline, and the morphology is ten times cheaper.
    factors = steps_to(zooms, 2.0)
    coarse_zooms = tuple(zoom * factor for zoom, factor in zip(zooms, factors, strict=True))
    kept = block_mean((~deleted).astype(np.float32), factors)
    coarse = block_mean(data, factors) / np.maximum(kept, 1e-6)
    if _border_share(deleted) > 0.95:
        foreground = kept >= 0.5  # nothing but the head was kept: no threshold can do better
    else:
        foreground = _above_background(coarse, kept >= 0.5, coarse_zooms)
    foreground = _fill_slices(_close(foreground, 6.0, coarse_zooms))
    # Only a filled head may be opened: a thin scalp on its own would go with the noise.
    foreground = largest_component(_open(foreground, 6.0, coarse_zooms))
    outside = _open(kept < 0.5, 3.0, coarse_zooms, regrow=9.0)  # not the bone of an 8-bit image
    deleted &= _refine(outside, factors, data.shape)
    return _refine(foreground, factors, data.shape) & ~deleted


def distance_to(mask: np.ndarray, zooms: Sequence[float]) -> np.ndarray:
    """Return the distance in mm of every voxel to the nearest voxel of ``mask``, 0 in it; float32.

    It is infinite if the mask is empty. The result does not depend on the number of threads;
    scipy's transform takes three times as long.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    image = SimpleITK.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing([float(zoom) for zoom in zooms[::-1]])
    signed = SimpleITK.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    # To a tenth of a micrometre: as a ball of 6 mm holds the fifth voxel of 1.2 mm, or does not,
    # by the last bit of a 32-bit float.
    return np.round(np.maximum(SimpleITK.GetArrayViewFromImage(signed), 0), 4)


def block_mean(data: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Return means over blocks of ``factors`` voxels; the last block of an axis may be smaller."""
    missing = [-size % factor for size, factor in zip(data.shape, factors, strict=True)]
    data = np.pad(data, [(0, count) for count in missing], mode="edge")
    return block_reduce(data, factors, np.mean).astype(np.float32)


def _refine(mask: np.ndarray, factors: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask on the fine grid, with a linearly interpolated outline."""
    sizes = zip(mask.shape, factors, strict=True)
    matrices = [tent_matrix(count, factor, count * factor, 1) for count, factor in sizes]
    cut = [matrix[:size] for matrix, size in zip(matrices, shape, strict=True)]
    return along_axes(mask.astype(np.float32), cut) > 0.5 - 1e-6  # halves count, as everywhere


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around the true voxels of a boolean array; empty without any."""
    boxes = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        boxes.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0))
    return tuple(boxes)


def open_cubes(mask: np.ndarray) -> np.ndarray:
    """Open a boolean array by a cube of 2 x 2 x 2 voxels, in a sixth of scipy's time."""
    core = mask
    for axis in range(3):
        ahead: list[slice] = [slice(None)] * 3
        behind: list[slice] = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        core = core[tuple(ahead)] & core[tuple(behind)]
    result = np.zeros_like(mask)
    for first in product((0, 1), repeat=3):
        place = tuple(slice(k, k + size) for k, size in zip(first, core.shape, strict=True))
        result[place] |= core
    return result


def outside_zeros(data: np.ndarray) -> np.ndarray:
    """Return voxels of exactly 0 that are connected to the border of the field of view."""
    return _open_background(data != 0)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest face-connected component of a boolean array."""
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def outer_faces(data: np.ndarray) -> list[np.ndarray]:
    """Return the two outermost slices along each axis, first those of the first axis."""
    # Not np.take: it copies a whole volume whose first axis runs fastest, as NIfTI's does.
    return [np.moveaxis(data, axis, 0)[end] for axis in range(3) for end in (0, -1)]


def _border_share(mask: np.ndarray) -> float:
    return float(np.mean(np.concatenate([face.ravel() for face in outer_faces(mask)])))


def _above_background(data: np.ndarray, kept: np.ndarray, zooms: tuple[float, ...]) -> np.ndarray:
    """Return voxels brighter than the noise of the air and than a small share of tissue."""
    smooth = ndimage.gaussian_filter(data, [1.0 / zoom for zoom in zooms])
    values = np.minimum(smooth, np.percentile(smooth[kept], 99.0)).ravel()
    # The root draws fat and brain together: without it Otsu parts bright fat from all the rest.
    offset = values.min()
    split = threshold_otsu(np.sqrt(values - offset)) ** 2 + offset
    tissue, air = np.median(values[values > split]), values[values <= split]
    # Air holds the darkest half of the dark class; bone and fluid make its upper tail.
    low, middle = np.percentile(air, [25, 50])
    threshold = max(low + 5.0 * (middle - low), low + 0.15 * (tissue - low))
    return (smooth > min(threshold, split)) & kept


def _close(mask: np.ndarray, radius: float, zooms: tuple[float, ...]) -> np.ndarray:
    """Close a mask by a ball of ``radius`` mm; beyond the field of view the head continues."""
    margin = [int(np.ceil(radius / zoom)) + 1 for zoom in zooms]
    padded = np.pad(mask, [(pad, pad) for pad in margin], mode="edge")
    grown = distance_to(padded, zooms) <= radius
    closed = distance_to(~grown, zooms) > radius
    inner = tuple(slice(pad, pad + size) for pad, size in zip(margin, mask.shape, strict=True))
    return closed[inner] | mask


def _open(
    mask: np.ndarray, radius: float, zooms: tuple[float, ...], regrow: float | None = None
) -> np.ndarray:
    """Open a mask by a ball of ``radius`` mm, grown back by ``regrow`` mm (default: the same).

    Beyond the field of view the mask continues.
    """
    margin = [int(np.ceil(radius / zoom)) + 1 for zoom in zooms]
    inner = tuple(slice(pad, pad + size) for pad, size in zip(margin, mask.shape, strict=True))
    padded = np.pad(mask, [(pad, pad) for pad in margin], mode="edge")
    if padded.all():
        return mask
    core = distance_to(~padded, zooms) > radius
    if not core.any():
        return mask
    distance = distance_to(core, zooms)[inner]
    return mask & (distance <= (radius if regrow is None else regrow))


def _fill_slices(mask: np.ndarray) -> np.ndarray:
    """Fill holes slice by slice along every axis: sinuses open towards a cut neck, too."""
    filled = mask.copy()
    for axis in range(3):
        filled |= ~_open_background(mask, axis)
    return ~_open_background(filled)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return a boolean array without holes: background that does not reach its border."""
    box = tuple(
        slice(max(0, part.start - 1), min(size, part.stop + 1))
        for part, size in zip(bounding_box(mask), mask.shape, strict=True)
    )
    filled = mask.copy()
    filled[box] = ~_open_background(mask[box])
    return filled


def _open_background(mask: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the background that reaches the border, through voxels that share a face.

    With ``axis``, each slice across it counts by itself. Components take a tenth of the time of
    scipy's hole filling, which grows the border step by step.
    """
    cross = ndimage.generate_binary_structure(3, 1)
    if axis is not None:
        cross &= np.indices((3, 3, 3))[axis] == 1
    labels, count = ndimage.label(~mask, cross)
    reached = np.zeros(count + 1, dtype=bool)
    for number, face in enumerate(outer_faces(labels)):
        if number // 2 != axis:
            reached[face] = True
    reached[0] = False
    return reached[labels]
