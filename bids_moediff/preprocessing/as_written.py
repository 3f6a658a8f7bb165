# SPDX-License-Identifier: Apache-2.0
"""NIfTI headers as they are written: nibabel puts odd fields right, and no image is told.

A code that NIfTI does not know is still a statement, and a voxel size of 0 is no millimetre.
"""

import gzip
import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")
FORMS = ("sform_code", "qform_code")
DICOM = (128, b"DICM")
# First bytes of what is often given the name of an image.
CONTENTS = {
    b"BZh": "it is compressed by bzip2, not gzip",
    b"PK\x03\x04": "it is a zip archive; unpack it",
    b"\xfd7zXZ": "it is compressed by xz, not gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed by zstd, not gzip",
    b"<": "it is a web page or XML; download the image again",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what nibabel says of odd headers off the terminal: remarks say it of an image."""
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def open_image(path: Path) -> nib.spatialimages.SpatialImage:
    """Open an image without reading its values.

    The header holds the voxel sizes of the file. A code of sform or qform that NIfTI does not
    know counts as 1 (scanner).

    Parameters
    ----------
    path
        NIfTI, Analyze or MGH file.

    Raises
    ------
    Exception
        whatever nibabel raises at an odd header.
    """
    with quiet():
        image: Any = nib.load(path)
        raw = raw_header(image)
    if raw is not None:
        image.header["pixdim"][1:4] = np.abs(raw["pixdim"][1:4])
        for name in FORMS:
            if raw[name] > 0 and image.header[name] == 0:
                image.header[name] = 1
    return image


def raw_header(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Header | None:
    """Return the header as it is in the file; None for other formats and for images in memory."""
    if not isinstance(image, nib.Nifti1Pair):
        return None
    holder = image.file_map.get("header") or image.file_map["image"]
    if holder.filename is None:
        return None
    with holder.get_prepare_fileobj(mode="rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)


def remarks_on_header(image: nib.spatialimages.SpatialImage) -> list[str]:
    """Return one sentence for each field of an opened image that holds what cannot be meant."""
    with quiet():
        raw = raw_header(image)
    if raw is None:
        return []
    remarks = []
    if not math.isfinite(slope := float(raw["scl_slope"])):
        remarks.append(
            f"scl_slope of the header is {slope:g}; the stored values were taken as they are"
        )
    known = nib.nifti1.xform_codes.value_set("code")
    for name in FORMS:
        if (code := int(raw[name])) > 0 and code not in known:
            remarks.append(
                f"{name} of the header is {code}, which NIfTI does not know; it was read as 1"
            )
    return remarks


def what_it_is(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that nibabel cannot open, as the end of a sentence.

    Empty where nothing is known.
    """
    start = _start(path)
    packed = start.startswith(b"\x1f\x8b")
    if packed and path.suffix == ".nii":
        return ": it is compressed; name it .nii.gz"
    inside = start
    if packed:
        inside = _start(path, packed=True)
        if inside.startswith(b"\x1f\x8b"):
            return ": it is compressed twice; unpack it once"
    if inside[DICOM[0] :].startswith(DICOM[1]):
        return ": it is a DICOM file; convert it first (dcm2niix)"
    for magic, words in CONTENTS.items():
        if inside.startswith(magic):
            return f": {words}"
    if not packed and path.suffix == ".gz":
        return ": it is not compressed; name it .nii, or compress it"
    return _fault_of_header(inside, error)


def _fault_of_header(start: bytes, error: Exception) -> str:
    """What nibabel found, in words where its own name another fault."""
    sizes = [int.from_bytes(start[40:42], order, signed=True) for order in ORDERS]
    if start[344:347] in (b"n+1", b"ni1") and not any(1 <= size <= 7 for size in sizes):
        return f": its header counts {min(sizes, key=abs)} dimensions"
    if "w2 should be positive" in str(error):
        return ": the quaternion of its qform is longer than 1"
    if "read length" in str(error):
        return ": its header extensions have no length"
    if isinstance(error, HeaderDataError):
        return f": {' '.join(str(error).split())[:80]}"
    return ""


def _start(path: Path, *, packed: bool = False) -> bytes:
    """The first bytes of a file, unpacked if asked for, as far as they can be read."""
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            return bytes(stream.read(352))
    except (OSError, EOFError, zlib.error):
        return b""
