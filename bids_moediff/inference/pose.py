# SPDX-License-Identifier: Apache-2.0
"""Set up one image as a problem for a restorer: scaled intensities, grids and operator."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import ImageError
from bids_moediff.families.protocol import Problem
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.consistency import agree, consistent_start
from bids_moediff.imaging.grid import Shape, Triple, output_grid, voxel_sizes
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.reference import resample_reference
from bids_moediff.imaging.told import told_numbers

from .warnings import range_warnings

ROUNDS = 8  # of cutting to zero and agreeing with the measurement
HEAD = 0.1  # of the scale: brighter voxels belong to the head
LEAST_OVERLAP = 0.01  # of the field of view that a reference covers


@dataclass(frozen=True)
class Inputs:
    """What is known about an image besides its voxels.

    Parameters
    ----------
    mask, bias_field
        Brain mask and bias field on the grid of the image.
    acquisition
        How each axis was sampled; without it, k-space sampling on all axes is assumed.
    noise
        Standard deviation of the noise in the units of the image. The result agrees with the image
        within this noise, and exactly if it is None.
    reference
        Another contrast of the same head, on any grid, in the world coordinates of the image.
    reference_weight
        How far its detail counts, 0 to 1.
    """

    mask: nib.Nifti1Image | None = None
    bias_field: nib.Nifti1Image | None = None
    acquisition: Acquisition | None = None
    noise: float | None = None
    reference: nib.Nifti1Image | None = None
    reference_weight: float = 1.0


@dataclass(frozen=True)
class Posed:
    """An image that is set up for the networks, intensities scaled to about [0, 1].

    ``field_coarse`` and ``field_fine`` are its bias field on both grids, if it has one.
    """

    source: nib.Nifti1Image
    measured: torch.Tensor
    scale: float
    zooms: Triple
    coarse_zooms: Triple
    shape: Shape
    affine: np.ndarray
    operator: Operator
    acquisition: Acquisition
    noise: float
    field_coarse: torch.Tensor | None = None
    field_fine: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    reference_weight: float = 1.0
    warnings: list[str] = field(default_factory=list)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Measured over output voxel size, by axis."""
        pairs = zip(self.coarse_zooms, self.zooms, strict=True)
        return tuple(coarse / fine for coarse, fine in pairs)

    def start(self) -> torch.Tensor:
        """Return cubic interpolation that agrees with the measurement (X, Y, Z), unshaded."""
        coarse = self.measured if self.field_coarse is None else self.measured / self.field_coarse
        start = interpolate(coarse, self.coarse_zooms, self.shape, self.zooms)
        return consistent_start(self.operator, start, coarse, self.noise)

    def round_trip(self, volume: torch.Tensor) -> torch.Tensor:
        """Return a volume (X, Y, Z) measured like the image and interpolated again."""
        coarse = self.operator.forward(volume)
        start = interpolate(coarse, self.coarse_zooms, self.shape, self.zooms)
        return consistent_start(self.operator, start, coarse)

    def finish(self, restored: torch.Tensor, consistent: bool = True) -> torch.Tensor:
        """Put the shading back into a volume (X, Y, Z) and make it agree with the measurement."""
        if self.field_fine is not None:
            restored = restored * self.field_fine
        if not consistent:
            return restored
        return agree(self.operator, restored, self.measured, self.noise)

    def non_negative(self, volume: torch.Tensor, consistent: bool = True) -> torch.Tensor:
        """Return a finished volume (X, Y, Z) without values below zero.

        Cutting to zero and agreement with the measurement alternate, which ends near the nearest
        volume that satisfies both (projection onto convex sets). Values below zero are ripples in
        air: where the measurement has signal, almost nothing changes.
        """
        if consistent:
            explained = self.operator.forward(volume) if self.noise else self.measured
            measured = explained.clamp_min(0)
            for _ in range(ROUNDS):
                lacking = measured - self.operator.forward(volume.clamp_min(0))
                volume = self.operator.correct(volume.clamp_min(0), lacking, self.noise)
        return volume.clamp_min(0)

    def agree(self, volume: torch.Tensor) -> torch.Tensor:
        """Make a volume (X, Y, Z) without shading agree with the measurement."""
        fixed = self.finish(volume)
        return fixed if self.field_fine is None else fixed / self.field_fine

    def problem(self) -> Problem:
        """Return the problem that a restorer solves."""
        device = self.measured.device
        numbers = self.acquisition.condition(self.zooms, self.coarse_zooms)
        extra = told_numbers(self.acquisition, self.ratios, self.noise)
        return Problem(
            measured=self.measured,
            start=self.start,
            condition=torch.tensor(numbers, device=device),
            told=torch.tensor(numbers + extra, device=device),
            acquisition=self.acquisition,
            ratios=self.ratios,
            noise=self.noise,
            agree=self.agree,
            operator=self.operator,
            reference=self.reference,
            reference_weight=self.reference_weight,
            round_trip=self.round_trip,
        )

    def residual(self, restored: torch.Tensor) -> float:
        """Return ||A x - y|| / ||y||, the relative consistency residual."""
        residual = self.operator.forward(restored) - self.measured
        return float(residual.norm() / self.measured.norm().clamp_min(1e-12))

    def image(self, data: torch.Tensor) -> nib.Nifti1Image:
        """Return a NIfTI image on the output grid with the source's coordinate codes."""
        image = nib.Nifti1Image(data.cpu().numpy().astype(np.float32), self.affine)
        header = self.source.header
        code = int(header["sform_code"]) or int(header["qform_code"]) or 1
        image.set_sform(self.affine, code)
        image.set_qform(self.affine, int(header["qform_code"]) or code)
        image.header.set_xyzt_units("mm", "sec")
        return image


