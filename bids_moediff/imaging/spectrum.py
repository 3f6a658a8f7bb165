# SPDX-License-Identifier: Apache-2.0
"""Measure the true resolution of a scan: power spectra inside the brain, per voxel axis.

The voxel size in a header says how an image is *stored*, not how it was measured. Scanners double
matrices by zero filling, and tools resample. Both leave marks along the axis that they changed:

* zero filling and smooth interpolation empty the upper part of the spectrum: the power drops by
  two or more orders of magnitude at a cut-off and stays low, which the low-pass filters of a
  scanner do not do;
* interpolation by linear or cubic kernels makes the local sharpness periodic, because samples
  near a measured voxel are sharper than samples between two (Gallagher, Detection of linear and
  cubic interpolation in JPEG compressed images, Canadian Conf. Computer and Robot Vision, 2005).

Soft anatomy leaves similar marks. So a spectrum that goes on falling is not empty, and an axis was
interpolated by a kernel only if splines on the coarser voxels reproduce the scan.

Spectra are Welch averages over pieces of voxel lines that lie wholly inside the brain. So neither
the edge of a skull-stripped or defaced image nor the air around the head enters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_moediff.imaging.masks import bounding_box, open_cubes
from bids_moediff.imaging.spline_fit import middle_of_lines, spline_misfit

# Thresholds in decibels and in units of the median, set on the shared heads (see docs/quality.md):
# scanner low-pass filters reach 12 dB and 17 dB, genuine zero filling starts at 15 dB and 20 dB.
STEP_DECIBEL = 14.0
WIDE_STEP_DECIBEL = 17.9
PERIODICITY_RATIO = 7.0
SEGMENT_LENGTHS = (64, 48, 32, 24, 16)
FEWEST_SEGMENTS = 300
MOST_SEGMENTS = 6000
LEAST_FACTOR = 1.15  # smaller differences are within the accuracy of the cut-off
LARGEST_FACTOR = 9.0  # of interpolation that is looked for: slices of 8 mm on voxels of 1 mm
# An image whose spectrum is empty from earlier on is smooth, not zero-filled.
LARGEST_FILL = 5.0
ROUNDED = 0.98  # a period is known to a hundredth
# What lies above the acquired band, in decibels against the last fifth of it: linear and cubic
# kernels leave -15 to -3; above this, detail would be lost, so the period was found by chance.
LOST_DECIBEL = -2.5
FEWEST_IMAGE_BINS = 6
IMAGE_DECIBEL = 3.0  # zero filling leaves 3.5 or more, cubic interpolation 2.4 or less
# Power beyond a cut-off is noise that was measured there if it is this level (least over largest,
# in the upper half of what is beyond) and has this share of the lowest power of another axis.
# White noise that was added had 0.93 and 0.25; interpolated scans had 0.75, or 0.11, at the most.
LEVEL_NOISE, NOISE_SHARE = 0.85, 0.15
# Decibels that the spectrum loses in the upper half of what is beyond a cut-off, over those of the
# lower half: 0.4 at the most where zeros were filled in, 0.8 and more on soft heads.
SLIDING = 0.6
# Mean square that splines on coarser voxels leave, over that above their band: 0.2 at the most
# where they were interpolated; 0.5 and more on 42 heads as they are and on soft ones.
NOT_REPRODUCED = 0.35
ALIKE = 0.85  # factors this near are one factor, known more or less exactly
AXIS_NAMES = ("first", "second", "third")


@dataclass(frozen=True)
class AxisSpectrum:
    """Mean power spectrum along one voxel axis.

    ``frequency`` runs from 0 to 1 in units of Nyquist; ``power`` is in squared intensity units,
    so that white noise of standard deviation s has power s**2 at every frequency.
    """

    frequency: np.ndarray
    power: np.ndarray


@dataclass(frozen=True)
class AxisResolution:
    """Resolution of one voxel axis.

    ``voxel`` and ``usable`` are in mm; ``usable`` is the finest scale with signal above the noise.
    ``kind`` is "native", "zero-filled" (spectrum empty above a cut-off), "interpolated" (periodic
    sharpness, or the images of a cubic kernel) or "unknown" (too few voxels).
    ``acquired`` is the voxel size in mm before interpolation, or ``voxel`` if none was found.
    """

    voxel: float
    usable: float
    kind: str
    acquired: float


def _valid(data: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mask without blocks of exact zeros (defacing, skull-stripping)."""
    valid = mask > 0
    box = tuple(slice(max(0, part.start - 3), part.stop + 3) for part in bounding_box(valid))
    zeros = (data[box] == 0) & ndimage.binary_dilation(valid[box])
    valid[box] &= ~open_cubes(zeros)
    return valid


