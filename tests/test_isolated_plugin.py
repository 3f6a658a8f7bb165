# SPDX-License-Identifier: Apache-2.0
"""One bad image leaves the others alone, even when the process that works on it is killed."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from nipype import config
from nipype.interfaces import utility as niu
from nipype.interfaces.base import traits
from nipype.pipeline import engine as pe
from nipype.pipeline.plugins.linear import LinearPlugin

from bids_moediff.errors import ImageError
from bids_moediff.execution.isolated_plugin import IsolatedMultiProcPlugin
from bids_moediff.execution.plugin_choice import choose_plugin
from bids_moediff.interfaces.step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec
from bids_moediff.runtime.resources import Limits
from bids_moediff.settings import Settings


@pytest.fixture(autouse=True)
def quick_and_tidy() -> None:
    settings = {"poll_sleep_duration": 0.05, "remove_unnecessary_outputs": False}
    config.update_config({"execution": settings})


class _InputSpec(ImageStepInputSpec):
    deed = traits.Str(mandatory=True)


class _OutputSpec(ImageStepOutputSpec):
    value = traits.Str()


class Deed(ImageStep):
    """A step that does what it is told, be it bad."""

    input_spec = _InputSpec
    output_spec = _OutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        if self.inputs.deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.deed == "refuse":
            raise ImageError("This image is no good.")
        if self.inputs.deed == "weigh":
            raise ImageError("light" if gc.get_freeze_count() else "heavy")
        if self.inputs.deed == "stumble":
            raise ZeroDivisionError("by zero")
        return {"value": self.inputs.deed}


def run_deeds(folder: Path, deeds: list[str], plugin: Any) -> list[str]:
    workflow = pe.Workflow(name="deeds_wf", base_dir=str(folder))
    gather = pe.Node(niu.Merge(len(deeds)), name="gather")
    for number, deed in enumerate(deeds, 1):
        first = pe.Node(Deed(deed=deed), name=f"first{number}", mem_gb=0.3)
        second = pe.Node(Deed(deed="fine"), name=f"second{number}")
        workflow.connect(first, "failure", second, "failure")
        workflow.connect(second, "failure", gather, f"in{number}")
    graph = workflow.run(plugin=plugin)
    node = next(node for node in graph.nodes() if node.name == "gather")
    return node.result.outputs.out


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_fails_its_own_image_only(tmp_path: Path, workers: int) -> None:
    plugin = IsolatedMultiProcPlugin(plugin_args={"n_procs": workers, "memory_gb": 8})
    failures = run_deeds(tmp_path, ["fine", "die", "refuse", "stumble"], plugin)
    assert failures[0] == ""
    assert failures[1] == (
        "Deed was killed, most likely for want of memory: it needs about 0.3 GB; give the run "
        "more memory or fewer processes at a time (--nprocs)."
    )
    assert failures[2] == "This image is no good."
    assert failures[3] == "Deed failed unexpectedly (ZeroDivisionError: by zero)."


def test_what_was_loaded_before_the_run_is_no_garbage(tmp_path: Path) -> None:
    plugin = IsolatedMultiProcPlugin(plugin_args={"n_procs": 2, "memory_gb": 8})
    assert run_deeds(tmp_path, ["weigh"], plugin) == ["light"]
    assert gc.get_freeze_count() == 0


def test_the_same_sentences_in_one_process(tmp_path: Path) -> None:
    failures = run_deeds(tmp_path, ["refuse", "fine", "stumble"], "Linear")
    assert failures[:2] == ["This image is no good.", ""]
    trace = tmp_path / "deeds_wf" / "first3" / "traceback.txt"
    assert "ZeroDivisionError" in trace.read_text()


def test_a_killed_node_that_is_no_image_step_ends_the_run_with_an_error(tmp_path: Path) -> None:
    workflow = pe.Workflow(name="deeds_wf", base_dir=str(tmp_path))
    workflow.config["execution"] = {"crashdump_dir": str(tmp_path / "crashes")}
    die = pe.Node(niu.Function(function=_die, output_names=["out"]), name="die")
    workflow.add_nodes([die])
    with pytest.raises(RuntimeError, match="BrokenProcessPool"):
        workflow.run(plugin=IsolatedMultiProcPlugin(plugin_args={"n_procs": 2}))


STOP = """
import os, signal, sys
from pathlib import Path
from nipype.pipeline import engine as pe
from nipype.interfaces import utility as niu
from bids_moediff.execution.execute import Stop

def wait(folder, name):
    import pathlib, time
    (pathlib.Path(folder) / name).touch()
    time.sleep(60)

workflow = pe.Workflow(name="wait_wf", base_dir=sys.argv[1])
for name in ("one", "two"):
    function = niu.Function(function=wait, output_names=["out"])
    node = pe.Node(function, name=name)
    node.inputs.folder, node.inputs.name = sys.argv[1], name
    workflow.add_nodes([node])
with Stop() as stop:
    workflow.run(plugin="Linear", plugin_args={"status_callback": stop.check})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_starts_no_further_node(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(STOP)
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "one").exists() and not (tmp_path / "two").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=50) == 128 + number
    assert (tmp_path / "one").exists() != (tmp_path / "two").exists()


def _die() -> int:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_the_plugin_follows_processors_and_file(tmp_path: Path) -> None:
    def chosen(nprocs: int, content: str = "") -> dict[str, Any]:
        file = tmp_path / "plugin.yml"
        file.write_text(content)
        settings = Settings(use_plugin=file if content else None)
        return choose_plugin(settings, Limits(nprocs, 1, 7.5), 2, print)

    assert type(chosen(1)["plugin"]) is LinearPlugin
    several = chosen(3)["plugin"]
    assert type(several) is IsolatedMultiProcPlugin
    given = several.plugin_args
    assert (given["n_procs"], given["memory_gb"], given["n_gpu_procs"]) == (3, 7.5, 2)
    fewer = chosen(3, "plugin: MultiProc\nplugin_args: {n_procs: 2}")["plugin"].plugin_args
    assert (fewer["n_procs"], fewer["memory_gb"]) == (2, 7.5)
    other = chosen(3, "plugin: SLURM\nplugin_args: {sbatch_args: --mem=8G}")
    assert other == {"plugin": "SLURM", "plugin_args": {"sbatch_args": "--mem=8G"}}
