# SPDX-License-Identifier: Apache-2.0
"""What several scans of one head give together: stacks, repeats, scans that do not fit.

``python -m research.measurements.combination OUT --heads FILE… [--cases three,two,…]`` moves each
head by up to 2 mm and 2 degrees (splines of fifth degree, which the method does not use), makes
three stacks of it (1.5 voxels in plane, Gaussian slices of 5 voxels, 3 % Rician noise) or two
repeats (x2 isotropic, 4 %), restores each scan alone and combines them. The restored images are
kept in OUT. Rows are PSNR in the head mask on the voxels of the first, unmoved scan.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.combination.estimate import joint_estimate
from bids_moediff.combination.frame import Grid
from bids_moediff.combination.resampling import Resampler
from bids_moediff.combination.scans import combine
from bids_moediff.combination.view import Scan, Setting, grid_of
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import Triple, output_grid, voxel_sizes
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.registration import register
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options

from .rendered import SEQUENCES, render

THREE = (("ax2", 0), ("ax0", 1), ("ax1", 2))
TWO = (("ax2", 0), ("ax0", 1))
REPEATS = (("iso2", 0), ("iso2", 1))
SETS = {  # scans and their noise
    "three": (THREE, 0.03),
    "two": (TWO, 0.03),
    "repeats": (REPEATS, 0.04),
    "lowfield": (THREE, 0.06),  # 1.5 x 1.5 x 5 mm of a head of 1 mm voxels
}
CASES = (*SETS, "noisy", "stranger", "shifted")
NOISE, LOUD = 0.03, 0.15
LARGEST_MOVE = 2.0  # mm and degrees; at least half of it


def seed_of(value: object) -> int:
    """The same number for the same value, on every machine."""
    return zlib.crc32(repr(value).encode())


@dataclass(frozen=True)
class Head:
    """A true image and the part of it that is scanned (all of it without `crop`)."""

    path: Path
    crop: tuple[int, int, int] | None
    contrast: str | None = None  # of a label map

    @property
    def name(self) -> str:
        """File name without extension."""
        return self.path.name.split(".")[0]

    @cached_property
    def truth(self) -> nib.Nifti1Image:
        """The whole image, float32."""
        if self.contrast is not None:
            return render(self.path, self.contrast)
        image = nib.Nifti1Image.from_filename(self.path)
        return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)

    @cached_property
    def mask(self) -> np.ndarray:
        """The whole head."""
        return head_mask_array(np.asarray(self.truth.dataobj), voxel_sizes(self.truth.affine))

    @property
    def zooms(self) -> Triple:
        """Voxel sizes of the truth (mm)."""
        return voxel_sizes(self.truth.affine)

    @cached_property
    def part(self) -> tuple[slice, ...]:
        """Side and crown of the head, with air beside them."""
        if self.crop is None:
            return tuple(slice(0, n) for n in self.mask.shape)
        where, shape = np.argwhere(self.mask), self.mask.shape
        low, high = where.min(axis=0), where.max(axis=0)
        first = [
            min(max(0, low[0] - 4), shape[0] - self.crop[0]),
            min(max(0, (low[1] + high[1]) // 2 - self.crop[1] // 2), shape[1] - self.crop[1]),
            max(0, min(shape[2], high[2] + 5) - self.crop[2]),
        ]
        return tuple(slice(int(a), int(a) + n) for a, n in zip(first, self.crop, strict=True))

    def cut(self, data: np.ndarray) -> nib.Nifti1Image:
        """The scanned part of (X, Y, Z) data on the truth's grid."""
        affine = self.truth.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in self.part]
        return nib.Nifti1Image(np.ascontiguousarray(data[self.part]), affine)

    def score(self, image: nib.Nifti1Image) -> float:
        """PSNR (dB) of an image that holds the scanned part on the truth's voxels."""
        truth = self.cut(np.asarray(self.truth.dataobj))
        offset = np.round(np.linalg.inv(image.affine) @ truth.affine[:, 3])[:3].astype(int)
        part = tuple(slice(o, o + n) for o, n in zip(offset, truth.shape, strict=True))
        data = np.asarray(image.dataobj, dtype=np.float32)[part]
        return psnr(data, np.asarray(truth.dataobj), self.mask[self.part])


@dataclass(frozen=True)
class Made:
    """A simulated scan, its true move (world of the first scan to its own) and its noise."""

    scan: Scan
    move: np.ndarray
    sigma: float


def true_move(head: Head, index: int) -> np.ndarray:
    """World of the moved head to that of the still one; the identity for index 0."""
    if index == 0:
        return np.eye(4)
    random = np.random.default_rng(seed_of((head.name, index)))
    axis, shift = random.uniform(-1, 1, 3), random.uniform(-1, 1, 3)
    turn, length = LARGEST_MOVE * random.uniform(0.5, 1, 2)
    affine = head.truth.affine
    centre = affine[:3, :3] @ np.argwhere(head.mask).mean(axis=0) + affine[:3, 3]
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(
        axis / np.linalg.norm(axis) * turn, degrees=True
    ).as_matrix()
    move[:3, 3] = centre - move[:3, :3] @ centre + shift / np.linalg.norm(shift) * length
    return move


