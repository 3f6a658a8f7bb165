# SPDX-License-Identifier: Apache-2.0
"""Trainings of a few steps: every recipe, interruptions, full disks, kills, several processes."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bids_moediff.cli.train import main
from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.families.load import build_network, load_model
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import save_model
from bids_moediff.training.loop import InterruptedRun, Trainer
from bids_moediff.training.recipe import recipe_names
from bids_moediff.training.state import WeightAverage, load_state, read_state, save_state
from bids_moediff.training.volumes import make_volume
from golden import check_numbers, described
from training_data import CATALOGUE, heads, pack, tiny, train, trainer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moediff model of the smallest networks whose mean changes its input."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    config = {
        "family": "moediff",
        "mean": {"channels": 8, "blocks": 1},
        "moediff": {"width": 4, "embed_dim": 12, "heads": 2, "context_slices": 3},
    }
    network = build_network(config)
    nn.init.normal_(network.mean.tail.weight, std=0.2)  # type: ignore[union-attr, arg-type]
    save_model(network, config, folder, "# A teacher for tests\n")
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest student."""
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(2)
    config = {"family": "student", "student": {"channels": 8, "blocks": 1, "ranks": [4, 4, 4, 4]}}
    save_model(build_network(config), config, folder, "# A student for tests\n")
    return folder


@pytest.mark.parametrize("name", recipe_names(CATALOGUE))
def test_twenty_steps_of_every_recipe(
    name: str,
    data: Path,
    teacher: Path,
    student: Path,
    tmp_path: Path,
) -> None:
    words = ["--recipe", name, "--smoke", "--pack", data, "--output", tmp_path / "run"]
    words += ["--init", teacher]
    words += [student] if name.startswith("student-t") else []
    words += ["--device", "cpu", "--set", "precision=fp32"]
    assert main([str(word) for word in words]) == 0
    loaded = load_model(tmp_path / "run" / "model")
    families = {"student": "student", "crfm": "crfm", "nsmoe": "nsmoe"}
    assert loaded.config["family"] == families.get(name.split("-")[0], "moediff")
    curve = json.loads((tmp_path / "run" / "model" / "curve.json").read_text())
    told = {
        stage: [{key: row[key] for key in ("losses", "gains")} for row in rows]
        for stage, rows in curve.items()
    }
    exact = 0.002 if name.endswith("-tail") else 0.02  # solved at once, or by twenty steps
    check_numbers("training_curves.json", name, told, rel=exact, abs=exact)
    weights = {
        key: described(one.detach().numpy()) for key, one in loaded.network.named_parameters()
    }
    sizes = {key: {k: one[k] for k in ("mean", "deviation")} for key, one in weights.items()}
    check_numbers("training_weights.json", name, sizes, rel=0.02, abs=2e-3)
    for rows in curve.values():
        assert not rows or rows[-1]["step"] == (0 if name.endswith("-tail") else 20)
        for row in rows:
            assert row["loss"] > 0 and "x2 isotropic" in row["gains"]
    if name == "moediff":
        assert set(curve) == {"mean", "experts"}
    if name.startswith(("experts", "gate")):  # the mean of --init is in the exported model
        mean = load_model(teacher).network.mean
        for key, value in mean.state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(loaded.network.mean.state_dict()[key], value)  # type: ignore[union-attr]


def _stop_at(trainer: Trainer, step: int) -> None:
    """Ask the run to stop while it computes this step."""
    inner = trainer.stage.loss

    def loss(batch: dict[str, torch.Tensor], number: int) -> Any:
        if number == step:
            signal.raise_signal(signal.SIGTERM)
        return inner(batch, number)

    trainer.stage.loss = loss  # type: ignore[method-assign]


