# SPDX-License-Identifier: Apache-2.0
"""Contrasts for training: intensity maps of real heads, Gaussian mixtures on label maps."""

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .tensor_filters import dilate, erode, gaussian

# FreeSurfer labels by tissue.
WHITE = (2, 41, 7, 46, 77, 85, 251, 252, 253, 254, 255)
CORTEX = (3, 42)
CURVE_END = 1.3


def contrast_curve(rng: np.random.Generator, count: int = 261) -> np.ndarray:
    """Return a smooth random intensity curve on [0, 1.3] that keeps air dark and may fall."""
    values = rng.uniform(0.1, 1.0, 7)
    if rng.random() < 0.4:
        values = np.sort(values)[::-1]
    level = np.linspace(0, CURVE_END, count)
    steps = np.interp(level, np.linspace(0, CURVE_END, 7), values)
    smooth = ndimage.gaussian_filter1d(steps, 18, mode="nearest")
    return smooth / smooth.max() * (1 - np.exp(-level / 0.08))


def random_contrast(
    volume: torch.Tensor, rng: np.random.Generator, gamma_share: float, curve_share: float
) -> torch.Tensor:
    """Map intensities (about [0, 1], zero is air) to a new contrast; texture is kept.

    These shares of the volumes get a gamma and a random curve; the others are unchanged.
    """
    choice = rng.random()
    if choice >= gamma_share + curve_share:
        return volume
    if choice < gamma_share:
        return volume.clamp_min(0) ** float(rng.uniform(0.6, 1.6))
    curve = torch.from_numpy(contrast_curve(rng)).to(volume)
    position = (volume.clamp(0, CURVE_END) * ((len(curve) - 1) / CURVE_END)).clamp_max(
        len(curve) - 1.001
    )
    low = position.long()
    return torch.lerp(curve[low], curve[low + 1], position - low)


def synthesise(
    labels: torch.Tensor, rng: np.random.Generator, generator: torch.Generator
) -> torch.Tensor:
    """Gaussian-mixture image of a label map (Billot et al., 2023), about [0, 1], air is zero.

    The image is made with sharp borders, fine texture and a light blur, so that it is defined at
    the resolution of its own grid. Both hemispheres get the same intensities.
    """
    mean = rng.uniform(0.05, 1.0, 256).astype(np.float32)
    spread = rng.uniform(0.0, 0.06, 256).astype(np.float32)
    mean[41:64] = mean[2:25]
    mean[0] = spread[0] = 0.0
    texture = torch.randn(labels.shape, generator=generator, device=labels.device)
    if rng.random() < 0.7:
        texture = gaussian(texture, float(rng.uniform(0.4, 1.0)))
        texture = texture / texture.std()
    index = labels.long()
    image = torch.from_numpy(mean).to(labels.device)[index]
    image = image + torch.from_numpy(spread).to(labels.device)[index] * texture
    return gaussian(image, float(rng.uniform(0.35, 0.6))).clamp_min(0)


def bias_field(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    strength: float,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Smooth positive field exp(.) from a coarse Gaussian grid, mean about one."""
    coarse = torch.from_numpy(rng.normal(0, strength, (4, 4, 4)).astype(np.float32))
    field = functional.interpolate(
        coarse[None, None].to(device), shape, mode="trilinear", align_corners=False
    )
    return field[0, 0].exp()


def tissue_codes(labels: torch.Tensor) -> torch.Tensor:
    """1 white-matter core, 2 cortex, 3 grey-white band, 0 elsewhere, of a FreeSurfer label map."""
    device = labels.device
    white = torch.isin(labels, torch.tensor(WHITE, device=device, dtype=labels.dtype))
    cortex = torch.isin(labels, torch.tensor(CORTEX, device=device, dtype=labels.dtype))
    band = dilate(white, 1) & dilate(cortex, 1) & (white | cortex)
    codes = torch.zeros(labels.shape, dtype=torch.uint8, device=device)
    codes[erode(white, 3) & ~band] = 1
    codes[cortex & ~band] = 2
    codes[band] = 3
    return codes
