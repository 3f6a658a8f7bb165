# SPDX-License-Identifier: Apache-2.0
"""What a run decides before and after its batches: devices, clean-up, logs, environment, codes."""

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bids_moediff.bids import dataset as output_folder
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.cli import check
from bids_moediff.errors import DeviceError, GraphError, UsageError, WeightsError
from bids_moediff.execution import batch, execute, group, outcome, run
from bids_moediff.execution.outcome import Outcome, failed
from bids_moediff.execution.plugin_choice import choose_plugin
from bids_moediff.families.choice import ModelChoice
from bids_moediff.reports import group as group_page
from bids_moediff.runtime import devices
from bids_moediff.runtime.resources import Limits
from bids_moediff.settings import Settings
from bids_moediff.workflows import made_with as making
from bids_moediff.workflows.participant import RunPlan, run_file

PLAN = RunPlan("student", "why", ("cpu",), 1, "run")


class Run:
    """A run whose batches only tell what they were given."""

    def __init__(self, folder: Path, labels: list[str]) -> None:
        self.folder, self.labels = folder, labels
        self.batches: list[tuple[str, list[str], RunPlan, Limits]] = []
        self.outcomes: list[Outcome] = [Outcome("1", "sub-1_T1w", "done")]
        self.cleaned: list[list[str]] = []
        self.asked: list[str] = []
        self.methods: list[Any] = []
        self.summary: tuple[Any, ...] = ()

    def batch(self, settings: Settings, labels: Any, plan: Any, limits: Any, result: Any) -> None:
        self.batches.append((settings.stage, list(labels), plan, limits))
        result.outcomes += self.outcomes
        result.told.append({"key": "told", "status": "failed"})
        result.num_remarks += 2

    def devices(self, device: str) -> list[str]:
        self.asked.append(device)
        return ["cuda:0", "cuda:1"]

    @contextmanager
    def own_work(self, settings: Settings, labels: Any, run_id: str) -> Iterator[Settings]:
        assert run_id == "id"
        yield replace(settings, work_dir=self.folder / "apart")

    def __call__(self, **options: Any) -> int:
        settings = Settings(bids_dir=self.folder, output_dir=self.folder / "out", **options)
        return run.run_participants(settings, "id")


@pytest.fixture
def whole(tmp_path, monkeypatch) -> Run:
    made = Run(tmp_path, [f"{n:03d}" for n in range(120)])
    for module, name, function in (
        (batch, "run_batch", made.batch), (run, "require_devices", made.devices),
        (run, "own_work", made.own_work), (run, "find_participants", lambda _: made.labels),
        (run, "prepare_environment", lambda *_: None), (run, "closing_remarks", lambda *_: []),
        (run, "choose", lambda _, device: ModelChoice(f"model of {device}", "reason")),
        (run, "remove_work", lambda folder, labels: made.cleaned.append([folder, *labels])),
        (run, "plan_resources", lambda *given: Limits(*given)),
        (output_folder, "prepare_output", lambda _: None),
        (execute, "write_methods", lambda *given: made.methods.append(given)),
        (outcome, "print_summary", lambda *given: setattr(made, "summary", given)),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, function)
    return made


