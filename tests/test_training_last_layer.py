# SPDX-License-Identifier: Apache-2.0
"""The last layer of a finished student is fitted to its teacher by least squares."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from bids_moediff.cli.train import main
from bids_moediff.errors import UsageError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.student.training.last_layer import (
    Moments,
    TailStage,
    refit_tail,
    with_conditioned_tail,
)
from bids_moediff.networks.last_layer import within_training
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import save_model
from bids_moediff.training.stage import Batch
from training_data import pack, tiny

CPU = torch.device("cpu")
SHAPE = {"channels": 8, "blocks": 1}
CONFIGS = {
    "moediff": {"family": "moediff", "mean": SHAPE},
    "student": {"family": "student", "student": {**SHAPE, "ranks": [4, 4, 4, 4]}},
}


def shaken(network: torch.nn.Module, seed: int) -> None:
    """Every weight counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def model(folder: Path, family: str) -> Path:
    torch.manual_seed(3)
    network = build_network(CONFIGS[family])
    shaken(network, 4)
    save_model(network, CONFIGS[family], folder / family, "# Tiny\n")
    return folder / family


def same_features(teacher: MeanNetwork) -> StudentNetwork:
    """A student of full rank that computes what its teacher computes."""
    student = StudentNetwork(StudentConfig(**SHAPE, ranks=(8, 8, 8, 8)))
    for name in ("head", "tail", "film"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    eye = torch.eye(8)[:, :, None, None, None]
    for ours, theirs in zip(student.body, teacher.body, strict=True):
        for part in ("first", "second"):
            layer, whole = getattr(ours, part), getattr(theirs, part)
            layer.load_state_dict(
                {
                    "reduce.weight": eye, "core.weight": whole.weight,
                    "expand.weight": eye, "expand.bias": whole.bias,
                }
            )  # fmt: skip
    return student


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        images = {k: torch.rand(2, 20, 20, 20, generator=generator) for k in ("start", "target")}
        condition = torch.rand(2, 6, generator=generator)
        made.append(images | {"weight": torch.ones(2, 20, 20, 20), "condition": condition})
    return made


def test_the_teachers_layer_is_found_where_the_features_are_the_teachers() -> None:
    torch.manual_seed(0)
    teacher = MeanNetwork(MeanConfig(**SHAPE))
    shaken(teacher, 1)
    student = same_features(teacher)
    batch = batches(1)[0]
    with torch.no_grad():
        args = (batch["start"][:, None], batch["condition"])
        torch.testing.assert_close(student(*args), teacher(*args))
        shaken(student.tail, 2)
        assert (student.tail.weight - teacher.tail.weight).abs().max() > 0.1
    refit_tail(teacher, student, batches(6), places=400, border=4, ridge=1e-9)
    torch.testing.assert_close(student.tail.weight, teacher.tail.weight, atol=2e-3, rtol=0)
    torch.testing.assert_close(student.tail.bias, teacher.tail.bias, atol=2e-3, rtol=0)


def test_moments_solve_weighted_least_squares() -> None:
    """Each patch has one condition, by which its features count a second and third time."""
    rng = np.random.default_rng(0)
    rows, missing = rng.normal(size=(300, 5)), rng.normal(size=(300, 2))
    weight, told = rng.uniform(0.1, 3, size=(300, 1)), rng.normal(size=(10, 2))
    for conditions in (0, 2):
        moments, small = Moments(5, 2, conditions), Moments(5, 2, conditions)
        for part, numbers in zip(np.split(np.arange(300), 10), told, strict=True):
            patch = [torch.from_numpy(x[part]).float() for x in (rows, missing, weight)]
            numbers = torch.from_numpy(numbers[:conditions]).float()
            moments.add(*patch, numbers)
            small.add(*patch, numbers)
        one, root = np.hstack([rows, np.ones((300, 1))]), np.sqrt(weight)
        often = np.repeat(told[:, :conditions], 30, axis=0)
        full = np.hstack([one, *(one * column[:, None] for column in often.T)])
        expected = np.linalg.lstsq(full * root, missing * root, rcond=None)[0]
        found = moments.solve(0.0)
        assert found.shape == (conditions + 1, 6, 2)
        np.testing.assert_allclose(found.flatten(0, 1).numpy(), expected, atol=1e-4)
        assert small.solve(10.0).norm() < 0.3 * found.norm()


def test_a_patch_counts_by_what_interpolation_misses_there() -> None:
    """Features cannot tell the two patches apart, so the coefficients are a weighted mean."""
    torch.manual_seed(0)
    teacher = MeanNetwork(MeanConfig(**SHAPE))
    shaken(teacher, 1)
    student = same_features(teacher)
    error = {}
    for easy in (0.01, 1.0):
        again = same_features(teacher)
        for part in again.parameters():
            part.data.mul_(0.9)
        (batch,) = batches(1)
        distance = torch.tensor([easy, 1.0])[:, None, None, None]
        batch["target"] = batch["start"] + distance
        refit_tail(teacher, again, [batch], places=600, border=4, ridge=1e-6)
        with torch.no_grad():
            args = (batch["start"][:1, None], batch["condition"][:1])
            missed = (again(*args) - student(*args))[..., 4:-4, 4:-4, 4:-4]
            error[easy] = float(missed.square().mean())
    assert error[0.01] < 0.9 * error[1.0]


def test_the_last_layer_follows_the_condition() -> None:
    """The teacher's last layer is one thing for one acquisition and another for the next."""
    torch.manual_seed(0)
    teacher = MeanNetwork(MeanConfig(**SHAPE))
    shaken(teacher, 1)

    class Changing(MeanNetwork):
        def forward(self, start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            plain = super().forward(start, condition) - start
            return start + plain * (1 + condition[:, 2])[:, None, None, None, None]

    changing = Changing(teacher.config)
    changing.load_state_dict(teacher.state_dict())
    student = with_conditioned_tail(same_features(teacher))
    refit_tail(changing, student, batches(16), places=500, border=4, ridge=1e-7)
    (batch,) = batches(1, seed=1)
    with torch.no_grad():
        args = (batch["start"][:, None], batch["condition"])
        wanted, missed = changing(*args), changing(*args) - student(*args)
        before = (changing(*args) - teacher(*args))[..., 4:-4, 4:-4, 4:-4].abs().max()
    assert wanted.isfinite().all()
    assert missed[..., 4:-4, 4:-4, 4:-4].abs().max() < 0.02 * before


def test_the_border_of_a_patch_is_left_out() -> None:
    """Near it both networks see padding that a head does not have."""
    torch.manual_seed(0)
    teacher = MeanNetwork(MeanConfig(**SHAPE))
    shaken(teacher, 1)

    class Spoilt(MeanNetwork):
        def forward(self, start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            inner = super().forward(start, condition)[..., 4:-4, 4:-4, 4:-4]
            return functional.pad(inner, (4,) * 6, value=100.0)

    spoilt = Spoilt(teacher.config)
    spoilt.load_state_dict(teacher.state_dict())
    student = same_features(teacher)
    refit_tail(spoilt, student, batches(3), places=10_000, border=4, ridge=1e-9)
    torch.testing.assert_close(student.tail.weight, teacher.tail.weight, atol=2e-3, rtol=0)


def test_the_recipe_changes_the_last_layer_only_and_once(tmp_path: Path) -> None:
    init = [model(tmp_path, "student"), model(tmp_path, "moediff")]
    words = ["--recipe", "student-tail", "--smoke", "--pack", pack(tmp_path), "--init", *init]
    words += ["--output", tmp_path / "run", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    weights = tmp_path / "run" / "model" / "model.safetensors"
    before = load_model(init[0]).network.state_dict()
    after = load_model(tmp_path / "run" / "model").network.state_dict()
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {"tail.weight", "tail.bias"}
    assert set(after) - set(before) == {"tail_terms.weight", "tail_terms.bias"}
    assert all(after[key].abs().max() > 0 for key in set(after) - set(before))
    first = weights.read_bytes()
    assert main([str(word) for word in words]) == 0
    assert weights.read_bytes() == first
    assert len((tmp_path / "run" / "curve.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("given", [(), ("student",), ("moediff",)])
def test_student_and_teacher_are_needed(given: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tiny("student-tail")
    with pytest.raises(UsageError, match="--init STUDENT MODEL"):
        TailStage(recipe, CPU, [model(tmp_path, family) for family in given])  # type: ignore[arg-type]


def test_other_recipes_still_need_a_step() -> None:
    with pytest.raises(UsageError, match="steps must be at least 1"):
        tiny("student", steps=0)


def test_a_condition_is_kept_within_the_training_and_fine_axes_stay_fine() -> None:
    condition = torch.tensor([[0.0, 1.0, 9.0, 0.0, 0.3, 2.0]])
    found = within_training(condition)[0].tolist()
    assert found == pytest.approx([0.0, 1.0, np.log2(6), 0.0, 0.7, 1.2067])
