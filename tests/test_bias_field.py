# SPDX-License-Identifier: Apache-2.0
"""The bias field on heads whose shading is known."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.bias_field import bias_field, divide
from test_masks import make_head

ZOOMS = (3.0, 3.0, 3.0)
AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


def shaded_head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1-like head with two tissues, its true shading (mean 1 in the brain), its brain mask."""
    data, _ = make_head((64, 74, 64), ZOOMS, noise=3.0)
    axes = [np.linspace(-1, 1, n) for n in data.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    folds = np.sin(14 * x) * np.sin(12 * y) * np.sin(13 * z) > 0
    inner = (x / 0.62) ** 2 + (y / 0.68) ** 2 + (z / 0.7) ** 2 <= 1
    data[inner & folds] *= 1.5
    shading = np.exp(0.35 * x - 0.25 * y + 0.3 * z**2)
    shading /= shading[inner].mean()
    return (data * shading).astype(np.float32), shading, inner


def as_image(data: np.ndarray) -> nib.Nifti1Image:
    return nib.Nifti1Image(data, AFFINE)


@pytest.fixture(scope="module")
def example() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    data, shading, brain = shaded_head()
    field = bias_field(as_image(data), as_image(brain.astype(np.uint8)))
    return data, shading, brain, np.asarray(field.dataobj)


def test_known_shading_is_recovered(example: tuple[np.ndarray, ...]) -> None:
    _, shading, brain, field = example
    before = np.std(np.log(shading[brain]))
    after = np.std(np.log(shading[brain] / field[brain]))
    assert after < 0.25 * before


def test_field_is_positive_smooth_and_has_mean_one(example: tuple[np.ndarray, ...]) -> None:
    _, _, brain, field = example
    assert np.isfinite(field).all()
    assert abs(field[brain].mean() - 1.0) < 1e-5
    assert field.min() >= 0.9 * field[brain].min()
    assert field.max() <= 1.1 * field[brain].max()
    steps = [np.abs(np.diff(np.log(field), axis=axis)).max() for axis in range(3)]
    assert max(steps) < 0.05  # per 3 mm voxel


def test_same_bytes_for_one_and_many_threads(example: tuple[np.ndarray, ...]) -> None:
    data, _, brain, field = example
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(5)
        again = bias_field(as_image(data), as_image(brain.astype(np.uint8)))
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert np.asarray(again.dataobj).tobytes() == field.tobytes()


def test_deleted_parts_do_not_disturb_it(example: tuple[np.ndarray, ...]) -> None:
    data, _, brain, field = example
    cut = data.copy()
    cut[:, 55:, :25] = 0.0
    cut[:, :, :14] = 0.0
    image = as_image(cut)
    result = bias_field(image, as_image(brain.astype(np.uint8)))
    kept = brain & (cut > 0)
    ratio = np.log(np.asarray(result.dataobj)[kept] / field[kept])
    assert np.std(ratio) < 0.05
    corrected = np.asarray(divide(image, result).dataobj)
    assert np.isfinite(corrected).all() and corrected.max() < 2.0 * data.max()
    assert (corrected[cut == 0] == 0).all()


def test_thick_slices_and_any_axis_order(example: tuple[np.ndarray, ...]) -> None:
    data, _, brain, field = example
    thick = data[:, :, ::2].transpose(2, 0, 1)
    mask = brain[:, :, ::2].transpose(2, 0, 1).astype(np.uint8)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 6.0, -3.0, 3.0, 1.0
    result = bias_field(nib.Nifti1Image(thick, affine), nib.Nifti1Image(mask, affine))
    found = np.asarray(result.dataobj).transpose(1, 2, 0)
    inside = brain[:, :, ::2]
    assert np.std(np.log(found[inside] / field[:, :, ::2][inside])) < 0.05


def test_division_keeps_the_units(example: tuple[np.ndarray, ...]) -> None:
    data, _, brain, field = example
    corrected = np.asarray(divide(as_image(data), as_image(field)).dataobj)
    assert abs(corrected[brain].mean() / data[brain].mean() - 1.0) < 0.05


def test_an_empty_mask_or_another_grid_is_refused() -> None:
    data = as_image(np.ones((20, 20, 20), np.float32))
    with pytest.raises(ImageError, match="too little"):
        bias_field(data, as_image(np.zeros((20, 20, 20), np.uint8)))
    with pytest.raises(ImageError, match="another grid"):
        bias_field(data, as_image(np.zeros((20, 20, 21), np.uint8)))


def test_along_the_longest_side_the_field_has_the_most_splines() -> None:
    random = np.random.default_rng(0)
    tissue = 100 + 50 * (random.random((48, 6, 6)) > 0.5) + 3 * random.standard_normal((48, 6, 6))
    shading = 0.3 * np.sin(np.arange(48) * 2 * np.pi / 24)[:, None, None]
    image = nib.Nifti1Image((tissue * np.exp(shading)).astype(np.float32), np.diag([7, 7, 7, 1]))
    inside = nib.Nifti1Image(np.ones(image.shape, np.uint8), image.affine)
    found = np.log(np.asarray(bias_field(image, inside).dataobj))
    assert np.std(found - shading) < 0.95 * np.std(shading)
    assert np.corrcoef(found.ravel(), np.broadcast_to(shading, found.shape).ravel())[0, 1] > 0.3
