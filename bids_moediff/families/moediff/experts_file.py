# SPDX-License-Identifier: Apache-2.0
"""The experts on volumes of a model: experts.json and experts.safetensors in its folder.

They stand beside model.safetensors, whose checksum the calibrations name.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from bids_moediff.errors import WeightsError

from .volume_experts import VolumeExperts, VolumeExpertsConfig

WEIGHTS_NAME, CONFIG_NAME = "experts.safetensors", "experts.json"


def read_experts(
    folder: Path, device: str | torch.device = "cpu"
) -> tuple[VolumeExperts, dict[str, Any]] | None:
    """Read the experts of a model folder and the content of experts.json; None without.

    Raises
    ------
    WeightsError
        for damaged files, and for weights that do not match their checksum or settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data = (folder / WEIGHTS_NAME).read_bytes()
        network = VolumeExperts(VolumeExpertsConfig.from_dict(content["network"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"the experts in {folder} cannot be read: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != content.get("sha256"):
        raise WeightsError(
            f"{folder / WEIGHTS_NAME} does not match the checksum in {CONFIG_NAME} "
            f"(expected {content.get('sha256')}, found {digest})"
        )
    try:
        network.load_state_dict({name: value.float() for name, value in load(data).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{folder / WEIGHTS_NAME} does not fit {CONFIG_NAME}: {reason}"
        ) from error
    return network.to(device).eval().requires_grad_(False), content
