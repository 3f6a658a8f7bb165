# SPDX-License-Identifier: Apache-2.0
"""Build the graph of a run: participants and their images in parallel, one network each."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nipype.interfaces import utility as niu
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.carried_maps import carried_before, find_maps
from bids_moediff.bids.earlier_masks import find_brain_mask
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.past_runs import WITH_NETWORK
from bids_moediff.bids.references import ReferenceChoice, choose_reference
from bids_moediff.families.choice import ModelChoice, takes_reference
from bids_moediff.interfaces.carried_maps import CarryMaps
from bids_moediff.interfaces.run_record import CollectRun, ImageStatus, ParticipantReport
from bids_moediff.preprocessing.conform import file_zooms
from bids_moediff.settings import Settings
from bids_moediff.workflows.folder_names import WORKFLOW_NAME, participant_workflow_name

from .chain import BESIDE, Chain
from .made_with import made_with
from .network import init_superres_wf
from .preparation import init_image_preparation_wf
from .products import init_group_products_wf, init_image_products_wf
from .sizes import float32_gigabytes, output_voxels, planned_group, result_cost

LONGEST_NODE_NAME = 80
Record = dict[str, Any]

# What the report shows of the settings: nothing that is a path.
REPORTED_SETTINGS = (
    "model",
    "output_resolution",
    "num_steps",
    "num_samples",
    "reference",
    "sample",
    "planes",
    "consistency",
    "random_seed",
    "intensities",
    "skip_bias_correction",
    "precision",
    "device",
    "sloppy",
)


@dataclass(frozen=True)
class RunPlan:
    """What a run may use, decided before the graph is built.

    Parameters
    ----------
    model
        Name or folder of the model.
    model_reason
        Why this model, in words.
    devices
        Devices to choose from.
    num_threads
        Threads of one process.
    run_id
        Name of the folder of this run under ``logs/sub-XX/``.
    """

    model: str
    model_reason: str
    devices: tuple[str, ...]
    num_threads: int
    run_id: str


def init_bids_moediff_wf(
    settings: Settings,
    participants: Sequence[Participant],
    plan: RunPlan,
    refused: Mapping[str, Sequence[Record]] = MappingProxyType({}),
) -> Workflow:
    """Build the graph of all participants.

    Workflow Graph
        .. workflow::

            from bids_moediff.settings import Settings
            from bids_moediff.workflows.participant import RunPlan, init_bids_moediff_wf
            wf = init_bids_moediff_wf(Settings(), [], RunPlan("moediff", "", ("cpu",), 1, "run"))

    Parameters
    ----------
    settings
        Options of the run.
    participants
        Whom to process.
    plan
        Model, devices, threads and the name of the run.
    refused
        Records of images that cannot be processed, by participant: they are in its record and
        page.

    Inputs
    ------
    None; everything is set from the participants.

    Outputs
    -------
    None; products go to the output folder.
    """
    workflow = Workflow(name=WORKFLOW_NAME)
    workflow.base_dir = str(settings.work_folder)
    for participant in participants:
        records = refused.get(participant.label, ())
        workflow.add_nodes([init_single_subject_wf(participant, settings, plan, records)])
    return workflow


def init_single_subject_wf(
    participant: Participant,
    settings: Settings,
    plan: RunPlan,
    refused: Sequence[Record] = (),
) -> Workflow:
    """Build the graph of one participant.

    Workflow Graph
        .. workflow::

            from bids_moediff.bids.discover import Participant
            from bids_moediff.settings import Settings
            from bids_moediff.workflows.participant import RunPlan, init_single_subject_wf
            wf = init_single_subject_wf(
                Participant("01", ()), Settings(), RunPlan("moediff", "", ("cpu",), 1, "run")
            )

    Parameters
    ----------
    participant, settings, plan, refused
        As for :func:`init_bids_moediff_wf`.

    Inputs
    ------
    None; everything is set from the participant.

    Outputs
    -------
    None; products go to the output folder.
    """
    workflow = Workflow(name=participant_workflow_name(participant.label))
    collect = pe.Node(
        CollectRun(
            label=participant.label,
            stage=settings.stage,
            settings={name: str(getattr(settings, name)) for name in REPORTED_SETTINGS},
            refused=list(refused),
            run_file=str(run_file(settings, plan, participant)),
        ),
        name="collect",
        run_without_submitting=True,
    )
    statuses = _init_merge("statuses", _told_of(participant, settings))
    workflow.connect(statuses, "out", collect, "statuses")
    if settings.stage == "report":
        for number, image in enumerate(participant.results, 1):
            workflow.connect(
                _init_status(image, settings, plan), "status", statuses, f"in{number}"
            )
    else:
        superres_wf = _connect_processing(workflow, participant, settings, plan)
        if superres_wf is not None:
            _connect_groups(workflow, participant, settings, plan)
    if settings.stage in ("all", "report"):
        workflow.connect(collect, "run_file", _init_report(participant, settings), "run_file")
    return workflow


def _init_report(participant: Participant, settings: Settings) -> pe.Node:
    report = pe.Node(
        ParticipantReport(label=participant.label, output_dir=str(settings.output_dir)),
        name="report",
        mem_gb=1.0,
    )
    if settings.intensities == "input":
        report.inputs.raw_dir = str(settings.bids_dir)
    return report


def _told_of(participant: Participant, settings: Settings) -> Sequence[AnatomicalImage]:
    """Return images for the record of a run: groups only if they are combined."""
    return participant.images if settings.stage == "preproc" else participant.results


def _connect_processing(
    workflow: Workflow, participant: Participant, settings: Settings, plan: RunPlan
) -> Workflow | None:
    """Add the preparation of each image, and network and products if the stage has them."""
    superres_wf = _add_network(workflow, participant, settings, plan)
    only_combined = _only_combined(participant, settings)
    for number, image in enumerate(participant.images, 1):
        maps = find_maps(image, settings.carry) if settings.carry else ()
        prepare_wf = init_image_preparation_wf(
            settings=settings,
            source=image,
            gigabytes=float32_gigabytes(image),
            earlier_mask=(
                find_brain_mask(image, settings.derivatives) if settings.derivatives else None
            ),
            maps=maps,
            reference=_reference(image, participant, settings, plan),
            name=f"prepare_{node_name(image)}_wf",
        )
        status = _init_status(image, settings, plan)
        workflow.connect([
            (prepare_wf, status, [
                ("outputnode.notes", "notes"), ("outputnode.mask_record", "mask_record"),
            ]),
            (status, workflow.get_node("statuses"), [("status", f"in{number}")]),
        ])  # fmt: skip
        chain = Chain(workflow, prepare_wf)
        if superres_wf is not None:
            entries = workflow.get_node("entries")
            workflow.connect(prepare_wf, "outputnode.entry", entries, f"in{number}")
            workflow.connect(superres_wf, "outputnode.results", status, "results")
            if image.key in only_combined:
                chain.step(status)
                continue
            products_wf = _add_products(chain, image, settings, prepare_wf, superres_wf)
            figures = [(f"outputnode.{field}", field) for field in ("quality", "doubts")]
            workflow.connect([(products_wf, status, figures)])
            zooms = output_voxels(image, settings)
            if maps or carried_before(image, settings.output_dir, zooms):
                carry = _init_carry_maps(image, settings, maps)
                chain.step(carry, image=(prepare_wf, "image"))
        chain.step(status)
    return superres_wf


def _only_combined(participant: Participant, settings: Settings) -> set[str]:
    """Return keys of the scans without results of their own."""
    if not settings.combine_only:
        return set()
    return {scan.key for group in participant.groups for scan in group.members}


def _connect_groups(
    workflow: Workflow, participant: Participant, settings: Settings, plan: RunPlan
) -> None:
    """Add the combined images, after the network."""
    for number, group in enumerate(participant.groups, len(participant.images) + 1):
        zooms = output_voxels(group, settings)
        products_wf = init_group_products_wf(
            settings=replace(settings, output_resolution=zooms),
            source=group,
            name=f"products_{node_name(group)}_wf",
        )
        masks = pe.Node(
            niu.Merge(len(group.members)),
            name=f"masks_{node_name(group)}",
            run_without_submitting=True,
        )
        for place, scan in enumerate(group.members, 1):
            prepare_wf = workflow.get_node(f"prepare_{node_name(scan)}_wf")
            workflow.connect(prepare_wf, "outputnode.mask_record", masks, f"in{place}")
        results = (workflow.get_node("superres_wf"), "outputnode.results")
        status = _init_status(group, settings, plan)
        workflow.connect([
            (masks, products_wf, [("out", "inputnode.mask_records")]),
            (results[0], products_wf, [(results[1], "inputnode.results")]),
            (results[0], status, [(results[1], "results")]),
            (status, workflow.get_node("statuses"), [("status", f"in{number}")]),
        ])  # fmt: skip
        Chain(workflow, products_wf).step(status)


def _reference(
    image: AnatomicalImage, participant: Participant, settings: Settings, plan: RunPlan
) -> ReferenceChoice | None:
    """Return the reference of an image, if the model takes one."""
    if not takes_reference(plan.model):
        return None
    wanted = settings.reference or "auto"
    return choose_reference(image, participant.others, wanted, lambda one: file_zooms(one.path))


def _add_products(
    chain: Chain,
    image: AnatomicalImage,
    settings: Settings,
    prepare_wf: Workflow,
    superres_wf: Workflow,
) -> Workflow:
    """Add the products of an image after the network."""
    products_wf = init_image_products_wf(
        settings=replace(settings, output_resolution=output_voxels(image, settings)),
        source=image,
        name=f"products_{node_name(image)}_wf",
    )
    products_wf.inputs.inputnode.key = image.key
    fields = ("image", "mask", "notes", "mask_record")
    chain.join(Chain(chain.workflow, prepare_wf, BESIDE)).step(
        products_wf,
        results=(superres_wf, "results"),
        **{field: (prepare_wf, field) for field in fields},
    )
    return products_wf


def _init_carry_maps(image: AnatomicalImage, settings: Settings, maps: Sequence[Path]) -> pe.Node:
    """Return the step that carries maps of other apps to the result's grid; old ones go."""
    carry = CarryMaps(
        source=image.to_json(),
        maps=[str(path) for path in maps],
        folder=str(settings.carry or ""),
        output_dir=str(settings.output_dir),
        output_resolution=output_voxels(image, settings),
    )
    return pe.Node(carry, name=f"carry_{node_name(image)}", mem_gb=3.0)


