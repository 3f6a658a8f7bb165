# SPDX-License-Identifier: Apache-2.0
"""Combine regression network, experts and, for training, a learned autoencoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_moediff.networks.composite import Composite
from bids_moediff.networks.model_folder import Builder

from .experts_file import read_experts
from .volume_experts import VolumeExperts


class MoEDiffModel(Composite):
    """Family "moediff": ``mean`` (3-D) and ``moediff`` (experts).

    A learned ``autoencoder`` may be there for training. Any of the three may be None. Experts on
    volumes have a file of their own and are not part of the state: ``beside`` holds them and the
    content of their experts.json.
    """

    beside: tuple[VolumeExperts, Mapping[str, Any]] | None = None

    def __init__(
        self,
        mean: nn.Module | None,
        moediff: nn.Module | None,
        autoencoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.mean = mean
        self.moediff = moediff
        self.autoencoder = autoencoder


def add_experts(network: nn.Module, folder: Path, device: str | torch.device) -> None:
    """Read the experts on volumes from a model folder, if it has any."""
    assert isinstance(network, MoEDiffModel)
    # In a tuple, so that torch takes them for no part of the model.
    network.beside = read_experts(folder, device)


def _build_mean(values: Mapping[str, Any]) -> nn.Module:
    from bids_moediff.networks.mean import MeanConfig, MeanNetwork

    return MeanNetwork(MeanConfig.from_dict(values))


def _build_experts(values: Mapping[str, Any]) -> nn.Module:
    from .config import MoEDiffConfig
    from .network import MoEDiffSR

    return MoEDiffSR(MoEDiffConfig.from_dict(values))


def _build_autoencoder(values: Mapping[str, Any]) -> nn.Module:
    from .config import MoEDiffConfig
    from .latents import build_autoencoder

    return build_autoencoder(MoEDiffConfig.from_dict(values))


PARTS: dict[str, Builder] = {
    "mean": _build_mean,
    "moediff": _build_experts,
    "autoencoder": _build_autoencoder,
}


def build_moediff(config: Mapping[str, Any]) -> nn.Module:
    """Build a composite from the sections of a config that PARTS names; at least one is needed."""
    sections = {name: config.get(name) for name in PARTS}
    if not any(sections.values()):
        raise ValueError("a moediff model needs a section 'mean' or 'moediff'")
    parts = {name: PARTS[name](v) if v else None for name, v in sections.items()}
    return MoEDiffModel(**parts)
