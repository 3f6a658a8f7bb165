# SPDX-License-Identifier: Apache-2.0
"""The stages of the lab, beside those of the package's families."""

from dataclasses import replace
from pathlib import Path

from bids_moediff.families.catalogue import catalogue as package_catalogue
from bids_moediff.training.catalogue import Catalogue, StageEntry

from .latents.stage import AutoencoderRecipe, AutoencoderStage
from .lesions.stage import LesionsRecipe, LesionsStage, StudentLesionsRecipe

ENTRIES = (
    # Experts hold the autoencoder that they were trained with.
    StageEntry(
        AutoencoderRecipe,
        AutoencoderStage,
        "moediff",
        "autoencoder",
        begins_others=True,
        held_by="moediff",
    ),
    # Taught to a finished network, in whose place they come.
    StageEntry(LesionsRecipe, LesionsStage, "moediff", "mean", completes=True),
    StageEntry(StudentLesionsRecipe, LesionsStage, "student", "student"),
)


def catalogue() -> Catalogue:
    """Return what ``python -m research.train`` can train."""
    own = package_catalogue()
    stages = {**own.stages, **{entry.recipe.stage: entry for entry in ENTRIES}}
    folders = (*own.recipe_folders, Path(__file__).with_name("recipes"))
    return replace(own, stages=stages, recipe_folders=folders)
