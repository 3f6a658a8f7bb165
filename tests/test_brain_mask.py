# SPDX-License-Identifier: Apache-2.0
"""The brain mask: geometry on any network, anatomy on the shipped one."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.errors import ImageError, WeightsError
from bids_moediff.imaging.separable import along_axes, tent_matrix
from bids_moediff.networks.brain_mask import BrainMaskNet
from bids_moediff.networks.model_folder import save_model
from bids_moediff.preprocessing.brain_mask import brain_mask, clean_mask
from conftest import long_form
from test_masks import make_head

ZOOMS = (2.0, 2.0, 2.0)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def found(data: np.ndarray, affine: np.ndarray = AFFINE) -> np.ndarray:
    return np.asarray(brain_mask(nib.Nifti1Image(data, affine))[0].dataobj) > 0


def test_resample_there_and_back_finds_the_place() -> None:
    data = np.zeros((30, 24, 20), np.float32)
    data[12:18, 8:14, 6:12] = 1.0
    there = along_axes(data, [tent_matrix(n, 2.0, n // 2, 4.0) for n in data.shape])
    back = along_axes(there, [tent_matrix(n // 2, 4.0, n, 2.0) for n in data.shape])
    centre = [float((back * axis).sum() / back.sum()) for axis in np.indices(data.shape)]
    assert np.allclose(centre, [14.5, 10.5, 8.5], atol=0.05)


def test_clean_mask_keeps_the_largest_piece_without_holes() -> None:
    mask = np.zeros((20, 20, 20), bool)
    mask[3:15, 3:15, 3:15] = True
    mask[8, 8, 8] = False
    mask[18, 18, 18] = True
    cleaned = clean_mask(mask)
    assert cleaned[8, 8, 8] and not cleaned[18, 18, 18] and cleaned.sum() == 12**3


def test_orientation_does_not_matter() -> None:
    data, _ = make_head()
    straight = found(data)
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -2.0, 2.0, -2.0, 1.0
    turned = found(np.ascontiguousarray(data.transpose(1, 2, 0)[::-1, :, ::-1]), affine)
    assert dice(turned[::-1, :, ::-1].transpose(2, 0, 1), straight) > 0.999


def test_the_working_grid_is_that_of_the_model(tmp_path: Path) -> None:
    """A network that passes intensities on: the finer its grid, the closer a ball's outline."""
    network = BrainMaskNet((2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.head.weight[0, -1] = 16.0
        assert network.head.bias is not None
        network.head.bias.fill_(-8.0)
    axes = np.indices((60, 60, 60)) * 2.0 - 59.0
    ball = np.sqrt((axes**2).sum(0)) < 45.0
    scores = []
    for zoom in (2.0, 12.0):
        config = {"family": "brainmask", "version": "1", "brainmask": {"widths": [2, 2]}}
        save_model(network, {**config, "zoom": zoom}, tmp_path / f"{zoom:g}", "card")
        image = nib.Nifti1Image(ball.astype(np.float32) + 0.1, AFFINE)
        mask, _ = brain_mask(image, tmp_path / f"{zoom:g}")
        scores.append(dice(np.asarray(mask.dataobj) > 0, ball))
    assert scores[0] > 0.97
    assert scores[1] < scores[0] - 0.01


def test_same_bytes_for_one_and_many_threads() -> None:
    data, _ = make_head()
    before = torch.get_num_threads()
    try:
        masks = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            masks.append(found(data).tobytes())
            assert torch.get_num_threads() == threads  # put back as it was
    finally:
        torch.set_num_threads(before)
    assert masks[0] == masks[1]


def test_a_head_of_ellipsoids_is_roughly_understood() -> None:
    data, _ = make_head()
    axes = [np.linspace(-1, 1, n) * n for n in data.shape]
    radius = np.sqrt(
        sum(
            (axis / size) ** 2
            for axis, size in zip(
                np.meshgrid(*axes, indexing="ij"), (75 * 0.86, 95 * 0.86, 85 * 0.86), strict=True
            )
        )
    )
    # Off the middle, as scans are: the network looks at the mirror image too.
    mask = found(np.pad(data, [(16, 0), (0, 0), (0, 0)]))[16:]
    assert mask[radius < 0.7].mean() > 0.95
    assert mask[radius > 1.15].mean() < 0.02


def test_a_scan_without_a_brain_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ImageError, match="no brain"):
        found(np.abs(rng.standard_normal((10, 10, 10))).astype(np.float32))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    data, _ = make_head()
    with pytest.raises(WeightsError):
        brain_mask(nib.Nifti1Image(data, AFFINE), tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize("contrast", ["T1w", pytest.param("T2w", marks=long_form)])
def test_left_out_head_against_its_label_map(shared_data: Path, contrast: str) -> None:
    from research.brain_mask.check import check_head

    path = shared_data / "labels" / "synthseg" / "training_seg_17.nii.gz"
    scores = check_head(path, "brainmask", [contrast])
    assert min(scores.values()) >= 0.945
    assert np.mean(list(scores.values())) >= 0.955


@pytest.mark.shared
def test_stripped_heads_keep_what_is_left(shared_data: Path) -> None:
    path = shared_data / "t1w" / "ds002748_sub-60_T1w.nii.gz"
    mask, record = brain_mask(nib.load(path))
    image = np.asarray(nib.load(path).dataobj)
    inside = np.asarray(mask.dataobj) > 0
    assert record["method"] == "nonzero"
    assert (inside & (image > 0)).sum() > 0.99 * (image > 0).sum()
