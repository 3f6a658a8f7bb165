# SPDX-License-Identifier: Apache-2.0
"""What is read of noise, slices and k-space filters, on scans where the truth is known.

``python -m research.measurements.acquisition_readings noise|slices|kspace|look FILE…``

* ``noise``: Rician noise added to the file as it is, at x2 isotropic and on slices x4; what is
  read beyond the file's own noise, in percent of the head's 90th percentile;
* ``slices``: slices x4 of each profile, 2 % noise; reading and what would be told;
* ``kspace``: x2 isotropic with each filter, no and 2 % noise; figures and what would be told;
* ``look``: the file as it is.

One line a case, columns separated by tabs. No network runs.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_moediff.imaging.acquisition import Acquisition, Axis, axis_matrix
from bids_moediff.imaging.acquisition_choice import SLICES, choose_acquisition
from bids_moediff.imaging.acquisition_estimate import read_kspace, read_slices
from bids_moediff.imaging.grid import Triple, voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.noise_level import read_noise
from bids_moediff.imaging.separable import along_axes
from bids_moediff.imaging.simulated_filters import FILTERS, add_rician_noise, filter_kspace
from bids_moediff.imaging.spectrum import acquired_resolution

Row = tuple[object, ...]
SHARP_FACTOR = 1.3  # an axis whose spectrum ends earlier than this holds no truth at x2
MARGIN = 12


def load(path: Path) -> tuple[np.ndarray, np.ndarray, Triple]:
    """(x, y, z) intensities and head mask, cut to the head, and voxel sizes."""
    image = nib.Nifti1Image.from_filename(path)
    data, zooms = np.asarray(image.dataobj, dtype=np.float32), voxel_sizes(image.affine)
    head = head_mask_array(data, zooms)
    box = tuple(
        slice(max(0, int(where.min()) - MARGIN), int(where.max()) + MARGIN + 1)
        for where in np.nonzero(head)
    )
    return np.ascontiguousarray(data[box]), head[box], zooms


def coarsen(
    data: np.ndarray, zooms: Triple, factors: tuple[int, int, int], profile: Axis
) -> tuple[np.ndarray, Triple]:
    """The head on voxels that are ``factors`` times as large, and their sizes."""
    counts = [size // factor for size, factor in zip(data.shape, factors, strict=True)]
    data = data[tuple(slice(c * f) for c, f in zip(counts, factors, strict=True))]
    first, second, third = (zoom * factor for zoom, factor in zip(zooms, factors, strict=True))
    sizes = (first, second, third)
    matrices = [
        axis_matrix(data.shape[axis], zooms[axis], counts[axis], sizes[axis], profile)
        for axis in range(3)
    ]
    single = [None if matrix is None else matrix.astype(np.float32) for matrix in matrices]
    return np.ascontiguousarray(along_axes(data, single)), sizes


def sharp_axes(data: np.ndarray, zooms: Triple, head: np.ndarray) -> list[int]:
    """Axes along which the head is as fine as its voxels."""
    found = acquired_resolution(data, zooms, head)
    return [k for k in range(3) if found[k].acquired < SHARP_FACTOR * found[k].voxel]


def noise_rows(data: np.ndarray, head: np.ndarray, zooms: Triple) -> Iterator[Row]:
    """Protocol, percent added, percent read, percent read beyond the file's own, source."""
    cases: dict[str, tuple[tuple[int, int, int], Axis, tuple[int, ...]]] = {
        "as it is": ((1, 1, 1), Axis("kspace"), (0, 1, 2, 4, 8)),
        "x2iso": ((2, 2, 2), Axis("kspace"), (0, 2, 4)),
        "x4slices": ((1, 1, 4), Axis("box"), (0, 2, 4)),
    }
    for name, (factors, profile, levels) in cases.items():
        coarse, sizes = coarsen(data, zooms, factors, profile)
        where = head_mask_array(coarse, sizes)
        percent = np.percentile(coarse[where], 90) / 100
        own = 0.0
        for level in levels:
            noisy = add_rician_noise(coarse, level * percent, 11) if level else coarse
            found = read_noise(noisy, sizes, where)
            own = found.sigma if level == 0 else own
            beyond = np.sqrt(max(found.sigma**2 - own**2, 0))
            yield name, level, _two(found.sigma / percent), _two(beyond / percent), found.source


