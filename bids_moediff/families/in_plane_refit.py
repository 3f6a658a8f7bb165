# SPDX-License-Identifier: Apache-2.0
"""Refit a network's last layer to the fine detail that thick slices have in their plane.

The restored image is made coarse along each axis of its plane as the scanner made it coarse
across the slices, and restored again. By how much the last layer has to change to find what was
lost is solved by least squares, held near the weights as they are. The idea of learning from the
plane is that of SMORE (Zhao et al., IEEE TMI 40:805-817, 2021), which trains whole networks.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bids_moediff.families.protocol import Problem, Progress, Settled
from bids_moediff.families.whole_volume import restore_volume
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.simulation import Degradation, Degraded, degrade
from bids_moediff.imaging.told import told_numbers
from bids_moediff.networks.last_layer import last_layer_of, seen
from bids_moediff.networks.mean import FOLD, OUTPUT_GAIN, space_to_depth
from bids_moediff.networks.precision import autocast

SIDE = 96  # voxels of the part of the head that is looked at
HEAD = 0.1  # of the scale: brighter voxels belong to the head
ROWS = 8_000  # places of each plane's axis that are fitted
FEWEST = 2_000
# Weight of the old layer, in mean squared features. Half of it gains more on thin slices and
# loses on others (research/notebook.md).
RIDGE = 4.0
THICK, FINE = 1.5, 1.05  # voxel ratio of slices, and of the plane

STAGE = "refit"  # reported once a last layer was changed
NO_REFIT = (
    "--in-plane-refit was left out: it needs moediff or student, one thick axis, and an output "
    "with the voxels of the plane (--output-resolution)."
)
TOO_SMALL = "--in-plane-refit changed nothing: the head is too small to learn from its planes."


def has_fine_plane(problem: Problem) -> bool:
    """Return True if one axis is slices, and the plane has the voxels of the output."""
    fine, middle, thick = sorted(problem.ratios)
    return thick >= THICK and max(fine, middle) <= FINE


def without_refit(settled: Settled) -> Settled:
    """Return options that leave the last layer as it is, and say so."""
    words = " ".join(filter(None, [settled.left_out, NO_REFIT]))
    return Settled(replace(settled.options, in_plane_refit=False), words)


def restore_refitted(
    network: Any,
    start: Tensor,
    problem: Problem,
    precision: str,
    progress: Progress,
    stage: str,
) -> Tensor:
    """Return the output of a network whose last layer was refitted to the image.

    Parameters
    ----------
    network
        With a last layer ``tail`` and ``with_features``; it is not changed.
    start
        (X, Y, Z), about [0, 1] in the head.
    problem
        With a fine plane (:func:`has_fine_plane`).
    precision, progress, stage
        As for :func:`~bids_moediff.families.whole_volume.restore_volume`; ``progress`` hears of
        ``STAGE`` besides, if the head was large enough.
    """
    first = restore_volume(
        network, start, problem, precision, lambda k, f: progress(k, f / 2), stage
    )
    own = refitted(network, problem, problem.agree(first), precision)
    if own is network:
        return first
    progress(STAGE, 1.0)
    return restore_volume(
        own, start, problem, precision, lambda k, f: progress(k, (1 + f) / 2), stage
    )


def refitted(network: Any, problem: Problem, restored: Tensor, precision: str) -> Any:
    """Return a copy of a network with the refitted last layer, or itself in too small a head."""
    slices = max(range(3), key=lambda axis: problem.ratios[axis])
    part = middle_of_head(restored)
    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    rows = 0
    for axis in range(3):
        if axis == slices:
            continue
        features, lacking, head = _lesson(network, problem, part, (slices, axis), precision)
        taken, wanted = _rows(features, lacking, head)
        squares, products = squares + taken.T @ taken, products + taken.T @ wanted
        rows += len(taken)
    if rows < FEWEST:
        return network
    assert isinstance(squares, Tensor)
    held = RIDGE * squares.diagonal().mean()
    change = torch.linalg.solve(squares + held * torch.eye(len(squares)).to(squares), products)
    own = copy.deepcopy(network)
    with torch.no_grad():
        own.tail.weight += change.T.reshape(own.tail.weight.shape)
    return own


def middle_of_head(volume: Tensor) -> Tensor:
    """Return up to ``SIDE`` voxels on each axis around the centre of the head."""
    inside = volume > HEAD
    box = []
    for axis in range(3):
        found = inside.any(dim=tuple(k for k in range(3) if k != axis)).nonzero().flatten()
        size = volume.shape[axis]
        centre = int(found.double().mean().round()) if len(found) else size // 2
        begin = max(0, min(centre - SIDE // 2, size - SIDE))
        box.append(slice(begin, min(size, begin + SIDE)))
    return volume[tuple(box)]


def _lesson(
    network: Any, problem: Problem, part: Tensor, axes: tuple[int, int], precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, what their output lacks and the head, of a part made coarse in plane.

    ``axes``: that of the slices, and that along which the part becomes coarse.
    """
    slices, axis = axes
    order = [k for k in range(3) if k != axis] + [axis]
    made = _coarse(problem, part.permute(order), slices)
    acquisition, ratios = made.plan.acquisition, made.plan.ratios
    numbers = made.condition + told_numbers(acquisition, ratios, made.noise)
    # The start of the training. That of the engine, which is nearer to a noisy scan, gains less
    # (research/notebook.md).
    even = tuple(slice(0, size - size % FOLD) for size in made.start.shape)
    start, truth = made.start[even][None, None], made.truth[even][None, None]
    told = torch.tensor(numbers, device=part.device)[None]
    with torch.inference_mode(), autocast(part.device, precision):
        _, features = network.with_features(start, told)
    last = last_layer_of(
        network.tail, network.tail_terms, seen(told, network.config.extra_numbers)
    ).float()
    with torch.inference_mode():
        found = features[-1].float()
        lacking = space_to_depth(truth - start).float() / OUTPUT_GAIN - last(found)
        return found, lacking, space_to_depth(truth).amax(1)[0] > HEAD


def _coarse(problem: Problem, part: Tensor, slices: int) -> Degraded:
    """Return a part (coarse axis last) measured as the scanner measured across its slices."""
    across = problem.acquisition.axes[slices]
    plane = next(axis for k, axis in enumerate(problem.acquisition.axes) if k != slices)
    plan = Degradation(
        (1.0, 1.0, problem.ratios[slices]), Acquisition((plane, plane, across)), problem.noise
    )
    return degrade(part, plan, torch.Generator(part.device).manual_seed(0))


def _rows(features: Tensor, lacking: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs (n, C x 27) and wanted changes (n, T) of the last layer, at random places."""
    places = head.nonzero().cpu()
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:ROWS]
    x, y, z = places[chosen].T
    padded = functional.pad(features[0], (1,) * 6)
    around = [padded[:, x + i, y + j, z + k] for i in range(3) for j in range(3) for k in range(3)]
    taken = torch.stack(around, -1).permute(1, 0, 2).flatten(1)
    return taken, lacking[0][:, x, y, z].T
