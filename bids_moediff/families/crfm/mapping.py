# SPDX-License-Identifier: Apache-2.0
"""Bring a reference to the contrast of a scan by the joint histogram of both in small windows.

A slope (:mod:`.features`) relates two contrasts where a window holds two tissues; with three, the
relation is no line. Here each window says which intensity of the scan belongs to each intensity of
the reference, both at the resolution of the scan. Read at the sharp reference this proposes an
image in the contrast of the scan.
"""

from itertools import product

import torch
from torch import Tensor

from .features import FAINT, box_mean, known_share

WINDOW = 13  # voxels of the output
BINS = 24
BRIGHTEST = 1.2  # of the range of the reference, in the last bin
SPREAD = 0.35  # share that each bin lends to the next: bins that a window lacks take their value
TILE = 64  # voxels that are computed at a time, along each axis
CHANCE = 0.3  # share of a scan that noise explains in a window, by its many bins
SHARE = 0.4  # of the way to the proposal that is gone where the reference explains all of the scan


def hats(image: Tensor, index: int) -> Tensor:
    """Return the share of each voxel that belongs to a bin; the shares of all bins sum to one."""
    place = image.clamp(0, BRIGHTEST) * ((BINS - 1) / BRIGHTEST)
    return (1 - (place - index).abs()).clamp_min(0)


def map_tile(start: Tensor, reference: Tensor, trip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reference in the contrast of the scan, and how far the relation holds.

    Parameters
    ----------
    start, reference, trip
        Interpolated scan, reference and its round trip, (1, 1, X, Y, Z).

    Returns
    -------
    mapped
        (1, 1, X, Y, Z).
    explained
        Share of the variance of the scan in each window that the reference explains, 0 to 1, and
        0 where the reference was not measured.
    """
    size = (WINDOW,) * 3
    sums, counts = (start.new_empty((BINS, *start.shape[2:])) for _ in range(2))
    for index in range(BINS):
        share = hats(trip, index)
        means = box_mean(torch.cat([share * start, share], 1), size)[0]
        sums[index], counts[index] = means
    place = torch.arange(BINS, device=start.device)
    lend = (SPREAD ** (place[:, None] - place).abs()).to(start)
    values = (lend @ sums.flatten(1)) / (lend @ counts.flatten(1)).clamp_min(1e-6)
    del sums, counts
    values = values.reshape(BINS, *start.shape[2:])
    mapped, known = torch.zeros_like(start), torch.zeros_like(start)
    for index in range(BINS):
        mapped += hats(reference, index) * values[index]
        known += hats(trip, index) * values[index]
    means = box_mean(torch.cat([(start - known).square(), start, start.square()], 1), size)
    left, mean, squares = means.split(1, dim=1)
    variance = (squares - mean.square()).clamp_min(0)
    explained = (1 - left / (variance + FAINT**2)).clamp(0, 1)
    return mapped, explained * known_share(reference)


def share_of_proposal(explained: Tensor) -> Tensor:
    """Return the share of the way to the proposal that is gone; see :func:`map_tile`."""
    return SHARE * ((explained - CHANCE) / (1 - CHANCE)).clamp_min(0).square()


def map_reference(start: Tensor, reference: Tensor, trip: Tensor) -> tuple[Tensor, Tensor]:
    """Return :func:`map_tile` of volumes (X, Y, Z), tile by tile; tiles change nothing."""
    mapped, explained = torch.empty_like(start), torch.empty_like(start)
    for corner in product(*(range(0, size, TILE) for size in start.shape)):
        inner, outer, cut = [], [], []
        for begin, size in zip(corner, start.shape, strict=True):
            low, end = max(0, begin - WINDOW), min(size, begin + TILE)
            inner.append(slice(begin, end))
            outer.append(slice(low, min(size, end + WINDOW)))
            cut.append(slice(begin - low, end - low))
        box = tuple(outer)
        parts = map_tile(*(one[box][None, None] for one in (start, reference, trip)))
        for volume, part in zip((mapped, explained), parts, strict=True):
            volume[tuple(inner)] = part[0, 0][tuple(cut)]
    return mapped, explained
