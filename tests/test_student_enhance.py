# SPDX-License-Identifier: Apache-2.0
"""The student in the engine: any voxel size and plane, bounded memory, and what is said about it.

Weights are random: the promises hold whatever the network does.
"""

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.families.whole_volume import restore_volume
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import output_grid
from bids_moediff.inference.pose import Inputs, pose
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.warnings import range_warnings
from bids_moediff.options import Options
from test_model_choice import student_folder
from test_super_resolver import corner, scan


@pytest.fixture(scope="module")
def resolver(tmp_path_factory: pytest.TempPathFactory) -> SuperResolver:
    folder: Path = tmp_path_factory.mktemp("models") / "student"
    return SuperResolver.from_pretrained(student_folder(folder), precision="fp32")


@pytest.mark.parametrize(
    ("shape", "zooms", "target"),
    [
        ((20, 24, 17), (1.0, 1.0, 1.0), (0.7, 0.7, 0.7)),
        ((33, 31, 6), (0.94, 0.94, 5.2), (0.94, 0.94, 1.0)),  # thick axial, one axis only
        ((31, 6, 33), (0.9, 4.4, 0.9), (0.9, 0.9, 0.9)),  # coronal
        ((7, 30, 28), (3.3, 1.1, 1.1), (1.1, 1.1, 1.1)),  # sagittal
        ((14, 11, 9), (2.3, 3.1, 4.7), (1.3, 1.3, 1.3)),  # three different ratios
        ((6, 6, 5), (8.0, 8.0, 8.0), (3.0, 3.0, 3.0)),
        ((24, 22, 20), (0.45, 0.45, 0.6), (0.3, 0.3, 0.3)),
    ],
)
def test_any_voxel_size_in_any_plane(resolver, shape, zooms, target):
    image = scan(shape, zooms)
    result = resolver.enhance(image, Options(output_resolution=target))
    np.testing.assert_allclose(result.image.header.get_zooms(), target, rtol=1e-6)
    np.testing.assert_allclose(corner(result.image.affine), corner(image.affine), atol=1e-4)
    covered = np.array(result.image.shape) * target
    assert (covered >= np.array(shape) * zooms - 1e-2).all()
    assert result.residual < 1e-3
    assert not result.record["Warnings"]
    # The network did something: consistency alone gives another image.
    posed = pose(image, target, Inputs(), resolver.device)
    calm = posed.finish(posed.start()).numpy() * posed.scale
    change = calm - np.asarray(result.image.dataobj)
    assert np.abs(change).max() > 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_with_gaps_are_consistent_with_their_profile(resolver, axis):
    shape, zooms = [24, 24, 24], [1.0, 1.0, 1.0]
    shape[axis], zooms[axis] = 6, 4.0
    axes = [Axis("kspace")] * 3
    axes[axis] = Axis("gaussian", 0.75)  # a quarter of each spacing is gap
    acquisition = Acquisition((axes[0], axes[1], axes[2]))
    image = scan(tuple(shape), tuple(zooms))
    result = resolver.enhance(
        image, Options(output_resolution=(1.0, 1.0, 1.0)), Inputs(acquisition=acquisition)
    )
    operator = Operator.between(
        result.image.shape, (1.0,) * 3, image.shape, tuple(zooms), acquisition
    )
    seen = operator.forward(torch.from_numpy(np.asarray(result.image.dataobj))).numpy()
    assert np.linalg.norm(seen - image.get_fdata()) < 1e-3 * np.linalg.norm(image.get_fdata())


def test_a_scan_that_is_fine_enough_is_left_alone(resolver):
    image = scan((20, 18, 16), (0.8, 0.8, 0.8))
    result = resolver.enhance(image, Options(output_resolution=(0.8, 0.8, 0.8)))
    np.testing.assert_allclose(
        np.asarray(result.image.dataobj), image.get_fdata(), rtol=0, atol=1e-2
    )
    assert result.record["Sampler"] == "none: no axis gets finer"
    finer = resolver.enhance(
        scan((40, 36, 32), (0.4, 0.4, 0.4)), Options(output_resolution=(0.8, 0.8, 0.8))
    )
    assert finer.record["Sampler"] == "none: no axis gets finer"
    assert any("leaves these axes alone" in text for text in finer.record["Warnings"])


