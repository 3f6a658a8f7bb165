# SPDX-License-Identifier: Apache-2.0
"""Prepare one image of the data set for the network, and write the prepared files."""

import json
from collections.abc import Sequence
from pathlib import Path

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.carried_maps import maps_elsewhere
from bids_moediff.bids.earlier_masks import EarlierMask
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import PREPARATION, wanted_products
from bids_moediff.bids.references import ReferenceChoice
from bids_moediff.interfaces.network import DescribePrepared
from bids_moediff.interfaces.preparation import BiasField, BrainMask, Conform
from bids_moediff.interfaces.reference import AlignReference
from bids_moediff.interfaces.step import COPIES_IN_MEMORY
from bids_moediff.settings import Settings

from .chain import BESIDE, FAILURES, Chain
from .products import write_products

OUTPUT_FIELDS = ["image", "notes", "mask", "mask_record", "entry", *FAILURES]


def init_image_preparation_wf(
    *,
    settings: Settings,
    source: AnatomicalImage,
    gigabytes: float,
    earlier_mask: EarlierMask | None = None,
    maps: Sequence[Path] = (),
    reference: ReferenceChoice | None = None,
    name: str = "image_preparation_wf",
) -> Workflow:
    """Conform one image, find its brain and its bias field, write them, describe them.

    Workflow Graph
        .. workflow::

            from pathlib import Path
            from bids_moediff.bids.image import AnatomicalImage
            from bids_moediff.settings import Settings
            from bids_moediff.workflows.preparation import init_image_preparation_wf
            image = AnatomicalImage(Path(), "sub-01/anat/sub-01_T1w.nii", {"sub": "01"}, "T1w", {})
            wf = init_image_preparation_wf(settings=Settings(), source=image, gigabytes=0.07)

    Parameters
    ----------
    settings, source, gigabytes, name
        Options of the run; the image; its size as float32; of the workflow.
    earlier_mask, maps, reference
        What another pipeline has; what is to be carried along; what guides the restoration.

    Outputs
    -------
    image, notes, mask, mask_record, entry
        Conformed image, remarks on the source, brain mask, how it was made, what the network gets.
    failure, failure_beside
        One sentence if the image cannot be used, and if its brain mask cannot be had; else empty.
    """
    workflow = Workflow(name=name)
    conform, brain_mask, bias_field = _init_steps(settings, source, gigabytes, earlier_mask)
    conform.inputs.maps = [str(path) for path in maps]
    if settings.carry:
        conform.inputs.remark = maps_elsewhere(source, settings.carry)
    outputnode = pe.Node(niu.IdentityInterface(fields=OUTPUT_FIELDS), name="outputnode")
    image, mask, record = (conform, "image"), (brain_mask, "mask"), (brain_mask, "record")
    chain = Chain(workflow, conform).step(brain_mask, image=image)
    chain.beside().leave(outputnode, BESIDE)
    chain.step(bias_field, image=image, mask=mask, record=record)
    describe = _init_describe(chain.beside(), settings, source, (conform, brain_mask, bias_field))
    if reference is not None:
        _connect_reference(workflow, conform, describe, _init_align(settings, source, reference))
    record = (bias_field, "record")
    known = {"preproc": (bias_field, "corrected"), "mask": mask, "record": record}
    products = [row for row in wanted_products(settings, source) if row.made_by == PREPARATION]
    write_products(chain, products, known, settings, source)
    chain.leave(outputnode)
    workflow.connect([
        (conform, outputnode, [("image", "image"), ("notes", "notes")]),
        (brain_mask, outputnode, [("mask", "mask"), ("record", "mask_record")]),
        (describe, outputnode, [("entry", "entry")]),
    ])  # fmt: skip
    return workflow


def _connect_reference(
    workflow: Workflow, conform: pe.Node, describe: pe.Node, align: pe.Node
) -> None:
    """Align the reference with the conformed image, and pass it to the network."""
    Chain(workflow, conform).step(align, image=(conform, "image"))
    workflow.connect([
        (align, describe, [("reference", "reference"), ("record", "reference_record")]),
    ])  # fmt: skip


def _init_steps(
    settings: Settings,
    source: AnatomicalImage,
    gigabytes: float,
    earlier_mask: EarlierMask | None,
) -> tuple[pe.Node, pe.Node, pe.Node]:
    """Return the steps conform, brain mask and bias field."""
    memory = 0.4 + COPIES_IN_MEMORY * gigabytes
    conform = pe.Node(Conform(source=source.to_json()), name="conform", mem_gb=memory)
    # Mask and field use one thread, so that their bytes do not depend on the number of them.
    brain_mask = pe.Node(BrainMask(), name="brain_mask", mem_gb=memory + 0.6)
    skip = not settings.corrects_bias(source.suffix)
    bias_field = pe.Node(BiasField(skip=skip), name="bias_field", mem_gb=memory)
    if settings.gradient_coefficients:
        conform.inputs.coefficients = str(settings.gradient_coefficients)
    if earlier_mask:
        brain_mask.inputs.remark = earlier_mask.remark
        if earlier_mask.path:
            brain_mask.inputs.precomputed = str(earlier_mask.path)
    return conform, brain_mask, bias_field


def _init_align(
    settings: Settings, source: AnatomicalImage, reference: ReferenceChoice
) -> pe.Node:
    """Return the step that registers the reference."""
    interface = AlignReference(
        source=source.to_json(),
        reference="" if reference.image is None else reference.image.to_json(),
        choice=json.dumps(reference.record()),
        output_dir=str(settings.output_dir),
    )
    return pe.Node(interface, name="align_reference", mem_gb=2.0)


def _init_describe(
    chain: Chain, settings: Settings, source: AnatomicalImage, steps: tuple[pe.Node, ...]
) -> pe.Node:
    """Return the step that describes what is ready for the network."""
    conform, brain_mask, bias_field = steps
    interface = DescribePrepared(source=source.to_json())
    describe = pe.Node(interface, name="describe", run_without_submitting=True)
    # The corrected image is the network's input where the bias field is to be left out.
    prepared = {"image": (bias_field, "corrected")}
    if settings.intensities == "input":
        prepared = {"image": (conform, "image"), "bias_field": (bias_field, "bias_field")}
    chain.step(describe, mask=(brain_mask, "mask"), **prepared)
    return describe
