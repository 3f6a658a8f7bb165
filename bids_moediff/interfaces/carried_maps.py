# SPDX-License-Identifier: Apache-2.0
"""Check which masks and label maps of other apps fit the image's grid, and carry them over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import File, traits

from bids_moediff.bids.carried_maps import (
    carried_before,
    carried_path,
    carried_sidecar,
    label_table,
    partitions,
    remove_map,
)
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.errors import ImageError
from bids_moediff.runtime.sink import write_bytes, write_json, write_nifti

from .files import load_image
from .step import ImageStep, ImageStepInputSpec, ImageStepOutputSpec

LABELS = (
    "Each connected region keeps its volume; borders follow interpolated signed distances, and "
    "the edges of the super-resolved image where no axis got coarser."
)
FRACTIONS = (
    "The average over each acquired voxel is kept where voxels divide evenly; elsewhere volumes "
    "are kept and averages come nearest. Borders are sharp."
)


def maps_on_grid(maps: Sequence[str], image: nib.Nifti1Image) -> tuple[list[str], list[str]]:
    """Return the maps on the grid of ``image``, and one sentence for each of the others."""
    fitting: list[str] = []
    remarks: list[str] = []
    if not maps:
        return fitting, remarks
    from bids_moediff.imaging.map_images import read_map  # imports torch

    for path in maps:
        try:
            read_map(Path(path), image.shape, image.affine)
        except ImageError as error:
            remarks.append(f"{error}: it was not carried to the output grid.")
        else:
            fitting.append(path)
    return fitting, remarks


class _CarryInputSpec(ImageStepInputSpec):
    source = traits.Str(mandatory=True, desc="source image (AnatomicalImage.to_json)")
    maps = traits.List(traits.Str, mandatory=True, desc="maps that bear its name")
    image = File(desc="source on its grid; maps on another one are left out")
    folder = traits.Str(mandatory=True, desc="root of the derivatives that hold the maps")
    output_dir = traits.Str(mandatory=True, desc="root of the derivatives, with the result")
    output_resolution = traits.Tuple(traits.Float, traits.Float, traits.Float)


class _CarryOutputSpec(ImageStepOutputSpec):
    paths = traits.List(traits.Str, desc="what was written, relative to the output folder")


class CarryMaps(ImageStep):
    """Write maps of other apps on the output grid, each with its sidecar and table of labels.

    Maps that earlier runs have carried to the grid of this result are removed if they are not
    written again: they may be old, and nothing but their dates would say so.
    """

    input_spec = _CarryInputSpec
    output_spec = _CarryOutputSpec

    def _process(self, folder: Path) -> dict[str, Any]:
        from bids_moediff.imaging.map_images import carry_images, read_map

        source = AnatomicalImage.from_json(self.inputs.source)
        zooms, root = self.inputs.output_resolution, Path(self.inputs.output_dir)
        target = load_image(root / derivative_path(source, "sr", zooms))
        image, paths = load_image(self.inputs.image), []
        for group in partitions(maps_on_grid(self.inputs.maps, image)[0]):
            maps = [read_map(path, image.shape, image.affine) for path in group]
            carried = carry_images(maps, target)
            for path, result in zip(group, carried, strict=True):
                how = FRACTIONS if result.get_data_dtype().kind == "f" else LABELS
                place = carried_path(path, zooms)
                self._write(result, root / place, carried_sidecar(source, path, zooms, how), path)
                paths.append(place.as_posix())
        for path in carried_before(source, root, zooms):
            if path.relative_to(root).as_posix() not in paths:
                remove_map(path)  # of an earlier image, or of a map that is no longer there
        return {"paths": paths}

    def _write(
        self, carried: nib.Nifti1Image, place: Path, sidecar: dict[str, Any], path: Path
    ) -> None:
        stem = place.name.removesuffix(".nii.gz")

        def write_beside() -> None:
            own = place.with_name(f"{stem}.tsv")
            if table := label_table(path, Path(self.inputs.folder)):
                write_bytes(table.read_bytes(), own)
            else:
                own.unlink(missing_ok=True)  # of an earlier run
            write_json(sidecar, place.with_name(f"{stem}.json"))

        write_nifti(carried, place, write_beside)
