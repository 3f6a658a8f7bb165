# SPDX-License-Identifier: Apache-2.0
"""Correctors find what can be found, and nothing where only noise is missing."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.evaluation.benchmark import Method, make_task
from bids_moediff.imaging.masks import head_mask_array
from generated import head, untrained_model
from research.measurements import leftover

SHAPE, ZOOMS = (32, 36, 30), (4.8, 4.6, 5.2)


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover, "TREES", 20)


def sample(seed: int, spoil) -> leftover.Sample:
    """A head whose "restoration" lacks what `spoil(truth, rng)` takes away."""
    image = head(SHAPE, ZOOMS, seed)
    data = np.asarray(image.dataobj, np.float32)
    mask = head_mask_array(data, ZOOMS)
    task = make_task(data, mask, ZOOMS, image.affine, (1.0, 1.0, 2.0), "box")
    rng = np.random.default_rng(seed)
    scale = float(np.percentile(task.truth[task.mask], 99.5))

    def restored(task):
        wrong = torch.from_numpy(spoil(task.truth / scale, rng).astype(np.float32)) * scale
        return task.operator.project(wrong, task.measured).numpy()

    return leftover.restore(task, Method("spoilt", "", restored))


def blurred(truth, rng):
    return ndimage.gaussian_filter(truth, (0, 0, 0.8))


def noisy(truth, rng):
    return truth + 0.05 * rng.standard_normal(truth.shape)


@pytest.mark.parametrize("fit", [leftover.single, leftover.boosted])
def test_what_a_filter_took_away_is_found(fit) -> None:
    train, test = [sample(k, blurred) for k in (0, 1)], sample(2, blurred)
    assert test.gain(fit(train)(test)) > 0.5
    assert test.gain(np.zeros(int(test.mask.sum()))) == pytest.approx(0, abs=1e-3)


def test_the_truth_is_the_best_correction() -> None:
    one = sample(0, blurred)
    assert one.gain(one.missing) > 15  # outside the mask it stays as it was


@pytest.mark.parametrize("kind", [leftover.brightness, leftover.edges])
def test_a_mixture_finds_what_differs_by_kind(kind) -> None:
    """Dark and bright voxels (or flat ones and edges) are off in opposite ways."""

    def opposite(one: leftover.Sample) -> leftover.Sample:
        values = np.zeros(one.mask.shape)
        values[one.mask] = kind(one) > np.median(kind(one))
        own = one.result - one.start
        return replace(one, truth=(one.result + np.where(values > 0, 0.5, -0.5) * own))

    train = [opposite(sample(k, noisy)) for k in (0, 1)]
    test = opposite(sample(2, noisy))

    def left(predict) -> float:
        return float(np.square(test.missing - predict(test)).sum() / np.square(test.missing).sum())

    assert left(leftover.mixture(train, kind)) < 0.75 * left(leftover.single(train))


def test_a_neighbourhood_is_what_lies_around() -> None:
    image = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[2, 3, 4] = True
    found = leftover.neighbourhood(image, mask, 1)
    around = image[1:4, 2:5, 3:6].ravel() - image[2, 3, 4]
    assert np.allclose(found[0], np.delete(around, 13))


def test_the_command_writes_a_table(tmp_path) -> None:
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"head{seed}_T1w.nii.gz")
        nib.save(head(SHAPE, ZOOMS, seed), paths[-1])
    model = untrained_model(tmp_path)
    words = [tmp_path / "out", "--train", paths[0], "--test", paths[1], "--model", model]
    assert leftover.main([*map(str, words), "--block", "30"]) == 0
    rows = (tmp_path / "out" / "leftover.md").read_text().splitlines()
    assert len(rows) == 6 and rows[2].startswith("| x2 isotropic, k-space | one linear filter |")
