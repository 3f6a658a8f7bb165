# SPDX-License-Identifier: Apache-2.0
"""Run the loop of every stage: steps, devices, validation, states that can be continued.

Every draw depends on the seed, the rank of the process and the number of the step. So an
interrupted and continued run ends in exactly the weights of an uninterrupted one.
"""

import dataclasses
import itertools
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_moediff.errors import DeviceError, MoediffError, UsageError
from bids_moediff.imaging.protocols import ACQUISITIONS
from bids_moediff.runtime.progress_bar import ProgressBar
from bids_moediff.runtime.resources import has_bfloat16
from bids_moediff.runtime.sink import write_text

from .catalogue import Catalogue
from .pack import check_heads, load_pack, sha256
from .recipe import Recipe, check_same
from .run_folder import hardware, read_curve
from .stage import Gains, Init, Stage
from .state import WeightAverage, load_state, save_best, save_state
from .validation import Case, make_cases
from .volumes import Source, Window

CURVE_NAME = "curve.jsonl"
# Of a training in a given time: steps before the clock starts, seconds that it is looked at, and
# the share of the rest that is kept for validations and writing.
WARM_STEPS, LONGEST_LOOK, VALIDATION_SHARE = 20, 25.0, 0.06


class InterruptedRun(MoediffError):
    """The run was asked to stop; its state is saved."""

    exit_code = 130


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate: linear warm-up, then a cosine to ``final_share`` of the peak."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    progress = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * cosine)


