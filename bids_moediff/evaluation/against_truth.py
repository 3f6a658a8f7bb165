# SPDX-License-Identifier: Apache-2.0
"""Compare super-resolved images of a data set with true images of the same participants.

Nothing is registered. A result whose voxels coincide with those of the truth is compared as it is.
Any other is interpolated to the truth's grid by a cubic spline, and its row says so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import RESERVED, parse_name
from bids_moediff.errors import ImageError
from bids_moediff.imaging import metrics
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.interpolation import back_projection, interpolate
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.preprocessing.conform import conform

FIGURES = (
    "psnr", "nrmse", "ssim", "hfen", "flicker", "band_correlation", "band_power",
    "psnr_cubic", "psnr_back_projection", "over_cubic", "over_back_projection", "residual",
)  # fmt: skip
COLUMNS = ("image", "reference", "grid", "scale", "offset", *FIGURES)
Row = dict[str, Any]


@dataclass(frozen=True)
class ResultFile:
    """A super-resolved file: path, name relative to the data set, entities of its source."""

    path: Path
    relative: str
    entities: Mapping[str, str]
    suffix: str

    @property
    def sidecar(self) -> dict[str, Any]:
        """Return the JSON sidecar, empty if there is none or it cannot be read."""
        stem = self.path.name.removesuffix(".gz").removesuffix(".nii")
        try:
            content = json.loads(self.path.with_name(f"{stem}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def find_results(root: Path, labels: Sequence[str] = ()) -> list[ResultFile]:
    """Return images with ``desc-sr`` of the participants, sorted by name.

    Parameters
    ----------
    root
        Derivatives folder.
    labels
        Participants without ``sub-``; all if empty.
    """
    found = []
    for path in sorted(root.glob("sub-*/**/anat/*_desc-sr_*.nii*")):
        try:
            entities, suffix, extension = parse_name(path.name)
        except ImageError:
            continue
        if extension in (".nii", ".nii.gz") and (not labels or entities["sub"] in labels):
            plain = {key: value for key, value in entities.items() if key not in RESERVED}
            found.append(ResultFile(path, path.relative_to(root).as_posix(), plain, suffix))
    return found


def match(
    result: ResultFile, candidates: Sequence[AnatomicalImage], session: str | None = None
) -> AnatomicalImage:
    """Return the true image of a result.

    It has the same entities, with ``session`` in place of the result's own if given. If no image
    has, the only image of that participant, session and contrast is taken.

    Raises
    ------
    ImageError
        If there is no such image, or several.
    """
    wanted = dict(result.entities) | ({"ses": session} if session is not None else {})
    same = [
        image
        for image in candidates
        if image.suffix == result.suffix
        and image.entities.get("sub") == wanted["sub"]
        and image.entities.get("ses") == wanted.get("ses")
    ]
    exact = [image for image in same if dict(image.entities) == wanted]
    chosen = exact or same
    where = f"{result.suffix} of sub-{wanted['sub']}"
    where += f" ses-{wanted['ses']}" if "ses" in wanted else ""
    if not chosen:
        raise ImageError(f"there is no reference {where}.")
    if len(chosen) > 1:
        names = ", ".join(Path(image.relative_path).name for image in chosen)
        raise ImageError(f"there are several references {where}: {names}.")
    if chosen[0].problem:
        raise ImageError(f"its reference cannot be read: {chosen[0].problem}")
    return chosen[0]


@dataclass(frozen=True)
class Pair:
    """Result and truth on the truth's grid, the mask of the comparison, and the match."""

    image: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    grid: str


def align(result: nib.Nifti1Image, truth: nib.Nifti1Image) -> Pair:
    """Bring ``result`` onto the grid of ``truth``; the mask is the head that both show."""
    data = np.asarray(truth.dataobj, dtype=np.float32)
    image, covered, grid = onto_grid(result, truth)
    mask = head_mask_array(data, voxel_sizes(truth.affine)) & covered
    if mask.sum() < 1000:
        raise ImageError("result and reference share less than 1000 voxels of the head.")
    return Pair(image, data, mask, truth.affine, grid)


