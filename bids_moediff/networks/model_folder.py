# SPDX-License-Identifier: Apache-2.0
"""Read and write model folders: config.json, model.safetensors and MODEL_CARD.md. Never a pickle.

Weights are stored as 16-bit floats and loaded as 32-bit. Their SHA-256 is in config.json and is
checked on loading. The builder of a family makes the network (families/load.py). Torch is imported
only to read or write weights, since the command line asks for names and configurations first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.errors import WeightsError
from bids_moediff.runtime.sink import write_bytes
from bids_moediff.runtime.text import one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bids_moediff.networks.scale_file import ScaleHead

CONFIG_NAME = "config.json"
MODELS_FOLDER = Path(__file__).resolve().parents[1] / "data" / "models"
HELPERS = frozenset({"brainmask"})  # shipped for preparation: no choice of --model


WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "MODEL_CARD.md"
# Of the shipped networks, made by tools/weight_sums.py; of a folder, made by save_model.
SUMS_NAME = "SHA256SUMS"
WRITTEN_BY = f"# bids_moediff {__version__}"
CALIBRATION_NAME = "calibration.json"  # how large the error of a result is; may be absent
BOUNDS_NAME = "bounds.json"  # what bounds the error of most heads; may be absent
FORMAT_VERSION = 1
MOST_WEIGHTS, MOST_CONFIG = 4 << 30, 4 << 20  # bytes
LARGEST_NUMBER = 1_000_000  # in a configuration; seeds and steps of training are noted elsewhere

Builder = Callable[[Mapping[str, Any]], "nn.Module"]


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, its config.json, the SHA-256 of its weights, its name.

    ``calibration`` and ``bounds`` are the content of calibration.json and bounds.json, empty if
    absent. ``scale`` is its scale head, if it has one. ``integer_loss`` is the loss by 8-bit
    arithmetic, in dB.
    """

    network: nn.Module
    config: dict[str, Any]
    sha256: str
    name: str
    calibration: dict[str, Any] = field(default_factory=dict)
    scale: ScaleHead | None = None
    bounds: dict[str, Any] = field(default_factory=dict)
    integer_loss: float = math.inf


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the part of config.json that holds a network's settings; ValueError if absent."""
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
    """Return the brain mask network; WeightsError for any other."""
    return build(config, BRAIN_MASK)


def resolve(name_or_dir: str | Path) -> Path:
    """Return the folder of a shipped model's name or of a path.

    A path has a separator: a folder in the working directory never replaces a shipped model.

    Raises
    ------
    WeightsError
        If there is no such folder; the message names the models there are.
    """
    folder = _folder_of(name_or_dir)
    if (folder / CONFIG_NAME).is_file():
        return folder
    names = ", ".join(available()) or "none"
    found = "has no" if folder.is_dir() else "is not a folder with"
    raise WeightsError(
        f"There is no model {str(name_or_dir)!r}: it {found} {CONFIG_NAME}. Models that come with "
        f"the package: {names}."
    )


def build(config: Mapping[str, Any], builders: Mapping[str, Builder]) -> nn.Module:
    """Build a network with fresh weights from a whole config.json.

    Raises
    ------
    WeightsError
        For an invalid configuration.
    """
    family = config.get("family")
    if not isinstance(family, str) or family not in builders:
        known = ", ".join(sorted(builders))
        raise WeightsError(f"unknown model family {family!r}; this version knows: {known}")
    try:
        return builders[str(family)](config)
    except Exception as error:  # the configuration is a file of others: any number may be in it
        reason = one_line(error, 300)
        raise WeightsError(
            f"the configuration of the {family} model is wrong: {reason}"
        ) from error


