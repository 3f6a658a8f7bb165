# SPDX-License-Identifier: Apache-2.0
"""Gradient unwarping against gradunwarp and the reference it ships."""

import importlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.errors import ImageError, UsageError
from bids_moediff.preprocessing.unwarp import displacement, read_coefficients, unwarp

gradunwarp = importlib.import_module("gradunwarp.core.unwarp_resample")
DATA = Path(gradunwarp.__file__).parent / "tests" / "data"
GRAD = DATA / "gradunwarp_coeffs.grad"
STRENGTH = 10.0


def strong_coefficients() -> Any:
    """The shipped dummy, strong enough to move a head of 15 cm by millimetres."""
    coefficients = read_coefficients(GRAD)
    return coefficients._replace(
        **{name: getattr(coefficients, name) * STRENGTH for name in coefficients._fields[:6]}
    )


def head(code: int = 1) -> nib.Nifti1Image:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 56, 40)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    folds = 1.0 + 0.3 * np.cos(9 * axes[0]) * np.cos(7 * axes[1])
    data = 100.0 * folds / (1.0 + np.exp(20.0 * (radius - 0.8)))
    affine = np.diag([3.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-70.0, -86.0, -79.0]
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    return image


def test_displacement_reproduces_the_reference_of_gradunwarp() -> None:
    coefficients = read_coefficients(GRAD)
    positions = np.linspace(-300, 300, 60, dtype=np.float32)
    grid = np.stack(np.meshgrid(positions, positions, positions), -1).astype(np.float64)
    found = displacement(grid * [-1, 1, -1], coefficients) * [-1, 1, -1]
    reference = np.load(DATA / "siemens_B_output.npz")
    radius_mm = coefficients.R0_m * 1000.0
    for number, axis in enumerate("xyz"):
        # The reference was computed on 32-bit coordinates: five decimals, as in its own test.
        assert np.allclose(
            found[..., number] / radius_mm, reference[f"b{axis}"], rtol=1e-5, atol=1.5e-5
        )


class RightSpacing(gradunwarp.Unwarper):
    """gradunwarp with the spacing of its nodes put right: it divides by 60 where 59 is meant."""

    def eval_spharm_grid(self, vendor: str, coefficients: Any) -> tuple[Any, np.ndarray]:
        field, _ = super().eval_spharm_grid(vendor, coefficients)
        low, high = 1000.0 * self.fovmin, 1000.0 * self.fovmax
        step = (high - low) / (self.numpoints - 1)
        nodes = np.array([[0, step, 0, low], [step, 0, 0, low], [0, 0, step, low], [0, 0, 0, 1]])
        return field, np.linalg.inv(nodes)


def test_image_agrees_with_gradunwarp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # gradunwarp itself leaves its warp in the current folder
    image, coefficients = head(), strong_coefficients()
    image.to_filename(tmp_path / "in.nii")
    unwarper = RightSpacing(
        image.get_fdata(), image.affine, "siemens", coefficients, str(tmp_path / "in.nii")
    )
    unwarper.fovmin, unwarper.fovmax, unwarper.numpoints = -0.12, 0.12, 36
    unwarper.order, unwarper.nojac = 3, True
    unwarper.run()
    result, record = unwarp(image, coefficients, jacobian=False)
    ours = np.asarray(result.dataobj)
    inner = (slice(6, -6),) * 3
    difference = np.abs(ours - unwarper.out)[inner]
    change = np.abs(np.asarray(image.dataobj) - ours)[inner]
    assert change.max() > 5.0  # the distortion is no trifle
    assert record["largest_displacement_mm"] > 2.0
    assert np.percentile(difference, 99) < 0.03 * np.percentile(change, 99)


def test_without_distortion_the_image_comes_back() -> None:
    coefficients = read_coefficients(GRAD)
    none = coefficients._replace(
        **{name: getattr(coefficients, name) * 0 for name in coefficients._fields[:6]}
    )
    image = head()
    result, record = unwarp(image, none)
    assert np.allclose(result.dataobj, image.dataobj, atol=1e-3)
    assert record["largest_displacement_mm"] == 0
    assert np.array_equal(result.affine, image.affine)


def test_volume_change_keeps_the_signal_of_a_blob() -> None:
    image = head()
    axes = np.meshgrid(*(np.arange(n) for n in image.shape), indexing="ij")
    centre, width = (9.0, 28.0, 20.0), (2.5, 2.5, 2.0)
    terms = [((a - c) / w) ** 2 for a, c, w in zip(axes, centre, width, strict=True)]
    data = np.exp(-0.5 * sum(terms)).astype(np.float32)
    blob = nib.Nifti1Image(data, image.affine, image.header)
    total = float(np.sum(blob.dataobj))
    kept, _ = unwarp(blob, strong_coefficients())
    plain, _ = unwarp(blob, strong_coefficients(), jacobian=False)
    assert abs(float(np.sum(kept.dataobj)) / total - 1.0) < 0.005
    assert abs(float(np.sum(plain.dataobj)) / total - 1.0) > 0.02


def test_no_stray_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unwarp(head(), strong_coefficients())
    assert list(tmp_path.iterdir()) == []


def test_an_image_in_standard_space_is_refused_and_an_unstated_origin_remarked() -> None:
    for code in (3, 4):  # Talairach, MNI
        with pytest.raises(ImageError, match="scanner coordinates"):
            unwarp(head(code=code), strong_coefficients())
    assert unwarp(head(code=1), strong_coefficients())[1]["warnings"] == []
    assert "isocentre" in unwarp(head(code=2), strong_coefficients())[1]["warnings"][0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.grad", None, "does not exist"),
        ("coil.coef", "A 1 1 0.5", "Siemens"),
        ("text.grad", "hello", "Siemens"),
        ("empty.grad", "0.25 m = R0\n", "Siemens"),
    ],
)
def test_a_wrong_coefficient_file_is_named(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says):
        read_coefficients(tmp_path / name)


def test_the_order_of_the_axes_does_not_matter() -> None:
    turned = head().as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    straight, record = unwarp(head(), strong_coefficients())
    found, again = unwarp(turned, strong_coefficients())
    back = nib.as_closest_canonical(found)
    np.testing.assert_allclose(back.affine, straight.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(back.dataobj), np.asarray(straight.dataobj), atol=0.5)
    assert again["largest_displacement_mm"] == pytest.approx(record["largest_displacement_mm"])
