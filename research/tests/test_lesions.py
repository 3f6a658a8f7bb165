# SPDX-License-Identifier: Apache-2.0
"""Lesions are taught to finished networks: what is added, what is wanted, and what stays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.cli.train import main as train_command
from bids_moediff.errors import UsageError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.simulation import ONES, Degradation, degrade, draw
from bids_moediff.networks.mean import MeanNetwork
from bids_moediff.networks.model_folder import save_model
from bids_moediff.training.lesions import DARKEST, LesionPlan, blob, lesion_field
from bids_moediff.training.volumes import make_volume
from research.lesions.stage import LesionsRecipe, LesionsStage
from research.tests.lab_data import LAB, lab_tiny
from training_data import heads, pack

CPU = torch.device("cpu")
SMALL = {"width": 4, "embed_dim": 12, "heads": 2, "context_slices": 3}
CONFIGS = {
    "moediff": {"family": "moediff", "mean": {"channels": 8, "blocks": 1}, "moediff": SMALL},
    "student": {
        "family": "student", "student": {"channels": 8, "blocks": 1, "ranks": [4, 4, 4, 4]},
    },
}  # fmt: skip


def model(folder: Path, family: str) -> Path:
    """A model of which every weight counts."""
    torch.manual_seed(3)
    network = build_network(CONFIGS[family])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_model(network, CONFIGS[family], folder / family, "# Tiny\n")
    return folder / family


def stage_of(init: list[Path], name: str = "lesions", **settings: object) -> LesionsStage:
    recipe = lab_tiny(name, **settings)
    assert isinstance(recipe, LesionsRecipe)
    return LesionsStage(recipe, CPU, init)


@pytest.mark.parametrize("diameter", [3.0, 5.0, 8.0])
def test_a_blob_has_the_volume_of_its_sphere(diameter: float) -> None:
    rng = np.random.default_rng(0)
    blobs = [blob([25, 25, 25], diameter, rng) for _ in range(20)]
    volumes = [float((blob > 0.5).sum()) for blob in blobs]
    sphere = np.pi / 6 * diameter**3
    assert 0.85 * sphere < np.mean(volumes) < 1.3 * sphere
    assert all(blob.min() >= 0 and blob.max() <= 1 for blob in blobs)
    # No two are alike.
    assert all(not torch.equal(blobs[0], blob) for blob in blobs[1:])


def test_blobs_lie_in_tissue_and_leave_it_positive() -> None:
    truth = torch.zeros(64, 64, 64)
    truth[8:56, 8:56, 8:56] = 0.4
    weight = torch.ones_like(truth)
    weight[:32] = 0.0
    recipe = LesionPlan(diameters=(2.0, 6.0), contrasts=(0.1, 0.4), spacing=14.0)
    field = lesion_field(truth, weight, recipe, np.random.default_rng(0)).numpy()
    again = lesion_field(truth, weight, recipe, np.random.default_rng(0)).numpy()
    assert np.array_equal(field, again)
    labels, count = ndimage.label(np.abs(field) > 0.03)
    assert count >= 8
    centres = np.array(ndimage.center_of_mass(np.abs(field), labels, range(1, count + 1)))
    assert centres[:, 0].min() > 29 and centres.min() > 5 and centres.max() < 58
    apart = np.linalg.norm(centres[:, None] - centres, axis=2) + 100 * np.eye(count)
    assert apart.min() > 12
    peaks = ndimage.maximum(np.abs(field), labels, range(1, count + 1))
    assert max(peaks) <= 0.4 + 1e-6 and field.max() > 0.1 and field.min() < -0.1
    # Dark blobs leave something of the tissue, and take nothing from the air around it.
    assert (truth.numpy() + field)[field < 0].min() >= DARKEST - 1e-6
    assert not (field[truth.numpy() == 0] < 0).any()


def test_nothing_is_added_where_there_is_no_tissue() -> None:
    empty = torch.zeros(32, 32, 32)
    field = lesion_field(empty, torch.ones(32, 32, 32), LesionPlan(), np.random.default_rng(0))
    assert not field.any()


def test_the_marked_head_is_the_head_measured_with_its_lesions(tmp_path: Path) -> None:
    """Without noise everything is linear: the starts differ by the start of the lesions."""
    stage = stage_of([model(tmp_path, "moediff")], diameters="[3, 6]", spacing=8)
    rng = np.random.default_rng(5)
    image = torch.from_numpy(ndimage.gaussian_filter(rng.random((40, 40, 40)), 2)).float() + 0.2
    plan = draw(np.random.default_rng(1), 0.0)
    plan = Degradation((1.0, 2.0, 2.0), plan.acquisition, 0.0)
    degraded = degrade(image, plan)
    volume = {"target": degraded.truth, "start": degraded.start, "weight": torch.ones(40, 40, 40)}
    made = stage.finish(volume, degraded)
    assert made["lesion"].abs().max() > 0.04
    seen = degraded.operator.forward(made["lesion"])
    alone = initial_estimate(seen, degraded.operator, plan.ratios, ONES, 0.0)
    torch.testing.assert_close(made["marked"] - made["start"], alone, atol=1e-5, rtol=0)
    again = stage.finish(volume, degraded)
    assert torch.equal(again["lesion"], made["lesion"])


def test_of_a_measured_pair_nothing_is_known(tmp_path: Path) -> None:
    stage = stage_of([model(tmp_path, "moediff")])
    volume = {"target": torch.rand(20, 20, 20), "start": torch.rand(20, 20, 20)}
    made = stage.finish(volume, None)
    assert not made["lesion"].any() and torch.equal(made["marked"], made["start"])


@pytest.mark.parametrize("name", ["lesions", "student-lesions"])
def test_the_loss_compares_with_the_output_plus_the_lesions(name: str, tmp_path: Path) -> None:
    init = [model(tmp_path, "moediff")]
    init += [model(tmp_path, "student")] if name == "student-lesions" else []
    stage = stage_of(init, name, border=2, epsilon=0.01)
    assert isinstance(stage.network, StudentNetwork if len(init) == 2 else MeanNetwork)
    torch.manual_seed(0)
    batch = {k: torch.rand(1, 16, 16, 16) for k in ("start", "marked", "lesion", "weight")}
    batch["weight"][0, :8] = 0
    batch["condition"] = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 1.2]])
    teacher = load_model(init[0]).network.mean
    taught = load_model(init[-1]).network
    taught = getattr(taught, "mean", taught)
    with torch.no_grad():
        plain = teacher(batch["start"][:, None], batch["condition"])[0, 0].numpy()
        marked = taught(batch["marked"][:, None], batch["condition"])[0, 0].numpy()
    error = (marked - plain - batch["lesion"][0].numpy())[8:14, 2:14, 2:14].astype(np.float64)
    expected = (np.sqrt(error**2 + 1e-4) - 0.01).mean()
    assert float(stage.loss(batch, 0)[0].detach()) == pytest.approx(expected, rel=1e-4)


def test_lesions_are_learned_and_the_reference_stays(tmp_path: Path) -> None:
    stage = stage_of([model(tmp_path, "moediff")], noise_share=0, diameters="[3, 8]", spacing=8)
    rng = np.random.default_rng(0)
    volumes = [make_volume(heads()[0], stage.recipe, rng, CPU, stage.finish) for _ in range(3)]
    batch = stage.batch(volumes, rng)
    before = {k: v.clone() for k, v in stage.reference.state_dict().items()}
    optimiser = torch.optim.AdamW(stage.network.parameters(), 2e-3)
    losses = []
    for step in range(40):
        loss, logs = stage.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(logs["loss"])
    assert losses[-1] < 0.9 * losses[0]
    for key, value in stage.reference.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("name", "given"),
    [("lesions", ()), ("lesions", ("student",)), ("student-lesions", ("moediff",))],
)
def test_a_trained_network_is_needed(name: str, given: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--init a"):
        stage_of([model(tmp_path, family) for family in given], name)


def test_the_taught_mean_joins_the_experts_of_its_model(tmp_path: Path) -> None:
    old = model(tmp_path, "moediff")
    words = ["--recipe", "lesions", "--smoke", "--steps", 2, "--pack", pack(tmp_path)]
    words += ["--init", old, "--output", tmp_path / "run", "--device", "cpu"]
    assert train_command([str(word) for word in words], LAB) == 0
    before = load_model(old).network.state_dict()
    after = load_model(tmp_path / "run" / "model").network.state_dict()
    changed = {key.split(".")[0] for key, v in after.items() if not torch.equal(v, before[key])}
    assert changed == {"mean"}


@pytest.mark.parametrize("wrong", ["diameters=[8, 2]", "contrasts=[0.1]", "diameters=[0, 2]"])
def test_wrong_ranges_are_told(wrong: str) -> None:
    key, _, value = wrong.partition("=")
    with pytest.raises(UsageError, match=f"{key} must be two positive numbers"):
        lab_tiny("lesions", **{key: value})
