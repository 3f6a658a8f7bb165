# SPDX-License-Identifier: Apache-2.0
"""A model is a folder: config.json, model.safetensors and MODEL_CARD.md. Never a pickle.

Weights are stored as 16-bit floats and loaded as 32-bit; their SHA-256 stands in config.json and
is checked on loading. A network is made by the builder of its family (families/load.py). Torch is
imported only to read or write weights: the command line asks for names and configurations before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.errors import WeightsError
from bids_moediff.runtime.sink import write_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

CONFIG_NAME = "config.json"
MODELS_FOLDER = Path(__file__).resolve().parents[1] / "data" / "models"
HELPERS = frozenset({"brainmask"})  # shipped for preparation: no choice of --model


WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "MODEL_CARD.md"
CALIBRATION_NAME = "calibration.json"  # how large the error of a result is; may be absent
FORMAT_VERSION = 1

Builder = Callable[[Mapping[str, Any]], "nn.Module"]


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, its config.json, the SHA-256 of its weights, its name.

    ``calibration`` is the content of its calibration.json, empty where there is none.
    """

    network: nn.Module
    config: dict[str, Any]
    sha256: str
    name: str
    calibration: dict[str, Any] = field(default_factory=dict)


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the part of config.json that holds a network's settings; ValueError without one."""
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise ValueError(f"the section {name!r} is missing")
    return found


def _build_brain_mask(config: Mapping[str, Any]) -> nn.Module:
    from bids_moediff.networks.brain_mask import BrainMaskNet

    return BrainMaskNet(**section(config, "brainmask"))


# The one network that is no family: that of the preprocessing.
BRAIN_MASK: dict[str, Builder] = {"brainmask": _build_brain_mask}


def build_brain_mask(config: Mapping[str, Any]) -> nn.Module:
    """Return the network of the preprocessing; WeightsError for any other."""
    return build(config, BRAIN_MASK)


def resolve(name_or_dir: str | Path) -> Path:
    """Folder of a shipped model's name or of a path; WeightsError says what there is instead.

    A path has a separator: a folder in the working directory never stands for a shipped name.
    """
    folder = _folder_of(name_or_dir)
    if (folder / CONFIG_NAME).is_file():
        return folder
    names = ", ".join(available()) or "none"
    raise WeightsError(
        f"no model {str(name_or_dir)!r}: not a folder with {CONFIG_NAME}, "
        f"and the models that come with the package are: {names}"
    )


def build(config: Mapping[str, Any], builders: Mapping[str, Builder]) -> nn.Module:
    """Network with fresh weights from a whole config.json; WeightsError if it makes no sense."""
    family = config.get("family")
    if family not in builders:
        known = ", ".join(sorted(builders))
        raise WeightsError(f"unknown model family {family!r}; this version knows: {known}")
    try:
        return builders[str(family)](config)
    except (TypeError, ValueError, ImportError) as error:
        raise WeightsError(f"the configuration of the {family} model is wrong: {error}") from error


def save_model(
    network: nn.Module, config: Mapping[str, Any], folder: str | Path, card: str
) -> str:
    """Write a model folder and return the SHA-256 of the weights.

    ``config`` holds "family" and its sections, ``card`` the text of MODEL_CARD.md. Weights go
    first and config.json last, each atomically, so a torn save never looks like a model. Any
    config.json of an earlier save is overwritten.
    """
    import torch
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.to(torch.float16) if t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in network.state_dict().items()
    }
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    written = dict(config) | {"format": FORMAT_VERSION, "sha256": digest}
    write_bytes(data, folder / WEIGHTS_NAME)
    write_bytes(card.encode(), folder / CARD_NAME)
    write_bytes((json.dumps(written, indent=2) + "\n").encode(), folder / CONFIG_NAME)
    return digest


def read_model(
    name_or_dir: str | Path,
    builder: Builder,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Read a model folder (a path, or the name of a shipped one) in 32-bit evaluation mode.

    `builder` makes the network from config.json.

    Raises WeightsError for a missing or unreadable file, a checksum that does not match, an
    unknown family, a wrong configuration, and weights of other names or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = resolve(name_or_dir)
    config = _read_config(folder / CONFIG_NAME)
    weights = folder / WEIGHTS_NAME
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {weights}: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != config.get("sha256"):
        raise WeightsError(
            f"{weights} does not match the checksum in {CONFIG_NAME} "
            f"(expected {config.get('sha256')}, found {digest})"
        )
    network = builder(config)
    try:
        tensors = load(data)
        floats = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        network.load_state_dict(floats, strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"{weights} does not fit its configuration: {reason}") from error
    calibration = folder / CALIBRATION_NAME
    known = _read_config(calibration) if calibration.is_file() else {}
    return LoadedModel(network.to(device).eval(), config, digest, folder.resolve().name, known)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must hold a JSON object")
    return config


def available() -> list[str]:
    """Names of the super-resolution models that come with the package."""
    if not MODELS_FOLDER.is_dir():
        return []
    folders = (p for p in MODELS_FOLDER.iterdir() if (p / CONFIG_NAME).is_file())
    return sorted(p.name for p in folders if p.name not in HELPERS)


def read_config(name_or_dir: str | Path) -> dict[str, Any]:
    """config.json of a shipped model's name or of a folder; empty where it cannot be read."""
    try:
        text = (_folder_of(name_or_dir) / CONFIG_NAME).read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _folder_of(name_or_dir: str | Path) -> Path:
    is_path = os.sep in str(name_or_dir)
    return Path(name_or_dir) if is_path else MODELS_FOLDER / str(name_or_dir)