class Objective(nn.Module):
    """The loss as a module, which is what distributed training wraps."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.network = stage.network
        self._loss = stage.loss

    def forward(
        self, batch: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss and its parts."""
        return self._loss(batch, step)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """List that gets the number of a signal to stop (Ctrl-C, or the end of a job's time)."""
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {n: signal.signal(n, lambda number, _: caught.append(number)) for n in numbers}
    except ValueError:  # not in the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Budget:
    """How many steps fit into a given time, from the speed of the first ones.

    The first tenth of the steps that are looked at is not counted: compilers and caches warm up.
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self._look = min(LONGEST_LOOK, 6 * minutes)
        self._begun: tuple[int, float] | None = None
        self._made = 0

    def plan(self, step: int) -> int | None:
        """Number of steps of the whole run, once it can be told after `step` of them."""
        self._made += 1
        now = time.monotonic()
        if self._begun is None:
            if self._made >= WARM_STEPS:
                self._begun = (step, now)
            return None
        first, then = self._begun
        if step <= first or now - then < self._look:
            return None
        seconds = (now - then) / (step - first)
        return step + max(1, int((1 - VALIDATION_SHARE) * (self._end - now) / seconds))


@dataclass(frozen=True)
class Job:
    """One training: a recipe of a catalogue, its data, its folder.

    Parameters
    ----------
    recipe, catalogue
        What to train.
    pack, folder
        Training data, and the folder of the run.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    init
        Networks to start from (:func:`bids_moediff.families.load.init_parts`).
    minutes
        If given, the number of steps is what fits into this time.
    """

    recipe: Recipe
    catalogue: Catalogue
    pack: Path
    folder: Path
    device: str = "auto"
    init: Init = None
    minutes: float | None = None


class Trainer:
    """One stage in one folder: state.safetensors, curve.jsonl, tensorboard/."""

    def __init__(self, job: Job) -> None:
        recipe, pack, folder = supported(job.recipe, job.device), job.pack, job.folder
        device, minutes = job.device, job.minutes
        self.entry = job.catalogue.stages[recipe.stage]
        self.recipe, self.folder = recipe, folder
        self.budget = None if minutes is None else Budget(minutes)
        heads = check_heads(load_pack(pack), recipe.keep_out)
        self.accelerator = make_accelerator(recipe, device)
        self.device = self.accelerator.device
        if self.device.type == "cuda" and self.device.index is None:
            # "cuda" alone means another device in the threads that make volumes.
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.main = self.accelerator.is_main_process
        torch.manual_seed(recipe.seed)
        self.stage = self.entry.make(recipe, self.device, job.init)
        self.parameters = [p for p in self.stage.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, 1e-3, (recipe.betas[0], recipe.betas[1]),
            weight_decay=recipe.weight_decay, fused=self.device.type == "cuda",
        )  # fmt: skip
        self.average = WeightAverage(self.stage.network, recipe.decay)
        self.record = self._resume(pack, [h.name for h in heads if h.validation], heads)
        training = [head for head in heads if not head.validation]
        source = Source(
            training, recipe, self.device, self.stage.finish, folder / "volumes",
            self.accelerator.process_index, self.stage.tissue,
        )  # fmt: skip
        self.window = Window(source, recipe, not self.main)
        self.cases: list[Case] = make_cases(
            [head for head in heads if head.validation],
            recipe.validation_block,
            self.device,
            [recipe.acquisition] if recipe.acquisition else list(ACQUISITIONS),
        )

    def _resume(self, pack: Path, validation: list[str], heads: Sequence[Any]) -> dict[str, Any]:
        record = load_state(self.folder, self.stage.network, self.average, self.optimiser)
        if record is not None:
            check_same(self.recipe, record["recipe"], self.folder)
            digest = record.get("data", {}).get("sha256")
            if digest is not None and digest != sha256(pack):
                raise UsageError(f"{self.folder} was begun with other data than {pack}.")
            self.stage.remember(record.get("memory", record.get("loss_state", {})))
        names = [head.name for head in heads if head.name not in validation]
        fixed = {
            "stage": self.recipe.stage,
            "family": self.entry.family,
            "section": self.entry.section,
            "begins_others": self.entry.begins_others,
            "recipe": self.recipe.to_dict(),
            "network": self.stage.network_settings(),
            "hardware": f"{self.accelerator.num_processes} x {hardware()}"
            if self.accelerator.num_processes > 1
            else hardware(),
            "data": {"sha256": sha256(pack), "training": names, "validation": validation},
        }
        begun = {"step": 0, "seconds": 0.0, "best": None, "best_step": 0, "waited": 0}
        return begun | (record or {}) | fixed

    def run(self) -> dict[str, Any]:
        """Train to the end and return the record.

        Raises
        ------
        InterruptedRun
            After a request to stop.
        MoediffError
            If the disk is full.
        """
        record, before = self.record, time.monotonic()
        self._prepare_folder()
        if record["step"] == 0 and record["best"] is None:
            self.stage.begin(self._first_batches())
            self.average = WeightAverage(self.stage.network, self.recipe.decay)
        if self.recipe.steps == 0 and record["best"] is None:
            record["seconds"] = time.monotonic() - before
            self._without_steps()
        objective, optimiser = self.accelerator.prepare(Objective(self.stage), self.optimiser)
        objective.train()
        totals, counted = dict[str, float](), 0
        begun = time.monotonic() - record["seconds"]
        with stop_requests() as stopped, self._board() as board, self._bar() as bar:
            while record["step"] < self.recipe.steps and not self._exhausted():
                step = record["step"]
                logs = self._step(objective, optimiser, step)
                for key, value in logs.items():
                    totals[key] = totals.get(key, 0.0) + value
                counted += 1
                record |= {"step": step + 1, "seconds": time.monotonic() - begun}
                record["memory"] = self.stage.memory()
                bar.update(note=f"loss {logs['loss']:.4f}")
                self._plan(step + 1, bar)
                last = step + 1 == self.recipe.steps
                if last or (step + 1) % self.recipe.evaluate_every == 0:
                    self._evaluate({k: v / counted for k, v in totals.items()}, board)
                    totals, counted = {}, 0
                    last = last or self._exhausted()
                stop = self._agree(bool(stopped))
                if last or stop or (step + 1) % self.recipe.save_every == 0:
                    self._save()
                if last:
                    break
                if stop:
                    self.window.close()
                    raise InterruptedRun(
                        f"Stopped at step {step + 1} of {self.recipe.steps}; its state is saved "
                        f"in {self.folder}. The same command goes on from there."
                    )
        self.window.close()
        self.accelerator.wait_for_everyone()
        return record

    def _without_steps(self) -> None:
        """Judge and save what the stage did before its first step."""
        with torch.no_grad():
            _, logs = self.stage.loss(next(self._first_batches()), 0)
        with self._board() as board:
            self._evaluate(logs, board)
        self._save()

    def _first_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches for what a stage does before its first step."""
        rng = np.random.default_rng([self.recipe.seed, self.accelerator.process_index])
        for step in itertools.count(step=self.recipe.steps_per_volume):
            yield self.stage.batch(self.window.at(step), rng)

    def _plan(self, step: int, bar: ProgressBar) -> None:
        """Fix the number of steps of a training in a given time."""
        if self.budget is None:
            return
        (planned,) = self._broadcast([self.budget.plan(step)])
        if planned is None:
            return
        self.budget = None
        self.recipe = self.stage.recipe = dataclasses.replace(self.recipe, steps=planned)
        self.record["recipe"] = self.recipe.to_dict()
        bar.expect(planned)
        print(f"{planned} steps fit into the time", flush=True)

    def _step(self, objective: nn.Module, optimiser: Any, step: int) -> dict[str, float]:
        recipe = self.recipe
        rate = learning_rate(step, recipe)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        seeds = np.random.SeedSequence([recipe.seed, self.accelerator.process_index, step])
        draw, noise = seeds.spawn(2)
        batch = self.stage.batch(self.window.at(step), np.random.default_rng(draw))
        torch.manual_seed(int(noise.generate_state(1)[0]))
        loss, logs = objective(batch, step)
        if not math.isfinite(logs["loss"]):
            raise MoediffError(
                f"The loss is not a number at step {step + 1}; the state of an earlier step is in "
                f"{self.folder}. Lower learning_rate, or use precision=fp32."
            )
        optimiser.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, recipe.clip)
        optimiser.step()
        self.average.update(self.stage.network, step)
        return logs

    def _evaluate(self, losses: dict[str, float], board: Any) -> None:
        record = self.record
        score = [0.0]
        if self.main:
            evaluator = self._evaluator()
            found: Gains = self.stage.validate(evaluator, self.cases)
            score = [float(np.mean([values["over_cubic"] for values in found.values()]))]
            row = {
                "step": record["step"],
                "seconds": round(record["seconds"]),
                "loss": round(losses["loss"], 6),
                "losses": {key: round(value, 6) for key, value in losses.items()},
                "gains": found,
            }
            with _disk(self.folder), (self.folder / CURVE_NAME).open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            _draw(board, row)
            print(summary(row), flush=True)
        score = self._broadcast(score)
        better = record["best"] is None or score[0] > record["best"]
        record["waited"] = 0 if better else record["waited"] + 1
        if better:
            record |= {"best": score[0], "best_step": record["step"]}
            if self.main and self.recipe.patience:
                save_best(self.folder, self.average, record)

    def _evaluator(self) -> nn.Module:
        """A copy of the network with the averaged weights, in evaluation mode."""
        import copy

        network = copy.deepcopy(self.stage.network).eval()
        network.load_state_dict(self.average.values)
        return network

    def _exhausted(self) -> bool:
        return 0 < self.recipe.patience <= self.record["waited"]

    def _save(self) -> None:
        if self.main:
            save_state(self.folder, self.stage.network, self.average, self.optimiser, self.record)
        self.accelerator.wait_for_everyone()

    def _broadcast(self, values: list[Any]) -> list[Any]:
        """The main process's values, everywhere."""
        if self.accelerator.num_processes == 1:
            return values
        from accelerate.utils import broadcast_object_list

        result: list[Any] = broadcast_object_list(values)
        return result

    def _agree(self, stopped: bool) -> bool:
        return bool(self._broadcast([stopped])[0])

    def _prepare_folder(self) -> None:
        """Remove what a killed run left half written, and rows after the state's step."""
        if not self.main:
            return
        with _disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for torn in self.folder.rglob(".*.part"):
                torn.unlink(missing_ok=True)
            rows = [row for row in read_curve(self.folder) if row["step"] <= self.record["step"]]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(text, self.folder / CURVE_NAME)

    @contextmanager
    def _board(self) -> Iterator[Any]:
        """TensorBoard's writer where TensorBoard is installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            yield None
            return
        if not self.main:
            yield None
            return
        writer = SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=self.record["step"] or None
        )
        try:
            yield writer
        finally:
            writer.close()

    def _bar(self) -> ProgressBar:
        recipe = self.recipe
        done = self.record["step"]
        return ProgressBar(recipe.stage, recipe.steps, done=done, shown=self.main)


def check_device(device: str) -> None:
    """DeviceError for a GPU that was asked for and is not there, UsageError for no device."""
    if device in ("auto", "cpu"):
        return
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise UsageError(f"--device is auto, cpu, cuda or cuda:N, not {device}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count <= int(index or 0):
        seen = f"only {count} CUDA device(s) are" if count else "no CUDA device is"
        raise DeviceError(f"--device {device} was asked for, but {seen} visible.")


def on_processor(device: str) -> bool:
    """Whether ``cpu``, ``auto``, ``cuda`` or ``cuda:N`` means the processor here."""
    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def supported(recipe: Recipe, device: str) -> Recipe:
    """The recipe, in 32 bits on a processor that would only imitate bfloat16.

    PyTorch does so many times more slowly than it computes in 32 bits.
    """
    if not on_processor(device) or recipe.precision == "fp32" or has_bfloat16():
        return recipe
    print("This processor has no bfloat16: training in 32 bits.", file=sys.stderr)
    return dataclasses.replace(recipe, precision="fp32")


def make_accelerator(recipe: Recipe, device: str) -> Any:
    """Return the accelerator of this process; torchrun and accelerate name the others.

    Raises
    ------
    UsageError
        Without the package accelerate.
    DeviceError
        For a missing device.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError as error:
        raise UsageError(
            "Training needs the package accelerate: pip install 'bids_moediff[train]'."
        ) from error
    check_device(device)
    cpu = on_processor(device)
    if not cpu:
        index = torch.device("cuda" if device == "auto" else device).index
        if index is not None:
            torch.cuda.set_device(index)
        torch.backends.cudnn.benchmark = True  # sizes never change
    # Its settings are shared by all accelerators of a process; a chain of recipes needs new ones.
    if AcceleratorState._shared_state:
        AcceleratorState._reset_state()
    precision = "bf16" if recipe.precision == "bf16" else "no"
    return Accelerator(mixed_precision=precision, cpu=cpu)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn a failed write into one sentence."""
    try:
        yield
    except OSError as error:
        raise MoediffError(f"{folder} cannot be written to ({error.strerror}).") from error


def _draw(board: Any, row: dict[str, Any]) -> None:
    if board is None:
        return
    for key, value in row["losses"].items():
        board.add_scalar(f"training/{key}", value, row["step"])
    for protocol, values in row["gains"].items():
        for key, value in values.items():
            board.add_scalar(f"validation {key}/{protocol}", value, row["step"])
    board.flush()


def summary(row: dict[str, Any]) -> str:
    """One line for the log: step, loss, gain over cubic of each protocol."""
    gained = ", ".join(f"{name} {v['over_cubic']:+.2f}" for name, v in row["gains"].items())
    return f"step {row['step']}: loss {row['loss']:.5f}; dB over cubic: {gained}"


def train(job: Job) -> dict[str, Any]:
    """Train in the job's folder, or continue there, and return the record."""
    return Trainer(job).run()
