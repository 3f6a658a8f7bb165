# SPDX-License-Identifier: Apache-2.0
"""What comes out of the network, judged and written, one image at a time."""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.interfaces.network import SelectResult
from bids_moediff.interfaces.products import SidecarRecord
from bids_moediff.interfaces.quality import ImageQuality
from bids_moediff.settings import Settings

from .outputs import (
    init_ds_gates_wf,
    init_ds_standard_wf,
    init_ds_superres_wf,
    init_ds_uncertainty_wf,
)

INPUT_FIELDS = [
    "source", "key", "results", "image", "mask", "notes", "mask_record", "mask_failure",
    "failure",
]  # fmt: skip
OUTPUT_FIELDS = ["quality", "doubts", "failure"]


def init_image_products_wf(*, settings: Settings, name: str = "image_products_wf") -> Workflow:
    """Pick the result of one image, compute its quality figures and write it.

    Workflow Graph
        .. workflow::

            from bids_moediff.settings import Settings
            from bids_moediff.workflows.products import init_image_products_wf
            wf = init_image_products_wf(settings=Settings())

    Parameters
    ----------
    settings
        Output folder, voxel size and further outputs are taken from here.
    name
        Name of the workflow.

    Inputs
    ------
    source, key
        Source image as text and its name in the results.
    results
        Results of the participant.
    image, mask, notes, mask_record, mask_failure
        Products of the preparation. The quality figures need no more than these, so they are
        computed beside the bias field and the network.
    failure
        What went wrong before.

    Outputs
    -------
    quality
        JSON file: quality figures.
    doubts
        JSON file: what is unusual about the scan.
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=INPUT_FIELDS), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=OUTPUT_FIELDS), name="outputnode")
    select = pe.Node(SelectResult(), name="select", run_without_submitting=True)
    quality = pe.Node(ImageQuality(), name="quality", mem_gb=1.5)
    record = pe.Node(SidecarRecord(), name="record", run_without_submitting=True)
    ds_superres_wf = init_ds_superres_wf(output_dir=str(settings.output_dir), zooms=settings.zooms)
    workflow.connect([
        (inputnode, select, [("results", "results"), ("key", "key"), ("failure", "failure")]),
        (inputnode, quality, [
            ("image", "image"), ("mask", "mask"), ("source", "source"),
            ("mask_failure", "failure"),
        ]),
        (inputnode, record, [("notes", "notes"), ("mask_record", "mask_record")]),
        (select, record, [("result", "result"), ("failure", "failure")]),
        (quality, record, [
            ("quality", "quality"), ("doubts", "doubts"), ("failure", "quality_failure"),
        ]),
        (inputnode, ds_superres_wf, [("source", "inputnode.source"), ("mask", "inputnode.mask")]),
        (select, ds_superres_wf, [("image", "inputnode.image")]),
        (record, ds_superres_wf, [
            ("record", "inputnode.record"), ("failure", "inputnode.failure"),
        ]),
        (quality, outputnode, [("quality", "quality"), ("doubts", "doubts")]),
    ])  # fmt: skip
    _connect_further_outputs(workflow, settings)
    return workflow


def _connect_further_outputs(workflow: Workflow, settings: Settings) -> None:
    """Write gates, expected error and standard spaces where asked for, one after another."""
    inputnode, select, record, chain, outputnode = (
        workflow.get_node(name)
        for name in ("inputnode", "select", "record", "ds_superres_wf", "outputnode")
    )
    mask = (chain, "outputnode.mask", "inputnode.mask")
    folder, zooms = str(settings.output_dir), settings.zooms
    further = []
    if "gates" in settings.outputs:
        ds_wf = init_ds_gates_wf(output_dir=folder, zooms=zooms)
        further.append((ds_wf, [(select, "gates", "inputnode.gates")]))
    if settings.num_samples > 1 or "uncertainty" in settings.outputs:
        ds_wf = init_ds_uncertainty_wf(output_dir=folder, zooms=zooms)
        field = "standard_deviation"
        further.append((ds_wf, [(select, field, f"inputnode.{field}")]))
    for space in settings.output_spaces:
        ds_wf = init_ds_standard_wf(
            output_dir=folder,
            space=space,
            zooms=zooms,
            flexible=not settings.sloppy,
            name=f"ds_{space}_wf",
        )
        further.append((ds_wf, [(select, "image", "inputnode.image"), mask]))
    for ds_wf, sources in further:
        for node, field, target in sources:
            workflow.connect(node, field, ds_wf, target)
        workflow.connect([
            (inputnode, ds_wf, [("source", "inputnode.source")]),
            (record, ds_wf, [("record", "inputnode.record")]),
            (chain, ds_wf, [("outputnode.failure", "inputnode.failure")]),
        ])  # fmt: skip
        chain = ds_wf
    workflow.connect(chain, "outputnode.failure", outputnode, "failure")
