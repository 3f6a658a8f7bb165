# SPDX-License-Identifier: Apache-2.0
"""Lesions, grids, references and contrasts that training draws, against their distributions."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bids_moediff.training import lesions, sharpness
from bids_moediff.training.pack import TrainingHead, make_image
from bids_moediff.training.recipe import load_recipes, recipe_names
from bids_moediff.training.sharpness import Grid, draw_grid
from bids_moediff.training.volumes import make_volume
from golden import check_numbers
from training_data import CATALOGUE, heads


def test_a_blob_has_the_volume_of_its_diameter_and_no_direction() -> None:
    """About a sphere's; wavy outlines add three times the variance of the radius."""
    made = [lesions.blob((29,) * 3, 9.0, np.random.default_rng(seed)) for seed in range(10)]
    sphere = 4 / 3 * np.pi * 4.5**3
    volumes = [float(one.sum()) for one in made]
    assert np.mean(volumes) == pytest.approx(sphere * (1 + 3 * lesions.WOBBLE**2), rel=0.06)
    assert np.std(volumes) < 0.25 * sphere  # ellipsoids of one volume
    place = torch.stack(torch.meshgrid(*[torch.arange(29.0) - 14] * 3, indexing="ij"))
    stretches = []
    for one in made:
        assert float(one.min()) == 0 and float(one[14, 14, 14]) == pytest.approx(1)
        moments = torch.einsum("ixyz,jxyz,xyz->ij", place, place, one) / one.sum()
        stretches.append((torch.linalg.eigvalsh(moments).sqrt(), moments))
    longest = [float(sizes[2] / sizes[0]) for sizes, _ in stretches]
    assert max(longest) < 3 and np.mean(longest) > 1.2  # ellipsoids, and
    assert np.mean([float(turned[0, 1].abs()) for _, turned in stretches]) > 0.1  # turned


