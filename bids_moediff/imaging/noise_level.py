# SPDX-License-Identifier: Apache-2.0
"""Estimate the noise of a scan where noise is alone: in the corner of k-space and in the air.

Three readings, each with images where it fails:

* **spectrum**: the part of the image at the highest frequencies of all axes at once, in flat
  tissue (the idea of Coupé et al., Medical Image Analysis 14:483-493, 2010). It fails if the
  readout left the corner empty, and reads high if anatomy reaches the corner;
* **air**: noise is Rayleigh distributed there (Gudbjartsson and Patz, Magnetic Resonance in
  Medicine 34:910-914, 1995). It fails if the air was set to zero, filtered, or is full of ghosts;
* **tissue**: the local residual in flat tissue, which reads fine anatomy as noise.

Two that agree confirm each other. If they differ, the image decides which one counts.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
from scipy import fft, ndimage, special

from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.grid import steps_to
from bids_moediff.imaging.masks import distance_to, head_mask_array
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.separable import along_axes
from bids_moediff.imaging.spectrum import LEAST_FACTOR, acquired_resolution

SIDE = 96  # voxels of the middle of the head that are looked at
TAPS = 7  # of the high-pass filter along each axis: sine to the sixth power of the frequency
SPREAD = 1.5  # voxels, of the window in which energies are averaged
FLAT_SHARE = 0.15
QUANTILE = 0.1  # of the energies of flat tissue: anatomy can only add to them
CONTAMINATED = 1.2  # middle over low reading; white noise of one level has 1
# The same on heads: 1.01 to 1.04 where soft anatomy leaves the corner to the noise, 1.09 and more
# without added noise.
EVEN = 1.045
AGREEMENT = 1.25
KEPT = 1 / 1.06  # of a band that ends early: where it ends is known to some hundredths
THICK = 1.5  # axes with voxels larger than this many times the second finest hold no corner
EMPTY_CORNER = 0.2  # power beyond the ellipsoid over power before it
ELLIPSOID_BOUND = 1.6
COLOURED, EMPTIED = 1.25, 2.5  # white noise has 1
FEWEST_VOXELS = 200
# Rayleigh noise without its brightest hundredth: half its mean square over sigma squared, and its
# mean over its deviation, with what may pass for it (ghosts and several coils leave the range).
TRIMMED_POWER = 0.9535
RAYLEIGH_SHAPE = (1.7, 2.3)
AIR_REGION_VOXELS = 250


@dataclass(frozen=True)
class NoiseReading:
    """Standard deviation of the noise of one image.

    ``sigma`` and ``uncertainty`` (one standard deviation) are in the units of the image.
    ``source`` is "spectrum and air", "spectrum", "air", "tissue" or "none" (not readable: sigma is
    0). ``even``: flat tissue shows one level of it, so hardly any of it is anatomy;
    ``detailed``: much of it is.
    """

    sigma: float
    source: str
    uncertainty: float
    even: bool = False
    detailed: bool = False


def read_noise(
    data: np.ndarray, zooms: tuple[float, float, float], head: np.ndarray | None = None
) -> NoiseReading:
    """Return the noise of a scan.

    Parameters
    ----------
    data
        (x, y, z) magnitude image, any units.
    zooms
        Voxel sizes in mm.
    head
        (x, y, z) boolean head mask; by default it is computed. A brain mask works as well, but
        then all voxels outside it count as air.

    Returns
    -------
    NoiseReading
        In the units of ``data``. If a scanner filtered k-space and no air was kept, the spectrum
        sees less noise than there is.
    """
    data = np.nan_to_num(np.asarray(data, dtype=np.float32))
    if head is None:
        head = head_mask_array(data, zooms)
    if not head.any():
        return NoiseReading(0.0, "none", 0.0)
    found, air = _corner_reading(data, zooms, head), _air_reading(data, zooms, head)
    if found is None and air is None:
        sigma = tissue_noise(data, head)
        return NoiseReading(sigma or 0.0, "tissue" if sigma else "none", 0.5 * (sigma or 0.0))
    if found is None:
        assert air is not None
        return NoiseReading(air, "air", 0.15 * air)
    colour = _air_colour(data, head, found.axes) if found.white else 1.0
    low, middle = found.low * colour, found.middle * colour
    doubt = max(0.05 * low, min(middle - low, low))
    even, detailed = middle < EVEN * low, middle > CONTAMINATED * low
    if air is None:
        return NoiseReading(low, "spectrum", doubt, even, detailed)
    if max(air, low) <= AGREEMENT * min(air, low):
        return NoiseReading(low, "spectrum and air", max(0.05 * low, abs(air - low)), even)
    # Anatomy can only add to the spectrum; but air may be dark because it was suppressed, and
    # then tissue shows noise of one level. A corner that a filter emptied tells nothing.
    anatomy = detailed or not found.white  # a band that ends early is full
    if (air < low and anatomy) or (air > low and colour > EMPTIED):
        return NoiseReading(air, "air", max(0.1 * air, 0.5 * abs(low - air)))
    return NoiseReading(low, "spectrum", max(doubt, 0.25 * low), even, detailed)


def rician_share(ratio: np.ndarray) -> np.ndarray:
    """Return the variance of a magnitude over that of its complex noise.

    It rises from 0.43 in air to 1 in bright tissue.

    Parameters
    ----------
    ratio
        Signal over noise, any shape.

    References
    ----------
    Koay and Basser, Journal of Magnetic Resonance 179:317-322, 2006, equation 11.
    """
    ratio = np.minimum(ratio, 37.0)
    half = ratio**2 / 4
    bessel = (2 + ratio**2) * special.ive(0, half) + ratio**2 * special.ive(1, half)
    return 2 + ratio**2 - np.pi / 8 * bessel**2


@dataclass(frozen=True)
class _Corner:
    """Low and middle reading of the energies at high frequencies of ``axes`` in flat tissue.

    ``white``: whether the whole of k-space was taken as filled, as by white noise.
    """

    low: float
    middle: float
    axes: tuple[int, ...]
    white: bool


def _corner_reading(
    data: np.ndarray, zooms: tuple[float, float, float], head: np.ndarray
) -> _Corner | None:
    """Read flat tissue in the middle of the head; return None without tissue."""
    part, inside = _middle(data, head)
    reduced, where, sizes, lost, filled = _measured(part, inside, zooms)
    found = _flat_reading(reduced, where, sizes)
    if found is None or sizes == tuple(zooms):
        return found
    # What lies beyond the band that holds signal: nothing after zero filling, but noise if the
    # signal alone ends there.
    beyond = _flat_reading(part, inside, zooms)
    added = 0.0 if beyond is None else (1 - filled) * beyond.low**2
    low, middle = (np.sqrt((lost * each) ** 2 + added) for each in (found.low, found.middle))
    return _Corner(float(low), float(middle), found.axes, white=False)


def _flat_reading(
    part: np.ndarray, inside: np.ndarray, sizes: tuple[float, ...]
) -> _Corner | None:
    """Read the flat tissue of a block with voxels of ``sizes`` mm."""
    axes = _corner_axes(part.shape, sizes)
    smooth = ndimage.gaussian_filter(part, 1.5)
    steep = np.sqrt(sum(np.square(step) for step in np.gradient(smooth)))
    reach = [5 if size > 20 else 3 for size in part.shape]
    inner = ndimage.minimum_filter(inside, size=reach) if inside.any() else inside
    usable = inner & (smooth > 0.2 * np.percentile(part[inside], 90)) if inner.any() else inner
    if usable.sum() < FEWEST_VOXELS:
        return None
    usable &= steep <= np.quantile(steep[usable], FLAT_SHARE)
    energy = ndimage.gaussian_filter(np.square(_high_pass(part, axes)), SPREAD)[usable]
    signal = np.square(smooth[usable])
    low, middle = _levels(energy, signal, _white(axes, ellipsoid=False))
    white = True
    if _empty(part, axes):
        # An empty corner, or noise in it beside much anatomy? Flat tissue's residual is a bound.
        bound = tissue_noise(part, inside)
        found = _levels(energy, signal, _white(axes, ellipsoid=True))
        if bound is not None and found[0] <= ELLIPSOID_BOUND * bound:
            low, middle, white = *found, False
    return _Corner(low, max(low, middle), axes, white)


def _levels(
    energy: np.ndarray, signal: np.ndarray, expected: tuple[float, float]
) -> tuple[float, float]:
    """Return low and middle reading of energies (n,) at squared signals (n,) over white noise."""
    found = []
    for quantile, of_white in zip((QUANTILE, 0.5), expected, strict=True):
        sigma = float(np.sqrt(np.quantile(energy, quantile) / of_white))
        for _ in range(4):  # dark tissue: the magnitude varies less than its noise
            ratio = np.sqrt(np.maximum(signal - sigma**2, 0)) / max(sigma, 1e-12)
            share = np.quantile(energy / rician_share(ratio), quantile)
            sigma = float(np.sqrt(share / of_white))
        found.append(sigma)
    return found[0], found[1]


def _middle(data: np.ndarray, head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the middle of the head, and its measured voxels."""
    inside = head & (data != 0)
    if not inside.any():
        inside = head
    box = []
    for axis, size in enumerate(data.shape):
        others = tuple(other for other in range(3) if other != axis)
        weight = inside.sum(axis=others)
        centre = int((weight * np.arange(size)).sum() / weight.sum())
        length = min(size, SIDE)
        start = int(np.clip(centre - length // 2, 0, size - length))
        box.append(slice(start, start + length))
    return np.ascontiguousarray(data[tuple(box)]), inside[tuple(box)]


def _measured(
    part: np.ndarray, inside: np.ndarray, zooms: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], float, float]:
    """Return the block on the voxels that were measured, if the spectrum shows interpolation.

    Further results are the voxel sizes, the noise of the measured band over that of the part kept,
    and the share of k-space that the band covers.
    """
    matrices, masks, sizes, lost, filled = [], [], [], 1.0, 1.0
    for axis, zoom, count in zip(
        acquired_resolution(part, zooms, inside), zooms, part.shape, strict=True
    ):
        factor = axis.acquired / axis.voxel if axis.kind in ("zero-filled", "interpolated") else 1
        kept = round(count / factor * KEPT)
        if factor < LEAST_FACTOR or kept < 8:
            kept = count
        else:
            lost *= count / factor / kept
            filled /= factor
        size = zoom * count / kept
        matrices.append(_float32(axis_matrix(count, zoom, kept, size, Axis("kspace"))))
        masks.append(_float32(axis_matrix(count, zoom, kept, size, Axis("box"))))
        sizes.append(size)
    if all(matrix is None for matrix in matrices):
        return part, inside, tuple(sizes), 1.0, 1.0
    share = along_axes(inside.astype(np.float32), masks)
    reduced = np.ascontiguousarray(along_axes(part, matrices))
    return reduced, share > 0.99, tuple(sizes), float(np.sqrt(lost)), filled


def _float32(matrix: np.ndarray | None) -> np.ndarray | None:
    return None if matrix is None else matrix.astype(np.float32)


def _corner_axes(shape: tuple[int, ...], zooms: tuple[float, ...]) -> tuple[int, ...]:
    """Return the axes whose highest frequencies are read: distant slices alias anatomy there."""
    long = [axis for axis in range(3) if shape[axis] >= 2 * TAPS]
    if len(long) < 2:
        return (0, 1, 2)
    order = sorted(long, key=lambda axis: zooms[axis])
    return tuple(sorted(axis for axis in order if zooms[axis] < THICK * zooms[order[1]]))


def _high_pass(data: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Apply a binomial high-pass filter along ``axes``; white noise keeps its variance."""
    taps = np.array([(-1) ** k * comb(TAPS - 1, k) for k in range(TAPS)], dtype=np.float32)
    taps /= np.sqrt(np.square(taps).sum())
    for axis in axes:
        data = ndimage.convolve1d(data, taps, axis=axis, mode="nearest")
    return data


def _radius(shape: tuple[int, ...], axes: tuple[int, ...]) -> np.ndarray:
    """Return the distance from the axis (or centre) of k-space, 1 at Nyquist; rfftn layout."""
    total = np.zeros((1, 1, 1), dtype=np.float32)
    for axis in axes:
        count = shape[axis]
        frequency = np.fft.rfftfreq(count) if axis == 2 else np.fft.fftfreq(count)
        form = [1, 1, 1]
        form[axis] = -1
        total = total + np.square(2 * frequency).reshape(form)
    return np.sqrt(total)


def _empty(part: np.ndarray, axes: tuple[int, ...]) -> bool:
    """Return True if the readout filled an ellipsoid only: power drops sharply at its surface."""
    power = np.square(np.abs(fft.rfftn(part)))
    radius = np.broadcast_to(_radius(part.shape, axes), power.shape)
    away = np.ones((1, 1, 1), dtype=bool)  # from the planes where the block's faces leak
    for axis in axes:
        single = _radius(part.shape, (axis,))
        away = away & (single > 0.25) & (single < 0.95)
    away = np.broadcast_to(away, power.shape)
    before = power[away & (radius > 0.85) & (radius < 0.95)]
    beyond = power[away & (radius > 1.05) & (radius < 1.15)]
    if not len(before) or not len(beyond):
        return False
    return bool(np.median(beyond) < EMPTY_CORNER * np.median(before))


@lru_cache(maxsize=16)
def _white(axes: tuple[int, ...], ellipsoid: bool) -> tuple[float, float]:
    """Return the low and middle quantile of the energies of white noise of variance 1."""
    noise = np.random.default_rng(0).standard_normal((64, 64, 64), dtype=np.float32)
    if ellipsoid:
        spectrum = fft.rfftn(noise)
        spectrum *= _radius(noise.shape, axes) <= 1
        noise = fft.irfftn(spectrum, s=noise.shape)
        noise /= noise.std()
    energy = ndimage.gaussian_filter(np.square(_high_pass(noise, axes)), SPREAD)
    low, middle = np.quantile(energy[8:-8, 8:-8, 8:-8], (QUANTILE, 0.5))
    return float(low), float(middle)


def _air_reading(
    data: np.ndarray, zooms: tuple[float, float, float], head: np.ndarray
) -> float | None:
    """Return the Rayleigh scale of the air, or None if it was changed or its regions disagree."""
    # Every other voxel of a fine grid: enough of them, and the distance is eight times cheaper.
    steps = steps_to(zooms, 2.0)
    part = tuple(slice(None, None, step) for step in steps)
    coarse = data[part]
    sampling = [zoom * step for zoom, step in zip(zooms, steps, strict=True)]
    air = distance_to(head[part], sampling) > 10
    regions = [_rayleigh(coarse[octant][air[octant]]) for octant in _octants(coarse.shape)]
    known = [region for region in regions if region is not None]
    if len(known) < 2:
        return None
    low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
    return float(middle) if high < 1.3 * low else None


def _air_colour(data: np.ndarray, head: np.ndarray, axes: tuple[int, ...]) -> float:
    """Return the deviation of the air over that expected from its high frequencies; at least 1.

    A filter of k-space removes noise from the corner; the air shows how much of it. Only corners
    of the scan count whose voxels are distributed as air.
    """
    found = []
    sides = [max(2 * TAPS, min(32, size // 4)) for size in data.shape]
    corners = [
        ((0, side), (size - side, size)) for side, size in zip(sides, data.shape, strict=True)
    ]
    for x in corners[0]:
        for y in corners[1]:
            for z in corners[2]:
                block = (slice(*x), slice(*y), slice(*z))
                if head[block].any() or _rayleigh(data[block].ravel()) is None:
                    continue  # dark tissue is no air either
                found.append(_colour(data[block], axes))
    if len(found) < 2:
        return 1.0
    colour = float(np.median(found)) / _white_colour(axes)
    return colour if colour > COLOURED else 1.0


def _colour(block: np.ndarray, axes: tuple[int, ...]) -> float:
    """Return the local deviation over that at high frequencies, where the air is quietest."""
    block = block.astype(np.float64)
    total = ndimage.gaussian_filter(block**2, SPREAD) - ndimage.gaussian_filter(block, SPREAD) ** 2
    corner = ndimage.gaussian_filter(np.square(_high_pass(block, axes)), SPREAD)
    # Away from the ends that the filter has; short axes are not filtered.
    inner = tuple(slice(3, -3) if size >= 2 * TAPS else slice(None) for size in block.shape)
    low = [np.quantile(energy[inner], 0.25) for energy in (total, corner)]
    return float(np.sqrt(low[0] / max(low[1], 1e-12)))


@lru_cache(maxsize=8)
def _white_colour(axes: tuple[int, ...]) -> float:
    """Return the value of :func:`_colour` for white noise."""
    return _colour(np.random.default_rng(1).rayleigh(size=(48, 48, 48)), axes)


def _octants(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    halves = [(slice(0, size // 2), slice(size // 2, size)) for size in shape]
    return [(x, y, z) for x in halves[0] for y in halves[1] for z in halves[2]]


def _rayleigh(values: np.ndarray) -> float | None:
    """Return the scale of Rayleigh noise, or None for too few values or another distribution."""
    if len(values) < AIR_REGION_VOXELS or np.mean(values == 0) > 0.2:
        return None
    kept = values[values <= np.quantile(values, 0.99)].astype(np.float64)
    deviation = kept.std()
    if deviation <= 0 or not RAYLEIGH_SHAPE[0] < kept.mean() / deviation < RAYLEIGH_SHAPE[1]:
        return None
    return float(np.sqrt(np.mean(kept**2) / 2 / TRIMMED_POWER))
