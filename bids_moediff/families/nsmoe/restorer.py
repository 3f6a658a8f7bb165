# SPDX-License-Identifier: Apache-2.0
"""Encode the start once, and render it row by row as encodings become ready."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from bids_moediff.families.protocol import (
    NOTHING_TO_GAIN,
    Problem,
    Progress,
    Restored,
    Settled,
)
from bids_moediff.families.whole_volume import (
    CPU_VOXELS,
    CUDA_VOXELS,
    pad_to_multiple,
    within_head_box,
)
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.networks.mean import FOLD, normalise, space_to_depth
from bids_moediff.networks.precision import PRECISIONS
from bids_moediff.networks.streaming import Chain
from bids_moediff.options import Options

from .blocks import AxisPlan, add_blocks, plans
from .export import Region
from .network import NSMoENetwork, numbers_of

ONE_ESTIMATE = (
    "N-SMoE gives its estimate in one step: sampling steps or expert maps were asked for and are "
    "left out; use --model moediff for them."
)


def push_planes(
    pipeline: Chain, volume: Tensor, progress: Callable[[float], None] | None = None
) -> Iterator[Tensor]:
    """Yield (C, n, y, z) of a pipeline over folded planes as they become ready, n above 0."""
    voxels = CUDA_VOXELS if volume.is_cuda else CPU_VOXELS
    step = max(1, voxels // (FOLD * volume[0].numel())) * FOLD
    for begin in range(0, volume.shape[0], step):
        end = min(begin + step, volume.shape[0])
        folded = normalise(space_to_depth(volume[None, None, begin:end]))
        folded = folded.contiguous(memory_format=torch.channels_last_3d)
        ready = pipeline.push(folded, last=end == volume.shape[0])
        if ready.shape[2]:
            yield ready[0]
        if progress is not None:
            progress(end / volume.shape[0])


def encode_volume(
    network: NSMoENetwork,
    start: Tensor,
    told: Tensor,
    precision: str,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Tensor]:
    """Yield the encoding of (X, Y, Z), axes by voxel ratio and sides even, plane by plane."""
    with torch.inference_mode(), torch.autocast(start.device.type, enabled=False):
        pipeline = network.stream(told[None], PRECISIONS[precision])
        yield from push_planes(pipeline, start, progress)


def apply_to_volume(
    network: NSMoENetwork,
    start: Tensor,
    told: Tensor,
    precision: str,
    progress: Callable[[float], None] | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Return the super-resolved (X, Y, Z) of a start; memory grows with a plane.

    ``told`` (11,) is that of :func:`.network.numbers_of`, in the order of the volume's axes.
    ``visit`` is called with encodings (C, n, y, z), axes by voxel ratio, and the number of blocks
    before them.
    """
    order = axis_order(told)
    device = next(network.parameters()).device
    volume = pad_to_multiple(start.permute(order), FOLD).contiguous().to(device)
    shape = tuple(volume.shape)
    blocks = tuple(size // FOLD for size in shape)
    first, *others = plans(blocks, shape, (1.0, 1.0, 1.0), device)
    result, done = volume.clone(), 0
    with torch.inference_mode():
        for planes in encode_volume(network, volume, reorder(told, order), precision, progress):
            own = slice(done, done + planes.shape[1])
            rows = AxisPlan(first.indices[own], first.places[own], first.weights[own])
            add_blocks(result, network.kernels(planes), [rows, *others])
            if visit is not None:
                visit(done, planes)
            done = own.stop
    cut = result[tuple(slice(0, start.shape[axis]) for axis in order)]
    return cut.permute([order.index(axis) for axis in range(3)]).contiguous().to(start.device)


class NSMoERestorer:
    """N-SMoE on its device."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        assert isinstance(network, NSMoENetwork)
        self.network, self.device, self.precision = network, device, precision
        assert network.trunk is not None  # features that are missing fail here, not in an image

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Return the options with one estimate and one step."""
        asked = "gates" in options.outputs or (options.num_steps or 1) > 1
        plain = replace(options, num_steps=1, planes=1)
        return Settled(plain, ONE_ESTIMATE if asked else "")

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the one estimate."""
        start = problem.start()
        if problem.nothing_to_gain:
            yield Restored(start)
            return
        told = numbers_of(problem.told, problem.noise)
        region = None
        if "kernels" in options.outputs:
            region = Region.around_head(start, problem, axis_order(told))

        def run(volume: Tensor) -> Tensor:
            return apply_to_volume(
                self.network,
                volume,
                told,
                self.precision,
                lambda fraction: progress("kernels", fraction),
                None if region is None else region.visit,
            )

        shape = start.shape
        start = within_head_box(run, start) if problem.within_head else run(start)
        if region is None:
            yield Restored(start)
        else:
            labels, rows = region.described(self.network, shape)
            yield Restored(start, {"kernels": labels}, tables={"kernels": rows})

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of the method that ran."""
        if problem.nothing_to_gain:
            return NOTHING_TO_GAIN
        return "steered kernels over the interpolated input"