def onto_grid(
    source: nib.Nifti1Image, target: nib.Nifti1Image
) -> tuple[np.ndarray, np.ndarray, str]:
    """Return data of ``source`` on the grid of ``target``, its coverage, "same" or "spline"."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    corner = np.round(matrix[:3, 3])
    shape = np.asarray(target.shape)
    far = np.array(np.meshgrid(*[(0, size - 1) for size in shape])).reshape(3, -1).T
    shift = nib.affines.apply_affine(matrix, far) - (far + corner)
    if np.abs(shift).max() < 1e-2:
        image = np.zeros(target.shape, np.float32)
        covered = np.zeros(target.shape, bool)
        first = np.maximum(0, -corner).astype(int)
        last = np.minimum(shape, np.asarray(source.shape) - corner).astype(int)
        if (last <= first).any():
            return image, covered, "same"
        into = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        begin = (first + corner).astype(int)
        out_of = tuple(slice(a, a + b) for a, b in zip(begin, last - first, strict=True))
        image[into] = np.asarray(source.dataobj, dtype=np.float32)[out_of]
        covered[into] = True
        return image, covered, "same"
    place = (target.shape, target.affine)
    moved = resample_from_to(source, place, order=3, mode="nearest")
    index = np.ogrid[tuple(slice(size) for size in target.shape)]
    covered = np.ones(target.shape, bool)
    for axis, size in enumerate(source.shape):
        position = sum(matrix[axis, k] * index[k] for k in range(3)) + matrix[axis, 3]
        covered &= (position >= -0.5) & (position <= size - 0.5)
    return np.asarray(moved.dataobj, dtype=np.float32), covered, "spline"


def fit_intensities(pair: Pair) -> tuple[np.ndarray, float, float]:
    """Return the image with the scale and offset closest to the truth in the mask."""
    values = pair.image[pair.mask].astype(np.float64)
    design = np.stack([values, np.ones_like(values)], axis=1)
    solution = np.linalg.lstsq(design, pair.truth[pair.mask].astype(np.float64), rcond=None)[0]
    scale, offset = float(solution[0]), float(solution[1])
    return (pair.image * scale + offset).astype(np.float32), scale, offset


def evaluate(
    result: ResultFile,
    reference: AnatomicalImage,
    source: AnatomicalImage | None = None,
    fit: bool = False,
) -> tuple[Row, Pair]:
    """Return all figures of one result, and the pair for pictures.

    Parameters
    ----------
    result, reference
        NIfTI files of the result and of the truth.
    source
        The coarse scan, for gains over interpolation.
    fit
        Whether scale and offset of the intensities are fitted first (another scanner, other
        units).

    Raises
    ------
    ImageError
        If the two cannot be compared.
    """
    image = conform(result.path)[0]
    pair = align(image, conform(reference.path)[0])
    row: Row = {"image": result.relative, "reference": reference.relative_path, "grid": pair.grid}
    if fit:
        fitted, row["scale"], row["offset"] = fit_intensities(pair)
        pair = Pair(fitted, pair.truth, pair.mask, pair.affine, pair.grid)
    row["psnr"] = metrics.psnr(pair.image, pair.truth, pair.mask)
    row["nrmse"] = metrics.nrmse(pair.image, pair.truth, pair.mask)
    sidecar = result.sidecar
    acquired = sidecar.get("AcquiredVoxelSize") or sidecar.get("InputVoxelSize")
    ratios = _ratios(acquired, voxel_sizes(pair.affine))
    row |= metrics.slow_figures(pair.image, pair.truth, pair.mask, ratios)
    row["residual"] = sidecar.get("ConsistencyResidual")
    if source is not None:
        for name, baseline in _baselines(source, voxel_sizes(image.affine)).items():
            other = align_to(baseline, pair)
            if fit:
                other = fit_intensities(Pair(other, pair.truth, pair.mask, pair.affine, ""))[0]
            row[f"psnr_{name}"] = metrics.psnr(other, pair.truth, pair.mask)
            row[f"over_{name}"] = row["psnr"] - row[f"psnr_{name}"]
    return row, pair


def align_to(image: nib.Nifti1Image, pair: Pair) -> np.ndarray:
    """Return ``image`` on the grid of the pair's truth."""
    return onto_grid(image, nib.Nifti1Image(pair.truth, pair.affine))[0]


def _ratios(coarse: Any, zooms: Sequence[float]) -> tuple[float, ...]:
    """Return voxel ratios; ones (no band to recover) if the voxel size of the input is unknown."""
    if not isinstance(coarse, list) or len(coarse) != 3:
        return (1.0, 1.0, 1.0)
    return tuple(max(1.0, float(c) / z) for c, z in zip(coarse, zooms, strict=True))


def _baselines(
    source: AnatomicalImage, zooms: tuple[float, float, float]
) -> dict[str, nib.Nifti1Image]:
    """Return cubic interpolation and cubic + back-projection of the scan, on the output grid."""
    coarse = conform(source.path)[0]
    measured = torch.from_numpy(np.asarray(coarse.dataobj, dtype=np.float32))
    size = voxel_sizes(coarse.affine)
    # An axis that the result left coarser than the scan is interpolated on the scan's own grid.
    target = tuple(min(fine, old) for fine, old in zip(zooms, size, strict=True))
    fine = (target[0], target[1], target[2])
    shape, affine = output_grid(measured.shape, coarse.affine, fine)
    acquisition = Acquisition.from_metadata(source.metadata, size)
    shape_in = (measured.shape[0], measured.shape[1], measured.shape[2])
    operator = Operator.between(shape, fine, shape_in, size, acquisition)
    cubic = interpolate(measured, size, shape, fine)
    better = back_projection(cubic, measured, operator, size, fine)
    return {
        "cubic": nib.Nifti1Image(cubic.numpy(), affine),
        "back_projection": nib.Nifti1Image(better.numpy(), affine),
    }
