# SPDX-License-Identifier: Apache-2.0
"""Read masks, label maps and tissue fractions, check them, and put them on the output grid."""

import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from bids_moediff.errors import ImageError

from .grid import Shape, Triple, output_grid, voxel_sizes, working_zooms
from .label_maps import OVERLAP, Matrices, _each, _Grids, carry_fractions, carry_labels
from .separable import along_axes

ROUNDING = 1e-3  # by which labels may miss whole numbers, as scaled or resampled files do
OVERSHOOT = 0.05  # by which interpolated or rounded fractions may leave 0 to 1
# An image of intensities has many values, and hardly two neighbours alike.
MANY_VALUES, FEW_ALIKE = 100, 0.2


def read_map(path: Path, shape: Sequence[int], affine: np.ndarray) -> nib.Nifti1Image:
    """Return a map, turned to the axes of an image whose grid it must share.

    Parameters
    ----------
    path
        NIfTI file.
    shape, affine
        The grid of the image.

    Raises
    ------
    ImageError
        If the file cannot be read, has another grid, or has neither labels nor fractions.
    """
    if not path.exists():
        raise ImageError(f"{path.name} is not here (a link to a missing file; datalad get?)")
    if not path.is_file():  # opening a pipe would wait for ever
        raise ImageError(f"{path.name} is not a regular file")
    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ImageError(f"{path.name} is not a readable NIfTI image") from error
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 is one of its kinds
        raise ImageError(f"{path.name} is not a readable NIfTI image")
    if data.ndim < 3:
        raise ImageError(f"{path.name} is not on the grid of the image ({data.ndim} axes)")
    if data.dtype.kind not in "iuf":
        raise ImageError(f"{path.name} has colours or complex numbers, not labels")
    while data.ndim > 3 and 1 in data.shape[3:]:
        data = data.squeeze(data.shape.index(1, 3))
    values = nib.Nifti1Image(_values(data, path.name), image.affine)
    for kind in ("sform", "qform"):
        getattr(values, f"set_{kind}")(image.affine, int(image.header[f"{kind}_code"]) or 1)
    turned = _turned(values, affine, path.name)
    _check_grid(turned, shape, affine, path.name)
    return turned


def _turned(image: nib.Nifti1Image, affine: np.ndarray, name: str) -> nib.Nifti1Image:
    """The image with the order and directions of axes that ``affine`` has; nothing is sampled."""
    try:
        turn = io_orientation(np.linalg.solve(affine, image.affine))
    except np.linalg.LinAlgError:
        turn = np.full((3, 2), np.nan)
    if np.isnan(turn).any():
        raise ImageError(f"{name} is not on the grid of the image")
    return image.as_reoriented(turn)


def _check_grid(
    image: nib.Nifti1Image, shape: Sequence[int], affine: np.ndarray, name: str
) -> None:
    here, there = tuple(image.shape[:3]), tuple(shape[:3])
    if here != there:
        sizes = " and ".join(" x ".join(map(str, counts)) for counts in (here, there))
        raise ImageError(f"{name} is not on the grid of the image ({sizes} voxels)")
    corners = np.array(list(product(*[(0, count - 1) for count in there])))
    shift = nib.affines.apply_affine(image.affine, corners)
    shift -= nib.affines.apply_affine(affine, corners)
    away = float(np.abs(shift).max())
    if away > 0.05 * min(voxel_sizes(affine)):
        raise ImageError(f"{name} is not on the grid of the image (up to {away:.2g} mm away)")


def _values(data: np.ndarray, name: str) -> np.ndarray:
    """Labels in a small type of integers, or fractions as float32."""
    if data.dtype.kind == "f":
        if np.isnan(data).all():
            raise ImageError(f"{name} holds no numbers")
        data = np.where(np.isnan(data), 0, data)  # outside the field of view of the tool
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{name} has infinite values")
    rounded = np.rint(data)
    # Fractions of less than the rounding all over are fractions still.
    whole = float(np.abs(data - rounded).max()) < ROUNDING and rounded.any() == data.any()
    within = low > -OVERSHOOT and high < 1 + OVERSHOOT
    if within and data.ndim in (3, 4) and not (whole and data.ndim == 3):
        if name.split(".")[0].endswith("_dseg") and not whole:
            raise ImageError(f"{name} has values between whole numbers, not labels")
        return np.clip(data, 0, 1).astype(np.float32)
    if name.split(".")[0].endswith("_probseg") and not within:
        raise ImageError(f"{name} has values from {low:.4g} to {high:.4g}, not fractions (0 to 1)")
    if data.ndim != 3 or not whole:
        raise ImageError(
            f"{name} has values that are neither whole numbers (labels) nor between 0 and 1 "
            "(fractions)"
        )
    if max(-low, high) > np.iinfo(np.int32).max:
        raise ImageError(f"{name} has labels above {np.iinfo(np.int32).max}")
    labels = rounded.astype(_small(low, high))
    if _alike(labels) < FEW_ALIKE and len(np.unique(labels)) > MANY_VALUES:
        raise ImageError(f"{name} looks like an image of intensities, not like labels")
    return labels


def _small(low: float, high: float) -> type[np.integer]:
    """The smallest type that holds the labels from ``low`` to ``high``."""
    for kind in (np.uint8, np.int16):
        if low >= np.iinfo(kind).min and high <= np.iinfo(kind).max:
            return kind
    return np.int32


