# SPDX-License-Identifier: Apache-2.0
"""Every step of the graph, its inputs and what it waits for, as text beside this file.

A connection that is lost, an option that does not arrive, memory or threads that are counted wrong
change a line of ``tests/data/graphs`` (see ``golden.py``).
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined
from nipype.interfaces.utility import IdentityInterface, Merge
from nipype.pipeline import engine as pe

from bids_moediff import __version__
from bids_moediff.bids.discover import discover_participant, with_others
from bids_moediff.bids.image import Participant
from bids_moediff.execution.preflight import check_participants
from bids_moediff.families import cost
from bids_moediff.options import Options
from bids_moediff.settings import load_settings
from bids_moediff.workflows.participant import RunPlan, init_bids_moediff_wf
from generated import dataset
from golden import check

DIGEST = re.compile(r"\b[0-9a-f]{16}\b")
SCANS = {
    "sub-01_ses-a_T1w": (1.0, 1.0, 1.5), "sub-01_ses-a_acq-ax_T2w": (1.0, 1.0, 5.0),
    "sub-01_ses-a_acq-cor_T2w": (1.0, 5.0, 1.0), "sub-02_T1w": (1.0, 1.0, 1.0),
    "sub-02_UNIT1": (0.6, 0.6, 0.6),
}  # fmt: skip
OURS = {
    "default": ({}, ("student", ("cpu",), 3)),
    "everything": (
        {
            "combine": "auto", "outputs": ["gates", "uncertainty", "samples", "kernels"],
            "num_samples": 2, "output_spaces": ["MNI152NLin6Asym"], "intensities": "corrected",
            "output_dtype": "float32", "sloppy": True, "num_steps": 4, "non_negative": True,
            "derivatives": "earlier", "carry": "earlier", "output_resolution": "0.8",
        },
        ("moediff", ("cuda:0", "cuda:1"), 2),
    ),
    "combined only": (
        {"combine": "auto", "combine_only": True, "stage": "sr", "noise": "3"},
        ("student", ("cpu",), 1),
    ),
    "guided": ({"stage": "sr"}, ("crfm", ("cpu",), 1)),
    "prepared": (
        {"stage": "preproc", "gradient_coefficients": "scanner.grad"},
        ("student", ("cpu",), 1),
    ),
    "reported": ({"stage": "report", "combine": "auto"}, ("student", ("cpu",), 1)),
}  # fmt: skip
WHO = {"everything": "01", "combined only": "01", "guided": "01"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Scans of two participants, and masks and maps that another app made of them."""
    folder = tmp_path_factory.mktemp("graphs")
    images = {}
    for name, zooms in SCANS.items():
        shape = tuple(round(45 / zoom) for zoom in zooms)
        images[name] = nib.Nifti1Image(np.ones(shape, np.int16), np.diag([*zooms, 1.0]))
    dataset(folder / "bids", images)
    anat = folder / "earlier" / "sub-01" / "ses-a" / "anat"
    anat.mkdir(parents=True)
    for name in ("desc-brain_mask", "dseg", "space-MNI152NLin6Asym_dseg", "space-T2w_dseg"):
        (anat / f"sub-01_ses-a_{name}.nii.gz").touch()
    (folder / "scanner.grad").touch()
    return folder


def plain(value: Any, root: Path) -> str:
    """One line of an input, without what differs from run to run or from machine to machine."""
    if isinstance(value, str) and value.startswith('{"path"'):
        source = json.loads(value)
        members = [json.loads(one)["relative_path"] for one in source["members"]]
        value = f"<{source['relative_path']} {' '.join(members)}>".replace(" >", ">")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(value[key], root)}" for key in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(plain(item, root) for item in value) + "]"
    words = DIGEST.sub("<digest>", str(value).replace(str(root), "ROOT"))
    return words.replace(__version__, "<version>").replace(str(Path.home()), "HOME")


def described(workflow: pe.Workflow, root: Path) -> str:
    """All steps with their inputs, and where these come from."""
    graph = workflow._create_flat_graph()
    lines = []
    for node in sorted(graph.nodes(), key=lambda node: node.fullname):
        name = node.fullname.partition(".")[2]
        kind = type(node.interface).__name__
        plumbing = isinstance(node.interface, IdentityInterface | Merge)
        costs = "" if plumbing else f" {node.n_procs} x, {node._mem_gb or 0:.3g} GB"
        here = " here" if node.run_without_submitting and not plumbing else ""
        again = " always" if node.overwrite else ""
        lines.append(f"{name}: {kind}{costs}{here}{again}")
        given = node.inputs.trait_get()
        wired = {
            inlet: f"{source.fullname.partition('.')[2]}.{field}"
            for source, _, data in graph.in_edges(node, data=True)
            for field, inlet in data["connect"]
        }
        for field in sorted({*given, *wired}):
            if field in wired:
                lines.append(f"  {field} <- {wired[field]}")
            elif field == "options":  # those that are not the default
                usual, own = Options().to_dict(), given[field]
                own = {key: own[key] for key in own if own[key] != usual[key]}
                lines.append(f"  options = {plain(own, root)}")
            elif isdefined(given[field]) and given[field] not in ("", [], {}, None, False):
                lines.append(f"  {field} = {plain(given[field], root)}")
    return "\n".join(lines) + "\n"


def large(participant: Participant) -> Participant:
    """The participant with images of a size at which memory counts."""
    images = tuple(
        replace(image, shape=(6 * image.shape[0], 6 * image.shape[1], 5 * image.shape[2]))
        for image in participant.images
        if image.shape
    )
    return replace(participant, images=images)


@pytest.mark.parametrize("name", OURS)
def test_the_steps_and_what_they_are_given(root, name, monkeypatch):
    monkeypatch.setattr(cost, "has_bfloat16", lambda: True)
    given, (model, devices, threads) = OURS[name]
    options = {
        key: str(root / value) if value in ("earlier", "scanner.grad") else value
        for key, value in given.items()
    }
    settings = load_settings(
        {"bids_dir": str(root / "bids"), "output_dir": str(root / "out"),
         "analysis_level": "participant", **options}, None, {},
    )  # fmt: skip
    plan = RunPlan(model, "the reason", devices, threads, "run")
    found = [checked.participant for checked in check_participants(settings, ["01", "02"])]
    found = [large(one) for one in found if one.label == WHO.get(name, one.label)]
    if name == "guided":
        found = [with_others(settings, one) for one in found]
    refused = {"02": [{"key": "refused", "source": "x"}]} if name == "default" else {}
    workflow = init_bids_moediff_wf(settings, found, plan, refused)
    assert workflow.base_dir == str(root / "out" / ".work")
    check(f"graphs/{name.replace(' ', '_')}.txt", described(workflow, root))


def test_a_participant_without_an_image_has_no_network(root):
    settings = load_settings(
        {"bids_dir": str(root / "bids"), "output_dir": str(root / "out"),
         "analysis_level": "participant"}, None, {},
    )  # fmt: skip
    assert discover_participant(settings, "01").images
    plan = RunPlan("student", "", ("cpu",), 1, "run")
    workflow = init_bids_moediff_wf(settings, [Participant("03", ())], plan)
    check("graphs/nobody.txt", described(workflow, root))
