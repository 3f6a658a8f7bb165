# SPDX-License-Identifier: Apache-2.0
"""Read a further network of a model folder: NAME.json and NAME.safetensors.

It has its own files, so that the checksum of model.safetensors, which calibrations name, stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bids_moediff.errors import WeightsError
from bids_moediff.runtime.given_files import read_json

Network = TypeVar("Network", bound=nn.Module)


def read_beside(
    folder: Path,
    name: str,
    build: Callable[[Mapping[str, Any]], Network],
    device: str | torch.device = "cpu",
) -> tuple[Network, dict[str, Any]] | None:
    """Read a network of a model folder and the content of its JSON file; None if there is none.

    Parameters
    ----------
    folder, name
        The files are ``folder/name.json`` and ``folder/name.safetensors``.
    build
        Builds the network from the part ``network`` of the JSON file.
    device
        Where it runs.

    Raises
    ------
    WeightsError
        For damaged files, and for weights that do not match their checksum or settings.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    config, weights = folder / f"{name}.json", folder / f"{name}.safetensors"
    if not config.is_file():
        return None
    try:
        content = read_json(config)
        data = weights.read_bytes()
        network = build(content["network"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{config} or its weights cannot be read: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != content.get("sha256"):
        raise WeightsError(
            f"{weights} does not match the checksum in {config.name} "
            f"(expected {content.get('sha256')}, found {digest})"
        )
    try:
        network.load_state_dict({key: value.float() for key, value in load(data).items()})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{weights} does not fit {config.name}: {reason}") from error
    return network.to(device).eval().requires_grad_(False), content
