# SPDX-License-Identifier: Apache-2.0
"""Make products from other products, and write them all."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
from nipype.interfaces.base import File, isdefined, traits

from bids_moediff.bids.earlier_products import remove_product
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.bids.products import TABLES, find_product
from bids_moediff.bids.sidecar import build_sidecar, label_table
from bids_moediff.imaging.masks import bounding_box
from bids_moediff.imaging.storage import storage_step
from bids_moediff.runtime.sink import write_json, write_nifti, write_text

from .files import load_image, read_json, save_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec


class ProductStep(ImageStep):
    """Make products from others; returns none if the model does not have them.

    An output has the key of a product. An input has the name of its content: the key of a product,
    ``source`` (the image as text), ``record``, a setting, or ``label`` (which of several files).
    So the connections of a step follow from its names.
    """

    mem_gb: ClassVar[float] = 1.5

    def _process(self, folder: Path) -> dict[str, Any]:
        if not all(isdefined(value) for value in self.inputs.get().values()):
            return {}
        return self._make(folder)

    def _make(self, folder: Path) -> dict[str, Any]:
        """Do the work; every input is set."""
        raise NotImplementedError


class _ResampleMaskInputSpec(ImageStepInputSpec):
    mask = File(desc="brain mask on the input grid")
    sr = File(desc="image on the output grid")


class _ResampleMaskOutputSpec(ImageStepOutputSpec):
    srmask = File(desc="brain mask on the output grid")


class ResampleMask(ProductStep):
    """Bring the brain mask to the output grid, its outline interpolated linearly."""

    input_spec = _ResampleMaskInputSpec
    output_spec = _ResampleMaskOutputSpec

    def _make(self, folder: Path) -> dict[str, Any]:
        from nilearn.image import resample_img

        target, mask = load_image(self.inputs.sr), load_image(self.inputs.mask)
        part = _reached(mask, target)  # the rest of the grid holds no mask and takes as long
        with warnings.catch_warnings():
            # nilearn warns of linear interpolation of a mask; the threshold below makes it right.
            warnings.simplefilter("ignore", UserWarning)
            soft = resample_img(
                mask,
                target_affine=target.slicer[part].affine,
                target_shape=[axis.stop - axis.start for axis in part],
                interpolation="linear",
                force_resample=True,
                copy_header=True,
            )
        data = np.zeros(target.shape, dtype=np.uint8)
        data[part] = np.asanyarray(soft.dataobj) >= 0.5
        header = target.header.copy()
        header.set_data_dtype(np.uint8)
        carried = nib.Nifti1Image(data, target.affine, header)
        return {"srmask": save_image(carried, folder / "mask.nii")}


def _reached(mask: nib.Nifti1Image, target: nib.Nifti1Image) -> tuple[slice, ...]:
    """Return the part of a grid of the same orientation on which a mask may lie, not empty."""
    box = bounding_box(np.asarray(mask.dataobj) > 0)
    ends = np.array([[axis.start - 1, axis.stop] for axis in box]).T
    moved = nib.affines.apply_affine(np.linalg.solve(target.affine, mask.affine), ends)
    first = np.clip(np.floor(moved[0]), 0, np.array(target.shape) - 1).astype(int)
    last = np.clip(np.ceil(moved[1]), first, np.array(target.shape) - 1).astype(int)
    return tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))


class _WinnerInputSpec(ImageStepInputSpec):
    gates = File(desc="expert weights (x, y, z, experts)")


class _WinnerOutputSpec(ImageStepOutputSpec):
    expert = File(desc="index of the expert with the largest weight, counted from 1")


class WinningExpert(ProductStep):
    """Find the expert with the largest weight in each voxel."""

    input_spec = _WinnerInputSpec
    output_spec = _WinnerOutputSpec

    def _make(self, folder: Path) -> dict[str, Any]:
        gates = load_image(self.inputs.gates)
        labels = (np.argmax(np.asanyarray(gates.dataobj), axis=3) + 1).astype(np.uint8)
        image = nib.Nifti1Image(labels, gates.affine)
        image.header.set_xyzt_units("mm")
        return {"expert": save_image(image, folder / "labels.nii")}


class _StandardInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    sr = File(desc="super-resolved image")
    srmask = File(desc="brain mask on its grid")
    record = File(desc="JSON: own keys of the sidecar")
    label = traits.Str(mandatory=True, desc="TemplateFlow template")
    sloppy = traits.Bool(False, usedefault=True, desc="no B-spline after the twelve parameters")
    output_resolution = traits.Tuple(traits.Float, traits.Float, traits.Float)


class _StandardOutputSpec(ImageStepOutputSpec):
    standard = File(desc="image in the space of the template")
    record = File(desc="JSON: the record with how the image was registered")


class ToStandardSpace(ProductStep):
    """Register the brain to a template and bring the image there in one interpolation."""

    input_spec = _StandardInputSpec
    output_spec = _StandardOutputSpec
    mem_gb = 2.0

    def _make(self, folder: Path) -> dict[str, Any]:
        from bids_moediff.imaging.standard_space import find_template, register, to_template

        source = AnatomicalImage.from_json(self.inputs.source)
        template = find_template(self.inputs.label, source.suffix)
        image, mask = load_image(self.inputs.sr), load_image(self.inputs.srmask)
        transform, registration = register(image, mask, template, not self.inputs.sloppy)
        record = read_json(self.inputs.record)
        record["Warnings"] = [*record["Warnings"], *registration.pop("warnings")]
        record["Registration"] = registration
        record["SpatialReference"] = f"{template.image.parent.name}/{template.image.name}"
        moved = to_template(image, transform, template, self.inputs.output_resolution)
        return {
            "standard": save_image(moved, folder / "image.nii"),
            "record": str(write_json(record, folder / "record.json")),
        }


MAKERS: Mapping[str, type[ProductStep]] = {
    step.__name__: step for step in (ResampleMask, WinningExpert, ToStandardSpace)
}


class _RecordInputSpec(ImageStepInputSpec):
    result = File(desc="JSON: what the network did")
    quality = File(desc="JSON: quality figures of the input")
    doubts = File(desc="JSON: what is unusual about the scan")
    notes = File(desc="JSON: remarks on the source")
    mask_record = File(desc="JSON: how the brain mask was made")


class _RecordOutputSpec(ImageStepOutputSpec):
    record = File(desc="JSON: own keys of the sidecar")


class SidecarRecord(ImageStep):
    """Collect the record of a super-resolved image for its sidecar."""

    input_spec = _RecordInputSpec
    output_spec = _RecordOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
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
    product = traits.Str(mandatory=True, desc="key of the product")
    content = File(desc="what to write; undefined if this run makes no such product")
    output_resolution = traits.Tuple(traits.Float, traits.Float, traits.Float)
    output_dtype = traits.Str("float32", usedefault=True, desc="auto or float32")
    record = File(desc="JSON: what ran, for the sidecar")


class _WriteOutputSpec(ImageStepOutputSpec):
    path = traits.Str(desc="what was written, relative to the output folder")


class WriteProduct(ImageStep):
    """Write one product, with its sidecar and tables, under BIDS names.

    If this run makes no such product, that of an earlier run is removed: beside the new result it
    would be taken for a part of it.
    """

    input_spec = _WriteInputSpec
    output_spec = _WriteOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        key, root = self.inputs.product, Path(self.inputs.output_dir)
        source = AnatomicalImage.from_json(self.inputs.source)
        row = find_product(key)
        zooms = self.inputs.output_resolution if row.on_output_grid else None
        if not isdefined(self.inputs.content):
            remove_product(source, key, root, zooms)
            return {}
        record = read_json(self.inputs.record)
        step = self._step(record) if row.intensities else None
        if step is not None:
            record["IntensityStep"] = step

        def name(extension: str) -> Path:
            return root / derivative_path(source, key, zooms, extension)

        def write_beside() -> None:
            sidecar = build_sidecar(source, key, zooms, record)
            if ".tsv" in row.extensions:
                rows = record.get(TABLES, {}).get(row.key, ())
                write_text(label_table(sidecar, rows), name(".tsv"))
            write_json(sidecar, name(".json"))

        main = name(row.extensions[0])
        write_nifti(load_image(self.inputs.content), main, write_beside, step)
        return {"path": main.relative_to(root).as_posix()}

    def _step(self, record: Mapping[str, Any]) -> float | None:
        """Return the step in which the noise allows an image to be stored; None for floats."""
        if self.inputs.output_dtype != "auto":
            return None
        data = np.asanyarray(load_image(self.inputs.content).dataobj)
        return storage_step(record.get("EstimatedNoise", 0.0), float(np.abs(data).max()))
