# SPDX-License-Identifier: Apache-2.0
"""A model is a folder: config.json, model.safetensors and MODEL_CARD.md. Never a pickle.

Weights are stored as 16-bit floats and loaded as 32-bit; their SHA-256 stands in config.json and
is checked on loading. A family is one builder in ``FAMILIES``. The family "moediff" is a composite
of a volumetric mean network and the mixture of diffusion experts, either of which may be absent.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from bids_moediff.errors import WeightsError
from bids_moediff.families import choice
from bids_moediff.families.choice import CONFIG_NAME, available
from bids_moediff.families.choice import MODELS_FOLDER as MODELS_FOLDER

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "MODEL_CARD.md"
CALIBRATION_NAME = "calibration.json"  # how large the error of a result is; may be absent
FORMAT_VERSION = 1

Builder = Callable[[Mapping[str, Any]], nn.Module]


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


class MoEDiffModel(nn.Module):
    """Family "moediff": ``mean`` (3-D) and ``moediff`` (experts), and on its way there a learned
    ``autoencoder``; any may be None."""

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


def _dataclass_builder(module: str, config_name: str, network_name: str) -> Builder:
    def build(values: Mapping[str, Any]) -> nn.Module:
        namespace = importlib.import_module(f"bids_moediff.{module}")
        config_class = getattr(namespace, config_name)
        read = getattr(config_class, "from_dict", lambda keys: config_class(**keys))
        return getattr(namespace, network_name)(read(values))

    return build


def _build_autoencoder(values: Mapping[str, Any]) -> nn.Module:
    from bids_moediff.families.moediff.config import MoEDiffConfig
    from bids_moediff.families.moediff.latents import build_autoencoder

    return build_autoencoder(MoEDiffConfig.from_dict(values))


PARTS: dict[str, Builder] = {
    "mean": _dataclass_builder("networks.mean", "MeanConfig", "MeanNetwork"),
    "moediff": _dataclass_builder("families.moediff.network", "MoEDiffConfig", "MoEDiffSR"),
    "autoencoder": _build_autoencoder,
}


def build_moediff(config: Mapping[str, Any]) -> nn.Module:
    """Composite from the sections of a config that PARTS names; at least one must be there."""
    sections = {name: config.get(name) for name in PARTS}
    if not any(sections.values()):
        raise ValueError("a moediff model needs a section 'mean' or 'moediff'")
    parts = {name: PARTS[name](v) if v else None for name, v in sections.items()}
    return MoEDiffModel(**parts)


def _single(family: str, builder: Builder) -> Builder:
    def build(config: Mapping[str, Any]) -> nn.Module:
        if not isinstance(config.get(family), Mapping):
            raise ValueError(f"the section {family!r} is missing")
        return builder(config[family])

    return build


def _build_brainmask(values: Mapping[str, Any]) -> nn.Module:
    from bids_moediff.networks.brain_mask import BrainMaskNet

    return BrainMaskNet(**values)


FAMILIES: dict[str, Builder] = {
    "brainmask": _single("brainmask", _build_brainmask),
    "moediff": build_moediff,
    "student": _single(
        "student",
        _dataclass_builder("families.student.network", "StudentConfig", "StudentNetwork"),
    ),
    "crfm": _single(
        "crfm", _dataclass_builder("families.crfm.network", "CRFMConfig", "CRFMNetwork")
    ),
    "nsmoe": _single(
        "nsmoe", _dataclass_builder("families.nsmoe.network", "NSMoEConfig", "NSMoENetwork")
    ),
}


def resolve(name_or_dir: str | Path) -> Path:
    """Folder of a shipped model's name or of a path; WeightsError says what there is instead."""
    folder = Path(name_or_dir)
    if (folder / CONFIG_NAME).is_file():
        return folder
    known = choice.MODELS_FOLDER / str(name_or_dir)
    if len(folder.parts) == 1 and (known / CONFIG_NAME).is_file():
        return known
    names = ", ".join(available()) or "none"
    raise WeightsError(
        f"no model {str(name_or_dir)!r}: not a folder with {CONFIG_NAME}, "
        f"and the models that come with the package are: {names}"
    )


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Network with fresh weights from a whole config.json; WeightsError if it makes no sense."""
    family = config.get("family")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise WeightsError(f"unknown model family {family!r}; this version knows: {known}")
    try:
        return FAMILIES[str(family)](config)
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
    folder = Path(folder)
    if config.get("family") not in FAMILIES:
        raise WeightsError(f"unknown model family {config.get('family')!r}")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (t.to(torch.float16) if t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in network.state_dict().items()
    }
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    written = dict(config) | {"format": FORMAT_VERSION, "sha256": digest}
    _write_atomically(folder / WEIGHTS_NAME, data)
    _write_atomically(folder / CARD_NAME, card.encode())
    _write_atomically(folder / CONFIG_NAME, (json.dumps(written, indent=2) + "\n").encode())
    return digest


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model folder (a path, or the name of a shipped one) in 32-bit evaluation mode.

    Raises WeightsError for a missing or unreadable file, a checksum that does not match, an
    unknown family, a wrong configuration, and weights of other names or shapes.
    """
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
    network = build_network(config)
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


def _write_atomically(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