def _add_network(
    workflow: Workflow, participant: Participant, settings: Settings, plan: RunPlan
) -> Workflow | None:
    """Return the network of the participant; None without an image or where the stage has none."""
    images = participant.images
    if settings.stage not in ("all", "sr") or not images:
        return None
    superres_wf = init_superres_wf(
        settings=settings,
        choice=ModelChoice(plan.model, plan.model_reason),
        devices=plan.devices,
        gigabytes=max(
            (
                result_cost(item, settings, plan.model, plan.devices[0]).gigabytes
                for item in participant.results
            ),
            default=1.0,
        ),
        num_threads=plan.num_threads,
        groups=[planned_group(group, settings) for group in participant.groups],
    )
    entries = _init_merge("entries", images)
    workflow.connect(entries, "out", superres_wf, "inputnode.entries")
    return superres_wf


def _init_merge(name: str, images: Sequence[AnatomicalImage]) -> pe.Node:
    return pe.Node(niu.Merge(max(1, len(images))), name=name, run_without_submitting=True)


def _init_status(image: AnatomicalImage, settings: Settings, plan: RunPlan) -> pe.Node:
    with_network = settings.stage in WITH_NETWORK
    return pe.Node(
        ImageStatus(
            source=image.to_json(),
            stage=settings.stage,
            output_dir=str(settings.output_dir),
            zooms=output_voxels(image, settings),
            bias_correction=settings.corrects_bias(image.suffix),
            unwarping=settings.gradient_coefficients is not None,
            run_id=plan.run_id,
            made_with=made_with(image, settings, plan.model) if with_network else {},
        ),
        name=f"status_{node_name(image)}",
        run_without_submitting=True,
    )


def run_file(settings: Settings, plan: RunPlan, participant: Participant) -> Path:
    """Return the path of the record of this run of this participant."""
    folder = settings.output_dir / "logs" / f"sub-{participant.label}" / plan.run_id
    return folder / "run.json"


def node_name(image: AnatomicalImage) -> str:
    """Return the name of an image for Nipype: letters, digits and underscores.

    Labels may have a ``+`` and differ in it alone; no label has an underscore.
    """
    parts = "_".join(image.key.split("_")[1:]).replace("-", "_")
    name = re.sub(r"[^A-Za-z0-9_]", lambda sign: f"_x{ord(sign[0]):x}_", parts)
    if len(name) <= LONGEST_NODE_NAME:
        return name
    # It becomes the name of a folder, with words around it.
    return f"{name[:LONGEST_NODE_NAME]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
