# SPDX-License-Identifier: Apache-2.0
"""Run a 3-D network in slabs whose seams are invisible.

A slab carries a halo as wide as the network's receptive field, so every output voxel sees exactly
the input it would see in the whole volume; only the floating-point order may differ.
"""

from collections.abc import Callable, Iterator

import torch


def slabs(
    length: int, core: int, halo: int, multiple: int = 2
) -> Iterator[tuple[slice, slice, slice]]:
    """Cut an axis into cores with halos.

    Yields (read, keep, write): what to read of the axis, which part of the result to keep, and
    where it goes. Starts are multiples of `multiple`, so that folding networks keep their phase.
    """
    core = max(multiple, core - core % multiple)
    halo = -(-halo // multiple) * multiple
    for begin in range(0, length, core):
        end = min(length, begin + core)
        low, high = max(0, begin - halo), min(length, end + halo)
        yield slice(low, high), slice(begin - low, end - low), slice(begin, end)


def pad_to_multiple(volume: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last planes of (X, Y, Z) until each side is a multiple of `multiple`."""
    padding: list[int] = []
    for size in reversed(volume.shape):
        padding += [0, -size % multiple]
    if not any(padding):
        return volume
    return torch.nn.functional.pad(volume[None, None], padding, mode="replicate")[0, 0]


def run_in_slabs(
    network: Callable[[torch.Tensor], torch.Tensor],
    volume: torch.Tensor,
    halo: int,
    max_voxels: int,
    progress: Callable[[float], None] | None = None,
) -> torch.Tensor:
    """Apply `network` ((1, 1, X, Y, Z) -> same) to (X, Y, Z) along the first axis.

    All sides are even. `max_voxels` bounds a slab, its halo included.
    """
    plane = volume.shape[1] * volume.shape[2]
    core = max(16, max_voxels // plane - 2 * halo)
    result = torch.empty_like(volume)
    for read, keep, write in slabs(volume.shape[0], core, halo):
        result[write] = network(volume[None, None, read])[0, 0, keep]
        if progress is not None:
            progress(write.stop / volume.shape[0])
    return result
