# SPDX-License-Identifier: Apache-2.0
"""Compress the teacher into a student: layer-wise distillation by least squares.

Each convolution of the teacher's regression network is replaced by one through few channels. Its
input side takes the feature directions that matter most for the output of the convolution: the
singular vectors of its kernel, weighted by the covariance of the features. Its output side is a
reduced-rank regression (Izenman 1975) of the teacher's output on the student's features, so that a
layer also corrects the losses of the layers before it. Convolutions are fitted from the first to
the last; gradients are not used.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.networks.factorised import Factorised
from bids_moediff.networks.mean import BLOCK_GAIN, MeanNetwork, normalise, space_to_depth
from bids_moediff.runtime.progress_bar import track
from bids_moediff.training.stage import Batch, relative_weight

# Features this near the border of a patch see its zero padding.
BORDER = 3
# Ridge towards the teacher's kernel, relative to the mean square of the features; least variance
# that a direction may have, relative to the largest.
RIDGE, FLOOR = 1e-2, 1e-5


def input_directions(weight: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Return orthonormal rows (rank, C): the input space that matters most to a kernel.

    The kernel is (C', C, 3, 3, 3). Rows are orthonormal, so that the layers keep the scale at
    which the teacher's learning rate is valid.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(FLOOR * values.max())
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    taps = weight.permute(1, 0, 2, 3, 4).flatten(1).double()
    _, strongest = torch.linalg.eigh(root @ (taps @ taps.T) @ root)
    return torch.linalg.qr((strongest[:, -rank:].T @ inverse).T).Q.T


def reduced_regression(
    gram: Tensor, cross: Tensor, rank: int, prior: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Regression of rank ``rank`` from second moments: coefficients, basis and constant.

    ``gram`` (n + 1, n + 1) of the inputs and a one, ``cross`` (n + 1, m) of them with the targets.
    ``prior`` (n, m) are the coefficients that the ridge draws to: neighbouring features are so
    similar that a few thousand places leave most directions undetermined. Targets are near inputs
    (n,) @ coefficients (n, rank) @ basis (m, rank).T + constant (m,).
    """
    count = gram[-1, -1]
    inputs, targets = gram[-1, :-1] / count, cross[-1] / count
    central = gram[:-1, :-1] - count * torch.outer(inputs, inputs)
    mixed = cross[:-1] - count * torch.outer(inputs, targets)
    ridge = RIDGE * gram.diagonal()[:-1].mean()
    shrunk = central + ridge * torch.eye(len(central), device=gram.device, dtype=gram.dtype)
    full = torch.linalg.solve(shrunk, mixed + ridge * prior)
    _, vectors = torch.linalg.eigh(full.T @ central @ full)
    basis = vectors[:, -rank:]
    coefficients = full @ basis
    return coefficients, basis, targets - inputs @ coefficients @ basis.T


def _at(features: Tensor, positions: Tensor) -> Tensor:
    """(B, C, x, y, z) -> (B positions, C) without the outermost voxels."""
    inner = features[:, :, 1:-1, 1:-1, 1:-1].flatten(2)[:, :, positions]
    return inner.permute(0, 2, 1).flatten(0, 1)


def around(features: Tensor, positions: Tensor) -> Tensor:
    """(B, C, x, y, z) -> (B positions, 27 C): each place with its neighbours."""
    windows = features.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1)
    places = windows.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(1, 3)[:, positions]
    return places.flatten(0, 1).flatten(1)


