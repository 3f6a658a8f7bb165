# SPDX-License-Identifier: Apache-2.0
"""The box around a head: networks need not run on the air beside it."""

from collections.abc import Callable

import torch
from scipy import ndimage

from bids_moediff.imaging.grid import Shape

from .tiling import pad_to_multiple

Box = tuple[slice, slice, slice]
BLOCK = 4  # voxels along the side of the blocks that are looked at: noise averages out
BRIGHT = 0.05  # of the scale: half of what counts as head elsewhere, so that dark skin stays in
FEWEST_BLOCKS = 8  # smaller pieces are noise
# Voxels of air beside the head that the network sees, and those of them whose result is taken:
# at a cut it takes the missing air for an edge (docs/experiments.md).
MARGIN, KEPT = 16, 4
WORTH = 0.95  # of the volume: a larger box saves nothing


def head_box(start: torch.Tensor, margin: int) -> Box:
    """Box around all that could be anatomy in (X, Y, Z), intensities in about [0, 1].

    `margin` voxels are added on each side; sides begin at multiples of ``BLOCK``. Without a head,
    the box is the volume.
    """
    shape: Shape = (start.shape[0], start.shape[1], start.shape[2])
    blocks = pad_to_multiple(start.float(), BLOCK)[None, None]
    means = torch.nn.functional.avg_pool3d(blocks, BLOCK)[0, 0]
    labels, _ = ndimage.label((means > BRIGHT).cpu().numpy())
    pieces = ndimage.find_objects(labels)
    sizes = [int((labels[piece] == 1 + k).sum()) for k, piece in enumerate(pieces)]
    large = [piece for piece, size in zip(pieces, sizes, strict=True) if size >= FEWEST_BLOCKS]
    sides = []
    for axis, size in enumerate(shape):
        first = BLOCK * min((piece[axis].start for piece in large), default=0) - margin
        last = BLOCK * max((piece[axis].stop for piece in large), default=size) + margin
        first, last = first // BLOCK * BLOCK, -(-last // BLOCK) * BLOCK
        sides.append(slice(max(0, first), min(size, last)))
    return sides[0], sides[1], sides[2]


def within_head_box(
    network: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> torch.Tensor:
    """What `network` makes of (X, Y, Z) in the box of the head; air outside stays as it is."""
    seen, kept = head_box(start, MARGIN), head_box(start, KEPT)
    if start[seen].numel() >= WORTH * start.numel():
        return network(start)
    inside = network(start[seen].contiguous())
    shifted = [
        slice(side.start - outer.start, side.stop - outer.start)
        for side, outer in zip(kept, seen, strict=True)
    ]
    result = start.clone()
    result[kept] = inside[tuple(shifted)]
    return result
