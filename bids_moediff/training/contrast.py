# SPDX-License-Identifier: Apache-2.0
"""Contrasts for training: intensity maps of real heads, Gaussian mixtures on label maps."""

import numpy as np
from scipy import ndimage

# FreeSurfer labels by tissue.
WHITE = (2, 41, 7, 46, 77, 85, 251, 252, 253, 254, 255)
CORTEX = (3, 42)


def random_contrast(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Map intensities (about [0, 1], zero is air) to a new contrast; texture is kept.

    Most volumes stay as they are, 15 % get a gamma, 15 % a random smooth curve
    through zero that may fall as well as rise.
    """
    choice = rng.random()
    if choice < 0.7:
        return volume
    if choice < 0.85:
        return np.power(volume, rng.uniform(0.6, 1.6), dtype=np.float32)
    knots = np.linspace(0, 1.3, 7)
    values = rng.uniform(0.1, 1.0, 7)
    if rng.random() < 0.4:
        values = np.sort(values)[::-1]
    level = np.linspace(0, 1.3, 261)
    smooth = ndimage.gaussian_filter1d(np.interp(level, knots, values), 18, mode="nearest")
    curve = smooth / smooth.max() * (1 - np.exp(-level / 0.08))  # air stays dark
    return np.interp(volume, level, curve).astype(np.float32)


def synthesise(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussian-mixture image of a label map (Billot et al., 2023), about [0, 1], air is zero.

    The image is made with sharp borders, fine texture and a light blur, so that it is defined at
    the resolution of its own grid.
    """
    mean = rng.uniform(0.05, 1.0, 256).astype(np.float32)
    spread = rng.uniform(0.0, 0.06, 256).astype(np.float32)
    mean[41:64] = mean[2:25]
    mean[0] = spread[0] = 0.0
    texture = rng.standard_normal(labels.shape, dtype=np.float32)
    if rng.random() < 0.7:
        texture = ndimage.gaussian_filter(texture, rng.uniform(0.4, 1.0))
        texture /= texture.std()
    image = mean[labels] + spread[labels] * texture
    image = ndimage.gaussian_filter(image, rng.uniform(0.35, 0.6))
    return np.clip(image, 0, None)


def bias_field(shape: tuple[int, ...], rng: np.random.Generator, strength: float) -> np.ndarray:
    """Smooth positive field exp(.) from a coarse Gaussian grid, mean about one."""
    coarse = rng.normal(0, strength, (4, 4, 4)).astype(np.float32)
    factors = [size / 4 for size in shape]
    field = ndimage.zoom(coarse, factors, order=1, grid_mode=True, mode="nearest")
    return np.exp(field[tuple(slice(0, size) for size in shape)])
