# SPDX-License-Identifier: Apache-2.0
"""Make a fine scan coarse, as a quicker acquisition of the same head would be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.grid import Triple, output_grid, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.simulation import Grids, measure

SLICE_PROFILES = ("gaussian", "box")
SMALLEST_SIZE = 6  # voxels along an axis that the rest of the app can use
# Sidecar keys that describe the matrix or the timing of the fine scan and would be wrong now.
STALE = (
    "AcquisitionMatrix", "AcquisitionMatrixPE", "ReconMatrixPE", "PhaseEncodingSteps",
    "PhaseEncodingStepsNoPartialFourier", "PhaseEncodingStepsOutOfPlane", "BaseResolution",
    "PhaseResolution", "SliceResolution", "SliceTiming", "Interpolation2D", "Interpolation3D",
)  # fmt: skip


@dataclass(frozen=True)
class Coarsening:
    """How scans are made coarse; lengths in mm, one number per voxel axis.

    Parameters
    ----------
    resolution
        Voxel sizes in mm, or None.
    factors
        Voxel ratios, or None; exactly one of the two is given.
    profiles
        "kspace", "gaussian" or "box" per axis.
    thickness
        Slice thickness in mm, or None for contiguous slices.
    gap
        Gap between slices in mm, or None.
    signal_to_noise
        Of Rician noise, or None for no noise.
    seed
        Seed of the noise.
    """

    resolution: Triple | None = None
    factors: Triple | None = None
    profiles: tuple[str, str, str] = ("kspace", "kspace", "kspace")
    thickness: float | None = None
    gap: float | None = None
    signal_to_noise: float | None = None
    seed: int = 0

    def target(self, zooms: Triple) -> Triple:
        """Return voxel sizes in mm for a scan of ``zooms``.

        Raises
        ------
        ImageError
            If they are finer than those of the scan.
        """
        if self.resolution is not None:
            wanted = self.resolution
        else:
            assert self.factors is not None
            first, second, third = (z * f for z, f in zip(zooms, self.factors, strict=True))
            wanted = (first, second, third)
        for axis, (old, new) in enumerate(zip(zooms, wanted, strict=True)):
            if new < old * (1 - 1e-3):
                raise ImageError(
                    f"{new:g} mm was asked for on axis {axis}, but the scan has {old:.4g} mm: "
                    "it can only be made coarser."
                )
        sizes = [
            old if new < old * (1 + 1e-3) else new for old, new in zip(zooms, wanted, strict=True)
        ]
        return (sizes[0], sizes[1], sizes[2])

    def acquisition(self, zooms: Triple, target: Triple) -> Acquisition:
        """Return profiles and widths; thickness and gap belong to the coarsest degraded axis."""
        axes = [Axis(profile) for profile in self.profiles]
        if self.thickness is None and self.gap is None:
            return Acquisition((axes[0], axes[1], axes[2]))
        axis = slice_axis(zooms, target)
        if axis is None or self.profiles[axis] not in SLICE_PROFILES:
            raise ImageError(
                "a slice thickness or gap needs a slice axis: the coarsest one, made coarser with "
                "a gaussian or box profile."
            )
        spacing = target[axis]
        thickness = spacing - self.gap if self.gap is not None else self.thickness
        if thickness is None or not 0 < thickness < 3 * spacing:
            raise ImageError(
                f"slices of {thickness} mm do not go with a spacing of {spacing:g} mm."
            )
        axes[axis] = Axis(self.profiles[axis], thickness / spacing)
        return Acquisition((axes[0], axes[1], axes[2]))


def slice_axis(zooms: Triple, target: Triple) -> int | None:
    """Return the coarsest axis (the last among equals), or None if it is not made coarser."""
    axis = max(range(3), key=lambda k: (round(target[k], 4), k))
    return axis if target[axis] > zooms[axis] * (1 + 1e-3) else None


def degrade(
    image: nib.Nifti1Image, recipe: Coarsening, key: int = 0
) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Make a 3-D image coarse.

    Without noise the map is linear, so k-space truncation may leave small negative values. Noise
    is that of a magnitude image. The coarse grid covers the whole field of view; beyond the image,
    its last plane is repeated. Intensities keep their units.

    Parameters
    ----------
    image
        3-D image; its outer corner stays in place.
    recipe
        How it is made coarse.
    key
        Gives every image of a data set its own noise.

    Returns
    -------
    image
        The coarse image.
    record
        What was done.

    Raises
    ------
    ImageError
        If the voxels would be finer than the image's, or too few.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    zooms = voxel_sizes(image.affine)
    target = recipe.target(zooms)
    acquisition = recipe.acquisition(zooms, target)
    shape, affine = output_grid(data.shape, image.affine, target)
    if min(shape) < SMALLEST_SIZE:
        raise ImageError(
            f"fewer than {SMALLEST_SIZE} voxels would be left along an axis: {shape}."
        )
    grids = Grids.outside(data.shape, zooms, (shape[0], shape[1], shape[2]), target)
    coarse = measure(torch.from_numpy(data), grids, acquisition).coarse.numpy()
    record: dict[str, Any] = {
        "InputVoxelSize": [round(size, 6) for size in zooms],
        "OutputVoxelSize": [round(size, 6) for size in target],
        "Profiles": _profiles(acquisition, zooms, target),
    }
    if recipe.signal_to_noise is not None:
        coarse, sigma = add_noise(coarse, target, recipe.signal_to_noise, (recipe.seed, key))
        record |= {
            "SignalToNoise": recipe.signal_to_noise,
            "NoiseStandardDeviation": round(sigma, 6),
            "RandomSeed": recipe.seed,
        }
    return _image(coarse, affine, image), record


def _profiles(acquisition: Acquisition, zooms: Triple, target: Triple) -> list[dict[str, Any]]:
    """Return the profile and its width in mm for every axis."""
    entries: list[dict[str, Any]] = []
    for axis, old, new in zip(acquisition.axes, zooms, target, strict=True):
        if new == old:
            entries.append({"Profile": "none"})
        elif axis.profile == "kspace":
            entries.append({"Profile": "kspace"})
        else:
            entries.append({"Profile": axis.profile, "Width": round(axis.fwhm * new, 6)})
    return entries


def add_noise(
    data: np.ndarray, zooms: Triple, signal_to_noise: float, seed: Sequence[int]
) -> tuple[np.ndarray, float]:
    """Add Rician noise with standard deviation median of the head over ``signal_to_noise``."""
    mask = head_mask_array(data, zooms)
    signal = float(np.median(data[mask])) if mask.any() else 0.0
    if signal <= 0:
        raise ImageError("no head was found to which the noise could be scaled.")
    sigma = signal / signal_to_noise
    random = np.random.default_rng(list(seed))
    real = data + sigma * random.standard_normal(data.shape)
    imaginary = sigma * random.standard_normal(data.shape)
    return np.hypot(real, imaginary).astype(np.float32), sigma


def _image(data: np.ndarray, affine: np.ndarray, source: nib.Nifti1Image) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    code = int(source.header["sform_code"]) or 1
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    return image


def updated_sidecar(metadata: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sidecar of the coarse image: that of the fine scan with changed keys corrected.

    A slice profile on the coarsest axis alone makes the scan 2-D; its thickness and spacing are
    then those that :meth:`Acquisition.from_metadata` reads.
    """
    content = {key: value for key, value in metadata.items() if key not in STALE}
    before, after = record["InputVoxelSize"], record["OutputVoxelSize"]
    first, second, third = after
    axis = slice_axis((before[0], before[1], before[2]), (first, second, third))
    if axis is not None:
        spacing = after[axis]
        width = record["Profiles"][axis].get("Width", spacing)
        sliced = [k for k in range(3) if record["Profiles"][k]["Profile"] in SLICE_PROFILES]
        if sliced == [axis]:
            content["MRAcquisitionType"] = "2D"
        elif content.get("MRAcquisitionType") != "2D":
            content["MRAcquisitionType"] = "3D"
        content["SliceThickness"] = width
        content["SpacingBetweenSlices"] = spacing
    content["AcquisitionVoxelSize"] = after
    return content | {"Degradation": dict(record)}
