# SPDX-License-Identifier: Apache-2.0
"""The noise that is read from a scan, against what was put into it."""

import numpy as np
import pytest
from scipy import fft, ndimage, stats

from bids_moediff.imaging import noise_level
from bids_moediff.imaging.noise_level import (
    COLOURED,
    NoiseReading,
    _air_colour,
    _air_reading,
    _Corner,
    _corner_axes,
    read_noise,
    rician_share,
)
from bids_moediff.imaging.simulated_filters import (
    FILTERS,
    add_rician_noise,
    filter_kspace,
    kspace_radius,
    window,
)

SHAPE = (104, 112, 96)
ONES = (1.0, 1.0, 1.0)
TOP = 600.0


def head(detail: float = 0.0) -> np.ndarray:
    """A noise-free head in air: fluid, wavy cortex, white matter, shading; partial volumes."""
    x, y, z = (
        axis / (0.42 * size)
        for axis, size in zip(
            np.meshgrid(*[np.arange(n) - n / 2 for n in SHAPE], indexing="ij"), SHAPE, strict=True
        )
    )
    radius = np.sqrt(x**2 + y**2 + z**2)
    wave = 0.06 * np.sin(14 * np.arctan2(y, x)) * np.cos(11 * z)
    data = np.where(radius < 0.95, 120.0, 0.0)
    data[radius < 0.9] = 380.0
    data[radius + wave < 0.76] = TOP
    data[np.sqrt((x / 0.2) ** 2 + (y / 0.4) ** 2 + (z / 0.2) ** 2) < 1] = 120.0
    data += detail * (radius < 0.9) * np.sin(0.8 * TOP * x * y)
    return (ndimage.gaussian_filter(data, 0.6) * (1 + 0.15 * x)).astype(np.float32)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return head()


def slabs() -> np.ndarray:
    """Half of the volume, where it is to hold much fine detail."""
    return np.indices(SHAPE).sum(axis=0) // 24 % 2 == 0


@pytest.fixture(scope="module")
def inside(clean: np.ndarray) -> np.ndarray:
    return clean > 30


@pytest.mark.parametrize("percent", [1.0, 8.0])
@pytest.mark.parametrize("stripped", [False, True])
def test_noise_that_was_added_is_read(clean, inside, percent, stripped):
    sigma = percent / 100 * TOP
    data = add_rician_noise(clean, sigma, 1) * (inside if stripped else 1)
    reading = read_noise(data, ONES, inside)
    assert reading.sigma == pytest.approx(sigma, rel=0.15)
    assert reading.source == ("spectrum" if stripped else "spectrum and air")
    assert abs(reading.sigma - sigma) < 4 * reading.uncertainty


def test_no_noise_is_read_as_none(clean, inside):
    assert read_noise(clean, ONES, inside).sigma < 0.003 * TOP


