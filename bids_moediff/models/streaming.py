# SPDX-License-Identifier: Apache-2.0
"""3-D networks as pipelines through which a volume is pushed a few planes at a time.

Cutting a volume into blocks with halos computes the halos twice, and for a deep network they hold
more voxels than the blocks themselves. Here every convolution keeps the two planes it will need
again. So nothing is computed twice, memory grows with a plane instead of the volume, and the
result is that of the whole volume, zero padding at its ends included.

In 16 bits only the convolutions of the blocks run: input, output and the sums that go through the
network stay in 32 bits, which costs next to nothing and makes the error three times smaller.

All parts share one call: ``push(planes, last)`` takes (1, C, n, Y, Z) with n >= 0 new planes and
returns the planes that are ready, which may be none; ``last`` says that no more will come.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

DEPTH = 2  # dimension of (1, C, n, Y, Z) along which planes come in


class Part(Protocol):
    """Something that planes are pushed through."""

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, finished planes out."""
        ...


def _prepared(tensor: Tensor, kind: torch.dtype) -> Tensor:
    """Weights in the arithmetic and memory order of the pipeline."""
    tensor = tensor.detach().to(kind)
    return tensor.contiguous(memory_format=torch.channels_last_3d) if tensor.ndim == 5 else tensor


class Convolution:
    """3 x 3 x 3 with zero padding; it lags one plane behind its input.

    Parameters
    ----------
    layer
        Convolution of kernel 3, padding 1.
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
        weight, bias = layer.weight, layer.bias
        assert bias is not None
        factor = scale[:, None, None, None, None] if isinstance(scale, Tensor) else scale
        self._weight = _prepared(weight * factor, kind)
        self._bias = _prepared(bias * scale + shift, kind)
        self._activate = activate
        self._tail: Tensor | None = None

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, finished planes out."""
        planes = planes.to(self._weight.dtype)
        known = [planes]
        border = planes.new_zeros((1, planes.shape[1], 1, *planes.shape[3:]))
        known.insert(0, border if self._tail is None else self._tail)
        if last:
            known.append(border)
        if sum(part.shape[DEPTH] for part in known) < 3:
            self._tail = torch.cat(known, DEPTH)
            return planes.new_zeros((1, self._weight.shape[0], 0, *planes.shape[3:]))
        joined = torch.cat(known, DEPTH).contiguous(memory_format=torch.channels_last_3d)
        self._tail = joined[:, :, -2:].clone(memory_format=torch.channels_last_3d)
        out = functional.conv3d(joined, self._weight, self._bias, padding=(0, 1, 1))
        return functional.silu(out, inplace=True) if self._activate else out


class Halving:
    """2 x 2 x 2 convolution of stride 2; keeps an odd plane until its partner comes."""

    def __init__(self, layer: nn.Conv3d, kind: torch.dtype) -> None:
        assert layer.bias is not None
        self._weight, self._bias = _prepared(layer.weight, kind), _prepared(layer.bias, kind)
        self._odd: Tensor | None = None

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, half as many out."""
        planes = planes.to(self._weight.dtype)
        if self._odd is not None:
            planes = torch.cat([self._odd, planes], DEPTH)
        whole = planes.shape[DEPTH] // 2 * 2
        self._odd = planes[:, :, whole:].clone() if whole < planes.shape[DEPTH] else None
        if whole == 0:
            sizes = (planes.shape[3] // 2, planes.shape[4] // 2)
            return planes.new_zeros((1, self._weight.shape[0], 0, *sizes))
        return functional.conv3d(planes[:, :, :whole], self._weight, self._bias, stride=2)


class Doubling:
    """2 x 2 x 2 transposed convolution of stride 2: no memory."""

    def __init__(self, layer: nn.ConvTranspose3d, kind: torch.dtype) -> None:
        assert layer.bias is not None
        self._weight, self._bias = _prepared(layer.weight, kind), _prepared(layer.bias, kind)

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, twice as many out."""
        planes = planes.to(self._weight.dtype)
        if planes.shape[DEPTH] == 0:
            sizes = (2 * planes.shape[3], 2 * planes.shape[4])
            return planes.new_zeros((1, self._weight.shape[1], 0, *sizes))
        return functional.conv_transpose3d(planes, self._weight, self._bias, stride=2)


class Chain:
    """Parts one after the other."""

    def __init__(self, *parts: Part) -> None:
        self._parts = parts

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, finished planes out."""
        for part in self._parts:
            planes = part.push(planes, last)
        return planes


class Residual:
    """Input plus what a part makes of it; the input waits for the part."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._waiting: Tensor | None = None

    def push(self, planes: Tensor, last: bool) -> Tensor:
        """Planes in, finished planes out."""
        out = self._part.push(planes, last)
        planes = planes.float()  # small changes to a large sum get lost in 16 bits
        if self._waiting is not None:
            planes = torch.cat([self._waiting, planes], DEPTH)
        ready = out.shape[DEPTH]
        self._waiting = planes[:, :, ready:].clone(memory_format=torch.channels_last_3d)
        return planes[:, :, :ready] + out
