# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate`` on generated results and references."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import parse_name
from bids_moediff.errors import ImageError
from bids_moediff.evaluation.against_truth import ResultFile, align, evaluate, match, onto_grid
from bids_moediff.imaging.masks import head_mask_array
from conftest import run_here, run_script
from generated import dataset, head

PROGRAM = "bids_moediff-evaluate"
SHAPE, ZOOMS = (36, 40, 32), (4.5, 4.5, 5.0)


def blurred(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Pairs of slices averaged: what a coarse scan measured, and its repetition as a result."""
    data = np.asarray(image.dataobj, np.float32).reshape(*SHAPE[:2], SHAPE[2] // 2, 2).mean(-1)
    affine = image.affine @ np.diag([1, 1, 2, 1])
    affine[:3, 3] += image.affine[:3, 2] / 2
    return nib.Nifti1Image(data, affine)


def repeated(image: nib.Nifti1Image) -> np.ndarray:
    return np.repeat(np.asarray(blurred(image).dataobj), 2, axis=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth (session hr), coarse input (session lr), and results without a network."""
    base = tmp_path_factory.mktemp("derivatives")
    heads = [head(SHAPE, ZOOMS, seed) for seed in range(2)]
    dataset(base / "truth", {f"sub-0{i}_ses-hr_T1w": image for i, image in enumerate(heads)})
    dataset(base / "coarse", {f"sub-0{i}_ses-lr_T1w": blurred(h) for i, h in enumerate(heads)})
    for number, image in enumerate(heads):
        folder = base / "out" / f"sub-0{number}" / "ses-lr" / "anat"
        folder.mkdir(parents=True)
        stem = folder / f"sub-0{number}_ses-lr_res-4p5x4p5x5mm_desc-sr_T1w"
        data, affine = repeated(image), image.affine.copy()
        if number == 1:  # half a voxel off: needs a spline
            affine[0, 3] += ZOOMS[0] / 2
        nib.save(nib.Nifti1Image(data, affine), f"{stem}.nii.gz")
        sidecar = {"InputVoxelSize": [4.5, 4.5, 10.0], "ConsistencyResidual": 0.001}
        Path(f"{stem}.json").write_text(json.dumps(sidecar))
    alone = base / "out" / "sub-02" / "ses-lr" / "anat"
    alone.mkdir(parents=True)
    nib.save(heads[0], alone / "sub-02_ses-lr_res-1mm_desc-sr_T1w.nii.gz")
    return base


@pytest.fixture(scope="module")
def table(folders: Path) -> list[dict[str, str]]:
    arguments = ["derivatives", "out", "eval", "--truth", "truth", "--truth-session", "ses-hr"]
    run = run_script(PROGRAM, *arguments, "--input", "coarse", cwd=folders)
    assert run.returncode == 1  # sub-02 has no reference
    assert "sub-02" in run.stderr
    assert "there is no reference T1w of sub-02 ses-hr" in run.stderr
    assert "Traceback" not in run.stderr
    with (folders / "eval" / "evaluation.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_figures_on_the_same_grid(table: list[dict[str, str]]) -> None:
    truth = np.asarray(head(SHAPE, ZOOMS, 0).dataobj, np.float32)
    mask = head_mask_array(truth, ZOOMS)
    error = (repeated(head(SHAPE, ZOOMS, 0)) - truth)[mask]
    peak = np.percentile(truth[mask], 99.5)
    row = table[0]
    assert row["grid"] == "same"
    assert row["reference"] == "sub-00/ses-hr/anat/sub-00_ses-hr_T1w.nii.gz"
    assert float(row["psnr"]) == pytest.approx(
        10 * np.log10(peak**2 / (error**2).mean()), abs=0.01
    )
    assert float(row["residual"]) == 0.001
    assert row["band_correlation"] != "n/a"
    gain = float(row["psnr"]) - float(row["psnr_cubic"])
    assert float(row["over_cubic"]) == pytest.approx(gain, abs=1e-3)
    assert float(row["psnr_back_projection"]) > float(row["psnr"])


def test_another_grid_is_said_to_be_splined(table: list[dict[str, str]]) -> None:
    assert [row["grid"] for row in table] == ["same", "spline"]
    assert float(table[1]["psnr"]) < float(table[0]["psnr"])  # half a voxel off


def test_page_stands_alone(folders: Path, table: list[dict[str, str]]) -> None:
    page = (folders / "eval" / "evaluation.html").read_text()
    assert page.count("data:image/png;base64,") == len(table)
    assert f"{float(table[0]['psnr']):.4g}" in page
    assert "there is no reference" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_crop_is_no_resampling() -> None:
    """A result with other bounds on the same lattice is compared voxel by voxel."""
    truth = head((48, 52, 44), (3.6, 3.6, 3.8))
    data = np.asarray(truth.dataobj, np.float32)
    affine = truth.affine.copy()
    affine[:3, 3] += truth.affine[:3, :3] @ [3, 0, -2]
    other = np.zeros((45, 52, 48), np.float32)
    other[:, :, 2:46] = data[3:]
    pair = align(nib.Nifti1Image(other, affine), truth)
    assert pair.grid == "same"
    assert np.array_equal(pair.image[3:], data[3:])
    assert not pair.mask[:3].any()


def image_of(name: str) -> AnatomicalImage:
    entities, suffix, _ = parse_name(f"{name}.nii.gz")
    return AnatomicalImage(Path(f"{name}.nii.gz"), f"{name}.nii.gz", entities, suffix, {})


def test_matching() -> None:
    entities = {"sub": "1", "ses": "a", "acq": "fast", "run": "1"}
    result = ResultFile(Path("x"), "x", entities, "T1w")
    exact = image_of("sub-1_ses-a_acq-fast_run-1_T1w")
    other = image_of("sub-1_ses-a_acq-slow_T1w")
    later = image_of("sub-1_ses-b_acq-slow_T1w")
    contrast = image_of("sub-1_ses-a_T2w")
    assert match(result, [other, exact, later, contrast]) is exact
    assert match(result, [other, later, contrast]) is other
    assert match(result, [other, later, exact], "b") is later
    with pytest.raises(ImageError, match="several references T1w of sub-1 ses-a"):
        match(result, [other, image_of("sub-1_ses-a_acq-best_T1w")])
    with pytest.raises(ImageError, match="no reference"):
        match(result, [contrast, later])


def test_the_band_to_recover_is_that_of_the_acquired_voxels(folders: Path, tmp_path: Path) -> None:
    """Slices of 10 mm that a file stores as 5 mm leave the same band to recover."""
    name = "sub-00_ses-hr_T1w.nii.gz"
    truth = replace(
        image_of("sub-00_ses-hr_T1w"), path=folders / "truth/sub-00/ses-hr/anat" / name
    )
    shutil.copy(
        folders / "out/sub-00/ses-lr/anat/sub-00_ses-lr_res-4p5x4p5x5mm_desc-sr_T1w.nii.gz",
        tmp_path / "result.nii.gz",
    )
    result = ResultFile(tmp_path / "result.nii.gz", "result.nii.gz", {"sub": "00"}, "T1w")
    bands = []
    for sizes in (
        {"InputVoxelSize": [4.5, 4.5, 10.0]},
        {"InputVoxelSize": [4.5, 4.5, 5.0], "AcquiredVoxelSize": [4.5, 4.5, 10.0]},
    ):
        (tmp_path / "result.json").write_text(json.dumps(sizes))
        row = evaluate(result, truth)[0]
        bands.append([row["band_correlation"], row["band_power"]])
    assert np.isfinite(bands[0]).all()
    assert bands[1] == bands[0]


def test_scale_and_offset_are_fitted(folders: Path) -> None:
    """The truth in other units is the truth."""
    target = folders / "scaled" / "sub-00" / "ses-hr" / "anat"
    target.mkdir(parents=True)
    image = nib.load(folders / "truth/sub-00/ses-hr/anat/sub-00_ses-hr_T1w.nii.gz")
    data = np.asarray(image.dataobj, np.float32) * 3 + 50
    nib.save(nib.Nifti1Image(data, image.affine), target / "sub-00_ses-hr_desc-sr_T1w.nii.gz")
    arguments = ["derivatives", "scaled", "fitted", "--truth", "truth", "--fit-intensities"]
    run = run_here(PROGRAM, *arguments, cwd=folders)
    assert run.returncode == 0, run.stderr
    with (folders / "fitted" / "evaluation.tsv").open(newline="") as stream:
        row = next(csv.DictReader(stream, delimiter="\t"))
    assert float(row["scale"]) == pytest.approx(1 / 3, rel=1e-4)
    assert float(row["offset"]) == pytest.approx(-50 / 3, rel=1e-3)
    assert float(row["psnr"]) > 80


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["derivatives", "none", "eval", "--truth", "truth"], 2, "none does not exist"),
        (["derivatives", "truth", "eval", "--truth", "truth"], 66, "no super-resolved image"),
        (["derivatives", "out", "eval", "--truth", "none"], 2, "does not exist"),
        (["derivatives", "out", "e", "--truth", "truth", "--participant-label", "9"], 66, "sub-9"),
    ],
)
def test_mistakes(folders: Path, arguments: list[str], code: int, sentence: str) -> None:
    run = run_here(PROGRAM, *arguments, cwd=folders)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr


def test_a_result_covers_its_voxels_up_to_their_faces() -> None:
    """Voxels of 2 mm from -1 to 19 mm, on a grid of 1 mm from -4 to 24 mm."""
    source = nib.Nifti1Image(np.ones((10, 10, 10), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    affine = nib.affines.from_matvec(np.eye(3), [-3.5, -3.5, -3.5])
    _, covered, grid = onto_grid(source, nib.Nifti1Image(np.zeros((28,) * 3, np.uint8), affine))
    expected = np.zeros((28,) * 3, dtype=bool)
    expected[3:23, 3:23, 3:23] = True
    assert grid == "spline" and np.array_equal(covered, expected)
