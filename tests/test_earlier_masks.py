# SPDX-License-Identifier: Apache-2.0
"""Masks of other pipelines: which file fits which image, and where it lands."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.earlier_masks import check_derivatives, find_brain_mask
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.preprocessing.earlier_mask import reuse_mask
from generated import dataset, head


def image(
    suffix: str = "T1w", path: Path = Path("/nowhere/x.nii.gz"), **entities: str
) -> AnatomicalImage:
    return AnatomicalImage(path, "x.nii.gz", {"sub": "01", **entities}, suffix, {})


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def found(source: AnatomicalImage, folder: Path) -> str | None:
    path = find_brain_mask(source, folder).path
    return path.name if path else None


def test_the_mask_of_this_image_and_no_other_is_taken(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_run-1_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-2_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-2_res-0p7mm_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_run-2_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
        "sub-02/anat/sub-02_run-3_desc-brain_mask.nii.gz",
    )
    assert found(image(run="2"), tmp_path) == "sub-01_run-2_desc-brain_mask.nii.gz"
    assert found(image(run="3"), tmp_path) is None
    assert found(image(), tmp_path) is None


def test_run_and_rec_may_be_left_out_where_nothing_else_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_desc-brain_mask.nii.gz")
    assert found(image(ses="a", run="1"), tmp_path) == "sub-01_ses-a_desc-brain_mask.nii.gz"
    assert found(image(ses="b", run="1"), tmp_path) is None
    assert found(image(ses="a", acq="hi"), tmp_path) is None
    touch(tmp_path, "sub-01/ses-a/anat/sub-01_ses-a_run-2_desc-brain_mask.nii.gz")
    assert found(image(ses="a", run="1"), tmp_path) is None


def test_contrast_decides_between_masks(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "sub-01/anat/sub-01_space-T2w_desc-brain_mask.nii.gz",
    )
    assert found(image("T1w"), tmp_path) == "sub-01_desc-brain_mask.nii.gz"
    assert found(image("T2w"), tmp_path) == "sub-01_space-T2w_desc-brain_mask.nii.gz"
    assert found(image("FLAIR"), tmp_path) is None


def test_one_mask_of_several_runs_is_that_of_the_first(tmp_path: Path) -> None:
    done = touch(tmp_path / "done", "sub-01/anat/sub-01_desc-brain_mask.nii.gz")
    names = ("sub-01_run-10_T1w.nii.gz", "sub-01_run-2_T1w.nii.gz", "sub-01_run-1_T2w.nii.gz")
    raw = touch(tmp_path / "raw", *names)
    first = find_brain_mask(image(path=raw / "a", run="2"), done)
    assert first.path is not None and "names no run" in first.remark
    second = find_brain_mask(image(path=raw / "a", run="10"), done)
    assert second.path is None and "run-2" in second.remark
    alone = touch(tmp_path / "alone", "sub-01_run-3_T1w.nii.gz")
    only = find_brain_mask(image(path=alone / "a", run="3"), done)
    assert only.path is not None and only.remark == ""


def test_a_remark_names_the_masks_that_do_not_fit(tmp_path: Path) -> None:
    merged = "sub-01_desc-brain_mask.nii.gz"
    touch(tmp_path, f"sub-01/anat/{merged}")
    mask = find_brain_mask(image(ses="a"), tmp_path)
    assert mask.path is None and merged in mask.remark
    assert "there:" not in find_brain_mask(image(sub="02"), tmp_path).remark


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "fmriprep" / "sub-01").mkdir(parents=True)
    check_derivatives(tmp_path / "fmriprep")
    with pytest.raises(UsageError, match="gone"):
        check_derivatives(tmp_path / "gone")
    with pytest.raises(UsageError, match="fmriprep"):
        check_derivatives(tmp_path)


def test_the_app_takes_the_mask_and_tells_why_not(tmp_path: Path) -> None:
    """Two runs, the head moved between them, and one mask that names no run."""
    still = head(seed=1)
    moved = nib.Nifti1Image(np.roll(np.asanyarray(still.dataobj), (5, 4), (1, 2)), still.affine)
    raw = dataset(tmp_path / "raw", {"sub-01_run-1_T1w": still, "sub-01_run-2_T1w": moved})
    masked = ball(still.shape, 3.6).astype(np.uint8)
    done = tmp_path / "done" / "sub-01" / "anat"
    done.mkdir(parents=True)
    nib.save(nib.Nifti1Image(masked, still.affine), done / "sub-01_desc-brain_mask.nii.gz")
    command = [sys.executable, "-m", "bids_moediff.cli.app", raw, tmp_path / "out", "participant"]
    options = ["--stage", "preproc", "--skip-bias-correction", "--nprocs", "1"]
    subprocess.run([*command, "--derivatives", tmp_path / "done", *options], check=True)
    anat = tmp_path / "out" / "sub-01" / "anat"
    first = nib.load(anat / "sub-01_run-1_desc-brain_mask.nii.gz")
    assert np.array_equal(np.asanyarray(first.dataobj), masked)
    second = json.loads((anat / "sub-01_run-2_desc-brain_mask.json").read_text())
    assert second["method"] != "derivatives"
    (record,) = (tmp_path / "out" / "logs" / "sub-01").glob("*/run.json")
    items = json.loads(record.read_text())["images"]
    assert all(any("names no run" in words for words in item["warnings"]) for item in items)


def ball(shape: tuple[int, int, int], zoom: float) -> np.ndarray:
    axes = [(np.arange(n) + 0.5) * zoom - 60.0 for n in shape]
    grid = np.meshgrid(*axes, indexing="ij")
    return sum(axis**2 for axis in grid) < 40.0**2


def affine(zoom: float) -> np.ndarray:
    return nib.affines.from_matvec(np.eye(3) * zoom, [0.5 * zoom - 60.0] * 3)


def test_a_mask_on_another_grid_lands_where_it_was_in_the_world(tmp_path: Path) -> None:
    coarse = ball((40, 40, 40), 3.0).astype(np.uint8)
    flipped = nib.Nifti1Image(coarse, affine(3.0)).as_reoriented(
        np.array([[2, -1], [0, 1], [1, -1]])
    )
    flipped.to_filename(tmp_path / "m.nii.gz")
    target = nib.Nifti1Image(np.zeros((60, 60, 60), np.float32), affine(2.0))
    mask, record = reuse_mask(tmp_path / "m.nii.gz", target)
    result, truth = np.asarray(mask.dataobj) > 0, ball((60, 60, 60), 2.0)
    assert 2 * (result & truth).sum() / (result.sum() + truth.sum()) > 0.97
    assert np.array_equal(mask.affine, target.affine)
    assert record["method"] == "derivatives" and "another grid" in record["warnings"][0]


def test_same_grid_same_voxels_and_a_mask_elsewhere_is_refused(tmp_path: Path) -> None:
    data = ball((40, 40, 40), 3.0).astype(np.uint8)
    nib.Nifti1Image(data, affine(3.0)).to_filename(tmp_path / "m.nii.gz")
    target = nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), affine(3.0))
    mask, record = reuse_mask(tmp_path / "m.nii.gz", target)
    assert np.array_equal(mask.dataobj, data) and record["warnings"] == []
    away = affine(3.0)
    away[:3, 3] += 500.0
    target = nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), away)
    with pytest.raises(ImageError, match="does not cover"):
        reuse_mask(tmp_path / "m.nii.gz", target)
