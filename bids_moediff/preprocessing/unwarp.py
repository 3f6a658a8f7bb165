# SPDX-License-Identifier: Apache-2.0
"""Correct the distortion of non-linear gradients, with the scanner's own coefficients.

The spherical harmonics and the parser of the coefficient file are those of the package gradunwarp.
Its command is not used: it writes a full warp into the current folder, evaluates the harmonics on
a grid whose spacing is wrong by one part in sixty, and interpolates linearly.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.errors import ImageError, UsageError

NODE_SPACING = 8.0  # mm; the field of a whole-body coil changes over decimetres
LARGEST_JACOBIAN = 10.0  # as in gradunwarp
TURN = np.array([-1.0, 1.0, -1.0])  # RAS to the left-anterior-inferior axes of the coefficients


def read_coefficients(path: str | Path) -> Any:
    """Return the spherical-harmonic coefficients of a Siemens ``.grad`` file.

    Raises
    ------
    UsageError
        If gradunwarp is not installed, or the file is missing or of another kind.
    """
    path = Path(path)
    try:
        from gradunwarp.core.coeffs import get_coefficients
    except ImportError as error:
        raise UsageError("--gradient-coefficients needs gradunwarp: pip install gradunwarp") from (
            error
        )
    if not path.is_file():
        raise UsageError(f"--gradient-coefficients {path}: the file does not exist.")
    complaint = f"{path.name} is not a gradient coefficient file of a Siemens scanner (.grad)"
    if path.suffix != ".grad":
        raise UsageError(complaint)
    try:
        coefficients = get_coefficients("siemens", str(path))
    except (ValueError, KeyError, IndexError, UnboundLocalError, UnicodeDecodeError) as error:
        raise UsageError(complaint) from error
    if not any(np.any(part) for part in coefficients[:6]):
        raise UsageError(complaint)
    return coefficients


def displacement(points: np.ndarray, coefficients: Any) -> np.ndarray:
    """Return the displacement by the scanner: apparent minus true position.

    Parameters
    ----------
    points
        (..., 3) RAS millimetres from the isocentre.
    coefficients
        From :func:`read_coefficients`.

    Returns
    -------
    np.ndarray
        (..., 3) RAS millimetres.
    """
    from gradunwarp.core.unwarp_resample import eval_spherical_harmonics

    turned = np.asarray(points, dtype=np.float64) * TURN
    parts, _ = eval_spherical_harmonics(coefficients, "siemens", np.moveaxis(turned, -1, 0))
    return np.stack(parts, -1) * TURN


NOT_THE_ISOCENTRE = (
    "the header does not say that its origin is the isocentre; unwarping took it as such"
)


def unwarp(
    image: nib.Nifti1Image, coefficients: Any, jacobian: bool = True
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Return the image on its own grid, without the distortion: one cubic interpolation.

    Parameters
    ----------
    image
        3-D image in scanner coordinates: world origin at the isocentre.
    coefficients
        From :func:`read_coefficients`.
    jacobian
        Multiply by the change of volume, so that brightness is kept where space was squeezed.

    Returns
    -------
    image
        ``float32``, same grid; 0 where nothing was measured.
    record
        ``largest_displacement_mm`` in the field of view, ``jacobian`` and ``warnings``.

    Raises
    ------
    ImageError
        If the header says that the image is in a standard space.
    """
    code = int(image.header["sform_code"]) or int(image.header["qform_code"])
    if code > 2:
        raise ImageError(
            "gradient unwarping needs scanner coordinates, and the header says that the image "
            "lies in a standard space"
        )
    nodes = _node_positions(image)
    coarse, change = _at_nodes(image, nodes, coefficients)
    data = ndimage.spline_filter(np.asarray(image.dataobj, dtype=np.float64), mode="mirror")
    result = np.empty(image.shape, dtype=np.float32)
    largest = 0.0
    smooth = [ndimage.spline_filter(part, mode="mirror") for part in (*coarse, change)]
    inside = _inverse_positions(nodes, image.shape)
    linear = image.affine[:3, :3]
    for index in range(image.shape[0]):  # slabs: three coordinates of a whole head are large
        slab = np.meshgrid([inside[0][index]], inside[1], inside[2], indexing="ij")
        *shift, volume = (
            ndimage.map_coordinates(part, slab, order=3, prefilter=False, mode="nearest")
            for part in smooth
        )
        own = np.meshgrid([index], *(np.arange(n) for n in image.shape[1:]), indexing="ij")
        where = [base + step for base, step in zip(own, shift, strict=True)]
        values = ndimage.map_coordinates(data, where, order=3, prefilter=False, cval=0.0)
        result[index] = (values * volume if jacobian else values)[0]
        distance = np.linalg.norm(np.moveaxis(np.stack(shift), 0, -1) @ linear.T, axis=-1)
        largest = max(largest, float(distance.max()))
    unwarped = nib.Nifti1Image(result, image.affine, image.header)
    unwarped.header.set_data_dtype(np.float32)
    record = {"largest_displacement_mm": round(largest, 3), "jacobian": jacobian}
    return unwarped, record | {"warnings": [] if code == 1 else [NOT_THE_ISOCENTRE]}


def _node_positions(image: nib.Nifti1Image) -> list[np.ndarray]:
    """Voxel coordinates of the nodes along each axis, from the first to the last voxel."""
    zooms = nib.affines.voxel_sizes(image.affine)
    counts = [
        max(4, int(np.ceil(size * zoom / NODE_SPACING)) + 1)
        for size, zoom in zip(image.shape, zooms, strict=True)
    ]
    return [
        np.linspace(0.0, size - 1.0, count)
        for size, count in zip(image.shape, counts, strict=True)
    ]


def _inverse_positions(nodes: list[np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
    """Coordinates of every voxel in units of nodes, along each axis."""
    return [
        np.arange(size) * (len(axis) - 1) / (size - 1)
        for axis, size in zip(nodes, shape, strict=True)
    ]


def _at_nodes(
    image: nib.Nifti1Image, nodes: list[np.ndarray], coefficients: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Displacement in voxels (3, x, y, z) and change of volume (x, y, z) at the nodes."""
    voxels = np.stack(np.meshgrid(*nodes, indexing="ij"), -1)
    points = nib.affines.apply_affine(image.affine, voxels)
    inverse = np.linalg.inv(image.affine[:3, :3])
    shift = np.moveaxis(displacement(points, coefficients) @ inverse.T, -1, 0)
    steps = [float(axis[1] - axis[0]) for axis in nodes]
    slopes = np.stack([np.stack(np.gradient(part, *steps)) for part in shift])
    matrices = np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3)
    change = np.minimum(np.abs(np.linalg.det(matrices)), LARGEST_JACOBIAN)
    return shift, change
