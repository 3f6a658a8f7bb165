# SPDX-License-Identifier: Apache-2.0
"""Zero filling is undone without loss, and nothing else is touched."""

from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.moediff.restorer import MoEDiffRestorer
from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.spectrum import AxisResolution, acquired_resolution
from bids_moediff.inference.request import ImageRequest
from bids_moediff.inference.simple import restore
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.worker import Scan, enhance_image
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import (
    Measured,
    declared_acquisition,
    estimated_acquisition,
    find_measured,
    measured_zooms,
    thickness_remark,
    undo_interpolation,
)


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
    undone = undo_interpolation(image, axes)
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


def test_native_and_unknown_axes_are_left_alone():
    axes = (native(1.0), native(1.2), AxisResolution(4.0, 4.0, "unknown", 4.0))
    assert measured_zooms(axes, (10, 20, 30)) == (1.0, 1.2, 4.0)
    image = nib.Nifti1Image(np.ones((10, 20, 30), np.float32), np.diag([1, 1.2, 4, 1]))
    assert undo_interpolation(image, axes) is image


def test_an_interpolated_axis_gets_the_voxels_of_its_period():
    axes = (AxisResolution(0.8, 0.9, "interpolated", 1.2), native(1.0), native(1.0))
    assert measured_zooms(axes, (90, 4, 4))[0] == pytest.approx(1.2)


def test_the_count_is_whole_and_nothing_measured_is_cut():
    axes = (AxisResolution(0.47, 0.94, "zero-filled", 0.94), native(1.0), native(1.0))
    zooms = measured_zooms(axes, (512, 4, 4))
    count = 512 * 0.47 / zooms[0]
    assert count == pytest.approx(round(count))
    assert 0.88 < zooms[0] <= 0.94


def zero_filled(factor: float = 2.0) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """The texture as measured, and stored by a scanner that doubles its first axis."""
    data = measured()
    count = round(64 * factor)
    matrix = axis_matrix(count, 1 / factor, 64, 1.0, Axis("kspace"))
    assert matrix is not None
    fine = np.tensordot(matrix.T * factor, data, axes=(1, 0))
    coarse_affine, affine = np.eye(4), np.diag([1 / factor, 1.0, 1.0, 1.0])
    affine[0, 3] = -0.5 + 0.5 / factor
    return (
        nib.Nifti1Image(data.astype(np.float32), coarse_affine),
        nib.Nifti1Image(fine.astype(np.float32), affine),
    )


def test_mask_and_bias_field_follow_the_image():
    _, fine = zero_filled()
    inside = np.zeros(fine.shape, np.uint8)
    inside[20:108, 6:54, 6:50] = 1
    mask = nib.Nifti1Image(inside, fine.affine)
    ramp = np.broadcast_to(np.linspace(0.8, 1.2, fine.shape[0])[:, None, None], fine.shape)
    field = nib.Nifti1Image(np.ascontiguousarray(ramp, dtype=np.float32), fine.affine)
    found = find_measured(fine, mask, field)
    assert found.changed == (True, False, False)
    assert found.source == "spectrum"
    assert found.mask is not None and found.bias_field is not None
    assert found.image.shape == found.mask.shape == found.bias_field.shape
    assert np.allclose(found.mask.affine, found.image.affine)
    volume = np.prod(found.zooms) * np.asarray(found.mask.dataobj).sum()
    assert volume == pytest.approx(inside.sum() * 0.5, rel=0.03)
    middle = np.asarray(found.bias_field.dataobj)[:, 30, 30]
    assert np.allclose(middle, np.linspace(0.8, 1.2, len(middle)), atol=0.005)


def test_the_user_has_the_last_word():
    _, fine = zero_filled()
    assert find_measured(fine, wanted="header").image is fine
    named = find_measured(fine, wanted=(1.0, 0.9, 2.0))
    # Never finer than stored, and whole voxels per field of view.
    assert named.zooms == pytest.approx((1.0, 1.0, 2.0))
    assert named.changed == (True, False, True)
    assert named.source == "option"


