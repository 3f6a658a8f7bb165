# SPDX-License-Identifier: Apache-2.0
"""Read a scan into one plain form, or say in one sentence why it cannot be used.

Nothing is interpolated or turned: the grid, the orientation (also an oblique one) and the
intensity units of the file are kept.
"""

import gzip
import math
import os
import warnings
import zlib
from pathlib import Path
from typing import Any, TypeGuard

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from bids_moediff.errors import ImageError

from .as_written import open_image, quiet, remarks_on_header, what_it_is
from .intensities import sound_intensities
from .planes import empty_planes

SMALLEST_SIZE = 6  # voxels along every axis
SMALLEST_VOXEL, LARGEST_VOXEL = 0.005, 100.0  # mm
LARGEST_SHEAR = 5.0  # degrees
PIECE = 1 << 24  # bytes that are unpacked at a time
MOST_BEHIND = 1 << 26  # bytes behind the voxels (extensions, padding) that are unpacked
UNIT_SCALES = {"meter": 1000.0, "micron": 0.001}
FARTHEST = 10_000.0  # mm from the origin of the scanner
SMALLEST_FIELD, LARGEST_FIELD = 20.0, 1000.0  # mm along the longest axis
# Squares of larger or smaller values are none in single precision.
SMALLEST_PEAK, LARGEST_PEAK = 1e-15, 1e15
UNKNOWN_SIDES = "the header does not say how the image lies; left and right cannot be told apart"
_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError)


def conform(path: str | Path, *, scan: bool = True) -> tuple[nib.Nifti1Image, list[str]]:
    """Read an anatomical image.

    Parameters
    ----------
    path
        NIfTI file, 3-D, or with further axes of one element.
    scan
        Whether its values are intensities (:mod:`bids_moediff.preprocessing.intensities`), not a
        mask.

    Returns
    -------
    image
        3-D ``float32`` NIfTI-1 with scaling applied, every value finite, sform and qform equal.
    remarks
        One sentence for each correction.

    Raises
    ------
    ImageError
        If the file is missing, not fetched, unreadable, damaged, empty, constant, complex or
        coloured, a time series, or has fewer than 6 voxels along an axis.

    Notes
    -----
    The sform places the image if its code says that it counts, whatever qform and pixdim are; a
    remark says if they disagree. A shear of up to 5 degrees becomes the nearest rotation; a larger
    one is an error. Without a sform the qform counts, else the voxel size alone.
    """
    path = Path(path)
    _check_file(path)
    image, data = _read(path)
    return _conformed(image, data, path.name, scan)


def conform_loaded(
    image: nib.spatialimages.SpatialImage, name: str, *, scan: bool = True
) -> tuple[nib.Nifti1Image, list[str]]:
    """Do what :func:`conform` does with an image that is loaded already.

    Parameters
    ----------
    image
        3-D, or with further axes of one element.
    name
        Its name in errors.
    scan
        Whether its values are intensities, not a mask.

    Raises
    ------
    ImageError
        As for :func:`conform`.
    """
    _check_kind(image, name)
    return _conformed(image, _values(image, name), name, scan)


def _conformed(
    image: nib.spatialimages.SpatialImage, data: np.ndarray, name: str, scan: bool
) -> tuple[nib.Nifti1Image, list[str]]:
    """Return the image in one plain form, and a remark on each correction."""
    remarks = list(remarks_on_header(image))
    data = data.reshape(data.shape[:3])
    data = _finite(data, name, remarks)
    if scan:
        remarks += empty_planes(data)
        data = sound_intensities(data, *_scaling(image), remarks, name)
    affine, code = _affine(image, data.shape, name, remarks)
    header = nib.Nifti1Header() if not isinstance(image, nib.Nifti1Pair) else image.header.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1.0, 0.0)
    header["qform_code"] = header["sform_code"] = 0  # nibabel fails on those that are none
    header = nib.Nifti1Header.from_header(header, check=False)
    with quiet():
        result = nib.Nifti1Image(data, affine, header)
    result.header.set_xyzt_units("mm", "sec")
    result.set_sform(affine, code)
    result.set_qform(affine, code)
    return result, remarks


