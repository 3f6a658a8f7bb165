# SPDX-License-Identifier: Apache-2.0
"""Whether borders of carried labels gain from the edges of the super-resolved image.

``python -m research.measurements.label_edges LABELS.nii.gz… [--lesions N]`` renders label maps as
T1w images (partial volume, texture, shading, Rician noise), averages image and labels over larger
voxels, restores the image with the student, and prints the Dice of the labels carried alone, drawn
to the restored image, and drawn to the same image mirrored, whose edges are wrong.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff import super_resolve
from bids_moediff.imaging import label_maps as package
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.separable import along_axes

from .label_maps import FINE, SETTINGS, _dice, _grids, lesion, middle, one_hot
from .rendered import FLUID, WHITE

SIDE = 64  # voxels of the middle of a head
LESION_SIDE = 24
# Brightness: white matter 1; deep grey matter between it and cortex.
DEEP = {
    8: 0.68, 47: 0.68, 10: 0.8, 49: 0.8, 11: 0.72, 50: 0.72, 12: 0.75, 51: 0.75, 13: 0.88,
    52: 0.88, 26: 0.72, 58: 0.72,
}  # fmt: skip
CORTEX, CEREBROSPINAL, OUTSIDE = 0.65, 0.25, 0.12


def brightness(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Mean signal of the tissues with smooth shading of 10 %."""
    tones = np.full(labels.shape, CORTEX, np.float32)
    tones[np.isin(labels, WHITE)] = 1
    tones[np.isin(labels, FLUID)] = CEREBROSPINAL
    tones[labels == 0] = OUTSIDE
    for code, tone in DEEP.items():
        tones[labels == code] = tone
    shading = ndimage.gaussian_filter(random.standard_normal(labels.shape), 25)
    return tones * (1 + 0.1 * shading / np.abs(shading).max())


def lesions(count: int) -> np.ndarray:
    """Lesions of 2 to 8 voxels on a lattice, numbered from 1."""
    side = int(np.ceil(count ** (1 / 3)))
    labels = np.zeros((side * LESION_SIDE,) * 3, np.int32)
    for index, diameter in enumerate(np.linspace(2, 8, count)):
        corner = np.unravel_index(index, (side,) * 3)
        box = tuple(slice(c * LESION_SIDE, (c + 1) * LESION_SIDE) for c in corner)
        labels[box] = lesion(float(diameter), index, LESION_SIDE) * (index + 1)
    return labels


def compare(labels: np.ndarray, tones: np.ndarray, zooms: Triple, noise: float) -> np.ndarray:
    """Mean Dice of three ways: alone, drawn to the restored image, drawn to wrong edges."""
    random = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(random.standard_normal(labels.shape), 0.7)
    image = 1000 * ndimage.gaussian_filter(tones * (1 + 0.03 * texture / texture.std()), 0.5)
    truth = np.asarray(np.unique(labels, return_inverse=True)[1]).reshape(labels.shape)
    across, along, up = labels.shape
    grids = _grids((across, along, up), zooms)
    low = along_axes(image.astype(np.float32), grids.average())
    sigma = 1000 * noise
    low = np.hypot(low + random.normal(0, sigma, low.shape), random.normal(0, sigma, low.shape))
    scan = nib.Nifti1Image(low.astype(np.float32), np.diag([*zooms, 1.0]))
    restored = super_resolve(scan, FINE, model="student", device="cpu")
    fine = np.asarray(restored.dataobj, np.float32)
    main = package._each(grids.average(), one_hot(truth)).argmax(0)
    scores = []
    for guide in (None, fine, fine[::-1].copy()):
        carried = package.carry_labels(main, zooms, grids.fine_shape, FINE, guide)
        codes = range(1, int(truth.max()) + 1)
        scores.append(np.mean([_dice(carried == code, truth == code) for code in codes]))
    return np.array(scores)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line a map and setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", type=Path)
    parser.add_argument("--lesions", type=int, default=0, help="how many, of 2 to 8 voxels")
    parser.add_argument("--tone", type=float, default=1.4, help="brightness of lesions beside 1")
    parser.add_argument("--noise", type=float, default=0.02, help="sigma beside white matter")
    options = parser.parse_args(argv)
    cases = {}
    for path in options.labels:
        cases[path.name] = (
            tissue := middle(path, SIDE),
            brightness(tissue, np.random.default_rng(1)),
        )
    if options.lesions:
        spots = lesions(options.lesions)
        cases[f"lesions {options.tone}"] = (spots, np.where(spots > 0, options.tone, 1.0) * 0.6)
    print("| map | setting | alone | drawn to edges | drawn to wrong edges |")
    print("| --- | --- | --- | --- | --- |")
    for name, (labels, tones) in cases.items():
        for setting, zooms in SETTINGS.items():
            words = " | ".join(f"{s:.3f}" for s in compare(labels, tones, zooms, options.noise))
            print(f"| {name} | {setting} | {words} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
