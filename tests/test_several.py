# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-superres IN IN IN OUT``: scans of one head are combined."""

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff import super_resolve
from bids_moediff.cli.app import main as app
from bids_moediff.cli.superres import main
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging.grid import voxel_sizes

STACKS = Path(__file__).parent / "data" / "three_stacks"
INPUTS = [
    str(STACKS / f"bids/sub-01/anat/sub-01_acq-{name}_T1w.nii.gz")
    for name in ("axial", "coronal", "sagittal")
]
OPTIONS = ["--device", "cpu", "--model", "student", "--output-resolution", "2.4"]


def error(image: nib.Nifti1Image) -> float:
    """Root mean square error against the truth where both have voxels."""
    truth = nib.Nifti1Image.from_filename(STACKS / "truth.nii.gz")
    offset = np.round(np.linalg.inv(image.affine) @ truth.affine[:, 3])[:3].astype(int)
    assert np.allclose(image.affine[:3, :3], truth.affine[:3, :3], atol=1e-5)
    sizes = [min(n, m - o) for n, m, o in zip(truth.shape, image.shape, offset, strict=True)]
    data = np.asarray(truth.dataobj, dtype=np.float32)[tuple(slice(0, n) for n in sizes)]
    found = np.asarray(image.dataobj)[
        tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
    ]
    return float(np.sqrt(np.square((found - data)[data > 100]).mean()))


def test_three_stacks_become_one_volume(tmp_path, capsys):
    out, alone = tmp_path / "out.nii.gz", tmp_path / "alone.nii.gz"
    assert main([*INPUTS, str(out), *OPTIONS]) == 0
    assert main([INPUTS[0], str(alone), *OPTIONS, "--slice-profile", "box"]) == 0
    image = nib.Nifti1Image.from_filename(out)
    assert voxel_sizes(image.affine) == pytest.approx((2.4,) * 3)
    assert error(image) < 0.75 * error(nib.Nifti1Image.from_filename(alone))
    count = nib.Nifti1Image.from_filename(tmp_path / "out_srcount.nii.gz")
    assert count.shape == image.shape and int(np.asarray(count.dataobj).max()) == 3
    record = json.loads((tmp_path / "out.json").read_text())
    assert [scan["Used"] for scan in record["CombinedScans"]] == [True] * 3
    assert [scan["Scan"] for scan in record["CombinedScans"]] == [Path(p).name for p in INPUTS]
    assert all(scan["ResidualOverNoise"] < 1.1 for scan in record["CombinedScans"])
    assert record["Model"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([*INPUTS], "exists"),
        ([*INPUTS, "out.nii.gz", "--mask", INPUTS[0]], "one image"),
        ([*INPUTS, "out.txt"], "does not end"),
    ],
)
def test_what_is_refused(words, sentence, capsys):
    assert main([*words, *OPTIONS]) == 2
    assert sentence in capsys.readouterr().err


def test_voxels_coarser_than_a_scan(tmp_path, capsys):
    words = [*INPUTS[:2], str(tmp_path / "out.nii.gz"), *OPTIONS[:-1], "2.5"]  # scans have 2.4
    assert main(words) == 1
    assert "--output-resolution auto" in capsys.readouterr().err


def test_a_list_in_python_needs_two_scans():
    scan = nib.Nifti1Image.from_filename(INPUTS[0])
    cases = (
        ([scan], {}), ([scan, scan], {"metadata": {"SliceThickness": 7.2}}), (INPUTS, {}),
        ([scan, scan], {"metadata": [{}]}), (INPUTS[0], {}),
    )  # fmt: skip
    for images, words in cases:
        with pytest.raises(UsageError):
            super_resolve(images, **words)


def test_the_dry_run_names_scans_that_belong_together(tmp_path, capsys):
    words = [str(STACKS / "bids"), str(tmp_path / "out"), "participant", "--dry-run"]
    assert app([*words, "--device", "cpu"]) == 0
    line = " ".join(capsys.readouterr().out.split())
    assert "sub-01_T1w: 3 scans of one contrast" in line
    assert "--combine auto" in line
    assert app([*words, "--device", "cpu", "--combine", "auto"]) == 0
    assert "sub-01_desc-srcombined_T1w: combined from sub-01_acq-axial_T1w" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_same_file_twice_is_a_mistake_and_a_copy_is_said(tmp_path, capsys):
    out, link, copy = (tmp_path / f"{name}.nii.gz" for name in ("out", "link", "copy"))
    link.symlink_to(INPUTS[0])
    assert main([INPUTS[0], str(link), str(out), *OPTIONS]) == 2
    assert "named twice" in capsys.readouterr().err and not out.exists()
    image = nib.Nifti1Image.from_filename(INPUTS[0])
    nib.save(image.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])), copy)
    assert main([INPUTS[0], str(copy), str(out), *OPTIONS]) == 0
    words = capsys.readouterr().err
    assert "Nothing was combined" in words and "copy.nii.gz was left out: it is a copy of" in words
    record = json.loads((tmp_path / "out.json").read_text())
    assert [scan["Used"] for scan in record["CombinedScans"]] == [True, False]


def test_python_warns_of_a_scan_that_was_left_out():
    scan = nib.Nifti1Image.from_filename(INPUTS[0])
    with pytest.warns(UserWarning) as found:
        super_resolve([scan, scan], 2.4, device="cpu")
    assert any("copy of scan 1" in str(item.message) for item in found)


def test_python_reads_images_as_the_commands_do():
    scan = nib.Nifti1Image.from_filename(INPUTS[0])
    data = np.asarray(scan.dataobj)
    thin = nib.Nifti1Image(data[:, :, 9:10], scan.affine)
    series = nib.Nifti1Image(np.stack([data, data], axis=-1), scan.affine)
    large = np.diag([900.0, 900.0, 900.0, 1.0])
    for wrong, words in (
        (thin, "scan 2 is a single slice"),
        (series, "scan 2 has 2 volumes"),
        (nib.Nifti1Image(np.full(data.shape, np.nan, np.float32), scan.affine), "has no finite"),
        (nib.Nifti1Image(data, large), "scan 2 has an impossible voxel size"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=words):
            super_resolve([scan, wrong])
    for odd in ("x", math.nan, math.inf, -3.0, 0, True):
        with pytest.raises(UsageError, match=f"SliceThickness is {odd!r}"):
            super_resolve(scan, metadata={"SliceThickness": odd})
    with pytest.raises(UsageError, match="expected an image"):
        super_resolve({"a": scan})
