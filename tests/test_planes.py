# SPDX-License-Identifier: Apache-2.0
"""Empty planes, and the distance of slices by header and sidecar."""

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.preprocessing.planes import distance_remarks, empty_planes
from generated import head

HEAD = np.asarray(head().dataobj, dtype=np.float32)


def test_a_copy_that_stopped():
    """The last two fifths of the file are zeros, in the order of the file (first axis fastest)."""
    flat = HEAD.ravel(order="F").copy()
    flat[int(0.6 * flat.size) :] = 0
    (remark,) = empty_planes(flat.reshape(HEAD.shape, order="F"))
    assert "the last 15 of 40 slices are empty" in remark or "16 of 40" in remark


def test_missing_slices_between_others():
    data = HEAD.copy()
    data[:, 20:23] = 7
    (remark,) = empty_planes(data)
    assert "3 of 52 slices along the second axis" in remark
    assert "21, 22, 23" in remark


def test_padding_and_whole_heads_are_no_loss():
    assert empty_planes(HEAD) == []
    assert empty_planes(np.pad(HEAD, 9)) == []
    stripped = np.where(HEAD > 50, HEAD, 0)  # air is zero, the head tapers
    assert empty_planes(np.pad(stripped, ((0, 0), (0, 0), (0, 9)))) == []
    assert empty_planes(np.zeros((8, 8, 8))) == []


def test_maps_are_bright_at_the_crown_and_have_a_ragged_rim():
    maps = np.where(HEAD > 40, 3000 - 4 * HEAD, 0)
    maps[..., -9:] = 0
    assert empty_planes(maps[..., :-4]) == []
    rim = np.pad(maps, ((0, 0), (3, 0), (0, 0)))
    rim[5:7, 0, 5] = 2900  # two voxels of noise outside the mask, and two empty planes
    assert empty_planes(rim) == []
    rim[:, 30] = 0
    assert "1 of 55 slices along the second axis" in empty_planes(rim)[0]


@pytest.mark.parametrize(
    ("stated", "axis", "kind", "said"),
    [
        (7.5, None, "2D", True),
        (6.1, None, "2D", False),
        (2.0, "i-", None, False),
        (6.0, "i", None, True),
        (7.5, None, "3D", False),
    ],
)
def test_the_distance_of_slices(stated, axis, kind, said):
    image = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.diag([2.0, 2.0, 6.0, 1.0]))
    given = {"SpacingBetweenSlices": stated, "SliceEncodingDirection": axis}
    words = distance_remarks(image, {**given, "MRAcquisitionType": kind})
    assert bool(words) == said
    if said:
        assert f"{stated:g} mm by the sidecar" in words[0]
        found = image.header.get_zooms()[2 if axis is None else "ijk".index(axis[0])]
        assert f"too {'flat' if stated > found else 'long'} along" in words[0]