def test_profiles_by_sidecar_and_by_option():
    _, fine = zero_filled()
    thick = find_measured(fine, wanted=(1.0, 1.0, 2.5))
    spacing = thick.zooms[2]
    # Nothing is known: an axis that was interpolated from there ends like k-space.
    unknown = declared_acquisition(thick, {})
    assert (unknown.acquisition.axes, unknown.source) == ((Axis(), Axis(), Axis()), "assumed")
    slices = declared_acquisition(thick, {"MRAcquisitionType": "2D", "SliceThickness": 2.0})
    assert slices.acquisition.axes == (Axis(), Axis(), Axis("box", 2.0 / spacing))
    assert slices.source == "stated"
    gaussian = declared_acquisition(thick, {"MRAcquisitionType": "3D"}, "gaussian", 1.5)
    assert gaussian.acquisition.axes[2] == Axis("gaussian", 1.5 / spacing)
    assert gaussian.source == "option"
    assert declared_acquisition(thick, {}, "auto", 3.0).acquisition.axes[2].profile == "box"
    # A thickness says nothing of a 3-D scan, whose slices are Fourier-encoded.
    volume = declared_acquisition(thick, {"MRAcquisitionType": "3D", "SliceThickness": 2.5})
    assert (volume.acquisition.axes[2], volume.source) == (Axis(), "assumed")


def test_slices_of_unstated_thickness_are_three_quarters_of_their_distance():
    """Told wider than they are, slices come out below interpolation; told narrower, they gain."""
    _, fine = zero_filled()
    header = find_measured(fine, wanted="header")
    spacing = max(header.zooms)
    flat = declared_acquisition(header, {"MRAcquisitionType": "2D"})
    axis = list(header.zooms).index(spacing)
    assert (flat.acquisition.axes[axis], flat.source) == (Axis("box", 0.75), "assumed")
    named = declared_acquisition(header, {"MRAcquisitionType": "2D"}, "gaussian")
    assert named.acquisition.axes[axis] == Axis("gaussian", 1.0)


