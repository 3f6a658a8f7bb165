# SPDX-License-Identifier: Apache-2.0
"""The head mask on heads made from ellipsoids, whose true outline is known."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.imaging.masks import (
    bounding_box,
    distance_to,
    fill_holes,
    head_mask,
    head_mask_array,
    open_cubes,
    outside_zeros,
)

RADII = np.array([75.0, 95.0, 85.0])


def make_head(
    shape: tuple[int, int, int] = (96, 112, 96),
    zooms: tuple[float, float, float] = (2.0, 2.0, 2.0),
    contrast: str = "t1",
    noise: float = 8.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scalp, bone, fluid and brain as nested ellipsoids, and the true head mask."""
    axes = [(np.arange(n) - (n - 1) / 2) * z for n, z in zip(shape, zooms, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    radius = np.sqrt(((grid / RADII) ** 2).sum(-1))
    values = {
        "t1": (400.0, 20.0, 60.0, 200.0),
        "t2": (80.0, 15.0, 500.0, 180.0),
        "flair": (70.0, 20.0, 60.0, 220.0),
    }[contrast]
    data = np.zeros(shape)
    for limit, value in zip((1.0, 0.93, 0.86, 0.8), values, strict=True):
        data[radius <= limit] = value
    rng = np.random.default_rng(0)
    data = np.hypot(data + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
    return data.astype(np.float32), radius <= 1.0


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("contrast", ["t1", "t2", "flair"])
def test_head_is_found_in_every_contrast(contrast: str) -> None:
    data, truth = make_head(contrast=contrast)
    assert dice(head_mask_array(data, (2.0, 2.0, 2.0)), truth) > 0.97


def test_thick_slices_and_eight_bits() -> None:
    zooms = (1.5, 1.5, 5.0)
    data, truth = make_head((120, 144, 40), zooms)
    quantised = np.clip(data / 2, 0, 255).astype(np.uint8)
    assert dice(head_mask_array(quantised, zooms), truth) > 0.96


def test_defaced_part_is_left_out_and_its_neighbour_kept() -> None:
    data, truth = make_head()
    data[:, 85:, :40] = 0.0
    mask = head_mask_array(data, (2.0, 2.0, 2.0))
    assert not mask[:, 85:, :40].any()
    truth[:, 85:, :40] = False
    assert dice(mask, truth) > 0.97


def test_a_narrow_end_of_a_deleted_part_is_left_out_too() -> None:
    """A slot of 4 mm, 8 mm deep, in the face of a cut: left out up to 9 mm from its wide part."""
    data, _ = make_head()
    data[:, :36, :40] = 0.0
    data[46:48, 36:40, :40] = 0.0
    mask = head_mask_array(data, (2.0, 2.0, 2.0))
    assert not mask[46:48, 36:39, 10:30].any()
    assert mask[40:44, 37:40, 10:30].all()


def test_stripped_brain_keeps_its_ventricles() -> None:
    data, truth = make_head(noise=2.0)
    brain = truth.copy()
    radius_cut = data < 100.0
    brain &= ~radius_cut
    data[~brain] = 0.0
    data[40:56, 50:60, 44:54] = 0.0  # a ventricle that was set to 0 with the background
    mask = head_mask_array(data, (2.0, 2.0, 2.0))
    assert mask[40:56, 50:60, 44:54].all()
    assert not mask[0].any()


def test_image_in_image_out_on_the_same_grid_whatever_its_orientation() -> None:
    data, _ = make_head()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    flipped = nib.Nifti1Image(data[::-1].copy(), np.diag([-2.0, 2.0, 2.0, 1.0]))
    mask = head_mask(nib.Nifti1Image(data, affine))
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, affine)
    mirrored = np.asarray(head_mask(flipped).dataobj)[::-1]
    assert dice(mirrored > 0, np.asarray(mask.dataobj) > 0) > 0.995


def test_an_empty_image_has_no_head() -> None:
    assert not head_mask_array(np.zeros((8, 8, 8)), (1.0, 1.0, 1.0)).any()


@pytest.mark.parametrize("seed", range(6))
def test_quick_morphology_is_that_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=rng.integers(4, 24, 3))
    mask = ndimage.gaussian_filter(noise, 0.8) > (-0.1, 0.1)[seed % 2]
    assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    cube = np.ones((2, 2, 2))
    assert np.array_equal(open_cubes(mask), ndimage.binary_opening(mask, cube))
    assert bounding_box(mask) == ndimage.find_objects(mask.astype(int))[0]


def test_an_empty_mask_has_an_empty_box() -> None:
    empty = np.zeros((4, 5, 6), dtype=bool)
    assert not empty[bounding_box(empty)].size
    assert not fill_holes(empty).any()


def test_distances_are_those_of_scipy_in_voxels_of_any_size() -> None:
    mask = np.zeros((12, 14, 9), dtype=bool)
    mask[3, 4, 5] = mask[9, 12, 1] = True
    zooms = (1.0, 2.5, 0.7)
    expected = ndimage.distance_transform_edt(~mask, sampling=zooms)
    assert np.allclose(distance_to(mask, zooms), expected, atol=1e-3)
    assert np.isinf(distance_to(mask[:2], zooms)).all()


def test_a_faint_rim_above_the_noise_belongs_to_the_head() -> None:
    """Bone and a faint scalp are as many dark voxels as the air is: they must not count as air."""
    axes = [(np.arange(n) - (n - 1) / 2) * 3.0 for n in (64, 76, 64)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    radius = np.sqrt(((grid / RADII) ** 2).sum(-1))
    signal = np.select([radius <= 0.8, radius <= 0.86, radius <= 1.0], [200.0, 60.0, 40.0])
    real, imaginary = 12 * np.random.default_rng(0).standard_normal((2, *signal.shape))
    found = head_mask_array(np.hypot(signal + real, imaginary).astype(np.float32), (3.0,) * 3)
    assert dice(found, radius <= 1.0) > 0.97


def test_dark_bone_that_reaches_the_border_is_no_deleted_part() -> None:
    """Zeros of an image of few levels: a thin ring, and a channel from it to the last plane."""
    random = np.random.default_rng(1)
    x, y, z = np.meshgrid(*[np.arange(90) - 44.5] * 3, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    air = np.abs(2 * random.standard_normal(radius.shape)) + 1
    data = np.rint(np.where(radius < 38, 120 + 10 * random.standard_normal(radius.shape), air))
    bone = (radius < 34) & (radius > 32.9) & (np.abs(z) < 12)
    data[bone | ((np.abs(x) < 1) & (np.abs(z) < 1) & (y > 32))] = 0
    found = head_mask_array(data, (1.0, 1.0, 1.0))
    assert outside_zeros(data)[bone].all() and found[bone].mean() > 0.75
    assert found.sum() == pytest.approx((radius < 38).sum(), rel=0.1)
