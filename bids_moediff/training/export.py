# SPDX-License-Identifier: Apache-2.0
"""From training runs to a model folder: averaged weights, card, curve as picture and JSON.

Runs of different stages are put together: the regression mean and the experts make one moediff
model; a student stands alone.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_moediff import __version__
from bids_moediff.errors import UsageError
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.networks.mean import MeanConfig
from bids_moediff.networks.model_folder import CONFIG_NAME, build_network, load_model, save_model
from bids_moediff.runtime.sink import atomic, write_json

from .card import model_card
from .state import BEST_NAME, STATE_NAME, part, read_state

# Which section of config.json a stage fills, and the family it belongs to.
SECTIONS = {"mean": ("moediff", "mean"), "experts": ("moediff", "moediff")}
# The gate is taught in the whole mixture, which takes the place of the experts' run.
SECTIONS["gate"] = ("moediff", "moediff")
SECTIONS["autoencoder"] = ("moediff", "autoencoder")
SECTIONS["student"] = ("student", "student")
# Taught to a finished network, in whose place they come.
SECTIONS["lesions"] = SECTIONS["mean"]
SECTIONS["student-lesions"] = SECTIONS["student"]
SECTIONS["student-tail"] = SECTIONS["student"]


@dataclass(frozen=True)
class Run:
    """One finished or stopped training: stage, network settings, averaged weights, record."""

    stage: str
    network: dict[str, Any]
    weights: dict[str, torch.Tensor]
    record: dict[str, Any]
    curve: list[dict[str, Any]]


def _network(record: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Settings of the network; early runs wrote them into the recipe only."""
    if "network" in record:
        return dict(record["network"])
    recipe = record["recipe"]
    if stage == "mean":
        return MeanConfig(recipe["channels"], recipe["blocks"]).to_dict()
    return MoEDiffConfig(
        width=recipe["width"],
        experts=tuple(recipe["experts"]),
        diffusion_steps=tuple(recipe["diffusion_steps"]),
    ).to_dict()


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Validation rows of a run, oldest first; a torn last line is left out."""
    path = folder / "curve.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_run(folder: Path) -> Run:
    """Averaged weights and record of a run folder.

    The weights of the best validation are taken where the run kept them (best.safetensors), the
    last ones otherwise. UsageError for a folder without a readable state.
    """
    best = folder / BEST_NAME
    path = best if best.is_file() else folder / STATE_NAME
    if not path.is_file():
        raise UsageError(f"{folder} is no training run: it holds no {STATE_NAME}.")
    tensors, record = read_state(path)
    weights = part(tensors, "average.")
    stage = record.get("stage") or ("mean" if "channels" in record["recipe"] else "experts")
    return Run(stage, _network(record, stage), weights, record, read_curve(folder))


def _parts(folder: Path, replaced: Sequence[str]) -> list[Run]:
    """Stages of a finished moediff model, without those that are replaced."""
    model = load_model(folder)
    runs = []
    # A gate comes on top of the experts, whose history is kept.
    taken = {SECTIONS[stage] for stage in replaced if stage != "gate"}
    for stage, (family, section) in SECTIONS.items():
        there = model.config.get("family") == family and section in model.config
        if (family, section) in taken or not there:
            continue
        taken.add((family, section))
        weights = part(model.network.state_dict(), f"{section}.")
        origin = {"taken from": f"{model.name}, SHA-256 {model.sha256}"}
        record = {"step": 0, "seconds": 0.0, "recipe": origin}
        runs.append(Run(stage, model.config[section], weights, record, []))
    return runs


def hardware() -> str:
    """The machine in plain words: the accelerator's or the processor's model, never its name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{len(os.sched_getaffinity(0))} cores of a {model}"


def _compose(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Sections of config.json and the state of the whole network."""
    stages = [run.stage for run in runs]
    families = {SECTIONS[stage][0] for stage in stages}
    if len(families) != 1 or len(set(stages)) != len(stages):
        raise UsageError(
            f"Runs of the stages {', '.join(stages)} do not make one model: give one run of mean, "
            "of experts, of gate, or of several of these; or one run of student."
        )
    config: dict[str, Any] = {"family": families.pop(), "version": __version__}
    state: dict[str, torch.Tensor] = {}
    for run in runs:
        section = SECTIONS[run.stage][1]
        config[section] = run.network
        prefix = f"{section}." if config["family"] == "moediff" else ""
        state |= {prefix + name: value for name, value in run.weights.items()}
    return config, state


def _has_experts(runs: Sequence[Run]) -> bool:
    return any(run.stage in ("experts", "gate") for run in runs)


def export(
    folders: Sequence[Path], model_dir: Path, *, pack: Path | None = None, machine: str = ""
) -> str:
    """Write a model folder from training runs and return the SHA-256 of its weights.

    Parameters
    ----------
    folders
        Run folders, one for each stage; of a model folder the stages that are not trained anew.
    model_dir
        Gets config.json, model.safetensors, MODEL_CARD.md, curve.json and curve.png.
    pack
        Training pack, for runs that did not record its hash.
    machine
        What the training ran on, for runs that did not record it.

    Raises
    ------
    UsageError
        for a folder without a run, and for stages that do not go together.
    """
    order = list(SECTIONS)
    models = [folder for folder in folders if (folder / CONFIG_NAME).is_file()]
    runs = [read_run(folder) for folder in folders if folder not in models]
    for folder in models:
        runs += _parts(folder, [run.stage for run in runs])
    runs.sort(key=lambda run: order.index(run.stage))
    # Experts hold the autoencoder that they were trained with.
    composed = [run for run in runs if run.stage != "autoencoder"] if _has_experts(runs) else runs
    config, state = _compose(composed)
    network = build_network(config)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The weights do not fit the recorded network: {reason}") from error
    digest = hashlib.sha256(pack.read_bytes()).hexdigest() if pack else ""
    for run in runs:
        run.record.setdefault("hardware", machine or "not recorded")
        run.record.setdefault("data", {"sha256": digest or "not recorded"})
    curves = {run.stage: run.curve for run in runs}
    write_json(curves, model_dir / "curve.json")
    draw_curves(curves, model_dir / "curve.png")
    return save_model(network, config, model_dir, model_card(config, network, runs))


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Loss and validation gain of each stage against the step, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = {stage: rows for stage, rows in curves.items() if rows} or curves
    figure = Figure(figsize=(9, 3 * len(curves)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(curves), 2, squeeze=False)
    for (left, right), (stage, rows) in zip(axes, curves.items(), strict=True):
        steps = [row["step"] for row in rows]
        left.plot(steps, [row.get("loss", row.get("losses", {}).get("loss")) for row in rows], "k")
        left.set(title=f"{stage}: training loss", xlabel="step", yscale="log")
        for protocol in rows[-1]["gains"] if rows else ():
            gains = [row["gains"].get(protocol, {}).get("over_cubic") for row in rows]
            right.plot(steps, gains, label=protocol)
        right.set(title="validation heads: gain over cubic (dB)", xlabel="step")
        if rows:
            right.legend(fontsize="small")
    with atomic(path) as stream:
        figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
