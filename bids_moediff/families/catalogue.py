# SPDX-License-Identifier: Apache-2.0
"""Collect the training stages and recipes of all families of this package."""

from pathlib import Path

from bids_moediff.families import OWN, family
from bids_moediff.families.load import build_network
from bids_moediff.training.catalogue import Catalogue


def catalogue() -> Catalogue:
    """Return the stages and recipes that ``bids_moediff-train`` can run."""
    entries = [entry for name in OWN for entry in family(name).stages()]
    folders = (Path(__file__).with_name(name) / "recipes" for name in OWN)
    return Catalogue(
        stages={entry.recipe.stage: entry for entry in entries},
        recipe_folders=tuple(folder for folder in folders if folder.is_dir()),
        build=build_network,
        card_text=lambda name: family(name).card,
    )
