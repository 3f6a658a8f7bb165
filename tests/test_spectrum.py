# SPDX-License-Identifier: Apache-2.0
"""Usable resolution and the marks of interpolation, on textures and on real heads."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.engine import spectrum
from bids_moediff.engine.masks import head_mask_array


def zero_filled(data: np.ndarray, axis: int, factor: float) -> np.ndarray:
    """The magnitude of ``data`` on a finer grid, by zeros around its k-space."""
    count = data.shape[axis]
    extra = round(count * factor) - count
    before = (count + extra) // 2 - count // 2
    pad = [(before, extra - before) if k == axis else (0, 0) for k in range(3)]
    space = np.fft.fftshift(np.fft.fft(data, axis=axis), axes=axis)
    space = np.fft.ifftshift(np.pad(space, pad), axes=axis)
    return np.abs(np.fft.ifft(space, axis=axis)) * (1 + extra / count)


def upsampled(data: np.ndarray, axis: int, factor: float, order: int) -> np.ndarray:
    zoom = [factor if k == axis else 1.0 for k in range(3)]
    return ndimage.zoom(data, zoom, order=order, mode="nearest", grid_mode=True)


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """Texture with the power law of anatomy (amplitude 1/f**1.5) and 2 % noise."""
    rng = np.random.default_rng(0)
    shape = (96, 90, 88)
    radius = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    white = np.fft.fftn(rng.normal(size=shape))
    smooth = np.fft.ifftn(white / np.maximum(radius, 0.01) ** 1.5).real
    return 100 + 20 * smooth / smooth.std() + rng.normal(0, 2, shape)


def inside(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, dtype=bool)


def test_white_noise_has_a_flat_spectrum_of_its_variance():
    data = np.random.default_rng(0).normal(0, 3, (64, 64, 64))
    found = spectrum.axis_spectrum(data, inside(data.shape), 1)
    assert found is not None
    assert found.power[2:].mean() == pytest.approx(9, rel=0.03)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_native_texture_is_left_alone(texture, axis):
    found = spectrum.axis_resolution(texture, inside(texture.shape), axis, 1.0)
    assert found.kind == "native"
    assert found.acquired == 1.0


@pytest.mark.parametrize("factor", [1.3, 1.5, 2.0])
def test_zero_filling_is_found_with_its_factor(texture, factor):
    data = np.rint(zero_filled(texture, 0, factor))
    found = spectrum.axis_resolution(data, inside(data.shape), 0, 1 / factor)
    assert found.kind == "zero-filled"
    assert found.acquired == pytest.approx(1.0, abs=0.12)
    assert found.usable >= 0.9
    other = spectrum.axis_resolution(data, inside(data.shape), 1, 1.0)
    assert other.kind == "native"


@pytest.mark.parametrize(("order", "factor"), [(1, 1.25), (1, 1.5), (3, 1.25), (3, 1.43)])
def test_interpolation_is_found_by_its_period(texture, order, factor):
    data = np.rint(upsampled(texture, 2, factor, order))
    found = spectrum.axis_resolution(data, inside(data.shape), 2, 1 / factor)
    assert found.kind in ("interpolated", "zero-filled")
    period = spectrum.sharpness_period(data, inside(data.shape), 2)
    assert period == pytest.approx(min(1 / factor, 1 - 1 / factor), abs=0.01)


def test_interleaved_slices_are_no_interpolation(texture):
    data = texture.copy()
    data[:, :, ::2] *= 1.05
    assert spectrum.sharpness_period(data, inside(data.shape), 2) is None


def test_too_thin_a_stack_is_unknown_not_guessed():
    data = np.random.default_rng(0).normal(size=(40, 40, 10))
    found = spectrum.axis_resolution(data, inside(data.shape), 2, 5.0)
    assert (found.kind, found.usable) == ("unknown", 5.0)


def test_deleted_voxels_do_not_leak_into_the_spectrum(texture):
    mask = inside(texture.shape)
    cut = texture.copy()
    cut[60:] = 0
    whole = spectrum.axis_resolution(texture[:60], mask[:60], 0, 1.0)
    deleted = spectrum.axis_resolution(cut, mask, 0, 1.0)
    assert deleted.usable == pytest.approx(whole.usable, rel=0.05)


def test_the_warning_names_axis_and_size(texture):
    data = zero_filled(texture, 0, 2.0)
    axes = spectrum.acquired_resolution(data, (0.5, 1.0, 1.0), inside(data.shape))
    (sentence,) = spectrum.resolution_warnings(axes)
    assert "instead of 0.5 mm along the first voxel axis" in sentence
    assert "second" not in sentence
    native = spectrum.acquired_resolution(texture, (1.0, 1.0, 1.0), inside(texture.shape))
    assert spectrum.resolution_warnings(native) == []


# Heads sharp to the grid on the axis named (judged by eye on their spectra), so any mark found on
# the file itself is a false alarm.
NATIVE = {
    "t1w/uih_s1_T1w.nii.gz": (0, 1, 2),
    "t1w/niimath_T1w.nii.gz": (0, 1, 2),
    "t1w/ds002748_sub-60_T1w.nii.gz": (0, 1),
}


def made(data: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    return {
        "zeros 1.33": zero_filled(data, axis, 4 / 3),
        "zeros 2": zero_filled(data, axis, 2.0),
        "cubic 1.5": upsampled(data, axis, 1.5, 3),
        "cubic 2": upsampled(data, axis, 2.0, 3),
    }


def axis_counts(path: Path, axes: tuple[int, ...]) -> tuple[list[bool], list[bool]]:
    """For one head: hits on axes interpolated here, and alarms on the axes as they are."""
    image = nib.load(path)
    data = np.asarray(image.dataobj, dtype=np.float32)
    zooms = tuple(map(float, image.header.get_zooms()))
    head = head_mask_array(data, zooms)
    centre = [int(c) for c in ndimage.center_of_mass(head)]
    hits, alarms = [], []
    for axis in axes:
        core = tuple(
            slice(None) if k == axis else slice(max(c - 20, 0), c + 20)
            for k, c in enumerate(centre)
        )
        part, mask = data[core], head[core]
        alarms.append(spectrum.axis_resolution(part, mask, axis, 1.0).kind != "native")
        for fine in made(part, axis).values():
            factor = fine.shape[axis] / part.shape[axis]
            fine_mask = upsampled(mask.astype(np.float32), axis, factor, 1) > 0.5
            found = spectrum.axis_resolution(np.rint(fine), fine_mask, axis, 1.0)
            hits.append(found.kind in ("zero-filled", "interpolated"))
    return hits, alarms


@pytest.mark.shared
def test_interpolation_of_real_heads_is_found_and_nothing_else(shared_data):
    hits: list[bool] = []
    alarms: list[bool] = []
    for name, axes in NATIVE.items():
        more_hits, more_alarms = axis_counts(shared_data / name, axes)
        hits += more_hits
        alarms += more_alarms
    assert np.mean(hits) >= 0.95, f"sensitivity {np.mean(hits):.3f} of {len(hits)}"
    assert 1 - np.mean(alarms) >= 0.95, f"specificity {1 - np.mean(alarms):.3f}"


@pytest.mark.shared
def test_two_millimetre_slices_on_a_one_millimetre_grid_are_found(shared_data):
    image = nib.load(shared_data / "t1w/ds002748_sub-60_T1w.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)
    zooms = tuple(map(float, image.header.get_zooms()))
    axes = spectrum.acquired_resolution(data, zooms, head_mask_array(data, zooms))
    assert axes[2].acquired == pytest.approx(2.0, abs=0.15)
    assert [axis.kind for axis in axes[:2]] == ["native", "native"]