def save_model(
    network: nn.Module, config: Mapping[str, Any], folder: str | Path, card: str
) -> str:
    """Write a model folder and return the SHA-256 of the weights.

    ``config`` holds "family" and its sections, ``card`` the text of MODEL_CARD.md. Weights are
    written first and config.json last, each atomically, so an interrupted save never looks like a
    model. The config.json of an earlier save is overwritten. SHA256SUMS is for
    :func:`is_as_written`.
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
    content = (json.dumps(written, indent=2) + "\n").encode()
    sums = [f"{hashlib.sha256(content).hexdigest()}  {CONFIG_NAME}", f"{digest}  {WEIGHTS_NAME}"]
    write_bytes(data, folder / WEIGHTS_NAME)
    write_bytes(card.encode(), folder / CARD_NAME)
    write_bytes("\n".join([WRITTEN_BY, *sums, ""]).encode(), folder / SUMS_NAME)
    write_bytes(content, folder / CONFIG_NAME)
    return digest


def read_model(
    name_or_dir: str | Path, builder: Builder, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Read a model in 32 bits, ready for evaluation.

    Parameters
    ----------
    name_or_dir
        Name of a shipped model, or a model folder.
    builder
        Builds the network from config.json.
    device
        Where the weights are kept.

    Raises
    ------
    WeightsError
        For a missing or unreadable file, a checksum that does not match, an unknown family, a
        wrong configuration, and weights of other names or shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from bids_moediff.networks.scale_file import read_scale

    folder = resolve(name_or_dir)
    config = _read_config(folder / CONFIG_NAME)
    if config.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise WeightsError(
            f"{folder} has the format {str(config['format'])[:20]!r}; this version reads "
            f"{FORMAT_VERSION}: update bids_moediff"
        )
    weights = folder / WEIGHTS_NAME
    data = _read_bytes(weights, MOST_WEIGHTS)
    digest = hashlib.sha256(data).hexdigest()
    if digest != config.get("sha256"):
        raise WeightsError(
            f"{weights} does not match the checksum in {CONFIG_NAME} "
            f"(expected {str(config.get('sha256'))[:64]}, found {digest})"
        )
    try:
        tensors = load(data)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"{weights} is not a safetensors file: {one_line(error, 300)}"
        ) from error
    check_size(builder, config, tensors)
    network = builder(config)
    try:
        floats = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        network.load_state_dict(floats, strict=True)
    except RuntimeError as error:
        reason = one_line(error, 300)
        raise WeightsError(f"{weights} does not fit its configuration: {reason}") from error
    if not all(bool(t.isfinite().all()) for t in floats.values()):
        raise WeightsError(f"{weights} has values that are not finite numbers")
    ready = network.to(device).eval()
    scale = read_scale(folder, device)
    known, bounds = (_read_if_there(folder / name) for name in (CALIBRATION_NAME, BOUNDS_NAME))
    return LoadedModel(ready, config, digest, folder.resolve().name, known, scale, bounds)


def _read_if_there(path: Path) -> dict[str, Any]:
    return _read_config(path) if path.is_file() else {}


def check_size(builder: Builder, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Check that a configuration asks for a network no larger than the weights.

    The network is built without memory, and the build stops at the first parameter too many: a
    configuration may ask for 10^9 layers, which would take all memory before the weights could be
    compared.

    Raises
    ------
    WeightsError
        For a larger network, or an invalid configuration.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.overrides import TorchFunctionMode

    if _largest_number(config) > LARGEST_NUMBER:
        raise WeightsError(f"the configuration has a number above {LARGEST_NUMBER:,}")
    # Networks hold a few parameters twice where one part stands for another.
    left = [2 * len(tensors) + 100, 2 * sum(tensor.numel() for tensor in tensors.values()) + 10**6]

    def count(_module: Any, _name: str, parameter: Any) -> None:
        left[0] -= 1
        left[1] -= 0 if parameter is None else parameter.numel()
        if min(left) < 0:
            raise ValueError("it asks for a larger network than the weights fill")

    hook = register_module_parameter_registration_hook(count)
    random = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_")

    class Unfilled(TorchFunctionMode):
        """No random numbers: without memory they would load torch's compiler, which takes 1 s."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            named = kwargs or {}
            if func.__name__ in random:
                return args[0] if args else named["tensor"]
            return func(*args, **named)

    try:
        with torch.device("meta"), Unfilled():
            builder(config)
    finally:
        hook.remove()


def _largest_number(value: Any) -> float:
    """Return the largest number in a configuration, or the length of a longer list in it."""
    if isinstance(value, Mapping):
        return max(map(_largest_number, value.values()), default=0)
    if isinstance(value, (list, tuple)):
        return max(len(value), max(map(_largest_number, value), default=0))
    return abs(value) if isinstance(value, (int, float)) else 0


def _read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; WeightsError otherwise."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path} is not a regular file")
        if status.st_size > most:
            raise WeightsError(
                f"{path} has {status.st_size:,} bytes, more than any model ({most:,})"
            )
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read_bytes(path, MOST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"cannot read {path}: {one_line(error, 200)}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must be a JSON object")
    return config


def is_as_shipped(name_or_dir: str | Path) -> bool:
    """Return True if a shipped model and all that it may load are the files that were tested.

    They need not be loaded to know that they can be: reading them takes 0.1 s, and importing
    torch more than a second. The folder has a list in the format of ``sha256sum``.

    Parameters
    ----------
    name_or_dir
        Name of a shipped model, or a model folder. Of a folder nothing is known.
    """
    sums = MODELS_FOLDER / SUMS_NAME
    try:
        pairs = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines()]
        listed = {name: digest for digest, name in pairs}
        return f"{name_or_dir}/{CONFIG_NAME}" in listed and all(
            hashlib.sha256(_read_bytes(MODELS_FOLDER / name, MOST_WEIGHTS)).hexdigest() == digest
            for name, digest in listed.items()
        )
    except (OSError, ValueError, WeightsError):
        return False


def is_as_written(folder: str | Path) -> bool:
    """Return True if this version of the app wrote all files of a model folder but the card.

    What was written from a network need not be loaded to know that it can be.
    """
    folder = Path(folder)
    try:
        first, *lines = (folder / SUMS_NAME).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
        there = {path.name for path in folder.iterdir()} - {SUMS_NAME, CARD_NAME}
        return (first, there) == (WRITTEN_BY, set(listed)) and all(
            hashlib.sha256(_read_bytes(folder / name, MOST_WEIGHTS)).hexdigest() == digest
            for name, digest in listed.items()
        )
    except (OSError, ValueError, WeightsError):
        return False


def available() -> list[str]:
    """Return the names of the super-resolution models that come with the package."""
    if not MODELS_FOLDER.is_dir():
        return []
    folders = (p for p in MODELS_FOLDER.iterdir() if (p / CONFIG_NAME).is_file())
    return sorted(p.name for p in folders if p.name not in HELPERS)


def read_config(name_or_dir: str | Path) -> dict[str, Any]:
    """Return config.json of a shipped model's name or of a folder; empty if it cannot be read."""
    try:
        return _read_config(_folder_of(name_or_dir) / CONFIG_NAME)
    except WeightsError:
        return {}


def _folder_of(name_or_dir: str | Path) -> Path:
    is_path = os.sep in str(name_or_dir)
    return Path(name_or_dir) if is_path else MODELS_FOLDER / str(name_or_dir)
