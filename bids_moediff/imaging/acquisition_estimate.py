# SPDX-License-Identifier: Apache-2.0
"""Estimate the acquisition from the scan: width of the slices, filter of k-space.

Slices: anatomy has much the same spectrum along all axes. So the spectrum along the slice axis is
compared with that of an axis in plane on which each width was simulated, aliasing included. The
third axis is made as coarse for both, so that all lines run through slabs of equal shape.

K-space: the spectrum of anatomy falls alike in all heads. A filter makes it fall faster along the
axes (Hann, Gaussian) or in the corners alone (ellipsoid, Fermi).
"""

from dataclasses import dataclass

import numpy as np
from scipy import fft

from bids_moediff.imaging.acquisition import Axis, axis_matrix
from bids_moediff.imaging.separable import along_axes

REACH = 112.0  # mm of the middle of the head that are looked at
REFERENCE_WIDTH = 0.6  # of the Gaussian slices that a scan is compared with
FEWEST_SLICES = 16
THICKER = 1.4  # than the wider side of a pixel
# Bands in cycles per voxel: what both spectra are matched in, and what is compared.
LOW, HIGH = (0.05, 0.22), (0.28, 0.5)
# Falls of axes behind one filter differ by 0.1 to 0.2. An axis that falls by more was soft before.
UNEVEN = 0.25


def read_slices(
    data: np.ndarray,
    zooms: tuple[float, float, float],
    head: np.ndarray,
    sigma: float,
    width: float = REFERENCE_WIDTH,
) -> float | None:
    """Compare the fine detail along the slice axis with that of Gaussian slices of ``width``.

    Parameters
    ----------
    data
        (x, y, z) on the voxels that were measured.
    zooms
        Voxel sizes in mm; slices lie along the largest.
    head
        (x, y, z) boolean, where to look.
    sigma
        Standard deviation of the noise.
    width
        Width of the Gaussian profile, in units of the slice distance.

    Returns
    -------
    float or None
        Natural logarithm of a power ratio: below 0 for slices that are wider. None if there are
        too few slices, if they are hardly thicker than the voxels in plane, or without contrast.
    """
    axis = int(np.argmax(zooms))
    part = _middle(data, zooms, head)
    if part.shape[axis] < FEWEST_SLICES or zooms[axis] < THICKER * sorted(zooms)[1]:
        return None
    planes = [other for other in range(3) if other != axis]
    found = [
        _difference(part, zooms, (axis, along, across), width, sigma)
        for along, across in (planes, planes[::-1])
    ]
    reading = float(np.mean(found))
    return reading if np.isfinite(reading) else None


