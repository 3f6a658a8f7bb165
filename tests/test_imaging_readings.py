# SPDX-License-Identifier: Apache-2.0
"""Parts of the readings of noise, acquisition and maps against loops and closed forms."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging import acquisition_estimate as estimate
from bids_moediff.imaging import noise_level
from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.map_images import _alike, _check_grid, _partitions, _small, _values


def test_the_middle_of_a_head_follows_its_voxels() -> None:
    shape = (120, 40, 150)
    data = np.random.default_rng(0).random(shape).astype(np.float32)
    head = np.zeros(shape, bool)
    head[60:118, 5:20, 10:60] = True
    data[60:100, 5:12, 10:30] = 0  # deleted: it does not count
    part, inside = noise_level._middle(data, head)
    kept = head & (data != 0)
    starts = []
    for axis, size in enumerate(shape):
        places = np.argwhere(kept)[:, axis]
        length = min(size, noise_level.SIDE)
        starts.append(min(max(int(places.mean()) - length // 2, 0), size - length))
    assert starts[0] > 0 and starts[2] == 0
    box = tuple(slice(s, s + min(n, 96)) for s, n in zip(starts, shape, strict=True))
    assert np.array_equal(part, data[box]) and np.array_equal(inside, kept[box])
    assert part.flags.c_contiguous
    nothing = noise_level._middle(np.zeros_like(data), head)[1]
    assert nothing.any()
    # The same in mm, for the acquisition: 112 mm of each axis.
    zooms = (0.9, 3.0, 1.5)
    found = estimate._middle(data, zooms, head)
    lengths = [min(n, int(112 / z)) for n, z in zip(shape, zooms, strict=True)]
    centres = [int(np.argwhere(head)[:, axis].mean()) for axis in range(3)]
    starts = [
        min(max(c - n // 2, 0), size - n)
        for c, n, size in zip(centres, lengths, shape, strict=True)
    ]
    box = tuple(slice(s, s + n) for s, n in zip(starts, lengths, strict=True))
    assert np.array_equal(found, data[box])


@pytest.mark.parametrize(
    ("shape", "zooms", "axes"),
    [((20, 20, 20), (1, 1, 1), (0, 1, 2)), ((20, 20, 20), (1, 1.49, 1), (0, 1, 2)),
     ((20, 20, 20), (1, 1, 1.5), (0, 1)), ((20, 13, 20), (1, 1, 1), (0, 2)),
     ((20, 14, 20), (1, 1, 1), (0, 1, 2)), ((20, 13, 13), (1, 1, 1), (0, 1, 2)),
     ((20, 20, 20), (3, 1, 1), (1, 2)), ((20, 20, 20), (0.5, 1, 1.4), (0, 1, 2)),
     ((20, 20, 20), (0.5, 1, 1.6), (0, 1))],
)  # fmt: skip
def test_axes_whose_corner_is_read(
    shape: tuple[int, ...], zooms: tuple[float, ...], axes: tuple[int, ...]
) -> None:
    assert noise_level._corner_axes(shape, zooms) == axes


def test_the_high_pass_filter_is_a_difference_of_the_sixth_order() -> None:
    """Along the axes asked for; white noise keeps its variance."""
    data = np.random.default_rng(0).standard_normal((22, 20, 24)).astype(np.float32)
    taps = np.array([1, -6, 15, -20, 15, -6, 1]) / np.sqrt(924)
    wanted = ndimage.convolve1d(data, taps, axis=0, mode="nearest")
    wanted = ndimage.convolve1d(wanted, taps, axis=2, mode="nearest")
    found = noise_level._high_pass(data, (0, 2))
    assert found == pytest.approx(wanted, abs=1e-4) and found.std() == pytest.approx(1, abs=0.1)


def test_the_radius_in_kspace() -> None:
    shape = (6, 5, 8)
    for axes in ((0, 1, 2), (0, 2), (1,)):
        found = np.broadcast_to(noise_level._radius(shape, axes), (6, 5, 5))
        for place in np.ndindex(6, 5, 5):
            waves = [min(k, n - k) / n for k, n in zip(place, shape, strict=True)]
            wanted = 2 * np.sqrt(sum(waves[axis] ** 2 for axis in axes))
            assert found[place] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("share", "empty"), [(0.15, True), (0.25, False)])
def test_a_corner_is_empty_below_a_fifth_of_the_power(share: float, empty: bool) -> None:
    shape = (40, 44, 36)
    noise = np.fft.rfftn(np.random.default_rng(0).standard_normal(shape))
    radius = np.broadcast_to(noise_level._radius(shape, (0, 1, 2)), noise.shape)
    part = np.fft.irfftn(np.where(radius > 1, np.sqrt(share) * noise, noise), shape, (0, 1, 2))
    assert noise_level._empty(part.astype(np.float32), (0, 1, 2)) == empty
    assert not noise_level._empty(np.ones((4, 4, 4), np.float32), (0, 1, 2))


def test_octants_and_what_is_rayleigh() -> None:
    seen = np.zeros((5, 6, 7), int)
    for place in noise_level._octants(seen.shape):
        seen[place] += 1
        assert 0 < seen[place].size < seen.size / 4
    assert (seen == 1).all()
    values = np.random.default_rng(0).rayleigh(3, 4000)
    kept = values[values <= np.quantile(values, 0.99)]
    wanted = np.sqrt((kept**2).mean() / 2 / 0.9535)
    assert noise_level._rayleigh(values) == pytest.approx(wanted) == pytest.approx(3, rel=0.03)
    assert noise_level._rayleigh(values[:249]) is None
    assert noise_level._rayleigh(values[:250]) is not None
    zeros = np.where(np.arange(4000) < 820, 0, values)  # more than a fifth: air was deleted
    assert noise_level._rayleigh(zeros) is None
    for shift, known in ((0.0, True), (-0.7, False), (1.5, False)):
        assert (noise_level._rayleigh(np.abs(values + shift)) is not None) == known


def test_a_block_on_the_voxels_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    part = generator.random((30, 24, 40)).astype(np.float32)
    inside = np.ones(part.shape, bool)
    inside[:3, :, 5:7] = False
    kinds = [("zero-filled", 1.8), ("native", 3.0), ("interpolated", 1.1)]
    monkeypatch.setattr(noise_level, "acquired_resolution", lambda *_: [
        SimpleNamespace(kind=kind, acquired=size, voxel=1.0) for kind, size in kinds
    ])  # fmt: skip
    found, where, sizes, lost, filled = noise_level._measured(part, inside, (1.0, 1.0, 1.0))
    kept = round(30 / 1.8 / 1.06)
    size = 30 / kept
    wanted = np.einsum("ai,ijk->ajk", axis_matrix(30, 1.0, kept, size, Axis("kspace")), part)
    assert found == pytest.approx(wanted, abs=1e-4) and sizes == pytest.approx((size, 1, 1))
    share = np.einsum("ai,ijk->ajk", axis_matrix(30, 1.0, kept, size, Axis("box")), inside * 1.0)
    assert np.array_equal(where, share > 0.99)
    assert lost == pytest.approx(np.sqrt(30 / 1.8 / kept)) and filled == pytest.approx(1 / 1.8)
    kinds[0] = ("zero-filled", 4.0)  # fewer than eight voxels would be left
    same = noise_level._measured(part, inside, (1.0, 1.0, 1.0))
    assert same[0] is part and same[1] is inside and same[2:] == ((1.0, 1.0, 1.0), 1.0, 1.0)


# The acquisition


def test_power_along_lines() -> None:
    data = np.random.default_rng(0).random((6, 7, 20)).astype(np.float32)
    frequency, power = estimate._line_power(data, 2)
    taper = np.hanning(22)[1:-1]
    wanted = np.zeros(10)
    for line in data.reshape(-1, 20):
        wanted += np.abs(np.fft.rfft((line - line.mean()) * taper))[1:] ** 2
    assert power == pytest.approx(wanted / 42 / (taper**2).sum(), rel=1e-3)
    assert frequency == pytest.approx(np.arange(1, 11) / 20)
    turned = estimate._line_power(np.moveaxis(data, 2, 0), 0)[1]
    assert turned == pytest.approx(power, rel=1e-4)
    white = np.random.default_rng(1).normal(0, 3, (40, 40, 32)).astype(np.float32)
    assert estimate._line_power(white, 1)[1].mean() == pytest.approx(9, rel=0.05)


def test_the_power_of_noise_after_overlapping_profiles() -> None:
    matrix = axis_matrix(60, 1.0, 20, 3.0, Axis("gaussian", 1.2))
    assert matrix is not None
    frequency = np.arange(1, 11) / 20
    found = estimate._noise_colour(matrix, frequency)
    noise = np.random.default_rng(0).standard_normal((60, 20_000))
    lines = (matrix @ noise)[2:-2]
    for wave, power in zip(frequency, found, strict=True):
        terms = np.exp(-2j * np.pi * wave * np.arange(16)) * np.hanning(18)[1:-1]
        measured = (np.abs(terms @ lines) ** 2).mean() / (np.hanning(18)[1:-1] ** 2).sum()
        assert measured == pytest.approx(power, rel=0.2, abs=5e-3)


def test_the_fall_of_power_along_an_axis() -> None:
    power = np.random.default_rng(0).uniform(1, 2, (40, 30, 36))
    for axis, count in enumerate(power.shape):
        wave = np.abs(np.fft.fftfreq(count))
        mean = power.mean(axis=tuple(k for k in range(3) if k != axis))
        line = np.log10(np.maximum(mean - 0.9, 0.1 * mean))
        high, low = (wave >= 0.40) & (wave <= 0.49), (wave >= 0.12) & (wave <= 0.22)
        wanted = line[high].mean() - line[low].mean()
        assert estimate._fall(power, axis, np.sqrt(0.9)) == pytest.approx(wanted)
    assert estimate._signal(np.array([5.0, 1.05]), 1.0) == pytest.approx([4.0, 0.105])


# Maps


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 255, np.uint8), (0, 256, np.int16), (-1, 5, np.int16), (-32768, 32767, np.int16),
     (0, 32768, np.int32), (-32769, 0, np.int32)],
)  # fmt: skip
def test_the_smallest_type_of_labels(low: float, high: float, kind: type) -> None:
    assert _small(low, high) is kind


def test_the_share_of_neighbours_that_are_alike() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (6, 7, 5))
    shares = []
    for axis in (0, 1):
        same = pairs = 0
        for place in np.ndindex(labels.shape):
            other = list(place)
            other[axis] += 1
            if other[axis] < labels.shape[axis]:
                pair = labels[place], labels[tuple(other)]
                pairs += any(pair)
                same += pair[0] == pair[1] != 0
        shares.append(same / pairs)
    assert _alike(labels) == pytest.approx(max(shares))
    assert _alike(np.zeros((3, 3, 3))) == 1


@pytest.mark.parametrize(
    ("values", "name", "found"),
    [
        ([0.0, 1.0, 2.0], "x_dseg", [0, 1, 2]), ([0.0, 1.0009, 2.0], "x", [0, 1, 2]),
        ([0.0, 1.002, 2.0], "x", None), ([0.0, 0.5, 1.0], "x", [0, 0.5, 1]),
        ([0.0, 0.5, 1.049], "x", [0, 0.5, 1]), ([0.0, 0.5, 1.051], "x", None),
        ([-0.049, 0.5, 1.0], "x", [0, 0.5, 1]), ([-0.051, 0.5, 1.0], "x", None),
        ([0.0, 0.5, 1.0], "x_dseg", None), ([0.0, 1.0, 2.0], "x_probseg", None),
        ([0.0, 1.0, 1.0], "x_probseg", [0, 1, 1]), ([0.0, np.nan, 2.0], "x", [0, 0, 2]),
        ([np.nan] * 3, "x", None), ([0.0, np.inf, 1.0], "x", None),
        ([0.0, 2.0**31 + 500, 1.0], "x", None), ([0.0, 1e-4, 5e-4], "x", [0, 1e-4, 5e-4]),
    ],
)  # fmt: skip
def test_labels_and_fractions(values: list[float], name: str, found: list[float] | None) -> None:
    data = np.array(values).reshape(3, 1, 1)
    if found is None:
        with pytest.raises(ImageError, match=name):
            _values(data, f"{name}.nii.gz")
        return
    made = _values(data, f"{name}.nii.gz")
    assert made.ravel() == pytest.approx(found, abs=1e-7)
    whole = all(value == int(value) for value in found)
    assert made.dtype == (np.uint8 if whole else np.float32)


def test_an_image_of_intensities_is_no_map_of_labels() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ImageError, match="intensities"):
        _values(generator.integers(1, 5000, (10, 10, 10)), "x")
    few = generator.integers(1, 100, (10, 10, 10))
    assert np.array_equal(_values(few, "x"), few)
    blocks = np.kron(generator.integers(1, 5000, (6, 6, 6)), np.ones((3, 3, 3), int))
    assert np.array_equal(_values(blocks, "x"), blocks)


def test_maps_that_overlap_are_carried_in_several_groups() -> None:
    """The map that causes most of the overlap waits; of equal ones the smallest."""
    one = np.zeros((4, 3, 2), np.float32)
    tissue, other, lesion, spot = (one.copy() for _ in range(4))
    tissue[:2], other[2:], lesion[1:3], spot[0, 0] = 1.0, 1.0, 0.5, 0.2
    groups = _partitions({7: tissue, 2: other, 5: lesion})
    assert groups == [[7, 2], [5]]
    assert _partitions({7: tissue, 2: other}) == [[7, 2]]
    assert _partitions({7: tissue, 2: other, 5: lesion, 1: spot}) == [[7, 2], [5, 1]]
    assert _partitions({7: tissue, 3: tissue}) == [[3], [7]]
    assert _partitions({}) == []


@pytest.mark.parametrize(("away", "fits"), [(0.04, True), (0.06, False)])
def test_a_grid_may_be_off_by_a_twentieth_of_the_finest_voxel(away: float, fits: bool) -> None:
    affine = nib.affines.from_matvec(np.diag([2.0, 1.0, 3.0]), [1, 2, 3])
    for axis, (shape, far) in product(range(3), (((5, 6, 7), False), ((5, 6, 7), True))):
        other = affine.copy()
        if far:  # at the last voxel alone
            other[axis, axis] += away / (shape[axis] - 1)
        else:
            other[axis, 3] -= away
        image: Any = nib.Nifti1Image(np.zeros(shape, np.uint8), other)
        if fits:
            _check_grid(image, shape, affine, "x")
        else:
            with pytest.raises(ImageError, match="mm away"):
                _check_grid(image, shape, affine, "x")
    with pytest.raises(ImageError, match="5 x 6 x 7 and 5 x 7 x 6"):
        _check_grid(image, (5, 7, 6), affine, "x")
