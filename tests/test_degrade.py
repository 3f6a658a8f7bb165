# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-degrade`` on generated data sets and images."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import signal

from bids_moediff.cli.degrade import _recipe_values, build_parser, main
from bids_moediff.errors import UsageError
from bids_moediff.evaluation.degradation import Coarsening, degrade
from bids_moediff.imaging.acquisition import Acquisition, Axis
from conftest import run_here, run_script
from generated import dataset, head

PROGRAM = "bids_moediff-degrade"
SHAPE, ZOOMS = (36, 40, 32), (4.0, 4.5, 5.0)


def corner(image: nib.Nifti1Image) -> np.ndarray:
    return image.affine[:3, :3] @ np.full(3, -0.5) + image.affine[:3, 3]


def oblique(image: nib.Nifti1Image) -> nib.Nifti1Image:
    rotation = nib.eulerangles.euler2mat(0.2, -0.3, 0.1)
    affine = nib.affines.from_matvec(rotation @ np.diag(ZOOMS), [11.0, -7.0, 3.0])
    return nib.Nifti1Image(np.asarray(image.dataobj), affine)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = {
        "sub-01_ses-a_run-1_T1w": head(SHAPE, ZOOMS),
        "sub-01_ses-a_T2w": oblique(head(SHAPE, ZOOMS, 1)),
        "sub-02_T1w": b"broken",
        "sub-03_T1w": head(SHAPE, ZOOMS, 2),
    }
    root = dataset(tmp_path_factory.mktemp("source") / "raw", images)
    (root / "T1w.json").write_text(json.dumps({"EchoTime": 0.003, "BaseResolution": 256}))
    (root / "participants.tsv").write_text(
        "participant_id\tage\nsub-01\t30\nsub-02\t31\nsub-03\t32\n"
    )
    return root


