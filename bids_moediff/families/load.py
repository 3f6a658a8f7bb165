# SPDX-License-Identifier: Apache-2.0
"""Any model by its name or folder, whatever its family."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_moediff.families import family
from bids_moediff.networks.model_folder import BRAIN_MASK, LoadedModel, build, read_model

from .choice import check_restores
from .protocol import Restorer


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Return a network with fresh weights from a whole config.json.

    Raises
    ------
    WeightsError
        for an unknown family or settings that make no sense.
    """
    name = str(config.get("family"))
    return build(config, BRAIN_MASK if name in BRAIN_MASK else {name: family(name).build})


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model folder (a path, or the name of a shipped one) in 32-bit evaluation mode.

    Raises
    ------
    WeightsError
        for a missing or unreadable file, a checksum that does not match, an unknown family, a
        wrong configuration, and weights of other names or shapes.
    """
    return read_model(name_or_dir, build_network, device)


def make_restorer(model: LoadedModel, device: torch.device, precision: str) -> Restorer:
    """Return what restores images with this model; WeightsError if nothing does."""
    check_restores(model.config, model.name)
    make = family(model.config["family"]).restorer
    assert make is not None
    return make(model.network, device, precision)
