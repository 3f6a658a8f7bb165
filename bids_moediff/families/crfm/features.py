# SPDX-License-Identifier: Apache-2.0
"""Compute features of a reference contrast that describe the detail a scan has lost.

The reference goes through the acquisition of the scan: down and up again with the operator of the
scan. The loss in this round trip is the detail to be transferred. The relation between the two
contrasts is read from what the round trip keeps, by linear regression in windows of a few measured
voxels (the guided filter, He et al. 2010, doi:10.1007/978-3-642-15549-9_1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Windows in voxels of the output: so many measured voxels along each axis, and a border.
WINDOWS = ((2, 3), (4, 5))
FAINT = 0.01  # of the range: variations below are noise
STEEPEST = 5.0  # how much stronger than in the reference an edge may be
LARGEST = 0.3  # of the range: change that one window may propose
STRIDE = 2  # voxels: enough of them for a percentile
MAPS = 9  # on the fine grid
SUMMARIES = 5  # on the folded grid


@dataclass(frozen=True)
class Guides:
    """Images that the network works on, batch first, fine grid (B, 1, X, Y, Z).

    Parameters
    ----------
    base, start
        Output of the base network, and the interpolation that it started from.
    reference, trip
        The reference, about [0, 1], and its round trip through the acquisition of the scan.
    """

    base: Tensor
    start: Tensor
    reference: Tensor
    trip: Tensor


def windows(log_ratios: Sequence[float]) -> list[tuple[int, int, int]]:
    """Return odd window sizes in fine voxels for log2 voxel ratios, small window first."""
    found = []
    for voxels, border in WINDOWS:
        sizes = [voxels * max(1, round(2 ** float(value))) + border for value in log_ratios]
        x, y, z = (size + 1 - size % 2 for size in sizes)
        found.append((x, y, z))
    return found


def reach(log_ratios: Sequence[float]) -> int:
    """Return the number of planes along the first axis that a feature depends on."""
    return max(size[0] for size in windows(log_ratios)) // 2 + 1


def _averages(count: int, size: int, like: Tensor) -> Tensor:
    """Return the matrix (count, count) of a moving average over voxels of the volume."""
    place = torch.arange(count, device=like.device)
    inside = ((place[:, None] - place).abs() <= size // 2).to(like)
    return inside / inside.sum(1, keepdim=True)


def box_mean(volume: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Return means of (B, C, X, Y, Z) over a box of odd sizes, over voxels of the volume only."""
    first, second, third = (
        _averages(count, side, volume) for count, side in zip(volume.shape[2:], size, strict=True)
    )
    volume = second @ (volume @ third.T)
    return (first @ volume.flatten(3)).reshape(volume.shape)


def regression(guides: Guides, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return slope of the scan against the reference in each window, and squared correlation."""
    scan, known = guides.start, guides.trip
    parts = torch.cat([scan, known, scan * scan, known * known, scan * known], dim=1)
    means = box_mean(parts, size)
    first, second, squares, known_squares, products = means.split(1, dim=1)
    variance = (squares - first.square()).clamp_min(0)
    known_variance = (known_squares - second.square()).clamp_min(0)
    covariance = products - first * second
    slope = (covariance / (known_variance + FAINT**2)).clamp(-STEEPEST, STEEPEST)
    agreement = covariance.square() / ((variance + FAINT**2) * (known_variance + FAINT**2))
    return slope, agreement.clamp(0, 1)


def known_share(reference: Tensor) -> Tensor:
    """Return 1 where the reference was measured all around, 0 beyond its field of view."""
    inside = (reference != 0).to(reference.dtype)
    return ((box_mean(inside, (5, 5, 5)) - 0.5) * 4).clamp(0, 1)


@dataclass(frozen=True)
class Proposed:
    """Images that the output of the network is applied to.

    ``proposals`` (B, 2, X, Y, Z): changes of the base, one for each window; ``known``
    (B, 1, X, Y, Z) in [0, 1].
    """

    proposals: Tensor
    known: Tensor

    def at(self, planes: slice) -> "Proposed":
        """Return these planes along the first axis."""
        return Proposed(self.proposals[:, :, planes], self.known[:, :, planes])

    def copy(self) -> "Proposed":
        """Return the images in memory of their own, so that what they were cut from is freed."""
        return Proposed(self.proposals.clone(), self.known.clone())


@dataclass(frozen=True)
class Features:
    """Inputs of the network, and the images its output is applied to.

    ``maps`` (B, MAPS, X, Y, Z), ``summaries`` (B, SUMMARIES, X, Y, Z).
    """

    maps: Tensor
    summaries: Tensor
    proposed: Proposed

    def at(self, planes: slice) -> "Features":
        """Return these planes along the first axis."""
        return Features(
            self.maps[:, :, planes], self.summaries[:, :, planes], self.proposed.at(planes)
        )


def features(guides: Guides, log_ratios: Sequence[float], gradient_scale: float) -> Features:
    """Compute the features of one volume (B = 1) or of several under one acquisition.

    Parameters
    ----------
    guides
        Volumes on the fine grid.
    log_ratios
        log2 of measured over output voxel size, by axis.
    gradient_scale
        99th percentile of the reference's gradients over the whole volume.
    """
    detail = guides.reference - guides.trip
    proposals, summaries = [], []
    for size in windows(log_ratios):
        slope, agreement = regression(guides, size)
        change = guides.start + slope * detail - guides.base
        proposals.append(change.clamp(-LARGEST, LARGEST))
        summaries += [agreement, torch.tanh(slope)]
    known = known_share(guides.reference)
    gradient = gradients(guides.reference) / max(gradient_scale, 1e-6)
    missing = guides.base - guides.start
    return Features(
        torch.cat(
            [guides.base, missing, guides.reference, detail, *proposals, gradient.clamp(-3, 3)], 1
        ),
        torch.cat([*summaries, known], dim=1),
        Proposed(torch.cat(proposals, dim=1), known),
    )


def gradients(image: Tensor) -> Tensor:
    """Return central differences of (B, 1, X, Y, Z) along the three axes, (B, 3, X, Y, Z)."""
    padded = functional.pad(image, (1,) * 6, mode="replicate")
    inner = slice(1, -1)
    parts = (
        padded[:, :, 2:, inner, inner] - padded[:, :, :-2, inner, inner],
        padded[:, :, inner, 2:, inner] - padded[:, :, inner, :-2, inner],
        padded[:, :, inner, inner, 2:] - padded[:, :, inner, inner, :-2],
    )
    return 0.5 * torch.cat(parts, dim=1)


def gradient_scale(reference: Tensor) -> float:
    """Return the 99th percentile of absolute gradients of a volume (X, Y, Z) where it is known."""
    values = []
    for axis in range(3):
        step = reference.diff(dim=axis)[::STRIDE, ::STRIDE, ::STRIDE].abs()
        values.append(step[step > 0])
    known = torch.cat(values)
    if not known.numel():
        return 1.0
    rank = max(1, round(0.99 * known.numel()))
    return max(float(known.kthvalue(rank).values), 1e-3)