def test_thick_slices_are_read_in_plane(clean, inside):
    slices = clean[:, :, : 4 * (SHAPE[2] // 4)].reshape(*SHAPE[:2], -1, 4)[..., 1:3].mean(axis=3)
    sigma = 0.03 * TOP
    data = add_rician_noise(slices, sigma, 2)
    reading = read_noise(data, (1.0, 1.0, 4.0), inside[:, :, 1::4])
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_a_few_slices_are_read_in_plane(clean, inside):
    air, sigma = [(0, 0), (20, 20), (20, 20)], 0.03 * TOP
    slab, part = (np.pad(data[52:57], air) for data in (clean, inside))
    reading = read_noise(add_rician_noise(slab, sigma, 2), (4.0, 1.0, 1.0), part)
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_slices_are_left_out_where_the_plane_is_not_square():
    assert _corner_axes((96, 96, 40), (0.86, 0.43, 2.5)) == (0, 1)
    assert _corner_axes((96, 96, 96), (1.0, 1.33, 1.33)) == (0, 1, 2)
    assert _corner_axes((96, 10, 96), (1.0, 1.0, 1.0)) == (0, 2)


def test_flat_tissue_with_fine_anatomy_is_not_taken_for_noise(inside):
    sigma = 0.01 * TOP
    data = add_rician_noise(head(detail=25.0), sigma, 3) * inside
    assert read_noise(data, ONES, inside).sigma == pytest.approx(sigma, rel=0.3)


def test_noise_without_anatomy_is_even(clean, inside):
    added = add_rician_noise(clean, 0.02 * TOP, 4)
    stripped = read_noise(added * inside, ONES, inside)
    assert stripped.even and not stripped.detailed
    assert read_noise(added, ONES, inside).even


def test_the_reading_is_never_less_certain_than_all_of_it(clean, inside):
    """Four fifths of the head hold fine anatomy, which is most of what the middle reading sees."""
    fine = 14 * inside * (np.indices(SHAPE).sum(axis=0) // 24 % 5 != 0)
    fine = clean + fine * np.random.default_rng(8).standard_normal(SHAPE)
    reading = read_noise(add_rician_noise(fine, 3.0, 3) * inside, ONES, inside)
    assert reading.sigma == pytest.approx(3.0, rel=0.5)
    assert 1.0 < reading.uncertainty <= reading.sigma
    assert reading.detailed and not reading.even


def test_zero_filling_empties_the_corner_but_not_the_reading(clean, inside):
    sigma = 0.03 * TOP
    data = add_rician_noise(clean, sigma, 4)
    small = np.fft.fftshift(fft.fftn(data))
    large = np.zeros([2 * n for n in SHAPE], dtype=complex)
    large[tuple(slice(n // 2, n // 2 + n) for n in SHAPE)] = small
    filled = np.abs(fft.ifftn(np.fft.ifftshift(large))).astype(np.float32) * 8
    cut = tuple(slice(n - 60, n + 60) for n in SHAPE)
    mask = np.repeat(np.repeat(np.repeat(inside, 2, 0), 2, 1), 2, 2)
    reading = read_noise(filled[cut], (0.5, 0.5, 0.5), mask[cut])
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_noise_beyond_the_band_of_the_signal_counts(clean, inside):
    """Thick partitions stored finer, then noise on the stored grid: no zero filling."""
    spectrum = fft.fft(clean, axis=2)
    spectrum[:, :, 24:-23] = 0
    soft = np.abs(fft.ifft(spectrum, axis=2)).astype(np.float32)
    sigma = 0.01 * TOP
    data = add_rician_noise(soft, sigma, 10) * inside
    assert read_noise(data, ONES, inside).sigma == pytest.approx(sigma, rel=0.15)


def test_an_elliptical_readout_is_recognised(clean, inside):
    sigma = 0.03 * TOP
    noisy = clean + sigma * np.random.default_rng(5).standard_normal(SHAPE, dtype=np.float32)
    filled = filter_kspace(noisy, "elliptical")
    share = np.mean(kspace_radius(SHAPE) <= 1)
    reading = read_noise(np.where(inside, np.abs(filled), 0), ONES, inside)
    assert reading.sigma == pytest.approx(sigma * np.sqrt(share), rel=0.2)


def test_noise_beyond_a_filtered_signal_is_not_taken_for_an_empty_corner(clean, inside):
    sigma = 0.01 * TOP
    fine = clean + 100 * inside * np.random.default_rng(8).standard_normal(SHAPE).round()
    data = add_rician_noise(filter_kspace(np.where(slabs(), fine, clean), "elliptical"), sigma, 9)
    reading = read_noise(data * inside, ONES, inside)
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_air_that_was_darkened_is_not_believed(clean, inside):
    sigma = 0.03 * TOP
    data = add_rician_noise(clean, sigma, 6)
    data = np.where(ndimage.binary_dilation(inside, iterations=3), data, 0.3 * data)
    reading = read_noise(data, ONES, inside)
    assert reading.source == "spectrum"
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_noise_that_k_space_filtering_hid_is_read_in_the_air(clean, inside):
    sigma = 0.03 * TOP
    random = np.random.default_rng(7)
    parts = [
        filter_kspace(sigma * random.standard_normal(SHAPE, dtype=np.float32), "hann")
        for _ in range(2)
    ]
    reading = read_noise(np.hypot(clean + parts[0], parts[1]), ONES, inside)
    assert reading.sigma == pytest.approx(parts[0].std(), rel=0.2)


def test_dark_tissue_in_the_corners_of_a_block_is_no_air(clean, inside):
    """A block out of a head has no air; uneven dark tissue would look like filtered noise."""
    sigma = 0.03 * TOP
    uneven = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(SHAPE), 1.2)
    dark = np.where(inside, clean, 200 + 40 * uneven / uneven.std()).astype(np.float32)
    reading = read_noise(add_rician_noise(dark, sigma, 1), ONES, inside)
    assert reading.sigma == pytest.approx(sigma, rel=0.15)


def test_air_is_read_to_one_per_cent_and_only_where_its_regions_agree():
    """The loudest hundredth of the air is left out, which would read 2 % too little."""
    air = np.random.default_rng(5).rayleigh(7, (96, 96, 96)).astype(np.float32)
    head = np.zeros(air.shape, bool)
    head[40:56, 40:56, 40:56] = True
    assert _air_reading(air, ONES, head) == pytest.approx(7, rel=0.01)
    air[48:] *= 1.2
    assert _air_reading(air, ONES, head) is not None
    air[48:] *= 1.25
    assert _air_reading(air, ONES, head) is None


def test_an_image_without_head_has_no_noise_to_read():
    reading = read_noise(np.zeros((20, 20, 20)), ONES)
    assert (reading.sigma, reading.source) == (0.0, "none")


def test_rician_share_has_its_limits():
    assert rician_share(np.array([0.0]))[0] == pytest.approx(2 - np.pi / 2)
    assert rician_share(np.array([30.0]))[0] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_passes_the_middle_of_k_space(name):
    values = window(name, np.linspace(0, 1.7, 50))
    assert values[0] == pytest.approx(1, abs=1e-6)
    assert (np.diff(values) <= 1e-6).all()
    constant = np.full((8, 9, 10), 3.0)
    assert np.allclose(filter_kspace(constant, name), 3.0, atol=1e-4)


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="unknown k-space filter"):
        window("welch", np.zeros(3))


def test_rician_share_is_the_variance_of_scipys_distribution():
    ratios = np.array([0.3, 1.0, 2.0, 6.0])
    assert rician_share(ratios) == pytest.approx(stats.rice.var(ratios), rel=1e-6)


@pytest.mark.parametrize(("width", "coloured"), [(0.0, False), (0.2, False), (0.6, True)])
def test_air_counts_as_coloured_only_beyond_chance(width, coloured):
    noise = np.random.default_rng(1).standard_normal((2, 64, 64, 64)).astype(np.float32)
    air = np.hypot(*(ndimage.gaussian_filter(part, width) for part in noise))
    found = _air_colour(air, np.zeros(air.shape, dtype=bool), (0, 1, 2))
    assert found > COLOURED if coloured else found == 1.0


@pytest.mark.parametrize(
    ("corner", "air", "colour", "expected"),
    [
        (None, None, 1.0, NoiseReading(3.0, "tissue", 1.5)),
        (None, 4.0, 1.0, NoiseReading(4.0, "air", 0.6)),
        ((10, 10.2, True), None, 1.0, NoiseReading(10, "spectrum", 0.5, True)),
        ((10, 11, True), None, 1.0, NoiseReading(10, "spectrum", 1.0)),
        ((10, 13, True), None, 1.0, NoiseReading(10, "spectrum", 3.0, False, True)),
        ((10, 30, True), None, 1.0, NoiseReading(10, "spectrum", 10.0, False, True)),
        ((10, 10.2, True), 11.0, 1.0, NoiseReading(10, "spectrum and air", 1.0, True)),
        ((10, 13, True), 9.9, 1.0, NoiseReading(10, "spectrum and air", 0.5)),
        # Dark air: of one level in the tissue it was suppressed, beside detail it is right.
        ((10, 10.2, True), 7.0, 1.0, NoiseReading(10, "spectrum", 2.5, True)),
        ((10, 13, True), 7.0, 1.0, NoiseReading(7, "air", 1.5)),
        ((10, 13, True), 9.0 / 1.2, 1.0, NoiseReading(7.5, "air", 1.25)),
        ((10, 10.2, False), 7.0, 3.0, NoiseReading(7, "air", 1.5)),
        # Loud air: a corner that a filter emptied tells nothing, a full one does.
        ((10, 10.2, True), 40.0, 1.0, NoiseReading(10, "spectrum", 2.5, True)),
        ((10, 10.2, True), 20.0, 2.0, NoiseReading(20, "spectrum and air", 1.0, True)),
        ((10, 10.2, True), 60.0, 3.0, NoiseReading(60, "air", 15.0)),
    ],
)
def test_what_counts_where_readings_differ(corner, air, colour, expected, monkeypatch):
    found = None if corner is None else _Corner(corner[0], corner[1], (0, 1, 2), corner[2])
    monkeypatch.setattr(noise_level, "_corner_reading", lambda *_: found)
    monkeypatch.setattr(noise_level, "_air_reading", lambda *_: air)
    monkeypatch.setattr(noise_level, "_air_colour", lambda *_: colour)
    monkeypatch.setattr(noise_level, "tissue_noise", lambda *_: 3.0)
    read = read_noise(np.ones((8, 8, 8)), ONES, np.ones((8, 8, 8), bool))
    assert read.sigma == pytest.approx(expected.sigma)
    assert read.uncertainty == pytest.approx(expected.uncertainty)
    assert (read.source, read.even, read.detailed) == (
        expected.source, expected.even, expected.detailed,
    )  # fmt: skip
    if corner is None and air is None:
        monkeypatch.setattr(noise_level, "tissue_noise", lambda *_: None)
        none = read_noise(np.ones((8, 8, 8)), ONES, np.ones((8, 8, 8), bool))
        assert none == NoiseReading(0.0, "none", 0.0)


def test_ghosts_within_a_centimetre_of_the_head_are_no_air():
    """Twenty voxels of half a millimetre."""
    air = np.random.default_rng(6).rayleigh(7, (96, 96, 96)).astype(np.float32)
    head = np.zeros(air.shape, bool)
    head[40:56, 40:56, 40:56] = True
    zooms = (0.5, 0.5, 0.5)
    near = ndimage.distance_transform_edt(~head) < 14
    with_ghosts = np.where(near, 3 * air, air)
    assert _air_reading(with_ghosts, zooms, head) == _air_reading(air, zooms, head) is not None
    assert _air_reading(np.where(near, air, 0), zooms, head) is None


@pytest.mark.parametrize(("filled", "beyond", "lost"), [(0.8, 2.0, 1.2), (0.25, 3.0, 1.0)])
def test_noise_beyond_the_band_counts_by_the_share_that_is_not_filled(
    monkeypatch, filled, beyond, lost
):
    part, inside = np.zeros((4, 4, 4)), np.ones((4, 4, 4), bool)
    monkeypatch.setattr(noise_level, "_middle", lambda data, head: (part, inside))
    monkeypatch.setattr(
        noise_level,
        "_measured",
        lambda *_: (np.ones((2, 2, 2)), inside, (2.0, 1.0, 1.0), lost, filled),
    )
    readings = {
        2: noise_level._Corner(5.0, 6.0, (0,), True),
        4: noise_level._Corner(beyond, 9.0, (1,), True),
    }
    monkeypatch.setattr(noise_level, "_flat_reading", lambda data, *_: readings[len(data)])
    found = noise_level._corner_reading(part, (1.0, 1.0, 1.0), inside)
    added = (1 - filled) * beyond**2
    assert (found.low, found.middle) == pytest.approx(
        (np.sqrt((5 * lost) ** 2 + added), np.sqrt((6 * lost) ** 2 + added))
    )
    assert (found.axes, found.white) == ((0,), False)