def slice_rows(data: np.ndarray, head: np.ndarray, zooms: Triple) -> Iterator[Row]:
    """True profile, reading, and what is told where nothing and where the width is stated."""
    axis = sharp_axes(data, zooms, head)[-1]
    first, second, third = (4 if k == axis else 1 for k in range(3))
    for true in SLICES:
        coarse, sizes = coarsen(data, zooms, (first, second, third), true)
        sigma = 0.02 * float(np.percentile(data[head], 90))
        noisy = add_rician_noise(coarse, sigma, 1)
        where = head_mask_array(coarse, sizes)
        told = []
        for stated in (None, true.fwhm):
            thickness = None if stated is None else stated * sizes[axis]
            declared = Acquisition.of_slices(sizes, thickness=thickness)
            choice = choose_acquisition(declared, noisy, sizes, where, sigma, stated)
            told.append(_named(choice.acquisition.axes[axis]))
        yield _named(true), _two(read_slices(noisy, sizes, where, sigma)), *told, choice.weights


def kspace_rows(data: np.ndarray, head: np.ndarray, zooms: Triple) -> Iterator[Row]:
    """True filter, percent of noise, noise read, fall and corner, and what is told."""
    if len(sharp_axes(data, zooms, head)) < 3:
        return
    hard, sizes = coarsen(data, zooms, (2, 2, 2), Axis("kspace"))
    scans = {name: filter_kspace(hard, name) for name in FILTERS}
    scans |= {
        f"{name} 1": coarsen(data, zooms, (2, 2, 2), Axis(name))[0] for name in ("box", "gaussian")
    }
    percent = float(np.percentile(data[head], 90)) / 100
    for name, coarse in scans.items():
        for level in (0, 2):
            noisy = add_rician_noise(coarse, level * percent, 1) if level else coarse
            where = head_mask_array(noisy, sizes)
            sigma = read_noise(noisy, sizes, where).sigma
            figures = read_kspace(noisy, sizes, where, sigma)
            choice = choose_acquisition(Acquisition.uniform("kspace"), noisy, sizes, where, sigma)
            read = (None, None) if figures is None else (figures.fall, figures.corner)
            told = _named(choice.acquisition.axes[0])
            yield name, level, _two(sigma / percent), *map(_two, read), told, choice.weights


def look_rows(data: np.ndarray, head: np.ndarray, zooms: Triple) -> Iterator[Row]:
    """Voxel sizes, noise in percent with its source, reading of slices or k-space, told."""
    percent = float(np.percentile(data[head], 90)) / 100
    noise = read_noise(data, zooms, head)
    declared = Acquisition.from_metadata({}, zooms)
    if declared.has_slices:
        reading: Row = ("slices", _two(read_slices(data, zooms, head, noise.sigma)))
    else:
        figures = read_kspace(data, zooms, head, noise.sigma)
        read = () if figures is None else (_two(figures.fall), _two(figures.corner))
        reading = ("kspace", *read)
    choice = choose_acquisition(declared, data, zooms, head, noise.sigma)
    told = ", ".join(_named(axis) for axis in choice.acquisition.axes)
    sizes = " x ".join(f"{zoom:.3g}" for zoom in zooms)
    sigma, doubt = _two(noise.sigma / percent), _two(noise.uncertainty / percent)
    yield sizes, sigma, doubt, noise.source, *reading, told, choice.weights


ROWS: dict[str, Callable[[np.ndarray, np.ndarray, Triple], Iterator[Row]]] = {
    "noise": noise_rows, "slices": slice_rows, "kspace": kspace_rows, "look": look_rows,
}  # fmt: skip


def _two(number: float | None) -> str:
    return "-" if number is None else f"{number:.2f}"


def _named(axis: Axis) -> str:
    return "kspace" if axis.profile == "kspace" else f"{axis.profile} {axis.fwhm:g}"


def main(arguments: list[str]) -> int:
    """Print the rows of one kind for every file."""
    kind, *files = arguments
    for name in files:
        for row in ROWS[kind](*load(Path(name))):
            print(Path(name).name.split(".")[0], *row, sep="\t", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
