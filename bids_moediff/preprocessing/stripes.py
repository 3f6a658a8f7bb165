# SPDX-License-Identifier: Apache-2.0
"""Find stripes: single points of k-space that stand out (spikes of the scanner).

The spectrum of a head is seldom as sharp as one point. In the real images at hand no coefficient
of the windowed spectrum exceeds 3.1 times all that lie 3 to 5 steps away, but in one: interleaved
slices have 12 times, of an amplitude of 1.1 % of the brightness, which only ``FAINTEST`` excuses.
The limits were set on the same images.
"""

from itertools import product

import numpy as np
from scipy import fft, ndimage

from bids_moediff.errors import ImageError

from .planes import AXES, some_planes

STANDS_OUT = 4.0  # times the largest of the surrounding coefficients
CANDIDATE = 6.0  # times the mean of the surrounding coefficients
NEAR, FAR = 3, 5  # steps in k-space of the surrounding
MOST_CANDIDATES = 20_000
FAINTEST, STRONGEST = 0.02, 0.15  # amplitude over the 99th percentile of the image
FEW_SLICES = 0.5  # fewer planes than this share of the rows: slices, acquired one by one
MOST_SLICES = 0.2  # of the slices, for an image that is refused


def stripe_remarks(
    data: np.ndarray, name: str = "the image", slices_differ: bool = False
) -> list[str]:
    """Return a sentence on stripes through the whole image, or through single slices.

    Parameters
    ----------
    data
        (x, y, z) ``float32``, finite.
    name
        Of the image, for the error.
    slices_differ
        Whether slices are known to differ in brightness
        (:mod:`bids_moediff.preprocessing.slice_brightness`): stripes along one axis are theirs.

    Raises
    ------
    ImageError
        If stripes are so strong that no brain mask can be trusted.
    """
    bright = float(np.percentile(data.ravel(order="K"), 99))
    if bright <= 0 or min(data.shape) < 2 * FAR:
        return []
    amplitude = stripe_height(data, slices_differ) / bright
    if amplitude > STRONGEST:
        raise ImageError(
            f"{name} has stripes of {100 * amplitude:.0f} % of its brightness (a spike in "
            "k-space): reconstruct it without the spike, or scan again"
        )
    if amplitude > FAINTEST:
        return [
            f"the image has stripes of {100 * amplitude:.2g} % of its brightness (a spike in "
            "k-space), which the result keeps"
        ]
    return _single_slices(data, bright, name, slices_differ)


def _single_slices(data: np.ndarray, bright: float, name: str, slices_differ: bool) -> list[str]:
    """Return a sentence on slices with stripes, if the image was acquired slice by slice."""
    axis = int(np.argmin(data.shape))
    if data.shape[axis] > FEW_SLICES * sorted(data.shape)[1]:
        return []
    planes = np.moveaxis(data, axis, 0)
    heights = np.array([stripe_height(plane, slices_differ) for plane in planes]) / bright
    found = np.nonzero(heights > FAINTEST)[0]
    if not len(found):
        return []
    words = (
        f"{len(found)} of {len(planes)} slices along the {AXES[axis]} axis "
        f"({some_planes(found)}, counted from 1) have stripes of up to "
        f"{100 * heights.max():.0f} % of the image's brightness (spikes in k-space)"
    )
    strong = np.mean(heights > STRONGEST)
    if strong > MOST_SLICES:
        raise ImageError(f"{name}: {words}; reconstruct it without them, or scan again")
    return [f"{words}, which the result keeps"]


def stripe_height(data: np.ndarray, slices_differ: bool = False) -> float:
    """Return the amplitude of the strongest stripes of an image or slice; 0 without any."""
    windows = [np.hanning(size + 2)[1:-1].astype(np.float32) for size in data.shape]
    part = data.astype(np.float32)
    for axis, window in enumerate(windows):
        part *= np.expand_dims(window, [k for k in range(data.ndim) if k != axis])
    spectrum = np.abs(fft.rfftn(part))
    borders = ["wrap"] * (data.ndim - 1) + ["mirror"]
    mean = ndimage.uniform_filter(spectrum, 2 * FAR - 1, mode=borders)
    places = np.argwhere(spectrum > CANDIDATE * mean)
    away = np.abs(_centred(places, data.shape))
    least = 2 if slices_differ else 1  # axes along which the stripes change
    places = places[(away.max(axis=1) > FAR) & ((away >= NEAR).sum(axis=1) >= least)]
    if not 0 < len(places) <= MOST_CANDIDATES:
        return 0.0
    heights = spectrum[tuple(places.T)]
    around = np.zeros(len(places))
    for step in product(range(-FAR, FAR + 1), repeat=data.ndim):
        if max(map(abs, step)) >= NEAR:
            np.maximum(around, _at(spectrum, places + step, data.shape), out=around)
    found = heights > STANDS_OUT * around
    if not found.any():
        return 0.0
    return float(2 * heights[found].max() / np.prod([window.sum() for window in windows]))


def _centred(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return frequencies with those beyond half the sampling rate as negative ones."""
    sizes = np.array(shape)
    return (places + sizes // 2) % sizes - sizes // 2


def _at(spectrum: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return coefficients of the half spectrum of a real image at any frequency."""
    places = places % np.array(shape)
    mirrored = places[:, -1] >= spectrum.shape[-1]
    places = np.where(mirrored[:, None], -places % np.array(shape), places)
    return np.asarray(spectrum[tuple(places.T)])
