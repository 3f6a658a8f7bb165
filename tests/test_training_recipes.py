# SPDX-License-Identifier: Apache-2.0
"""Recipes: files, changes on the command line, and how mistakes are told."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from bids_moediff.cli.train import main
from bids_moediff.errors import UsageError
from bids_moediff.families.moediff.training.experts import ExpertsRecipe
from bids_moediff.families.moediff.training.mean import MeanRecipe
from bids_moediff.training import loop
from bids_moediff.training.loop import learning_rate, supported
from bids_moediff.training.recipe import (
    check_same,
    load_recipes,
    recipe_names,
)
from golden import check
from training_data import CATALOGUE

FILES = CATALOGUE.recipe_files()


@pytest.mark.parametrize("stage", CATALOGUE.stages)
def test_recipes_state_every_setting(stage: str) -> None:
    values = yaml.safe_load(FILES[stage].read_text())
    if "base" in values:
        base = values.pop("base")
        values = yaml.safe_load(FILES[base].read_text()) | values
    names = {field.name for field in dataclasses.fields(CATALOGUE.stages[stage].recipe)}
    assert set(values) - {"stage", "smoke"} == names


def test_every_recipe_loads_and_the_trial_is_shorter() -> None:
    for name in recipe_names(CATALOGUE):
        recipes = [load_recipes(name, CATALOGUE, smoke=smoke) for smoke in (False, True)]
        for whole, trial in zip(*recipes, strict=True):
            if trial.stage.endswith("-tail"):
                assert whole.steps == 0 and trial.fitted_patches < whole.fitted_patches  # type: ignore[attr-defined]
                continue
            assert trial.steps == 20 < whole.steps


def test_changes_reach_the_stage_they_name() -> None:
    mean, experts = load_recipes(
        "moediff", CATALOGUE, ["experts.batch=3", "network.width=16", "decay=5e-1"], steps=7
    )
    assert isinstance(mean, MeanRecipe) and isinstance(experts, ExpertsRecipe)
    assert (mean.batch, experts.batch) == (8, 3)
    assert experts.network["width"] == 16 and experts.network["experts"][0] == "smooth"
    assert mean.decay == experts.decay == 0.5 and mean.steps == experts.steps == 7


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: experts\nnetwork: {width: 48}\nlearning_rate: 1e-4\n")
    recipe = load_recipes(str(path), CATALOGUE)[0]
    assert isinstance(recipe, ExpertsRecipe)
    assert recipe.network["width"] == 48 and recipe.learning_rate == 1e-4
    assert recipe.network["diffusion_steps"] == [500, 2000, 1000]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: mean\nlerning_rate: 1\n", r"lerning_rate \(did you mean learning_rate\?\)"),
        (
            "stage: maen\n",
            "stage must be one of mean, experts, gate, mean-told-tail, student, student-tail, "
            "student-told-tail, crfm, nsmoe, not maen",
        ),
        ("base: mean\nbatch: many\n", "batch cannot be 'many'"),
        ("base: mean\nbatch: 0\n", "batch must be at least 1"),
        ("base: mean\nprecision: fp8\n", "precision is bf16 or fp32"),
        ("base: mean\nacquisition: x3\n", "acquisition is empty or one of x2 isotropic, "),
        ("base: experts\ncrop: 100\n", "crop must be a multiple of 64"),
        ("base: [\n", "cannot be read"),
        ("stages: [mean]\nexpert: {}\n", "unknown setting expert"),
    ],
)
def test_wrong_recipes_are_told(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_recipes(str(path), CATALOGUE)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--recipe", "mena", "--output", "x"], "recipe mena (did you mean mean?)"),
        (["--recipe", "mean", "--output", "x", "--set", "bach=2"], "bach (did you mean batch?)"),
        (["--recipe", "mean", "--output", "x", "--set", "batch"], "wants key=value"),
        (["--recipe", "mean", "--outptu", "x"], "--outptu (did you mean --output?)"),
        (["--recipe", "mean"], "Name the folder of the run"),
        (["--output", "x"], "Name a recipe"),
        (["--recipe", "mean", "--output", "x"], "--data BIDS_DIR or --pack FILE"),
        (["--recipe", "mean", "--output", "x", "--pack", "y"], "no training pack y"),
    ],
)
def test_wrong_options_are_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_recipes_can_be_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-recipes"]) == 0
    assert capsys.readouterr().out.split() == recipe_names(CATALOGUE)
    for seed in (5, 0):
        assert main(["--recipe", "moediff", "--random-seed", str(seed), "--print-recipe"]) == 0
        printed = list(yaml.safe_load_all(capsys.readouterr().out))
        assert [part["stage"] for part in printed] == ["mean", "experts"]
        assert all(part["seed"] == seed for part in printed)


def test_the_rate_warms_up_and_falls_to_its_share() -> None:
    recipe = load_recipes("mean", CATALOGUE, ["steps=1000", "warm_up=100", "learning_rate=1"])[0]
    rates = [learning_rate(step, recipe) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.505) and rates[1000] == pytest.approx(0.01)
    assert rates[100:] == sorted(rates[100:], reverse=True)


@pytest.mark.parametrize(
    ("device", "there", "asked", "taken"),
    [
        ("cpu", False, "bf16", "fp32"),
        ("cpu", True, "bf16", "bf16"),
        ("cpu", False, "fp32", "fp32"),
        ("cuda:0", False, "bf16", "bf16"),
    ],
)
def test_bfloat16_is_not_imitated(monkeypatch, capsys, device, there, asked, taken):
    monkeypatch.setattr(loop, "has_bfloat16", lambda: there)
    (recipe,) = load_recipes("mean", CATALOGUE, [f"precision={asked}"])
    assert supported(recipe, device).precision == taken
    assert ("32 bits" in capsys.readouterr().err) == (asked != taken)


def test_a_run_may_go_on_in_the_arithmetic_of_another_machine(tmp_path):
    (recipe,) = load_recipes("mean", CATALOGUE, ["precision=fp32"])
    check_same(recipe, recipe.to_dict() | {"precision": "bf16"}, tmp_path)
    with pytest.raises(UsageError, match="seed"):
        check_same(recipe, recipe.to_dict() | {"seed": 99}, tmp_path)


def test_the_settings_of_every_recipe() -> None:
    """Whole and trial size, with what a recipe of several stages changes in them."""
    told = {
        f"{name}{' --smoke' if smoke else ''}": [
            recipe.to_dict() for recipe in load_recipes(name, CATALOGUE, smoke=smoke)
        ]
        for name in recipe_names(CATALOGUE)
        for smoke in (False, True)
    }
    check("recipes.json", json.dumps(told, indent=1, sort_keys=True) + "\n")


def test_how_many_steps_fit_into_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty steps of one second warm up, half a second each is the speed of the others."""
    now = [1000.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    budget = loop.Budget(2.0)  # ends at 1120 and looks for twelve seconds
    for step in range(1, 21):
        now[0] += 1.0
        assert budget.plan(step) is None
    for step in range(21, 44):
        now[0] += 0.5
        assert budget.plan(step) is None, step
    now[0] += 0.5
    assert budget.plan(44) == 44 + int(0.94 * (1120 - 1032) / 0.5)
    long = loop.Budget(60.0)  # never looks for more than 25 seconds
    for step in range(20):
        long.plan(step + 1)
    now[0] += 24.9
    assert long.plan(30) is None
    now[0] += 0.2
    assert long.plan(31) is not None
    late = loop.Budget(0.001)
    for step in range(20):
        late.plan(step + 1)
    now[0] += 10.0
    assert late.plan(21) == 22  # one more, however little time is left
