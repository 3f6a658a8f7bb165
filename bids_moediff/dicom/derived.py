# SPDX-License-Identifier: Apache-2.0
"""Turn an image into a derived MR series: identity of the source, geometry and values its own.

Attributes are copied by name (:data:`IDENTITY`, :data:`PROTOCOL`), so no private tag of the source
is copied. Nothing depends on the time of the call, and unique identifiers come from the content:
the same image, source and options give the same files.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from bids_moediff import __version__

from .source import LPS_TO_RAS, OWN_NAME, Series

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
PLANES = ("source", "axial", "coronal", "sagittal")
NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS"
_NAMESPACE = uuid.UUID("6f0c7c3e-8c64-5a0e-9d52-7f6e5f0b7a11")
# Patient, study and frame of reference.
IDENTITY = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved",
    "DeidentificationMethod", "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "StudyID", "StudyDescription", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "PatientPosition", "BodyPartExamined", "ProtocolName",
    "AcquisitionDate", "AcquisitionTime", "AcquisitionNumber", "LossyImageCompression",
)  # fmt: skip
# How the scan was taken.
PROTOCOL = (
    "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType", "SequenceName",
    "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "EchoTrainLength", "EchoNumbers",
    "MagneticFieldStrength", "ImagingFrequency", "ImagedNucleus",
    "ContrastBolusAgent",
)  # fmt: skip
EQUIPMENT = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName",
    "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip
# Required, but may be empty.
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "StudyID", "ScanOptions", "MRAcquisitionType",
    "EchoTime", "EchoTrainLength", "RepetitionTime", "PatientPosition",
    "PositionReferenceIndicator",
)  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """An image as DICOM holds it: slices, rows, columns.

    Parameters
    ----------
    pixels
        (slices, rows, columns) int16 or uint16.
    slope, intercept
        From the stored value to the unit of the image.
    affine
        Index (column, row, slice) to LPS mm.
    """

    pixels: np.ndarray
    slope: float
    intercept: float
    affine: np.ndarray


def stored(image: nib.Nifti1Image, plane: str, source: Series) -> Stored:
    """Return whole numbers in the slices of ``plane``: axes are permuted, nothing is interpolated.

    Values between integers are rounded if the range has at least 1000 steps; other images get one
    slope and one intercept.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    affine = LPS_TO_RAS @ np.asarray(image.affine, dtype=float)
    order, flips = _axes(affine, plane, source)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        turn[old, new] = -1 if flip else 1
        turn[old, 3] = data.shape[old] - 1 if flip else 0
    data = np.transpose(data, order)
    data = np.flip(data, tuple(axis for axis, flip in enumerate(flips) if flip))
    low, high = float(data.min()), float(data.max())
    slope, intercept, kind = 1.0, 0.0, np.int16
    if high - low < 1000 or low < -32768 or high > 32767:
        # To six digits, so that the number in the file is the one that was used.
        slope = float(f"{max((high - low) / 65000, 1e-9):.6e}")
        intercept = float(f"{low:.6e}")
        kind = np.uint16  # type: ignore[assignment]
    limits = np.iinfo(kind)
    whole = np.clip(np.rint((data - intercept) / slope), limits.min, limits.max)
    return Stored(whole.astype(kind).transpose(2, 1, 0), slope, intercept, affine @ turn)


