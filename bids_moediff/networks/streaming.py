# SPDX-License-Identifier: Apache-2.0
"""Run 3-D networks as pipelines through which a volume passes a few planes at a time.

Cutting a volume into blocks with halos computes the halos twice, and for a deep network they hold
more voxels than the blocks themselves. Here every convolution keeps the two planes that it needs
again. So nothing is computed twice, memory grows with a plane instead of the volume, and the
result is that of the whole volume, zero padding at its ends included.

In 16 bits only the convolutions of the blocks run. Input, output and the sums through the network
stay in 32 bits, which costs little and makes the error three times smaller.

All parts share one call: ``push(planes, last)`` takes (1, C, n, Y, Z) with n >= 0 new planes and
returns the planes that are ready, which may be none; ``last`` marks the end of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.networks.winograd import Winograd, pays

DEPTH = 2  # dimension of (1, C, n, Y, Z) along which planes come in
PIECE = 1 << 17  # numbers that stay in a core's cache through several steps


class Part(Protocol):
    """A step of a pipeline."""

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        ...


def _prepared(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Return weights in the arithmetic and memory order of the pipeline."""
    tensor = tensor.detach().to(kind)
    return tensor.contiguous(memory_format=torch.channels_last_3d) if tensor.ndim == 5 else tensor


class Pointwise:
    """1 x 1 x 1 convolution; it keeps no planes.

    Parameters
    ----------
    layer
        Convolution, with a bias or without.
    kind
        Arithmetic.
    scale, shift
        Per output channel, folded into weight and bias (a condition that holds for the volume).
    activate
        Whether a SiLU follows.
    """

    def __init__(
        self,
        layer: nn.Conv3d,
        kind: torch.dtype,
        *,
        scale: Tensor | float = 1.0,
        shift: Tensor | float = 0.0,
        activate: bool = False,
    ) -> None:
        weight = layer.weight
        bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
        factor = scale[:, None, None, None, None] if isinstance(scale, Tensor) else scale
        self._set(weight * factor, bias * scale + shift, kind, activate)

    def _set(self, weight: Tensor, bias: Tensor, kind: torch.dtype, activate: bool) -> None:
        self.weight, self.bias = _prepared(weight, kind), _prepared(bias, kind)
        self.activate = activate

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, kind: torch.dtype) -> Self:
        """Return one from weights (K, C, 3, 3, 3) and bias (K,), without activation."""
        part = cls.__new__(cls)
        part._set(weight, bias, kind, activate=False)
        return part

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return as many."""
        planes = planes.to(self.weight.dtype)
        if planes.shape[DEPTH] == 0:
            return planes.new_zeros((1, self.weight.shape[0], 0, *planes.shape[3:]))
        return self._apply(planes, 0)

    def _apply(self, planes: Tensor, border: int) -> Tensor:
        padding = (0, border, border)
        out = functional.conv3d(planes, self.weight, self.bias, padding=padding)
        return functional.silu(out, inplace=True) if self.activate else out


class Convolution(Pointwise):
    """3 x 3 x 3 convolution with zero padding; it lags one plane behind its input."""

    _tail: Tensor | None = None
    _fast: Winograd | None = None

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        kind = self.weight.dtype
        border = planes.new_zeros((1, planes.shape[1], 1, *planes.shape[3:]), dtype=kind)
        known = [border if self._tail is None else self._tail, planes]
        if last:
            known.append(border)
        together = joined(known, kind)
        if together.shape[DEPTH] < 3:
            self._tail = together
            return planes.new_zeros((1, len(self.weight), 0, *planes.shape[3:]), dtype=kind)
        self._tail = together[:, :, -2:].clone(memory_format=torch.channels_last_3d)
        return self._apply(together, 1)

    def _apply(self, planes: Tensor, border: int) -> Tensor:
        if not pays(self.weight):
            return super()._apply(planes, border)
        if self._fast is None:
            self._fast = Winograd(self.weight, self.bias)
        out = self._fast(planes)
        return functional.silu(out, inplace=True) if self.activate else out


class NarrowConvolution(Convolution):
    """A convolution of few input channels, which alone leave a processor idle.

    The three taps along the last axis become separate channels.
    """

    def __init__(self, layer: nn.Conv3d, kind: torch.dtype) -> None:
        super().__init__(layer, kind)
        self.weight = _prepared(torch.cat(self.weight.split(1, dim=4), dim=1), kind)

    def _apply(self, planes: Tensor, border: int) -> Tensor:
        _, channels, count, rows, columns = planes.shape
        size = (1, 3 * channels, count, rows, columns)
        beside = planes.new_zeros(size).contiguous(memory_format=torch.channels_last_3d)
        beside[:, :channels, ..., border:] = planes[..., : columns - border]
        beside[:, channels : 2 * channels] = planes
        beside[:, 2 * channels :, ..., : columns - border] = planes[..., border:]
        return functional.conv3d(beside, self.weight, self.bias, padding=(0, border, 0))


def room(size: Sequence[int], kind: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for planes (1, C, n, Y, Z) in the order of convolutions."""
    return torch.empty(size, dtype=kind, device=device, memory_format=torch.channels_last_3d)


def joined(parts: list[Tensor], kind: torch.dtype) -> Tensor:
    """Concatenate planes in the memory order of convolutions; cast them on the way."""
    _, channels, _, rows, columns = parts[0].shape
    size = (1, channels, sum(part.shape[DEPTH] for part in parts), rows, columns)
    together = room(size, kind, parts[0].device)
    begin = 0
    for part in parts:
        end = begin + part.shape[DEPTH]
        together[:, :, begin:end] = part
        begin = end
    return together


def pieces(planes: Tensor) -> tuple[Tensor, ...]:
    """Return (1, C, n, Y, Z) in pieces of a cache's size, in the memory order of convolutions.

    The pieces are views if the planes lie in that order.
    """
    if planes.device.type == "cuda":
        return (planes.permute(0, 2, 3, 4, 1),)
    return planes.permute(0, 2, 3, 4, 1).reshape(-1).split(PIECE)


class Chain:
    """Parts in sequence."""

    def __init__(self, *parts: Part) -> None:
        self.parts = list(parts)

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        for part in self.parts:
            planes = part.push(planes, last)
        return planes


class Residual:
    """Input plus the output of a part; the input waits for the part.

    Waiting planes are not copied: at these sizes memory limits the processor, not arithmetic.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self._waiting: list[Tensor] = []

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Take planes, return finished planes."""
        # Small changes to a large sum get lost in 16 bits.
        change = self.part.push(planes, last)
        total = room(change.shape, torch.float32, change.device)
        self._waiting.append(planes)
        done = 0
        while done < total.shape[DEPTH]:
            first = self._waiting.pop(0)
            count = min(first.shape[DEPTH], total.shape[DEPTH] - done)
            along = slice(done, done + count)
            _add(first[:, :, :count], change[:, :, along], total[:, :, along])
            done += count
            if count < first.shape[DEPTH]:
                self._waiting.insert(0, first[:, :, count:])
        return total


def _add(first: Tensor, change: Tensor, total: Tensor) -> None:
    """Write planes plus their change, which may have 16 bits, into ``total`` of 32 bits."""
    if total.device.type == "cuda":
        torch.add(first, change, out=total)
        return
    for one, other, both in zip(pieces(first), pieces(change), pieces(total), strict=True):
        torch.add(both.copy_(other), one, out=both)
