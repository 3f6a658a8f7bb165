# SPDX-License-Identifier: Apache-2.0
"""Describe a planned run in the words of its record: for the methods text without a run."""

from collections.abc import Sequence
from typing import Any

from bids_moediff.bids.earlier_masks import find_brain_mask
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.families import family
from bids_moediff.imaging.grid import gets_finer
from bids_moediff.networks.model_folder import read_config
from bids_moediff.settings import Settings

from .participant import RunPlan
from .sizes import output_voxels, shape_and_zooms


def planned_items(
    participants: Sequence[Participant], settings: Settings, plan: RunPlan
) -> list[dict[str, Any]]:
    """Return the records of images of a planned run, as far as they are known before."""
    config = read_config(plan.model) if settings.stage in ("all", "sr") else {}
    return [
        {
            "key": image.key,
            "status": "done",
            "preparation": {} if image.members else _preparation(image, settings),
            "record": _record(image, settings, plan, config) if config else {},
        }
        for participant in participants
        for image in (*participant.images, *(participant.groups if config else ()))
    ]


def _preparation(image: AnatomicalImage, settings: Settings) -> dict[str, Any]:
    earlier = settings.derivatives and find_brain_mask(image, settings.derivatives).path
    return {
        "BrainMask": "derivatives" if earlier else "network",
        "BiasCorrection": settings.corrects_bias(image.suffix),
        "GradientUnwarping": settings.gradient_coefficients is not None,
    }


def _record(
    image: AnatomicalImage, settings: Settings, plan: RunPlan, config: dict[str, Any]
) -> dict[str, Any]:
    target = output_voxels(image, settings)
    zooms = shape_and_zooms(image.members[0] if image.members else image)[1]
    parts = family(config["family"]).macs(config, settings)
    return {
        "Model": plan.model.rsplit("/", 1)[-1],
        "ModelFamily": config["family"],
        "NetworksRun": list(parts) if gets_finer(zooms, target) else [],
        "NumberOfSamples": settings.num_samples,
        "InputVoxelSize": zooms,
        "OutputVoxelSize": target,
        "AcquiredVoxelSize": zooms,
        **({"CombinedScans": []} if image.members else {}),
    }
