# SPDX-License-Identifier: Apache-2.0
"""Segment a T1w brain into tissues and measure its cortex, by tools from another laboratory.

``TOOLS/bin/python segment.py IMAGE MASK OUT`` runs in the environment of requirements.txt, which
knows nothing of bids_moediff: N4 (SimpleITK), then AMAP and projection-based thickness (cat-surf).
OUT gets ``tissue.nii.gz`` (1 fluid, 2 grey, 3 white, fractions between), ``thickness.nii.gz``
(mm) and ``position.nii.gz`` (0 at the pial, 1 at the white surface), all 0 outside the mask.
With ``--only-tissue`` it gets the first alone.
"""

import argparse
from pathlib import Path

import cat_surf
import nibabel as nib
import numpy as np
import SimpleITK as sitk

MARGIN = 4  # voxels around the brain
STARTS = (5, 45, 85)  # percentiles of the brain: fluid, grey, white
ROUNDS = 50
# As T1Prep, the pipeline of the tools' author, calls it.
AMAP = {"sub": 64, "use_multistep": True, "weight_mrf": 0.0, "pve": True}


def without_bias_field(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Divide by the field that N4 finds on every fourth voxel; 0 outside the mask."""
    whole, inside = sitk.GetImageFromArray(image), sitk.GetImageFromArray(mask.astype(np.uint8))
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([50] * 4)
    corrector.Execute(sitk.Shrink(whole, [4] * 3), sitk.Shrink(inside, [4] * 3))
    field = sitk.GetArrayFromImage(sitk.Exp(corrector.GetLogBiasFieldAsImage(whole)))
    return np.where(mask, image / field, 0).astype(np.float32)


def first_labels(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the three classes of k-means, from which AMAP starts."""
    values = np.sort(image[mask])
    centres = np.percentile(values, STARTS)
    for _ in range(ROUNDS):
        cuts = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        centres = np.array([part.mean() for part in np.split(values, cuts)])
    labels = 1 + np.searchsorted((centres[1:] + centres[:-1]) / 2, image)
    return np.where(mask, labels, 0).astype(np.uint8)


def tissue(image: np.ndarray, mask: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Return 1 to 3 in the mask: fluid, grey and white matter, fractions at their borders.

    AMAP finds pure classes and those of two tissues; there brightness between the means of the
    pure ones gives the fraction (Tohka et al., NeuroImage 2004).
    """
    plain = without_bias_field(image, mask)
    start = first_labels(plain, mask)
    _, classes, means = cat_surf.vol_amap(plain, start, voxelsize=zooms, **AMAP)
    labels = np.where(classes > 0, (classes + 1) / 2, 0).astype(np.float32)
    for mixed, low, high in ((2, means[0], means[2]), (4, means[2], means[4])):
        share = np.clip((plain - low) / (high - low), 0, 1)
        labels = np.where(classes == mixed, mixed / 2 + share, labels)
    return labels


def cortex(labels: np.ndarray, zooms: np.ndarray) -> dict[str, np.ndarray]:
    """Return thickness (mm) and position between the surfaces, from a map of tissues."""
    fit = np.asfortranarray(labels, dtype=np.float32)
    fit = cat_surf.vol_blood_vessel_correction(fit, voxelsize=zooms)
    thickness, position, _, _ = cat_surf.vol_thickness_pbt(fit, voxelsize=zooms)
    return {"thickness": thickness, "position": position}


def main() -> None:
    """Write the maps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("image")
    parser.add_argument("mask")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only-tissue", action="store_true")
    asked = parser.parse_args()
    source = nib.Nifti1Image.from_filename(asked.image)
    mask = np.asarray(nib.Nifti1Image.from_filename(asked.mask).dataobj) > 0
    zooms = np.array(source.header.get_zooms()[:3], dtype=np.float64)
    box = tuple(
        slice(max(0, found.min() - MARGIN), found.max() + MARGIN + 1) for found in np.nonzero(mask)
    )
    inside = mask[box]
    labels = tissue(source.get_fdata(dtype=np.float32)[box], inside, zooms)
    maps = {"tissue": labels}
    if not asked.only_tissue:
        maps |= cortex(labels, zooms)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, values in maps.items():
        whole = np.zeros(mask.shape, dtype=np.float32)
        whole[box] = np.where(inside, values, 0)
        nib.save(nib.Nifti1Image(whole, source.affine), asked.out / f"{name}.nii.gz")


if __name__ == "__main__":
    main()