def pose(
    image: nib.Nifti1Image, zooms: Sequence[float], inputs: Inputs, device: torch.device
) -> Posed:
    """Set an image up for an output voxel size.

    Parameters
    ----------
    image
        3-D image.
    zooms
        Output voxel size in mm, by axis of the image.
    inputs
        What else is known about the image.
    device
        Where tensors are kept.

    Raises
    ------
    ImageError
        If the image is not 3-D or has no positive finite intensities.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    if data.ndim != 3 or min(data.shape) < 2:
        raise ImageError(f"a 3-D image is needed, this one has the shape {data.shape}.")
    mask = inputs.mask
    inside = data[np.asarray(mask.dataobj) > 0] if mask is not None else data[data > 0]
    scale = float(np.percentile(inside, 99.5)) if inside.size else 0.0
    if not np.isfinite(data).all() or scale <= 0:
        raise ImageError("the image has no positive finite intensities.")
    acquisition = inputs.acquisition or Acquisition.uniform("kspace")
    scaled = torch.from_numpy(data / scale).to(device)
    measured, affine, coarse, notes = _reduce_finer_axes(scaled, np.asarray(image.affine), zooms)
    shape, affine_out = output_grid(measured.shape, affine, zooms)
    fine = voxel_sizes(affine_out)
    coarse_shape = (measured.shape[0], measured.shape[1], measured.shape[2])
    fields: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    if inputs.bias_field is not None:
        given = np.asarray(inputs.bias_field.dataobj, dtype=np.float32)
        stored = voxel_sizes(image.affine)
        on_coarse = interpolate(
            torch.from_numpy(given).to(device), stored, coarse_shape, coarse, 1
        )
        fields = (on_coarse, interpolate(on_coarse, coarse, shape, fine, 1))
    return Posed(
        image,
        measured,
        scale,
        fine,
        coarse,
        shape,
        affine_out,
        Operator.between(shape, fine, coarse_shape, coarse, acquisition, device),
        acquisition,
        _noise(measured, inputs, acquisition, scale, voxel_sizes(image.affine), coarse),
        *fields,
        _reference(inputs.reference, shape, affine_out, device),
        inputs.reference_weight,
        warnings=[*notes, *range_warnings(coarse, fine, acquisition)],
    )


def _reference(
    image: nib.Nifti1Image | None, shape: Shape, affine: np.ndarray, device: torch.device
) -> torch.Tensor | None:
    """Return the reference on the output grid, about [0, 1], or None if the two do not overlap."""
    if image is None:
        return None
    data = resample_reference(image, shape, affine)
    if not np.isfinite(data).all() or (data > 0).mean() < LEAST_OVERLAP:
        return None
    return torch.from_numpy(data / np.percentile(data[data > 0], 99.5)).to(device)


def _noise(
    measured: torch.Tensor,
    inputs: Inputs,
    acquisition: Acquisition,
    scale: float,
    stored: Triple,
    coarse: Triple,
) -> float:
    """Return the standard deviation of the noise in scaled intensities, 0 if it is not used."""
    if inputs.noise is not None:  # averaging on the way to coarser voxels takes noise away
        averaged = [a / b for a, b in zip(stored, coarse, strict=True)]
        return inputs.noise / scale * float(np.sqrt(np.prod(averaged)))
    # The estimate reads fine anatomy as noise, so it is not used where it is not needed.
    if not acquisition.erases_detail:
        return 0.0
    array = measured.cpu().numpy()
    return tissue_noise(array, array > HEAD) or 0.0


def _reduce_finer_axes(
    measured: torch.Tensor,
    affine: np.ndarray,
    target: Sequence[float],
) -> tuple[torch.Tensor, np.ndarray, Triple, list[str]]:
    """Bring axes that are finer than the output voxel size to that size first."""
    zooms = voxel_sizes(affine)
    finer = [old < new * (1 - 1e-4) for old, new in zip(zooms, target, strict=True)]
    if not any(finer):
        return measured, affine, zooms, []
    wanted = [new if f else old for f, old, new in zip(finer, zooms, target, strict=True)]
    shape, reduced = output_grid(measured.shape, affine, wanted)
    # The covering grid may exceed the input by part of a voxel, which repeats the last plane.
    counts = [
        max(1, int(n * old / new + 1e-3))
        for n, old, new in zip(measured.shape, zooms, wanted, strict=True)
    ]
    fits = (counts[0], counts[1], counts[2])
    sizes = voxel_sizes(reduced)
    source = (measured.shape[0], measured.shape[1], measured.shape[2])
    box = Acquisition.uniform("box")
    small = Operator.between(source, zooms, fits, sizes, box, measured.device).forward(measured)
    padding: list[int] = []
    for have, need in zip(reversed(fits), reversed(shape), strict=True):
        padding += [0, need - have]
    small = torch.nn.functional.pad(small[None, None], padding, mode="replicate")[0, 0]
    note = (
        "The output voxels asked for are coarser than the scan's on "
        f"{sum(finer)} of 3 axes ({', '.join(f'{z:.3g}' for z in zooms)} mm scanned): the network "
        "leaves these axes alone; they were averaged down and lose detail."
    )
    return small, reduced, sizes, [note]
