# SPDX-License-Identifier: Apache-2.0
"""The script that turns samples into error bars of volumes."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "volume_error_bars.py"
SEGMENTER = """
import sys, nibabel as nib, numpy as np
image = nib.load(sys.argv[1])
labels = (np.asarray(image.dataobj) > 50).astype(np.uint8)
nib.save(nib.Nifti1Image(labels, image.affine), sys.argv[2])
"""


def write(folder: Path, desc: str, bright: int) -> Path:
    """An image of 1000 voxels of 8 mm3, so many of them bright."""
    data = np.full(1000, 10.0, np.float32)
    data[:bright] = 100
    path = folder / f"sub-01_res-2mm_desc-{desc}_T1w.nii.gz"
    nib.save(nib.Nifti1Image(data.reshape(10, 10, 10), np.diag([2.0, 2, 2, 1])), path)
    return path


def run(image: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), str(image), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_volumes_with_intervals(tmp_path: Path) -> None:
    image = write(tmp_path, "sr", 250)
    for number, bright in ((1, 300), (2, 200), (10, 310)):
        write(tmp_path, f"srsample{number}", bright)
    (tmp_path / "segmenter.py").write_text(SEGMENTER)
    command = f"{sys.executable} {tmp_path / 'segmenter.py'} {{image}} {{labels}}"
    found = run(image, "--command", command)
    assert found.returncode == 0, found.stderr
    header, row = (line.split("\t") for line in found.stdout.splitlines())
    assert header == ["label", "image_ml", "mean_ml", "deviation_ml", "low_ml", "high_ml"]
    values = [0.008 * count for count in (300, 200, 310)]
    mean, spread = np.mean(values), np.std(values, ddof=1)
    half = 1.645 * spread * np.sqrt(4 / 3)
    expected = [1, 2.0, mean, spread, 2.0 - half, 2.0 + half]
    assert [float(word) for word in row] == pytest.approx(expected, abs=6e-4)
    assert len(run(image).stdout.splitlines()) > 1


def test_without_samples_it_says_how_to_get_them(tmp_path: Path) -> None:
    found = run(write(tmp_path, "sr", 250))
    assert found.returncode == 1 and "--outputs samples" in found.stderr


def test_texture_is_refused(tmp_path: Path) -> None:
    image = write(tmp_path, "sr", 250)
    for number in (1, 2):
        sample = write(tmp_path, f"srsample{number}", 300)
        sidecar = sample.with_name(sample.name.replace(".nii.gz", ".json"))
        sidecar.write_text('{"Sample": "texture"}')
    found = run(image)
    assert found.returncode == 1 and "texture" in found.stderr
