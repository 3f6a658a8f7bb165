# SPDX-License-Identifier: Apache-2.0
"""Any model by its name or folder: a family is one builder in ``FAMILIES``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_moediff.families.moediff.model import build_moediff
from bids_moediff.networks.model_folder import (
    BRAIN_MASK,
    Builder,
    LoadedModel,
    build,
    dataclass_builder,
    read_model,
    single,
)

FAMILIES: dict[str, Builder] = {
    **BRAIN_MASK,
    "moediff": build_moediff,
    "student": single(
        "student",
        dataclass_builder("families.student.network", "StudentConfig", "StudentNetwork"),
    ),
    "crfm": single(
        "crfm", dataclass_builder("families.crfm.network", "CRFMConfig", "CRFMNetwork")
    ),
    "nsmoe": single(
        "nsmoe", dataclass_builder("families.nsmoe.network", "NSMoEConfig", "NSMoENetwork")
    ),
}


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Network with fresh weights from a whole config.json; WeightsError if it makes no sense."""
    return build(config, FAMILIES)


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model folder (a path, or the name of a shipped one) in 32-bit evaluation mode.

    Raises WeightsError for a missing or unreadable file, a checksum that does not match, an
    unknown family, a wrong configuration, and weights of other names or shapes.
    """
    return read_model(name_or_dir, FAMILIES, device)
