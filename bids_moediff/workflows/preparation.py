# SPDX-License-Identifier: Apache-2.0
"""One image from the data set, ready for the network."""

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.interfaces.prepare import BiasField, BrainMask, Conform

OUTPUT_FIELDS = ["image", "notes", "mask", "mask_record", "bias_field", "corrected", "failure"]
# Measured peak of a step over the size of the image as float32.
COPIES_IN_MEMORY = 12


def init_image_preparation_wf(
    *,
    gigabytes: float,
    num_threads: int = 1,
    skip_bias_correction: bool = False,
    name: str = "image_preparation_wf",
) -> Workflow:
    """Conform one image, find its brain and its bias field.

    Workflow Graph
        .. workflow::

            from bids_moediff.workflows.preparation import init_image_preparation_wf
            wf = init_image_preparation_wf(gigabytes=0.07)

    Parameters
    ----------
    gigabytes
        Size of the image as float32, for the memory estimate.
    num_threads
        Threads of the steps that use several.
    skip_bias_correction
        Estimate no bias field.
    name
        Name of the workflow.

    Inputs
    ------
    source
        Source image as text (see :mod:`bids_moediff.interfaces.source`).

    Outputs
    -------
    image, notes
        Conformed image; remarks on the source.
    mask, mask_record
        Brain mask and how it was made.
    bias_field, corrected
        Bias field (undefined if skipped) and the image without it.
    failure
        One sentence if the image cannot be used, else empty.
    """
    workflow = Workflow(name=name)
    workflow.__desc__ = _methods(skip_bias_correction)
    memory = 0.4 + COPIES_IN_MEMORY * gigabytes
    inputnode = pe.Node(niu.IdentityInterface(fields=["source"]), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=OUTPUT_FIELDS), name="outputnode")
    conform = pe.Node(Conform(), name="conform", mem_gb=memory)
    brain_mask = pe.Node(BrainMask(), name="brain_mask", mem_gb=memory + 0.6, n_procs=num_threads)
    bias_field = pe.Node(
        BiasField(skip=skip_bias_correction),
        name="bias_field",
        mem_gb=memory,
        n_procs=1 if skip_bias_correction else num_threads,
    )
    workflow.connect([
        (inputnode, conform, [("source", "source")]),
        (conform, brain_mask, [("image", "image"), ("failure", "failure")]),
        (conform, bias_field, [("image", "image")]),
        (brain_mask, bias_field, [("mask", "mask"), ("failure", "failure")]),
        (conform, outputnode, [("image", "image"), ("notes", "notes")]),
        (brain_mask, outputnode, [("mask", "mask"), ("record", "mask_record")]),
        (bias_field, outputnode, [
            ("bias_field", "bias_field"), ("corrected", "corrected"), ("failure", "failure"),
        ]),
    ])  # fmt: skip
    return workflow


def _methods(skip_bias_correction: bool) -> str:
    text = """
#### Preparation of the images

Each image was read at its own voxel size and orientation. A brain mask was computed with a
small convolutional network that had been trained on images synthesised from label maps.
"""
    if not skip_bias_correction:
        text += """\
Intensity non-uniformity was estimated with the N4 algorithm [@n4] of *SimpleITK* [@simpleitk]
within the brain mask.
"""
    return text
