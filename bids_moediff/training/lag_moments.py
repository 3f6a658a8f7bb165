# SPDX-License-Identifier: Apache-2.0
"""Compute second moments of the features before a 3x3x3 convolution, by lag.

The moments of features at two taps of the kernel depend only on the lag between the taps, if the
sum over a patch fades out at its border (the autocorrelation method of linear prediction). So 63
small matrices replace one of 27 x 27 blocks: the moments of a hundred acquisitions fit where the
full ones of a single acquisition did, and all places of a patch count.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

REACH = 2  # largest lag between two taps, along each axis
TAPS = tuple(itertools.product((-1, 0, 1), repeat=3))
LAGS = tuple(
    lag for lag in itertools.product(range(-REACH, REACH + 1), repeat=3) if lag >= (0, 0, 0)
)
TINY = 1e-12


def lag_moments(features: Tensor, wanted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of one patch.

    Parameters
    ----------
    features
        (C, X, Y, Z); a channel of ones is added as the last one.
    wanted
        (T, X, Y, Z), what the convolution should put out.
    weight
        (X, Y, Z), not negative; near zero at the border.

    Returns
    -------
    tuple
        Of the features with each other by lag (63, C + 1, C + 1): the sum over x of feature i at
        x times feature j at x + lag; and with what is wanted by tap (27, C + 1, T).
    """
    root = weight.sqrt()
    values = functional.pad(torch.cat([features * root, root[None]]), (REACH,) * 6)
    sizes = weight.shape

    def moved(lag: Sequence[int]) -> Tensor:
        begins = [REACH + step for step in lag]
        cut = [slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True)]
        return values[:, cut[0], cut[1], cut[2]].flatten(1)

    here, target = moved((0, 0, 0)), (wanted * root).flatten(1)
    gram = torch.stack([here @ moved(lag).T for lag in LAGS])
    cross = torch.stack([moved(tap) @ target.T for tap in TAPS])
    return gram, cross


def full_gram(gram: Tensor) -> Tensor:
    """(63, C + 1, C + 1) by lag as the matrix (27 C + 1, 27 C + 1) of a kernel and its bias.

    Rows and columns are ordered as the kernel's weights: channel first, then tap, the bias last.
    """
    channels = gram.shape[1] - 1
    place = {lag: number for number, lag in enumerate(LAGS)}
    blocks = gram.new_empty(channels, 27, channels, 27)
    edge = gram.new_empty(channels, 27)
    for row, first in enumerate(TAPS):
        back = tuple(-step for step in first)
        edge[:, row] = _at(gram, place, back)[:channels, -1]
        for column, second in enumerate(TAPS):
            lag = tuple(b - a for a, b in zip(first, second, strict=True))
            blocks[:, row, :, column] = _at(gram, place, lag)[:channels, :channels]
    whole = blocks.reshape(27 * channels, 27 * channels)
    border = edge.flatten()[:, None]
    last = gram[place[0, 0, 0]][-1:, -1:]
    return torch.cat([torch.cat([whole, border], 1), torch.cat([border.T, last], 1)])


def _at(gram: Tensor, place: dict[tuple[int, ...], int], lag: tuple[int, ...]) -> Tensor:
    if lag in place:
        return gram[place[lag]]
    return gram[place[tuple(-step for step in lag)]].T


def full_cross(cross: Tensor) -> Tensor:
    """(27, C + 1, T) by tap as (27 C + 1, T), ordered as :func:`full_gram`."""
    weights = cross[:, :-1].transpose(0, 1).flatten(0, 1)
    return torch.cat([weights, cross[TAPS.index((0, 0, 0)), -1:]])


class ConditionedMoments:
    """Moments of features that count once times each of `count` numbers of the patch."""

    def __init__(self, channels: int, outputs: int, count: int) -> None:
        self.count = count
        self.pairs = [(i, j) for i in range(self.count) for j in range(i + 1)]
        self.gram = torch.zeros(len(self.pairs), len(LAGS), channels + 1, channels + 1)
        self.cross = torch.zeros(self.count, len(TAPS), channels + 1, outputs)

    def add(self, gram: Tensor, cross: Tensor, factors: Sequence[float]) -> None:
        """Moments of a patch (:func:`lag_moments`) whose features count times these numbers."""
        for number, (first, second) in enumerate(self.pairs):
            self.gram[number].add_(gram, alpha=factors[first] * factors[second])
        for number, factor in enumerate(factors):
            self.cross[number].add_(cross, alpha=factor)

    def solve(self, ridge: float) -> Tensor:
        """Coefficients (count, 27 C + 1, outputs).

        `ridge` is relative to the mean square of the features times the number that makes it
        largest.
        """
        size = 27 * (self.gram.shape[-1] - 1) + 1
        whole = torch.empty(self.count * size, self.count * size)
        places = [slice(number * size, (number + 1) * size) for number in range(self.count)]
        for number, (first, second) in enumerate(self.pairs):
            whole[places[first], places[second]] = full_gram(self.gram[number])
        diagonal = whole.diagonal()
        largest = max(float(diagonal[place][:-1].mean()) for place in places)
        diagonal.add_(max(ridge * largest, TINY))  # numbers that no patch was told get nothing
        lower = torch.linalg.cholesky(whole, out=whole)  # reads the lower half only
        right = torch.cat([full_cross(part) for part in self.cross])
        return torch.cholesky_solve(right, lower).unflatten(0, (self.count, size))
