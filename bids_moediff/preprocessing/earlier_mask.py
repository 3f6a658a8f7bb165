# SPDX-License-Identifier: Apache-2.0
"""Bring a mask of another pipeline onto the grid of a scan."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.conform import conform


def reuse_mask(path: str | Path, image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Return a mask on the grid of an image, with a record as of ``brain_mask``.

    If the grids differ, the mask is interpolated linearly in world coordinates and cut at one
    half.

    Parameters
    ----------
    path
        NIfTI file of the mask.
    image
        3-D image.

    Raises
    ------
    ImageError
        If the file cannot be read or does not overlap the image.
    """
    mask, remarks = conform(path, scan=False)
    data = (np.asarray(mask.dataobj) > 0.5).astype(np.float32)
    name = Path(path).name
    if mask.shape != image.shape or not np.allclose(mask.affine, image.affine, atol=1e-3):
        mask = resample_from_to(nib.Nifti1Image(data, mask.affine), image, order=1, cval=0.0)
        moved = np.asarray(mask.dataobj) >= 0.5
        remarks.append(f"{name} lies on another grid and was brought onto that of the image")
    else:
        moved = data > 0.5
    volume = float(moved.sum()) * float(np.prod(nib.affines.voxel_sizes(image.affine))) / 1000.0
    if volume < 50.0:
        raise ImageError(f"the mask {name} does not cover the image")
    result = nib.Nifti1Image(moved.astype(np.uint8), image.affine)
    result.header.set_xyzt_units("mm")
    record = {"method": "derivatives", "file": name, "volume_ml": round(volume, 1)}
    return result, record | {"warnings": remarks}
