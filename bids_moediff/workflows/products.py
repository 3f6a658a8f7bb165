# SPDX-License-Identifier: Apache-2.0
"""Check and write the results of the network, one image at a time."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.earlier_products import earlier_products
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import NETWORK, PREPARATION, Product, wanted_products
from bids_moediff.interfaces.groups import GroupRecord
from bids_moediff.interfaces.network import SelectResult
from bids_moediff.interfaces.products import MAKERS, SidecarRecord, WriteProduct
from bids_moediff.interfaces.quality import ImageQuality
from bids_moediff.settings import Settings

from .chain import BESIDE, FAILURES, Chain

INPUT_FIELDS = ["key", "results", "image", "mask", "notes", "mask_record", *FAILURES]
OUTPUT_FIELDS = ["quality", "doubts", "failure"]

Sources = Mapping[str, tuple[Any, str]]


def init_image_products_wf(
    *, settings: Settings, source: AnatomicalImage, name: str = "image_products_wf"
) -> Workflow:
    """Pick the result of one image, compute its quality figures and write it.

    Workflow Graph
        .. workflow::

            from pathlib import Path
            from bids_moediff.bids.image import AnatomicalImage
            from bids_moediff.settings import Settings
            from bids_moediff.workflows.products import init_image_products_wf
            image = AnatomicalImage(Path(), "sub-01/anat/sub-01_T1w.nii", {"sub": "01"}, "T1w", {})
            wf = init_image_products_wf(settings=Settings().for_image((1, 1, 1)), source=image)

    Parameters
    ----------
    settings
        Output folder, voxel size and further outputs are taken from here.
    source
        The image.
    name
        Name of the workflow.

    Inputs
    ------
    key, results
        Name of the image in the results; results of the participant.
    image, mask, notes, mask_record
        Products of the preparation. The quality figures need no more, so nothing waits for them.
    failure, failure_beside
        What went wrong in the preparation, and on the way to the brain mask.

    Outputs
    -------
    quality, doubts, failure
        JSON files: quality figures and what is unusual about the scan; what went wrong so far.
    """
    workflow = Workflow(name=name)
    inputnode = pe.Node(niu.IdentityInterface(fields=INPUT_FIELDS), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=OUTPUT_FIELDS), name="outputnode")
    products = [row for row in wanted_products(settings, source) if row.made_by != PREPARATION]
    given = [row.key for row in products if row.made_by == NETWORK]
    select = pe.Node(SelectResult(products=given), name="select", run_without_submitting=True)
    quality = pe.Node(ImageQuality(source=source.to_json()), name="quality", mem_gb=1.5)
    record = pe.Node(SidecarRecord(), name="record", run_without_submitting=True)
    figures = Chain(workflow, inputnode, BESIDE)
    figures.step(quality, image=(inputnode, "image"), mask=(inputnode, "mask"))
    chain = Chain(workflow, inputnode)
    chain.step(select, results=(inputnode, "results"), key=(inputnode, "key")).join(figures)
    told = {field: (inputnode, field) for field in ("notes", "mask_record")}
    told |= {field: (quality, field) for field in ("quality", "doubts")}
    chain.step(record, result=(select, "result"), **told)
    sources = {key: (select, key) for key in given}
    sources |= {"mask": (inputnode, "mask"), "record": (record, "record")}
    write_products(chain, products, sources, settings, source)
    remove_earlier(chain, products, settings, source)
    workflow.connect([(quality, outputnode, [("quality", "quality"), ("doubts", "doubts")])])
    chain.leave(outputnode)
    return workflow


def init_group_products_wf(
    *, settings: Settings, source: AnatomicalImage, name: str = "group_products_wf"
) -> Workflow:
    """Pick what several scans were combined to, and write it.

    Workflow Graph
        .. workflow::

            from pathlib import Path
            from bids_moediff.bids.image import AnatomicalImage
            from bids_moediff.settings import Settings
            from bids_moediff.workflows.products import init_group_products_wf
            scan = AnatomicalImage(Path(), "sub-01/anat/sub-01_T1w.nii", {"sub": "01"}, "T1w", {})
            group = AnatomicalImage(
                Path(), "sub-01/anat/sub-01_T1w.nii", {"sub": "01"}, "T1w", {}, members=(scan,)
            )
            wf = init_group_products_wf(settings=Settings().for_image((1, 1, 1)), source=group)

    Parameters
    ----------
    settings
        Output folder and voxel size are taken from here.
    source
        The group (an image with members).
    name
        Name of the workflow.

    Inputs
    ------
    results
        Results of the participant.
    mask_records
        How the brain mask of each scan was made.

    Outputs
    -------
    failure
        What went wrong so far.
    """
    workflow = Workflow(name=name)
    fields = ["results", "mask_records"]
    inputnode = pe.Node(niu.IdentityInterface(fields=fields), name="inputnode")
    outputnode = pe.Node(niu.IdentityInterface(fields=["failure"]), name="outputnode")
    products = list(wanted_products(settings, source))
    given = [row.key for row in products]
    picking = SelectResult(products=given, key=source.key)
    select = pe.Node(picking, name="select", run_without_submitting=True)
    workflow.connect(inputnode, "results", select, "results")
    record = pe.Node(GroupRecord(), name="record", run_without_submitting=True)
    chain = Chain(workflow, select).step(
        record, result=(select, "result"), mask_records=(inputnode, "mask_records")
    )
    sources: dict[str, tuple[Any, str]] = {key: (select, key) for key in given}
    write_products(chain, products, sources | {"record": (record, "record")}, settings, source)
    chain.leave(outputnode)
    return workflow


def write_products(
    chain: Chain,
    products: Iterable[Product],
    sources: Sources,
    settings: Settings,
    image: AnatomicalImage,
) -> None:
    """Make what is to be made of other products, and write each, one after another.

    Parameters
    ----------
    chain
        What comes before; it goes on with the steps added here.
    products
        What to write, in order.
    sources
        Where products come from that no step makes (node and field by key), and ``record``.
    settings
        Output folder and voxel size are taken from here, and what the steps ask for.
    image
        The source.
    """
    known = dict(sources)
    for product in products:
        record = known["record"]
        if product.made_by in MAKERS:
            maker = _init_maker(product, settings, image)
            inlets = [field for field in maker.inputs.copyable_trait_names() if field in known]
            chain.step(maker, **{field: known[field] for field in inlets})
            known[product.key] = (maker, product.key.partition("_")[0])
            if "record" in maker.outputs.copyable_trait_names():
                record = (maker, "record")
        write = _init_write(product, settings, image)
        chain.step(write, content=known[product.key], record=record)


def remove_earlier(
    chain: Chain, products: Iterable[Product], settings: Settings, image: AnatomicalImage
) -> None:
    """Remove what an earlier run wrote for an image after the network, and this one does not.

    Parameters
    ----------
    chain, settings, image
        As for :func:`write_products`.
    products
        What this run writes.
    """
    keys = {product.key for product in products}
    for product in earlier_products(image, settings.output_dir, settings.zooms):
        if product.key not in keys:
            chain.step(_init_write(product, settings, image))


def _init_write(product: Product, settings: Settings, image: AnatomicalImage) -> pe.Node:
    """Return the step that writes a product, or removes it if there is nothing to write."""
    write = WriteProduct(
        source=image.to_json(),
        product=product.key,
        output_dir=str(settings.output_dir),
        output_dtype=settings.output_dtype,
    )
    if product.on_output_grid:
        write.inputs.output_resolution = settings.zooms
    # The file may be gone since this step ran: it is not taken from the working directory.
    return pe.Node(write, name=_node_name("ds", product), mem_gb=1.0, overwrite=True)


def _init_maker(product: Product, settings: Settings, image: AnatomicalImage) -> pe.Node:
    """Return the step that makes a product, with its known inputs."""
    step = MAKERS[product.made_by]
    maker = pe.Node(step(), name=_node_name("make", product), mem_gb=step.mem_gb)
    known = {name: getattr(settings, name) for name in settings.names()}
    known |= {"source": image.to_json(), "label": product.label}
    for field in maker.inputs.copyable_trait_names():
        if field in known:
            setattr(maker.inputs, field, known[field])
    return maker


def _node_name(start: str, product: Product) -> str:
    """Return the name of a step; Nipype allows letters, digits and underscores."""
    return re.sub(r"\W", "_", f"{start}_{product.key}")
