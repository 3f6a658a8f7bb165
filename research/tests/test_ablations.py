# SPDX-License-Identifier: Apache-2.0
"""The ablation command on generated heads and untrained models."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.errors import UsageError
from bids_moediff.evaluation.benchmark import Method
from bids_moediff.evaluation.truth import RIM, Block, TruthHead
from bids_moediff.families.load import build_network
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.networks.mean import MeanConfig
from bids_moediff.networks.model_folder import save_model
from conftest import ROOT
from generated import head
from research.ablations.arms import (
    QUESTIONS,
    VARIANTS,
    Arm,
    choose,
    equal_gates,
    summarise,
)
from research.ablations.page import findings, gate_lines, page
from research.ablations.tissue import HeadMass, Verdict
from training_data import pack

TINY = {"width": 4, "embed_dim": 8, "heads": 2, "context_slices": 3, "kappa": 0.5}


def model(folder: Path, **changes: object) -> Path:
    """Model folder whose experts and mean change their input a little."""
    torch.manual_seed(1)
    config = {
        "family": "moediff",
        "version": "random",
        "mean": MeanConfig(4, 1).to_dict(),
        "moediff": MoEDiffConfig(**{**TINY, **changes}).to_dict(),  # type: ignore[arg-type]
    }
    network = build_network(config)
    for name, parameter in network.named_parameters():
        if not parameter.any() and "autoencoder" not in name:
            torch.nn.init.normal_(parameter, std=0.02)
    save_model(network, config, folder, "# A model of random weights for tests\n")
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    path = tmp_path_factory.mktemp("heads") / "b_T2w.nii.gz"
    nib.save(head((56, 60, 52), (3.0, 3.0, 3.2), 0), path)
    return [path]


def run_command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "research.ablations.command", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a mixture ("tiny") and a single expert ("one")."""
    base = tmp_path_factory.mktemp("ablations")
    model(base / "tiny")
    model(base / "one", experts=("smooth",), diffusion_steps=(500,), width=6)
    return base


@pytest.fixture(scope="module")
def table(heads: list[Path], models: Path) -> Path:
    base, moediff, single = models, models / "tiny", models / "one"
    arguments = [base / "out", "--heads", *heads, "--model", moediff]
    arguments += ["--models", f"experts-single={single}", f"mine={single}", "--block", 48]
    arguments += ["--protocols", "x2iso-kspace", "--samples", 2, "--precision", "fp32"]
    run = run_command(*arguments, cwd=base)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("# Ablations")
    return base


def test_one_table_holds_every_question(table: Path) -> None:
    rows = read(table / "out" / "ablations.tsv")
    questions = list(dict.fromkeys(row["question"] for row in rows))
    assert questions == [
        "mixture", "gate", "latent", "start", "steps (noise 1)", "noise (4 steps)",
        "data consistency", "slices", "samples", "other models",
    ]  # fmt: skip
    given = {row["setting"]: row for row in rows if row["psnr"] != "n/a"}
    missing = {row["setting"] for row in rows if row["method"] == "n/a"}
    expected = {v.setting for name, v in VARIANTS.items() if name != "experts-single"}
    assert missing == expected and "mine" in given
    assert all(row["rows"] == "1" for row in given.values())
    page = (table / "out" / "ablations.md").read_text()
    assert page.count("| not given |") == len(expected)
    assert str(table) not in page and "experts-single=FOLDER" in page
    assert "b_T2w: left out, tissues are known of T1-weighted heads only" in page


def test_the_gates_alone_are_those_of_the_page(table: Path, heads: list[Path]) -> None:
    arguments = [table / "gates", "--heads", *heads, "--model", table / "tiny"]
    arguments += ["--block", 48, "--protocols", "x2iso-kspace", "--precision", "fp32"]
    run = run_command(*arguments, "--gates-only", cwd=table)
    assert run.returncode == 0, run.stderr
    found = (table / "gates" / "gates.md").read_text()
    page = (table / "out" / "ablations.md").read_text()
    title = "## Gate mass per tissue"
    assert found[found.index(title) :] == page[page.index(title) :]
    assert "--gates-only" in found and not (table / "gates" / "rows.tsv").exists()