def check_header(path: str | Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return matrix and voxel size (mm), or raise the errors of :func:`conform` about the header.

    The voxels are not read; a compressed file is unpacked only if its length looks wrong.

    Raises
    ------
    ImageError
        As for :func:`conform`, in the same words.
    """
    path = Path(path)
    _check_file(path)
    image = _open(path)
    shape = _check_shape(image.shape, path.name)
    affine, _ = _affine(image, shape, path.name, [])
    x, y, z = (float(zoom) for zoom in nib.affines.voxel_sizes(affine))
    return shape, (x, y, z)


def _check_file(path: Path) -> None:
    """Raise ImageError for missing, empty and not yet fetched files."""
    hint = f"{path.name} is not here yet: fetch its content first"
    annex = f"{hint} (datalad get, git annex get)"
    if path.is_symlink() and not path.exists():
        if "annex" in path.readlink().parts:
            raise ImageError(annex)
        raise ImageError(f"{path.name} points to a missing file")
    if not path.is_file():
        exists = "is not a regular file" if path.exists() else "does not exist"
        raise ImageError(f"{path.name} {exists}")
    size = path.stat().st_size
    if size == 0:
        raise ImageError(f"{path.name} is an empty file")
    if size < 1024:
        start = path.read_bytes()[:200]
        if b"annex/objects/" in start:
            raise ImageError(annex)
        if start.startswith(b"version https://git-lfs"):
            raise ImageError(f"{hint} (git lfs pull)")


def _open(path: Path) -> nib.spatialimages.SpatialImage:
    """Return an image without its values; ImageError for a wrong header or length."""
    try:
        image = open_image(path)
    except Exception as error:  # nibabel trips over odd headers in many ways
        reason = what_it_is(path, error)
        raise ImageError(f"{path.name} is not a readable NIfTI image{reason}") from error
    _check_kind(image, path.name)
    check_length(path, image)
    return image


def _check_kind(image: object, name: str) -> None:
    """Raise ImageError unless an image is a volume of real numbers, by its header."""
    if not isinstance(image, nib.spatialimages.SpatialImage):
        raise ImageError(f"{name} is not a volume")
    kind = image.get_data_dtype()
    if kind.fields is not None:
        raise ImageError(f"{name} is a colour image, not a scan")
    if kind.kind == "c":
        raise ImageError(f"{name} has complex values; give its magnitude")
    if np.prod(image.shape[3:], dtype=int) > 1:  # before a long series is read
        volumes = int(np.prod(image.shape[3:]))
        raise ImageError(f"{name} has {volumes} volumes; give one 3-D image")
    _check_shape(image.shape, name)


def check_length(path: Path, image: nib.spatialimages.SpatialImage) -> None:
    """Make sure that a file is as long as its header says.

    Parameters
    ----------
    path
        NIfTI file.
    image
        The same, opened.

    Raises
    ------
    ImageError
        For a shorter one, and for voxels that begin within the header.
    """
    offset = int(getattr(image.dataobj, "offset", 0))
    wanted = offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if offset < 0:
        raise ImageError(f"{path.name} is not a readable NIfTI image")
    if isinstance(image, nib.Nifti1Image) and offset < int(image.header["sizeof_hdr"]):
        raise ImageError(
            f"{path.name} is damaged: by its header the voxels begin at byte {offset}, within "
            "the header"
        )
    if path.suffix == ".nii":
        found = path.stat().st_size
    elif path.suffix == ".gz" and not wanted <= _stated_length(path) <= wanted + MOST_BEHIND:
        found = _unpacked_length(path, wanted)
    else:
        return
    if found < wanted:
        raise ImageError(
            f"{path.name} is cut short: the header promises {wanted:,} bytes, the file has "
            f"{found:,}; copy it again"
        )


def _stated_length(path: Path) -> int:
    """Return the unpacked length by the last four bytes of a gzip file (modulo 4 GiB)."""
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        return int.from_bytes(stream.read(4), "little")


def _unpacked_length(path: Path, most: int) -> int:
    """Return the bytes that can be unpacked, counted up to ``most``; ImageError if damaged."""
    count = 0
    try:
        with gzip.open(path) as stream:
            while count < most and (piece := stream.read(1 << 14)):
                count += len(piece)
    except gzip.BadGzipFile as error:
        raise _damaged(path, error) from error
    except (OSError, EOFError, zlib.error):
        pass
    return count


def _damaged(path: Path, error: gzip.BadGzipFile) -> ImageError:
    """Return what is wrong with a gzip file: its checksum, or data after its content."""
    behind = "Not a gzipped" in str(error)
    what = "other bytes stand behind its content" if behind else "check sum"
    return ImageError(f"{path.name} is damaged ({what}); copy it again")


def _read(path: Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """Return an image and its scaled values; any damage becomes an ImageError."""
    image = _open(path)
    _check_sum(path, image)
    return image, _values(image, path.name)


def _values(image: nib.spatialimages.SpatialImage, name: str) -> np.ndarray:
    """Return the scaled values of an image in single precision."""
    try:
        with np.errstate(over="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            values = np.asarray(image.dataobj)
            _check_range(values, name)
            return values.astype(np.float32)
    except _READ_ERRORS as error:
        raise ImageError(f"{name} is cut short or damaged") from error


def _check_sum(path: Path, image: nib.spatialimages.SpatialImage) -> None:
    """Raise ImageError if the checksum of a gzip file does not match its content.

    nibabel reads only up to the last voxel, and the checksum comes after it.
    """
    if path.suffix != ".gz":
        return
    wanted = int(np.prod(image.shape, dtype=float)) * image.get_data_dtype().itemsize
    left = wanted + MOST_BEHIND
    try:
        with gzip.open(path) as stream:
            while left > 0 and (piece := stream.read(PIECE)):
                left -= len(piece)
    except gzip.BadGzipFile as error:
        raise _damaged(path, error) from error
    except _READ_ERRORS as error:
        raise ImageError(f"{path.name} is cut short or damaged") from error


def _scaling(image: nib.spatialimages.SpatialImage) -> tuple[float, float]:
    """Return slope and intercept of the values in the file."""
    slope = float(getattr(image.dataobj, "slope", 1.0))
    intercept = float(getattr(image.dataobj, "inter", 0.0))
    return slope, intercept


def _check_shape(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """Return the first three voxel counts; ImageError if they are too few for a volume."""
    if len(shape) < 3 or 1 in shape[:3]:
        raise ImageError(f"{name} is a single slice, not a volume")
    if 0 in shape:
        raise ImageError(f"{name} has no voxels")
    if min(shape) < 0 or min(shape[:3]) < SMALLEST_SIZE:
        words = " x ".join(map(str, shape[:3]))
        raise ImageError(f"{name} has too few voxels along an axis: {words}")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _finite(data: np.ndarray, name: str, remarks: list[str]) -> np.ndarray:
    """Return values with NaN as 0 or less, and infinity as the nearest finite value."""
    bad = ~np.isfinite(data)
    count = int(bad.sum())
    if count == data.size:
        raise ImageError(f"{name} has no finite value")
    if count:
        good = data[~bad]
        low, high = float(good.min()), float(good.max())
        data = np.nan_to_num(data, nan=min(0.0, high), posinf=high, neginf=low)
        remarks.append(f"{count} voxels were not finite numbers and have been replaced")
    if data.min() == data.max():
        raise ImageError(f"{name} has the same value everywhere (to seven digits)")
    return data


def _check_range(values: np.ndarray, name: str) -> None:
    """ImageError for values whose squares single precision does not hold."""
    if values.dtype.kind != "f" and values.dtype.itemsize <= 4:
        return
    finite = np.isfinite(values)
    peak = max(
        float(np.max(values, where=finite, initial=0)),
        -float(np.min(values, where=finite, initial=0)),
    )
    if peak > LARGEST_PEAK or 0 < peak < SMALLEST_PEAK:
        raise ImageError(
            f"{name} holds values up to {peak:.1e}; store it in a unit in which they lie between "
            f"{SMALLEST_PEAK:g} and {LARGEST_PEAK:g}"
        )


def stated_zooms(header: nib.Nifti1Header) -> tuple[float, float, float]:
    """Return the voxel size (mm) by which :func:`conform` places an image.

    Parameters
    ----------
    header
        NIfTI header.
    """
    x, y, z = (float(zoom) * _unit_scale(header) for zoom in _zooms_in_unit(header))
    return x, y, z


def _zooms_in_unit(header: nib.Nifti1Header) -> np.ndarray:
    """Return the voxel size in the unit of the header."""
    zooms = np.abs(np.asarray(header["pixdim"][1:4], dtype=float))
    sform = header.get_sform()
    if _spans(sform) and (header["sform_code"] > 0 or not _positive(zooms)):
        return nib.affines.voxel_sizes(sform)
    return zooms


def _unit_scale(header: nib.Nifti1Header) -> float:
    """Return millimetres per unit of length; 1 if only that gives the field of view of a head."""
    scale = UNIT_SCALES.get(_unit(header), 1.0)
    counts = np.asarray(header.get_data_shape()[:3])
    field = float(max(counts * _zooms_in_unit(header)[: len(counts)], default=0.0))
    as_said = SMALLEST_FIELD <= scale * field <= LARGEST_FIELD
    return 1.0 if not as_said and SMALLEST_FIELD <= field <= LARGEST_FIELD else scale


def stated_affine(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """Return the affine by which :func:`conform` places an image (mm).

    Raises
    ------
    ImageError
        If the voxel size in the header is impossible.
    """
    return _affine(image, image.shape[:3], "the image", [])[0]


def file_zooms(path: Path) -> tuple[float, float, float]:
    """Return the voxel size (mm) that a file states; infinite if it is not a 3-D image."""
    try:
        header: Any = open_image(path).header
        zooms = stated_zooms(header)
        volume = [int(n) for n in header.get_data_shape()[3:]]
    except Exception:
        return (np.inf, np.inf, np.inf)
    if len(header.get_data_shape()) < 3 or any(n != 1 for n in volume) or min(zooms) <= 0:
        return (np.inf, np.inf, np.inf)
    return zooms


def _unit(header: nib.Nifti1Header) -> str:
    """Return the unit of length; millimetres for a code that NIfTI does not define."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "mm"


def _positive(zooms: np.ndarray) -> bool:
    return bool(np.isfinite(zooms).all() and (zooms > 1e-6).all())


def _spans(affine: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Return True if the affine is finite and its three axes span a volume."""
    if affine is None or not np.isfinite(affine).all():
        return False
    sizes = nib.affines.voxel_sizes(affine)
    return _positive(sizes) and bool(abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3)


def _straight(sform: np.ndarray, name: str, remarks: list[str]) -> np.ndarray:
    """Return the sform with right angles: the nearest rotation for a slight shear."""
    sizes = nib.affines.voxel_sizes(sform)
    directions = sform[:3, :3] / sizes
    sine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if sine < 1e-3:
        return sform
    degrees = float(np.degrees(np.arcsin(min(1.0, sine))))
    if degrees > LARGEST_SHEAR:
        raise ImageError(
            f"{name} is sheared: the axes of its sform are {degrees:.0f} degrees off right "
            "angles; resample it to a grid with right angles"
        )
    left, _, right = np.linalg.svd(directions)
    remarks.append(
        f"the sform of the header is sheared by {degrees:.1f} degrees; "
        "the nearest rotation was used"
    )
    return nib.affines.from_matvec(left @ right * sizes, sform[:3, 3])


def _usable(affine: np.ndarray | None) -> TypeGuard[np.ndarray]:
    """Return True if the affine is finite, with right angles and no axis of length 0."""
    if affine is None or not np.isfinite(affine).all():
        return False
    sizes = nib.affines.voxel_sizes(affine)
    if (sizes <= 1e-6).any():
        return False
    directions = affine[:3, :3] / sizes
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() < 1e-3)


def _affine(
    image: nib.spatialimages.SpatialImage,
    shape: tuple[int, ...],
    name: str,
    remarks: list[str],
) -> tuple[np.ndarray, int]:
    """Return the affine that places the image (mm, near the scanner), and its NIfTI code."""
    affine, code = _stated_affine(image, shape, name, remarks)
    if (away := float(np.abs(affine[:3, 3]).max())) > FARTHEST:
        remarks.append(
            f"the header places the image {away / 1000:.3g} m away from the scanner; "
            "it was centred"
        )
        affine = affine.copy()
        affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine, code


def _stated_affine(
    image: nib.spatialimages.SpatialImage,
    shape: tuple[int, ...],
    name: str,
    remarks: list[str],
) -> tuple[np.ndarray, int]:
    """Return the affine in the header (mm), and its NIfTI code."""
    if not isinstance(image, nib.Nifti1Pair):  # NIfTI-1 and NIfTI-2 alike, single file or pair
        if isinstance(image, nib.AnalyzeImage) and not _has_matrix(image):
            remarks.append(UNKNOWN_SIDES)
        return np.asarray(image.affine), 1
    header = image.header
    zooms = np.asarray(stated_zooms(header))
    if not _positive(zooms):
        raise ImageError(f"{name} has no voxel size in its header")
    if zooms.min() < SMALLEST_VOXEL or zooms.max() > LARGEST_VOXEL:
        size = " x ".join(f"{zoom:.3g}" for zoom in zooms)
        raise ImageError(f"{name} has an impossible voxel size in its header: {size} mm")
    scale = _unit_scale(header)
    if scale != 1.0:
        remarks.append("the header gives lengths in another unit than mm; they were converted")
    elif _unit(header) in UNIT_SCALES:
        remarks.append(
            f"no head has the size that the header gives in the unit {_unit(header)}; its "
            "lengths were read as mm"
        )
    matrix = np.diag([scale, scale, scale, 1.0])
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = _quiet_qform(header)
    if sform_code and _spans(sform):
        straight = _straight(sform, name, remarks)
        pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=float)) * scale
        if not np.allclose(zooms, pixdim, rtol=0.01):
            remarks.append("pixdim of the header contradicts its sform; the sform was used")
        elif qform_code and _usable(qform) and _corner_shift(straight, qform, shape) > 0.1:
            remarks.append("sform and qform of the header disagree; the sform was used")
        return matrix @ straight, int(sform_code)
    if qform_code and _usable(qform):
        if sform_code:
            remarks.append("the sform of the header spans no volume; the qform was used")
        return matrix @ qform, int(qform_code)
    remarks.append(UNKNOWN_SIDES)
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = -0.5 * zooms * (np.asarray(shape) - 1)
    return affine, 1


def _has_matrix(image: nib.AnalyzeImage) -> bool:
    """Whether the ``.mat`` file of SPM lies beside an Analyze image."""
    holder = image.file_map.get("mat")
    return holder is not None and holder.filename is not None and Path(holder.filename).is_file()


def _quiet_qform(header: nib.Nifti1Header) -> tuple[np.ndarray | None, int]:
    try:
        qform, code = header.get_qform(coded=True)
    except (HeaderDataError, ValueError):
        return None, 0
    return qform, int(code)


def _corner_shift(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the largest distance of the eight corners under two affines, in voxels."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape])).reshape(3, -1).T
    distance = nib.affines.apply_affine(first, corners) - nib.affines.apply_affine(second, corners)
    smallest = float(nib.affines.voxel_sizes(first).min())
    return float(np.linalg.norm(distance, axis=1).max()) / smallest