@pytest.mark.parametrize("stage", ["mean", "experts", "gate", "student"])
def test_an_interrupted_run_ends_in_the_same_weights(
    stage: str, data: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = tiny(stage, steps=7, evaluate_every=7, save_every=2)
    train(recipe, data, tmp_path / "whole", teacher)
    begun = trainer(recipe, data, tmp_path / "parts", teacher)
    _stop_at(begun, 2)
    with pytest.raises(InterruptedRun, match="Stopped at step 3 of 7"):
        begun.run()
    _, record = read_state(tmp_path / "parts" / "state.safetensors")
    assert record["step"] == 3
    train(recipe, data, tmp_path / "parts", teacher)
    whole = load_file(tmp_path / "whole" / "state.safetensors")
    parts = load_file(tmp_path / "parts" / "state.safetensors")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.equal(parts[key], value), key
    moved = [key for key in whole if key.startswith("network.") and "tail" in key]
    tailless = stage in ("experts", "gate")
    assert tailless or any(whole[key].abs().max() > 0 for key in moved)


def test_a_killed_run_repeats_no_row_of_its_curve(data: Path, tmp_path: Path) -> None:
    recipe = tiny("mean", steps=4, evaluate_every=1, save_every=2)
    train(recipe, data, tmp_path)
    rows = (tmp_path / "curve.jsonl").read_text().splitlines()
    later = tiny("mean", steps=6, evaluate_every=1, save_every=2)
    # As a kill leaves it: rows beyond the state, the last one torn.
    torn = [*rows, json.dumps({"step": 5, "loss": 9.0, "gains": {}}), '{"step": 6, "lo']
    (tmp_path / "curve.jsonl").write_text("\n".join(torn))
    (tmp_path / ".state.safetensors.0123.part").write_bytes(b"half")
    train(later, data, tmp_path)
    written = [json.loads(row) for row in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert written[4]["loss"] != 9.0
    assert not list(tmp_path.glob(".*.part"))


def test_the_average_of_the_weights_warms_up() -> None:
    """The decay is (1 + step) / (10 + step), up to its limit: the first weights soon go."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    average = WeightAverage(network, decay=0.9)
    torch.nn.init.ones_(network.weight)
    found = []
    for step in (0, 1, 1000):
        average.update(network, step)
        found.append(float(average.values["weight"]))
    left = (1 / 10, 2 / 11, 0.9)
    assert found == pytest.approx([1 - left[0], 1 - left[0] * left[1], 1 - np.prod(left)])


def _save_for_ever(folder: Path, network: nn.Module) -> None:
    average, optimiser = WeightAverage(network), torch.optim.AdamW(network.parameters())
    for step in range(10_000):
        save_state(folder, network, average, optimiser, {"step": step})


def test_a_kill_while_saving_leaves_a_whole_state(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = MeanNetwork(MeanConfig(32, 4))
    for pause in (0.0, 0.004, 0.011, 0.017):
        child = multiprocessing.get_context("fork").Process(
            target=_save_for_ever, args=(tmp_path, network)
        )
        child.start()
        state = tmp_path / "state.safetensors"
        state.unlink(missing_ok=True)
        deadline = time.monotonic() + 60
        while not state.is_file() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        optimiser = torch.optim.AdamW(network.parameters())
        record = load_state(tmp_path, network, WeightAverage(network), optimiser)
        assert record is not None and record["step"] >= 0
    torch.set_num_threads(threads)


def _with_file_limit(size: int, action: Callable[[], object]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_old_state(data: Path, tmp_path: Path) -> None:
    recipe = tiny("mean", steps=2, save_every=1)
    train(recipe, data, tmp_path)
    state = tmp_path / "state.safetensors"
    before = state.read_bytes()
    more = tiny("mean", steps=4, save_every=1)
    with pytest.raises(MoediffError, match=r"cannot be saved .* saved before is whole"):
        _with_file_limit(len(before) // 2, lambda: train(more, data, tmp_path))
    assert state.read_bytes() == before
    assert train(more, data, tmp_path)["step"] == 4


def test_other_recipe_data_or_network_is_refused(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny("mean", steps=1, learning_rate=0.001), data, run)
    with pytest.raises(UsageError, match=r"learning_rate 0\.001, not 0\.002"):
        train(tiny("mean", steps=2, learning_rate=0.002), data, run)
    other = tmp_path / "other.npz"
    other.write_bytes(data.read_bytes() + b"\0")
    with pytest.raises(UsageError, match="begun with other data"):
        train(tiny("mean", steps=2, learning_rate=0.001), other, run)


def test_training_stops_when_validation_does_not_gain(data: Path, tmp_path: Path) -> None:
    recipe = tiny("mean", steps=20, evaluate_every=2, patience=2, learning_rate=1e-12)
    record = train(recipe, data, tmp_path)
    assert record["step"] == 6 and record["best_step"] == 2
    assert read_state(tmp_path / "best.safetensors")[1]["step"] == 2
    assert train(recipe, data, tmp_path)["step"] == 6


@pytest.mark.parametrize(("stage", "more"), [("mean", {}), ("student", {"distil": "false"})])
def test_the_loss_of_one_batch_falls_below_that_of_the_start(
    stage: str, more: dict[str, str]
) -> None:
    recipe = tiny(stage, learning_rate=3e-3, batch=4, patch=16, noise_share=0, **more)
    torch.manual_seed(0)
    made = CATALOGUE.make(recipe, torch.device("cpu"), None)
    rng = np.random.default_rng(0)
    volumes = [make_volume(heads()[0], recipe, rng, torch.device("cpu")) for _ in range(2)]
    batch = made.batch(volumes, rng)
    optimiser = torch.optim.AdamW(made.network.parameters(), 3e-3)
    losses = []
    for _ in range(80):
        loss, logs = made.loss(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(logs["loss"])
    # The output of an untrained network is the start, so the first loss is the start's.
    assert losses[-1] < 0.8 * losses[0]


BLOCKED = """
import sys
for name in ("nibabel", "nipype", "bids", "monai", "niworkflows", "SimpleITK", "nilearn"):
    sys.modules[name] = None
from bids_moediff.cli.train import main
sys.exit(main(sys.argv[1:]))
"""


def test_training_from_a_pack_needs_no_imaging_library(data: Path, tmp_path: Path) -> None:
    words = ["--recipe", "mean", "--smoke", "--steps", "2", "--pack", data, "--output", tmp_path]
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, *map(str, words), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "model" / "config.json").is_file()


def test_two_processes_train_one_network(data: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    words = ["--recipe", "mean", "--smoke", "--steps", "3", "--pack", data, "--output", tmp_path]
    done = subprocess.run(
        [*run, "-m", "bids_moediff.cli.train", *map(str, words), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    _, record = read_state(tmp_path / "state.safetensors")
    assert record["step"] == 3 and record["hardware"].startswith("2 x")
    assert len((tmp_path / "curve.jsonl").read_text().splitlines()) == 1
    # The second process has its say: its volumes and patches are others than the first one's.
    alone = [*words[:-1], tmp_path / "alone", "--device", "cpu"]
    assert main([str(word) for word in alone]) == 0
    both, one = (
        load_file(folder / "state.safetensors")["network.head.weight"]
        for folder in (tmp_path, tmp_path / "alone")
    )
    assert (both - one).abs().max() > 1e-5


def test_the_session_script_trains_for_some_minutes(data: Path, tmp_path: Path) -> None:
    options = "--smoke --device cpu --steps 100000 --set batch=2 window=2 block=48"
    for stage, more in (("mean", " patch=16"), ("rest", "")):
        done = subprocess.run(
            ["bash", ROOT / "tools" / "gpu_session.sh", stage, data, tmp_path, "0.01"],
            env={**os.environ, "OPTIONS": options + more, "PYTHON": sys.executable,
                 "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "steps fit into the time" in done.stdout
    assert load_model(tmp_path / "mean" / "model").config["mean"]["channels"] == 8
    assert load_model(tmp_path / "experts" / "model").config["family"] == "moediff"
    assert load_model(tmp_path / "student" / "model").config["family"] == "student"
    assert (tmp_path / "student-undistilled" / "model" / "MODEL_CARD.md").is_file()