def test_participants_go_in_batches_of_fifty_with_one_plan(whole, capsys):
    assert whole(nprocs=4, omp_nthreads=3, mem=9.0, device="cuda") == 0
    assert [len(labels) for _, labels, _, _ in whole.batches] == [50, 50, 20]
    assert [label for _, labels, _, _ in whole.batches for label in labels] == whole.labels
    plans = {plan for _, _, plan, _ in whole.batches}
    assert plans == {RunPlan("model of cuda:0", "reason", ("cuda:0", "cuda:1"), 3, "id")}
    assert {limits for *_, limits in whole.batches} == {Limits(4, 3, 9.0)}
    assert whole.asked == ["cuda"]
    assert [cleaned[0] for cleaned in whole.cleaned] == [whole.folder / "apart"] * 3
    assert [len(cleaned) - 1 for cleaned in whole.cleaned] == [50, 50, 20]
    outcomes, place, command, remarks = whole.summary
    assert (len(outcomes), place, remarks) == (3, whole.folder / "out", 6)
    assert command.endswith(" group") and str(whole.folder / "out") in command
    assert whole.methods[0][0].stage == "all"
    assert "bids_moediff: model model of cuda:0, reason." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "stage", "cleans", "network"),
    [
        ({}, "all", True, True), ({"stage": "sr"}, "sr", False, True),
        ({"stage": "preproc"}, "preproc", False, False),
        ({"stage": "report"}, "report", True, False),
        ({"reports_only": True}, "report", False, False),
        ({"keep_workdir": True}, "all", False, True),
        ({"boilerplate_only": True}, "all", True, False),
    ],
)  # fmt: skip
def test_who_cleans_and_who_needs_a_device(whole, options, stage, cleans, network):
    whole.labels = ["1"]
    assert whole(**options) == 0
    ((ran, _, plan, _),) = whole.batches
    assert ran == stage and bool(whole.cleaned) == cleans
    assert bool(whole.asked) == network
    assert plan.devices == (("cuda:0", "cuda:1") if network else ("cpu",))


def test_the_code_of_a_run_is_that_of_its_outcomes(whole):
    whole.labels = ["1"]
    whole.outcomes = [failed("1", "sub-1_T1w", "no"), failed("1", "sub-1_T2w", "no", 69)]
    assert whole() == 69 and whole.summary[2] == ""
    whole.outcomes = [failed("1", "sub-1_T1w", "no")]
    assert whole() == 1
    assert whole(boilerplate_only=True) == 0, "a text is a text"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_coefficients": "x.grad"}, "x.grad"), ({"use_plugin": "x.yml"}, "plugin file"),
        ({"derivatives": "none"}, "none"), ({"carry": "none"}, "--carry"),
        ({"output_spaces": ("NoSuchSpace",)}, "NoSuchSpace"),
    ],
)  # fmt: skip
def test_files_are_looked_for_before_anything_is_written(tmp_path, monkeypatch, options, words):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    given = {k: v if isinstance(v, tuple) else tmp_path / v for k, v in options.items()}
    with pytest.raises(UsageError, match=words):
        run.check_files(Settings(**given))
    run.check_files(Settings())


def test_maps_are_not_carried_to_another_geometry(tmp_path, monkeypatch):
    from bids_moediff.preprocessing import unwarp

    monkeypatch.setattr(unwarp, "read_coefficients", lambda _: None)
    monkeypatch.setattr(run, "check_carried", lambda _: None)
    run.check_files(Settings(carry=tmp_path))
    with pytest.raises(UsageError, match="does not go with --gradient-coefficients"):
        run.check_files(Settings(carry=tmp_path, gradient_coefficients=tmp_path / "a"))


