# SPDX-License-Identifier: Apache-2.0
"""Quality figures of a scan before and after super-resolution."""

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, traits

from bids_moediff.bids.sink import write_json

from .base import ImageStep, ImageStepInputSpec, ImageStepOutputSpec
from .files import load_array, load_image
from .source import load_source


class _QualityInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (see interfaces.source)")
    image = File(desc="conformed image")
    mask = File(desc="brain mask on its grid")
    superres = File(desc="super-resolved image")


class _QualityOutputSpec(ImageStepOutputSpec):
    quality = File(desc="JSON: name of the figure, value or null")


class ImageQuality(ImageStep):
    """Compute the figures in the manner of MRIQC."""

    input_spec = _QualityInputSpec
    output_spec = _QualityOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bids_moediff.engine.quality import quality_figures

        figures = quality_figures(
            load_array(self.inputs.image),
            load_image(self.inputs.image).affine,
            load_array(self.inputs.mask),
            load_source(self.inputs.source).suffix,
        )
        return {"quality": str(write_json(figures, folder / "quality.json"))}
