# SPDX-License-Identifier: Apache-2.0
"""Prepare one scan for the combination: on the common grid and scale, with its confidence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import nibabel as nib
import numpy as np
import torch

from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.noise_level import read_noise

from .frame import Grid, coverage
from .observation import Observation, total
from .resampling import Resampler
from .shading import fit_shading, shading_map
from .slice_weights import along, slice_axis, slice_weights, weights_on_frame

UNKNOWN_ERROR = 0.08  # of the range, where there is no map of the expected error
LEAST_NOISE = 0.005  # of the range
LEAST_TRUST = 1e-3  # outside every field of view the volume continues what lies inside
SEEN = 0.9  # share of a voxel that another scan has to cover


@dataclass(frozen=True)
class Scan:
    """One scan, as acquired and as restored alone.

    Parameters
    ----------
    name
        Name in figures and warnings.
    image
        3-D, the voxels that were measured.
    acquisition
        How they were sampled.
    single
        The restored image: outer corner and axes of ``image``, the common voxel size.
    error
        Expected error of ``single`` on its grid, or None.
    noise
        Standard deviation of the noise in units of ``image``; estimated if None.
    """

    name: str
    image: nib.Nifti1Image
    acquisition: Acquisition
    single: nib.Nifti1Image
    error: nib.Nifti1Image | None = None
    noise: float | None = None

    @property
    def grid(self) -> Grid:
        """Grid of the voxels that were measured."""
        return grid_of(self.image)

    @property
    def axis(self) -> int | None:
        """Across slices, None for a 3-D scan."""
        return slice_axis(self.acquisition)


@dataclass(frozen=True)
class View:
    """A scan as the estimate needs it; volumes are on the common grid and scale.

    ``restored``: the restored image, its shading undone; ``variance``: of its error; ``trust``:
    confidence (0 to 1), 0 outside the field of view; ``slices``: confidence in each slice;
    ``brightness``: mean of the shading.
    """

    scan: Scan
    observation: Observation
    restored: torch.Tensor
    variance: torch.Tensor
    trust: torch.Tensor
    slices: np.ndarray
    brightness: float


def grid_of(image: nib.Nifti1Image) -> Grid:
    """Grid of an image."""
    first, second, third = (int(n) for n in image.shape)
    return Grid((first, second, third), np.asarray(image.affine, dtype=float))


def noise_of(scan: Scan) -> float:
    """Noise in units of the scan: as stated, else read from it."""
    if scan.noise is not None:
        return scan.noise
    data = np.asarray(scan.image.dataobj, dtype=np.float32)
    return read_noise(data, voxel_sizes(scan.image.affine)).sigma


# The head is found once in an image, not each time that its range is asked for.
_ranges: WeakKeyDictionary[nib.Nifti1Image, float] = WeakKeyDictionary()


def range_of(scan: Scan) -> float:
    """99.5th percentile of the head: one, on the common scale."""
    if scan.image not in _ranges:
        _ranges[scan.image] = _range(scan)
    return _ranges[scan.image]


def _range(scan: Scan) -> float:
    data = np.asarray(scan.image.dataobj, dtype=np.float32)
    inside = data[head_mask_array(data, voxel_sizes(scan.image.affine))]
    value = float(np.percentile(inside, 99.5)) if inside.size else 0.0
    if not value > 0:
        raise ImageError(f"{scan.name} shows no head: it cannot be combined.")
    return value


@dataclass(frozen=True)
class Setting:
    """Shared settings of the scans of a group: the grid of the result and the first scan's scale.

    Each scan is divided by its own scale, so that its units do not matter.
    """

    frame: Grid
    scale: float

    def view(
        self, scan: Scan, move: np.ndarray, first: View | None, slices: np.ndarray | None = None
    ) -> View:
        """One scan, moved by `move` (world coordinates of the result to its own).

        Its shading is that next to `first` (None: it is the first); `slices` are the weights of
        its slices (None: all one).
        """
        if slices is None:
            slices = np.ones(scan.image.shape[scan.axis or 0])
        scale = self.scale if first is None else range_of(scan)
        fine, measured = grid_of(scan.single), _tensor(scan.image, scale)
        one = torch.ones(1, 1, 1)
        operator = Operator.between(
            fine.shape, voxel_sizes(fine.affine),
            scan.grid.shape, voxel_sizes(scan.grid.affine), scan.acquisition,
        )  # fmt: skip
        observation = Observation(
            measured,
            Resampler(self.frame, fine, np.linalg.inv(move)),
            operator,
            max(noise_of(scan) / scale, LEAST_NOISE),
            one,
            torch.from_numpy(along(slices, scan.axis)) if scan.axis is not None else one,
        )
        view = self._shaded(scan, scale, move, observation, first)
        trust = self._trust(scan, move, slices)
        return replace(view, trust=trust, slices=slices)

    def _shaded(
        self,
        scan: Scan,
        scale: float,
        move: np.ndarray,
        observation: Observation,
        first: View | None,
    ) -> View:
        """The view without its trust, with the scan's shading fitted to the first one."""
        restored, brightness = _tensor(scan.single, scale), 1.0
        if first is not None:
            seen = observation.forward(first.trust) > SEEN
            coefficients = fit_shading(
                observation.measured.numpy(),
                observation.forward(first.restored).numpy(),
                (seen * observation.weights).numpy(),
                max(observation.sigma, first.observation.sigma),
            )
            shading = torch.from_numpy(shading_map(coefficients, observation.measured.shape))
            restored = restored / torch.from_numpy(shading_map(coefficients, restored.shape))
            brightness = total(shading) / shading.numel()
            observation = replace(observation, shading=shading)
        to_frame = Resampler(grid_of(scan.single), self.frame, move)
        if scan.error is None:
            error = torch.full(self.frame.shape, UNKNOWN_ERROR)
        else:
            error = to_frame.forward(_tensor(scan.error, scale)).clamp_min(LEAST_NOISE)
        return View(
            scan,
            observation,
            to_frame.forward(restored),
            error.square_().add_((observation.sigma / brightness) ** 2),
            torch.ones(1, 1, 1),
            np.ones(1),
            brightness * scale / self.scale,
        )

    def _trust(self, scan: Scan, move: np.ndarray, slices: np.ndarray) -> torch.Tensor:
        """Field of view times the weight of the slices, on the frame."""
        trust = coverage(self.frame, scan.grid, move).astype(np.float32)
        if scan.axis is not None and slices.min() < 1:
            to_scan = np.linalg.inv(scan.grid.affine) @ move @ self.frame.affine
            trust *= weights_on_frame(slices, scan.axis, to_scan, trust.shape)
        return torch.from_numpy(trust)


def _tensor(image: nib.Nifti1Image, scale: float) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32) / np.float32(scale))


def mean_of(views: Sequence[View]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the restored images by trust over variance, and the variance of that mean."""
    total, weights = torch.zeros_like(views[0].restored), torch.zeros_like(views[0].restored)
    for view in views:
        weight = view.trust.clamp_min(LEAST_TRUST) / view.variance
        total.addcmul_(weight, view.restored)
        weights.add_(weight)
    return total / weights, 1 / weights


def weigh_slices(view: View, others: Sequence[View]) -> np.ndarray:
    """Return the confidence in each slice of a scan, compared with the other scans."""
    if view.scan.axis is None:
        return view.slices
    expected = view.observation.forward(mean_of(others)[0])
    trust = torch.stack([other.trust for other in others]).amax(dim=0)
    inside = (view.observation.forward(trust) > SEEN * view.observation.shading) & (
        expected > UNKNOWN_ERROR
    )
    return slice_weights(
        (view.observation.measured - expected).numpy(),
        expected.numpy(),
        inside.numpy(),
        view.scan.axis,
        view.observation.sigma,
    )
