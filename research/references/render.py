# SPDX-License-Identifier: Apache-2.0
"""Label maps rendered in the contrasts of T1w, T2w and FLAIR images."""

import numpy as np
import torch

from bids_moediff.training.tensor_filters import gaussian

FLUID = (4, 5, 14, 15, 24, 43, 44, 72)
WHITE = (2, 7, 16, 28, 41, 46, 60, 77, 85)
CORTEX = (3, 8, 42, 47)
DEEP = (10, 11, 12, 13, 17, 18, 26, 49, 50, 51, 52, 53, 54, 58)
# Fluid, white matter, cortex, deep grey matter: of the range.
CONTRASTS = {
    "T1w": (0.15, 0.85, 0.55, 0.65),
    "T2w": (0.95, 0.36, 0.55, 0.45),
    "FLAIR": (0.10, 0.55, 0.75, 0.68),
}
OUTSIDE = 100  # labels of a training pack from here on are skull, skin and eyes
TEXTURE = 0.02  # of the range
SOFT = 0.45  # voxels


def render(labels: np.ndarray, contrast: str, seed: int) -> np.ndarray:
    """Return an image (X, Y, Z), float32 in about [0, 1], of a label map as packs hold it."""
    rng = np.random.default_rng([seed, *contrast.encode()])
    means = rng.uniform(0.1, 0.6, 256)
    for value, group in zip(CONTRASTS[contrast], (FLUID, WHITE, CORTEX, DEEP), strict=True):
        means[list(group)] = value
    means[0] = 0.0
    texture = gaussian(torch.from_numpy(rng.normal(size=labels.shape).astype(np.float32)), 0.6)
    image = torch.from_numpy(means.astype(np.float32)[labels])
    image = image + torch.where(image > 0, TEXTURE * texture / texture.std(), 0.0)
    return gaussian(image, SOFT).clamp_min(0).numpy()
