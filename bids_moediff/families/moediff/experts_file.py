# SPDX-License-Identifier: Apache-2.0
"""Read the experts on volumes of a model: experts.json and experts.safetensors in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bids_moediff.networks.beside import read_beside

from .volume_experts import VolumeExperts, VolumeExpertsConfig

NAME = "experts"


def read_experts(
    folder: Path, device: str | torch.device = "cpu"
) -> tuple[VolumeExperts, dict[str, Any]] | None:
    """Read the experts of a model folder and the content of experts.json; None without experts.

    Raises
    ------
    WeightsError
        For damaged files, and for weights that do not match their checksum or settings.
    """
    return read_beside(folder, NAME, _build, device)


def _build(settings: Mapping[str, Any]) -> VolumeExperts:
    return VolumeExperts(VolumeExpertsConfig.from_dict(settings))