def _lines(data: np.ndarray, valid: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return voxel lines (m, k) along ``axis`` that touch ``valid``, and where they are valid."""
    lines = np.moveaxis(data, axis, -1).reshape(-1, data.shape[axis])
    inside = np.moveaxis(valid, axis, -1).reshape(lines.shape)
    touched = inside.any(axis=1)
    return lines[touched], inside[touched]


def _segments(lines: np.ndarray, valid: np.ndarray, length: int) -> np.ndarray:
    """Return half-overlapping pieces (n, length) of the lines (m, k) that are valid throughout."""
    count = np.cumsum(np.pad(valid, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
    whole = (count[:, length:] - count[:, :-length]) == length
    starts = np.arange(0, whole.shape[1], length // 2)
    row, column = np.nonzero(whole[:, starts])
    if len(row) > MOST_SEGMENTS:
        keep = np.linspace(0, len(row) - 1, MOST_SEGMENTS).astype(int)
        row, column = row[keep], column[keep]
    return lines[row[:, None], starts[column][:, None] + np.arange(length)]


def axis_spectrum(data: np.ndarray, mask: np.ndarray, axis: int) -> AxisSpectrum | None:
    """Return the Welch power spectrum along an axis inside the mask.

    Parameters
    ----------
    data, mask
        Intensities and mask (x, y, z).
    axis
        Voxel axis.

    Returns
    -------
    AxisSpectrum or None
        None if the mask has too few straight pieces of at least 16 voxels.
    """
    return _welch(*_lines(data, _valid(data, mask), axis))


def _welch(lines: np.ndarray, valid: np.ndarray) -> AxisSpectrum | None:
    for length in SEGMENT_LENGTHS:
        if length > lines.shape[1]:
            continue
        segments = _segments(lines, valid, length).astype(np.float64)
        if len(segments) >= FEWEST_SEGMENTS:
            break
    else:
        return None
    window = np.hanning(length + 1)[:-1]
    segments -= segments.mean(axis=1, keepdims=True)
    power = (np.abs(np.fft.rfft(segments * window, axis=1)) ** 2).mean(axis=0) / (window**2).sum()
    return AxisSpectrum(np.arange(length // 2 + 1) / (length / 2), power)


def usable_fraction(spectrum: AxisSpectrum) -> float:
    """Return the fraction of Nyquist at which the signal equals the noise floor of the spectrum.

    The floor is the mean of the lowest sixteenth of the spectrum; signal and noise are equal if
    the power is twice the floor. 1 means "sharp to the grid".
    """
    power = spectrum.power
    floor = _lowest(power)
    if floor <= 0:
        floor = np.finfo(float).tiny
    last = int(np.nonzero(power > 2 * floor)[0].max(initial=0))
    if last in (0, len(power) - 1):
        return 1.0
    above, below = np.log(power[last]), np.log(max(power[last + 1], np.finfo(float).tiny))
    part = (above - np.log(2 * floor)) / (above - below)
    return float(spectrum.frequency[last] + part * spectrum.frequency[1])


def empty_above(spectrum: AxisSpectrum) -> float | None:
    """Return the cut-off (fraction of Nyquist) above which the spectrum is empty, or None.

    Everything above a cut-off lies far below the level just before it. Two widths are tried: a
    cliff (zero filling) and a steep slope (smooth interpolation kernels).
    """
    if not spectrum.power.max() > 0:  # nothing changes along the axis
        return None
    level = 10 * np.log10(spectrum.power / spectrum.power.max() + 1e-12)
    frequency = spectrum.frequency
    largest, found = 0.0, None
    for edge in np.arange(0.2, 0.881, 0.02):
        above = level[frequency >= edge + 0.03]
        if len(above) < 2:
            continue
        for shift, needed in ((0.0, STEP_DECIBEL), (0.15, WIDE_STEP_DECIBEL)):
            before = (frequency >= edge - 0.16 - shift) & (frequency <= edge - 0.04 - shift)
            before &= frequency > 0
            if not before.any():
                continue
            excess = float(level[before].mean() - above.max()) - needed
            if excess > largest:  # a steep spectrum passes early, the cliff passes by most
                largest = excess
                found = _steepest(frequency, level, edge - 0.16 - shift, edge + 0.06)
    # The window spreads the last full frequency over the next one.
    return None if found is None else max(found - float(frequency[1]), 0.0)


def _noise_above(spectrum: AxisSpectrum, cutoff: float, floor: float) -> bool:
    """Return True if white noise was measured above the cut-off, where nothing would be empty.

    ``floor`` is the lowest power along another axis, which was not interpolated.
    """
    above = spectrum.power[spectrum.frequency >= (1 + cutoff) / 2]
    if len(above) < 2:
        return False
    level = float(above.min() / max(above.max(), np.finfo(float).tiny))
    return level > LEVEL_NOISE and float(np.median(above)) > NOISE_SHARE * floor


def _slides(spectrum: AxisSpectrum, cutoff: float) -> bool:
    """Return True if the spectrum goes on falling beyond the cut-off, as that of soft anatomy."""
    level = 10 * np.log10(spectrum.power + np.finfo(float).tiny)
    first, middle, last = np.interp([cutoff, (1 + cutoff) / 2, 1.0], spectrum.frequency, level)
    return bool(middle - last > SLIDING * max(first - middle, 0.0) + 1.0)


def _reproduced_factor(
    spectrum: AxisSpectrum, lines: np.ndarray, valid: np.ndarray, factors: Sequence[float]
) -> float | None:
    """Return the factor by which coarser voxels, interpolated, give the scan; None if none does.

    Factors that divide the true one (1.5 and 3) give the scan too, so the largest counts.
    """
    middle = middle_of_lines(lines, valid)
    if middle is None:
        return None
    misfits = {}
    for factor in factors:
        above = float(spectrum.power[spectrum.frequency > 1 / factor].sum()) / len(spectrum.power)
        misfit = spline_misfit(middle, factor)
        if misfit < NOT_REPRODUCED * above:
            misfits[factor] = misfit
    near = [factor for factor in misfits if factor > ALIKE * max(misfits)]
    return min(near, key=lambda factor: misfits[factor], default=None)


def _lowest(power: np.ndarray) -> float:
    """Return the mean of the lowest sixteenth of a spectrum."""
    return float(np.sort(power)[: max(2, len(power) // 16)].mean())


def _steepest(frequency: np.ndarray, level: np.ndarray, low: float, high: float) -> float:
    """Return the frequency between ``low`` and ``high`` at which the level falls fastest.

    It lies between two bins.
    """
    drop = level[:-1] - level[1:]
    middle = 0.5 * (frequency[:-1] + frequency[1:])
    inside = (middle >= low) & (middle <= high)
    weight = np.where(inside, np.clip(drop, 0, None), 0.0)
    peak = int(np.argmax(weight))
    near = slice(max(0, peak - 1), peak + 2)
    return float((weight[near] * middle[near]).sum() / max(weight[near].sum(), 1e-12))


def _cubic_response(frequency: np.ndarray, factor: float) -> np.ndarray:
    """Return the power response of cubic spline interpolation in dB; frequency over Nyquist."""
    cycles = frequency * factor / 2  # per measured voxel
    amplitude = np.sinc(cycles) ** 4 * 3 / (2 + np.cos(2 * np.pi * cycles))
    return 10 * np.log10(amplitude**2 + 1e-12)


def cubic_factor(spectrum: AxisSpectrum, cutoff: float) -> float | None:
    """Return the factor of cubic interpolation that explains a spectrum empty above ``cutoff``.

    Interpolation repeats the spectrum, mirrored at the measured Nyquist frequency and damped by
    its kernel; zero filling leaves no such image. None if the image does not fit by 3 dB.
    """
    frequency, level = spectrum.frequency, 10 * np.log10(spectrum.power + 1e-30)
    seen = level > level.min() + 6  # rounding to integers leaves a floor of its own
    best: tuple[float, float] | None = None
    for factor in np.arange(max(1.2, 0.9 / cutoff), LARGEST_FACTOR, 0.02):
        image = (frequency > 1 / factor) & (frequency < min(1.0, 1.9 / factor)) & seen
        if image.sum() < FEWEST_IMAGE_BINS:
            continue
        origin = 2 / factor - frequency[image]
        own = level[image] - _cubic_response(frequency[image], factor)
        mirrored = np.interp(origin, frequency, level) - _cubic_response(origin, factor)
        misfit = float(np.sqrt(np.mean((own - mirrored) ** 2)))
        if misfit < IMAGE_DECIBEL and (best is None or misfit < best[0]):
            best = (misfit, float(factor))
    return best[1] if best else None


def _level_above(spectrum: AxisSpectrum, edge: float) -> float:
    """Return mean power above ``edge`` over that of the fifth of the spectrum below it, in dB."""
    above = spectrum.power[spectrum.frequency >= edge + 0.03]
    below = spectrum.power[(spectrum.frequency >= edge - 0.2) & (spectrum.frequency < edge)]
    if not len(above) or not len(below):
        return 0.0
    return float(10 * np.log10(max(above.mean(), 1e-30) / max(below.mean(), 1e-30)))


def sharpness_period(data: np.ndarray, mask: np.ndarray, axis: int) -> float | None:
    """Return the frequency (cycles per voxel, 0.16 to 0.47) at which sharpness repeats.

    None if it does not repeat. Exactly every second voxel is left out: interleaved slices differ
    like that without any interpolation.
    """
    return _period(*_lines(data, _valid(data, mask), axis))


def _period(lines: np.ndarray, valid: np.ndarray) -> float | None:
    bend = np.abs(lines[:, 2:] - 2 * lines[:, 1:-1] + lines[:, :-2])
    known = valid[:, 2:] & valid[:, 1:-1] & valid[:, :-2]
    count = known.sum(axis=0)
    covered = np.nonzero(count > max(50, 0.1 * count.max(initial=0)))[0]
    if len(covered) < 24:
        return None
    part = slice(covered[0], covered[-1] + 1)
    total = (bend[:, part] * known[:, part]).sum(axis=0)
    profile = np.log(np.maximum(total / np.maximum(count[part], 1), 1e-6 * np.abs(lines).max()))
    profile -= ndimage.gaussian_filter1d(profile, 4, mode="nearest")
    limit = 4 * 1.4826 * np.median(np.abs(profile))
    profile = np.clip(profile, -limit, limit) * np.hanning(len(profile) + 2)[1:-1]
    amplitude = np.abs(np.fft.rfft(profile, 512))
    frequency = np.fft.rfftfreq(512)
    usual = np.median(amplitude[(frequency > 0.12) & (frequency < 0.47)])
    candidates = np.where((frequency > 0.16) & (frequency < 0.47), amplitude, 0)
    peak = int(np.argmax(candidates))
    if candidates[peak] <= PERIODICITY_RATIO * usual:
        return None
    return float(frequency[peak])


def axis_resolution(data: np.ndarray, mask: np.ndarray, axis: int, voxel: float) -> AxisResolution:
    """Return usable and acquired resolution along a voxel axis.

    Parameters
    ----------
    data, mask
        Intensities and mask (x, y, z).
    axis, voxel
        Voxel axis, and its voxel size in mm.
    """
    lines, valid = _lines(data, _valid(data, mask), axis)
    return _axis_resolution(lines, valid, voxel, _welch(lines, valid))


def _axis_resolution(
    lines: np.ndarray,
    valid: np.ndarray,
    voxel: float,
    spectrum: AxisSpectrum | None,
    floor: float | None = None,
) -> AxisResolution:
    """Return usable and acquired resolution along voxel ``lines`` of voxels of ``voxel`` mm.

    ``spectrum`` is theirs; ``floor`` is the lowest power along another axis that was not
    interpolated, if there is one.
    """
    if spectrum is None:
        return AxisResolution(voxel, voxel, "unknown", voxel)
    fraction = usable_fraction(spectrum)
    cutoff = empty_above(spectrum)
    if cutoff is not None and floor is not None and _noise_above(spectrum, cutoff, floor):
        cutoff = None
    if cutoff is not None and cutoff <= 1 / LARGEST_FILL:
        cutoff = None
    usable = voxel / fraction if cutoff is None else voxel / min(fraction, cutoff)
    factors = _factors(_period(lines, valid))
    if cutoff is not None and (cubic := cubic_factor(spectrum, cutoff)):
        factors.append(cubic)
    factors = [each for each in factors if _level_above(spectrum, 1 / each) < LOST_DECIBEL]
    if factor := _reproduced_factor(spectrum, lines, valid, factors):
        return AxisResolution(voxel, usable, "interpolated", voxel * factor)
    if cutoff is not None and not _slides(spectrum, cutoff):
        return AxisResolution(voxel, usable, "zero-filled", voxel / cutoff)
    return AxisResolution(voxel, voxel / fraction, "native", voxel)


def _factors(period: float | None) -> list[float]:
    """Return factors of interpolation to ask for, by the period of sharpness (cycles per voxel).

    A period of p and of 1 - p look alike; interpolation by 5 may show its second harmonic alone,
    interpolation by 2 leaves no period.
    """
    found = [] if period is None else [1 / period, 1 / (1 - period), 2 / period]
    return [2.0, *(each for each in found if each <= LARGEST_FACTOR / ROUNDED)]


def acquired_resolution(
    data: np.ndarray, zooms: tuple[float, float, float], mask: np.ndarray
) -> tuple[AxisResolution, AxisResolution, AxisResolution]:
    """Return usable and acquired resolution of a scan, per voxel axis.

    It takes about a second for a whole head.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    zooms
        Voxel sizes in mm.
    mask
        Brain or head (x, y, z), non-zero inside.
    """
    mask = _valid(data, mask)
    if mask.any():
        box = bounding_box(mask)
        data, mask = data[box], mask[box]
    spectra = [_welch(*_lines(data, mask, axis)) for axis in range(3)]
    floors = {
        axis: _lowest(spectrum.power)
        for axis, spectrum in enumerate(spectra)
        if spectrum is not None and empty_above(spectrum) is None
    }
    first, second, third = (
        _axis_resolution(
            *_lines(data, mask, axis),
            float(zooms[axis]),
            spectra[axis],
            min((floor for other, floor in floors.items() if other != axis), default=None),
        )
        for axis in range(3)
    )
    return first, second, third


def interpolation_warning(stored: Sequence[float], acquired: Sequence[float]) -> str | None:
    """Return a sentence on axes that were interpolated before; None if there are none.

    Parameters
    ----------
    stored, acquired
        Voxel sizes in mm of the file, and those that were measured, by axis.
    """
    found = [
        f"{after:.2g} mm instead of {before:.2g} mm along the {name} axis"
        for before, after, name in zip(stored, acquired, AXIS_NAMES, strict=True)
        if after >= LEAST_FACTOR * before
    ]
    if not found:
        return None
    return (
        "The image was interpolated before (zero filling at the scanner, resampling "
        f"or earlier super-resolution): its detail is about {', '.join(found)}. The result is "
        "made from there, unless --acquired-resolution says otherwise."
    )