def test_the_environment_of_the_libraries(tmp_path, monkeypatch):
    names = (
        "NO_ET", "NIPYPE_NO_ET", "NIPYPE_CONFIG_DIR", "TEMPLATEFLOW_HOME", "MPLBACKEND",
        "OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "LOGNAME",
    )  # fmt: skip
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "own"))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    for name in names:
        monkeypatch.setenv(name, "")  # so that they are put back
        os.environ.pop(name)
    run.prepare_environment(tmp_path / "work", 3)
    caches = Path(os.environ["NIPYPE_CONFIG_DIR"]).parent
    assert caches.parent == tmp_path / "work" and caches.name.startswith("cache-")
    assert Path(os.environ["NIPYPE_CONFIG_DIR"]).is_dir()
    assert Path(os.environ["TEMPLATEFLOW_HOME"]) == caches / "templateflow"
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "own"), "existing values are kept"
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1", "but for this one"
    assert os.environ["OMP_NUM_THREADS"] == "3" == os.environ[names[6]]
    assert [os.environ[name] for name in ("NO_ET", "NIPYPE_NO_ET", "MPLBACKEND")] == [
        "1",
        "1",
        "Agg",
    ]
    os.environ.pop("TEMPLATEFLOW_HOME")
    os.environ.pop("NIPYPE_CONFIG_DIR")
    os.environ.pop("MPLCONFIGDIR")
    (tmp_path / "home" / ".cache" / "templateflow").mkdir(parents=True)
    run.prepare_environment(tmp_path / "work", 1)
    assert os.environ["TEMPLATEFLOW_HOME"] == str(tmp_path / "home" / ".cache" / "templateflow")
    assert list(Path(os.environ["MPLCONFIGDIR"]).glob("fontlist-*.json"))
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_group_level_lists_who_is_not_done(tmp_path, monkeypatch, capsys):
    states = {f"{n:03d}": {"status": "missing", "message": "None."} for n in range(103)}
    states["000"] = {"status": "done", "message": ""}
    states["001"] = {"status": "failed", "message": "Line\nbreak."}
    seen: list[Any] = []
    monkeypatch.setattr(group, "prepare_environment", lambda *given: seen.append(given))
    monkeypatch.setattr(group, "find_participants", lambda _: [*states, "not a label"])
    monkeypatch.setattr(output_folder, "prepare_output", lambda _: None)
    monkeypatch.setattr(group, "participant_state", lambda _, label: states[label])
    monkeypatch.setattr(group_page, "write_group_report", lambda *given: seen.append(given))
    monkeypatch.setenv("COLUMNS", "120")
    settings = Settings(bids_dir=tmp_path / "raw", output_dir=tmp_path / "out", omp_nthreads=2)
    assert group.run_group(settings) == 1
    assert seen == [
        (tmp_path / "out" / ".work", 2), (tmp_path / "out", states, tmp_path / "raw"),
    ]  # fmt: skip
    listed = (tmp_path / "out" / "logs" / "unfinished.txt").read_text().splitlines()
    assert listed == [f"sub-{label}" for label in list(states)[1:]]
    said = capsys.readouterr().err
    assert "103 participants: 1 done, 1 failed, 101 missing." in said
    assert "sub-100 " in said and "sub-101 " not in said and "sub-000" not in said
    assert "2 more are listed in logs/unfinished.txt." in said and "Line break." in said
    for state in states.values():
        state["status"] = "done"
    assert group.run_group(settings) == 0
    assert (tmp_path / "out" / "logs" / "unfinished.txt").read_text() == ""