def lesion_scene(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[float]]:
    """Tissue far from the faces, darker on the left, without weight at the top.

    Lesions are single voxels.
    """
    truth, drawn = torch.zeros(64, 44, 50), list[float]()
    truth[12:-12, 12:-12, 12:-12] = 0.6
    truth[12:20] *= 0.2
    weight = torch.ones(truth.shape)
    weight[..., 30:] = 0

    def point(shape: Sequence[int], diameter: float, rng: np.random.Generator) -> torch.Tensor:
        drawn.append(diameter)
        made = torch.zeros(*shape)
        made[tuple(size // 2 for size in shape)] = 1
        return made

    monkeypatch.setattr(lesions, "blob", point)
    return (truth, weight), drawn


def test_lesions_are_drawn_apart_in_tissue_at_all_sizes_and_contrasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (truth, weight), drawn = lesion_scene(monkeypatch)
    plan = lesions.LesionPlan(diameters=(1.0, 8.0), contrasts=(0.1, 0.3), spacing=9.0, tries=150)
    contrasts: list[float] = []
    for seed in range(20):
        before = len(drawn)
        field = lesions.lesion_field(truth, weight, plan, np.random.default_rng(seed))
        places = torch.nonzero(field).double()
        assert len(places) == len(drawn) - before > 3
        apart = torch.cdist(places, places) + 99 * torch.eye(len(places))
        assert float(apart.min()) >= 9
        assert float(places[:, 0].min()) > 18 and float(places[:, 2].max()) < 30
        contrasts += field[field != 0].tolist()
    sizes, signs = np.array(drawn), np.array(contrasts)
    assert stats.kstest(np.log(sizes) / np.log(8), "uniform").pvalue > 0.01
    assert 0.35 < (signs < 0).mean() < 0.65
    assert stats.kstest((np.abs(signs) - 0.1) / 0.2, "uniform").pvalue > 0.01


def test_a_dark_lesion_is_no_darker_than_its_tissue_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its outline keeps its softness: half of its depth at half of its profile."""
    half = lambda shape, diameter, rng: 0.5 * torch.ones(*shape)  # noqa: E731
    monkeypatch.setattr(lesions, "blob", half)
    plan = lesions.LesionPlan(diameters=(2.0, 2.1), contrasts=(0.5, 0.51), spacing=99.0)
    truth = torch.full((30, 30, 30), 0.3)
    found = {
        round(float(lesions.lesion_field(truth, truth + 1, plan, rng).min()), 3)
        for rng in map(np.random.default_rng, range(8))
    }
    assert found == {0.0, -0.125}


def test_a_dark_lesion_leaves_a_twentieth_of_the_range() -> None:
    """Also beyond the tissue that it lies in; a bright one adds its contrast to all of it."""
    truth = torch.full((40, 40, 40), 0.3)
    truth[:, :, 20:] = 0.02
    plan = lesions.LesionPlan(diameters=(7.0, 8.0), contrasts=(0.5, 0.6), spacing=12.0)
    lowest = []
    for seed in range(3):
        field = lesions.lesion_field(truth, truth, plan, np.random.default_rng(seed))
        assert not field.any()  # places of little weight
        field = lesions.lesion_field(truth, truth + 1, plan, np.random.default_rng(seed))
        changed = truth + field
        lowest.append(float(changed[..., :20].min()))
        assert float(changed[..., 20:].min()) >= 0.02 - 1e-6
    assert min(lowest) == pytest.approx(lesions.DARKEST, abs=1e-5)


def test_plain_heads_are_coarsened_at_random_and_thick_slices_in_part() -> None:
    head: Any = SimpleNamespace(kind="image", name="thick_1", zooms=(3.0, 3.0, 3.2))
    rng = np.random.default_rng(1)
    plain = [draw_grid(head, {}, 0.5, rng).factors for _ in range(200)]
    assert all(factors[0] == factors[1] == factors[2] for factors in plain)
    factor = np.array([factors[0] for factors in plain])
    assert 0.35 < (factor > 1).mean() < 0.65 and factor.min() == 1
    share = np.log(factor[factor > 1]) / np.log(sharpness.COARSEST)
    assert stats.kstest(share, "uniform").pvalue > 0.01
    both = [draw_grid(head, {"*": [1, 2, 2]}, 0.0, rng).factors for _ in range(100)]
    assert all(factors[2] == 2 for factors in both)  # of 3.2 mm: cubes of 6.4 mm at the most
    assert {draw_grid(head, {"*": [1, 2, 2]}, 0.0, rng).spared for _ in range(9)} == {None}
    part = np.log([factors[0] for factors in both]) / np.log(6.4 / 3)
    assert stats.kstest(part, "uniform").pvalue > 0.01
    assert np.allclose([f[1] / 2 for f in both], (6.4 / 6) ** part)
    assert not Grid().changes and Grid((1.0, 1.0, 1.2)).changes
    pair: Any = SimpleNamespace(**{**vars(head), "kind": "pair"})
    assert draw_grid(pair, {"*": [1, 2, 2]}, 1.0, rng) == Grid()


def drawn_from() -> list[TrainingHead]:
    """An image, one with a reference, one of large voxels, a label map and a pair."""
    first, second, third, labels = heads()
    soft = make_image("low", first.volume / 2, (3.0, 3.0, 3.2), subject="low", source="generated")
    pair = replace(
        make_image("pair", second.volume / 2, (3.0, 3.0, 3.2), subject="p", source="generated"),
        kind="pair",
        condition=(0.0, 0.5, 1.5, 0.0, 0.7, 1.0),
    )
    start = np.roll(pair.volume, 1, 2)
    referred = replace(second, reference=np.flip(second.volume, 0).copy())
    return [
        first,
        referred,
        replace(third, validation=False),
        labels,
        soft,
        replace(pair, start=start),
    ]


@pytest.mark.parametrize("name", recipe_names(CATALOGUE))
def test_a_number_always_draws_the_same_volume(name: str) -> None:
    """Contrast, shading, grid, acquisition, noise, weights, tissue and references of a recipe."""
    found = {}
    for recipe in load_recipes(name, CATALOGUE, [], smoke=True):
        for number, head in enumerate(drawn_from()):
            if head.kind == "pair" and (recipe.uncertain or recipe.reference_count):
                continue
            random = np.random.default_rng([number, 3])
            volume = make_volume(
                head, recipe, random, torch.device("cpu"), tissue=True, others=drawn_from()[:2]
            )
            found[f"{recipe.stage} {number}"] = {key: one.float() for key, one in volume.items()}
    check_numbers("training_draws.json", name, found, rel=2e-3, abs=2e-3)
