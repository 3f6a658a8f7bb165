# SPDX-License-Identifier: Apache-2.0
"""Run a 3-D network on a whole volume in bounded memory, inside the box of the head."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from scipy import ndimage

from bids_moediff.families.protocol import Problem, Progress
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.imaging.grid import Shape
from bids_moediff.networks.int8 import Range, with_integers
from bids_moediff.networks.mean import (
    FOLD,
    OUTPUT_GAIN,
    depth_to_space,
    normalise,
    space_to_depth,
)
from bids_moediff.networks.precision import INT8, PRECISIONS, floating
from bids_moediff.networks.streaming import Chain

# Voxels pushed at a time: enough to keep every core busy, little enough for the caches of a CPU.
CPU_VOXELS = 500_000
CUDA_VOXELS = 16_000_000


class Streaming(Protocol):
    """A network that takes the planes of a volume one after another."""

    config: Any
    int8_ranges: tuple[Range, ...]

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Return the weights."""
        ...

    def stream(self, condition: torch.Tensor, kind: torch.dtype) -> Chain:
        """Return the network between fold and unfold as a pipeline, for one condition."""
        ...


def apply_to_volume(
    network: Streaming,
    start: torch.Tensor,
    condition: torch.Tensor,
    progress: Callable[[float], None] | None = None,
    *,
    precision: str | None = None,
    max_voxels: int | None = None,
) -> torch.Tensor:
    """Return the output (X, Y, Z) of a network for a whole volume.

    Planes pass through the network one after another (:mod:`bids_moediff.networks.streaming`). The
    result is that of the whole volume; memory grows with a plane.

    Parameters
    ----------
    network
        On its device.
    start
        Start (X, Y, Z), about [0, 1] in the head.
    condition
        (6,) or more: see :class:`~bids_moediff.families.protocol.Problem`.
    progress
        Called with the fraction done.
    precision
        A key of ``PRECISIONS``; by default that of the surrounding autocast, else 32 bits.
    max_voxels
        Number of voxels that pass through the network at a time.
    """
    order = axis_order(condition)
    device = next(network.parameters()).device
    told = reorder(condition, order)[None].to(device)
    volume = pad_to_multiple(start.permute(order), network.config.multiple).contiguous()
    voxels = max_voxels or (CUDA_VOXELS if device.type == "cuda" else CPU_VOXELS)
    plane = volume.shape[1] * volume.shape[2]
    step = max(1, voxels // (network.config.multiple * plane)) * network.config.multiple
    kind = torch.float32
    if precision is not None:
        kind = PRECISIONS[floating(precision)]
    elif torch.is_autocast_enabled(device.type):
        kind = torch.get_autocast_dtype(device.type)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        pipeline = network.stream(told, kind)
        if precision == INT8:
            pipeline = with_integers(pipeline, network.int8_ranges)
        result, done = volume.clone(), 0
        for begin in range(0, volume.shape[0], step):
            end = min(begin + step, volume.shape[0])
            folded = normalise(space_to_depth(volume[None, None, begin:end].to(device)))
            folded = folded.contiguous(memory_format=torch.channels_last_3d)
            ready = pipeline.push(folded, last=end == volume.shape[0])
            count = FOLD * ready.shape[2]
            change = OUTPUT_GAIN * depth_to_space(ready.float())[0, 0]
            result[done : done + count] += change.to(result.device)
            done += count
            if progress is not None:
                progress(end / volume.shape[0])
    sizes = [start.shape[axis] for axis in order]
    cut = result[: sizes[0], : sizes[1], : sizes[2]]
    return cut.permute([order.index(axis) for axis in range(3)]).contiguous()


def restore_volume(
    network: Any,
    start: torch.Tensor,
    problem: Problem,
    precision: str,
    progress: Progress,
    stage: str,
) -> torch.Tensor:
    """Return the output of a network for a problem; air far from the head stays unchanged."""

    def run(volume: torch.Tensor) -> torch.Tensor:
        return apply_to_volume(
            network,
            volume,
            problem.told,
            lambda fraction: progress(stage, fraction),
            precision=precision,
        )

    return within_head_box(run, start) if problem.within_head else run(start)


def run_padded(
    network: Streaming, start: torch.Tensor, condition: torch.Tensor, side: int
) -> torch.Tensor:
    """Return the output for a volume padded to cubes of ``side``: one size is fastest on a GPU."""
    output = apply_to_volume(network, pad_to_side(start, side), condition)
    return output[tuple(slice(0, size) for size in start.shape)]


def pad_to_side(start: torch.Tensor, side: int) -> torch.Tensor:
    """Repeat the last planes of (X, Y, Z) until each side has ``side`` voxels.

    Padding with air would make an edge that changes the result as far as the network sees.
    """
    padding = [amount for size in reversed(start.shape) for amount in (0, max(0, side - size))]
    return torch.nn.functional.pad(start[None, None], padding, mode="replicate")[0, 0]


def pad_to_multiple(volume: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last planes of (X, Y, Z) until each side is a multiple of ``multiple``."""
    padding: list[int] = []
    for size in reversed(volume.shape):
        padding += [0, -size % multiple]
    if not any(padding):
        return volume
    return torch.nn.functional.pad(volume[None, None], padding, mode="replicate")[0, 0]


Box = tuple[slice, slice, slice]
BLOCK = 4  # voxels along the side of the blocks that are looked at: noise averages out
BRIGHT = 0.05  # of the scale: half of what counts as head elsewhere, so that dark skin stays in
FEWEST_BLOCKS = 8  # smaller pieces are noise
# Voxels of air beside the head that the network sees, and those of them whose result is taken:
# at a cut it takes the missing air for an edge (research/notebook.md).
MARGIN, KEPT = 16, 4
WORTH = 0.95  # of the volume: a larger box saves nothing


def head_box(start: torch.Tensor, margin: int) -> Box:
    """Return the box around all possible anatomy in a volume.

    Parameters
    ----------
    start
        (X, Y, Z), about [0, 1] in the head.
    margin
        Voxels that are added on each side; sides begin at multiples of ``BLOCK``.

    Returns
    -------
    tuple
        Slices of the box; the whole volume if no head is found.
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


def head_boxes(start: torch.Tensor) -> tuple[Box, Box]:
    """Return the box of (X, Y, Z) that a network sees, and the box of its result that is used."""
    seen, kept = head_box(start, MARGIN), head_box(start, KEPT)
    if start[seen].numel() >= WORTH * start.numel():
        whole = (slice(0, start.shape[0]), slice(0, start.shape[1]), slice(0, start.shape[2]))
        return whole, whole
    return seen, kept


def within_head_box(
    network: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> torch.Tensor:
    """Return the output of a network inside the box of the head; air outside is unchanged."""
    seen, kept = head_boxes(start)
    if start[seen].shape == start.shape:
        return network(start)
    inside = network(start[seen].contiguous())
    shifted = [
        slice(side.start - outer.start, side.stop - outer.start)
        for side, outer in zip(kept, seen, strict=True)
    ]
    result = start.clone()
    result[kept] = inside[tuple(shifted)]
    return result
