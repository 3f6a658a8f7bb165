# SPDX-License-Identifier: Apache-2.0
"""The lab's stages and recipes for its tests."""

from typing import Any

from bids_moediff.training.recipe import Recipe
from research.catalogue import catalogue
from training_data import tiny

LAB = catalogue()


def lab_tiny(name: str, **settings: Any) -> Recipe:
    """Trial size of a recipe of the lab, in full precision."""
    return tiny(name, LAB, **settings)
