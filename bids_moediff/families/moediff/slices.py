# SPDX-License-Identifier: Apache-2.0
"""Run the mixture of experts over the slices of a volume.

Slices are stacked along the axis with the smallest voxel ratio, so that the coarse axes lie in the
slice plane; neighbouring slices are the context; all slices share the same noise, which keeps the
volume free of flicker (decision S of docs/science.md). Where several axes share the smallest ratio
the volume can be cut along each of them and the results averaged.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.imaging.axes import Axes, orientations, plane_condition, slice_axes
from bids_moediff.options import Options

SLICE_MULTIPLE = 64
# Slices at a time on a processor: at the bottleneck of an expert the kernels are larger than the
# features, and four slices share what it takes to read and arrange them.
CPU_BATCH = 4
Report = Callable[[float], None]
Correct = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Walk:
    """How the steps of the slices are taken.

    Parameters
    ----------
    noise_strength
        Noise that the sampling starts with; 1 is the paper's.
    correct
        Makes a volume consistent with the data: all slices take one step before any takes the
        next, and the estimate of every step is corrected. This keeps four more volumes in memory.
    progress
        Called with the fraction done.
    """

    noise_strength: float = 0.0
    correct: Correct | None = None
    progress: Report = lambda fraction: None


@dataclass(frozen=True)
class _Stack:
    """A volume as padded slices (N, H, W), with the inputs of the network, and the way back."""

    slices: torch.Tensor
    axes: Axes
    size: tuple[int, int]
    condition: torch.Tensor
    noise: torch.Tensor | None
    reach: int
    batch: int

    def batches(self) -> Iterator[slice]:
        """Slices that go through the network together."""
        for begin in range(0, len(self.slices), self.batch):
            yield slice(begin, min(begin + self.batch, len(self.slices)))

    def context(self, where: slice) -> torch.Tensor:
        """Slices with their neighbours, (B, S, H, W); the outermost ones repeat."""
        centres = torch.arange(where.start, where.stop)
        index = centres[:, None] + torch.arange(-self.reach, self.reach + 1)
        return self.slices[index.clamp(0, len(self.slices) - 1).to(self.slices.device)]

    def conditions(self, where: slice) -> torch.Tensor:
        """The condition for each slice."""
        return self.condition.expand(where.stop - where.start, -1)

    def noises(self, where: slice) -> torch.Tensor | None:
        """The shared noise for each slice."""
        if self.noise is None:
            return None
        return self.noise.expand(where.stop - where.start, *self.noise.shape[1:])

    def volume(self, slices: torch.Tensor) -> torch.Tensor:
        """Padded slices (N, H, W) as (X, Y, Z)."""
        back = [self.axes.index(axis) for axis in range(3)]
        return slices[:, : self.size[0], : self.size[1]].permute(back).contiguous()

    def gates(self, parts: list[torch.Tensor]) -> torch.Tensor | None:
        """Gates (B, K, H/4, W/4) as (X, Y, Z, K) by bilinear interpolation; sums stay one."""
        if not parts:
            return None
        back = [self.axes.index(axis) for axis in range(3)]
        return torch.cat(parts).movedim(1, -1).permute(*back, 3)

    def full_size(self, gates: torch.Tensor) -> torch.Tensor:
        """Gates on the pixels of the slices, (B, K, rows, columns), in main memory."""
        size = (gates.shape[-2] * 4, gates.shape[-1] * 4)
        large = functional.interpolate(
            gates.float(), size=size, mode="bilinear", align_corners=False
        )
        return large[..., : self.size[0], : self.size[1]].cpu()


def _noise(
    network: MoEDiffSR, shape: Sequence[int], strength: float, seed: int
) -> torch.Tensor | None:
    """Return noise that all slices (H, W) share: of pixels, or of a latent without wavelets."""
    config = network.config
    if strength <= 0 and not config.predicts_noise:
        return None
    generator = torch.Generator().manual_seed(seed)
    if config.latent_channels == 16:
        return torch.randn((1, *shape), generator=generator)
    size = (1, config.latent_channels, shape[0] // 4, shape[1] // 4)
    return torch.randn(size, generator=generator)


def _stack(
    network: MoEDiffSR,
    volume: torch.Tensor,
    condition: torch.Tensor,
    axes: Axes,
    batch_size: int | None,
) -> _Stack:
    """Return slices of ``volume`` (X, Y, Z), padded for the network, without noise."""
    slices = volume.permute(axes)
    size = (slices.shape[1], slices.shape[2])
    padding = (0, -size[1] % SLICE_MULTIPLE, 0, -size[0] % SLICE_MULTIPLE)
    slices = functional.pad(slices[:, None], padding, mode="constant")[:, 0]
    return _Stack(
        slices,
        axes,
        size,
        plane_condition(condition, axes),
        None,
        network.config.context_slices // 2,
        CPU_BATCH if volume.device.type == "cpu" else (batch_size or 16),
    )


def restore_slices(
    network: MoEDiffSR,
    volume: torch.Tensor,
    condition: torch.Tensor,
    options: Options,
    walk: Walk = Walk(),
    axes: Axes | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int]]:
    """Sample every slice of a volume.

    Parameters
    ----------
    network
        On its device.
    volume
        (X, Y, Z), about [0, 1] in the head.
    condition
        (6,): see :class:`~bids_moediff.families.protocol.Problem`.
    options
        Steps, seed, batch size and outputs. On a CPU the batch size is ignored, so that the result
        does not depend on it.
    walk
        How the steps are taken.
    axes
        How the volume is cut; by default :func:`slice_axes`.

    Returns
    -------
    image
        (X, Y, Z).
    gates
        (X, Y, Z, K), or None if they were not asked for.
    counts
        Expert evaluations that ran and that were skipped.
    """
    stack = _stack(network, volume, condition, axes or slice_axes(condition), options.batch_size)
    strength, want_gates = walk.noise_strength, "gates" in options.outputs
    num_steps = options.num_steps or 1
    noise = _noise(network, stack.slices.shape[1:], strength, options.random_seed)
    stack = replace(stack, noise=None if noise is None else noise.to(volume.device))
    if walk.correct is not None and network.count_steps(num_steps, strength) > 1:
        return _step_by_step(network, stack, num_steps, want_gates, walk, walk.correct)
    return _slice_by_slice(network, stack, num_steps, want_gates, walk)


def gate_slices(network: MoEDiffSR, volume: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """Return gates (X, Y, Z, K) as :func:`restore_slices` does, without running an expert."""
    stack = _stack(network, volume, condition, slice_axes(condition), None)
    parts = [stack.full_size(network.gate(stack.slices[where])) for where in stack.batches()]
    gates = stack.gates(parts)
    assert gates is not None
    return gates


def _slice_by_slice(
    network: MoEDiffSR,
    stack: _Stack,
    num_steps: int,
    want_gates: bool,
    walk: Walk,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int]]:
    """Take all steps of a few slices, then those of the next slices."""
    output = torch.empty_like(stack.slices)
    gates: list[torch.Tensor] = []
    counts = {"evaluated": 0, "skipped": 0}
    for where in stack.batches():
        result = network.sample(
            stack.context(where),
            stack.conditions(where),
            num_steps=num_steps,
            noise_strength=walk.noise_strength,
            noise=stack.noises(where),
        )
        output[where] = result.image.float()
        counts["evaluated"] += int(result.evaluated)
        counts["skipped"] += int(result.skipped)
        if want_gates:
            gates.append(stack.full_size(result.gates))
        walk.progress(where.stop / len(stack.slices))
    return stack.volume(output), stack.gates(gates), counts


def _step_by_step(
    network: MoEDiffSR,
    stack: _Stack,
    steps: int,
    want_gates: bool,
    walk: Walk,
    correct: Correct,
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int]]:
    """Take one step of all slices, make the volume consistent, then take the next step."""
    count = len(stack.slices)
    states: dict[int, torch.Tensor] = {}
    cleans: dict[int, torch.Tensor] = {}
    gates: list[torch.Tensor] = []
    counts = {"evaluated": 0, "skipped": 0}
    images = torch.empty_like(stack.slices)
    for step in range(steps):
        s, s_next = 1.0 - step / steps, 1.0 - (step + 1) / steps
        for where in stack.batches():
            given = network.prepare(
                stack.context(where), stack.conditions(where), walk.noise_strength
            )
            if step == 0:
                states[where.start] = network.first_state(given, stack.noises(where))
                if want_gates:
                    gates.append(stack.full_size(given.gates))
            clean = network.clean_latent(given, states[where.start], s)
            images[where] = network.decode(given.centre, given.origin, clean).float()
            cleans[where.start] = clean
            run = int(given.active.sum())
            counts["evaluated"] += run
            counts["skipped"] += given.active.numel() - run
            walk.progress((step + where.stop / count) / steps)
        corrected = images.clone()
        inside = (slice(None), slice(stack.size[0]), slice(stack.size[1]))
        corrected[inside] = correct(stack.volume(images)).permute(stack.axes)
        for where in stack.batches() if s_next > 0 else ():
            # What the correction changed, as a latent; the autoencoder's own error cancels.
            change = network.encode(corrected[where, None]) - network.encode(images[where, None])
            origin = network.encode(stack.slices[where, None])
            states[where.start] = network.next_state(
                origin, states[where.start], cleans[where.start] + change, s, s_next
            )
        images = corrected
    return stack.volume(images), stack.gates(gates), counts


def restore_planes(
    network: MoEDiffSR,
    volume: torch.Tensor,
    condition: torch.Tensor,
    options: Options,
    walk: Walk = Walk(),
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, int]]:
    """Return the mean of :func:`restore_slices` over up to ``options.planes`` orientations.

    The time grows with the number of orientations; memory grows by one volume.
    """
    cuts = orientations(condition, options.planes)
    image = torch.zeros_like(volume)
    gates: torch.Tensor | None = None
    counts = {"evaluated": 0, "skipped": 0}
    for index, axes in enumerate(cuts):

        def report(fraction: float, done: int = index) -> None:
            walk.progress((done + fraction) / len(cuts))

        part, maps, run = restore_slices(
            network, volume, condition, options, replace(walk, progress=report), axes
        )
        image += part / len(cuts)
        if maps is not None:
            gates = maps / len(cuts) if gates is None else gates + maps / len(cuts)
        counts = {key: counts[key] + run[key] for key in counts}
    return image, gates, counts
