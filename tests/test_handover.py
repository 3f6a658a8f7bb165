# SPDX-License-Identifier: Apache-2.0
"""Recipes of docs/with-other-tools.md, run as they are written."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import ROOT

PAGE = (ROOT / "docs" / "with-other-tools.md").read_text(encoding="utf-8")
# An interpreter that has antspyx, which does not go with this package's numpy.
ANTS = os.environ.get("BIDS_MOEDIFF_TEST_ANTS")


@pytest.fixture
def folder(tmp_path) -> Path:
    """An oblique image with values below zero, and its mask."""
    angle = 0.2
    affine = np.diag([-0.7, 0.7, 0.7, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    affine[:2, :3] = turn @ affine[:3, :3]
    offset = np.stack(np.meshgrid(*[np.arange(24) - 11.5] * 3, indexing="ij"))
    radius = np.sqrt((offset**2).sum(0))
    noise = np.random.default_rng(0).normal(0, 10, radius.shape)
    data = (np.where(radius < 9, 800 - 10 * radius, 0) + noise).astype(np.float32)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "SR.nii.gz")
    nib.save(nib.Nifti1Image((radius < 9).astype(np.uint8), affine), tmp_path / "MASK.nii.gz")
    return tmp_path


def load(path: Path) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def recipe(start: str) -> str:
    """The indented block of the page that begins with ``start``."""
    block = re.search(rf"^    {re.escape(start)}.*?(?=^\S)", PAGE, re.M | re.S)
    assert block is not None
    return textwrap.dedent(block[0])


def test_negative_values_can_be_set_to_zero(folder):
    command = recipe('python -c "import nibabel').replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True, cwd=folder)
    before, after = load(folder / "SR.nii.gz"), load(folder / "SR_positive.nii.gz")
    assert before.get_fdata().min() < 0
    np.testing.assert_array_equal(after.get_fdata(), np.maximum(before.get_fdata(), 0))


@pytest.mark.skipif(not ANTS, reason="needs BIDS_MOEDIFF_TEST_ANTS=/path/to/python with antspyx")
def test_bias_correction_with_ants(folder):
    subprocess.run([str(ANTS), "-c", recipe("import ants")], check=True, cwd=folder)
    before, after = load(folder / "SR.nii.gz"), load(folder / "SR_n4.nii.gz")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    np.testing.assert_array_equal(after.get_fdata() < 0, before.get_fdata() < 0)