class _Fit:
    """Places of the patches that the layers are fitted to, and the weight of each patch."""

    def __init__(self, batches: Sequence[Batch], places: int, seed: int) -> None:
        self.weights = []
        for batch in batches:
            share = relative_weight(batch, 0).flatten(1).mean(1)
            self.weights.append(share / share.mean())
        side = batches[0]["start"].shape[-1] // 2 - 2
        grid = torch.arange(side**3).reshape(side, side, side)
        skip = min(BORDER - 1, (side - 1) // 2)
        inner = grid[(slice(skip, side - skip),) * 3].flatten()
        generator = torch.Generator().manual_seed(seed)
        chosen = inner[torch.randperm(len(inner), generator=generator)[:places]]
        self.positions = chosen.to(batches[0]["start"].device)

    def layer(
        self, layer: Factorised, weight: Tensor, inputs: list[Tensor], targets: list[Tensor]
    ) -> None:
        """Fit ``layer`` to map inputs to targets (lists of (B, C, x, y, z))."""
        channels, where = weight.shape[1], self.positions
        covariance = weight.new_zeros((channels, channels))
        shares = [share.repeat_interleave(len(where))[:, None] for share in self.weights]
        for features, share in zip(inputs, shares, strict=True):
            rows = _at(features.float(), where)
            covariance += (rows * share).T @ rows
        rank_in, rank_out = layer.core.in_channels, layer.core.out_channels
        directions = input_directions(weight, covariance, rank_in).to(weight.dtype)
        size = 27 * rank_in + 1
        gram, cross = weight.new_zeros((size, size)), weight.new_zeros((size, channels))
        for features, wanted, share in zip(inputs, targets, shares, strict=True):
            reduced = torch.einsum("rc,bcxyz->brxyz", directions, features.float())
            rows = functional.pad(around(reduced, where), (0, 1), value=1.0)
            gram += (rows * share).T @ rows
            cross += (rows * share).T @ _at(wanted.float(), where)
        prior = torch.einsum("oixyz,ri->rxyzo", weight, directions).flatten(0, 3)
        found = reduced_regression(gram.double(), cross.double(), rank_out, prior.double())
        core, basis, constant = (part.to(weight.dtype) for part in found)
        layer.reduce.weight.copy_(directions[:, :, None, None, None])
        layer.core.weight.copy_(core.T.reshape(rank_out, rank_in, 3, 3, 3))
        layer.expand.weight.copy_(basis[:, :, None, None, None])
        assert layer.expand.bias is not None
        layer.expand.bias.copy_(constant)


@torch.no_grad()
def factorise(
    teacher: MeanNetwork,
    student: StudentNetwork,
    batches: Sequence[Batch],
    *,
    places: int = 500,
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """Set the weights of `student` to those of `teacher` as far as its ranks allow.

    Parameters
    ----------
    teacher, student
        Networks of the same channels and blocks, on one device.
    batches
        Patches (:func:`.sampling.patches`); some 100 of 56³ voxels in all are enough.
    places
        Of each patch that the convolutions are fitted to.
    """
    for name in ("head", "tail", "film"):
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())
    fit = _Fit(batches, places, seed)
    films = [student.modulation(batch["condition"]) for batch in batches]
    order = torch.channels_last_3d
    folded = [normalise(space_to_depth(batch["start"][:, None])) for batch in batches]
    theirs = [_kept(teacher.head(part.contiguous(memory_format=order))) for part in folded]
    ours = list(theirs)
    pairs: list[Any] = list(zip(teacher.body, student.body, strict=True))
    layers = track(pairs, "layers", len(pairs), shown=not quiet)
    for index, (block, squeezed) in enumerate(layers):
        scales = [(1 + film[2 * index], film[2 * index + 1]) for film in films]
        wanted = [_kept(block.first(part.float())) for part in theirs]
        fit.layer(squeezed.first, block.first.weight, ours, wanted)
        hidden = [
            _kept(functional.silu(squeezed.first(part.float()) * scale + shift))
            for part, (scale, shift) in zip(ours, scales, strict=True)
        ]
        for place, (part, (scale, shift)) in enumerate(zip(wanted, scales, strict=True)):
            step = block.second(functional.silu(part.float() * scale + shift))
            theirs[place] = _kept(theirs[place].float() + BLOCK_GAIN * step)
        missing = [
            (their.float() - our) / BLOCK_GAIN for their, our in zip(theirs, ours, strict=True)
        ]
        fit.layer(squeezed.second, block.second.weight, hidden, missing)
        for place, part in enumerate(hidden):
            ours[place] = _kept(ours[place].float() + BLOCK_GAIN * squeezed.second(part.float()))


def _kept(features: Tensor) -> Tensor:
    """Return features in half the memory while they wait."""
    return features.bfloat16()
