# SPDX-License-Identifier: Apache-2.0
"""Load a model of any family by its name or folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_moediff.errors import UsageError
from bids_moediff.families import OWN, family
from bids_moediff.networks.composite import Composite
from bids_moediff.networks.int8 import RANGES_NAME, multiplies_integers, read_integers
from bids_moediff.networks.model_folder import (
    BRAIN_MASK,
    CONFIG_NAME,
    LoadedModel,
    build,
    read_model,
    resolve,
)
from bids_moediff.networks.precision import INT8, floating
from bids_moediff.training.run_folder import read_run

from .choice import check_restores
from .protocol import Restorer

MOST_LOST = 0.02  # dB


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    config
        Whole content of a config.json.

    Raises
    ------
    WeightsError
        For an unknown family or invalid settings.
    """
    name = str(config.get("family"))
    return build(config, BRAIN_MASK if name in BRAIN_MASK else {name: family(name).build})


def load_model(name_or_dir: str | Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Read a model in 32 bits, ready for evaluation.

    Parameters
    ----------
    name_or_dir
        Name of a shipped model, or a model folder.
    device
        Where the weights are kept.

    Raises
    ------
    WeightsError
        For a missing or unreadable file, a checksum that does not match, an unknown family, a
        wrong configuration, and weights of other names or shapes.
    """
    model = read_model(name_or_dir, build_network, device)
    integers = read_integers(resolve(name_or_dir), model.sha256)
    for part in model.network.modules():
        if hasattr(part, "int8_ranges"):
            part.int8_ranges = integers.ranges  # type: ignore[assignment]
    kind = str(model.config["family"])
    complete = None if kind in BRAIN_MASK else family(kind).complete
    if complete is not None:
        complete(model.network, resolve(name_or_dir), device)
    return replace(model, integer_loss=integers.loss)


def fastest_precision(model: LoadedModel, device: torch.device) -> str:
    """Return the fastest arithmetic of a device that loses at most ``MOST_LOST`` dB.

    8-bit integers take two thirds of the time of bfloat16 with AMX, and a quarter of that of 32
    bits with VNNI (docs/speed.md).
    """
    if device.type != "cpu":
        return "bf16"
    if model.integer_loss <= MOST_LOST and has_integers(model) and multiplies_integers():
        return INT8
    return floating(INT8)


def make_restorer(model: LoadedModel, device: torch.device, precision: str) -> Restorer:
    """Return the restorer of a model.

    Parameters
    ----------
    model
        As :func:`load_model` reads it.
    device
        Where it runs.
    precision
        ``"auto"`` or a key of ``PRECISIONS``.

    Raises
    ------
    WeightsError
        If models of this family cannot restore images.
    """
    check_restores(model.config, model.name)
    make = family(model.config["family"]).restorer
    assert make is not None
    if precision == INT8:
        check_integers(model, device)
    return make(model.network, device, precision)


def has_integers(model: LoadedModel) -> bool:
    """Return True if the model folder has the file that ``--precision int8`` needs."""
    return any(getattr(part, "int8_ranges", ()) for part in model.network.modules())


def check_integers(model: LoadedModel, device: torch.device) -> None:
    """Raise UsageError if ``--precision int8`` cannot run."""
    reason = ""
    if device.type != "cpu":
        reason = "runs on processors only"
    elif not has_integers(model):
        reason = f"needs {RANGES_NAME} in the model folder, and {model.name} has none"
    elif not multiplies_integers():
        reason = "needs a processor with VNNI or AMX instructions"
    if reason:
        raise UsageError(f"--precision int8 {reason}; leave the option out.")


Parts = Mapping[str, nn.Module]


def init_parts(init: Path | Sequence[Path] | Composite | None) -> dict[str, nn.Module]:
    """Return the networks that a training starts from, by the section of their settings.

    Parameters
    ----------
    init
        Models (by name or folder) and runs of earlier stages, or a loaded model. Of two networks
        of one section the later one counts.
    """
    if isinstance(init, Composite):
        return dict(init.named_children())
    paths = [init] if isinstance(init, Path) else list(init or ())
    return {name: part for path in paths for name, part in _parts_of(path).items()}


def _parts_of(path: Path) -> dict[str, nn.Module]:
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        run = read_run(path)
        if not run.begins_others:
            raise UsageError(
                f"{path} is a run of {run.stage}; --init takes models, and runs of a mean or of "
                "an autoencoder."
            )
        network = family(run.family).build({"family": run.family, run.section: run.network})
        parts = _sections(network, run.section)
        parts[run.section].load_state_dict(run.weights)
        return parts
    model = load_model(path)
    return _sections(model.network, str(model.config["family"]))


def _sections(network: nn.Module, name: str) -> dict[str, nn.Module]:
    """Return the parts of a composite; any other network is its own part."""
    if isinstance(network, Composite):
        return dict(network.named_children())
    return {name: network}


def compose(parts: Parts, device: torch.device, precision: str) -> Restorer | None:
    """Return a restorer made of these parts, or None if no family combines them."""
    for name in OWN:
        kind = family(name)
        if kind.compose is not None and kind.restorer is not None:
            network = kind.compose(parts).to(device).eval().requires_grad_(False)
            return kind.restorer(network, device, precision)
    return None
