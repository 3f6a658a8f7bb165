# SPDX-License-Identifier: Apache-2.0
"""All images of a participant through one network, in one child process."""

from collections.abc import Sequence
from dataclasses import replace

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.families import family
from bids_moediff.interfaces.groups import PlannedGroup
from bids_moediff.interfaces.network import SuperResolve, WriteRequest
from bids_moediff.networks.model_folder import read_config
from bids_moediff.options import FINEST_DEFAULT
from bids_moediff.settings import Settings


def init_superres_wf(
    *,
    settings: Settings,
    model: str,
    model_reason: str = "",
    devices: Sequence[str],
    gigabytes: float,
    num_threads: int = 1,
    groups: Sequence[PlannedGroup] = (),
    name: str = "superres_wf",
) -> Workflow:
    """Super-resolve the images of one participant, and combine those that belong together.

    Workflow Graph
        .. workflow::

            from bids_moediff.settings import Settings
            from bids_moediff.workflows.network import init_superres_wf
            wf = init_superres_wf(
                settings=Settings(), model="moediff", devices=["cpu"], gigabytes=4.0
            )

    Parameters
    ----------
    settings
        Sampling options are taken from here.
    model
        Name or folder of the model.
    model_reason
        Why this model, for sidecar and report.
    devices
        Devices to choose from; one network each at a time.
    gigabytes
        Estimated memory of the largest image.
    num_threads
        Threads of the network on the processor.
    groups
        Scans to combine.
    name
        Name of the workflow.

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
    workflow.__desc__ = _methods(settings, model, combine=bool(groups))
    inputnode = pe.Node(niu.IdentityInterface(fields=["entries"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["results"]), name="outputnode")
    write_request = _init_request_node(settings, model, model_reason)
    write_request.inputs.groups = [group.to_dict() for group in groups]
    write_request.inputs.combine_only = settings.combine_only
    superres = _init_network_node(devices, gigabytes, num_threads)
    workflow.connect([
        (inputnode, write_request, [("entries", "entries")]),
        (write_request, superres, [("request", "request")]),
        (superres, outputnode, [("results", "results")]),
    ])  # fmt: skip
    return workflow


def _init_request_node(settings: Settings, model: str, model_reason: str) -> pe.Node:
    options = settings.alone()
    if settings.weights is None:
        options = replace(options, model=model)
    if settings.sloppy:
        options = replace(options, num_steps=1)
    interface = WriteRequest(options=options.to_dict(), model_reason=model_reason)
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


def _methods(settings: Settings, model: str, combine: bool) -> str:
    zooms = settings.output_resolution
    if isinstance(zooms, str):
        size = f"{FINEST_DEFAULT:g} mm, or that of the input along axes where it is smaller"
    else:
        words = dict.fromkeys(zooms) if len(set(zooms)) == 1 else zooms
        size = " x ".join(f"{zoom:g}" for zoom in words) + " mm"
    config = read_config(model)
    network = family(config["family"]).network_words(config)
    text = f"""
#### Super-resolution

The images were super-resolved to a voxel size of {size}
(isotropic where one number is given) with {network},
implemented in *PyTorch* [@pytorch] (model `{model.rsplit("/", 1)[-1]}`).
The result was projected onto the set of images that agree with the measured one under the declared
acquisition, so that averaging it over the acquired voxels gives the measured image back.
"""
    if settings.num_samples > 1:
        text += f"""\
The mean of {settings.num_samples} samples is reported.
"""
    if settings.num_samples > 1 or "uncertainty" in settings.outputs:
        text += """\
The error to be expected of each voxel (one standard deviation) was estimated from the local size
of the detail that the network had added, with a factor measured on heads of known truth.
"""
    if combine:
        text += """\
Scans of one contrast were combined: the super-resolved images were registered rigidly to one
another (correlation, *SimpleITK* [@simpleitk]), and the image that explains the measured voxels of
all scans was estimated around their weighted mean by conjugate gradients.
"""
    return text
