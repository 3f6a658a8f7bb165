# SPDX-License-Identifier: Apache-2.0
"""The output grid: same outer corner, exact voxel size, smallest cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bids_moediff.imaging.grid import output_grid, voxel_sizes, working_zooms

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
