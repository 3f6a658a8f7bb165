# SPDX-License-Identifier: Apache-2.0
"""Simulate the filters that scanners apply to k-space, ghosts and noise.

The acquisition operator (:mod:`.acquisition`) is separable. A scanner's filter may not be: an
elliptical readout and radial windows need the Fourier transform of the volume. Tests, training and
evaluation all use this simulation.
"""

from collections.abc import Sequence

import numpy as np
from scipy import fft

# Fermi window: half of the amplitude at this radius, and its width; in units of Nyquist.
FERMI_RADIUS, FERMI_WIDTH = 0.9, 0.05
FILTERS = ("hard", "elliptical", "fermi", "half-hann", "hann", "tukey", "quarter-hann")
HANN_SHARES = {"quarter-hann": 0.25, "half-hann": 0.5, "hann": 1.0}  # of the amplitude
TUKEY_SHARE = 0.5  # of the band is tapered


def window(name: str, radius: np.ndarray) -> np.ndarray:
    """Return the amplitude of a k-space filter.

    Parameters
    ----------
    name
        One of :data:`FILTERS`: "hard" passes everything, "elliptical" all within the radius 1,
        "fermi" is 1/2 at 0.9, "quarter-hann" falls to 3/4 at the edge, "half-hann" to 1/2 and
        "hann" to 0, "tukey" is flat up to 0.5.
    radius
        Distance from the centre of k-space in units of the Nyquist frequency (any shape).

    Raises
    ------
    ValueError
        For an unknown name.
    """
    inside = radius <= 1 + 1e-9
    if name == "hard":
        return np.ones_like(radius)
    if name == "elliptical":
        return inside.astype(radius.dtype)
    if name == "fermi":
        return 1 / (1 + np.exp((radius - FERMI_RADIUS) / FERMI_WIDTH))
    if name in HANN_SHARES:
        share = HANN_SHARES[name]
        return 1 - share + share * np.where(inside, 0.5 + 0.5 * np.cos(np.pi * radius), 0.0)
    if name == "tukey":
        tapered = np.clip((radius - 1 + TUKEY_SHARE) / TUKEY_SHARE, 0, 1)
        return 0.5 + 0.5 * np.cos(np.pi * tapered)
    raise ValueError(f"unknown k-space filter {name!r}: choose from {FILTERS}")


def kspace_radius(shape: Sequence[int]) -> np.ndarray:
    """Return the distance from the centre of k-space, Nyquist being 1; shape of ``rfftn``."""
    axes = [np.fft.fftfreq(size) * 2 for size in shape[:-1]] + [np.fft.rfftfreq(shape[-1]) * 2]
    first, second, third = (axis.astype(np.float32) ** 2 for axis in axes)
    return np.sqrt(first[:, None, None] + second[None, :, None] + third[None, None, :])


def filter_kspace(data: np.ndarray, name: str) -> np.ndarray:
    """Apply the radial k-space filter ``name`` to a band-limited volume (x, y, z); float32."""
    if name == "hard":
        return np.asarray(data, dtype=np.float32)
    spectrum = fft.rfftn(np.asarray(data, dtype=np.float32))
    spectrum *= window(name, kspace_radius(data.shape))
    return fft.irfftn(spectrum, s=data.shape).astype(np.float32)


def add_rician_noise(data: np.ndarray, sigma: float, seed: int | Sequence[int]) -> np.ndarray:
    """Return the magnitude of ``data`` with complex noise of deviation ``sigma``; float32."""
    random = np.random.default_rng(seed)
    real = data + sigma * random.standard_normal(data.shape, dtype=np.float32)
    imaginary = sigma * random.standard_normal(data.shape, dtype=np.float32)
    return np.hypot(real, imaginary).astype(np.float32)


def add_coil_noise(data: np.ndarray, sigma: float, coils: int, seed: int) -> np.ndarray:
    """Return the root of the sum of squares of coils that see ``data`` alike, each with noise.

    The noise is noncentral chi; with one coil it is that of :func:`add_rician_noise`. Float32.
    """
    random = np.random.default_rng(seed)
    squares = np.zeros(data.shape, dtype=np.float32)
    for _ in range(coils):
        real = data / np.sqrt(coils) + sigma * random.standard_normal(data.shape, dtype=np.float32)
        imaginary = sigma * random.standard_normal(data.shape, dtype=np.float32)
        squares += np.square(real, dtype=np.float32) + imaginary**2
    return np.sqrt(squares)


def add_ghost(data: np.ndarray, share: float, axis: int) -> np.ndarray:
    """Return an image with a ghost of ``share`` of its brightness, half a field of view away.

    Such a ghost arises if every second line of k-space along ``axis`` has another phase; float32.
    """
    shifted = np.roll(data, data.shape[axis] // 2, axis)
    return np.asarray((1 - share) * data + share * shifted, dtype=np.float32)
