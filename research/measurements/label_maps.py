# SPDX-License-Identifier: Apache-2.0
"""How well labels and lesions keep their place on a finer grid, beside usual interpolation.

``python -m research.measurements.label_maps LABELS.nii.gz… [--lesions N]`` averages each label
over larger voxels, once as fractions and once as the main label, carries both to finer ones (x2
isotropic; x4 along the last axis; x10/7, as from 1 to 0.7 mm, from 2 to 1.4 mm), and prints Dice
and the error of volume: means over the labels (or lesions). Volumes are compared with the averaged
map that was carried. The last column is the error of a carried fraction's average over the
acquired voxels, where the given one is neither 0 nor 1.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_moediff.imaging import label_maps
from bids_moediff.imaging.grid import Shape, Triple

FINE: Triple = (1.0, 1.0, 1.0)
SETTINGS: dict[str, Triple] = {"x2 isotropic": (2.0, 2.0, 2.0), "x4 slices": (1.0, 1.0, 4.0)}
# Acquired and output voxels of the setting where output voxels lie in two acquired ones.
UNEVEN, UNEVEN_SIDE = ((2.0, 2.0, 2.0), (1.4, 1.4, 1.4)), 14
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


def _grids(shape: Shape, zooms: Triple, fine_zooms: Triple = FINE) -> label_maps._Grids:
    """From a grid of ``zooms`` to the finer one of ``shape``."""
    counts = [round(n * f / z) for n, f, z in zip(shape, fine_zooms, zooms, strict=True)]
    return label_maps._Grids((counts[0], counts[1], counts[2]), zooms, shape, fine_zooms)


def nearest(given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """The value of the voxel that holds the fine voxel's centre."""
    for axis, (count, fine, _, coarse) in enumerate(grids._axes()):
        index = ((np.arange(count) + 0.5) * fine / coarse + 1e-6).astype(int)
        given = np.take(given, index, axis=axis + 1)
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
    """Dice, relative error of volume, error of averages (labels, 3) for each map and method."""
    parts = one_hot(truth)
    grids = _grids(truth.shape, zooms)
    return _scores(truth, label_maps._each(grids.average(), parts), grids)


def uneven_scores(truth: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """As :func:`scores` where output voxels lie in two acquired ones."""
    coarse, fine = UNEVEN
    cut = [count % UNEVEN_SIDE // 2 for count in truth.shape]
    sides = [count - count % UNEVEN_SIDE for count in truth.shape]
    places = tuple(slice(low, low + side) for low, side in zip(cut, sides, strict=True))
    parts = one_hot(truth)[(slice(None), *places)]
    counts = [round(side / zoom) for side, zoom in zip(sides, fine, strict=True)]
    wanted = label_maps._Grids((counts[0], counts[1], counts[2]), fine, parts.shape[1:], FINE)
    on_output = label_maps._each(wanted.average(), parts).argmax(0)
    averaged = label_maps._each(_grids(parts.shape[1:], coarse).average(), parts)
    return _scores(on_output, averaged, _grids(on_output.shape, coarse, fine))


def _scores(
    truth: np.ndarray, averaged: np.ndarray, grids: label_maps._Grids
) -> dict[tuple[str, str], np.ndarray]:
    main = one_hot(averaged.argmax(0))
    missing = np.zeros((len(averaged) - len(main), *main.shape[1:]), np.float32)
    main = np.concatenate([main, missing])
    table = {}
    for kind, given, ours in (("fractions", averaged, fractions), ("labels", main, hard)):
        volume = given.reshape(len(given), -1).sum(1) * float(np.prod(grids.coarse_zooms))
        for name, method in {**USUAL, "carried": ours}.items():
            carried = method(given, grids)
            winner = carried.argmax(0)
            # What is written for fractions are fractions: their sum is the volume.
            soft = kind == "fractions" and name != "signed distance"
            filled = (
                carried.reshape(len(given), -1).sum(1)
                if soft
                else np.bincount(winner.ravel(), minlength=len(given))
            ) * float(np.prod(grids.fine_zooms))
            error = np.abs(filled - volume) / np.maximum(volume, 1)
            overlap = [_dice(winner == code, truth == code) for code in range(len(given))]
            away = _away(carried, given, grids) if soft else np.full(len(given), np.nan)
            table[kind, name] = np.stack([overlap, error, away], axis=1)[1:]
    return table


def _away(carried: np.ndarray, given: np.ndarray, grids: label_maps._Grids) -> np.ndarray:
    """Mean error of the averages of each label where the given one is neither 0 nor 1."""
    error = np.abs(label_maps._each(grids.average(), carried) - given)
    mixed = (given > 1e-3) & (given < 1 - 1e-3)
    return np.array([
        label[where].mean() if where.any() else np.nan
        for label, where in zip(error, mixed, strict=True)
    ])  # fmt: skip


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
    settings: dict[str, Callable[[np.ndarray], dict[tuple[str, str], np.ndarray]]]
    settings = {name: partial(scores, zooms=zooms) for name, zooms in SETTINGS.items()}
    settings["x10/7 isotropic"] = uneven_scores
    for setting, measure in settings.items():
        collected: dict[tuple[str, str], list[np.ndarray]] = {}
        for truth in subjects.values():
            for key, table in measure(truth).items():
                collected.setdefault(key, []).append(table)
        print(
            f"\n{setting}: {len(subjects)} maps\n\n"
            "| map | method | Dice | volume error | worst | averages |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        for (kind, name), rows in collected.items():
            values = np.concatenate(rows)
            dice, error = values[:, :2].mean(0)
            away = values[np.isfinite(values[:, 2]), 2]
            last = f"{away.mean():.4f}" if away.size else "-"
            print(
                f"| {kind} | {name} | {dice:.3f} | {error:.1%} | {values[:, 1].max():.1%} | "
                f"{last} |"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
