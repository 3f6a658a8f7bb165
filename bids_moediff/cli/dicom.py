# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-dicom IMAGE DICOM_OUT --source-dicom FOLDER``: a result as a DICOM series."""

import argparse
import shutil
import sys
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_moediff import __version__
from bids_moediff.cli.common import Parser, run_command
from bids_moediff.errors import UsageError
from bids_moediff.runtime.given_files import read_json

PROGRAM = "bids_moediff-dicom"


def build_parser() -> argparse.ArgumentParser:
    """Parser of the command; imports nothing heavy."""
    parser = Parser(
        prog=PROGRAM,
        description="Write a super-resolved image as a derived MR series into the study of its "
        "scan. Not for diagnosis.",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="super-resolved NIfTI image")
    parser.add_argument("output", type=Path, metavar="DICOM_OUT", help="folder to write")
    parser.add_argument(
        "--source-dicom", type=Path, required=True, metavar="FOLDER",
        help="series that the image was made from; found by its field of view among others",
    )  # fmt: skip
    parser.add_argument(
        "--series", metavar="NUMBER|UID",
        help="which one, where several have the image's field of view (SeriesNumber or "
        "SeriesInstanceUID)",
    )  # fmt: skip
    parser.add_argument(
        "--plane", choices=("source", "axial", "coronal", "sagittal"), default="source",
        help="slices to cut the image into (default: those of the source)",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; gives the exit code."""
    return run_command(PROGRAM, _convert, argv)


def _convert(words: list[str]) -> int:
    options = build_parser().parse_args(words)
    try:
        from bids_moediff.dicom.derived import datasets
        from bids_moediff.dicom.source import match_series, read_series
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{PROGRAM} needs {error.name}: install it with pip install 'bids_moediff[dicom]'."
        ) from error
    image = _image(options.image)
    found = read_series(options.source_dicom)
    series = match_series(found, image.shape, image.affine, options.series)
    slices = list(datasets(image, series, _sidecar(options.image), options.plane))
    written = _write(slices, options.output)
    print(f"{written} slices in {options.output}, beside series {series.name}. Not for diagnosis.")
    return 0


def _image(path: Path) -> Any:
    """The image as it is; the grid is not touched."""
    import nibabel as nib
    import numpy as np
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nib.load(path)
        data = np.asarray(image.dataobj)  # type: ignore[attr-defined]
        affine = np.asarray(image.affine)  # type: ignore[attr-defined]
    except (
        OSError, EOFError, ValueError, AttributeError, zlib.error, ImageFileError, HeaderDataError,
    ) as error:  # fmt: skip
        raise UsageError(f"{path}: not a readable NIfTI image.") from error
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or data.dtype.kind not in "iuf":
        raise UsageError(f"{path.name} is not a 3-D image of brightness.")
    if not np.isfinite(data).all():
        raise UsageError(f"{path.name} has voxels that are not finite (NaN); DICOM has no such.")
    return nib.Nifti1Image(data.astype(np.float32), affine)


def _sidecar(path: Path) -> dict[str, Any]:
    """The record beside the image; empty where there is none."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    try:
        record = read_json(path.with_name(f"{stem}.json"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(slices: list[Any], folder: Path) -> int:
    """Write the slices, all or none; only an earlier result of the same study is replaced."""
    import pydicom

    folder = folder.resolve()
    names = [f"IM{index:04d}.dcm" for index in range(1, len(slices) + 1)]
    if others := _others(folder, names, str(slices[0].StudyInstanceUID)):
        raise UsageError(f"{folder} has other files ({others[0]}); name a new folder.")
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir(parents=True)
        for name, data in zip(names, slices, strict=True):
            pydicom.dcmwrite(temporary / name, data, enforce_file_format=True)
        if folder.is_dir():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(slices)


def _others(folder: Path, names: Sequence[str], study: str) -> list[str]:
    """Files in ``folder`` that no earlier call has written: a scan may bear the same names."""
    import pydicom

    from bids_moediff.dicom.source import OWN_NAME, UNREADABLE

    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name a new one.")
    others = []
    for path in sorted(folder.iterdir()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            equipment, whose = header.get("Manufacturer"), header.get("StudyInstanceUID")
        except UNREADABLE:
            equipment = whose = None
        if path.name not in names or equipment != OWN_NAME or str(whose) != study:
            others.append(path.name)
    return others


if __name__ == "__main__":
    sys.exit(main())
