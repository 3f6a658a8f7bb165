# SPDX-License-Identifier: Apache-2.0
"""Read sizes from headers before anything is computed: voxels, memory, the grid of a group."""

import math

import nibabel as nib
import numpy as np

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.combination.frame import Grid, frame_zooms, union_grid
from bids_moediff.errors import ImageError
from bids_moediff.families.cost import Estimate, combination_cost, estimate
from bids_moediff.imaging.grid import Triple
from bids_moediff.interfaces.groups import PlannedGroup
from bids_moediff.options import FINEST_DEFAULT
from bids_moediff.preprocessing.as_written import open_image
from bids_moediff.preprocessing.conform import stated_affine, stated_zooms
from bids_moediff.settings import Settings

Shape = tuple[int, ...]


def shape_and_zooms(image: AnatomicalImage) -> tuple[Shape, tuple[float, ...]]:
    """Return shape and voxel sizes of a header; those of a 1 mm head if it cannot be read."""
    if image.shape is not None and image.zooms is not None:
        return image.shape, image.zooms
    try:
        header = nib.Nifti1Image.from_filename(str(image.path)).header
        shape = tuple(int(n) for n in header.get_data_shape()[:3])
        zooms = stated_zooms(header)
    except Exception:
        shape, zooms = (), (0.0, 0.0, 0.0)
    if len(shape) != 3 or not all(0 < zoom < math.inf for zoom in zooms):
        return (256, 256, 192), (1.0, 1.0, 1.0)
    return shape, zooms


def float32_gigabytes(image: AnatomicalImage) -> float:
    """Return the size of the image as float32, in GB."""
    shape, _ = shape_and_zooms(image)
    return 4e-9 * shape[0] * shape[1] * shape[2]


def output_voxels(image: AnatomicalImage, settings: Settings) -> Triple:
    """Return the voxel size (mm) of the result, along the axes of the image or the first scan."""
    if not image.members:
        return settings.output_zooms(shape_and_zooms(image)[1])
    if isinstance(settings.output_resolution, tuple):
        return settings.output_resolution
    affines = [grid.affine for grid in _grids(image).values()]
    first, second, third = frame_zooms(affines, (FINEST_DEFAULT,) * 3)
    return (round(first, 5), round(second, 5), round(third, 5))


def planned_group(group: AnatomicalImage, settings: Settings) -> PlannedGroup:
    """Return the description of a group for the network."""
    return PlannedGroup(
        key=group.key,
        members=[scan.key for scan in group.members],
        zooms=output_voxels(group, settings),
        frame=next(iter(_grids(group).values())).affine.tolist(),
        left_out=dict(group.left_out),
    )


def result_cost(image: AnatomicalImage, settings: Settings, model: str, device: str) -> Estimate:
    """Return estimated memory and time: of the network for an image, of combining for a group."""
    if not image.members:
        shape, zooms = shape_and_zooms(image)
        return estimate(shape, zooms, settings, model=model, device=device)
    grids = list(_grids(image).values())
    frame = union_grid(grids, [np.eye(4)] * len(grids), output_voxels(image, settings))
    # More than any of its scans alone: more bytes a voxel, on a grid that holds them all.
    return combination_cost(frame.shape, len(grids))


def _grids(group: AnatomicalImage) -> dict[str, Grid]:
    """Return the grid of each readable scan, by its key; a grid of 1 mm if none is readable."""
    found = {}
    for scan in group.members:
        try:
            image = open_image(scan.path)
            first, second, third = (int(n) for n in image.shape[:3])
            found[scan.key] = Grid((first, second, third), stated_affine(image))
        except (OSError, ValueError, ImageError, nib.filebasedimages.ImageFileError):
            continue
    return found or {group.key: Grid((256, 256, 192), np.eye(4))}