@pytest.mark.parametrize(
    ("memory", "driver", "named", "weights", "code"),
    [
        (6.0, True, None, None, 0), (5.9, True, None, None, 1),
        (6.0, True, DeviceError("No GPU."), None, 69),
        (6.0, True, None, WeightsError("Gone."), 78),
        (5.9, False, DeviceError("No GPU."), WeightsError("Gone."), 1),
    ],
)  # fmt: skip
def test_the_check_says_all_and_ends_with_the_first_problem(
    monkeypatch, capsys, memory, driver, named, weights, code
):
    def answer(value: Any, error: Exception | None) -> Any:
        def call(*_: Any) -> Any:
            if error is not None:
                raise error
            return value

        return call

    cards = (devices.Card("H", 80.2, (9, 0)), devices.Card("Old", 4.0, (3, 5)))
    found = devices.Acceleration("2.6", "12.4", ("sm_90",), cards)
    monkeypatch.setattr(check, "plan", lambda *given: Limits(4, 2, memory))
    monkeypatch.setattr(check, "require_temporary_folder", lambda: None)
    monkeypatch.setattr(devices, "driver_is_visible", lambda: driver)
    monkeypatch.setattr(devices, "driver_version", lambda: "550")
    monkeypatch.setattr(devices, "ask_torch", lambda: replace(found, cards=cards[:1]))
    monkeypatch.setattr(devices, "require_devices", answer(["cuda:0"], named))
    monkeypatch.setattr(check, "require_weights", answer("model x", weights))
    assert check.print_check(Settings(device="cuda")) == code
    lines = capsys.readouterr().out.splitlines()
    subjects = [
        line.removeprefix("NOT OK ").removeprefix("ok").split(":")[0].strip() for line in lines
    ]
    shown = ["driver"] * driver + ["torch", "GPU 0", "device", "weights"]
    assert subjects == ["processors", "memory", *shown]
    assert "ok      processors: 4, 2 threads per process" in lines
    assert ("ok      driver: NVIDIA 550" in lines) == driver
    assert "ok      GPU 0: H, 80 GB" in lines and "ok      torch: 2.6, CUDA 12.4" in lines
    bad = [line for line in lines if line.startswith("NOT OK ")]
    assert len(bad) == (memory < 6) + (named is not None) + (weights is not None)
    monkeypatch.setattr(devices, "ask_torch", lambda: replace(found, cards=cards[1:], cuda=None))
    assert check.print_check(Settings(device="cuda")) == (1 if memory < 6 else 69)
    said = capsys.readouterr().out
    assert "GPU 0: Old, 4 GB: this torch was not built for it (compute capability 3.5)" in said
    assert "torch: 2.6, CPU only" in said


def image() -> AnatomicalImage:
    path = "sub-01/anat/sub-01_T1w.nii.gz"
    return AnatomicalImage(Path("/nowhere") / path, path, {"sub": "01"}, "T1w", {"EchoTime": 0.1})


def digests(settings: Settings, one: AnatomicalImage, model: str = "student") -> dict[str, str]:
    making.weights_digest.cache_clear()
    return making.made_with(one, settings, model)


def test_what_decides_a_result_is_recorded_apart(tmp_path):
    """Each change changes one digest; what changes nothing changes none."""
    root = tmp_path / "sub-01" / "anat"
    root.mkdir(parents=True)
    scan = root / "sub-01_T1w.nii.gz"
    scan.write_bytes(b"a")
    own = replace(image(), path=scan)
    mask = root / "sub-01_desc-brain_mask.nii.gz"
    mask.write_bytes(b"m")
    (tmp_path / "c.grad").touch()
    (root / "sub-01_dseg.nii.gz").touch()
    settings = Settings(bids_dir=tmp_path, output_dir=tmp_path / "out")
    before = digests(settings, own)
    assert set(before) == {"version", "inputs", "options", "weights"}

    def changed(now: dict[str, str], than: dict[str, str] = before) -> list[str]:
        return [name for name in than if now[name] != than[name]]

    def files(**more: Any) -> list[str]:
        return changed(digests(replace(settings, **more), own))

    assert files(gradient_coefficients=tmp_path / "c.grad") == ["inputs"]
    assert files(derivatives=tmp_path) == ["inputs"] == files(carry=tmp_path)
    for name, value in (
        ("intensities", "corrected"), ("sloppy", True), ("output_spaces", ("x",)), ("noise", 3.0),
        ("skip_bias_correction", True), ("outputs", ("gates",)), ("output_dtype", "float32"),
        ("precision", "fp32"), ("self_ensemble", True), ("reference", "auto"),
    ):  # fmt: skip
        assert files(**{name: value}) == ["options"], name
    for name, value in (("keep_workdir", True), ("device", "cpu"), ("mem", 3.0), ("verbose", 2)):
        assert files(**{name: value}) == [], name
    assert changed(digests(settings, own, "moediff")) == ["weights"]
    assert changed(digests(settings, replace(own, metadata={"EchoTime": 0.2}))) == ["inputs"]
    masked = digests(replace(settings, derivatives=tmp_path), own)
    mask.write_bytes(b"mm")
    assert changed(digests(replace(settings, derivatives=tmp_path), own), masked) == ["inputs"]
    guided = digests(settings, own, "crfm")
    (root / "sub-01_T2w.nii.gz").write_bytes(b"x")
    assert changed(digests(settings, own, "crfm"), guided) == ["inputs"], "it may guide"
    assert changed(digests(settings, own)) == []
    scan.write_bytes(b"ab")
    assert changed(digests(settings, own)) == ["inputs"]
    pair = replace(own, members=(own, replace(own, path=mask)))
    several = digests(settings, pair)
    assert changed(digests(settings, replace(pair, members=(own,))), several) == ["inputs"]


