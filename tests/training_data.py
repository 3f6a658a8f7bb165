# SPDX-License-Identifier: Apache-2.0
"""Generated training heads, packs and tiny recipes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_moediff.families.catalogue import catalogue
from bids_moediff.training.catalogue import Catalogue
from bids_moediff.training.loop import Job, Trainer
from bids_moediff.training.pack import TrainingHead, make_image, make_labels, save_pack
from bids_moediff.training.recipe import Recipe, load_recipes
from bids_moediff.training.stage import Init
from generated import head

SHAPE, ZOOMS = (56, 60, 54), (3.0, 3.0, 3.2)


def label_map(seed: int = 0) -> np.ndarray:
    """Fluid, wavy cortex, white matter and skull as FreeSurfer labels."""
    axes = [np.linspace(-1, 1, size) for size in SHAPE]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) + 0.04 * np.sin(7 * np.arctan2(y, x) + seed)
    labels = np.zeros(SHAPE)
    for outer, label in ((0.95, 507), (0.85, 24), (0.75, 3), (0.55, 2)):
        labels[radius < outer] = label
    labels[(labels == 2) & (x > 0)] = 41
    labels[(labels == 3) & (x > 0)] = 42
    return labels


def heads() -> list[TrainingHead]:
    """Two heads and a label map to train on, one head to validate on."""
    images = []
    for seed, name in enumerate(("a", "b", "c")):
        image = head(SHAPE, ZOOMS, seed)
        data = np.asarray(image.dataobj, dtype=np.float32)
        images.append(make_image(name, data, ZOOMS, subject=name, source="generated"))
    return [*images[:2], replace(images[2], validation=True), make_labels("l", label_map(), ZOOMS)]


def pack(folder: Path) -> Path:
    """The generated heads as a pack."""
    path = folder / "pack.npz"
    save_pack(heads(), path)
    return path


CATALOGUE = catalogue()


def tiny(name: str, stages: Catalogue = CATALOGUE, **settings: Any) -> Recipe:
    """Trial size of a recipe with one stage, in full precision."""
    changes = [f"{key}={value}" for key, value in settings.items()]
    return load_recipes(name, stages, ["precision=fp32", *changes], smoke=True)[0]


def trainer(
    recipe: Recipe, data: Path, folder: Path, init: Init = None, stages: Catalogue = CATALOGUE
) -> Trainer:
    """A training on the processor, about to run."""
    return Trainer(Job(recipe, stages, data, folder, "cpu", init))


def train(
    recipe: Recipe, data: Path, folder: Path, init: Init = None, stages: Catalogue = CATALOGUE
) -> dict[str, Any]:
    """Train, or go on with what is there; the record."""
    return trainer(recipe, data, folder, init, stages).run()
