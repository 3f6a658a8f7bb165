# SPDX-License-Identifier: Apache-2.0
"""Prepare images step by step: conform, brain mask, bias field."""

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, isdefined, traits

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.products import BIAS_FIELD
from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.bias_field import bias_field, divide
from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.preprocessing.earlier_mask import reuse_mask
from bids_moediff.preprocessing.planes import distance_remarks
from bids_moediff.preprocessing.unwarp import read_coefficients, unwarp
from bids_moediff.runtime.sink import write_json

from .carried_maps import maps_on_grid
from .files import load_image, read_json, save_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec


class _ConformInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    coefficients = File(exists=True, desc="gradient coefficients of the scanner")
    maps = traits.List(
        traits.Str, [], usedefault=True, desc="maps of other apps that bear its name"
    )
    remark = traits.Str("", usedefault=True, desc="one sentence on maps that cannot be carried")


class _ConformOutputSpec(ImageStepOutputSpec):
    image = File(desc="float32, 3-D, finite, grid and orientation of the source")
    notes = File(desc="JSON list of remarks on the source")


class Conform(ImageStep):
    """Read a source image or say why it cannot be used."""

    input_spec = _ConformInputSpec
    output_spec = _ConformOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        source = AnatomicalImage.from_json(self.inputs.source)
        if source.problem:
            raise ImageError(source.problem)
        image, notes = conform(source.path)
        notes = [*source.remarks, *notes, *distance_remarks(image, source.metadata)]
        if isdefined(self.inputs.coefficients):
            coefficients = read_coefficients(self.inputs.coefficients)
            image, record = unwarp(image, coefficients)
            largest = record["largest_displacement_mm"]
            notes = [*notes, *record["warnings"]]
            notes.append(f"Gradient distortion was undone: up to {largest:.1f} mm.")
        notes = [*notes, *maps_on_grid(self.inputs.maps, image)[1]]
        if self.inputs.remark:
            notes.append(self.inputs.remark)
        return {
            "image": save_image(image, folder / "conformed.nii"),
            "notes": str(write_json(list(notes), folder / "notes.json")),
        }


class _BrainMaskInputSpec(ImageStepInputSpec):
    image = File(desc="conformed image")
    precomputed = File(exists=True, desc="brain mask of another pipeline")
    remark = traits.Str("", usedefault=True, desc="one sentence on masks of another pipeline")


class _BrainMaskOutputSpec(ImageStepOutputSpec):
    mask = File(desc="uint8 brain mask on the grid of the image")
    record = File(desc="JSON: how the mask was made, with remarks")


class BrainMask(ImageStep):
    """Find the brain, or take the mask of another pipeline."""

    input_spec = _BrainMaskInputSpec
    output_spec = _BrainMaskOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        image = load_image(self.inputs.image)
        if isdefined(self.inputs.precomputed):
            mask, record = reuse_mask(self.inputs.precomputed, image)
        else:
            mask, record = brain_mask(image)
        if self.inputs.remark:
            record["warnings"] = [self.inputs.remark, *record["warnings"]]
        return {
            "mask": save_image(mask, folder / "mask.nii"),
            "record": str(write_json(record, folder / "record.json")),
        }


class _BiasFieldInputSpec(ImageStepInputSpec):
    image = File(desc="conformed image")
    mask = File(desc="brain mask")
    record = File(desc="JSON: how the mask was made")
    skip = traits.Bool(False, usedefault=True, desc="no field: the prepared image is the input")


class _BiasFieldOutputSpec(ImageStepOutputSpec):
    record = File(desc="JSON: the same, and how the field was estimated")
    bias_field = File(desc="smooth positive field, mean 1 in the mask")
    corrected = File(desc="image divided by the field")


class BiasField(ImageStep):
    """Estimate the smooth shading of the receive coil (N4)."""

    input_spec = _BiasFieldInputSpec
    output_spec = _BiasFieldOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        method = "none" if self.inputs.skip else "N4 (SimpleITK), estimated in the brain mask"
        record = {**read_json(self.inputs.record), BIAS_FIELD: method}
        written = str(write_json(record, folder / "record.json"))
        if self.inputs.skip:
            return {"corrected": self.inputs.image, "record": written}
        image = load_image(self.inputs.image)
        field = bias_field(image, load_image(self.inputs.mask))
        corrected = divide(image, field)
        return {
            "record": written,
            "bias_field": save_image(field, folder / "bias_field.nii"),
            "corrected": save_image(corrected, folder / "corrected.nii"),
        }
