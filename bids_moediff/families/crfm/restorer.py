# SPDX-License-Identifier: Apache-2.0
"""Correct the base's image of a scan by a reference contrast."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from bids_moediff.families.load import load_model, make_restorer
from bids_moediff.families.protocol import (
    NOTHING_TO_GAIN,
    Problem,
    Progress,
    Restored,
    Restorer,
    Settled,
)
from bids_moediff.families.whole_volume import CUDA_VOXELS
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.networks.precision import PRECISIONS, floating
from bids_moediff.options import Options

from .features import Guides, Proposed, features, gradient_scale, reach
from .mapping import map_reference, share_of_proposal
from .network import CRFMNetwork, change, fold

# Voxels of a slab: the windows reach beyond it, so thin slabs would be computed several times.
CPU_VOXELS = 1_000_000

NO_REFERENCE = "No reference contrast: the image was restored by {base} alone."
OTHER_BASE = (
    "The base model {base} has other weights than those that this model was trained with: the "
    "reference may help less."
)


class CRFMRestorer:
    """A CRFM network and its base on their device."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        self.network = cast(CRFMNetwork, network)
        self.device, self.precision = device, precision
        base = load_model(self.network.config.base, device)
        known = self.network.config.base_sha256
        self.other_base = known not in ("", base.sha256)
        self.base: Restorer = make_restorer(base, device, precision)

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Return the options as the base follows them."""
        settled = self.base.settle(options, problem)
        notes, name = [settled.left_out], self.network.config.base
        if problem.reference is None:
            notes.append(NO_REFERENCE.format(base=name))
        elif self.other_base:
            notes.append(OTHER_BASE.format(base=name))
        return replace(settled, left_out=" ".join(note for note in notes if note))

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the base's estimates, each corrected."""
        for sample in self.base.restore(problem, options, progress):
            if problem.reference is None or problem.nothing_to_gain:
                yield sample
            else:
                yield replace(sample, image=self._corrected(sample.image, problem, progress))

    def _corrected(
        self, restored: torch.Tensor, problem: Problem, progress: Progress
    ) -> torch.Tensor:
        assert problem.reference is not None
        reference = problem.reference.to(restored)
        trip = problem.round_trip(reference)
        guides = [problem.agree(restored), problem.start(), reference, trip]
        corrected = correct_volume(
            self.network,
            guides,
            problem.condition,
            lambda fraction: progress("reference", fraction),
            precision=self.precision,
        )
        mapped, explained = map_reference(*guides[1:])
        proposal = guides[1] + mapped - problem.round_trip(mapped)
        corrected.lerp_(proposal, share_of_proposal(explained))
        return torch.lerp(guides[0], corrected, problem.reference_weight, out=corrected)

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of the method that ran."""
        if problem.nothing_to_gain:
            return NOTHING_TO_GAIN
        base = self.base.sampler(problem, options)
        return base if problem.reference is None else f"{base}, corrected by a reference contrast"


def correct_volume(
    network: CRFMNetwork,
    guides: list[torch.Tensor],
    condition: torch.Tensor,
    progress: Callable[[float], None] | None = None,
    *,
    precision: str = "fp32",
    max_voxels: int | None = None,
) -> torch.Tensor:
    """Return the corrected base (X, Y, Z), a few planes at a time.

    Parameters
    ----------
    network
        On its device.
    guides
        Base, start, reference and its round trip, each (X, Y, Z); see :class:`.features.Guides`.
    condition
        (6,): log2 of the voxel ratio and profile width, for each axis.
    progress
        Called with the fraction done.
    precision
        Key of ``PRECISIONS``.
    max_voxels
        Voxels of a slab; memory grows with it, the result does not change.
    """
    order, multiple = axis_order(condition), network.config.multiple
    device = next(network.parameters()).device
    told = reorder(condition, order)
    scale = gradient_scale(guides[2])
    turned = [one.permute(order) for one in guides]
    ratios = [float(value) for value in told[:3]]
    margin = reach(ratios)
    sizes = [-(-size // multiple) * multiple for size in turned[0].shape]
    count, plane = sizes[0], sizes[1] * sizes[2]
    voxels = max_voxels or (CUDA_VOXELS if device.type == "cuda" else CPU_VOXELS)
    step = max(1, voxels // (multiple * plane)) * multiple
    result, done = turned[0].clone(memory_format=torch.contiguous_format), 0
    waiting: list[Proposed] = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        pipeline = network.stream(told[None].to(device), PRECISIONS[floating(precision)])
        for begin in range(0, count, step):
            end = min(begin + step, count)
            planes = slice(max(0, begin - margin), min(count, end + margin))
            slab = Guides(*(_padded(one, planes, multiple, device) for one in turned))
            inner = slice(begin - planes.start, end - planes.start)
            found = features(slab, ratios, scale).at(inner)
            del slab
            waiting.append(found.proposed.copy())
            ready = pipeline.push(fold(found), last=end == count)
            del found
            number = multiple * ready.shape[2]
            if number:
                made = change(_taken(waiting, number), ready.float())[0, 0]
                kept = result[done : done + number]
                kept += made[tuple(slice(0, size) for size in kept.shape)].to(result.device)
                done += number
            if progress is not None:
                progress(end / count)
    return result.permute([order.index(axis) for axis in range(3)]).contiguous()


def _padded(
    volume: torch.Tensor, planes: slice, multiple: int, device: torch.device
) -> torch.Tensor:
    """Return planes (1, 1, n, Y, Z) of a volume (X, Y, Z); its last planes are repeated.

    ``planes`` may end beyond the volume; Y and Z become multiples of ``multiple``.
    """
    part = volume[planes].to(device)
    missing = planes.stop - planes.start - part.shape[0]
    padding = [0, -part.shape[2] % multiple, 0, -part.shape[1] % multiple, 0, missing]
    return torch.nn.functional.pad(part[None, None], padding, mode="replicate")


def _taken(waiting: list[Proposed], planes: int) -> Proposed:
    """Remove the first planes of the queue and return them."""
    parts: list[Proposed] = []
    missing = planes
    while missing > 0:
        first = waiting.pop(0)
        held = first.known.shape[2]
        parts.append(first.at(slice(0, min(held, missing))))
        if held > missing:
            waiting.insert(0, first.at(slice(missing, held)))
        missing -= held
    return Proposed(
        torch.cat([part.proposals for part in parts], 2),
        torch.cat([part.known for part in parts], 2),
    )
