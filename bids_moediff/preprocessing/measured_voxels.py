# SPDX-License-Identifier: Apache-2.0
"""Return to the measured voxels: undo the interpolation of a scanner or of a tool.

A header of 0.47 mm on a scan of 0.94 mm hides the task from a network. If the spectrum shows that
an axis was interpolated (:mod:`bids_moediff.imaging.spectrum`), nothing above the measured band
was measured, and it is dropped: the voxels get the acquired size, the field of view stays. The
command line can name the acquired voxels or switch this off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.imaging.acquisition import (
    NARROWEST,
    WIDEST,
    Acquisition,
    Axis,
    axis_matrix,
)
from bids_moediff.imaging.acquisition_choice import choose_acquisition
from bids_moediff.imaging.grid import Triple, output_grid, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.separable import along_axes
from bids_moediff.imaging.spectrum import LEAST_FACTOR, AxisResolution, acquired_resolution

ALIKE = 0.9  # of the largest voxel size: as coarse, but for the rounding to whole voxels
MARGIN = 1.03  # of a cut-off is kept: its place is known to about 2 % of Nyquist
INTERPOLATED_KINDS = ("zero-filled", "interpolated")


@dataclass(frozen=True)
class Measured:
    """A scan on the voxels that were measured.

    ``image``, ``mask`` and ``bias_field`` share a grid. ``changed`` marks axes that are coarser
    than stored. ``source`` is "spectrum", "option" or "header". ``stored`` holds the voxel sizes
    in mm of the file, if they are others.
    """

    image: nib.Nifti1Image
    mask: nib.Nifti1Image | None
    bias_field: nib.Nifti1Image | None
    changed: tuple[bool, bool, bool]
    source: str
    stored: Triple | None = None

    @property
    def zooms(self) -> Triple:
        """Voxel sizes in mm."""
        return voxel_sizes(self.image.affine)

    @property
    def slice_axis(self) -> int:
        """Axis along which slices lie, if there are any: the coarsest.

        Sizes with whole voxels differ by a few percent; of such axes, the coarsest as stored.
        """
        zooms, stored = self.zooms, self.stored or self.zooms
        coarse = [axis for axis in range(3) if zooms[axis] > ALIKE * max(zooms)]
        return max(coarse, key=lambda axis: stored[axis])


def measured_zooms(axes: Sequence[AxisResolution], shape: Sequence[int]) -> Triple:
    """Return voxel sizes in mm that keep all measured detail, with whole voxels per field of view.

    Axes that are native, or of unknown kind, keep their voxels.
    """
    zooms = []
    for axis, count in zip(axes, shape, strict=True):
        factor = axis.acquired / axis.voxel
        if axis.kind == "zero-filled":
            factor /= MARGIN  # the period of interpolation is known exactly, a cut-off is not
        if axis.kind not in INTERPOLATED_KINDS or factor < LEAST_FACTOR:
            zooms.append(axis.voxel)
        else:
            zooms.append(axis.voxel * count / math.ceil(count / factor - 0.05))
    return (zooms[0], zooms[1], zooms[2])


def whole_voxels(wanted: Sequence[float], old: Sequence[float], shape: Sequence[int]) -> Triple:
    """Return sizes near ``wanted`` (mm) with whole voxels per field of view, at least ``old``."""
    zooms = [
        count * zoom / max(2, round(count * zoom / size)) if size > zoom * 1.01 else zoom
        for size, zoom, count in zip(wanted, old, shape, strict=True)
    ]
    return (zooms[0], zooms[1], zooms[2])


def to_voxels(image: nib.Nifti1Image, new: Triple, profile: str = "kspace") -> nib.Nifti1Image:
    """Return the image on coarser voxels of ``new`` mm, or ``image`` itself if they are the same.

    The outer corner of the first voxel and the field of view stay. Profile "kspace" drops
    everything above the new Nyquist frequency, "box" averages (masks and fields).
    """
    old = voxel_sizes(image.affine)
    if np.allclose(new, old, rtol=1e-3):
        return image
    shape, affine = output_grid(image.shape, image.affine, new)
    data = np.asarray(image.dataobj, dtype=np.float32)
    matrices = [
        axis_matrix(image.shape[axis], old[axis], shape[axis], new[axis], Axis(profile))
        for axis in range(3)
    ]
    data = along_axes(data, [m if m is None else m.astype(np.float32) for m in matrices])
    result = nib.Nifti1Image(np.ascontiguousarray(data, dtype=np.float32), affine)
    result.set_sform(affine, int(image.header["sform_code"]))
    result.set_qform(affine, int(image.header["qform_code"]))
    return result


def undo_interpolation(image: nib.Nifti1Image, axes: Sequence[AxisResolution]) -> nib.Nifti1Image:
    """Return the image on the voxels that were measured.

    Parameters
    ----------
    image
        3-D scan.
    axes
        Result of :func:`bids_moediff.imaging.spectrum.acquired_resolution`.

    Returns
    -------
    nib.Nifti1Image
        float32, the outer corner of the first voxel and the field of view unchanged; ``image``
        itself if there is nothing to undo.
    """
    return to_voxels(image, measured_zooms(axes, image.shape))


def find_measured(
    image: nib.Nifti1Image,
    mask: nib.Nifti1Image | None = None,
    bias_field: nib.Nifti1Image | None = None,
    wanted: str | Sequence[float] = "auto",
) -> Measured:
    """Return a scan, its mask and its bias field on the voxels that were measured.

    Parameters
    ----------
    image, mask, bias_field
        On one grid. Without a mask, the whole head is used.
    wanted
        "auto": by the spectrum; "header": as stored; three numbers: acquired voxel sizes in mm, on
        axes where they are larger than those stored.
    """
    stored = voxel_sizes(image.affine)
    if wanted == "header":
        return Measured(image, mask, bias_field, (False, False, False), "header")
    if isinstance(wanted, str):
        data = np.asarray(image.dataobj, dtype=np.float32)
        inside = head_mask_array(data, stored) if mask is None else np.asarray(mask.dataobj) > 0
        zooms = measured_zooms(acquired_resolution(data, stored, inside), image.shape)
    else:
        zooms = whole_voxels(wanted, stored, image.shape)
    coarser = [new > old * 1.001 for new, old in zip(zooms, stored, strict=True)]
    if mask is not None and any(coarser):
        share = to_voxels(mask, zooms, "box")
        data = (np.asarray(share.dataobj) >= 0.5).astype(np.uint8)
        mask = nib.Nifti1Image(data, share.affine)
    if bias_field is not None:
        bias_field = to_voxels(bias_field, zooms, "box")
    return Measured(
        to_voxels(image, zooms),
        mask,
        bias_field,
        (coarser[0], coarser[1], coarser[2]),
        "spectrum" if isinstance(wanted, str) else "option",
        stored,
    )


@dataclass(frozen=True)
class Declared:
    """Assumed sampling of a scan, and its source.

    ``source`` is "option" (the command line), "stated" (a slice thickness in the sidecar),
    "estimated" (the image contradicts the rest) or "assumed" (nothing is known).
    """

    acquisition: Acquisition
    source: str


def slice_axis_remark(metadata: Mapping[str, Any], zooms: Sequence[float]) -> str | None:
    """Return a sentence if the sidecar's slices are along another axis than the one assumed.

    The axis with the largest voxels is assumed, ``zooms`` in mm.
    """
    stated = str(metadata.get("SliceEncodingDirection", ""))[:1]
    if stated not in ("i", "j", "k"):
        return None
    axis, longest = "ijk".index(stated), int(np.argmax(zooms))
    if str(metadata.get("MRAcquisitionType", "")).upper() != "2D" or axis == longest:
        return None
    if zooms[longest] < 1.05 * zooms[axis]:
        return None
    return (
        f"The sidecar says that the slices follow {stated} (SliceEncodingDirection), but voxels "
        f"are longest along {'ijk'[longest]} ({zooms[longest]:.3g} mm; {zooms[axis]:.3g} mm along "
        f"{stated}): slices along {'ijk'[longest]} were assumed."
    )


def thickness_remark(
    measured: Measured, metadata: Mapping[str, Any], declared: Declared, given: float | None
) -> str | None:
    """Return a sentence if a stated slice thickness is too far from the distance to be used.

    Parameters
    ----------
    measured, metadata
        The scan, and its sidecar.
    declared
        Sampling that is used.
    given
        Thickness in mm of the command line, which counts before that of the sidecar.
    """
    stated = metadata["SliceThickness"] if declared.source == "stated" else None
    thickness = stated if given is None else given
    if thickness is None:
        return None
    distance = measured.zooms[measured.slice_axis]
    width = thickness / distance
    used = min(max(width, NARROWEST), WIDEST)
    if math.isclose(width, used, rel_tol=1e-3):
        return None
    return (
        f"A slice thickness of {thickness:.3g} mm is {width:.2g} times the slice distance of "
        f"{distance:.3g} mm; {used:g} times the distance was used."
    )


def declared_acquisition(
    measured: Measured,
    metadata: Mapping[str, Any],
    slice_profile: str = "auto",
    slice_thickness: float | None = None,
) -> Declared:
    """Return the sampling of the measured voxels, by the sidecar and the overriding options.

    An axis whose spectrum ends early is Fourier-encoded unless the sidecar names 2-D slices.
    """
    zooms = measured.zooms
    if slice_profile != "auto" or slice_thickness is not None:
        given = Acquisition.of_slices(
            zooms, slice_profile, slice_thickness, slice_axis=measured.slice_axis
        )
        return Declared(given, "option")
    acquisition = Acquisition.from_metadata(metadata, zooms, measured.slice_axis)
    if str(metadata.get("MRAcquisitionType", "")).upper() != "2D":
        axes = [
            Axis("kspace") if changed else axis
            for axis, changed in zip(acquisition.axes, measured.changed, strict=True)
        ]
        acquisition = Acquisition((axes[0], axes[1], axes[2]))
    stated = acquisition.has_slices and bool(metadata.get("SliceThickness"))
    return Declared(acquisition, "stated" if stated else "assumed")


def estimated_acquisition(
    declared: Declared, measured: Measured, metadata: Mapping[str, Any], sigma: float
) -> tuple[Declared, dict[str, float]]:
    """Return the sampling by the scan itself, and the likelihood of each acquisition.

    ``sigma`` is the standard deviation of its noise. The declared sampling stays unless the scan
    clearly contradicts it. It also stays if interpolation was undone along the axes in question,
    since a cut-off is known to some hundredths only.
    """
    slices = measured.slice_axis
    sliced = declared.acquisition.has_slices
    if measured.changed[slices] if sliced else any(measured.changed):
        return declared, {}
    data = np.asarray(measured.image.dataobj, dtype=np.float32)
    where = data > 0 if measured.mask is None else np.asarray(measured.mask.dataobj) > 0
    stated = None
    if declared.source == "stated":
        stated = float(metadata["SliceThickness"]) / measured.zooms[slices]
    choice = choose_acquisition(declared.acquisition, data, measured.zooms, where, sigma, stated)
    if choice.acquisition == declared.acquisition:
        return declared, dict(choice.weights)
    return Declared(choice.acquisition, "estimated"), dict(choice.weights)