def _alike(labels: np.ndarray) -> float:
    """Share of neighbours along an axis that have one label, background left out; 1 if empty."""
    shares = [1.0]
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        labelled = (first != 0) | (second != 0)
        if labelled.any():
            shares.append(float((first == second)[labelled].mean()))
    return max(shares[1:], default=1.0)


def carry_images(
    images: Sequence[nib.Nifti1Image], target: nib.Nifti1Image
) -> list[nib.Nifti1Image]:
    """Return maps as :func:`carry_image` does; fractions of one partition are carried together.

    3-D fractions whose sum nowhere exceeds one (grey and white matter in a file each) stay so,
    also beside one that overlaps them (a lesion).
    """
    soft = {
        number: np.asarray(image.dataobj) for number, image in enumerate(images)
        if image.ndim == 3 and image.get_data_dtype().kind == "f"
    }  # fmt: skip
    carried = {}
    for group in _partitions(soft):
        stacked = np.stack([soft[number] for number in group], axis=-1)
        joint = carry_image(nib.Nifti1Image(stacked, images[group[0]].affine), target)
        values = np.moveaxis(np.asarray(joint.dataobj), -1, 0)
        for number, part in zip(group, values, strict=True):
            carried[number] = _placed(part, target.affine, images[number])
    return [
        carried[number] if number in carried else carry_image(image, target)
        for number, image in enumerate(images)
    ]


def _partitions(parts: Mapping[int, np.ndarray]) -> list[list[int]]:
    """Groups of fractions whose sum nowhere exceeds one.

    The map that causes most of the overlap is left to a later group, the smallest if several do.
    """
    groups, left = [], list(parts)
    while left:
        group = list(left)
        total = np.asarray(sum(parts[number].astype(np.float64) for number in group))
        while len(group) > 1 and total.max() > OVERLAP:
            rests = {number: _without(parts[number], total) for number in group}
            worst = min(group, key=rests.__getitem__)
            group.remove(worst)
            total -= parts[worst]
        groups.append(group)
        left = [number for number in left if number not in group]
    return groups


def _without(part: np.ndarray, total: np.ndarray) -> tuple[float, float]:
    """The overlap that stays without a map, and the volume of the map, in voxels."""
    return float(np.maximum(total - part - OVERLAP, 0).sum()), float(part.sum(dtype=np.float64))


def carry_image(image: nib.Nifti1Image, target: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return a label map, mask or map of fractions on the grid of a super-resolved image.

    Borders of labels are drawn to the edges of that image, unless an axis got coarser.

    Parameters
    ----------
    image
        As :func:`read_map` gives it: 3-D labels (integers), or float32 fractions in [0, 1], 3-D or
        4-D (one volume per label).
    target
        Image on the output grid (:func:`.grid.output_grid`), which has the same outer corner.
    """
    zooms, wanted = voxel_sizes(image.affine), voxel_sizes(target.affine)
    counts: Shape = (target.shape[0], target.shape[1], target.shape[2])
    fine_zooms = working_zooms(zooms, wanted)
    fine_shape, _ = output_grid(image.shape[:3], image.affine, fine_zooms)
    data = np.asarray(image.dataobj)
    if data.dtype.kind != "f":
        guide = np.asarray(target.dataobj, np.float32) if fine_shape == counts else None
        carried = carry_labels(data, zooms, fine_shape, fine_zooms, guide)
        carried = _coarser_labels(carried, fine_zooms, counts, wanted)
    else:
        parts = np.moveaxis(data.reshape(*data.shape[:3], -1), -1, 0)
        carried = carry_fractions(parts, zooms, fine_shape, fine_zooms)
        carried = _each(_coarser(fine_shape, fine_zooms, counts, wanted), carried)
        carried = np.moveaxis(carried, 0, -1).reshape(*counts, *data.shape[3:])
    return _placed(carried, target.affine, image)


def _placed(data: np.ndarray, affine: np.ndarray, source: nib.Nifti1Image) -> nib.Nifti1Image:
    """The voxels on their grid; kinds of coordinates (scanner, template) are those of the map."""
    result = nib.Nifti1Image(data, affine)
    result.header.set_xyzt_units("mm")
    result.set_sform(affine, int(source.header["sform_code"]) or 1)
    result.set_qform(affine, int(source.header["qform_code"]) or 1)
    return result


def _coarser(shape: Shape, zooms: Triple, new_shape: Shape, new_zooms: Triple) -> Matrices:
    """Averages to the output grid along axes that are coarser there than in the input."""
    return _Grids(new_shape, new_zooms, shape, zooms).average()


def _coarser_labels(
    labels: np.ndarray, zooms: Triple, new_shape: Shape, new_zooms: Triple
) -> np.ndarray:
    """The main label of each output voxel, where voxels are coarser than in the input."""
    matrices = _coarser(labels.shape, zooms, new_shape, new_zooms)
    if all(matrix is None for matrix in matrices):
        return labels
    result = np.zeros(new_shape, labels.dtype)
    most = np.zeros(new_shape, np.float32)
    for code in np.unique(labels):
        share = along_axes((labels == code).astype(np.float32), matrices)
        result[share > most] = code
        most = np.maximum(most, share)
    return result
