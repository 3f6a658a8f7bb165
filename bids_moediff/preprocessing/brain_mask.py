# SPDX-License-Identifier: Apache-2.0
"""Find the brain in a head of any contrast: a small network on a coarse grid, fine outline."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging.masks import (
    fill_holes,
    head_mask_array,
    largest_component,
    outer_faces,
)
from bids_moediff.imaging.separable import along_axes, tent_matrix
from bids_moediff.runtime.resources import has_bfloat16

from .head_pose import turned_head
from .planes import empty_planes

MODEL = "brainmask"
SMALLEST, LARGEST = 50.0, 3000.0  # ml; beyond it is no brain
# Local spread over that of numbers drawn from the whole range. Ratio images of MP2RAGE have 0.8 to
# 1.1 in air and 0.06 to 0.45 in the head.
NOISY = 0.6
TINY = 1e-30


def brain_mask(
    image: nib.Nifti1Image, model: str | Path = MODEL
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Return the brain mask of an image: brain tissue with the fluid in and between its folds.

    Parameters
    ----------
    image
        3-D head or skull-stripped brain, any contrast, orientation and voxel size.
    model
        Name of a shipped model of the family "brainmask", or the folder of another one.

    Returns
    -------
    mask
        ``uint8``, 0 or 1. The result does not depend on the number of threads.
    record
        ``model``, ``sha256``, ``method`` (``"network"``, or ``"nonzero"`` for a skull-stripped
        image), ``volume_ml`` and ``warnings``.

    Raises
    ------
    ImageError
        If no brain is found, or the result is larger than any brain.
    WeightsError
        If the weights are missing or do not match their checksum.
    """
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    zooms = tuple(float(zoom) for zoom in nib.affines.voxel_sizes(image.affine))
    remarks: list[str] = []
    logits, record = _network_logits(without_noisy_air(data), image.affine, str(model), remarks)
    mask = clean_mask(logits > record.pop("threshold"))
    method = "network"
    stripped = _stripped_brain(data, zooms, mask)
    if stripped is not None:
        mask, method = stripped, "nonzero"
    voxel_ml = float(np.prod(zooms)) / 1000.0
    volume = float(mask.sum()) * voxel_ml
    if volume < SMALLEST:
        raise ImageError("no brain found in the image: is it a head, and is the contrast usual?")
    if volume > LARGEST:
        raise ImageError(
            f"the brain mask would have {volume:.0f} ml, more than any brain: the air is bright "
            "or it is not a head; give a mask of another pipeline (--derivatives)"
        )
    record |= {"method": method, "volume_ml": round(volume, 1), "warnings": remarks}
    if not 700.0 <= volume <= 2200.0:
        record["warnings"].append(
            f"the brain mask holds {volume:.0f} ml, unusual for a whole brain: check it"
        )
    result = nib.Nifti1Image(mask.astype(np.uint8), image.affine)
    result.header.set_xyzt_units("mm")
    return result, record


def without_noisy_air(data: np.ndarray) -> np.ndarray:
    """Return the image with dark air, for images whose air is noise over the whole range.

    Ratio images (UNIT1 of MP2RAGE without background suppression) are like that. No threshold
    separates air from tissue there, but the difference between neighbours does.
    """
    low, high = np.percentile(data, [0.1, 99.9])
    drawn = max(float(high - low), np.finfo(np.float32).tiny) / np.sqrt(12)
    slabs = [
        np.moveaxis(data, axis, 0)[part] for axis in (0, 1) for part in (np.s_[:3], np.s_[-3:])
    ]
    if max(float(np.median(_spread(slab)[1])) for slab in slabs) < NOISY * drawn:
        return data
    noisy = ndimage.uniform_filter(_spread(data), 3) > NOISY * drawn
    return np.where(noisy, data.min(), data)


