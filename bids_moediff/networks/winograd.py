# SPDX-License-Identifier: Apache-2.0
"""3 x 3 x 3 convolution with a quarter of the multiplications, for processors in 32 bits.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016) along the last two axes: sums turn each square of
6 x 6 voxels into 36 numbers per channel, one matrix for each of the 36 mixes the channels, and
sums turn the result into 4 x 4 voxels. The three taps along the planes are separate matrices whose
products are added. So 27 multiplications become 6.75.

Rows of squares are processed a few at a time, so that intermediate results stay in the caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TILE = 4  # voxels of the output along a side of a square
REACH = TILE + 2
FEWEST_CHANNELS = 32  # with fewer the sums cost more than they save
# Squares worked on at a time, for each thread: matrices large enough to run fast, buffers that
# the heap keeps (runtime/platform.py).
TILES, MOST_THREADS = 700, 4
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def pays(weight: Tensor) -> bool:
    """Return True if Winograd is faster than a direct convolution for these weights.

    ``weight`` is (out, in, 3, 3, 3).
    """
    wide = min(weight.shape[:2]) >= FEWEST_CHANNELS
    return wide and weight.device.type == "cpu" and weight.dtype == torch.float32


def _split(parts: Sequence[Tensor], out: Sequence[Tensor], even: Tensor, odd: Tensor) -> None:
    """Turn six neighbours into six sums; ``even`` and ``odd`` are overwritten."""
    torch.sub(parts[4], parts[2], alpha=4, out=even)
    torch.sub(parts[3], parts[1], alpha=4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(parts[4], parts[2], out=even)
    torch.sub(parts[3], parts[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.sub(parts[5], parts[3], out=out[5])
    torch.sub(out[5], odd, alpha=4, out=out[5])
    torch.sub(parts[0], parts[2], out=odd)
    torch.add(even, odd, alpha=4, out=out[0])


def _join(parts: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Turn six products into four neighbours; the products are overwritten."""
    first, one, two, three, four, last = parts
    first += one
    first += two
    one -= two
    torch.add(one, two, alpha=2, out=two)
    last += one
    first += three
    torch.add(first, four, out=out[0])
    three -= four
    torch.add(one, three, alpha=2, out=out[1])
    torch.add(last, three, alpha=8, out=out[3])
    torch.add(three, four, alpha=2, out=four)
    torch.add(two, four, alpha=4, out=out[2])


def _every_fourth(data: Tensor, axis: int, first: int, count: int) -> Tensor:
    """`count` slices along `axis`, four apart."""
    index = [slice(None)] * data.ndim
    index[axis] = slice(first, first + TILE * (count - 1) + 1, TILE)
    return data[tuple(index)]


class Winograd:
    """Weights (K, C, 3, 3, 3) and bias (K,), ready for any number of slabs.

    Call it with (1, C, n + 2, Y, Z), channels last in memory. It returns (1, K, n, Y, Z) in the
    same order, with zero padding along the last two axes and none along the planes.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        turn = torch.tensor(KERNEL, dtype=torch.float64)
        exact = weight.detach().double()
        # (row, column, tap, in, out)
        mixed = torch.einsum("ia,jb,kcdab->ijdck", turn, turn, exact)
        self._matrices = mixed.float().contiguous()
        self._bias = bias.detach().float()

    def __call__(self, planes: Tensor) -> Tensor:
        """Return the slab without its first and last plane."""
        source = planes[0].permute(1, 2, 3, 0)
        count, height, width, channels = source.shape
        down, across = -(-height // TILE), -(-width // TILE)
        tiles = TILES * min(torch.get_num_threads(), MOST_THREADS)
        band = max(1, min(down, tiles // (count * across)))
        features = len(self._bias)
        result = source.new_empty((count - 2, height, width, features))
        turned = source.new_empty((REACH, count, band, TILE * across + 2, channels))
        # What lies beside the volume is zero, and so are sums of it.
        turned[:, :, :, 0] = 0
        turned[:, :, :, width + 1 :] = 0
        mixed = source.new_empty((REACH, count - 2, band, TILE * across, features))
        for begin in range(0, down, band):
            rows = min(band, down - begin)
            _turn_rows(source, begin, turned[:, :, :rows, 1 : width + 1])
            self._mix(turned[:, :, :rows], mixed[:, :, :rows])
            _restore_rows(mixed[:, :, :rows, :width], result, begin)
        return result.permute(3, 0, 1, 2)[None]

    def _mix(self, turned: Tensor, mixed: Tensor) -> None:
        """Transform along rows, multiply by the matrices, and transform back."""
        _, count, rows, _, channels = turned.shape
        across = mixed.shape[3] // TILE
        size, squares = (count, rows, across), rows * across
        even, odd = (turned.new_empty((*size, channels)) for _ in range(2))
        sums = turned.new_empty((REACH, *size, channels))
        flat = sums.view(REACH, count * squares, channels)
        products = turned.new_empty((REACH, (count - 2) * squares, mixed.shape[4]))
        shaped = products.view(REACH, count - 2, rows, across, mixed.shape[4])
        for row in range(REACH):
            parts = [_every_fourth(turned[row], 2, k, across) for k in range(REACH)]
            _split(parts, sums.unbind(), even, odd)
            for column in range(REACH):
                # A constant in this place alone reaches all 16 voxels unchanged.
                bias = self._bias if row == column == 1 else None
                _multiply(
                    flat[column], self._matrices[row, column], bias, squares, products[column]
                )
            out = [_every_fourth(mixed[row], 2, k, across) for k in range(TILE)]
            _join(shaped.unbind(), out)


def _multiply(
    features: Tensor, matrices: Tensor, bias: Tensor | None, plane: int, out: Tensor
) -> None:
    """Sum over three planes, ``plane`` lines of ``features`` apart, each times its matrix."""
    taps = [features[k * plane : k * plane + len(out)] for k in range(3)]
    if bias is None:
        torch.mm(taps[0], matrices[0], out=out)
    else:
        torch.addmm(bias, taps[0], matrices[0], out=out)
    out.addmm_(taps[1], matrices[1])
    out.addmm_(taps[2], matrices[2])


def _turn_rows(source: Tensor, begin: int, turned: Tensor) -> None:
    """Turn rows from the square ``begin`` on into six sums each, (6, planes, rows, Z, C)."""
    rows, height = turned.shape[2], source.shape[1]
    first = TILE * begin - 1
    end = first + TILE * rows + 2
    low, high = max(first, 0), min(end, height)
    known = source[:, low:high]
    if low > first or high < end:
        count, _, width, channels = source.shape
        known = source.new_empty((count, end - first, width, channels))
        known[:, : low - first] = 0
        known[:, low - first : high - first] = source[:, low:high]
        known[:, high - first :] = 0
    even, odd = (source.new_empty(turned.shape[1:]) for _ in range(2))
    parts = [_every_fourth(known, 1, k, rows) for k in range(REACH)]
    _split(parts, turned.unbind(), even, odd)


def _restore_rows(mixed: Tensor, result: Tensor, begin: int) -> None:
    """Turn sums (6, planes, rows, Z, K) into rows of ``result`` from the square ``begin`` on."""
    rows, first = mixed.shape[2], TILE * begin
    room = min(TILE * rows, result.shape[1] - first)
    target = result[:, first : first + room]
    whole = target
    if room < TILE * rows:
        whole = result.new_empty((len(result), TILE * rows, *result.shape[2:]))
    _join(mixed.unbind(), [_every_fourth(whole, 1, k, rows) for k in range(TILE)])
    if whole is not target:
        target.copy_(whole[:, :room])
