# SPDX-License-Identifier: Apache-2.0
"""Small workflows that write one kind of product each ("ds": data sink)."""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.interfaces.products import (
    ResampleMask,
    ToStandardSpace,
    WinningExpert,
    WriteDerivative,
)

Zooms = tuple[float, float, float]


def init_ds_preparation_wf(*, output_dir: str, name: str = "ds_preparation_wf") -> Workflow:
    """Write the prepared image and its brain mask, both on the input grid.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.outputs import init_ds_preparation_wf
            wf = init_ds_preparation_wf(output_dir="out")

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text.
    corrected, mask, mask_record
        Products of the preparation.
    failure
        What went wrong before.

    Outputs
    -------
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["source", "corrected", "mask", "mask_record", "failure"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["failure"]), name="outputnode")
    ds_preproc = _ds_node("preproc", output_dir)
    ds_mask = _ds_node("mask", output_dir)
    workflow.connect([
        (inputnode, ds_preproc, [
            ("source", "source"), ("corrected", "image"), ("mask_record", "mask_record"),
            ("failure", "failure"),
        ]),
        (inputnode, ds_mask, [
            ("source", "source"), ("mask", "image"), ("mask_record", "record"),
        ]),
        (ds_preproc, ds_mask, [("failure", "failure")]),
        (ds_mask, outputnode, [("failure", "failure")]),
    ])  # fmt: skip
    return workflow


def init_ds_superres_wf(
    *, output_dir: str, zooms: Zooms, name: str = "ds_superres_wf"
) -> Workflow:
    """Write the super-resolved image and the brain mask on its grid.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.outputs import init_ds_superres_wf
            wf = init_ds_superres_wf(output_dir="out", zooms=(0.7, 0.7, 0.7))

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    zooms
        Output voxel size in mm.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text.
    image, mask
        Super-resolved image; brain mask on the input grid.
    record
        JSON file for the sidecar.
    failure
        What went wrong before.

    Outputs
    -------
    mask
        Brain mask on the output grid.
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["source", "image", "mask", "record", "failure"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["mask", "failure"]), name="outputnode")
    resample_mask = pe.Node(ResampleMask(), name="resample_mask", mem_gb=1.5)
    ds_mask = _ds_node("srmask", output_dir, zooms)
    ds_image = _ds_node("sr", output_dir, zooms)
    workflow.connect([
        (inputnode, resample_mask, [
            ("mask", "mask"), ("image", "image"), ("failure", "failure"),
        ]),
        (inputnode, ds_mask, [("source", "source")]),
        (resample_mask, ds_mask, [("mask", "image"), ("failure", "failure")]),
        (inputnode, ds_image, [
            ("source", "source"), ("image", "image"), ("record", "record"),
        ]),
        (ds_mask, ds_image, [("failure", "failure")]),
        (resample_mask, outputnode, [("mask", "mask")]),
        (ds_image, outputnode, [("failure", "failure")]),
    ])  # fmt: skip
    return workflow


def init_ds_gates_wf(*, output_dir: str, zooms: Zooms, name: str = "ds_gates_wf") -> Workflow:
    """Write the weights of the experts and the expert that wins in each voxel.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.outputs import init_ds_gates_wf
            wf = init_ds_gates_wf(output_dir="out", zooms=(0.7, 0.7, 0.7))

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    zooms
        Output voxel size in mm.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text.
    gates
        Weights of the experts, 4-D; undefined for a model without experts (nothing is written).
    record
        JSON file for the sidecar.
    failure
        What went wrong before.

    Outputs
    -------
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["source", "gates", "record", "failure"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["failure"]), name="outputnode")
    winner = pe.Node(WinningExpert(), name="winner", mem_gb=1.5)
    ds_gates = _ds_node("gates", output_dir, zooms)
    ds_expert = _ds_node("expert", output_dir, zooms)
    workflow.connect([
        (inputnode, winner, [("gates", "gates"), ("failure", "failure")]),
        (inputnode, ds_gates, [
            ("source", "source"), ("gates", "image"), ("record", "record"),
        ]),
        (winner, ds_gates, [("failure", "failure")]),
        (inputnode, ds_expert, [("source", "source"), ("record", "record")]),
        (winner, ds_expert, [("labels", "image")]),
        (ds_gates, ds_expert, [("failure", "failure")]),
        (ds_expert, outputnode, [("failure", "failure")]),
    ])  # fmt: skip
    return workflow


def init_ds_uncertainty_wf(
    *, output_dir: str, zooms: Zooms, name: str = "ds_uncertainty_wf"
) -> Workflow:
    """Write the standard deviation over samples.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.outputs import init_ds_uncertainty_wf
            wf = init_ds_uncertainty_wf(output_dir="out", zooms=(0.7, 0.7, 0.7))

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    zooms
        Output voxel size in mm.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text.
    standard_deviation
        Expected error of each voxel, in the units of the image.
    record
        JSON file for the sidecar.
    failure
        What went wrong before.

    Outputs
    -------
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["source", "standard_deviation", "record", "failure"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["failure"]), name="outputnode")
    ds_deviation = _ds_node("srstd", output_dir, zooms)
    workflow.connect([
        (inputnode, ds_deviation, [
            ("source", "source"), ("standard_deviation", "image"), ("record", "record"),
            ("failure", "failure"),
        ]),
        (ds_deviation, outputnode, [("failure", "failure")]),
    ])  # fmt: skip
    return workflow


def init_ds_standard_wf(
    *,
    output_dir: str,
    space: str,
    zooms: Zooms,
    flexible: bool = True,
    name: str = "ds_standard_wf",
) -> Workflow:
    """Bring a super-resolved image to a template and write it there.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.outputs import init_ds_standard_wf
            wf = init_ds_standard_wf(output_dir="out", space="MNI152NLin6Asym", zooms=(1, 1, 1))

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    space
        TemplateFlow template.
    zooms
        Output voxel size in mm.
    flexible
        Whether a B-spline follows the twelve parameters.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text.
    image, mask
        Super-resolved image; brain mask on its grid.
    record
        JSON file for the sidecar.
    failure
        What went wrong before.

    Outputs
    -------
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["source", "image", "mask", "record", "failure"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["failure"]), name="outputnode")
    to_standard = pe.Node(
        ToStandardSpace(space=space, zooms=zooms, flexible=flexible),
        name="to_standard",
        mem_gb=2.0,
    )
    ds_image = _ds_node("sr", output_dir, zooms)
    ds_image.inputs.space = space
    workflow.connect([
        (inputnode, to_standard, [(field, field) for field in fields]),
        (inputnode, ds_image, [("source", "source")]),
        (to_standard, ds_image, [
            ("image", "image"), ("record", "record"), ("failure", "failure"),
        ]),
        (ds_image, outputnode, [("failure", "failure")]),
    ])  # fmt: skip
    return workflow


def _ds_node(product: str, output_dir: str, zooms: Zooms | None = None) -> pe.Node:
    interface = WriteDerivative(product=product, output_dir=output_dir)
    if zooms is not None:
        interface.inputs.zooms = zooms
    return pe.Node(interface, name=f"ds_{product}", mem_gb=1.0)