def _spread(data: np.ndarray) -> np.ndarray:
    """Return the standard deviation among the 27 neighbours of each voxel."""
    mean = ndimage.uniform_filter(data, 3)
    return np.sqrt(np.maximum(ndimage.uniform_filter(np.square(data), 3) - mean**2, 0))


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Return the largest component without holes."""
    return fill_holes(largest_component(mask))


def normalise(data: np.ndarray) -> np.ndarray:
    """Scale intensities to [0, 1], from the minimum to the 99.5th percentile outside air."""
    low = float(data.min())
    rest = data[data > low + 0.02 * (float(data.max()) - low)]
    high = float(np.percentile(rest, 99.5)) if rest.size else low
    return np.clip((data - low) / max(high - low, TINY), 0.0, 1.0).astype(np.float32)


def _network_logits(
    data: np.ndarray, affine: np.ndarray, model: str, remarks: list[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return logits of brain on the grid of ``data``; add a remark if the head is turned."""
    import torch

    network, zoom, origin = _load(model)
    orientation = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    ras = apply_orientation(data, orientation)
    zooms = nib.affines.voxel_sizes(affine @ inv_ornt_aff(orientation, data.shape))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # sums of floats depend on how they are shared out
        # Two looks at every place: a second grid between the voxels of the first, mirrored.
        coarse = _coarse(ras, zooms, zoom, 0.0)
        logits = _answer(network, coarse)
        fine = _to_grid(logits, ras.shape, zooms, zoom, 0.0)
        mirrored = _answer(network, _coarse(ras, zooms, zoom, zoom / 2)[::-1])[::-1]
        fine += _to_grid(mirrored, ras.shape, zooms, zoom, zoom / 2)
        # Only compared with one another; in 16 bits they differ by 0.6 % at the most.
        answer = partial(_answer, network, sixteen_bits=has_bfloat16())
        # Half a head looks like one that is turned.
        words = turned_head(coarse, logits, answer, zoom, origin["threshold"])
        if words and not empty_planes(data):
            remarks.append(words)
    finally:
        torch.set_num_threads(threads)
    fine /= 2
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(affine))
    return np.asarray(apply_orientation(fine, back)), dict(origin)


def _coarse(ras: np.ndarray, zooms: np.ndarray, zoom: float, shift: float) -> np.ndarray:
    """Return the image on a working grid of ``zoom`` mm that begins ``shift`` mm before it."""
    sizes = [
        max(1, round((size * own + shift) / zoom))
        for size, own in zip(ras.shape, zooms, strict=True)
    ]
    grids = zip(ras.shape, zooms, sizes, strict=True)
    return along_axes(ras, [tent_matrix(n, z, m, zoom, -shift) for n, z, m in grids])


def _answer(network: Any, coarse: np.ndarray, *, sixteen_bits: bool = False) -> np.ndarray:
    """Return logits of brain on the working grid."""
    import torch

    volume = np.pad(normalise(coarse), [(0, -size % network.multiple) for size in coarse.shape])
    fast = torch.autocast("cpu", torch.bfloat16, enabled=sixteen_bits)
    with torch.inference_mode(), fast:
        given = torch.from_numpy(np.ascontiguousarray(volume))
        if sixteen_bits:
            given = given.bfloat16()
        logits = network(given[None, None])[0, 0].float().numpy()
    return np.asarray(logits[tuple(slice(size) for size in coarse.shape)])


def _to_grid(
    logits: np.ndarray, shape: tuple[int, ...], zooms: np.ndarray, zoom: float, shift: float
) -> np.ndarray:
    """Return logits on the grid of the image, from those of the working grid."""
    grids = zip(logits.shape, shape, zooms, strict=True)
    matrices = [tent_matrix(m, zoom, n, z, shift) for m, n, z in grids]
    return along_axes(np.clip(logits, -8.0, 8.0), matrices)


def _stripped_brain(
    data: np.ndarray, zooms: tuple[float, ...], mask: np.ndarray
) -> np.ndarray | None:
    """Return the mask of a skull-stripped head, or None if the skull is still there."""
    deleted = np.concatenate([face.ravel() == 0 for face in outer_faces(data)])
    if deleted.mean() < 0.9 or not mask.any():
        return None
    left = head_mask_array(data, zooms)
    overlap = float((left & mask).sum()) / float((left | mask).sum())
    return left if overlap > 0.75 else None


@lru_cache(maxsize=2)
def _load(model: str) -> tuple[Any, float, dict[str, Any]]:
    """The network, the voxel size of its working grid in mm, and ``{"model", "sha256",
    "threshold"}``: the logit above which brain begins."""
    from bids_moediff.networks.model_folder import build_brain_mask, read_model

    loaded = read_model(model, build_brain_mask)
    threshold = float(loaded.config.get("threshold", 0.0))
    record = {"model": loaded.name, "sha256": loaded.sha256, "threshold": threshold}
    return loaded.network, float(loaded.config.get("zoom", 4.0)), record