def _difference(
    part: np.ndarray,
    zooms: tuple[float, float, float],
    axes: tuple[int, int, int],
    width: float,
    sigma: float,
) -> float:
    """Return mean log power of the slice axis over that of an axis in plane made as coarse."""
    axis, along, across = axes
    profile = Axis("gaussian", width)
    spectra = []
    for coarse, line in ((across, axis), (along, along)):
        count = int(part.shape[coarse] * zooms[coarse] / zooms[axis])
        matrix = axis_matrix(part.shape[coarse], zooms[coarse], count, zooms[axis], profile)
        assert matrix is not None
        matrices = [None if k != coarse else matrix.astype(np.float32) for k in range(3)]
        frequency, power = _line_power(along_axes(part, matrices), line)
        noise = sigma**2 * np.square(matrix[count // 2]).sum()
        if coarse == line:  # overlapping profiles colour the noise
            noise = sigma**2 * _noise_colour(matrix, frequency)
        with np.errstate(divide="ignore"):
            spectra.append(np.log(np.maximum(power - noise, 0.05 * power)))
    high, low = _band(frequency, HIGH), _band(frequency, LOW)
    grid = frequency
    first = np.interp(grid, _line_frequency(part.shape[axis]), spectra[0])
    difference = first - spectra[1]
    with np.errstate(invalid="ignore"):
        return float(difference[high].mean() - difference[low].mean())


def _line_frequency(count: int) -> np.ndarray:
    return np.fft.rfftfreq(count)[1:]


def _line_power(data: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean power along ``axis`` without its mean; white noise has its variance."""
    count = data.shape[axis]
    form = [1, 1, 1]
    form[axis] = -1
    taper = np.hanning(count + 2)[1:-1].astype(np.float32)
    lines = data - data.mean(axis=axis, keepdims=True)
    power = np.square(np.abs(fft.rfft(lines * taper.reshape(form), axis=axis)))
    others = tuple(other for other in range(3) if other != axis)
    return _line_frequency(count), power.mean(axis=others)[1:] / np.square(taper).sum()


def _noise_colour(matrix: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Return the power of unit white noise after ``matrix``, by cycles per coarse voxel."""
    middle = matrix.shape[0] // 2
    covariance = matrix @ matrix[middle]
    lag = np.arange(matrix.shape[0]) - middle
    return np.clip(np.cos(2 * np.pi * frequency[:, None] * lag) @ covariance, 0, None)


def _band(frequency: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (frequency >= limits[0]) & (frequency <= limits[1])


def _middle(data: np.ndarray, zooms: tuple[float, float, float], head: np.ndarray) -> np.ndarray:
    """Return the middle REACH mm of the head."""
    box = []
    for axis, (size, zoom) in enumerate(zip(data.shape, zooms, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        weight = head.sum(axis=others)
        centre = int((weight * np.arange(size)).sum() / max(weight.sum(), 1))
        length = min(size, int(REACH / zoom))
        start = int(np.clip(centre - length // 2, 0, size - length))
        box.append(slice(start, start + length))
    return np.ascontiguousarray(data[tuple(box)], dtype=np.float32)


@dataclass(frozen=True)
class KspaceFigures:
    """How the power spectrum of a scan falls, in powers of ten.

    ``fall``: from .12-.22 to .40-.49 cycles per voxel, mean of the axes; ``corner``: from the
    ends of the axes' band to the corners of k-space. Noise is taken off. ``axes``: those that
    were read, which fall alike.
    """

    fall: float
    corner: float
    axes: tuple[int, ...] = (0, 1, 2)


def read_kspace(
    data: np.ndarray,
    zooms: tuple[float, float, float],
    head: np.ndarray,
    sigma: float,
    axes: tuple[int, ...] = (0, 1, 2),
) -> KspaceFigures | None:
    """Measure the fall of a scan's power along ``axes`` and towards the corner between them.

    Parameters
    ----------
    data, zooms, head, sigma
        As for :func:`read_slices`.
    axes
        Fourier-encoded axes.

    Returns
    -------
    KspaceFigures or None
        None if an axis has fewer than 16 voxels, or if fewer than two axes fall alike.
    """
    part = _middle(data, zooms, head)
    if min(part.shape[axis] for axis in axes) < FEWEST_SLICES:
        return None
    taper = np.ones((1, 1, 1), dtype=np.float32)
    for axis, count in enumerate(part.shape):
        form = [1, 1, 1]
        form[axis] = -1
        taper = taper * np.hanning(count + 2)[1:-1].reshape(form).astype(np.float32)
    part = (part - (part * taper).sum() / taper.sum()) * taper
    power = np.square(np.abs(fft.fftn(part))) / np.square(taper).sum()
    falls = {axis: _fall(power, axis, sigma) for axis in axes}
    alike = tuple(axis for axis in axes if falls[axis] > max(falls.values()) - UNEVEN)
    if len(alike) < 2:
        return None
    radius = np.zeros((1, 1, 1))
    for axis in alike:
        form = [1, 1, 1]
        form[axis] = -1
        radius = radius + np.square(2 * np.fft.fftfreq(part.shape[axis])).reshape(form)
    radius = np.broadcast_to(np.sqrt(radius), power.shape)
    before = _signal(power[(radius > 0.75) & (radius < 0.95)].mean(), sigma)
    beyond = _signal(power[(radius > 1.1) & (radius < 1.35)].mean(), sigma)
    fall = float(np.mean([falls[axis] for axis in alike]))
    return KspaceFigures(fall, float(np.log10(beyond / before)), alike)


def _fall(power: np.ndarray, axis: int, sigma: float) -> float:
    """Return the fall of a power spectrum (x, y, z) along one axis, in powers of ten."""
    others = tuple(other for other in range(3) if other != axis)
    frequency = np.abs(np.fft.fftfreq(power.shape[axis]))
    line = np.log10(_signal(power.mean(axis=others), sigma))
    return float(
        line[_band(frequency, (0.40, 0.49))].mean() - line[_band(frequency, (0.12, 0.22))].mean()
    )


def _signal(power: np.ndarray, sigma: float) -> np.ndarray:
    """Return power minus that of the noise; some is left, as the noise is known to a tenth."""
    return np.maximum(power - sigma**2, 0.1 * power)
