# SPDX-License-Identifier: Apache-2.0
"""Dice of the brain mask on its native grid against the truth of label maps that were left out.

    python -m research.brain_mask.check --labels DIR [--heads N]

Every whole head is painted in three contrasts and shown as it is, at the size of a child's, with
wide ventricles and folds, in thick slices, defaced and skull-stripped. No step of training is
shared but the definition of the truth.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.imaging.masks import block_mean
from bids_moediff.preprocessing.brain_mask import MODEL, brain_mask
from research.brain_mask.train import FLUID, LEFT_OUT, OUTSIDE, brain_truth

WHITE = (2, 7, 16, 28, 41, 46, 60, 85)
FLUIDS = (4, 5, 14, 15, FLUID, 43, 44, 72)
# Brightness of white matter, grey matter, fluid; bone is dark, other labels get a fixed grey each.
CONTRASTS = {"T1w": (1.0, 0.7, 0.25), "T2w": (0.4, 0.55, 1.0), "FLAIR": (0.6, 0.75, 0.15)}
BONE = 511

Volume = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


def paint(labels: np.ndarray, contrast: str, seed: int = 0) -> np.ndarray:
    """A scan of a label map: brightness by tissue, noise and shading, ``float32``."""
    white, grey, fluid = CONTRASTS[contrast]
    rng = np.random.default_rng(seed)
    image = np.where((labels > 0) & (labels < OUTSIDE), grey, 0.0)
    image[np.isin(labels, WHITE)] = white
    image[np.isin(labels, FLUIDS)] = fluid
    for label in np.unique(labels[labels >= OUTSIDE]):
        image[labels == label] = 0.08 if label == BONE else rng.uniform(0.3, 0.9)
    image = ndimage.gaussian_filter(image, 0.6)
    ramp = np.linspace(-0.15, 0.15, labels.shape[2])
    image = image * np.exp(ramp) + 0.02 * rng.standard_normal(labels.shape)
    return (1000.0 * np.abs(image)).astype(np.float32)


def _plain(image: np.ndarray, truth: np.ndarray) -> Volume:
    return image, truth, (1.0, 1.0, 1.0)


def _child(image: np.ndarray, truth: np.ndarray) -> Volume:
    return image, truth, (0.8, 0.8, 0.8)  # half the volume


def _thick(image: np.ndarray, truth: np.ndarray) -> Volume:
    share = block_mean(truth.astype(np.float32), (1, 1, 5))
    return block_mean(image, (1, 1, 5)), share >= 0.5, (1.0, 1.0, 5.0)


def _defaced(image: np.ndarray, truth: np.ndarray) -> Volume:
    y, z = np.meshgrid(*(np.arange(n) for n in image.shape[1:]), indexing="ij")
    height = (y - 1.2 * z)[None]
    limit = np.broadcast_to(height, truth.shape)[truth].max() + 4
    return np.where(height < limit, image, 0.0), truth, (1.0, 1.0, 1.0)


def _stripped(image: np.ndarray, truth: np.ndarray) -> Volume:
    return image * truth, truth, (1.0, 1.0, 1.0)


def _cropped(image: np.ndarray, truth: np.ndarray) -> Volume:
    low = int(np.flatnonzero(truth.any((0, 1)))[0]) + 40
    return image[:, :, low:], truth[:, :, low:], (1.0, 1.0, 1.0)


VARIANTS: dict[str, Callable[[np.ndarray, np.ndarray], Volume]] = {
    "as it is": _plain,
    "child-sized": _child,
    "5 mm slices": _thick,
    "defaced": _defaced,
    "stripped": _stripped,
    "cropped": _cropped,
}


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice overlap of two boolean arrays."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def atrophy(labels: np.ndarray) -> np.ndarray:
    """The same head with wider ventricles and folds: two voxels of tissue turn to fluid."""
    fluid = np.isin(labels, FLUIDS)
    grown = ndimage.binary_dilation(fluid, iterations=2)
    tissue = (labels > 0) & (labels < OUTSIDE)
    return np.where(grown & tissue, FLUID, labels)


def check_head(
    path: Path, model: str, contrasts: Sequence[str] = tuple(CONTRASTS)
) -> dict[tuple[str, str], float]:
    """Dice for every contrast and variant of one label map."""
    labels = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj).astype(np.int32)
    head = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    labels = np.pad(labels[head], 8)  # without the air around it: the painting is faster
    truth = brain_truth(labels)
    scores = {}
    for contrast in contrasts:
        plain, old = paint(labels, contrast), paint(atrophy(labels), contrast)
        scans = {name: (plain, variant) for name, variant in VARIANTS.items()}
        scans["wide folds"] = (old, _plain)
        for name, (source, variant) in scans.items():
            image, true, zooms = variant(source, truth)
            found, _ = brain_mask(nib.Nifti1Image(image, np.diag([*zooms, 1.0])), model)
            scores[contrast, name] = dice(np.asarray(found.dataobj) > 0, true)
    return scores


def main() -> None:
    """Print one row per variant, one column per contrast: mean and lowest Dice over heads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--labels", type=Path, required=True, help="folder with label maps")
    parser.add_argument("--heads", type=int, default=4, help="how many of the left-out heads")
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(options.labels.rglob("training_seg*.nii.gz"))
        if path.name.startswith(LEFT_OUT)
    ][: options.heads]
    results = [check_head(path, options.model) for path in paths]
    print("| head | " + " | ".join(CONTRASTS) + " |")
    print("|---" * (1 + len(CONTRASTS)) + "|")
    for name in dict.fromkeys(variant for _, variant in results[0]):
        cells = [[result[contrast, name] for result in results] for contrast in CONTRASTS]
        row = [f"{np.mean(cell):.3f} (lowest {np.min(cell):.3f})" for cell in cells]
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
