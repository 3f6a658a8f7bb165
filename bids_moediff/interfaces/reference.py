# SPDX-License-Identifier: Apache-2.0
"""Align a reference contrast with the image that it guides."""

import json
from pathlib import Path
from typing import Any

from nipype import logging
from nipype.interfaces.base import File, traits

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import figure_path
from bids_moediff.errors import ImageError
from bids_moediff.imaging.reference import use_reference
from bids_moediff.preprocessing.conform import conform
from bids_moediff.runtime.sink import write_json

from .files import load_image, save_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec, unexpected

LOGGER = logging.getLogger("nipype.interface")


class _AlignInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    image = File(desc="conformed image")
    reference = traits.Str("", usedefault=True, desc="its reference (AnatomicalImage.to_json)")
    choice = traits.Str(mandatory=True, desc="JSON: record of the choice")
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives, for the picture")


class _AlignOutputSpec(ImageStepOutputSpec):
    reference = File(desc="reference in the world coordinates of the image, where it may be used")
    record = File(desc="JSON: what was chosen, how well it fits, why it is not used")


class AlignReference(ImageStep):
    """Register a reference; a failure loses the reference and not the image."""

    input_spec = _AlignInputSpec
    output_spec = _AlignOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        source = AnatomicalImage.from_json(self.inputs.source)
        record = json.loads(self.inputs.choice)
        picture = Path(self.inputs.output_dir) / figure_path(source, "reference", ".png")
        picture.unlink(missing_ok=True)
        outputs: dict[str, Any] = {}
        if self.inputs.reference:
            try:
                outputs, found = self._aligned(folder, picture)
                record |= found | {"Reason": found["Reason"] or record["Reason"]}
            except ImageError as error:
                record["Reason"] = f"No reference was used: {error}"
            except Exception as error:
                record["Reason"] = unexpected("The reference", error)
        if not record["Used"]:
            LOGGER.warning("%s: %s", source.key, record["Reason"])
        return {**outputs, "record": str(write_json(record, folder / "record.json"))}

    def _aligned(self, folder: Path, picture: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        from bids_moediff.reports.reference import write_reference

        chosen = AnatomicalImage.from_json(self.inputs.reference)
        target, reference = load_image(self.inputs.image), conform(chosen.path)[0]
        choice = use_reference(target, reference)
        if choice.aligned is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_reference(target, reference, choice.aligned.image, picture)
        if choice.image is None:
            return {}, choice.record
        return {"reference": save_image(choice.image, folder / "reference.nii")}, choice.record
