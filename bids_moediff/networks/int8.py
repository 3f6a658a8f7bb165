# SPDX-License-Identifier: Apache-2.0
"""Run the convolutions of the residual blocks in 8-bit integers, on processors that have them.

Input: unsigned, one scale and zero point per convolution, known beforehand (static ranges beside
the weights). Weights: signed, one scale per output channel. Products are summed in 32 bits by
oneDNN through torch (``torch.ops.onednn.qconv3d_pointwise``). All other operations (bias,
activation, the sums of the blocks, last layer, consistency) keep their precision.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bids_moediff.errors import WeightsError
from bids_moediff.networks.streaming import DEPTH, Chain, Convolution, Part, Residual, pieces, room
from bids_moediff.runtime.given_files import read_json

RANGES_NAME = "int8.json"  # in a model folder; may be absent
LEVELS = 255
MOST = 127  # of the signed weights
# Share of the inputs of a convolution that may be cut at either end of its range.
CUT = 1e-5
SAMPLED = 7  # every n-th input is looked at: no multiple of a number of channels
Range = tuple[float, float]


def quantised_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (K, C, 3, 3, 3) as signed bytes, and the scale of each output (K,)."""
    weight = weight.float()
    scales = weight.abs().amax((1, 2, 3, 4)).clamp(min=1e-12) / MOST
    return (weight / scales[:, None, None, None, None]).round().to(torch.int8), scales


class IntegerConvolution:
    """3 x 3 x 3 convolution with zero padding in 8 bits; it lags one plane behind its input.

    Parameters
    ----------
    plain
        The same in floating point: its weights, bias and activation.
    known
        Lowest and highest input; values beyond are clipped.
    """

    def __init__(self, plain: Convolution, known: Range) -> None:
        low, high = min(known[0], 0.0), max(known[1], 0.0)
        self._kind = plain.weight.dtype
        self._scale = max(high - low, 1e-12) / LEVELS
        self._zero = round(-low / self._scale)
        weight, scales = quantised_weight(plain.weight)
        self._features = len(weight)
        self._bias = plain.bias.float()
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._scales, self._signed = scales, weight
        self._packed: Tensor | None = None
        self._activate = plain.activate
        self._tail: Tensor | None = None

    def _quantised(self, planes: Tensor, levels: Tensor) -> None:
        """Write the levels of (1, C, n, Y, Z), rounded half up, into bytes of the same shape."""
        for values, bytes_ in zip(pieces(planes), pieces(levels), strict=True):
            level = values.float() if values.dtype != torch.float32 else values.clone()
            level.mul_(1 / self._scale).add_(self._zero + 0.5).clamp_(0, LEVELS)
            # By way of 16 bits: torch turns floating point into bytes one at a time.
            bytes_.copy_(level.to(torch.int16))

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        tail = 1 if self._tail is None else self._tail.shape[DEPTH]
        count = tail + planes.shape[DEPTH] + last
        size = (1, planes.shape[1], count, *planes.shape[3:])
        together = room(size, torch.uint8, planes.device)
        together[:, :, :tail] = self._zero if self._tail is None else self._tail
        self._quantised(planes, together[:, :, tail : tail + planes.shape[DEPTH]])
        if last:
            together[:, :, -1] = self._zero
        if count < 3:
            self._tail = together
            return planes.new_zeros((1, self._features, 0, *planes.shape[3:]), dtype=self._kind)
        self._tail = together[:, :, -2:].clone(memory_format=torch.channels_last_3d)
        out = self._multiply(together)
        return functional.silu(out, inplace=True) if self._activate else out

    def _multiply(self, levels: Tensor) -> Tensor:
        ones, padding = [1, 1, 1], [0, 1, 1]
        if self._packed is None:
            self._packed = torch.ops.onednn.qconv_prepack(
                self._signed, self._scales, self._scale, self._zero,
                ones, padding, ones, 1, list(levels.shape),
            )  # fmt: skip
        out: Tensor = torch.ops.onednn.qconv3d_pointwise(
            levels, self._scale, self._zero, self._packed, self._scales, self._zeros, self._bias,
            ones, padding, ones, 1, 1.0, 0, self._kind, "none", [], "",
        )  # fmt: skip
        return out