@pytest.mark.parametrize(
    ("environment", "container", "words"),
    [
        ({}, "apptainer", "add --nv"), ({}, "docker", "add --gpus all"), ({}, None, "install the"),
        ({"SLURM_JOB_ID": "1"}, None, "--gres=gpu:1"), ({"SLURM_JOB_ID": "1"}, "docker", "--gpus"),
    ],
)  # fmt: skip
def test_what_makes_a_gpu_visible(environment, container, words):
    assert words in devices.missing_flag(container, environment)
    reason = devices.reason_of_absence(None, False, container, environment)
    assert reason.startswith("no NVIDIA driver is visible: ") and words in reason


FOUND = devices.Acceleration("2.6", "12.4", (), (devices.Card("H", 80, (9, 0)),) * 2)


@pytest.mark.parametrize(
    ("found", "environment", "words"),
    [
        (FOUND, {}, ""), (FOUND, {"CUDA_VISIBLE_DEVICES": "0"}, ""),
        (FOUND, {"CUDA_VISIBLE_DEVICES": "-1"}, "hides every GPU"),
        (FOUND, {"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
        (replace(FOUND, cuda=None), {}, "built without CUDA"),
        (replace(FOUND, cards=()), {}, "too old for CUDA 12.4"), (None, {}, "too old: update"),
    ],
)  # fmt: skip
def test_why_no_gpu_can_be_used(found, environment, words):
    reason = devices.reason_of_absence(found, True, None, environment)
    assert reason == words if not words else words in reason
    said = devices.explain_absence("cuda:5", found, True, None, environment)
    assert (words or "have the numbers 0 to 1;") in said and said.startswith("--device cuda:5")


@pytest.mark.parametrize(
    ("device", "driver", "count", "names"),
    [
        ("cpu", True, 2, ["cpu"]), ("auto", True, 2, ["cuda:0", "cuda:1"]),
        ("auto", True, 0, ["cpu"]), ("auto", False, 2, ["cpu"]), ("cuda", True, 0, None),
        ("cuda", True, 2, ["cuda:0", "cuda:1"]),
        ("cuda:1", True, 2, ["cuda:1"]), ("cuda:2", True, 2, None), ("cuda", False, 2, None),
    ],
)  # fmt: skip
def test_devices_of_a_run(monkeypatch, device, driver, count, names):
    monkeypatch.setattr(devices, "driver_is_visible", lambda: driver)
    monkeypatch.setattr(
        devices, "ask_torch", lambda environment: replace(FOUND, cards=FOUND.cards[:1] * count)
    )
    if names is None:
        with pytest.raises(DeviceError, match="was asked for, but"):
            devices.require_devices(device, {})
    else:
        assert devices.require_devices(device, {}) == names


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "by signal 9, most likely for want of memory"),
        ("raise SystemExit('first\\nlast')", "for devices: last"), ("pass", "no reason given"),
    ],
)  # fmt: skip
def test_a_torch_that_gives_no_answer(monkeypatch, script, words):
    monkeypatch.setattr(devices, "_QUESTION", script)
    with pytest.raises(DeviceError, match=words):
        devices.ask_torch()


