# SPDX-License-Identifier: Apache-2.0
"""Training of the brain mask network: its state is resumed, its images depend on the step only."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.families.load import load_model
from bids_moediff.training.state import STATE_NAME, read_state
from research.brain_mask import train as brain_mask


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads of ellipsoids with white and grey matter, fluid, bone and skin."""
    folder = tmp_path_factory.mktemp("labels")
    for name, size in (("training_seg_01", 1.0), ("training_seg_17", 0.95)):
        grid = np.indices((150, 172, 150)) - np.array([75, 86, 75])[:, None, None, None]
        radii = size * np.array([60, 70, 60])[:, None, None, None]
        radius = np.sqrt(((grid / radii) ** 2).sum(axis=0))
        edges = [(1.2, 507), (1.1, 511), (1.0, 24), (0.95, 3), (0.75, 2)]
        data = np.zeros(radius.shape, np.int16)
        for limit, label in edges:
            data[radius < limit] = label
        nib.save(nib.Nifti1Image(data, np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def train(
    labels: Path, out: Path, minutes: float, monkeypatch: pytest.MonkeyPatch, *more: str
) -> None:
    words = ["brain_mask", "--labels", str(labels), "--out", str(out), *more]
    words += ["--minutes", str(minutes), "--save-every", "2"]
    monkeypatch.setattr("sys.argv", words)
    brain_mask.main()


def test_a_run_goes_on_where_it_stopped(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_mask, "MOST_STEPS", 3)
    train(labels, tmp_path, 5.0, monkeypatch)
    first, record = read_state(tmp_path / STATE_NAME)
    assert record["step"] == 3
    assert not list(tmp_path.glob("*.pt"))
    monkeypatch.setattr(brain_mask, "MOST_STEPS", 5)
    train(labels, tmp_path, 5.0, monkeypatch)
    second, record = read_state(tmp_path / STATE_NAME)
    assert record["step"] == 5
    names = [name for name in first if name.startswith("network.") and "weight" in name]
    assert any(not torch.equal(first[name], second[name]) for name in names)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["training"]["steps"] == 5
    assert config["zoom"] == brain_mask.WORKING_ZOOM
    shipped = load_model(tmp_path).network.state_dict()
    average = {k.removeprefix("average."): v for k, v in second.items() if "average." in k}
    assert set(average) == set(shipped)
    assert all(torch.allclose(shipped[name], average[name], atol=2e-3) for name in average)


def test_a_run_can_start_from_other_weights(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brain_mask, "MOST_STEPS", 0)
    train(labels, tmp_path, 5.0, monkeypatch, "--init", "brainmask")
    ours, shipped = load_model(tmp_path), load_model("brainmask")
    origin = {"model": "brainmask", "sha256": shipped.sha256}
    assert ours.config["training"]["init"] == origin
    weights = shipped.network.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in ours.network.state_dict().items())


def test_images_depend_on_seed_and_step_alone(labels: Path) -> None:
    table = {0: 0}
    heads = [brain_mask.load_head(path, table) for path in sorted(labels.glob("*.nii.gz"))]
    late = brain_mask.Images(heads, table, seed=3, first=7)[2]
    again = brain_mask.Images(heads, table, seed=3, first=0)[9]
    assert torch.equal(late[0], again[0]) and torch.equal(late[1], again[1])
    other = brain_mask.Images(heads, table, seed=4, first=0)[9]
    assert other[0].shape != late[0].shape or not torch.equal(other[0], late[0])
