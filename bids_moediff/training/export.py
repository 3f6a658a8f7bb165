# SPDX-License-Identifier: Apache-2.0
"""Turn training runs into a model folder: averaged weights, card, curve as picture and JSON.

Runs of different stages are combined: the regression network and the experts make one moediff
model; a student is a model by itself.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bids_moediff import __version__
from bids_moediff.errors import UsageError
from bids_moediff.networks.composite import Composite
from bids_moediff.networks.model_folder import CONFIG_NAME, read_model, save_model
from bids_moediff.runtime.sink import atomic, write_json
from bids_moediff.training.run_folder import Run, read_run

from .card import model_card
from .catalogue import Catalogue
from .state import part


def _parts(folder: Path, replaced: Sequence[Run], catalogue: Catalogue) -> list[Run]:
    """Stages of a finished model, without those that are replaced."""
    model = read_model(folder, catalogue.build)
    runs = []
    # What comes on top of another stage keeps that stage's history.
    taken = {
        (run.family, run.section) for run in replaced if not catalogue.stages[run.stage].on_top
    }
    for stage, entry in catalogue.stages.items():
        place = (entry.family, entry.section)
        there = model.config.get("family") == entry.family and entry.section in model.config
        if place in taken or not there:
            continue
        taken.add(place)
        weights = model.network.state_dict()
        if isinstance(model.network, Composite):
            weights = part(weights, f"{entry.section}.")
        origin = {"taken from": f"{model.name}, SHA-256 {model.sha256}"}
        record = {"step": 0, "seconds": 0.0, "recipe": origin}
        settings = model.config[entry.section]
        runs.append(Run(stage, *place, False, settings, weights, record, []))
    return runs


def _compose(runs: Sequence[Run]) -> dict[str, Any]:
    """config.json of the whole network."""
    stages = [run.stage for run in runs]
    families = {run.family for run in runs}
    if len(families) != 1 or len(set(stages)) != len(stages):
        raise UsageError(
            f"Runs of the stages {', '.join(stages)} do not make one model: give one run of mean, "
            "of experts, of gate, or of several of these; or one run of student."
        )
    return {
        "family": families.pop(),
        "version": __version__,
        **{run.section: run.network for run in runs},
    }


def _load(network: nn.Module, runs: Sequence[Run]) -> None:
    """Put the weights of the runs into the whole network."""
    state: dict[str, torch.Tensor] = {}
    for run in runs:
        prefix = f"{run.section}." if isinstance(network, Composite) else ""
        state |= {prefix + name: value for name, value in run.weights.items()}
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The weights do not fit the recorded network: {reason}") from error


def export(
    folders: Sequence[Path],
    model_dir: Path,
    catalogue: Catalogue,
    *,
    pack: Path | None = None,
    machine: str = "",
) -> str:
    """Write a model folder from training runs and return the SHA-256 of its weights.

    Parameters
    ----------
    folders
        Run folders, one for each stage; a model folder gives the stages that are not trained
        again.
    model_dir
        Gets config.json, model.safetensors, MODEL_CARD.md, curve.json and curve.png.
    catalogue
        The available stages.
    pack
        Training pack, for runs that did not record its hash.
    machine
        Machine of the training, for runs that did not record it.

    Raises
    ------
    UsageError
        For a folder without a run, and for stages that cannot be combined.
    """
    order = list(catalogue.stages)
    models = [folder for folder in folders if (folder / CONFIG_NAME).is_file()]
    runs = [read_run(folder) for folder in folders if folder not in models]
    for folder in models:
        runs += _parts(folder, runs, catalogue)
    runs.sort(key=lambda run: order.index(run.stage))
    sections = {run.section for run in runs}
    composed = [r for r in runs if catalogue.stages[r.stage].held_by not in sections]
    config = _compose(composed)
    network = catalogue.build(config)
    _load(network, composed)
    digest = hashlib.sha256(pack.read_bytes()).hexdigest() if pack else ""
    for run in runs:
        run.record.setdefault("hardware", machine or "not recorded")
        run.record.setdefault("data", {"sha256": digest or "not recorded"})
    curves = {run.stage: run.curve for run in runs}
    write_json(curves, model_dir / "curve.json")
    draw_curves(curves, model_dir / "curve.png")
    card = model_card(config, network, runs, catalogue.card_text(config["family"]))
    return save_model(network, config, model_dir, card)


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
