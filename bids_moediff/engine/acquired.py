# SPDX-License-Identifier: Apache-2.0
"""Back to the voxels that were measured: undo the zero filling of a scanner.

A header of 0.47 mm on a scan of 0.94 mm hides from a network what it is to do. Where the spectrum
is empty above a cut-off (:mod:`bids_moediff.engine.spectrum`), the empty part can be dropped
without losing anything: the voxels get the acquired size, the field of view stays.
"""

import math
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from bids_moediff.engine.acquisition import Axis, axis_matrix
from bids_moediff.engine.grid import output_grid, voxel_sizes
from bids_moediff.engine.spectrum import AxisResolution

LEAST_FACTOR = 1.15  # smaller differences are within the accuracy of the cut-off
MARGIN = 1.03  # of the cut-off is kept: its place is known to about 2 % of Nyquist


def measured_zooms(
    axes: Sequence[AxisResolution], shape: Sequence[int]
) -> tuple[float, float, float]:
    """Voxel sizes in mm that hold all that was measured, with whole voxels per field of view.

    Axes that are native, or whose kind is unknown, keep their voxels. So do interpolated ones
    (linear, cubic): their spectrum is not empty.
    """
    zooms = []
    for axis, count in zip(axes, shape, strict=True):
        factor = axis.acquired / axis.voxel / MARGIN
        if axis.kind != "zero-filled" or factor < LEAST_FACTOR:
            zooms.append(axis.voxel)
        else:
            zooms.append(axis.voxel * count / math.ceil(count / factor))
    return (zooms[0], zooms[1], zooms[2])


def undo_zero_filling(
    image: nib.Nifti1Image, axes: Sequence[AxisResolution]
) -> nib.Nifti1Image:
    """The image on the voxels that were measured.

    Parameters
    ----------
    image
        3-D scan.
    axes
        What :func:`bids_moediff.engine.spectrum.acquired_resolution` found for it.

    Returns
    -------
    nib.Nifti1Image
        float32, the outer corner of the first voxel and the field of view unchanged; ``image``
        itself where there is nothing to undo.
    """
    shape, old = image.shape, voxel_sizes(image.affine)
    new = measured_zooms(axes, shape)
    if np.allclose(new, old, rtol=1e-3):
        return image
    new_shape, affine = output_grid(shape, image.affine, new)
    data = np.asarray(image.dataobj, dtype=np.float32)
    for axis in range(3):
        matrix = axis_matrix(shape[axis], old[axis], new_shape[axis], new[axis], Axis("kspace"))
        if matrix is not None:
            data = np.moveaxis(np.tensordot(matrix, data, axes=(1, axis)), 0, axis)
    return nib.Nifti1Image(data.astype(np.float32), affine)
