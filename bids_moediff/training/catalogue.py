# SPDX-License-Identifier: Apache-2.0
"""Registry of trainable stages, which families and the lab fill."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .recipe import Recipe
from .stage import Init, Stage


@dataclass(frozen=True)
class StageEntry:
    """One stage.

    Parameters
    ----------
    recipe
        Class of its settings; its ``stage`` is the name.
    make
        Makes the stage of a recipe, a device and the starting networks (``--init``).
    family, section
        Family of the model it is part of, and the section of config.json that it fills.
    begins_others
        Whether later stages start from a run of it.
    completes
        Whether it changes a part of a model whose other parts come from ``--init``.
    on_top
        Whether it continues another stage's network, whose history is kept.
    held_by
        Section whose network holds this one's, if a model has both.
    """

    recipe: type[Recipe]
    make: Callable[[Any, torch.device, Init], Stage]
    family: str
    section: str
    begins_others: bool = False
    completes: bool = False
    on_top: bool = False
    held_by: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All stages in the order in which they build on one another.

    Parameters
    ----------
    stages
        By name.
    recipe_folders
        Folders with recipes.
    build
        Builds a network with fresh weights from a whole config.json.
    card_text
        Returns the description of a family for MODEL_CARD.md.
    """

    stages: Mapping[str, StageEntry]
    recipe_folders: tuple[Path, ...]
    build: Callable[[Mapping[str, Any]], nn.Module]
    card_text: Callable[[str], str]

    def make(self, recipe: Recipe, device: torch.device, init: Init) -> Stage:
        """Return the stage of a recipe."""
        return self.stages[recipe.stage].make(recipe, device, init)

    def recipe_files(self) -> dict[str, Path]:
        """Return the recipes by name."""
        folders = self.recipe_folders
        return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}
