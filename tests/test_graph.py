# SPDX-License-Identifier: Apache-2.0
"""What waits for what: quality figures run beside bias field and network."""

from pathlib import Path

import networkx as nx
import pytest
from nipype.interfaces.base import isdefined
from nipype.pipeline.engine.utils import generate_expanded_graph

from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.interfaces.products import SidecarRecord
from bids_moediff.settings import Settings
from bids_moediff.workflows.participant import RunPlan, init_single_subject_wf

NAME = "sub-01/anat/sub-01_T1w.nii.gz"
IMAGE = AnatomicalImage(Path("/nowhere") / NAME, NAME, {"sub": "01"}, "T1w", {})


@pytest.fixture(scope="module")
def graph() -> nx.DiGraph:
    """Names of the steps of a participant with one image, with what they wait for."""
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    workflow = init_single_subject_wf(Participant("01", (IMAGE,)), Settings(), plan)
    # Without the nodes that only hand on, which join what has nothing to do with each other.
    steps = generate_expanded_graph(workflow._create_flat_graph())
    return nx.DiGraph([(a.name, b.name) for a, b in steps.edges()])


def test_quality_waits_for_the_brain_mask_alone(graph: nx.DiGraph) -> None:
    before = nx.ancestors(graph, "quality")
    assert {"conform", "brain_mask"} <= before
    assert not before & {"bias_field", "superres", "select"}


def test_nothing_is_written_before_figures_and_result_are_there(graph: nx.DiGraph) -> None:
    assert {"quality", "superres"} <= nx.ancestors(graph, "ds_sr")


def test_an_image_without_figures_fails_with_their_sentence(tmp_path: Path) -> None:
    step = SidecarRecord(failure_beside="The figures cannot be computed.")
    found = step.run(cwd=str(tmp_path)).outputs
    assert found.failure == "The figures cannot be computed."


@pytest.mark.parametrize(("intensities", "raw"), [("input", "/raw"), ("corrected", None)])
def test_the_page_shows_the_image_whose_intensities_were_kept(intensities, raw) -> None:
    settings = Settings(bids_dir=Path("/raw"), output_dir=Path("/out"), intensities=intensities)
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    workflow = init_single_subject_wf(Participant("01", (IMAGE,)), settings, plan)
    given = workflow.get_node("report").inputs.raw_dir
    assert (given if isdefined(given) and given else None) == raw


@pytest.mark.parametrize(("devices", "slots"), [(("cpu",), 4), (("cuda:0", "cuda:1"), 1)])
def test_a_network_counts_the_processors_it_uses(devices, slots) -> None:
    """Otherwise a run starts more of them than it has processors, or cards."""
    plan = RunPlan("student", "", devices, 4, "run")
    workflow = init_single_subject_wf(Participant("01", (IMAGE,)), Settings(), plan)
    network = workflow.get_node("superres_wf").get_node("superres")
    assert network.n_procs == slots
    assert network.inputs.device == ",".join(devices)
    assert network.inputs.use_gpu == (devices[0] != "cpu")


def test_what_the_network_is_given_in_the_request() -> None:
    plan = RunPlan("student", "why", ("cpu",), 1, "run")
    for settings, steps in ((Settings(), None), (Settings(sloppy=True, num_steps=4), 1)):
        workflow = init_single_subject_wf(Participant("01", (IMAGE,)), settings, plan)
        request = workflow.get_node("superres_wf").get_node("write_request").inputs
        assert request.options["model"] == "student" and request.model_reason == "why"
        assert request.options["num_steps"] == steps


@pytest.mark.parametrize(
    ("intensities", "connected"),
    [
        ("input", {("conform", "image", "image"), ("bias_field", "bias_field", "bias_field")}),
        ("corrected", {("bias_field", "corrected", "image")}),
    ],
)
def test_the_network_gets_the_image_whose_intensities_are_kept(intensities, connected) -> None:
    settings = Settings(intensities=intensities)
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    workflow = init_single_subject_wf(Participant("01", (IMAGE,)), settings, plan)
    graph = workflow.get_node("prepare_T1w_wf")._graph
    found = {
        (source.name, field, inlet)
        for source, target, data in graph.edges(data=True)
        for field, inlet in data["connect"]
        if target.name == "describe" and inlet in ("image", "bias_field")
    }
    assert found == connected


@pytest.mark.parametrize("unwarping", [False, True])
def test_the_record_says_what_the_preparation_does(tmp_path: Path, unwarping: bool) -> None:
    """The methods text is written from it."""
    coefficients = tmp_path / "scanner.grad"
    coefficients.touch()
    given = {"gradient_coefficients": coefficients} if unwarping else {}
    settings = Settings(**given, skip_bias_correction=True)
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    workflow = init_single_subject_wf(Participant("01", (IMAGE,)), settings, plan)
    status = workflow.get_node("status_T1w").inputs
    assert status.unwarping == unwarping
    assert not status.bias_correction