def test_the_answer_of_torch(monkeypatch):
    answer = {"torch": "1", "cuda": "2", "architectures": ["sm_90"],
              "cards": [{"name": "H", "gigabytes": 80.0, "capability": [9, 0]}]}  # fmt: skip
    monkeypatch.setattr(devices, "_QUESTION", f"print('noise'); print({json.dumps(answer)!r})")
    card = devices.Card("H", 80.0, (9, 0))
    assert devices.ask_torch() == devices.Acceleration("1", "2", ("sm_90",), (card,))


def test_the_version_of_the_driver(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.driver_version() is None
    for script, version in (
        ("echo 550.1; echo 550.1", "550.1"),
        ("echo x; exit 9", None),
        ("", None),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert devices.driver_version() == version


@pytest.mark.parametrize(
    ("nprocs", "content", "kind", "given"),
    [
        (1, None, "Linear", {"n_procs": 1}), (2, None, "MultiProc", {"n_procs": 2}),
        (2, "plugin: Linear\nplugin_args: {x: 1}", "Linear", {"n_procs": 2, "x": 1}),
        (2, "plugin: MultiProc\nplugin_args: {n_procs: 5}", "MultiProc", {"n_procs": 5}),
        (2, "plugin: SLURM\nplugin_args: {x: 1}", "SLURM", {"x": 1}),
    ],
)  # fmt: skip
def test_who_runs_the_steps(tmp_path, nprocs, content, kind, given):
    path = None
    if content is not None:
        path = tmp_path / "plugin.yml"
        path.write_text(content)
    found = choose_plugin(Settings(use_plugin=path), Limits(nprocs, 1, 7.5), 3, print)
    if kind == "SLURM":
        assert found == {"plugin": "SLURM", "plugin_args": {"x": 1}}
        return
    plugin = found["plugin"]
    assert kind in type(plugin).__name__
    arguments = plugin.plugin_args
    assert {key: arguments[key] for key in given} == given
    assert (arguments["memory_gb"], arguments["n_gpu_procs"]) == (7.5, 3)
    assert arguments["raise_insufficient"] is False and arguments["status_callback"] is print


class Graph:
    """A graph that ends as it is told."""

    def __init__(self, end: Any = None) -> None:
        self.end, self.given = end, {}

    def run(self, **given: Any) -> None:
        self.given = given
        if self.end is not None:
            self.end()


def fail() -> None:
    raise ValueError("odd  graph")


def test_a_graph_that_cannot_run_and_one_of_which_a_step_crashed(tmp_path, monkeypatch, capsys):
    settings = Settings(output_dir=tmp_path)
    limits, plan = Limits(1, 1, 4.0), replace(PLAN, devices=("cuda:0", "cuda:1"))
    seen: list[Any] = []
    monkeypatch.setattr(execute, "choose_plugin", lambda *given: seen.append(given) or {"a": 1})
    graph: Any = Graph()
    crashes = tmp_path / "logs" / "crashes" / "run"
    assert execute.execute(settings, graph, plan, limits) == crashes
    assert graph.given == {"a": 1} and seen[0][:3] == (settings, limits, 2)
    assert execute.PREPARING in capsys.readouterr().err
    execute.execute(replace(settings, stage="report"), graph, PLAN, limits)
    assert execute.REPORTING in capsys.readouterr().err and seen[1][2] == 0
    broken: Any = Graph(fail)
    with pytest.raises(GraphError, match=r"could not be run \(ValueError: odd graph\)"):
        execute.execute(settings, broken, plan, limits)
    crashes.mkdir(parents=True)
    (crashes / "crash-1.txt").write_text("Node: a.b\n")
    assert execute.execute(settings, broken, plan, limits) == crashes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_and_is_raised_again(tmp_path, monkeypatch, number):
    ended: list[bool] = []
    monkeypatch.setattr(execute, "_end_children", lambda: ended.append(True))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, execute.Stop() as stop:
        stop.check()
        with suppress(SystemExit):  # as Nipype swallows it in a step
            os.kill(os.getpid(), number)
        stop.check()
    assert caught.value.code == 128 + number and ended == [True]
    assert signal.getsignal(number) is before


def test_logs_of_a_participant(tmp_path):
    settings = Settings(output_dir=tmp_path, work_dir=tmp_path / "work", verbose=1)
    people = [Participant("01", (), notices=("first", "second")), Participant("02", ())]
    node = tmp_path / "work" / "bids_moediff_wf" / "sub_01_wf" / "superres_wf" / "superres"
    node.mkdir(parents=True)
    (node / "stdout.nipype").write_text("out")
    (node / "stderr.nipype").touch()
    log = logging.getLogger("nipype.workflow")
    level = log.level
    with execute.run_logs(settings, PLAN, people):
        assert log.level == logging.INFO
        for words in ("bids_moediff_wf.sub_01_wf.x", "bids_moediff_wf.sub_02_wf.x", "of nobody"):
            log.info(words)
    assert log.level == level
    first, second = (run_file(settings, PLAN, one).parent for one in people)
    texts = [(folder / "nipype.log").read_text() for folder in (first, second)]
    for own, other, text in ((1, 2, texts[0]), (2, 1, texts[1])):
        assert f"sub_0{own}_wf.x" in text and f"sub_0{other}_wf.x" not in text
        assert "of nobody" in text
    assert (first / "notices.txt").read_text() == "first\nsecond\n"
    assert not (second / "notices.txt").exists()
    assert (first / "superres_stdout.log").read_text() == "out"
    assert not (first / "superres_stderr.log").exists()
    assert not list(second.glob("superres*"))
    assert "verbose = 1" in (first / "config.toml").read_text()


def test_the_text_of_the_methods_is_that_of_the_run_that_did_the_work(tmp_path):
    settings = Settings(output_dir=tmp_path)
    execute.write_methods(settings, "One [@nipype].")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    page = (tmp_path / "logs" / "CITATION.html").read_text()
    assert text.startswith("One [@nipype].") and "* [@nipype]" in text and "One [" in page
    execute.write_methods(replace(settings, stage="report"), "Two.")
    assert (tmp_path / "logs" / "CITATION.md").read_text() == text
    execute.write_methods(replace(settings, stage="sr"), "Two.")
    assert (tmp_path / "logs" / "CITATION.md").read_text().startswith("Two.")
    alone = Settings(output_dir=tmp_path / "b", stage="report")
    execute.write_methods(alone, "Three.")
    assert (tmp_path / "b" / "logs" / "CITATION.md").exists()


def test_weights_are_loaded_in_another_process(tmp_path, monkeypatch):
    asked: list[list[str]] = []

    def answer(code: int, out: str, errors: str) -> None:
        def call(command: list[str], **_: Any) -> Any:
            asked.append(command)
            return SimpleNamespace(returncode=code, stdout=out, stderr=errors)

        monkeypatch.setattr(check.subprocess, "run", call)

    monkeypatch.setattr(check, "choose", lambda *_: ModelChoice("student", "as asked"))
    answer(0, "student, version 1\n", "")
    assert check.require_weights(Settings(), "cpu") == "student, version 1, as asked"
    assert asked[0] == [
        sys.executable, "-m", "bids_moediff.cli.superres", "--check-model", "--model", "student",
    ]  # fmt: skip
    check.require_weights(Settings(weights=tmp_path), "cpu")
    assert asked[1][-2:] == ["--weights", "student"]
    for code, errors, words in (
        (78, "x\nbids_moediff-superres: Wrong sum.\n", "^Wrong sum.$"), (1, "", "no reason given"),
        (-9, "", "signal 9, most likely for want of memory"), (-11, "", r"signal 11\.$"),
    ):  # fmt: skip
        answer(code, "", errors)
        with pytest.raises(WeightsError, match=words):
            check.require_weights(Settings(), "cpu")