def test_an_axis_that_is_fine_enough_does_not_change_the_others(resolver):
    """In-plane voxels finer than asked for: averaged first, then the slices are restored."""
    image = scan((40, 40, 8), (0.5, 0.5, 3.0))
    result = resolver.enhance(image, Options(output_resolution=(1.0, 1.0, 1.0)))
    assert any("2 of 3 axes" in text for text in result.record["Warnings"])
    pairs = image.get_fdata().reshape(20, 2, 20, 2, 8).mean((1, 3))
    _, affine = output_grid(image.shape, image.affine, (1.0, 1.0, 3.0))
    averaged = nib.Nifti1Image(pairs.astype(np.float32), affine)
    direct = resolver.enhance(averaged, Options(output_resolution=(1.0, 1.0, 1.0)))
    np.testing.assert_allclose(
        np.asarray(result.image.dataobj), np.asarray(direct.image.dataobj), atol=2.0
    )


ISOTROPIC = Acquisition.uniform("kspace")
THIN = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 0.4)))


@pytest.mark.parametrize(
    ("coarse", "fine", "acquisition", "words"),
    [
        ((1.0, 1.0, 7.0), (1.0, 1.0, 1.0), ISOTROPIC, "ratio of 7.0 is beyond"),
        ((4.0, 1.0, 4.0), (1.0, 1.0, 1.0), ISOTROPIC, "ratio of 4.0 or more, beyond the 3"),
        ((6.0, 5.0, 3.3), (1.0, 1.0, 1.0), ISOTROPIC, "ratio of 5.0 or more, beyond the 3"),
        ((0.8, 0.8, 0.8), (0.7, 0.7, 0.7), ISOTROPIC, "1.14, is below"),
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), ISOTROPIC, "finer than the 0.3 mm"),
        ((2.0, 2.0, 9.0), (2.0, 2.0, 2.0), ISOTROPIC, "coarser than the 8 mm"),
        ((1.0, 1.0, 4.0), (1.0, 1.0, 1.0), THIN, "0.40 times as thick"),
    ],
)
def test_outside_the_trained_range_is_said(coarse, fine, acquisition, words):
    (sentence,) = range_warnings(coarse, fine, acquisition)
    assert words in sentence


@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        ((1.0, 1.0, 6.0), (1.0, 1.0, 1.0)),
        ((6.0, 6.0, 6.0), (2.0, 2.0, 2.0)),
        ((2.0, 2.0, 6.0), (1.0, 1.0, 1.0)),
        ((0.6, 0.6, 0.6), (0.3, 0.3, 0.3)),
        ((1.0, 1.0, 1.0), (0.7, 0.7, 0.7)),
        ((0.9995, 1.0, 4.0), (1.0, 1.0, 1.0)),
    ],
)
def test_inside_the_trained_range_nothing_is_said(coarse, fine):
    profile = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 1.0)))
    assert range_warnings(coarse, fine, ISOTROPIC) == []
    assert range_warnings(coarse, fine, profile) == []


def test_warnings_of_the_range_reach_the_record(resolver):
    result = resolver.enhance(
        scan((12, 12, 3), (1.0, 1.0, 9.0)), Options(output_resolution=(1.0, 1.0, 1.0))
    )
    assert len([text for text in result.record["Warnings"] if "9" in text]) == 2


def test_the_network_leaves_air_far_from_the_head_alone(resolver):
    start = torch.zeros(48, 24, 26)
    start[:12] = torch.rand(12, 24, 26) + 0.2
    told = torch.tensor([1.0] * 3 + [1.2] * 3)
    problem = SimpleNamespace(told=told, within_head=True)
    network, silent = resolver.restorer.network, lambda stage, fraction: None
    result = restore_volume(network, start, problem, "fp32", silent, "student")
    assert torch.equal(result[30:], start[30:])
    assert not torch.isclose(result[:12], start[:12]).all()
