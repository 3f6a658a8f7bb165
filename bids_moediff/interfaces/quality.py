# SPDX-License-Identifier: Apache-2.0
"""Compute quality figures of a scan, and its quality warnings."""

from pathlib import Path
from typing import Any

from nipype import logging
from nipype.interfaces.base import File, traits

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.runtime.sink import write_json

from .files import load_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec

LOGGER = logging.getLogger("nipype.interface")


class _QualityInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    image = File(desc="conformed image")
    mask = File(desc="brain mask on its grid")


class _QualityOutputSpec(ImageStepOutputSpec):
    quality = File(desc="JSON: name of the figure, value or null")
    doubts = File(desc="JSON: what is unusual about the scan, in sentences")


class ImageQuality(ImageStep):
    """Compute MRIQC-like figures and quality warnings."""

    input_spec = _QualityInputSpec
    output_spec = _QualityOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bids_moediff.quality.figures import judge

        source = AnatomicalImage.from_json(self.inputs.source)
        image, mask = load_image(self.inputs.image), load_image(self.inputs.mask)
        figures, doubts = judge(image, mask, source.suffix, source.metadata)
        for doubt in doubts:
            LOGGER.warning("%s: %s", source.key, doubt)
        return {
            "quality": str(write_json(figures, folder / "quality.json")),
            "doubts": str(write_json(doubts, folder / "doubts.json")),
        }