@pytest.fixture(scope="module")
def coarse(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of 10 mm with a gap of 1 mm, noise, three participants of whom one is broken."""
    out = tmp_path_factory.mktemp("coarse") / "out"
    arguments = ["--resolution", 4, 4.5, 10, "--profile", "kspace", "kspace", "box"]
    arguments += ["--gap", 1, "--add-noise", 25, "--random-seed", 4]
    run = run_script(PROGRAM, source, out, *arguments, cwd=out.parent)
    assert run.returncode == 1
    assert "sub-02/anat/sub-02_T1w.nii.gz" in run.stderr
    assert "not a readable NIfTI" in run.stderr
    assert "Traceback" not in run.stderr
    return out


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_the_others_are_written_and_nothing_of_the_broken_one(coarse: Path) -> None:
    found = files(coarse)
    assert "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.nii.gz" in found
    assert "sub-03/anat/sub-03_T1w.json" in found
    assert not [name for name in found if "sub-02" in name or ".part" in name]
    table = (coarse / "participants.tsv").read_text()
    assert table == "participant_id\tage\nsub-01\t30\nsub-03\t32\n"


def test_grid_keeps_the_corner_of_an_oblique_scan(source: Path, coarse: Path) -> None:
    name = "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz"
    before, after = nib.load(source / name), nib.load(coarse / name)
    assert after.shape == (36, 40, 16)
    assert np.abs(corner(before) - corner(after)).max() < 1e-4
    assert nib.affines.voxel_sizes(after.affine) == pytest.approx((4, 4.5, 10), abs=1e-5)


def test_sidecar_describes_the_coarse_scan(coarse: Path) -> None:
    sidecar = json.loads((coarse / "sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w.json").read_text())
    assert sidecar["EchoTime"] == 0.003  # inherited from the root
    assert "BaseResolution" not in sidecar
    assert sidecar["MRAcquisitionType"] == "2D"
    assert sidecar["SliceThickness"] == 9
    assert sidecar["SpacingBetweenSlices"] == 10
    read = Acquisition.from_metadata(sidecar, (4, 4.5, 10))
    assert read.axes == (Axis("kspace"), Axis("kspace"), Axis("box", 0.9))
    description = json.loads((coarse / "dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"
    assert description["GeneratedBy"][0]["Name"] == PROGRAM


def test_valid_bids(coarse: Path) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.is_file():
        pytest.skip("needs bids-validator-deno: pip install -c constraints.txt -e .[test]")
    run = subprocess.run(
        [validator, coarse, "--format", "json"], capture_output=True, text=True, check=False
    )
    issues = json.loads(run.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert not errors


def test_same_seed_same_bytes_whoever_else_is_there(
    source: Path, coarse: Path, tmp_path: Path
) -> None:
    arguments = ["--resolution", 4, 4.5, 10, "--profile", "kspace", "kspace", "box"]
    arguments += ["--gap", 1, "--noise", 25, "--participant-label", "sub-03"]

    def digest(folder: Path) -> str:
        content = (folder / "sub-03" / "anat" / "sub-03_T1w.nii.gz").read_bytes()
        return hashlib.sha256(content).hexdigest()

    for seed in (4, 5):
        out = tmp_path / str(seed)
        run = run_here(PROGRAM, source, out, *arguments, "--random-seed", seed, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    assert digest(tmp_path / "4") == digest(coarse)
    assert digest(tmp_path / "5") != digest(coarse)
    assert (tmp_path / "4" / "participants.tsv").read_text().count("sub-") == 1


def test_each_image_has_noise_of_its_own(tmp_path: Path) -> None:
    """The same noise in every image would be learned, and would not average out."""
    same = head((16, 16, 16), (4.0, 4.0, 4.0))
    raw = dataset(tmp_path / "raw", {"sub-01_T1w": same, "sub-02_T1w": same})
    assert main([str(raw), str(tmp_path / "out"), "--factor", "2", "--add-noise", "10"]) == 0
    first, second = (
        np.asarray(nib.load(tmp_path / f"out/sub-{n}/anat/sub-{n}_T1w.nii.gz").dataobj)
        for n in ("01", "02")
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.999


def test_kspace_equals_scipy_resampling(tmp_path: Path) -> None:
    """Halving by truncation of the spectrum; scipy keeps the first voxel, we keep its corner."""
    axis = np.arange(32)
    wave = 100 + 10 * np.cos(2 * np.pi * 3 * (axis + 0.5) / 32)
    data = np.broadcast_to(wave[:, None, None], (32, 20, 20)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "in.nii.gz")
    run = run_here(PROGRAM, "in.nii.gz", "out.nii", "--factor", 2, 1, 1, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = nib.load(tmp_path / "out.nii").get_fdata()[:, 5, 5]
    assert found == pytest.approx(100 + 10 * np.cos(2 * np.pi * 3 * (axis[:16] + 0.5) / 16))
    assert found.mean() == pytest.approx(signal.resample(wave, 16).mean())
    assert json.loads((tmp_path / "out.json").read_text())["MRAcquisitionType"] == "3D"


def test_box_with_a_gap_averages_the_slice_only() -> None:
    data = np.random.default_rng(0).uniform(1, 2, (8, 8, 24)).astype(np.float32)
    recipe = Coarsening(factors=(1, 1, 4), profiles=("box",) * 3, gap=2.0)
    found, _ = degrade(nib.Nifti1Image(data, np.eye(4)), recipe)
    middle = data.reshape(8, 8, 6, 4)[..., 1:3].mean(axis=-1)
    assert np.asarray(found.dataobj) == pytest.approx(middle, rel=1e-5)


def test_a_field_of_view_that_does_not_divide_is_covered() -> None:
    data = np.full((10, 9, 29), 7.0, np.float32)
    found, _ = degrade(nib.Nifti1Image(data, np.eye(4)), Coarsening(resolution=(1, 1, 2.5)))
    assert found.shape == (10, 9, 12)
    assert np.asarray(found.dataobj) == pytest.approx(7.0, rel=1e-5)


def test_noise_is_rician_and_as_strong_as_asked_for() -> None:
    grid = np.meshgrid(*[np.linspace(-1, 1, size) for size in (60, 70, 56)], indexing="ij")
    ball = sum(axis**2 for axis in grid) < 0.7
    data = np.where(ball, 400, 0).astype(np.float32)
    recipe = Coarsening(factors=(1, 1, 1), signal_to_noise=20)
    noisy, record = degrade(nib.Nifti1Image(data, np.diag([2.5, 2.5, 3, 1])), recipe)
    sigma = record["NoiseStandardDeviation"]
    assert sigma == pytest.approx(400 / 20, rel=0.01)
    found = np.asarray(noisy.dataobj, np.float64)
    # Second moment of a Rician variable: signal squared plus twice the variance.
    assert (found[ball] ** 2).mean() == pytest.approx(400**2 + 2 * sigma**2, rel=2e-3)
    assert found[ball].std() == pytest.approx(sigma, rel=0.02)
    assert (found[~ball] ** 2).mean() == pytest.approx(2 * sigma**2, rel=0.02)


def test_a_coarse_slice_axis_that_stays_keeps_its_sidecar(tmp_path: Path) -> None:
    nib.save(head(SHAPE, (3.0, 3.0, 6.0)), tmp_path / "in.nii.gz")
    metadata = {"MRAcquisitionType": "2D", "SliceThickness": 5.0}
    (tmp_path / "in.json").write_text(json.dumps(metadata))
    run = run_here(PROGRAM, "in.nii.gz", "out.nii.gz", "--factor", 1.5, 1.5, 1, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["SliceThickness"] == 5
    assert sidecar["AcquisitionVoxelSize"] == [4.5, 4.5, 6.0]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["raw", "raw/out", "--factor", "2"], 2, "lies inside the input"),
        (["raw", "full", "--factor", "2"], 2, "has other data"),
        (["raw", "out", "--factor", "2", "--participant-label", "1"], 2, "did you mean 01?"),
        (["raw", "out", "--factor", "2", "3"], 2, "one value or three"),
        (["raw", "out", "--factor", "0.5"], 2, "between 1 and 20"),
        (["raw", "out", "--factor", "2", "--profile", "sinc"], 2, "choose kspace"),
        (["raw", "out", "--factor", "2", "--modalities", "FLAIR"], 66, "--modalities FLAIR"),
        (["none", "out", "--factor", "2"], 2, "does not exist"),
        (["none.nii.gz", "out.nii.gz", "--factor", "2"], 1, "none.nii.gz does not exist"),
        (["raw", "out", "--resolution", "2", "--participant-label", "03"], 1, "made coarser"),
        (["raw", "out", "--factor", "2", "--gap", "1", "--participant-label", "03"], 1, "box"),
    ],
)
def test_mistakes(
    source: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    (tmp_path / "raw").symlink_to(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    run = run_here(PROGRAM, *arguments, cwd=tmp_path)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.nii.gz.*part"))


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("--factor 1", True), ("--factor 0.99", False), ("--factor 20", True),
        ("--factor 20.1", False), ("--resolution 0.1", True), ("--resolution 0.09", False),
        ("--resolution 50", True), ("--resolution 50.1", False), ("--factor 2 --gap 0", True),
        ("--factor 2 --gap -0.1", False), ("--factor 2 --thickness 0", False),
        ("--factor 2 --thickness 1 --gap 0", False), ("--factor 2 --add-noise 0", False),
        ("--factor 2 --random-seed -1", False),
    ],
)  # fmt: skip
def test_bounds_of_the_options(words: str, good: bool) -> None:
    options = build_parser().parse_args(["in", "out", *words.split()])
    if good:
        _recipe_values(options)
        return
    with pytest.raises(UsageError):
        _recipe_values(options)


@pytest.mark.parametrize("output", ["x.nii.gz", "link.nii.gz", "x.nii"])
def test_neither_the_image_nor_its_sidecar_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    nib.save(head((12, 12, 12)), tmp_path / "x.nii.gz")
    (tmp_path / "x.json").write_text("null")
    (tmp_path / "link.nii.gz").symlink_to("x.nii.gz")
    before = (tmp_path / "x.nii.gz").read_bytes()
    words = [str(tmp_path / "x.nii.gz"), str(tmp_path / output), "--factor", "2"]
    assert main(words) == 2
    assert "the input" in capsys.readouterr().err
    assert (tmp_path / "x.nii.gz").read_bytes() == before
    assert (tmp_path / "x.json").read_text() == "null"
    assert main([words[0], str(tmp_path / "coarse.nii.gz"), *words[2:]]) == 0
    assert "x.json is left out" in capsys.readouterr().err


def test_only_the_session_asked_for(tmp_path: Path) -> None:
    one = head((12, 12, 12))
    root = dataset(tmp_path / "raw", {f"sub-01_ses-{name}_T1w": one for name in "ab"})
    words = [str(root), str(tmp_path / "out"), "--factor", "2", "--session-label", "b"]
    assert main(words) == 0
    found = [path.name for path in (tmp_path / "out").rglob("*.nii.gz")]
    assert found == ["sub-01_ses-b_T1w.nii.gz"]


@pytest.mark.parametrize("name", ["--omp-nthreads", "--threads"])
def test_threads_are_a_number(name: str) -> None:
    threads = build_parser().parse_args(["in", "out", "--factor", "2", name, "2"]).omp_nthreads
    assert (threads, type(threads)) == (2, int)


def test_the_record_of_each_axis_has_the_width_in_mm():
    image = nib.Nifti1Image(np.ones((16, 9, 40), np.float32), np.diag([1.0, 1.0, 1.5, 1.0]))
    recipe = Coarsening((2.0, 1.0, 6.0), profiles=("kspace", "box", "box"), thickness=4.5)
    _, record = degrade(image, recipe)
    assert record["Profiles"] == [
        {"Profile": "kspace"}, {"Profile": "none"}, {"Profile": "box", "Width": 4.5},
    ]  # fmt: skip


def test_a_folder_that_cannot_be_listed_is_told_by_the_code(tmp_path, monkeypatch, capsys):
    images = {"sub-01_ses-a_T1w": head(SHAPE, ZOOMS), "sub-01_ses-b_T1w": head(SHAPE, ZOOMS)}
    dataset(tmp_path / "raw", images)
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("ses-b/anat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # a superuser may read every folder
    words = [str(tmp_path / "raw"), str(tmp_path / "out"), "--factor", "1", "1", "2"]
    assert main(words) == 1
    assert "sub-01/ses-b/anat cannot be read: Permission denied" in capsys.readouterr().err
    assert (tmp_path / "out" / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz").is_file()