def acquire(
    fine: nib.Nifti1Image, kind: str, noise: float, seed: int
) -> tuple[nib.Nifti1Image, Acquisition, float]:
    """Coarse scan with Rician noise of the share `noise` of its 90th percentile, and its sigma."""
    zooms = voxel_sizes(fine.affine)
    ratios, axes = [2.0] * 3, [Axis("kspace")] * 3
    if kind != "iso2":
        ratios = [1.5] * 3
        ratios[int(kind[2])], axes[int(kind[2])] = 5.0, Axis("gaussian", 1.0)
    acquisition = Acquisition((axes[0], axes[1], axes[2]))
    wanted = [zoom * ratio for zoom, ratio in zip(zooms, ratios, strict=True)]
    shape, affine = output_grid(fine.shape, fine.affine, wanted)
    whole = [int(np.ceil(n * r - 1e-6)) for n, r in zip(shape, ratios, strict=True)]
    data = np.asarray(fine.dataobj, dtype=np.float32)
    data = np.pad(data, [(0, w - n) for w, n in zip(whole, data.shape, strict=True)], mode="edge")
    operator = Operator.between(
        (whole[0], whole[1], whole[2]), zooms, shape, voxel_sizes(affine), acquisition
    )
    clean = operator.forward(torch.from_numpy(data)).numpy()
    sigma = noise * float(np.percentile(clean[clean > 0.1 * np.percentile(clean, 99.5)], 90))
    random = np.random.default_rng(seed)
    real, imaginary = (sigma * random.standard_normal(clean.shape) for _ in range(2))
    data = np.hypot(clean + real, imaginary).astype(np.float32)
    return nib.Nifti1Image(data, affine), acquisition, sigma


class Maker:
    """Makes scans and restores each alone; restored images are kept in a folder."""

    def __init__(self, folder: Path, model: str, loud: float = LOUD) -> None:
        self.folder, self.model, self.loud = folder, model, loud

    @cached_property
    def resolver(self) -> SuperResolver:
        """The network, loaded when it is first needed."""
        return SuperResolver.from_pretrained(self.model)

    def scan(self, head: Head, kind: str, index: int, noise: float) -> Made:
        """One scan of a head that has moved (index 0: not)."""
        moved, data = true_move(head, index), np.asarray(head.truth.dataobj)
        if index:
            to_still = np.linalg.inv(head.truth.affine) @ moved @ head.truth.affine
            data = ndimage.affine_transform(data, to_still[:3, :3], to_still[:3, 3], order=5)
        seed = seed_of((head.name, kind, index))
        image, acquisition, sigma = acquire(head.cut(data), kind, noise, seed)
        single, error = self._single(
            f"{head.name}_{kind}_{index}_{noise:g}", image, acquisition, head.zooms
        )
        scan = Scan(f"{kind}-{index}", image, acquisition, single, error)
        return Made(scan, np.linalg.inv(moved), sigma)

    def _single(
        self, name: str, image: nib.Nifti1Image, acquisition: Acquisition, zooms: Triple
    ) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
        paths = [self.folder / f"{name}_{kind}.nii" for kind in ("single", "error")]
        if not all(path.exists() for path in paths):
            options = Options(output_resolution=zooms, outputs=("uncertainty",))
            result = self.resolver.enhance(image, options, Inputs(acquisition=acquisition))
            assert result.standard_deviation is not None
            nib.save(result.image, paths[0])
            nib.save(result.standard_deviation, paths[1])
        return nib.Nifti1Image.from_filename(paths[0]), nib.Nifti1Image.from_filename(paths[1])


def cubic(scan: Scan) -> nib.Nifti1Image:
    """Cubic interpolation of a scan to the voxels of its restored image."""
    fine = grid_of(scan.single)
    data = torch.from_numpy(np.asarray(scan.image.dataobj, dtype=np.float32))
    result = interpolate(
        data, voxel_sizes(scan.image.affine), fine.shape, voxel_sizes(fine.affine)
    )
    return nib.Nifti1Image(result.numpy(), fine.affine)


def brought(image: nib.Nifti1Image, frame: Grid, move: np.ndarray) -> torch.Tensor:
    """An image on the grid of the first scan."""
    data = torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))
    return Resampler(grid_of(image), frame, move).forward(data)


