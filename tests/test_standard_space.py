# SPDX-License-Identifier: Apache-2.0
"""Standard space: a brain that was moved and stretched comes back to its template."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nilearn.datasets import load_mni152_brain_mask, load_mni152_template
from scipy import ndimage

from bids_moediff.errors import UsageError
from bids_moediff.imaging.standard_space import find_template, register, to_template

SPACE = "MNI152NLin2009cAsym"


def make_home(root: Path, voxel: int) -> Path:
    """A TemplateFlow folder made from the MNI brain that comes with nilearn, in coarse voxels."""
    stem = root / f"tpl-{SPACE}" / f"tpl-{SPACE}_res-02"
    stem.parent.mkdir()
    (stem.parent / f"tpl-{SPACE}_res-01_T1w.nii.gz").touch()  # TemplateFlow's empty stub
    load_mni152_template(resolution=voxel).to_filename(f"{stem}_T1w.nii.gz")
    load_mni152_brain_mask(resolution=voxel).to_filename(f"{stem}_desc-brain_mask.nii.gz")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("templateflow"), 4)


def moved(home: Path) -> tuple[nib.Nifti1Image, nib.Nifti1Image, np.ndarray]:
    """The template turned, stretched, with another contrast, and the matrix template -> image."""
    template = find_template(SPACE, home=home)
    source, mask = nib.load(template.image), nib.load(template.mask)
    angle = 0.15
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    world = nib.affines.from_matvec(turn @ np.diag([0.92, 1.06, 0.95]), [9.0, -14.0, 6.0])
    affine = nib.affines.from_matvec(np.diag([-3.5, 3.0, 4.0]), [100.0, -130.0, -90.0])
    shape = (58, 76, 52)
    inner = np.linalg.inv(source.affine) @ np.linalg.inv(world) @ affine
    moved_pair = [
        ndimage.affine_transform(
            np.asarray(volume.dataobj, dtype=np.float32), inner, output_shape=shape, order=1
        )
        for volume in (source, mask)
    ]
    inside = moved_pair[1] > 0.5
    inverted = np.where(inside, moved_pair[0].max() * 1.1 - moved_pair[0], 0.0) * 700.0
    return (
        nib.Nifti1Image(inverted.astype(np.float32), affine),
        nib.Nifti1Image(inside.astype(np.uint8), affine),
        world,
    )


@pytest.mark.parametrize(("flexible", "voxel"), [(False, 4), (True, 6)])
def test_a_moved_brain_of_another_contrast_is_found(
    tmp_path: Path, flexible: bool, voxel: int
) -> None:
    home = make_home(tmp_path, voxel)
    image, mask, world = moved(home)
    template = find_template(SPACE, home=home)
    transform, record = register(image, mask, template, flexible)
    points = np.array(
        [[0, 0, 0], [0, -95, 0], [0, 60, 10], [55, -20, 0], [-50, -20, 10], [0, -20, 70.0]]
    )
    true = nib.affines.apply_affine(world, points)
    turn = np.array([-1.0, -1.0, 1.0])  # RAS to LPS
    found = turn * [transform.TransformPoint(point) for point in points * turn]
    error = np.linalg.norm(found - true, axis=1)
    assert error.mean() < 2.5 and error.max() < 5.0
    assert record["transform"] == ["affine", "B-spline"][: 1 + flexible]
    assert record["warnings"] == []
    result = to_template(mask, transform, template, (float(voxel),) * 3)
    truth = np.asarray(nib.load(template.mask).dataobj) > 0
    mapped = np.asarray(result.dataobj) > 0.5
    assert 2 * (truth & mapped).sum() / (truth.sum() + mapped.sum()) > 0.95
    assert np.allclose(result.affine, nib.load(template.image).affine)


def test_resampling_with_no_motion_gives_the_image_back_on_the_asked_voxels(home: Path) -> None:
    template = find_template(SPACE, home=home)
    source = nib.load(template.image)
    identity = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    same = to_template(source, identity, template, (4.0, 4.0, 4.0))
    assert np.allclose(same.dataobj, source.get_fdata(), atol=1e-3)
    assert {int(same.header[code]) for code in ("sform_code", "qform_code")} == {4}  # MNI
    fine = to_template(source, identity, template, (2.0, 2.0, 4.0))
    assert np.allclose(fine.header.get_zooms(), (2.0, 2.0, 4.0))
    blocks = fine.get_fdata().reshape(source.shape[0], 2, source.shape[1], 2, -1).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), source.get_fdata().ravel())[0, 1] > 0.99


def test_a_missing_template_says_how_to_provide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="TEMPLATEFLOW_HOME"):
        find_template(SPACE)
    assert list(tmp_path.iterdir()) == []  # no skeleton, no stub
    with pytest.raises(UsageError, match="not the name"):
        find_template("../etc")
