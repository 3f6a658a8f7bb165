# SPDX-License-Identifier: Apache-2.0
"""How well labels and lesions keep their place on a finer grid, beside usual interpolation.

``python -m research.measurements.label_maps LABELS.nii.gz… [--lesions N]`` averages each label
over larger voxels (x2 isotropic; x4 along the last axis), once as fractions and once as the main
label, carries both back, and prints Dice and the error of volume: means over the labels (or
lesions). Volumes are compared with the averaged map that was carried.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.imaging import label_maps
from bids_moediff.imaging.grid import Shape, Triple

FINE: Triple = (1.0, 1.0, 1.0)
SETTINGS: dict[str, Triple] = {"x2 isotropic": (2.0, 2.0, 2.0), "x4 slices": (1.0, 1.0, 4.0)}
SIDE = 96  # voxels of the middle of a head that are used
SMALLEST = 30  # voxels of a label that is scored
EXTRACEREBRAL = 500  # labels from here on are skull and scalp in the SynthSeg maps


def middle(path: Path, side: int = SIDE) -> np.ndarray:
    """FreeSurfer labels of the middle of a head; labels of a few voxels become background."""
    labels = np.asarray(nib.Nifti1Image.from_filename(path).dataobj).astype(np.int32)
    labels[labels >= EXTRACEREBRAL] = 0
    places = np.argwhere(labels > 0)
    centre = (places.min(0) + places.max(0)) // 2
    labels = labels[tuple(slice(c - side // 2, c + side // 2) for c in centre)]
    codes, counts = np.unique(labels, return_counts=True)
    labels[~np.isin(labels, codes[counts >= SMALLEST])] = 0
    return labels


def numbered(labels: np.ndarray) -> np.ndarray:
    """Labels as 0, 1, 2 and so on."""
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape)


def lesion(diameter: float, seed: int, side: int = 32) -> np.ndarray:
    """A mask of one lesion: a turned ellipsoid with a wavy outline, ``diameter`` in voxels."""
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    stretch = np.exp(0.25 * random.normal(size=3))
    centre = side / 2 + random.uniform(-2, 2, 3)
    offset = (
        np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij")) - centre[:, None, None, None]
    )
    along = (
        np.einsum("ij,jxyz->ixyz", turn, offset)
        / (stretch / stretch.prod() ** (1 / 3))[:, None, None, None]
    )
    waves = ndimage.gaussian_filter(random.normal(size=(side,) * 3), 1.5)
    radius = diameter / 2 * (1 + 0.2 * np.clip(waves / waves.std(), -2, 2))
    return (np.sqrt((along**2).sum(0)) < radius).astype(np.int32)


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Fractions (L, X, Y, Z) of a label map."""
    return np.stack([labels == code for code in range(int(labels.max()) + 1)]).astype(np.float32)


def _grids(shape: Shape, zooms: Triple) -> label_maps._Grids:
    counts = [round(n / z) for n, z in zip(shape, zooms, strict=True)]
    return label_maps._Grids((counts[0], counts[1], counts[2]), zooms, shape, FINE)


def nearest(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """The value of the voxel that holds the fine voxel's centre."""
    for axis, zoom in enumerate(grids.coarse_zooms):
        given = np.repeat(given, int(zoom), axis=axis + 1)
    return given


def linear(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """Linear interpolation of each label's fraction."""
    return label_maps._each(grids.interpolation(1), given)


def signed_distance(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """Cubic interpolation of each label's signed distance (label where the fraction is 1/2)."""
    distances = [
        label_maps._signed_distance(part >= 0.5, grids.coarse_zooms)
        if (part >= 0.5).any()
        else np.full(part.shape, -100.0, np.float32)
        for part in given
    ]
    return label_maps._each(grids.interpolation(3), np.stack(distances))


def fractions(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """Fractions carried as fractions."""
    return label_maps.carry_fractions(
        given, grids.coarse_zooms, grids.fine_shape, grids.fine_zooms
    )


def hard(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """Labels carried as labels."""
    labels = label_maps.carry_labels(
        given.argmax(0), grids.coarse_zooms, grids.fine_shape, grids.fine_zooms
    )
    return np.stack([labels == code for code in range(len(given))]).astype(np.float32)


Method = Callable[[np.ndarray, label_maps._Grids], np.ndarray]
USUAL: dict[str, Method] = {
    "nearest neighbour": nearest, "linear": linear, "signed distance": signed_distance,
}  # fmt: skip


def scores(truth: np.ndarray, zooms: Triple) -> dict[tuple[str, str], np.ndarray]:
    """Dice and relative error of volume (labels, 2) for each kind of map and each method."""
    parts = one_hot(truth)
    grids = _grids(truth.shape, zooms)
    averaged = label_maps._each(grids.average(), parts)
    main = one_hot(averaged.argmax(0))
    main = np.concatenate([main, np.zeros((len(parts) - len(main), *main.shape[1:]), np.float32)])
    table = {}
    for kind, given, ours in (("fractions", averaged, fractions), ("labels", main, hard)):
        volume = given.reshape(len(given), -1).sum(1) * float(np.prod(zooms))
        for name, method in {**USUAL, "carried": ours}.items():
            carried = method(given, grids)
            winner = carried.argmax(0)
            # What is written for fractions are fractions: their sum is the volume.
            soft = kind == "fractions" and name != "signed distance"
            filled = (
                carried.reshape(len(given), -1).sum(1)
                if soft
                else np.bincount(winner.ravel(), minlength=len(given))
            )
            error = np.abs(filled - volume) / np.maximum(volume, 1)
            overlap = [_dice(winner == code, truth == code) for code in range(len(given))]
            table[kind, name] = np.stack([overlap, error], axis=1)[1:]
    return table


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", nargs="*", type=Path)
    parser.add_argument("--lesions", type=int, default=0, help="how many, of 2 to 8 voxels")
    options = parser.parse_args(argv)
    subjects = {path.name: numbered(middle(path)) for path in options.labels}
    for index, diameter in enumerate(np.linspace(2, 8, options.lesions)):
        subjects[f"lesion {index}"] = lesion(float(diameter), index)
    for setting, zooms in SETTINGS.items():
        collected: dict[tuple[str, str], list[np.ndarray]] = {}
        for truth in subjects.values():
            for key, table in scores(truth, zooms).items():
                collected.setdefault(key, []).append(table)
        print(
            f"\n{setting}: {len(subjects)} maps\n\n| map | method | Dice | volume error | worst |"
        )
        print("| --- | --- | --- | --- | --- |")
        for (kind, name), rows in collected.items():
            values = np.concatenate(rows)
            dice, error = values.mean(0)
            print(f"| {kind} | {name} | {dice:.3f} | {error:.1%} | {values[:, 1].max():.1%} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
