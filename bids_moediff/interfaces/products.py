# SPDX-License-Identifier: Apache-2.0
"""Products onto the output grid and into the derivatives folder."""

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import PRODUCTS, derivative_path
from bids_moediff.bids.sidecar import build_sidecar, expert_table
from bids_moediff.errors import ImageError
from bids_moediff.runtime.sink import write_json, write_nifti, write_text

from .files import load_image, read_json, save_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec


class _ResampleMaskInputSpec(ImageStepInputSpec):
    mask = File(desc="brain mask on the input grid")
    image = File(desc="image on the output grid")


class _ResampleMaskOutputSpec(ImageStepOutputSpec):
    mask = File(desc="brain mask on the output grid")


class ResampleMask(ImageStep):
    """Bring a mask to the grid of an image, its outline interpolated linearly."""

    input_spec = _ResampleMaskInputSpec
    output_spec = _ResampleMaskOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from nilearn.image import resample_to_img

        target = load_image(self.inputs.image)
        with warnings.catch_warnings():
            # nilearn warns of linear interpolation of a mask; the threshold below makes it right.
            warnings.simplefilter("ignore", UserWarning)
            soft = resample_to_img(
                load_image(self.inputs.mask),
                target,
                interpolation="linear",
                force_resample=True,
                copy_header=True,
            )
        data = (np.asanyarray(soft.dataobj) >= 0.5).astype(np.uint8)
        header = target.header.copy()
        header.set_data_dtype(np.uint8)
        return {
            "mask": save_image(nib.Nifti1Image(data, target.affine, header), folder / "mask.nii")
        }


class _WinnerInputSpec(ImageStepInputSpec):
    gates = File(desc="expert weights (x, y, z, experts)")


class _WinnerOutputSpec(ImageStepOutputSpec):
    labels = File(desc="index of the expert with the largest weight, counted from 1")


class WinningExpert(ImageStep):
    """Find the expert that has the most to say in each voxel."""

    input_spec = _WinnerInputSpec
    output_spec = _WinnerOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        gates = load_image(self.inputs.gates)
        labels = (np.argmax(np.asanyarray(gates.dataobj), axis=3) + 1).astype(np.uint8)
        image = nib.Nifti1Image(labels, gates.affine)
        image.header.set_xyzt_units("mm")
        return {"labels": save_image(image, folder / "labels.nii")}


class _StandardInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    image = File(desc="super-resolved image")
    mask = File(desc="brain mask on its grid")
    record = File(desc="JSON: own keys of the sidecar")
    space = traits.Str(mandatory=True, desc="TemplateFlow template")
    flexible = traits.Bool(True, usedefault=True, desc="B-spline after the twelve parameters")
    zooms = traits.Tuple(traits.Float, traits.Float, traits.Float, desc="output voxel size")


class _StandardOutputSpec(ImageStepOutputSpec):
    image = File(desc="image in the space of the template")
    record = File(desc="JSON: the record with how the image was registered")


class ToStandardSpace(ImageStep):
    """Register the brain to a template and bring the image there in one interpolation."""

    input_spec = _StandardInputSpec
    output_spec = _StandardOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bids_moediff.imaging.standard_space import find_template, register, to_template

        source = AnatomicalImage.from_json(self.inputs.source)
        template = find_template(self.inputs.space, source.suffix)
        image, mask = load_image(self.inputs.image), load_image(self.inputs.mask)
        transform, registration = register(image, mask, template, self.inputs.flexible)
        record = read_json(self.inputs.record)
        record["Warnings"] = [*record["Warnings"], *registration.pop("warnings")]
        record["Registration"] = registration
        record["SpatialReference"] = f"{template.image.parent.name}/{template.image.name}"
        moved = to_template(image, transform, template, self.inputs.zooms)
        return {
            "image": save_image(moved, folder / "image.nii"),
            "record": str(write_json(record, folder / "record.json")),
        }


class _RecordInputSpec(ImageStepInputSpec):
    result = File(desc="JSON: what the network did")
    quality = File(desc="JSON: quality figures of the input")
    doubts = File(desc="JSON: what is unusual about the scan")
    notes = File(desc="JSON: remarks on the source")
    mask_record = File(desc="JSON: how the brain mask was made")
    quality_failure = traits.Str("", usedefault=True, desc="one sentence if there are no figures")


class _RecordOutputSpec(ImageStepOutputSpec):
    record = File(desc="JSON: own keys of the sidecar")


class SidecarRecord(ImageStep):
    """Bring together what the sidecar of a super-resolved image says about its making."""

    input_spec = _RecordInputSpec
    output_spec = _RecordOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        if self.inputs.quality_failure:
            raise ImageError(self.inputs.quality_failure)
        record = dict(read_json(self.inputs.result)["record"])
        mask_record = dict(read_json(self.inputs.mask_record))
        remarks = [
            *read_json(self.inputs.notes),
            *mask_record.pop("warnings", []),
            *read_json(self.inputs.doubts),
            *record.pop("Warnings", []),
        ]
        record["BrainMask"] = mask_record
        record["Quality"] = read_json(self.inputs.quality)
        record["Warnings"] = list(dict.fromkeys(remarks))
        return {"record": str(write_json(record, folder / "record.json"))}


class _WriteInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives")
    product = traits.Enum(*PRODUCTS, mandatory=True)
    image = File(desc="image to write; undefined if this model has no such product")
    zooms = traits.Tuple(traits.Float, traits.Float, traits.Float, desc="output voxel size")
    space = traits.Str(desc="template that the image was brought to")
    record = File(desc="JSON: own keys of the sidecar")
    mask_record = File(desc="JSON: how the brain mask was made, where the record does not say")


class _WriteOutputSpec(ImageStepOutputSpec):
    path = traits.Str(desc="what was written, relative to the output folder")


class WriteDerivative(ImageStep):
    """Write one product and its sidecar under the names of the standard."""

    input_spec = _WriteInputSpec
    output_spec = _WriteOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        if not isdefined(self.inputs.image):
            return {}
        product, root = self.inputs.product, Path(self.inputs.output_dir)
        source = AnatomicalImage.from_json(self.inputs.source)
        zooms = self.inputs.zooms if PRODUCTS[product].on_output_grid else None
        record = read_json(self.inputs.record) if isdefined(self.inputs.record) else {}
        mask_record = record.get("BrainMask", {})
        if isdefined(self.inputs.mask_record):
            mask_record = read_json(self.inputs.mask_record)
        stripped = mask_record.get("method") == "nonzero"
        space = self.inputs.space if isdefined(self.inputs.space) else None

        def name(extension: str) -> Path:
            return root / derivative_path(source, product, zooms, extension, space)

        def write_sidecar() -> None:
            sidecar = build_sidecar(source, product, zooms, record, skull_stripped=stripped)
            if product == "expert":
                write_text(expert_table(), name(".tsv"))
            write_json(sidecar, name(".json"))

        write_nifti(load_image(self.inputs.image), name(".nii.gz"), write_sidecar)
        return {"path": name(".nii.gz").relative_to(root).as_posix()}