@functools.cache
def multiplies_integers() -> bool:
    """Return True if 8-bit convolutions are exact on this processor.

    Processors without VNNI or AMX add pairs in 16 bits, which overflow. The largest products are
    compared with 64-bit results.
    """
    shape = (1, 32, 3, 5, 6)
    weight = torch.full((32, 32, 3, 3, 3), float(MOST))
    weight[::2] *= -1
    plain = Convolution.of(weight, torch.zeros(32), torch.float32)
    part = IntegerConvolution(plain, (0.0, float(LEVELS)))
    planes = torch.full(shape, float(LEVELS))
    try:
        found = part.push(planes, last=True)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    exact = functional.conv3d(planes.double(), weight.double(), padding=1)
    return bool(torch.allclose(found.double(), exact, rtol=1e-5))


def convolutions(part: Part) -> Iterator[tuple[list[Part], int]]:
    """Return the places of the block convolutions: the list of parts and the index."""
    if isinstance(part, Residual):
        yield from _inside(part.part)
    elif isinstance(part, Chain):
        for inner in part.parts:
            yield from convolutions(inner)


def _inside(part: Part) -> Iterator[tuple[list[Part], int]]:
    if not isinstance(part, Chain):
        return
    for place, inner in enumerate(part.parts):
        if type(inner) is Convolution:
            yield part.parts, place
        else:
            yield from _inside(inner)


def with_integers(pipeline: Chain, ranges: Sequence[Range]) -> Chain:
    """Run the convolutions of the residual blocks in 8 bits.

    Raises
    ------
    WeightsError
        If the numbers of ranges and convolutions differ.
    """
    places = list(convolutions(pipeline))
    if len(places) != len(ranges):
        raise WeightsError(
            f"{RANGES_NAME} has {len(ranges)} ranges; the network has {len(places)} convolutions"
        )
    for (parts, place), known in zip(places, ranges, strict=True):
        plain = parts[place]
        assert isinstance(plain, Convolution)
        parts[place] = IntegerConvolution(plain, known)
    return pipeline


class Recorder:
    """A convolution that records the range of its input, less the share ``CUT`` at each end."""

    def __init__(self, plain: Convolution) -> None:
        self.plain = plain
        self.low, self.high = 0.0, 0.0

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        values = planes.permute(0, 2, 3, 4, 1).float().flatten()[::SAMPLED]
        if len(values):
            rank = max(1, round(CUT * len(values)))
            self.low = min(self.low, float(values.topk(rank, largest=False).values[-1]))
            self.high = max(self.high, float(values.topk(rank).values[-1]))
        return self.plain.push(planes, last)


def recorded(pipeline: Chain) -> list[Recorder]:
    """Replace the convolutions of the residual blocks by recorders, in the network's order."""
    found = []
    for parts, place in list(convolutions(pipeline)):
        plain = parts[place]
        assert isinstance(plain, Convolution)
        parts[place] = recorder = Recorder(plain)
        found.append(recorder)
    return found


def checksum(ranges: Sequence[Range]) -> str:
    """Return the SHA-256 of ranges as int8.json holds them."""
    return hashlib.sha256(json.dumps([list(known) for known in ranges]).encode()).hexdigest()


@dataclass(frozen=True)
class Integers:
    """Settings of a model folder for 8-bit arithmetic.

    Parameters
    ----------
    ranges
        Input ranges of all convolutions; empty if there are none.
    loss
        Largest loss of an image against floating point, in dB of PSNR on held-out images.
    """

    ranges: tuple[Range, ...] = ()
    loss: float = math.inf


def read_integers(folder: Path, sha256: str) -> Integers:
    """Return the ranges of a model folder for the weights with this checksum; empty if none.

    Raises
    ------
    WeightsError
        For a file that cannot be read or belongs to other weights.
    """
    path = folder / RANGES_NAME
    if not path.is_file():
        return Integers()
    try:
        content: Any = read_json(path)
        ranges = tuple((float(low), float(high)) for low, high in content["ranges"])
        owner, expected = content["sha256"], content["checksum"]
        loss = float(content.get("loss_db", math.inf))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    if owner != sha256:
        raise WeightsError(f"{path} was measured with other weights ({owner}, not {sha256})")
    if expected != checksum(ranges):
        raise WeightsError(f"{path} does not match its checksum")
    return Integers(ranges, loss)
