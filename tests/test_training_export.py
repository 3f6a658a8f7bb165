# SPDX-License-Identifier: Apache-2.0
"""Model folders made from training runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bids_moediff.cli.train import main
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.training.state import WeightAverage, save_state

MEAN = MeanConfig(channels=8, blocks=2)
STUDENT = StudentConfig(8, 2, (4, 4, 4, 4))
GAINS = {"x2 isotropic": {"over_cubic": 1.25, "over_consistent": 0.5}}


def _run(folder: Path, network: nn.Module, record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Write a run whose average differs from its weights; returns the average."""
    torch.manual_seed(3)
    average = WeightAverage(network)
    for value in average.values.values():
        if value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value))
    optimiser = torch.optim.AdamW(network.parameters())
    save_state(folder, network, average, optimiser, {"step": 7, "seconds": 1800.0} | record)
    (folder / "curve.jsonl").write_text(
        json.dumps({"step": 5, "loss": 0.2, "gains": GAINS}) + '\n{"step": 6, "lo'
    )
    return average.values


def _record(stage: str, section: str, network: dict[str, Any], **more: Any) -> dict[str, Any]:
    family = "student" if section == "student" else "moediff"
    places = {"stage": stage, "family": family, "section": section, "network": network}
    return {**places, "recipe": {"steps": 7}, **more}


def _both(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Runs of mean and experts."""
    config = MoEDiffConfig(width=8)
    return (
        _run(folder / "mean", MeanNetwork(MEAN), _record("mean", "mean", MEAN.to_dict())),
        _run(
            folder / "experts",
            MoEDiffSR(config),
            _record("experts", "moediff", config.to_dict()),
        ),
    )


def test_mean_and_experts_make_one_model(tmp_path: Path) -> None:
    mean, experts = _both(tmp_path)
    runs = [str(tmp_path / "experts"), str(tmp_path / "mean")]
    assert main(["export", *runs, str(tmp_path / "m"), "--hardware", "a slide rule"]) == 0
    loaded = load_model(tmp_path / "m")
    for prefix, values in (("mean", mean), ("moediff", experts)):
        part = getattr(loaded.network, prefix).state_dict()
        assert part.keys() == values.keys()
        for name, value in values.items():
            expected = value.half().float() if value.is_floating_point() else value
            assert torch.equal(part[name], expected), name
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    for words in ("a slide rule", "0.50", "+1.25", "Training: mean", "Training: experts"):
        assert words in card
    curve = json.loads((tmp_path / "m" / "curve.json").read_text())
    assert curve["mean"] == [{"step": 5, "loss": 0.2, "gains": GAINS}]
    assert (tmp_path / "m" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_weights_win_over_the_last(tmp_path: Path) -> None:
    record = _record(
        "student",
        "student",
        STUDENT.to_dict(),
        hardware="an abacus",
        data={"sha256": "0123", "training": ["uih_s1_T1w"], "validation": ["skyra_child_T1w"]},
    )
    run = tmp_path / "student"
    _run(run, StudentNetwork(STUDENT), record)
    best = StudentNetwork(STUDENT)
    nn.init.constant_(best.head.bias, 0.25)
    save_state(
        tmp_path / "other", best, WeightAverage(best), torch.optim.AdamW(best.parameters()),
        record | {"step": 3, "seconds": 1.0},
    )  # fmt: skip
    (tmp_path / "other" / "state.safetensors").rename(run / "best.safetensors")
    assert main(["export", str(run), str(tmp_path / "m")]) == 0
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded.network.head.bias, torch.full((8,), 0.25))  # type: ignore[union-attr]
    assert loaded.config["student"]["ranks"] == [4, 4, 4, 4]
    card = (tmp_path / "m" / "MODEL_CARD.md").read_text()
    assert "0123" in card
    assert "uMR 770" in card and "Skyra" in card  # whose heads trained and steered it


@pytest.mark.parametrize("wrong", ["empty", "twice", "torn", "early"])
def test_wrong_runs_are_refused(
    tmp_path: Path, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = _record("mean", "mean", MEAN.to_dict())
    if wrong == "early":  # what the first versions wrote
        mean = {"recipe": {"channels": 8, "blocks": 2, "steps": 7}}
    _run(tmp_path / "mean", MeanNetwork(MEAN), mean)
    runs = [tmp_path / "mean"]
    if wrong == "empty":
        runs = [tmp_path]
    elif wrong == "twice":
        runs *= 2
    elif wrong == "torn":
        state = tmp_path / "mean" / "state.safetensors"
        state.write_bytes(state.read_bytes()[:1000])
    assert main(["export", *map(str, runs), str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("bids_moediff-train: ") and error.count("\n") == 1
    assert not (tmp_path / "m").exists()
