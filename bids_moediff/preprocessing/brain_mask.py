# SPDX-License-Identifier: Apache-2.0
"""Brain mask of a head of any contrast: a small network on a coarse grid, outlined finely."""

from functools import lru_cache
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
from bids_moediff.imaging.masks import head_mask_array, largest_component, outside_zeros
from bids_moediff.imaging.separable import along_axes, tent_matrix

MODEL = "brainmask"


def brain_mask(
    image: nib.Nifti1Image, model: str | Path = MODEL
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Brain mask on the grid of ``image``: brain tissue with the fluid in and between its folds.

    Parameters
    ----------
    image
        3-D head or skull-stripped brain, any contrast, orientation and voxel size.
    model
        Name of a shipped model of the family "brainmask", or the folder of another one.

    Returns
    -------
    mask
        ``uint8``, 0 or 1. The same bytes whatever the number of threads.
    record
        ``model``, ``sha256``, ``method`` (``"network"``, or ``"nonzero"`` where the skull had been
        removed before), ``volume_ml`` and ``warnings``.

    Raises
    ------
    ImageError
        If no brain is found.
    WeightsError
        If the weights are missing or do not match their checksum.
    """
    data = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    zooms = tuple(float(zoom) for zoom in nib.affines.voxel_sizes(image.affine))
    logits, record = _network_logits(data, image.affine, str(model))
    mask = clean_mask(logits > record.pop("threshold"))
    method = "network"
    stripped = _stripped_brain(data, zooms, mask)
    if stripped is not None:
        mask, method = stripped, "nonzero"
    voxel_ml = float(np.prod(zooms)) / 1000.0
    volume = float(mask.sum()) * voxel_ml
    if volume < 50.0:
        raise ImageError("no brain found in the image: is it a head, and is the contrast usual?")
    record |= {"method": method, "volume_ml": round(volume, 1), "warnings": []}
    if not 700.0 <= volume <= 2200.0:
        record["warnings"].append(
            f"the brain mask holds {volume:.0f} ml, unusual for a whole brain: check it"
        )
    result = nib.Nifti1Image(mask.astype(np.uint8), image.affine)
    result.header.set_xyzt_units("mm")
    return result, record


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Largest component without holes."""
    return np.asarray(ndimage.binary_fill_holes(largest_component(mask)))


def normalise(data: np.ndarray) -> np.ndarray:
    """Intensities to [0, 1]: from the minimum to the 99.5th percentile of what is not air."""
    low = float(data.min())
    rest = data[data > low + 0.02 * (float(data.max()) - low)]
    high = float(np.percentile(rest, 99.5)) if rest.size else low
    return np.clip((data - low) / max(high - low, 1e-6), 0.0, 1.0).astype(np.float32)


def _network_logits(
    data: np.ndarray, affine: np.ndarray, model: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits of brain on the grid of ``data``."""
    import torch

    network, zoom, origin = _load(model)
    orientation = ornt_transform(io_orientation(affine), axcodes2ornt("RAS"))
    ras = apply_orientation(data, orientation)
    zooms = nib.affines.voxel_sizes(affine @ inv_ornt_aff(orientation, data.shape))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # sums of floats depend on how they are shared out
        # Two looks at every place: a second grid between the voxels of the first, mirrored.
        fine = _look(ras, zooms, network, zoom, 0.0, 1)
        fine += _look(ras, zooms, network, zoom, zoom / 2, -1)
    finally:
        torch.set_num_threads(threads)
    fine /= 2
    back = ornt_transform(axcodes2ornt("RAS"), io_orientation(affine))
    return np.asarray(apply_orientation(fine, back)), dict(origin)


def _look(
    ras: np.ndarray, zooms: np.ndarray, network: Any, zoom: float, shift: float, step: int
) -> np.ndarray:
    """Logits by a working grid of ``zoom`` mm that begins ``shift`` mm before the image.

    ``step`` -1 mirrors it.
    """
    import torch

    sizes = [
        max(1, round((size * own + shift) / zoom))
        for size, own in zip(ras.shape, zooms, strict=True)
    ]
    grids = list(zip(ras.shape, zooms, sizes, strict=True))
    coarse = along_axes(ras, [tent_matrix(n, z, m, zoom, -shift) for n, z, m in grids])
    volume = np.pad(normalise(coarse), [(0, -size % network.multiple) for size in sizes])
    with torch.inference_mode():
        given = torch.from_numpy(np.ascontiguousarray(volume[::step]))
        logits = network(given[None, None])[0, 0].numpy()[::step]
    logits = np.clip(logits[tuple(slice(size) for size in sizes)], -8.0, 8.0)
    return along_axes(logits, [tent_matrix(m, zoom, n, z, shift) for n, z, m in grids])


def _stripped_brain(
    data: np.ndarray, zooms: tuple[float, ...], mask: np.ndarray
) -> np.ndarray | None:
    """What is left of a skull-stripped head, or None where the skull is still there."""
    deleted = outside_zeros(data)
    faces = [np.take(deleted, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    if np.concatenate(faces).mean() < 0.9 or not mask.any():
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
