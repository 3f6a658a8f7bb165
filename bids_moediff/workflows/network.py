# SPDX-License-Identifier: Apache-2.0
"""Super-resolve all images of a participant by one network, in one child process."""

from collections.abc import Sequence
from dataclasses import replace

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.families.choice import ModelChoice
from bids_moediff.interfaces.groups import PlannedGroup
from bids_moediff.interfaces.network import SuperResolve, WriteRequest
from bids_moediff.settings import Settings

from .made_with import weights_digest


def init_superres_wf(
    *,
    settings: Settings,
    choice: ModelChoice,
    devices: Sequence[str],
    gigabytes: float,
    num_threads: int = 1,
    groups: Sequence[PlannedGroup] = (),
    name: str = "superres_wf",
) -> Workflow:
    """Super-resolve the images of one participant, and combine those that belong together.

    Workflow Graph
        .. workflow::

            from bids_moediff.families.choice import ModelChoice
            from bids_moediff.settings import Settings
            from bids_moediff.workflows.network import init_superres_wf
            choice = ModelChoice("moediff", "asked for")
            wf = init_superres_wf(settings=Settings(), choice=choice, devices=[], gigabytes=4.0)

    Parameters
    ----------
    settings
        Sampling options are taken from here.
    choice
        The model, and why this one.
    devices
        Devices to choose from; one network each at a time.
    gigabytes
        Estimated memory of the largest image.
    num_threads, groups, name
        Threads of the network on the processor; scans to combine; name of the workflow.

    Inputs
    ------
    entries
        One file an image, from :class:`~bids_moediff.interfaces.network.DescribePrepared`.

    Outputs
    -------
    results
        JSON file with one entry an image or group.
    """
    workflow = Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=["entries"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["results"]), name="outputnode")
    write_request = _init_request_node(settings, choice)
    write_request.inputs.groups = [group.to_dict() for group in groups]
    write_request.inputs.combine_only = settings.combine_only
    superres = _init_network_node(devices, gigabytes, num_threads)
    workflow.connect([
        (inputnode, write_request, [("entries", "entries")]),
        (write_request, superres, [("request", "request")]),
        (superres, outputnode, [("results", "results")]),
    ])  # fmt: skip
    return workflow


def _init_request_node(settings: Settings, choice: ModelChoice) -> pe.Node:
    options = settings.alone()
    if settings.weights is None:
        options = replace(options, model=choice.model)
    if settings.sloppy:
        options = replace(options, num_steps=1)
    interface = WriteRequest(
        options=options.to_dict(),
        model_reason=choice.reason,
        weights=weights_digest(choice.model),
    )
    return pe.Node(interface, name="write_request", run_without_submitting=True)


def _init_network_node(devices: Sequence[str], gigabytes: float, num_threads: int) -> pe.Node:
    on_gpu = any(device.startswith("cuda") for device in devices)
    superres = pe.Node(
        SuperResolve(device=",".join(devices), use_gpu=on_gpu, gigabytes=gigabytes),
        name="superres",
        mem_gb=gigabytes,
        # Nipype counts GPU slots in threads, so a node on a card must have one of them.
        n_procs=1 if on_gpu else num_threads,
    )
    superres.inputs.environ = {"OMP_NUM_THREADS": str(num_threads), "NO_ET": "1"}
    return superres
