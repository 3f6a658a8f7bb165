# SPDX-License-Identifier: Apache-2.0
"""Write a further network into a model's folder (bids_moediff.networks.beside reads it)."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from bids_moediff.runtime.sink import write_bytes


def save_beside(network: nn.Module, folder: Path, name: str, **about: Any) -> str:
    """Write weights (16-bit) and settings; returns the SHA-256 of the weights."""
    state = network.state_dict()
    data = save({key: value.half().cpu().contiguous() for key, value in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    settings = network.config.to_dict()  # type: ignore[union-attr,operator]
    content = {"network": settings, "sha256": digest, **about}
    write_bytes(data, folder / f"{name}.safetensors")
    write_bytes((json.dumps(content, indent=2) + "\n").encode(), folder / f"{name}.json")
    return digest
