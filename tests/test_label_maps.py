# SPDX-License-Identifier: Apache-2.0
"""Label maps, masks and fractions on a finer grid: volumes, averages, borders."""

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.label_maps import carry_fractions, carry_image, carry_labels
from bids_moediff.imaging.separable import along_axes

FINE = (1.0, 1.0, 1.0)


def ball(side: int, radius: float, centre: float) -> np.ndarray:
    offset = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij")) - centre
    return (offset**2).sum(0) < radius**2


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Three labels in a background on a fine grid of 24 voxels."""
    labels = np.zeros((24, 24, 24), np.int16)
    labels[ball(24, 9.3, 11.2)] = 3
    labels[ball(24, 6.1, 12.7)] = 7
    labels[ball(24, 2.2, 4.6)] = 41
    return labels


def averages(fine: np.ndarray, shape: tuple[int, ...], zooms: tuple[float, ...]) -> np.ndarray:
    matrices = [
        axis_matrix(n_f, 1.0, n_c, zoom, Axis("box"))
        for n_f, n_c, zoom in zip(fine.shape, shape, zooms, strict=True)
    ]
    return along_axes(fine.astype(np.float32), matrices)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize(
    ("shape", "zooms"),
    [((12, 12, 12), (2, 2, 2)), ((24, 24, 6), (1, 1, 4)), ((15, 15, 15), (1.6, 1.6, 1.6))],
)
def test_fractions_keep_the_averages_and_sharpen(tissue, shape, zooms):
    codes = (3, 7, 41)
    given = np.stack([averages(tissue == code, shape, zooms) for code in codes])
    carried = carry_fractions(given, zooms, tissue.shape, FINE)
    assert carried.min() >= 0
    assert carried.max() <= 1 + 1e-5
    assert carried.sum(0).max() <= 1 + 1e-4
    for code, fraction, measured in zip(codes, carried, given, strict=True):
        again = averages(fraction, shape, zooms)
        assert np.abs(again - measured).mean() < 2e-3
        assert fraction.sum() == pytest.approx(measured.sum() * np.prod(zooms), rel=0.01)
        assert dice(fraction > 0.5, tissue == code) > 0.95


@pytest.mark.parametrize(("shape", "zooms"), [((12, 12, 12), (2, 2, 2)), ((24, 24, 6), (1, 1, 4))])
def test_labels_keep_their_volumes(tissue, shape, zooms):
    given = np.zeros(shape, np.int16)
    for code in (3, 7, 41):
        given[averages(tissue == code, shape, zooms) >= 0.5] = code
    carried = carry_labels(given, zooms, tissue.shape, FINE)
    assert carried.dtype == given.dtype
    nearest = given
    for axis, zoom in enumerate(zooms):
        nearest = np.repeat(nearest, zoom, axis=axis)
    for code in (3, 7, 41):
        assert (carried == code).sum() == pytest.approx((nearest == code).sum(), rel=0.01, abs=1)
    assert dice(carried == 7, tissue == 7) > dice(nearest == 7, tissue == 7)


def test_a_small_lesion_beside_a_large_one_keeps_its_volume():
    given = np.zeros((20, 20, 20), np.uint8)
    given[ball(20, 6.0, 8.0)] = 1
    given[17, 17, 17] = 1
    carried = carry_labels(given, (2.0, 2.0, 2.0), (40, 40, 40), FINE)
    assert carried[32:, 32:, 32:].sum() == pytest.approx(8, abs=1)


def test_tiles_leave_no_seams(tissue, monkeypatch):
    given = np.stack([averages(tissue == code, (12,) * 3, (2,) * 3) for code in (3, 7)])
    whole = carry_fractions(given, (2.0,) * 3, tissue.shape, FINE)
    monkeypatch.setattr("bids_moediff.imaging.label_maps.TILE", 9)
    np.testing.assert_allclose(
        carry_fractions(given, (2.0,) * 3, tissue.shape, FINE), whole, atol=0.02
    )


def test_masks_that_overlap_are_carried_alone():
    given = np.stack([ball(12, 4.0, 5.5), ball(12, 3.0, 5.5)]).astype(np.float32)
    both = carry_fractions(given, (2.0,) * 3, (24,) * 3, FINE)
    alone = carry_fractions(given[1:], (2.0,) * 3, (24,) * 3, FINE)
    np.testing.assert_array_equal(both[1:], alone)
    assert both.sum(0).max() > 1.5


@pytest.mark.parametrize("wanted", [(0.7, 0.7, 0.7), (1.0, 1.0, 3.0)])
def test_an_image_goes_to_the_output_grid(tissue, wanted):
    affine = np.diag([-1.0, 1.0, 1.2, 1.0])
    affine[:3, 3] = (90, -50, -20)
    image = nib.Nifti1Image(tissue, affine)
    shape, new = output_grid(tissue.shape, affine, wanted)
    carried = carry_image(image, shape, new)
    assert carried.shape == shape
    assert carried.get_data_dtype() == np.int16
    np.testing.assert_allclose(carried.affine, new, atol=1e-5)
    for code in (3, 7):
        volume = (np.asarray(carried.dataobj) == code).sum() * np.prod(voxel_sizes(new))
        tolerance = 0.01 if wanted[2] < 1 else 0.1  # thick voxels cannot keep it
        assert volume == pytest.approx((tissue == code).sum() * 1.2, rel=tolerance)


def test_four_dimensional_fractions():
    part = averages(ball(24, 7.0, 11.0), (12, 12, 12), (2, 2, 2))
    image = nib.Nifti1Image(np.stack([part, 1 - part], axis=-1), np.diag([2.0, 2.0, 2.0, 1.0]))
    carried = carry_image(image, *output_grid((12,) * 3, image.affine, FINE))
    assert carried.shape == (24, 24, 24, 2)
    np.testing.assert_allclose(np.asarray(carried.dataobj).sum(-1), 1, atol=1e-3)


def test_intensities_are_refused():
    data = np.linspace(0, 80, 1000, dtype=np.float32).reshape(10, 10, 10)
    image = nib.Nifti1Image(data, np.eye(4))
    with pytest.raises(ImageError, match="between 0 and 1"):
        carry_image(image, *output_grid(data.shape, np.eye(4), (0.5,) * 3))
