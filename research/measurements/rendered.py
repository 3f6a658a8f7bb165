# SPDX-License-Identifier: Apache-2.0
"""Label maps rendered as a scanner of 64 mT would show the tissues.

Longitudinal relaxation follows the power law of Rooney et al. (Magnetic Resonance in Medicine
57:308-318, 2007), which was fitted from 0.2 to 7 T and is carried on to 0.064 T. Transverse
relaxation hardly depends on the field at these strengths and differs little between grey and white
matter; the values here, and those of the scalp, are round numbers. Times of the sequences are
those of a portable scanner's product protocols.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

FIELD = 0.064  # tesla
GYROMAGNETIC = 42.577e6  # Hz / T
WHITE = (2, 7, 16, 28, 41, 46, 60, 77, 85)
FLUID = (4, 5, 14, 15, 24, 43, 44, 72)
SCALP = 500  # labels from here on are skull and scalp in the SynthSeg maps
# Tissue: proton density, T1 (ms; None: Rooney), T2 (ms).
TISSUES = {
    "white": (0.70, None, 100.0),
    "grey": (0.80, None, 100.0),
    "fluid": (1.00, 4300.0, 1500.0),
    "scalp": (0.60, 150.0, 60.0),
}
ROONEY = {"white": (0.00071, 0.382), "grey": (0.00116, 0.376)}
# Contrast: repetition, echo and inversion time (ms; None: no inversion).
SEQUENCES = {
    "T1w": (1500.0, 6.0, 300.0),
    "T2w": (2000.0, 209.0, None),
    "FLAIR": (4000.0, 179.0, 1400.0),
}
TEXTURE = 0.03  # of the brightness of a tissue
BLUR = 0.5  # voxels
RIM = 16  # voxels around the brain


def longitudinal(tissue: str) -> float:
    """T1 in ms at ``FIELD``."""
    known = TISSUES[tissue][1]
    if known is not None:
        return known
    factor, power = ROONEY[tissue]
    return 1000 * factor * (GYROMAGNETIC * FIELD) ** power


def signal(tissue: str, contrast: str) -> float:
    """Signal of a spin echo, after an inversion where the contrast has one; any unit."""
    density, _, transverse = TISSUES[tissue]
    repetition, echo, inversion = SEQUENCES[contrast]
    relaxed, time = 1 - np.exp(-repetition / longitudinal(tissue)), longitudinal(tissue)
    if inversion is not None:
        relaxed = abs(1 - 2 * np.exp(-inversion / time) + np.exp(-repetition / time))
    return float(density * relaxed * np.exp(-echo / transverse))


def render(path: Path, contrast: str = "T2w", seed: int = 0) -> nib.Nifti1Image:
    """A label map of SynthSeg (FreeSurfer labels) as an image, float32, brightest tissue 1000."""
    source = nib.Nifti1Image.from_filename(path)
    labels, affine = head_box(np.asarray(source.dataobj).astype(np.int32), source.affine)
    values = {tissue: signal(tissue, contrast) for tissue in TISSUES}
    scale = 1000 / max(values.values())
    image = np.full(labels.shape, values["grey"], dtype=np.float32)
    for tissue, places in (
        ("white", np.isin(labels, WHITE)),
        ("fluid", np.isin(labels, FLUID)),
        ("scalp", labels >= SCALP),
    ):
        image[places] = values[tissue]
    random = np.random.default_rng(seed)
    texture = ndimage.gaussian_filter(random.standard_normal(labels.shape), 0.7)
    image *= scale * (1 + TEXTURE * texture / texture.std())
    image[labels == 0] = 0
    data = np.maximum(ndimage.gaussian_filter(image, BLUR), 0).astype(np.float32)
    return nib.Nifti1Image(data, affine)


def head_box(labels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box of the brain with its scalp beside it, and the affine of the box."""
    brain = np.argwhere((labels[::2, ::2, ::2] > 0) & (labels[::2, ::2, ::2] < SCALP)) * 2
    low = np.maximum(brain.min(axis=0) - RIM, 0)
    high = np.minimum(brain.max(axis=0) + RIM, labels.shape)
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ low
    return labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], moved
