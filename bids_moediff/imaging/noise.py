# SPDX-License-Identifier: Apache-2.0
"""Estimate the noise of a scan, also if the air around the head was deleted.

Magnitude images have Rician noise: in air it is Rayleigh distributed, in tissue nearly Gaussian
(Gudbjartsson and Patz, Magnetic Resonance in Medicine 34:910-914, 1995). Many archives delete the
air (defacing, skull-stripping), so flat tissue is read first.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bids_moediff.imaging.grid import steps_to
from bids_moediff.imaging.masks import bounding_box, distance_to

RAYLEIGH_MEDIAN = float(np.sqrt(2 * np.log(2)))  # median of a Rayleigh variable of scale 1
GAUSSIAN_MAD = 1.4826  # standard deviation over median absolute deviation
FLAT_SHARE = 0.15  # share of the brain's voxels that counts as flat
FEWEST_AIR_VOXELS = 1000


@dataclass(frozen=True)
class Noise:
    """Noise standard deviations in intensity units, None if they could not be estimated.

    ``tissue``: residual in flat tissue; ``air``: Rayleigh scale of the air around the head;
    ``sigma``: the one to use (tissue if there is one, else air).
    """

    tissue: float | None
    air: float | None

    @property
    def sigma(self) -> float | None:
        """Tissue noise, else air noise, else None."""
        return self.tissue if self.tissue is not None else self.air


def tissue_noise(data: np.ndarray, mask: np.ndarray) -> float | None:
    """Return the noise standard deviation from flat tissue, or None without enough of it.

    The residual of a voxel against the mean of its 3x3x3 neighbourhood has variance s**2 (1 -
    1/27). It is read by its median absolute deviation in the flattest 15 % of the mask. "Flat" is
    judged on a smoothed gradient, which the noise of a single voxel hardly moves.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    mask
        Brain mask (x, y, z).
    """
    brain = mask > 0
    box = bounding_box(brain)  # beyond it nothing is brain, nor beyond the image for the erosion
    part, brain = np.asarray(data[box], dtype=np.float32), brain[box]
    inside = ndimage.binary_erosion(brain, iterations=2) & (part != 0)
    if inside.sum() < 500:
        inside = brain & (part != 0)
    if inside.sum() < 100:
        return None
    steepness = ndimage.gaussian_gradient_magnitude(part, 2.0)
    flat = inside & (steepness <= np.quantile(steepness[inside], FLAT_SHARE))
    residual = (part - ndimage.uniform_filter(part, 3))[flat]
    spread = np.median(np.abs(residual - np.median(residual)))
    return float(GAUSSIAN_MAD * spread / np.sqrt(1 - 1 / 27))


def air_noise(data: np.ndarray, head: np.ndarray, zooms: tuple[float, ...]) -> float | None:
    """Return the Rayleigh scale of the air at least 10 mm off the head, or None if it was deleted.

    Air that is mostly exact zeros was set to zero; the rest says nothing about the noise.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    head
        Head mask (x, y, z).
    zooms
        Voxel sizes in mm.
    """
    # Every other voxel of a fine grid: enough of them, and the distance is eight times cheaper.
    steps = steps_to(zooms, 2.0)
    part = tuple(slice(None, None, step) for step in steps)
    sampling = [zoom * step for zoom, step in zip(zooms, steps, strict=True)]
    air = data[part][distance_to(head[part], sampling) > 10]
    measured = air[air > 0]
    if len(measured) < FEWEST_AIR_VOXELS or len(measured) < 0.5 * len(air):
        return None
    return float(np.median(measured) / RAYLEIGH_MEDIAN)


def estimate_noise(
    data: np.ndarray, mask: np.ndarray, head: np.ndarray, zooms: tuple[float, ...]
) -> Noise:
    """Return the noise of a scan.

    Parameters
    ----------
    data
        Intensities (x, y, z).
    mask, head
        Brain mask and head mask (x, y, z).
    zooms
        Voxel sizes in mm.
    """
    return Noise(tissue_noise(data, mask), air_noise(data, head, zooms))
