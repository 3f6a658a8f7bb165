# SPDX-License-Identifier: Apache-2.0
"""Stored in steps below the noise: smaller files, the same image; and none of it below zero."""

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.storage import LARGEST, storage_step
from bids_moediff.inference.pose import Inputs, pose
from bids_moediff.runtime.sink import write_nifti
from generated import head


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_stored_values_are_those_of_the_image_to_a_small_part_of_the_noise(tmp_path, scale):
    data = np.asarray(head().dataobj, dtype=np.float32) * np.float32(scale)
    data += np.random.default_rng(0).normal(0, scale, data.shape).astype(np.float32)
    noise = 6.0 * scale
    step = storage_step(noise, float(np.abs(data).max()))
    assert step is not None and noise / 64 < step <= noise / 32
    image = nib.Nifti1Image(data, np.eye(4))
    small = write_nifti(image, tmp_path / "small.nii.gz", step=step)
    large = write_nifti(image, tmp_path / "large.nii.gz")
    stored = nib.load(small)
    assert stored.get_data_dtype() == np.int16
    assert float(stored.dataobj.slope) == step
    assert np.abs(np.asarray(stored.dataobj) - data).max() <= step / 2 * 1.001
    assert small.stat().st_size < large.stat().st_size / 2
    again = write_nifti(nib.load(small), tmp_path / "again.nii.gz", step=step)
    assert again.read_bytes() == small.read_bytes()


@pytest.mark.parametrize(
    ("noise", "largest"),
    [(0.0, 100.0), (np.nan, 100.0), (1.0, np.inf), (1e-3, 1e5), (1e-40, 1e-38)],
)
def test_floats_where_no_step_is_fine_enough(noise, largest):
    assert storage_step(noise, largest) is None


def test_the_largest_integer_of_16_bits_is_the_limit(tmp_path):
    """Beyond it an integer would wrap to a negative value."""
    assert storage_step(32.0, float(LARGEST)) == 1.0
    assert storage_step(32.0, LARGEST + 1.0) is None
    data = np.zeros((4, 4, 4), np.float32)
    data[0, 0, 0], data[1, 1, 1] = LARGEST, -LARGEST
    path = write_nifti(nib.Nifti1Image(data, np.eye(4)), tmp_path / "limit.nii.gz", step=1.0)
    assert np.array_equal(np.asarray(nib.load(path).dataobj), data)


def test_a_misread_noise_costs_no_grey_levels():
    step = storage_step(1000.0, 4095.0)
    assert step is not None and 4095 / step >= 2048
    assert 4095 / step <= LARGEST


@pytest.mark.parametrize("consistent", [True, False])
def test_non_negative_keeps_agreement_where_there_is_signal(consistent):
    image = head(shape=(24, 28, 20), zooms=(7.0, 7.0, 8.0))
    inputs = Inputs(acquisition=Acquisition.uniform("kspace"), noise=0.0)
    posed = pose(image, (3.5, 3.5, 4.0), inputs, torch.device("cpu"))
    volume = posed.finish(posed.start())
    assert float(volume.min()) < -0.01
    cut = posed.non_negative(volume, consistent)
    assert float(cut.min()) >= 0
    inside = posed.measured > 0.3
    error = (posed.operator.forward(cut) - posed.measured)[inside]
    naive = (posed.operator.forward(volume.clamp_min(0)) - posed.measured)[inside]
    relative = float(error.norm() / posed.measured[inside].norm())
    if consistent:
        assert relative < 0.3 * float(naive.norm() / posed.measured[inside].norm())
        assert relative < 2e-3


def test_shading_is_taken_out_of_what_the_networks_see():
    """The start of a shaded scan is that of the scan without shading."""
    plain = head(shape=(24, 28, 20), zooms=(7.0, 7.0, 8.0))
    ramp = np.linspace(0.6, 1.4, 24, dtype=np.float32)[:, None, None] * np.ones(plain.shape, "f4")
    data = np.asarray(plain.dataobj, dtype=np.float32)
    shaded = nib.Nifti1Image(data * ramp, plain.affine)
    field = nib.Nifti1Image(ramp, plain.affine)
    zooms, cpu = (3.5, 3.5, 4.0), torch.device("cpu")
    one = pose(plain, zooms, Inputs(), cpu)
    other = pose(shaded, zooms, Inputs(bias_field=field), cpu)
    starts = [part.start().numpy() * part.scale for part in (one, other)]
    np.testing.assert_allclose(starts[1], starts[0], atol=1e-3 * data.max())


def test_averaging_down_takes_noise_away():
    image = head(shape=(24, 28, 20), zooms=(3.5, 7.0, 8.0))
    posed = pose(image, (7.0, 3.5, 4.0), Inputs(noise=6.0), torch.device("cpu"))
    assert posed.noise * posed.scale == pytest.approx(6.0 * 0.5**0.5, rel=1e-3)