def _axes(affine: np.ndarray, plane: str, source: Series) -> tuple[list[int], list[bool]]:
    """Image axes for columns, rows and slices, and which of them are flipped (affine to LPS)."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # Where columns and rows grow to, in LPS, as radiology shows the planes.
    shown = {
        "axial": ([1, 0, 0], [0, 1, 0]),
        "coronal": ([1, 0, 0], [0, 0, -1]),
        "sagittal": ([0, 1, 0], [0, 0, -1]),
    }
    if plane == "source":
        turned = (LPS_TO_RAS @ source.affine)[:3, :2]
        along_row, along_column = (turned / np.linalg.norm(turned, axis=0)).T
    else:
        along_row, along_column = (np.array(word, dtype=float) for word in shown[plane])
    order: list[int] = []
    flips: list[bool] = []
    for wanted in (along_row, along_column, np.cross(along_row, along_column)):
        likeness = directions.T @ wanted
        likeness[order] = 0
        axis = int(np.argmax(np.abs(likeness)))
        order.append(axis)
        flips.append(bool(likeness[axis] < 0))
    return order, flips


def datasets(
    image: nib.Nifti1Image, source: Series, record: Mapping[str, Any], plane: str = "source"
) -> Iterator[Dataset]:
    """Return one MR Image Storage object per slice.

    Parameters
    ----------
    image
        Super-resolved image.
    source
        The series it was made from; see :func:`.source.match_series`.
    record
        The image's sidecar, or an empty dictionary.
    plane
        One of :data:`PLANES`; the image axis nearest to it is cut into slices.
    """
    held = stored(image, plane, source)
    sizes = np.linalg.norm(held.affine[:3, :3], axis=0)
    description = _description(sizes, record)
    digest = hashlib.sha256(held.pixels.tobytes())
    digest.update(np.round(held.affine, 4).tobytes())
    for word in (held.slope, held.intercept, source.first.SeriesInstanceUID, description):
        digest.update(str(word).encode())
    common = _common(source, description, sizes, digest.hexdigest())
    common.update(_window(held))
    for index, pixels in enumerate(held.pixels):
        yield _slice(common, held, sizes, index, pixels, digest.hexdigest())


def _description(sizes: np.ndarray, record: Mapping[str, Any]) -> str:
    """Return what was done, in at most 1024 characters."""
    voxels = " x ".join(f"{size:.4g}" for size in sizes)
    names = [str(record[key])[:64] for key in ("Model", "ModelVersion") if key in record]
    model = f", model {' '.join(names)}" if "Model" in record else ""
    return (
        f"Super-resolved to voxels of {voxels} mm by bids_moediff {__version__}{model}. "
        "Detail finer than the acquired voxels is estimated, not measured. Not for diagnosis."
    )


def _common(source: Series, description: str, sizes: np.ndarray, digest: str) -> Dataset:
    """What all slices share, but for the window."""
    first, common = source.first, Dataset()
    for name in IDENTITY:
        _copy(name, first, common)
    for name in PROTOCOL:
        if len({str(header.get(name)) for header in source.headers}) == 1:  # else: of which echo?
            _copy(name, first, common)
    if not common.get("FrameOfReferenceUID"):
        common.FrameOfReferenceUID = _uid(str(first.SeriesInstanceUID), "frame of reference")
    for name in EMPTY:
        if name not in common:
            setattr(common, name, "" if name != "EchoTrainLength" else None)
    # Enhanced objects keep these in functional groups; "research mode" claims nothing.
    common.ScanningSequence = common.get("ScanningSequence") or "RM"
    common.SequenceVariant = common.get("SequenceVariant") or "NONE"
    common.BodyPartExamined = common.get("BodyPartExamined") or "BRAIN"
    common.SOPClassUID = MR_IMAGE_STORAGE
    common.Modality = "MR"
    common.SeriesInstanceUID = _uid(digest, "series")
    common.SeriesNumber = 1000 + source.number % 1000
    name = f"{first.get('SeriesDescription') or first.get('ProtocolName') or 'MR'} SR"
    words = "x".join(f"{size:.3g}" for size in sizes)
    ending = f" {words}mm {NOT_FOR_DIAGNOSIS}"
    common.SeriesDescription = name[: 64 - len(ending)] + ending
    common.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    common.ImageComments = NOT_FOR_DIAGNOSIS
    common.DerivationDescription = description
    common.SourceImageSequence = DicomSequence(_references(source))
    common.Manufacturer = common.ManufacturerModelName = OWN_NAME
    common.SoftwareVersions = __version__
    common.ContributingEquipmentSequence = DicomSequence([_scanner(first)])
    common.BurnedInAnnotation = "NO"
    return common


def _references(source: Series) -> list[Dataset]:
    references = []
    for header in source.headers:
        reference = Dataset()
        reference.ReferencedSOPClassUID = header.SOPClassUID
        reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
        purpose = _code("121322", "Source image for image processing operation")
        reference.PurposeOfReferenceCodeSequence = DicomSequence([purpose])
        references.append(reference)
    return references


def _scanner(first: Dataset) -> Dataset:
    scanner = Dataset()
    scanner.PurposeOfReferenceCodeSequence = DicomSequence(
        [_code("109101", "Acquisition Equipment")]
    )
    scanner.Manufacturer = ""
    for name in EQUIPMENT:
        _copy(name, first, scanner)
    return scanner


def _copy(name: str, source: Dataset, target: Dataset) -> None:
    """Copy an attribute, unless it is a number that cannot be read."""
    try:
        if name not in source:
            return
        element = source[name]
        if element.VR in ("DS", "IS"):
            [float(value) for value in np.atleast_1d(element.value or ())]
        target[name] = element
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        pass


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _window(held: Stored) -> Dataset:
    """One window for all slices, in the image's unit, and the stored form."""
    values = held.pixels[held.pixels > np.percentile(held.pixels, 50)]
    low, high = np.percentile(values if values.size else held.pixels, [1, 99.5])
    low, high = (held.intercept + held.slope * float(value) for value in (low, high))
    window = Dataset()
    window.WindowCenter = _decimal((low + high) / 2)
    width = max(high - low, held.slope)
    window.WindowWidth = _decimal(width)
    if width < 1:
        window.VOILUTFunction = "LINEAR_EXACT"  # the usual function starts at a width of one
    if (held.slope, held.intercept) != (1, 0):
        window.RescaleSlope = _decimal(held.slope)
        window.RescaleIntercept = _decimal(held.intercept)
        window.RescaleType = "US"
    window.SamplesPerPixel, window.PhotometricInterpretation = 1, "MONOCHROME2"
    window.BitsAllocated = window.BitsStored = 16
    window.HighBit = 15
    window.PixelRepresentation = int(held.pixels.dtype == np.int16)
    _, window.Rows, window.Columns = held.pixels.shape
    return window


def _slice(
    common: Dataset, held: Stored, sizes: np.ndarray, index: int, pixels: np.ndarray, digest: str
) -> Dataset:
    data = Dataset()
    data.update(common)
    data.SOPInstanceUID = _uid(digest, f"instance {index}")
    data.InstanceNumber = index + 1
    column, row, _, place = (held.affine[:3, k] for k in range(4))
    data.ImageOrientationPatient = [
        _decimal(value) for value in (*column / sizes[0], *row / sizes[1])
    ]
    place = place + held.affine[:3, 2] * index
    data.ImagePositionPatient = [_decimal(value) for value in place]
    data.PixelSpacing = [_decimal(sizes[1]), _decimal(sizes[0])]
    data.SliceThickness = data.SpacingBetweenSlices = _decimal(sizes[2])
    normal = held.affine[:3, 2] / sizes[2]
    data.SliceLocation = _decimal(float(place @ normal))
    data.PixelData = np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW"
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = UID(MR_IMAGE_STORAGE)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def _decimal(value: float) -> str:
    """At most 16 characters, as a decimal string must be."""
    return format_number_as_ds(float(value) + 0.0)


def _uid(digest: str, what: str) -> str:
    """Unique identifier from the content (a UUID under the root 2.25, DICOM PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{digest} {what}').int}"