@pytest.mark.parametrize("wanted", [5.0, 19.0])
def test_slices_stay_on_their_axis_where_one_size_is_passed_for_all(wanted):
    """Whole voxels of 19 mm are 20 mm here, 19.1 mm there."""
    image = nib.Nifti1Image(np.ones((160, 191, 30), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    scan = find_measured(image, wanted=(wanted,) * 3)
    for options in ((), ("box", 4.0)):
        found = declared_acquisition(scan, {"MRAcquisitionType": "2D"}, *options).acquisition
        assert [axis.profile for axis in found.axes] == ["kspace", "kspace", "box"]


@pytest.mark.parametrize(
    ("stated", "given", "words"),
    [
        (4.0, None, None),
        (40.0, None, "40 mm is 10 times the slice distance of 4 mm; 2 times"),
        (0.4, None, "0.1 times the slice distance of 4 mm; 0.2 times"),
        (4.0, 10.0, "10 mm is 2.5 times"),
        (40.0, 4.0, None),
    ],
)
def test_a_thickness_that_cannot_be_used_is_said(stated, given, words):
    image = nib.Nifti1Image(np.ones((20, 20, 30), np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    scan = find_measured(image, wanted="header")
    sidecar = {"MRAcquisitionType": "2D", "SliceThickness": stated}
    declared = declared_acquisition(scan, sidecar, "auto", given)
    said = thickness_remark(scan, sidecar, declared, given)
    assert (said is None) == (words is None)
    assert words is None or words in said


@pytest.mark.parametrize("changed", [(True, False, False), (False, False, True)])
def test_slices_are_read_where_only_the_plane_was_interpolated(changed):
    """In plane scanners zero-fill as a rule; slices wider than stated are seen all the same."""
    random = np.random.default_rng(0)
    fine = ndimage.gaussian_filter(random.standard_normal((96, 96, 96)), 1, mode="wrap") > 0
    matrix = axis_matrix(96, 1.0, 24, 4.0, Axis("gaussian", 1.3))
    data = np.moveaxis(np.tensordot(matrix, fine.astype(float), axes=(1, 2)), 0, 2)
    image = nib.Nifti1Image(data.astype(np.float32), np.diag([1.0, 1.0, 4.0, 1.0]))
    scan = Measured(image, None, None, changed, "spectrum")
    stated = {"MRAcquisitionType": "2D", "SliceThickness": 4.0}
    declared = declared_acquisition(scan, stated)
    found, weights = estimated_acquisition(declared, scan, stated, 1e-4)
    if changed[2]:
        assert (found, weights) == (declared, {})
    else:
        assert (found.source, found.acquisition.axes[2].profile) == ("estimated", "gaussian")
        assert weights["gaussian 1"] > 0.8


def test_a_zero_filled_scan_is_restored_from_what_was_measured():
    """Without a network: interpolation and projection, from stored and from true voxels."""
    coarse, fine = zero_filled()
    model = LoadedModel(MoEDiffModel(None, None), {"family": "moediff"}, "", "none")
    resolver = SuperResolver(model, torch.device("cpu"), "fp32")

    def restored(image: nib.Nifti1Image, wanted: str) -> tuple[np.ndarray, dict[str, Any]]:
        mask = nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine)
        three = {"MRAcquisitionType": "3D"}
        told = ImageRequest(key="a", image="", out_dir="", metadata=three)
        known = {"acquired_resolution": wanted, "noise": "none"}  # its texture is no noise
        options = Options(output_resolution=(0.8, 0.8, 0.8), **known)
        result = enhance_image(resolver, Scan(image, mask), told, options)
        return result.image.get_fdata(), result.record

    wanted, _ = restored(coarse, "header")
    found, record = restored(fine, "auto")
    assert record["InputVoxelSize"] == pytest.approx([0.5, 1, 1])
    assert 0.85 <= record["AcquiredVoxelSize"][0] <= 1.05
    assert record["AcquiredVoxelSize"][1:] == [1, 1]
    assert record["AcquiredVoxelSizeFrom"] == "spectrum"
    assert [axis["profile"] for axis in record["SamplingProfiles"]] == ["kspace"] * 3
    assert record["ConsistencyResidual"] < 1e-3
    trusting, record = restored(fine, "header")
    assert record["AcquiredVoxelSize"] == record["InputVoxelSize"]
    error, blurred = (np.linalg.norm(x - wanted) for x in (found, trusting))
    assert error < 0.02 * np.linalg.norm(wanted)
    assert error < 0.85 * blurred  # an axis taken at its header's word is averaged down


def test_a_result_that_does_not_explain_the_scan_is_told():
    class Forgetful(MoEDiffRestorer):
        """Darkens what it is given."""

        def run_mean(self, *arguments: Any) -> torch.Tensor:
            return 0.8 * super().run_mean(*arguments)

    coarse, _ = zero_filled()
    model = LoadedModel(MoEDiffModel(None, None), {"family": "moediff"}, "", "none")
    for restorer, expected in ((Forgetful, True), (MoEDiffRestorer, False)):
        resolver = SuperResolver(model, torch.device("cpu"), "fp32")
        resolver.restorer = restorer(model.network, resolver.device, "fp32")
        told = ImageRequest(key="a", image="", out_dir="")
        options = Options(output_resolution=(0.8, 0.8, 0.8), acquired_resolution="header")
        options = replace(options, consistency="off")
        warnings = enhance_image(resolver, Scan(coarse), told, options).record["Warnings"]
        assert any("times the scan's noise" in words for words in warnings) is expected


def test_a_voxel_is_brain_if_half_of_it_is():
    """Of five voxels that become one, two are not enough and three are."""
    image = nib.Nifti1Image(np.ones((10, 4, 4), np.float32), np.eye(4))
    inside = np.zeros(image.shape, np.uint8)
    inside[3:7] = 1  # two of the first five, two of the last five
    inside[7] = 1  # a third of the last five
    found = find_measured(image, nib.Nifti1Image(inside, np.eye(4)), wanted=(5.0, 1.0, 1.0))
    assert found.mask is not None and found.zooms == (5.0, 1.0, 1.0)
    assert np.asarray(found.mask.dataobj)[:, 0, 0].tolist() == [0, 1]


def test_the_plain_tool_says_that_it_left_the_voxels_of_the_file():
    _, fine = zero_filled()
    mask = nib.Nifti1Image(np.ones(fine.shape, np.uint8), fine.affine)
    one = Options(model="student", output_resolution=(1.0,) * 3)  # so that no network runs
    for resolution, said in (("auto", True), ("header", False)):
        options = replace(one, acquired_resolution=resolution)
        record = restore(Scan(fine, mask), options, device="cpu").record
        words = " ".join(record["Warnings"])
        assert ("instead of 0.5 mm along the first axis" in words) == said
