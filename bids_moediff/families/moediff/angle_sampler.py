# SPDX-License-Identifier: Apache-2.0
"""Turn Gaussian noise into a sample of the error, in a few steps of the experts.

With u = sin^2(theta) the perturbation z of :mod:`.volume_experts` obeys dz / du = -d F', where F'
= F / sin(2 theta) is the output of the experts. u falls from 1 (noise) to 0 (error). A step from
u1 to u0 adds (u1 - u0) d F', and F' is taken a quarter of the way, at u1 - (u1 - u0) / 4. For a
Gaussian mode whose error has c times the power of the noise,

    F' = (c - 1) / (2 (c + u (1 - c))) z.

At this place one evaluation a step is right to second order in c - 1: one step ends at 1.86 for
c = 4 (exact: 2) and at 0.54 for c = 1 / 4 (exact: 0.5).

Memory is bounded by slabs of planes. Within a slab, an expert runs on the box where its gate
reaches a threshold, and not at all if there is no such box.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bids_moediff.families.posterior import LocalScale, white
from bids_moediff.families.protocol import Problem
from bids_moediff.families.whole_volume import MARGIN, Box, head_box, pad_to_multiple
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.imaging.coloured import coloured
from bids_moediff.networks.mean import FOLD
from bids_moediff.networks.precision import autocast
from bids_moediff.networks.scale import fold, scale_inputs, scale_numbers, unfold

from .volume_experts import TOKEN, WINDOW, Scene, VolumeExperts, scene_inputs

# Share of the steps in which an expert is evaluated anew; in the others its last output is kept.
SCHEDULE: Mapping[str, float] = {"smooth": 0.5, "cortex": 1.0, "junction": 1.0, "plain": 1.0}
THRESHOLD = 0.05  # of the gate: an expert below it in all of a place does not run there
SLAB_CELLS = 500_000
HALO = 12  # cells: receptive radius of an expert, rounded up to whole windows


def evaluation_places(steps: int) -> list[float]:
    """Return u = sin^2(theta) at which each step evaluates the experts."""
    return [1 - (index + 0.25) / steps for index in range(steps)]


def is_due(step: int, steps: int, share: float) -> bool:
    """Return True if an expert with this schedule is evaluated in a step."""
    count = math.ceil(share * steps)
    return step == 0 or step * count // steps != (step - 1) * count // steps


@dataclass(frozen=True)
class View:
    """An image as the experts see it: axes in their order, cut to the box of the head.

    Parameters
    ----------
    inputs
        Inputs of the scale head (4, X, Y, Z).
    numbers
        Numbers of the scale head (7,).
    scale
        Scale and null space of the whole image, in its own order of axes.
    order
        Axes of the image in the order of the experts.
    box
        Box that the experts see, in their order of axes; elsewhere noise is unchanged.
    """

    inputs: Tensor
    numbers: Tensor
    scale: LocalScale
    order: tuple[int, ...]
    box: Box

    @classmethod
    def of(cls, problem: Problem, scale: LocalScale, mean: Tensor, start: Tensor) -> "View":
        """Return the view of a restored image that agrees with the measurement.

        Parameters
        ----------
        problem, scale
            The problem, and the size of the error.
        mean, start
            Restored image and start of the problem (X, Y, Z).
        """
        order = axis_order(problem.condition)
        images = [part.permute(order).contiguous() for part in (mean, start)]
        everywhere = tuple(slice(0, size) for size in images[1].shape)
        box = head_box(images[1], MARGIN) if problem.within_head else everywhere
        inputs = scale_inputs(*images)[(slice(None), *box)].contiguous()
        numbers = scale_numbers(reorder(problem.condition, order), problem.noise)
        return cls(inputs, numbers.to(inputs.device), scale, tuple(order), box)  # type: ignore[arg-type]

    def maps(self, folded: Tensor) -> Tensor:
        """Return maps (K, x, y, z) on the folded grid of the box as (X, Y, Z, K) of the image.

        Outside the box all experts have the same share.
        """
        fine = folded.float()
        for axis in (1, 2, 3):
            fine = fine.repeat_interleave(FOLD, axis)
        sizes = [self.scale.missing.shape[axis] for axis in self.order]
        result = fine.new_full((len(fine), *sizes), 1 / len(fine))
        inside = result[(slice(None), *self.box)]
        inside.copy_(fine[(slice(None), *(slice(0, size) for size in inside.shape[1:]))])
        back = [1 + self.order.index(axis) for axis in range(3)]
        return result.permute(*back, 0).contiguous()

    def cut(self, volume: Tensor) -> Tensor:
        """Return a volume (X, Y, Z) of the image as the experts see it, with even sides."""
        return pad_to_multiple(volume.permute(self.order)[self.box].contiguous(), FOLD)

    def add(self, volume: Tensor, part: Tensor) -> Tensor:
        """Return a volume of the image plus the output of the experts (0 outside the box)."""
        result = volume.clone()
        inside = result.permute(self.order)[self.box]
        inside += part[tuple(slice(0, size) for size in inside.shape)]
        return result


@dataclass
class Counts:
    """Number of tokens whose experts ran and were skipped, over steps and experts."""

    evaluated: int = 0
    skipped: int = 0

    def add(self, evaluated: int, whole: int) -> None:
        """Count one expert in one step."""
        self.evaluated += evaluated
        self.skipped += whole - evaluated


@dataclass
class AngleSampler:
    """Draw samples of the unmeasured part of an image.

    Parameters
    ----------
    experts
        In evaluation mode.
    view
        The image.
    precision
        A key of :data:`bids_moediff.networks.precision.KINDS`.
    only
        Number of the one expert that runs everywhere; None for the mixture.
    threshold, schedule
        Gate threshold and evaluation schedule, which save evaluations.
    """

    experts: VolumeExperts
    view: View
    precision: str
    only: int | None = None
    threshold: float = THRESHOLD
    schedule: Mapping[str, float] = field(default_factory=lambda: SCHEDULE)

    def __post_init__(self) -> None:
        self.counts = Counts()
        self.deviation = self.view.cut(self.view.scale.missing_deviation)
        with torch.inference_mode(), self._autocast():
            self.scene = self._scene()

    def _autocast(self) -> torch.autocast:
        return autocast(self.deviation.device, self.precision)

    def _scene(self) -> Scene:
        """Return context of the image slab by slab, and gates of the whole.

        Gates are computed at once, since tokens see their neighbours.
        """
        inputs = torch.stack([pad_to_multiple(part, FOLD) for part in self.view.inputs])
        made = scene_inputs(inputs[None], self.deviation[None, None])
        numbers = self.view.numbers[None]
        gates = made.new_ones(1, 1, *made.shape[2:])
        if self.experts.gate is not None:
            gates = self.experts.gate(made)
        if self.only is not None:
            gates = torch.zeros_like(gates)
            gates[:, self.only] = 1.0
        parts = []
        for inner, outer in slabs(made.shape[2:]):
            context = self.experts.read(made[:, :, outer])
            parts.append(
                context[:, :, inner.start - outer.start :][:, :, : inner.stop - inner.start]
            )
        return Scene(torch.cat(parts, 2), made[:, -1:].clone(), gates, numbers)

    def draw(
        self,
        seed: int,
        steps: int,
        report: Callable[[float], None] = lambda fraction: None,
        changes: list[Tensor] | None = None,
    ) -> Tensor:
        """Return a sample of the unmeasured part (X, Y, Z).

        Parameters
        ----------
        seed
            Seed of the noise.
        steps
            Evaluations of the experts.
        report
            Called after each step.
        changes
            Gets what each expert added (X, Y, Z); with the first noise they add up to the sample.
        """
        z = first_noise(self.view.scale, seed)
        held: dict[int, Tensor] = {}
        moved: dict[int, Tensor] = {}
        for step, place in enumerate(evaluation_places(steps)):
            with torch.inference_mode(), self._autocast():
                change = self._velocity(z, place, (step, steps), held)
                z = self._moved(z, change / steps)
            if changes is not None:
                for index, part in held.items():
                    moved[index] = moved.get(index, 0) + part / steps
            report((step + 1) / steps)
        if changes is not None:
            # The projection is linear, so that of the sum is the sum of those of the steps.
            nothing = torch.zeros_like(z)
            changes += [self._moved(nothing, part) for _, part in sorted(moved.items())]
        return z

    def _moved(self, z: Tensor, change: Tensor) -> Tensor:
        """Return z (X, Y, Z) plus a folded change in units of d, without its measured part."""
        moved = self.view.add(z, self.deviation * unfold(change)[0, 0])
        return self.view.scale.space.project(moved)

    def _velocity(
        self, z: Tensor, place: float, step: tuple[int, int], held: dict[int, Tensor]
    ) -> Tensor:
        """Return folded F' of the mixture (1, 8, x, y, z) within the box."""
        folded = fold((self.view.cut(z) / self.deviation)[None, None])
        angle = torch.asin(torch.tensor([place], device=z.device).sqrt())
        total = torch.zeros_like(folded)
        for index, name in enumerate(self.experts.config.experts):
            if is_due(*step, self.schedule[name]):
                held[index] = self._run(index, folded, angle)
            else:
                self.counts.add(0, self._tokens(folded.shape[2:]))
            total += held[index]
        return total

    @staticmethod
    def _tokens(sizes: Sequence[int]) -> int:
        return math.prod(-(-size // TOKEN) for size in sizes)

    def _run(self, index: int, folded: Tensor, angle: Tensor) -> Tensor:
        """Return gate times F' of one expert (1, 8, x, y, z), where its gate is large enough."""
        gate = self.scene.gates[:, index, None]
        result = torch.zeros_like(folded)
        ran = 0
        for inner, _ in slabs(folded.shape[2:]):
            box = active_box(gate[0, 0], inner, self.threshold)
            if box is None:
                continue
            wide = [
                slice(max(0, side.start - HALO), min(size, side.stop + HALO))
                for side, size in zip(box, folded.shape[2:], strict=True)
            ]
            seen = Scene(
                _within(self.scene.context, wide),
                _within(self.scene.edges, wide),
                _within(self.scene.gates, wide),
                self.scene.numbers,
            )
            found = self.experts.run_expert(index, _within(folded, wide), seen, angle).float()
            kept = [
                slice(side.start - outer.start, side.stop - outer.start)
                for side, outer in zip(box, wide, strict=True)
            ]
            _within(result, box).copy_(_within(gate, box) * _within(found, kept))
            ran += self._tokens([side.stop - side.start for side in box])
        self.counts.add(ran, self._tokens(folded.shape[2:]))
        return result


def _within(features: Tensor, box: Sequence[slice]) -> Tensor:
    """Return a view of features (B, C, x, y, z) in a box."""
    return features[:, :, box[0], box[1], box[2]]


def first_noise(scale: LocalScale, seed: int) -> Tensor:
    """Return coloured noise in the null space (X, Y, Z), the start of a sample."""
    noise = coloured(white(scale.missing, seed), scale.space.matrices)
    return scale.space.project(scale.missing * noise)


def slabs(sizes: Sequence[int]) -> list[tuple[slice, slice]]:
    """Return slabs of cell planes that pass through a network, without and with their neighbours.

    Cuts lie between windows, so slabs do not change the result.
    """
    planes = max(WINDOW, SLAB_CELLS // (sizes[1] * sizes[2]) // WINDOW * WINDOW)
    found = []
    for begin in range(0, sizes[0], planes):
        inner = slice(begin, min(begin + planes, sizes[0]))
        found.append((inner, slice(max(0, begin - HALO), min(sizes[0], inner.stop + HALO))))
    return found


def active_box(gate: Tensor, planes: slice, threshold: float) -> Box | None:
    """Return the box of whole windows around cells (x, y, z) of some planes with a large gate."""
    active = gate[planes] >= threshold
    if not bool(active.any()):
        return None
    sides = []
    for axis, size in enumerate(active.shape):
        others = [other for other in range(3) if other != axis]
        index = active.any(others[1]).any(others[0]).nonzero()[:, 0]
        first, last = int(index[0]) // WINDOW * WINDOW, int(index[-1]) // WINDOW * WINDOW + WINDOW
        shift = planes.start if axis == 0 else 0
        sides.append(slice(shift + first, shift + min(last, size)))
    return sides[0], sides[1], sides[2]
