# SPDX-License-Identifier: Apache-2.0
"""A result as a DICOM series: geometry, values, identity, refusals. Needs pydicom and dcm2niix."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bids_moediff import __version__
from bids_moediff.cli.dicom import _image as read_image
from bids_moediff.cli.dicom import _sidecar as read_record
from bids_moediff.cli.dicom import main
from bids_moediff.dicom import source
from bids_moediff.dicom.derived import stored
from bids_moediff.errors import UsageError
from bids_moediff.imaging.grid import output_grid
from golden import check

pydicom = pytest.importorskip("pydicom", reason="needs pydicom: pip install '.[dicom]'")

# The console scripts beside this interpreter first.
PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
STUDY = "1.2.3.4.5"
SHAPE, SPACING = (28, 32, 10), (1.1, 1.0, 3.0)  # columns, rows, slices


OBLIQUE = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix()
# Columns: along a row, along a column, across the slices, in LPS.
PLANES = {
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


def write_source(
    folder: Path, study: str = STUDY, shift: float = 0.0, turn: np.ndarray = OBLIQUE
) -> None:
    """An oblique MR series of thick slices with private tags and a name in Latin-1."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for index in range(SHAPE[2]):
        data = Dataset()
        data.SpecificCharacterSet = "ISO_IR 100"
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        data.SOPInstanceUID = f"{study}.9.{index + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID = study, f"{study}.9"
        data.FrameOfReferenceUID = f"{study}.8"
        data.PatientName, data.PatientID, data.PatientSex = "Müller^Ä", "P1", "F"
        data.PatientBirthDate, data.StudyDate, data.StudyTime = "19700101", "20200102", "101112"
        data.Modality, data.SeriesNumber, data.SeriesDescription = "MR", 7, "t1_mprage"
        data.Manufacturer, data.ScanningSequence, data.SequenceVariant = "ACME", "GR", "SP"
        data.MRAcquisitionType, data.RepetitionTime, data.EchoTime = "2D", 2000, 3.2
        data.InstanceNumber = index + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        data.ImageOrientationPatient = [float(f"{x:.9f}") for x in (*turn[:, 0], *turn[:, 1])]
        place = turn @ [-15, -16, -12 + SPACING[2] * index] + shift
        data.ImagePositionPatient = [float(f"{x:.9f}") for x in place]
        data.PixelSpacing = [SPACING[1], SPACING[0]]
        data.SliceThickness = data.SpacingBetweenSlices = SPACING[2]
        data.Rows, data.Columns, data.SamplesPerPixel = SHAPE[1], SHAPE[0], 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        block = data.private_block(0x0019, "ACME SECRET", create=True)
        block.add_new(0x01, "LO", "secret-identifier")
        pixels = random.integers(0, 3000, (SHAPE[1], SHAPE[0])).astype("<u2")
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW"
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        pydicom.dcmwrite(folder / f"{index}.dcm", data, enforce_file_format=True)


def write_enhanced(folder: Path, count: int = SHAPE[2]) -> None:
    """The first slices of :func:`write_source` as one enhanced object, each of two echoes."""
    from pydicom.dataset import Dataset
    from pydicom.uid import ExplicitVRLittleEndian

    write_source(folder / "single")
    slices = [pydicom.dcmread(folder / "single" / f"{index}.dcm") for index in range(count)]
    data = slices[0]
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = data.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = data.PixelSpacing, data.SliceThickness
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for one in slices * 2:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = frames
    data.NumberOfFrames = len(frames)
    data.PixelData = b"".join(one.PixelData for one in slices * 2)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "EchoTime"):
        del data[name]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    shutil.rmtree(folder / "single")
    pydicom.dcmwrite(folder / "enhanced.dcm", data, enforce_file_format=True)


