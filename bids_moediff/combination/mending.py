# SPDX-License-Identifier: Apache-2.0
"""Remove the effect of bad slices from a restored scan.

A network and interpolation use the neighbours of a slice. So a dark or moved slice spoils the
result around it, and the registration. Its difference from the good slices beside it is
interpolated consistently with the acquisition, which is linear, and subtracted.
"""

from dataclasses import replace

import nibabel as nib
import numpy as np
import torch

from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.interpolation import initial_estimate

from .slice_weights import along
from .view import Scan, View


def mended(view: View, weights: np.ndarray) -> Scan:
    """The scan of a view, its restored image as if slices of little weight were like those beside.

    Parameters
    ----------
    view
        The scan.
    weights
        Confidence (0 to 1) in each of its slices; one is 1 at least.
    """
    scan = view.scan
    data = np.asarray(scan.image.dataobj, dtype=np.float32)
    wrong = (1 - along(weights, scan.axis)) * (_from_beside(data, weights, scan.axis) - data)
    sizes = voxel_sizes(scan.image.affine), voxel_sizes(scan.single.affine)
    change = initial_estimate(torch.from_numpy(wrong), view.observation.operator, *sizes).numpy()
    single = np.asarray(scan.single.dataobj, dtype=np.float32) + change
    return replace(scan, single=nib.Nifti1Image(single, scan.single.affine, scan.single.header))


def _from_beside(data: np.ndarray, weights: np.ndarray, axis: int | None) -> np.ndarray:
    """Each slice interpolated linearly from the nearest ones of full weight, on either side."""
    slices = np.moveaxis(data, axis or 0, 0)
    good = np.flatnonzero(weights == 1)
    place = np.interp(np.arange(len(slices)), good, np.arange(len(good)))
    low = np.floor(place).astype(int)
    share = (place - low).astype(np.float32)[:, None, None]
    below, above = slices[good[low]], slices[good[np.minimum(low + 1, len(good) - 1)]]
    return np.moveaxis(below + share * (above - below), 0, axis or 0)
