# SPDX-License-Identifier: Apache-2.0
"""The gate is taught alone: what it learns, what stays, and what becomes of it on export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bids_moediff.cli.train import main
from bids_moediff.errors import UsageError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.moediff.training.gate import GateRecipe, GateStage, balanced
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import save_model
from bids_moediff.training.volumes import make_volume
from training_data import heads, pack, tiny

CPU = torch.device("cpu")
SMALL = {"width": 4, "embed_dim": 12, "heads": 2, "context_slices": 3}


def mixture(**changes: object) -> MoEDiffModel:
    torch.manual_seed(0)
    network = MoEDiffSR(MoEDiffConfig(**(SMALL | changes)))  # type: ignore[arg-type]
    return MoEDiffModel(MeanNetwork(MeanConfig(8, 1)), network)


def stage_of(model: MoEDiffModel | None, **settings: object) -> GateStage:
    recipe = tiny("gate", **settings)
    assert isinstance(recipe, GateRecipe)
    return GateStage(recipe, CPU, model)


def test_every_tissue_counts_the_same() -> None:
    tissue = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    tissue[0, 0, :1], tissue[0, 1, 1:], tissue[1, 2, :4] = True, True, True
    weights = balanced(tissue)
    torch.testing.assert_close(weights.sum((0, 2, 3)), torch.full((3,), 128.0))
    assert torch.equal(weights > 0, tissue)
    assert not balanced(torch.zeros(2, 3, 8, 8)).any()


def test_the_gate_sees_what_lies_between_interpolation_and_truth() -> None:
    stage = stage_of(mixture())
    volume = make_volume(heads()[3], stage.recipe, np.random.default_rng(0), CPU, tissue=True)
    shape = volume["target"].shape
    volume |= {"start": torch.zeros(shape).half(), "target": torch.ones(shape).half()}
    batch = stage.batch([volume] * 3, np.random.default_rng(1))
    again = stage.batch([volume] * 3, np.random.default_rng(1))
    many = [stage.batch([volume], np.random.default_rng(k))["image"] for k in range(40)]
    values = torch.stack(many).flatten(1)
    assert (values == values[:, :1]).all()  # one sharpness for a slice
    assert values.min() >= 0 and values.max() <= 1 and values[:, 0].std() > 0.2
    assert torch.equal(batch["image"], again["image"])


def test_the_gate_learns_the_tissues_and_nothing_else_moves() -> None:
    stage = stage_of(mixture(), batch=4, noise_share=0)
    before = {k: v.clone() for k, v in stage.network.state_dict().items()}
    rng = np.random.default_rng(0)
    volumes = [make_volume(heads()[3], stage.recipe, rng, CPU, tissue=True) for _ in range(2)]
    batch = stage.batch(volumes, rng)
    assert batch["valid"].any()
    chosen = [p for p in stage.network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(chosen, 3e-3)
    losses = []
    for step in range(40):
        loss, logs = stage.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(logs["loss"])
    assert losses[-1] < 0.85 * losses[0]
    moved = {k.split(".")[0] for k, v in stage.network.state_dict().items()
             if not torch.equal(v, before[k])}  # fmt: skip
    assert moved == {"tokens", "gating"}


@pytest.mark.parametrize("wrong", ["nothing", "no experts", "one expert", "no mean"])
def test_a_gate_needs_a_mixture(wrong: str) -> None:
    models = {
        "nothing": None,
        "no experts": MoEDiffModel(MeanNetwork(MeanConfig(8, 1)), None),
        "one expert": mixture(experts=("smooth",), diffusion_steps=(500,)),
        "no mean": MoEDiffModel(None, mixture().moediff),
    }
    with pytest.raises(UsageError, match="--init MODEL"):
        stage_of(models[wrong])


def test_the_taught_gate_joins_mean_and_experts_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = {"family": "moediff", "mean": {"channels": 8, "blocks": 1}, "moediff": SMALL}
    save_model(build_network(config), config, tmp_path / "old", "# Old\n")
    words = ["--recipe", "gate", "--smoke", "--steps", 2, "--pack", pack(tmp_path)]
    words += ["--init", tmp_path / "old", "--output", tmp_path / "run", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    old = load_model(tmp_path / "old").network.state_dict()
    new = load_model(tmp_path / "run" / "model")
    changed = {k for k, v in new.network.state_dict().items() if not torch.equal(v, old[k])}
    assert changed and all(k.startswith(("moediff.tokens", "moediff.gating")) for k in changed)
    card = (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    assert "Training: gate" in card and card.count("taken from") == 2
    # The run also joins the runs of mean and experts, whose history the card then tells.
    curves = json.loads((tmp_path / "run" / "model" / "curve.json").read_text())
    assert list(curves) == ["mean", "experts", "gate"]
    # A model with a taught gate can be taken over like any other.
    parts = [str(tmp_path / "run" / "model"), str(tmp_path / "again")]
    assert main(["export", *parts]) == 0
    assert load_model(tmp_path / "again").sha256 == new.sha256
