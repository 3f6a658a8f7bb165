# SPDX-License-Identifier: Apache-2.0
"""Combine scans: from prepared images to the sidecar of the combined image."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nipype.interfaces.base import File, InputMultiObject, isdefined

from bids_moediff.combination.frame import scan_zooms
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.inference.request import GroupRequest, ImageRequest
from bids_moediff.options import Options
from bids_moediff.runtime.sink import write_json

from .files import load_image, read_json
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec


@dataclass(frozen=True)
class PlannedGroup:
    """Scans to combine, as far as their headers tell.

    ``key``: name of the group; ``members``: keys of its images; ``zooms``: voxel size of the
    result (mm) along the axes of ``frame``, the 4x4 affine of a scan; ``left_out``: key of each
    scan that cannot be used, and why.
    """

    key: str
    members: Sequence[str]
    zooms: Sequence[float]
    frame: Sequence[Sequence[float]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which Nipype can hash."""
        return asdict(self)


def request_groups(
    images: Mapping[str, ImageRequest],
    lost: Mapping[str, str],
    groups: Sequence[PlannedGroup],
    options: Options,
    combine_only: bool,
) -> tuple[list[ImageRequest], list[GroupRequest]]:
    """Return what the network is to restore, and what is then to be combined of it.

    A scan whose own result has other voxels than the combined image is restored a second time.

    Parameters
    ----------
    images, lost
        By key: what is prepared, and why the others are not.
    groups
        Keys are those of ``images`` and ``lost``.
    options
        Of the results of single scans.
    combine_only
        Whether scans of a group get no results of their own.
    """
    members = {key for group in groups for key in group.members}
    wanted = {key: image for key, image in images.items() if not (combine_only and key in members)}
    found = []
    for group in groups:
        scans: dict[str, str] = {}
        zooms = tuple(group.zooms)
        for name in group.members:
            if name not in images:
                continue
            affine = load_image(images[name].image).affine
            own = scan_zooms(affine, np.array(group.frame), group.zooms)
            zooms = zooms if scans else own
            same = name in wanted and np.allclose(_zooms(wanted[name], affine, options), own)
            key = name if same or name not in wanted else f"{name}_for_{group.key}"
            image = wanted.get(key) or replace(images[name], key=key, out_dir=key, zooms=own)
            wanted[key] = replace(image, with_error=True)
            scans[name] = key
        missing = {name: lost[name] for name in group.members if name in lost}
        missing |= group.left_out
        found.append(
            GroupRequest(key=group.key, out_dir=group.key, zooms=zooms, scans=scans, lost=missing)
        )
    return list(wanted.values()), found


def _zooms(image: ImageRequest, affine: np.ndarray, options: Options) -> Sequence[float]:
    """Voxel size that the result of a request will have."""
    return image.zooms or options.output_zooms(voxel_sizes(affine))


class _GroupRecordInputSpec(ImageStepInputSpec):
    result = File(desc="JSON: what the network did")
    mask_records = InputMultiObject(File(exists=True), desc="how the scans' masks were made")


class _GroupRecordOutputSpec(ImageStepOutputSpec):
    record = File(desc="JSON: own keys of the sidecar")


class GroupRecord(ImageStep):
    """Collect the record of a combined image for its sidecar."""

    input_spec = _GroupRecordInputSpec
    output_spec = _GroupRecordOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        record = dict(read_json(self.inputs.result)["record"])
        masks = self.inputs.mask_records if isdefined(self.inputs.mask_records) else []
        methods = {read_json(path).get("method") for path in masks}
        record["SkullStripped"] = methods == {"nonzero"}
        return {"record": str(write_json(record, folder / "record.json"))}
