# SPDX-License-Identifier: Apache-2.0
"""One image from the data set, ready for the network, and what was prepared on disk."""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.earlier_masks import EarlierMask
from bids_moediff.interfaces.network import DescribePrepared
from bids_moediff.interfaces.preparation import BiasField, BrainMask, Conform
from bids_moediff.settings import Settings

from .outputs import init_ds_preparation_wf

OUTPUT_FIELDS = [
    "image", "notes", "mask", "mask_record", "mask_failure", "entry", "failure",
]  # fmt: skip
# Measured peak of a step over the size of the image as float32.
COPIES_IN_MEMORY = 12


def init_image_preparation_wf(
    *,
    settings: Settings,
    gigabytes: float,
    earlier_mask: EarlierMask | None = None,
    name: str = "image_preparation_wf",
) -> Workflow:
    """Conform one image, find its brain and its bias field, write them, describe them.

    Workflow Graph
        .. workflow::

            from bids_moediff.settings import Settings
            from bids_moediff.workflows.preparation import init_image_preparation_wf
            wf = init_image_preparation_wf(settings=Settings(), gigabytes=0.07)

    Parameters
    ----------
    settings
        Output folder, voxel size and what is to be left out are taken from here.
    gigabytes
        Size of the image as float32, for the memory estimate.
    earlier_mask
        What another pipeline has for this image.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text (:meth:`AnatomicalImage.to_json`).

    Outputs
    -------
    image, notes
        Conformed image; remarks on the source.
    mask, mask_record, mask_failure
        Brain mask, how it was made, and one sentence if it or the image cannot be had.
    entry
        What the network is to be told.
    failure
        One sentence if the image cannot be used, else empty.
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = _methods(settings)
    _add_steps(workflow, settings, 0.4 + COPIES_IN_MEMORY * gigabytes)
    if settings.gradient_coefficients:
        coefficients = str(settings.gradient_coefficients)
        workflow.get_node("conform").inputs.coefficients = coefficients
    if earlier_mask:
        brain_mask = workflow.get_node("brain_mask").inputs
        brain_mask.remark = earlier_mask.remark
        if earlier_mask.path:
            brain_mask.precomputed = str(earlier_mask.path)
    _add_outputs(workflow, settings)
    return workflow


def _add_steps(workflow: Workflow, settings: Settings, memory: float) -> None:
    """Conform, brain mask, bias field."""
    inputnode = pe.Node(niu.IdentityInterface(fields=["source"]), name="inputnode")
    conform = pe.Node(Conform(), name="conform", mem_gb=memory)
    # Mask and field use one thread, so that their bytes do not depend on the number of them.
    brain_mask = pe.Node(BrainMask(), name="brain_mask", mem_gb=memory + 0.6)
    bias_field = pe.Node(
        BiasField(skip=settings.skip_bias_correction), name="bias_field", mem_gb=memory
    )
    workflow.connect([
        (inputnode, conform, [("source", "source")]),
        (conform, brain_mask, [("image", "image"), ("failure", "failure")]),
        (conform, bias_field, [("image", "image")]),
        (brain_mask, bias_field, [("mask", "mask"), ("failure", "failure")]),
    ])  # fmt: skip


def _add_outputs(workflow: Workflow, settings: Settings) -> None:
    """Derivatives, the network's entry and the outputs of the workflow."""
    inputnode, conform, brain_mask, bias_field = (
        workflow.get_node(name) for name in ("inputnode", "conform", "brain_mask", "bias_field")
    )
    outputnode = pe.Node(niu.IdentityInterface(fields=OUTPUT_FIELDS), name="outputnode")
    describe = pe.Node(
        DescribePrepared(),
        name="describe",
        run_without_submitting=True,
    )
    ds_preparation_wf = init_ds_preparation_wf(output_dir=str(settings.output_dir))
    # The corrected image is the network's input where the bias field is to be left out.
    if settings.intensities == "corrected":
        workflow.connect(bias_field, "corrected", describe, "image")
    else:
        workflow.connect(conform, "image", describe, "image")
        workflow.connect(bias_field, "bias_field", describe, "bias_field")
    workflow.connect([
        (inputnode, describe, [("source", "source")]),
        (brain_mask, describe, [("mask", "mask")]),
        (bias_field, describe, [("failure", "failure")]),
        (inputnode, ds_preparation_wf, [("source", "inputnode.source")]),
        (brain_mask, ds_preparation_wf, [
            ("mask", "inputnode.mask"), ("record", "inputnode.mask_record"),
        ]),
        (bias_field, ds_preparation_wf, [
            ("corrected", "inputnode.corrected"), ("failure", "inputnode.failure"),
        ]),
        (conform, outputnode, [("image", "image"), ("notes", "notes")]),
        (brain_mask, outputnode, [
            ("mask", "mask"), ("record", "mask_record"), ("failure", "mask_failure"),
        ]),
        (describe, outputnode, [("entry", "entry")]),
        (ds_preparation_wf, outputnode, [("outputnode.failure", "failure")]),
    ])  # fmt: skip


def _methods(settings: Settings) -> str:
    text = """
#### Preparation of the images

Each image was read at its own voxel size and orientation.
"""
    if settings.gradient_coefficients:
        text += """\
The distortion by the scanner's gradients was undone with the vendor's spherical-harmonic
coefficients (*gradunwarp*) in one cubic interpolation.
"""
    if settings.derivatives:
        text += "Brain masks of an earlier pipeline were used where there were any.\n"
    text += """\
A brain mask was computed with a small convolutional network that had been trained on images
synthesised from label maps.
"""
    if not settings.skip_bias_correction:
        text += """\
Intensity non-uniformity was estimated with the N4 algorithm [@n4] of *SimpleITK* [@simpleitk]
within the brain mask.
"""
    return text