def test_every_setting_does_something(table: Path) -> None:
    rows = read(table / "out" / "rows.tsv")
    entries = {
        (row["question"], row["setting"]): row for row in read(table / "out" / "ablations.tsv")
    }
    default = entries[("mixture", "default: three experts on the mean")]
    assert float(default["over_reference"]) == 0
    noisy = [entries[("steps (noise 1)", count)]["psnr"] for count in "1248"]
    assert len({*noisy, default["psnr"]}) == 5
    for (question, setting), row in entries.items():
        if row["psnr"] != "n/a":
            leaves = float(row["worst_residual"]) > 1e-3
            assert leaves == setting.endswith("off"), (question, setting)
    # The same row under two questions is computed once.
    assert entries[("samples", "one")]["psnr"] == entries[("steps (noise 1)", "4")]["psnr"]
    assert len(rows) == len({tuple(row.values())[:7] for row in rows})


def test_differences_are_paired_with_the_default() -> None:
    """The mean over rows that both have, whatever the level of the heads."""

    def row(name: str, protocol: str, method: str, version: str, psnr: float) -> dict[str, object]:
        figures = dict.fromkeys(("band_correlation", "band_power", "seconds", "residual"), 0.0)
        found = {"head": name, "protocol": protocol, "method": method, "version": version}
        return found | figures | {"psnr": psnr, "flicker": 1 + psnr / 1000}

    def restore(task: object) -> np.ndarray:
        raise AssertionError("nothing is computed here")

    arms = [
        Arm("mixture", "default", Method("m", "1", restore)),
        Arm("gate", "other", Method("m", "2", restore)),
        Arm("gate", "missing", None),
        Arm("gate", "broken", Method("m", "3", restore)),
    ]
    rows = []
    levels = {("a", "x2"): (30, 31.0), ("b", "x2"): (25, 24.5), ("a", "x4"): (20, 20.1)}
    for (name, protocol), (default, other) in levels.items():
        rows += [row(name, protocol, "cubic", "1", default - 2)]
        rows += [row(name, protocol, "back-projection", "1", default - 1)]
        rows += [row(name, protocol, "m", "1", default), row(name, protocol, "m", "2", other)]
    rows += [row("c", "x2", "m", "2", 90.0)]  # without a partner
    default, other, missing, broken = summarise(arms, rows)
    assert other["rows"] == 3 and other["over_reference"] == pytest.approx((1 - 0.5 + 0.1) / 3)
    assert other["worst_over_reference"] == pytest.approx(-0.5)
    assert other["by_protocol"] == "x2:+0.250 x4:+0.100"
    assert other["over_cubic"] == pytest.approx(2.2) and default["over_back_projection"] == 1
    assert other["worst_flicker"] == pytest.approx(1.031)
    assert "method" not in missing and "psnr" not in broken
    lines = page([default, other, missing, broken], [], [])
    assert (
        "| gate | missing | not given |" in lines and "| gate | broken | not computed |" in lines
    )


def test_questions_can_be_chosen() -> None:
    arms = [Arm(question, "x", None) for question in QUESTIONS]
    assert choose(arms, None) == arms
    assert [arm.question for arm in choose(arms, ["noise (", "gate"])] == [
        "mixture", "gate", "noise (4 steps)",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="'gates' is part of none"):
        choose(arms, ["gates"])


def test_finished_rows_are_kept(table: Path, heads: list[Path]) -> None:
    arguments = [table / "out", "--heads", *heads, "--model", table / "tiny"]
    arguments += ["--block", 48, "--protocols", "x2iso-kspace", "--samples", 2]
    before = (table / "out" / "rows.tsv").read_text()
    run = run_command(*arguments, "--precision", "fp32", cwd=table)
    assert run.returncode == 0, run.stderr
    assert (table / "out" / "rows.tsv").read_text() == before
    assert "no such model was given" in run.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["experts-single"], "NAME=FOLDER"),
        (["experts-kl={tiny}"], "no such variant"),
        (["x={tiny}", "x={tiny}"], "twice"),
    ],
)
def test_wrong_models_are_refused(
    words: list[str], sentence: str, models: Path, heads: list[Path], tmp_path: Path
) -> None:
    given = [word.format(tiny=models / "tiny") for word in words]
    arguments = [tmp_path / "out", "--heads", heads[0], "--model", models / "tiny"]
    run = run_command(*arguments, "--models", *given, cwd=tmp_path)
    assert run.returncode == 2 and sentence in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_block_is_the_middle_of_its_head(heads: list[Path]) -> None:
    whole, block = TruthHead(heads[0]).load(), Block(heads[0], side=48).load()
    assert block.truth.shape == (48, 48, 48)
    corner = np.linalg.inv(whole.affine) @ block.affine[:, 3]
    begin = np.round(corner[:3]).astype(int)
    cut = tuple(slice(b, b + 48) for b in begin)
    np.testing.assert_array_equal(block.truth, whole.truth[cut])
    assert not block.mask[: RIM if begin[0] else 0].any() and block.mask[24, 24, 24]
    assert (block.mask <= whole.mask[cut]).all()
    assert Block(heads[0], side=48).digest != Block(heads[0], side=64).digest


