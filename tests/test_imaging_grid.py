# SPDX-License-Identifier: Apache-2.0
"""The output grid: same outer corner, exact voxel size, smallest cover."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_moediff.imaging.grid import (
    covering_shape,
    gets_finer,
    output_grid,
    steps_to,
    voxel_sizes,
    working_zooms,
)

sizes = st.floats(0.3, 8.0)


def corner(affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.full(3, -0.5) + affine[:3, 3]


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    zooms=st.tuples(sizes, sizes, sizes),
    target=st.tuples(sizes, sizes, sizes),
    shape=st.tuples(*[st.integers(2, 300)] * 3),
    flip=st.booleans(),
)
def test_corner_size_and_cover(angles, zooms, target, shape, flip):
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = rotation @ np.diag(np.array(zooms) * ([-1, 1, 1] if flip else [1, 1, 1]))
    affine[:3, 3] = (-90.3, 12.5, 44.0)
    new_shape, new = output_grid(shape, affine, target)
    np.testing.assert_allclose(corner(new), corner(affine), atol=1e-4)
    np.testing.assert_allclose(voxel_sizes(new), target, rtol=1e-6)
    old_extent = np.array(shape) * zooms
    extent = np.array(new_shape) * target
    assert (extent >= old_extent - 2e-3 * np.array(target)).all()
    assert (extent - target < old_extent + 2e-3 * np.array(target)).all()
    # The directions of the axes do not move.
    np.testing.assert_allclose(
        new[:3, :3] / target, affine[:3, :3] / voxel_sizes(affine), atol=1e-6
    )


def test_header_rounding_adds_no_slice():
    affine = np.diag([np.float32(0.7), np.float32(1.4), np.float32(2.1), 1.0])
    shape, _ = output_grid((10, 10, 10), affine, (0.7, 0.7, 0.7))
    assert shape == (10, 20, 30)


def test_default_keeps_finer_axes():
    assert working_zooms((0.43, 0.43, 2.5), (0.7, 0.7, 0.7)) == (0.43, 0.43, 0.7)


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_impossible_voxels_are_refused(bad):
    with pytest.raises(ValueError, match="positive"):
        output_grid((4, 4, 4), np.eye(4), bad)


def oblique(zooms) -> np.ndarray:
    turn = Rotation.from_euler("xyz", (12, -35, 80), degrees=True).as_matrix()
    return nib.affines.from_matvec(turn @ np.diag(zooms), [11.0, -7.0, 3.5])


def test_against_nibabel():
    """Sizes, directions and the place of a voxel's corner as nibabel computes them."""
    affine = oblique((0.9, 1.1, 3.0))
    assert voxel_sizes(affine) == pytest.approx(tuple(nib.affines.voxel_sizes(affine)))
    shape, new = output_grid((31, 20, 11), affine, (0.45, 1.1, 0.75))
    assert shape == (62, 20, 44)
    # Halves, whole and quarters of the old voxels: the same space, so centres are known.
    index = np.array([[0, 0, 0], [61, 19, 43], [7, 3, 30]])
    old = (index + 0.5) / [2, 1, 4] - 0.5
    np.testing.assert_allclose(
        nib.affines.apply_affine(new, index), nib.affines.apply_affine(affine, old), atol=1e-9
    )
    assert nib.aff2axcodes(new) == nib.aff2axcodes(affine)


@pytest.mark.parametrize(
    ("count", "old", "new", "expected"),
    [
        (10, 1.0, 3.0, 4), (9, 1.0, 3.0, 3), (1, 1.0, 5.0, 1), (10, 1.0, 10.005, 1),
        (10, 1.002, 1.0, 11), (10, 1.00005, 1.0, 10), (3, 0.5, 1.0, 2),
    ],
)  # fmt: skip
def test_counts_that_cover(count, old, new, expected):
    assert covering_shape((count,) * 3, (old,) * 3, (new,) * 3) == (expected,) * 3


@pytest.mark.parametrize(
    ("size", "zoom", "expected"),
    [(2.0, 1.00000001, 2), (1.99, 1.0, 1), (0.2, 1.0, 1), (6.0, 2.0, 3), (5.9995, 2.0, 3)],
)
def test_whole_voxels_in_a_size(size, zoom, expected):
    assert steps_to((zoom,) * 3, size) == (expected,) * 3


def test_finer_by_more_than_rounding_on_any_axis():
    assert gets_finer((1, 1, 3), (1, 1, 1))
    assert gets_finer((1, 1, 1.001), (1, 1, 1))
    assert not gets_finer((1, 1, 1.0006), (1, 1, 1))
    assert not gets_finer((1, 1, 1), (1.5, 1, 1))
    assert gets_finer((1, 2, 1), (1.5, 1, 1.5))


def test_rounding_keeps_the_input_size():
    assert working_zooms((1.00005, 1.001, 2.0), (1.0, 1.0, 3.0)) == (1.00005, 1.0, 2.0)


@pytest.mark.parametrize("bad", [(1, 1, float("inf")), (1, 1, 0), (-1, 1, 1)])
def test_no_voxels_without_a_size(bad):
    with pytest.raises(ValueError, match="positive"):
        output_grid((4, 4, 4), np.eye(4), bad)
