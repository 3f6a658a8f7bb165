# SPDX-License-Identifier: Apache-2.0
"""From training runs to a model folder: averaged weights, card, curve as picture and JSON.

Runs of different stages are put together: the regression mean and the experts make one moediff
model; a student stands alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bids_moediff import __version__
from bids_moediff.errors import UsageError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.networks.model_folder import CONFIG_NAME, save_model
from bids_moediff.runtime.sink import atomic, write_json
from bids_moediff.training.run_folder import Run, read_run

from .card import model_card
from .state import part

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
SECTIONS["student-told-tail"] = SECTIONS["student"]
SECTIONS["mean-told-tail"] = SECTIONS["mean"]


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