def test_equal_gates_are_equal() -> None:
    torch.manual_seed(0)
    network = equal_gates(MoEDiffSR(MoEDiffConfig(**TINY)).eval())  # type: ignore[arg-type]
    gates = network.gate(torch.rand(2, 64, 64))
    torch.testing.assert_close(gates, torch.full_like(gates, 1 / 3))


def entry(question: str, setting: str, psnr: float, **figures: float) -> dict[str, object]:
    known = {"psnr": psnr, "over_reference": psnr - 30, "worst_flicker": 1.0, "band_power": 0.5}
    return {"question": question, "setting": setting, "method": "m", "rows": 2} | known | figures


@pytest.mark.parametrize(
    ("single", "one", "words"),
    [
        (29.8, 29.0, ["beats one network", "+0.200 dB", "1.00 dB below", "(within 1.5 dB)"]),
        (29.95, 28.0, ["does not beat one network", "+0.050 dB", "(beyond 1.5 dB)"]),
    ],
)
def test_findings_tell_what_was_missed(single: float, one: float, words: list[str]) -> None:
    text = " ".join(
        findings([
            entry("mixture", "default: three experts on the mean", 30.0, worst_flicker=1.2),
            entry("mixture", "the mean alone", 29.7),
            entry("mixture", "one expert with as many weights", single),
            entry("samples", "one", one, band_power=0.8),
            entry("samples", "mean of 8", 29.9),
        ])
    )  # fmt: skip
    for word in [*words, "+0.300 dB to the mean", "above the limit of 1.05", "(within 0.3 dB)"]:
        assert word in text, (word, text)


def test_the_page_tells_the_gate_s_verdict() -> None:
    mass = HeadMass(np.eye(3) * 0.4 + 0.2, 0.4, np.zeros(5))
    experts = ["smooth", "cortex", "junction"]
    text = "\n".join(gate_lines({"h": mass}, experts, Verdict(0.4, 0.0, 0.001, 1), {}))
    assert "| h | cortex | 0.200 | **0.600** | 0.200 |" in text and "is above chance.**" in text
    text = "\n".join(gate_lines({"h": mass}, experts, Verdict(0.0, 0.0, 0.5, 1), {"b": "why"}))
    assert "is at chance.**" in text and "* b: left out, why" in text


@pytest.mark.slow
def test_the_ablation_script_fills_every_row(tmp_path: Path) -> None:
    data, teacher = pack(tmp_path), tmp_path / "teacher"
    config = {
        "family": "moediff",
        "mean": {"channels": 8, "blocks": 1},
        "moediff": {"width": 4, "embed_dim": 12, "heads": 2, "context_slices": 3},
    }
    save_model(build_network(config), config, teacher, "# A teacher for tests\n")
    truth = tmp_path / "truth_T2w.nii.gz"
    nib.save(head((56, 60, 52), (3.0, 3.0, 3.2), 3), truth)
    words = ["research/ablations/ablations.sh", data, teacher, tmp_path / "runs", truth]
    small = "block=72 batch=1 stored_volumes=2 window=2 validation_block=16"
    settings = {"STEPS": "2", "CODER_STEPS": "2", "SMALL": small, "OPTIONS": "--smoke"}
    settings["NETWORK"] = "network.width=4"
    settings |= {"JUDGE": "--block 48 --protocols x2iso-kspace", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", *map(str, words)], cwd=ROOT, env={**os.environ, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    page = (tmp_path / "runs" / "table" / "ablations.md").read_text()
    # The default of this table is the mixture itself, on the interpolated input.
    missing = [line for line in page.splitlines() if "not given" in line]
    assert len(missing) == 2
    assert "three experts, trained as the others here" in missing[0]
    assert "interpolated input, trained so" in missing[1]
    assert "experts-on-mean" in page
    card = (tmp_path / "runs" / "experts" / "model" / "MODEL_CARD.md").read_text()
    assert "| acquisition | x2 isotropic |" in card