def rows(head: Head, made: Sequence[Made]) -> dict[str, float]:
    """What each way of using the scans reaches (dB), and the error of the registration (mm)."""
    scans, frame = [item.scan for item in made], grid_of(head.cut(np.asarray(head.truth.dataobj)))
    moves = [np.eye(4)] + [register(scans[0].single, scan.single) for scan in scans[1:]]
    singles = [brought(s.single, frame, m) for s, m in zip(scans, moves, strict=True)]
    cubics = [brought(cubic(s), frame, m) for s, m in zip(scans, moves, strict=True)]

    def score(volume: torch.Tensor) -> float:
        return head.score(nib.Nifti1Image(volume.numpy(), frame.affine))

    mean_cubic = torch.stack(cubics).mean(dim=0)
    setting = Setting(frame, float(np.percentile(np.asarray(head.truth.dataobj)[head.mask], 99.5)))
    first = setting.view(scans[0], moves[0], None)
    views = [first] + [
        setting.view(s, m, first) for s, m in zip(scans[1:], moves[1:], strict=True)
    ]
    around = joint_estimate(
        mean_cubic / setting.scale, 0.16, [view.observation for view in views]
    ).volume
    started = time.monotonic()
    result = combine(scans, head.zooms)
    seconds = time.monotonic() - started
    return {
        "best single cubic": max(map(score, cubics)),
        "best single": max(map(score, singles)),
        "mean of cubics": score(mean_cubic),
        "mean of singles": score(torch.stack(singles).mean(dim=0)),
        "joint around cubics": score(around * setting.scale),
        "combined": head.score(result.image),
        "registration mm": registration_error(head, made, moves),
        "seconds": seconds,
        "worst misfit": max(item.misfit for item in result.scans),
    }


def registration_error(head: Head, made: Sequence[Made], moves: Sequence[np.ndarray]) -> float:
    """Mean distance (mm) in the head between found and true moves, the first scan left out."""
    part = head.cut(head.mask.astype(np.float32))
    points = np.argwhere(np.asarray(part.dataobj) > 0)[::97]
    world = part.affine[:3, :3] @ points.T + part.affine[:3, 3:]
    errors = []
    for item, move in zip(made[1:], moves[1:], strict=True):
        difference = (move - item.move)[:3]
        shift = difference[:, :3] @ world + difference[:, 3:]
        errors.append(float(np.linalg.norm(shift, axis=0).mean()))
    return float(np.mean(errors))


def misfits(maker: Maker, head: Head, other: Head, case: str) -> dict[str, float]:
    """Three stacks of which the last does not fit, next to the other two alone."""
    made = [maker.scan(head, kind, index, NOISE) for kind, index in THREE]
    scans = [item.scan for item in made]
    if case == "noisy":
        bad = maker.scan(head, *THREE[2], maker.loud).scan
    elif case == "stranger":
        bad = maker.scan(other, *THREE[2], NOISE).scan
    else:
        bad = _shifted(scans[2], np.array([12.0, -12.0, 10.6]))
    with_it, without = combine([*scans[:2], bad], head.zooms), combine(scans[:2], head.zooms)
    return {
        "without": head.score(without.image),
        "with": head.score(with_it.image),
        "used": float(with_it.scans[2].kept),
        "weight": with_it.scans[2].weight,
        "agreement": with_it.scans[2].agreement,
    }


def _shifted(scan: Scan, offset: np.ndarray) -> Scan:
    """The scan with another place in its header (mm)."""

    def shift(image: nib.Nifti1Image | None) -> nib.Nifti1Image:
        assert image is not None
        affine = image.affine.copy()
        affine[:3, 3] += offset
        return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), affine)

    return replace(
        scan, image=shift(scan.image), single=shift(scan.single), error=shift(scan.error)
    )


def measure(maker: Maker, heads: Sequence[Head], case: str) -> list[tuple[str, dict[str, float]]]:
    """Figures of each head in one case."""
    found: list[tuple[str, dict[str, float]]] = []
    for index, head in enumerate(heads):
        if case in SETS:
            kinds, noise = SETS[case]
            made = [maker.scan(head, kind, k, noise) for kind, k in kinds]
            found.append((head.name, rows(head, made)))
        else:
            other = heads[(index + 1) % len(heads)]
            found.append((head.name, misfits(maker, head, other, case)))
        print(case, *(f"{k} {v:.3f}" for k, v in found[-1][1].items()), sep="; ", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for restored images")
    parser.add_argument("--heads", type=Path, nargs="+", required=True)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--crop", type=int, nargs=3, help="scan this many voxels only")
    parser.add_argument("--model", default="student")
    parser.add_argument("--loud", type=float, default=LOUD, help="noise of the scan of case noisy")
    parser.add_argument(
        "--rendered", choices=[*SEQUENCES], help="heads are label maps: their contrast at 64 mT"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    crop = None if options.crop is None else tuple(options.crop)
    heads = [Head(path, crop, options.rendered) for path in options.heads]
    maker = Maker(options.out, options.model, options.loud)
    for case in options.cases.split(","):
        found = measure(maker, heads, case)
        names = list(found[0][1])
        print(f"\n{case}\n\n| head | {' | '.join(names)} |\n|{'---|' * (1 + len(names))}")
        for name, values in found:
            print(f"| {name} | {' | '.join(f'{values[key]:.2f}' for key in names)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