def change(folder: Path, what: str) -> None:
    """Make a series as archives have them."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    if what == "a slice lacks":
        paths[4].unlink()
    elif what == "files twice":
        for path in paths:
            shutil.copy(path, folder / f"{path.stem}{path.stem}0.dcm")
    elif what == "two echoes":
        for path in paths:
            data = pydicom.dcmread(path)
            data.EchoTime, data.SOPInstanceUID = 7.1, f"{data.SOPInstanceUID}.2"
            data.save_as(folder / f"echo{path.stem}.dcm")
    elif what == "bare headers":
        for path in paths:
            data = pydicom.dcmread(path)
            for name in ("FrameOfReferenceUID", "SeriesNumber", "PatientName", "StudyDate"):
                del data[name]
            data[0x00180081] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(0x00180081), "DS", 4, b"fast", 0, False, True
            )
            data.save_as(path)
    elif what == "junk beside":
        (folder / "notes.dcm").write_bytes(b"no DICOM")
        (folder / "cut.dcm").write_bytes(paths[0].read_bytes()[:900])
        (folder / "empty.dcm").touch()


def valid(folder: Path, source: Path | None = None) -> None:
    """Fail where dciodvfy finds an error in a slice, or dcentvfy one beside the source."""
    program = shutil.which("dciodvfy", path=PROGRAMS)
    if program is None:
        pytest.skip("needs dciodvfy: pip install '.[test]'")
    paths = sorted(folder.iterdir())
    commands = [[program, str(paths[len(paths) // 2])]]
    if source is not None:
        entities = [*paths, *source.iterdir()]
        commands.append([f"{program[:-8]}dcentvfy", *map(str, entities)])
    for command in commands:
        report = subprocess.run(command, capture_output=True, text=True, check=False)
        errors = [line for line in report.stderr.splitlines() if line.startswith("Error")]
        assert errors == []


def to_nifti(folder: Path, out: Path) -> nib.Nifti1Image:
    """The series in ``folder`` by dcm2niix."""
    program = shutil.which("dcm2niix", path=PROGRAMS)
    if program is None:
        pytest.skip("needs dcm2niix: pip install '.[test]'")
    out.mkdir()
    command = [program, "-b", "n", "-z", "n", "-f", "x", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    (path,) = out.glob("*.nii")
    return nib.Nifti1Image.from_filename(path)


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Path:
    """Source series, and an image on the output grid of its conversion."""
    folder = tmp_path_factory.mktemp("dicom")
    write_source(folder / "source")
    scan = to_nifti(folder / "source", folder / "scan")
    shape, affine = output_grid(scan.shape, scan.affine, (0.8, 0.7, 0.9))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij"))
    data = 1500 * grid[0] + 600 * grid[1] ** 2 - 300 * grid[2] - 20.3
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), folder / "sr.nii.gz")
    return folder


def convert(case: Path, out: str, *more: str, image: str = "sr.nii.gz") -> int:
    source = str(case / "source")
    return main([str(case / image), str(case / out), "--source-dicom", source, *more])


@pytest.mark.parametrize("plane", ["source", "axial", "coronal", "sagittal"])
def test_there_and_back(case, plane, tmp_path):
    assert convert(case, f"out-{plane}", "--plane", plane) == 0
    back = nib.as_closest_canonical(to_nifti(case / f"out-{plane}", tmp_path / "back"))
    image = nib.as_closest_canonical(nib.Nifti1Image.from_filename(case / "sr.nii.gz"))
    assert back.shape == image.shape
    corners = np.array([[0, 0, 0], np.array(image.shape) - 1])
    for corner in corners:
        np.testing.assert_allclose(
            nib.affines.apply_affine(back.affine, corner),
            nib.affines.apply_affine(image.affine, corner), atol=0.01,
        )  # fmt: skip
    np.testing.assert_allclose(back.get_fdata(), image.get_fdata(), atol=0.5 + 1e-3)


@pytest.mark.parametrize("tilt", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_a_source_in_another_plane(plane, tilt, tmp_path):
    """The slices lie in the source's plane, and go back to the same place."""
    turn = OBLIQUE @ PLANES[plane] if tilt else PLANES[plane]
    write_source(tmp_path / "source", turn=turn)
    scan = to_nifti(tmp_path / "source", tmp_path / "scan")
    shape, affine = output_grid(scan.shape, scan.affine, (0.8, 0.7, 0.9))
    data = np.random.default_rng(0).uniform(0, 2000, shape).astype(np.float32)
    image = nib.Nifti1Image(data, affine)
    nib.save(image, tmp_path / "sr.nii.gz")
    source = str(tmp_path / "source")
    words = [str(tmp_path / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom", source]
    assert main(words) == 0
    first = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    expected = [*turn[:, 0], *turn[:, 1]]
    np.testing.assert_allclose(first.ImageOrientationPatient, expected, atol=1e-4)
    back = nib.as_closest_canonical(to_nifti(tmp_path / "out", tmp_path / "back"))
    image = nib.as_closest_canonical(image)
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-3)
    np.testing.assert_allclose(back.get_fdata(), image.get_fdata(), atol=0.5 + 1e-3)
    valid(tmp_path / "out", tmp_path / "source")


def test_a_narrow_range_is_scaled(case, tmp_path):
    image = nib.Nifti1Image.from_filename(case / "sr.nii.gz")
    small = nib.Nifti1Image(image.get_fdata().astype(np.float32) / 1e4, image.affine)
    nib.save(small, case / "small.nii.gz")
    assert convert(case, "out-small", image="small.nii.gz") == 0
    back = nib.as_closest_canonical(to_nifti(case / "out-small", tmp_path / "back"))
    step = float(np.ptp(small.get_fdata())) / 65000
    expected = nib.as_closest_canonical(small).get_fdata()
    np.testing.assert_allclose(back.get_fdata(), expected, atol=0.6 * step)


def test_identity_and_words(case):
    assert convert(case, "out-identity") == 0
    slices = [pydicom.dcmread(path) for path in sorted((case / "out-identity").iterdir())]
    first = slices[0]
    assert (str(first.PatientName), first.StudyInstanceUID) == ("Müller^Ä", STUDY)
    assert list(first.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert "NOT FOR DIAGNOSIS" in first.SeriesDescription
    assert "not measured" in first.DerivationDescription
    assert len(first.SourceImageSequence) == SHAPE[2]
    assert first.SeriesInstanceUID != f"{STUDY}.9"
    assert len({item.SOPInstanceUID for item in slices}) == len(slices)
    assert [item.InstanceNumber for item in slices] == [*range(1, len(slices) + 1)]
    shared = ("SeriesInstanceUID", "WindowCenter", "WindowWidth", "FrameOfReferenceUID")
    assert all(len({str(item.get(name)) for item in slices}) == 1 for name in shared)
    for path in (case / "out-identity").iterdir():
        assert b"secret-identifier" not in path.read_bytes()
    assert not any(element.tag.is_private for element in first.iterall())


def shown(value: object) -> str:
    """A value of a header in digits of every processor; of sentences the numbers."""
    if isinstance(value, str | bytes):
        words = str(value).split()
        return (
            str(value)
            if len(words) < 12
            else " ".join(re.findall(r"\d[\d.]*|VERSION", str(value)))
        )
    if isinstance(value, list | tuple | pydicom.multival.MultiValue):
        return "[" + ", ".join(map(shown, value)) + "]"
    if isinstance(value, pydicom.sequence.Sequence):
        return f"{len(value)} items"
    return f"{float(value):.4g}" if isinstance(value, float) else str(value)


def test_every_word_of_a_header(case):
    """One slice of the source's plane and one of another: tags, values, order."""
    assert convert(case, "out-words") == 0
    assert convert(case, "out-axial-words", "--plane", "axial") == 0
    lines = []
    for name in ("out-words", "out-axial-words"):
        paths = sorted((case / name).iterdir())
        lines.append(f"{len(paths)} files, {paths[-1].name} the last")
        for element in pydicom.dcmread(paths[3]):
            if element.keyword.endswith("UID") and not element.keyword.startswith("SOPClass"):
                value = "of the source" if str(element.value).startswith(STUDY) else "of its own"
            elif element.keyword == "PixelData":
                value = f"{len(element.value)} bytes"
            else:
                value = shown(element.value)
                value = value.replace(__version__, "VERSION")
            lines.append(f"{element.tag} {element.VR} {element.keyword}: {value}")
            if element.VR == "SQ":
                lines += [f"  {one.keyword}: {shown(one.value)}" for one in element.value[0]]
    check("dicom.txt", "\n".join(lines) + "\n")


def test_the_same_call_gives_the_same_files(case):
    assert convert(case, "out-once") == 0
    before = {path.name: path.read_bytes() for path in (case / "out-once").iterdir()}
    assert convert(case, "out-once") == 0
    assert before == {path.name: path.read_bytes() for path in (case / "out-once").iterdir()}
    assert convert(case, "out-axial-again", "--plane", "coronal") == 0
    other = pydicom.dcmread(case / "out-axial-again" / "IM0001.dcm")
    first = pydicom.dcmread(case / "out-once" / "IM0001.dcm")
    assert other.SeriesInstanceUID != first.SeriesInstanceUID


@pytest.mark.parametrize(("name", "shift"), [("elsewhere", 2.0), ("elsewhere2", -40.0)])
def test_another_field_of_view_is_refused(case, capsys, name, shift):
    write_source(case / name, "1.2.3.77", shift)
    words = [str(case / "sr.nii.gz"), str(case / "refused"), "--source-dicom", str(case / name)]
    assert main(words) == 2
    assert "field of view" in capsys.readouterr().err
    assert not (case / "refused").exists()


def test_two_studies_that_match_are_refused(case, capsys, tmp_path):
    for index, study in enumerate(("1.2.3.4.5", "1.2.3.4.6")):
        write_source(tmp_path / "both" / str(index), study)
    words = [str(case / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom", str(tmp_path)]
    assert main(words) == 2
    assert "several studies" in capsys.readouterr().err
    assert main([*words, "--series", "7"]) == 2, "both have this number"
    assert "1.2.3.4.6.9" in capsys.readouterr().err
    assert main([*words, "--series", "1.2.3.4.6.9"]) == 0
    first = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    assert first.StudyInstanceUID == "1.2.3.4.6"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two contrasts with one field of view, and a series elsewhere."""
    folder = tmp_path_factory.mktemp("study")
    write_source(folder / "t1")
    for name, number, shift in (("t2_space", 9, 0.0), ("localiser", 2, -40.0)):
        write_source(folder / name, shift=shift)
        for path in (folder / name).iterdir():
            data = pydicom.dcmread(path)
            data.SeriesInstanceUID = f"{STUDY}.{number}.1"
            data.SOPInstanceUID = f"{data.SOPInstanceUID}.{number}"
            data.SeriesNumber, data.SeriesDescription = number, name
            data.save_as(path)
    return folder


def test_of_several_series_one_is_chosen(case, capsys, tmp_path, study):
    words = [str(case / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom", str(study)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "7 t1_mprage" in said
    assert f"9 t2_space ({STUDY}.9.1)" in said
    assert "localiser" not in said
    assert not (tmp_path / "out").exists()
    for chosen in ("9", f"{STUDY}.9.1"):
        assert main([*words, "--series", chosen]) == 0
        first = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
        assert first.SeriesDescription.startswith("t2_space")


@pytest.mark.parametrize(("chosen", "words"), [("2", "field of view"), ("3", "7 t1_mprage")])
def test_a_series_that_does_not_fit_or_is_not_there(case, capsys, tmp_path, study, chosen, words):
    call = [str(case / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom", str(study)]
    assert main([*call, "--series", chosen]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(case, capsys):
    (case / "used").mkdir()
    (case / "used" / "notes.txt").write_text("mine")
    assert convert(case, "used") == 2
    assert [path.name for path in (case / "used").iterdir()] == ["notes.txt"]
    assert "notes.txt" in capsys.readouterr().err


def test_the_result_of_another_study_is_left_alone(case, capsys):
    assert convert(case, "theirs") == 0
    for path in (case / "theirs").iterdir():
        header = pydicom.dcmread(path)
        header.StudyInstanceUID = f"{header.StudyInstanceUID}.1"
        header.save_as(path)
    before = {path.name: path.read_bytes() for path in (case / "theirs").iterdir()}
    assert convert(case, "theirs") == 2
    assert before == {path.name: path.read_bytes() for path in (case / "theirs").iterdir()}


def test_the_source_is_not_overwritten(case, capsys, tmp_path):
    write_source(tmp_path / "scan")
    for path in (tmp_path / "scan").iterdir():
        path.rename(path.with_name(f"IM{int(path.stem) + 1:04d}.dcm"))  # as results are named
    before = {path.name: path.read_bytes() for path in (tmp_path / "scan").iterdir()}
    scan = str(tmp_path / "scan")
    assert main([str(case / "sr.nii.gz"), scan, "--source-dicom", scan]) == 2
    assert "IM0001.dcm" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "scan").iterdir()}


def test_a_file_is_left_and_a_linked_folder_used(case, tmp_path):
    source = str(case / "source")
    (tmp_path / "file").write_text("mine")
    words = [str(case / "sr.nii.gz"), str(tmp_path / "file"), "--source-dicom", source]
    assert main(words) == 2
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert main([words[0], str(tmp_path / "link"), *words[2:]]) == 0
    assert (tmp_path / "link").is_symlink()
    assert any((tmp_path / "disk").iterdir())


@pytest.mark.parametrize("image", ["sr", "small", "flat"])
@pytest.mark.parametrize("plane", ["source", "sagittal"])
def test_the_series_is_valid(case, image, plane):
    scan = nib.Nifti1Image.from_filename(case / "sr.nii.gz")
    factor = {"sr": 1, "small": 1e-4, "flat": 0}[image]
    data = scan.get_fdata().astype(np.float32) * factor
    nib.save(nib.Nifti1Image(data, scan.affine), case / f"{image}-valid.nii.gz")
    out = f"out-{image}-{plane}"
    assert convert(case, out, "--plane", plane, image=f"{image}-valid.nii.gz") == 0
    valid(case / out, case / "source")


@pytest.mark.parametrize(
    "what", ["a slice lacks", "files twice", "two echoes", "bare headers", "junk beside"]
)
def test_series_as_archives_have_them(case, what, tmp_path):
    write_source(tmp_path / "source")
    change(tmp_path / "source", what)
    words = [str(case / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom", str(tmp_path)]
    assert main(words) == 0
    first = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    assert first.StudyInstanceUID == STUDY
    references = {"a slice lacks": 9, "two echoes": 20}.get(what, 10)
    assert len(first.SourceImageSequence) == references
    assert (first.EchoTime is None) == (what in ("two echoes", "bare headers"))
    valid(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert main(words) == 0  # the result, now below the folder of the source, is not taken for one
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_an_enhanced_series(case, tmp_path):
    write_enhanced(tmp_path / "source")
    words = [str(case / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom"]
    assert main([*words, str(tmp_path / "source")]) == 0
    first = pydicom.dcmread(tmp_path / "out" / "IM0001.dcm")
    assert first.StudyInstanceUID == STUDY
    assert len(first.SourceImageSequence) == 1
    valid(tmp_path / "out", tmp_path / "source")


def test_an_enhanced_series_of_two_slices(case, tmp_path):
    write_enhanced(tmp_path / "source", 2)
    scan = nib.Nifti1Image.from_filename(case / "sr.nii.gz")
    first = nib.as_closest_canonical(to_nifti(case / "source", tmp_path / "scan")).slicer[:, :, :2]
    shape, affine = output_grid(first.shape, first.affine, (0.8, 0.7, 1.0))
    data = np.resize(np.asarray(scan.dataobj), shape)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "sr.nii.gz")
    words = [str(tmp_path / "sr.nii.gz"), str(tmp_path / "out"), "--source-dicom"]
    assert main([*words, str(tmp_path / "source")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert main([str(case / "sr.nii.gz"), *words[1:], str(tmp_path / "source")]) == 2
    valid(tmp_path / "out", tmp_path / "source")


@pytest.mark.parametrize("what", ["nan", "cut", "colours", "movie"])
def test_what_is_no_image_is_refused(case, capsys, what, tmp_path):
    scan = nib.Nifti1Image.from_filename(case / "sr.nii.gz")
    data = scan.get_fdata().astype(np.float32)
    if what == "nan":
        data[0, 0, 0] = np.nan
    elif what == "colours":
        data = np.zeros(data.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    elif what == "movie":
        data = np.stack([data, data], axis=-1)
    path = case / f"{what}.nii.gz"
    nib.save(nib.Nifti1Image(data, scan.affine), path)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    assert convert(case, f"out-{what}", image=path.name) == 2
    assert path.name in capsys.readouterr().err
    assert not (case / f"out-{what}").exists()


def test_a_turned_image_in_the_same_limits_is_another_field_of_view() -> None:
    """An image turned by 45 degrees in plane, whose corners touch the series' four sides."""
    header = pydicom.Dataset()
    header.SeriesInstanceUID = "1.2.3"
    series = source.Series((header,), (20, 20, 5), np.diag([1.0, 1.0, 2.0, 1.0]))
    size = 20 / np.sqrt(2) / 20
    turned = np.eye(4)
    turned[:2, :2] = size * np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    turned[2, 2] = 2.0
    turned[:3, 3] = series.affine[:3, :3] @ [9.5, 9.5, 2] - turned[:3, :3] @ [9.5, 9.5, 2]
    assert source.match_series([series], (20, 20, 5), series.affine) is series
    with pytest.raises(UsageError, match="field of view"):
        source.match_series([series], (20, 20, 5), turned)


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [
        (0, 1000, True), (0, 999.5, False), (-32768, 32767, True), (-32768, 32768, False),
        (-32769, 32767, False), (-500.4, 500, True),
    ],
)  # fmt: skip
def test_whole_numbers_are_kept_where_they_fit(low, high, kept):
    """Otherwise 65000 steps from the lowest to the highest value; columns, rows, slices."""
    data = np.full((2, 3, 4), 7, dtype=np.float32)
    data[1, 2, 3], data[0, 1, 2] = high, low
    held = stored(nib.Nifti1Image(data, np.diag([2.0, 3.0, 4.0, 1.0])), "axial", None)
    assert held.pixels.shape == (4, 3, 2)
    slope = 1.0 if kept else float(f"{(high - low) / 65000:.6e}")
    assert (held.slope, held.intercept) == (slope, 0.0 if kept else low)
    assert held.pixels.dtype == (np.int16 if kept else np.uint16)
    # Radiology's axial plane: the patient's right at the left, the front at the top.
    turned = data.transpose(2, 1, 0)[:, ::-1, ::-1]
    values = held.slope * held.pixels.astype(float) + held.intercept
    np.testing.assert_allclose(values, turned, atol=0.51 * slope)
    assert held.pixels.max() == (round(high) if kept else pytest.approx(65000, abs=1))
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:2, 3] = -2, -6
    np.testing.assert_allclose(held.affine, affine)


def series(number: int, shape=(20, 24, 5), zooms=(1.0, 1.5, 2.0)) -> source.Series:
    header = pydicom.Dataset()
    header.SeriesInstanceUID, header.SeriesNumber = f"1.2.{number}", number
    return source.Series((header,), shape, np.diag([*zooms, 1.0]))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize(
    ("beyond", "same"), [(0.0, True), (1.5, True), (1.62, False), (-0.45, True), (-0.55, False)]
)
def test_how_far_beyond_the_series_an_image_may_reach(axis, low, beyond, same):
    """By a voxel and half a millimetre; and half a millimetre less, on both sides."""
    wanted = series(7)
    sizes = np.array([20.0, 36.0, 10.0])
    shape = np.array([20, 36, 10])
    longer = sizes.copy()
    longer[axis] += beyond
    affine = np.diag([*longer / shape, 1.0])
    affine[:3, 3] = -np.array([0.5, 0.75, 1.0]) + np.diag(affine)[:3] / 2
    affine[axis, 3] -= beyond if low else 0.0
    if axis == 2 and beyond > 1.5:
        affine[2, 3] -= 0.1 if low else -0.1  # its voxels are larger by a tenth
    if same:
        assert (
            source.match_series([series(8, zooms=(3.0, 3.0, 3.0)), wanted], shape, affine)
            is wanted
        )
    else:
        with pytest.raises(UsageError, match="field of view"):
            source.match_series([wanted], shape, affine)


def test_eight_series_are_named_in_the_order_of_their_numbers():
    found = [series(number) for number in (10, 3, 1, 9, 2, 5, 4, 8)]
    names = "; ".join(f"{n} (1.2.{n})" for n in (1, 2, 3, 4, 5, 8, 9, 10))
    for more, words in (([], f"Series there: {names}."), ([series(6)], "; 9 (1.2.9); 1 more.")):
        with pytest.raises(UsageError) as error:
            source.match_series(found + more, (20, 24, 5), np.eye(4), "99")
        assert str(error.value).endswith(words)
    odd = pydicom.Dataset()
    assert (source.Series((odd,), (1, 1, 1), np.eye(4)).number, source._list([series(0)])) == (
        0,
        "? (1.2.0)",
    )


def slices(*depths: float, **changes: object) -> list[pydicom.Dataset]:
    """Headers of slices at these places of an oblique normal."""
    turn = OBLIQUE
    found = []
    for depth in depths:
        header = pydicom.Dataset()
        header.Rows, header.Columns, header.PixelSpacing = 12, 10, [1.5, 2.0]
        header.ImageOrientationPatient = [*turn[:, 0], *turn[:, 1]]
        header.ImagePositionPatient = [*(turn @ [3.0, 4.0, depth])]
        for name, value in changes.items():
            setattr(header, name, value)
        found.append(header)
    return found


def test_slices_of_a_regular_grid():
    turn = OBLIQUE
    headers = slices(6.0, 0.0, 3.0, 12.0, 3.001)  # one lacks, one comes twice
    found = source._series(headers)
    assert found is not None and found.shape == (10, 12, 5)
    assert [header.ImagePositionPatient for header in found.headers] == [
        headers[index].ImagePositionPatient for index in (1, 2, 4, 0, 3)
    ]
    affine = np.eye(4)
    affine[:3, :3] = turn * [2.0, 1.5, 3.0]
    affine[:3, 3] = turn @ [3.0, 4.0, 0.0]
    np.testing.assert_allclose(found.affine, source.LPS_TO_RAS @ affine, atol=1e-5)
    assert source._series(slices(0.0, 3.0, 6.1)) is not None
    for wrong in (
        slices(0.0), slices(0.0, 0.0), slices(0.0, 3.0, 6.0, 10.0),
        slices(0.0, 3.0) + slices(6.0, Rows=13), slices(0.0, 3.0, PixelSpacing=[0.0, 1.0]),
        slices(0.0, 3.0) + slices(6.0, ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    ):  # fmt: skip
        assert source._series(wrong) is None


def test_what_is_read_of_an_image_and_its_record(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4, 1)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "x.nii.gz")
    found = read_image(tmp_path / "x.nii.gz")
    assert found.shape == (2, 3, 4) and found.get_data_dtype() == np.float32
    np.testing.assert_array_equal(found.get_fdata(), data[..., 0])
    np.testing.assert_array_equal(found.affine, affine)
    record = tmp_path / "x.json"
    for content, expected in (('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {})):
        record.write_text(content)
        assert read_record(tmp_path / "x.nii.gz") == expected == read_record(tmp_path / "x.nii")
    record.unlink()
    assert read_record(tmp_path / "x.nii") == {}


@pytest.mark.parametrize(
    ("number", "whole", "word"), [(7, 7, "7"), (None, 0, ""), ("", 0, ""), ("x", 0, "x")]
)
def test_numbers_of_series_as_archives_have_them(number, whole, word):
    header = SimpleNamespace(get={"SeriesNumber": number, "SeriesDescription": "t1"}.get)
    found = source.Series((header,), (1, 1, 1), np.eye(4))
    assert (found.number, found.number_word, found.name) == (whole, word, f"{word or '?'} t1")
