# SPDX-License-Identifier: Apache-2.0
"""The work folder: failures are tried again, and jobs that share it leave each other alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from nipype import config
from nipype.interfaces.base import traits
from nipype.pipeline import engine as pe

from bids_moediff.errors import ImageError
from bids_moediff.execution.work_folder import forget_failures, participant_folder, remove_work
from bids_moediff.interfaces.step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec
from bids_moediff.workflows.folder_names import WORKFLOW_NAME, participant_workflow_name
from conftest import ROOT


@pytest.fixture(autouse=True)
def files_of_steps_stay() -> None:
    """As in the app: Nipype would remove the mark of a failure."""
    config.update_config({"execution": {"remove_unnecessary_outputs": False}})


class _InputSpec(ImageStepInputSpec):
    folder = traits.Str(mandatory=True)


class OnlyWithFlag(ImageStep):
    """Fails as long as a file is absent; counts its calls in another one."""

    input_spec = _InputSpec
    output_spec = ImageStepOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        outside = Path(self.inputs.folder)
        with (outside / "calls").open("a") as stream:
            stream.write("x")
        if not (outside / "flag").exists():
            raise ImageError("The flag is not there.")
        return {}


def run_step(tmp_path: Path) -> str:
    """Failure of one run of a step that needs the flag."""
    workflow = pe.Workflow(name=WORKFLOW_NAME, base_dir=str(tmp_path / "work"))
    inner = pe.Workflow(name=participant_workflow_name("01"))
    inner.add_nodes([pe.Node(OnlyWithFlag(folder=str(tmp_path)), name="step")])
    workflow.add_nodes([inner])
    graph = workflow.run(plugin="Linear")
    (node,) = graph.nodes()
    return node.result.outputs.failure


@pytest.mark.parametrize("label", ["01", "02"])
def test_only_own_failures_are_tried_again(tmp_path: Path, label: str) -> None:
    assert run_step(tmp_path) == "The flag is not there."
    (tmp_path / "flag").touch()
    forget_failures(tmp_path / "work", [label])
    expected = "" if label == "01" else "The flag is not there."
    assert run_step(tmp_path) == expected


def test_success_is_kept(tmp_path: Path) -> None:
    (tmp_path / "flag").touch()
    assert run_step(tmp_path) == ""
    forget_failures(tmp_path / "work", ["01"])
    assert run_step(tmp_path) == ""
    assert (tmp_path / "calls").read_text() == "x"


def test_a_job_removes_only_what_its_participants_left(tmp_path: Path) -> None:
    for label in ("01", "02"):
        (participant_folder(tmp_path, label) / "step").mkdir(parents=True)
    remove_work(tmp_path, ["01"])
    assert not participant_folder(tmp_path, "01").exists()
    assert (participant_folder(tmp_path, "02") / "step").is_dir()
    remove_work(tmp_path, ["02"])
    assert not tmp_path.exists()


def test_caches_are_of_one_process_and_go_with_it(tmp_path: Path) -> None:
    work = tmp_path / "work"
    code = f"""
from pathlib import Path
from bids_moediff.execution.run import prepare_environment
import os
prepare_environment(Path({str(work)!r}), 1)
print(os.environ["MPLCONFIGDIR"])
assert Path(os.environ["MPLCONFIGDIR"]).is_dir()
"""
    kept = {"MPLCONFIGDIR", "TEMPLATEFLOW_HOME", "NIPYPE_CONFIG_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(
            command,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    first, second = (run.stdout.strip() for run in runs)
    assert first != second
    assert Path(first).is_relative_to(work)
    assert not work.exists()


def test_matplotlib_needs_no_search_for_fonts(tmp_path: Path) -> None:
    """If it searches, its list has another format: python tools/font_list.py."""
    code = f"""
from pathlib import Path
from bids_moediff.execution.run import prepare_environment
prepare_environment(Path({str(tmp_path / "work")!r}), 1)
import logging
logging.basicConfig(level=logging.INFO)
from matplotlib import font_manager
assert font_manager.findfont("DejaVu Sans").endswith("DejaVuSans.ttf")
assert all(Path(font.fname).is_file() for font in font_manager.fontManager.ttflist)
"""
    environment = {k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "generated new fontManager" not in done.stderr


def test_the_process_that_forks_does_not_load_torch() -> None:
    """Its threads would not survive, and the import takes more than a second."""
    code = """
import sys
import bids_moediff.execution.batch, bids_moediff.execution.execute
import bids_moediff.workflows.participant
heavy = {"torch", "pandas", "sklearn", "nilearn"} & set(sys.modules)
sys.exit(f"{heavy}" if heavy else 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sums_do_not_depend_on_the_processors_of_the_job(tmp_path: Path) -> None:
    """OpenBLAS shares a sum out to its threads, and the last digits show how many there were."""
    code = f"""
from pathlib import Path
from bids_moediff.execution.run import prepare_environment
prepare_environment(Path({str(tmp_path / "work")!r}), 4)
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
print({{pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "4"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["{1}"]
