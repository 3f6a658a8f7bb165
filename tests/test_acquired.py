# SPDX-License-Identifier: Apache-2.0
"""Zero filling is undone without loss, and nothing else is touched."""

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.engine.acquired import measured_zooms, undo_zero_filling
from bids_moediff.engine.acquisition import Axis, axis_matrix
from bids_moediff.engine.spectrum import AxisResolution, acquired_resolution


def native(voxel: float) -> AxisResolution:
    return AxisResolution(voxel, voxel, "native", voxel)


def measured() -> np.ndarray:
    """Periodic texture with 2 % noise."""
    rng = np.random.default_rng(0)
    shape = (64, 60, 56)
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    white = np.fft.fftn(rng.normal(size=shape))
    smooth = np.fft.ifftn(white / np.maximum(radius, 0.02) ** 1.5).real
    return 100 + 20 * smooth / smooth.std() + rng.normal(0, 2, shape)


@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_a_zero_filled_axis_gets_its_voxels_back(factor):
    data = measured()
    count = round(64 * factor)
    # The transpose of the acquisition is the periodic sinc interpolation, up to its scale.
    matrix = axis_matrix(count, 1 / factor, 64, 1.0, Axis("kspace"))
    assert matrix is not None
    fine = np.tensordot(matrix.T * factor, data, axes=(1, 0))
    affine = np.diag([1 / factor, 1.0, 1.0, 1.0])
    affine[:3, 3] = (5 + 0.5 / factor, 7.5, -9.5)
    image = nib.Nifti1Image(fine.astype(np.float32), affine)
    axes = acquired_resolution(fine, (1 / factor, 1.0, 1.0), np.ones(fine.shape))
    assert [axis.kind for axis in axes] == ["zero-filled", "native", "native"]
    undone = undo_zero_filling(image, axes)
    corner = undone.affine @ [-0.5, -0.5, -0.5, 1]
    assert corner[:3] == pytest.approx([5, 7, -10])
    size = undone.shape[0] * undone.affine[0, 0]
    assert size == pytest.approx(64)
    assert undone.shape[1:] == (60, 56)
    assert 0.85 <= undone.affine[0, 0] <= 1.05
    # Filled with zeros again, it is the image that came in.
    back = axis_matrix(count, 1 / factor, undone.shape[0], size / undone.shape[0], Axis("kspace"))
    assert back is not None
    again = np.tensordot(back.T * count / undone.shape[0], undone.get_fdata(), axes=(1, 0))
    assert np.linalg.norm(again - fine) < 5e-3 * np.linalg.norm(fine)


def test_native_interpolated_and_unknown_axes_are_left_alone():
    axes = (
        native(1.0),
        AxisResolution(1.0, 1.2, "interpolated", 1.5),
        AxisResolution(4.0, 4.0, "unknown", 4.0),
    )
    assert measured_zooms(axes, (10, 20, 30)) == (1.0, 1.0, 4.0)
    image = nib.Nifti1Image(np.ones((10, 20, 30), np.float32), np.diag([1, 1, 4, 1]))
    assert undo_zero_filling(image, axes) is image


def test_the_count_is_whole_and_nothing_measured_is_cut():
    axes = (AxisResolution(0.47, 0.94, "zero-filled", 0.94), native(1.0), native(1.0))
    zooms = measured_zooms(axes, (512, 4, 4))
    count = 512 * 0.47 / zooms[0]
    assert count == pytest.approx(round(count))
    assert 0.88 < zooms[0] <= 0.94
