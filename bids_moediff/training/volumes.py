# SPDX-License-Identifier: Apache-2.0
"""Make degraded volumes in threads during training, the same ones at every repetition.

Volume number k depends on the seed and on k alone, and step t sees the volumes from number
t / steps_per_volume on. So an interrupted training continues with exactly the same data.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bids_moediff.imaging.acquisition import Axis
from bids_moediff.imaging.simulation import Degraded, degrade, draw, fixed
from bids_moediff.runtime.progress_bar import track
from bids_moediff.runtime.sink import write_bytes

from .contrast import bias_field, random_contrast, synthesise, tissue_codes
from .guidance import displacement, log_jacobian, warp_labels
from .pack import BRIGHT, TrainingHead, head_weights
from .recipe import Recipe
from .references import draw_reference, with_lesions
from .sharpness import PROFILES, Grid, draw_grid, to_larger_voxels
from .tensor_filters import box_mean, dilate, erode
from .uncertain import draw_disturbed, draw_uncertain, measure

# A degraded volume loses up to a coarse voxel of each side.
SPARE = 6
# Largest push of the simulated gradient coils, in voxels.
DISTORTION = 8.0
BOX = Axis("box")

Volume = dict[str, torch.Tensor]
# What a stage adds to a volume: the mean's output, the teacher's output.
Finish = Callable[[Volume, Degraded | None], Volume]


def _arrange(
    head: TrainingHead, grid: Grid, rng: np.random.Generator, recipe: Recipe
) -> tuple[list[np.ndarray], list[float]]:
    """Volume and start (of a pair) in a random orientation, cut to a block, padded if small.

    The networks know one orientation only: of a pair, the coarsest axis comes last, and a spared
    axis comes first. Also returns how much each axis of the volume is to be coarsened.
    """
    order = [int(axis) for axis in rng.permutation(3)]
    if head.condition is not None:
        told = head.condition
        order = sorted(order, key=lambda axis: round(told[axis], 3))
    order = sorted(order, key=lambda axis: axis != grid.spared)
    factors = [grid.factors[axis] for axis in order]
    blocks = [int(np.ceil(recipe.block * factor)) for factor in factors]
    least = [int(np.ceil((recipe.smallest + SPARE) * factor)) for factor in factors]
    flipped = tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5))
    arrays = [head.volume] + ([head.start] if head.start is not None else [])
    if recipe.reference_count and head.reference is not None and head.kind != "pair":
        arrays.append(head.reference)
    arrays = [np.flip(array.transpose(order), flipped) for array in arrays]
    sizes = list(zip(arrays[0].shape, blocks, strict=True))
    corner = [int(rng.integers(0, max(size - block, 0) + 1)) for size, block in sizes]
    cut = tuple(slice(c, c + block) for c, block in zip(corner, blocks, strict=True))
    missing = [max(0, low - min(pair)) for pair, low in zip(sizes, least, strict=True)]
    padding = [(lack // 2, lack - lack // 2) for lack in missing]
    arrays = [np.ascontiguousarray(np.pad(array[cut], padding)) for array in arrays]
    if head.condition is not None:
        arrays.append(np.asarray(head.condition, np.float32)[[*order, *(3 + a for a in order)]])
    return arrays, factors


def image_weight(volume: torch.Tensor) -> torch.Tensor:
    """How much each voxel of a real head counts: 1 in the head, 0.1 outside, 0 where deleted.

    A defaced or skull-stripped edge is an artefact of the file, not anatomy.
    """
    image = volume.float() / BRIGHT
    weight = torch.where(box_mean(image, 5) > 0.06, 1.0, 0.1)
    deleted = dilate(erode(volume == 0, 2), 2)
    weight[dilate(deleted, 3)] = 0.0
    return weight


@dataclass
class Simulated:
    """A head before it is degraded: image, weight, labels (or intensities), guidance maps."""

    image: torch.Tensor
    weight: torch.Tensor
    volume: torch.Tensor
    bias: torch.Tensor | None = None
    nonlinearity: torch.Tensor | None = None

    def coarsened(self, factors: Sequence[float], profile: Axis) -> "Simulated":
        """The head (a real one) on larger voxels; a voxel that a deleted one touches counts 0."""
        weight = to_larger_voxels(self.weight, factors, BOX)
        whole = to_larger_voxels((self.weight > 0).float(), factors, BOX) > 0.99
        weight = torch.where(whole, weight, 0.0)
        bias = None if self.bias is None else to_larger_voxels(self.bias, factors, BOX)
        image = to_larger_voxels(self.image, factors, profile).clamp_min(0.0)
        return Simulated(image, weight, image, bias)

    def guidance(self) -> Volume:
        """Logarithms of shading and of the local change of volume, and which of them is known."""
        known = [self.bias, self.nonlinearity]
        maps = [torch.zeros_like(self.image) if one is None else one for one in known]
        return {
            "maps": torch.stack(maps),
            "given": torch.tensor([one is not None for one in known]),
        }


def _simulate(
    head: TrainingHead, volume: torch.Tensor, recipe: Recipe, rng: np.random.Generator, seed: int
) -> Simulated:
    """Give a head a contrast and shading; label maps are distorted if that guides the gate."""
    device = volume.device
    generator = torch.Generator(device).manual_seed(seed)
    nonlinearity = None
    if head.kind == "labels":
        if recipe.maps:
            moved = displacement(volume.shape, rng, DISTORTION).to(device)
            volume, nonlinearity = warp_labels(volume, moved), log_jacobian(moved)
        image = synthesise(volume, rng, generator)
        weight = torch.where(image > 0.02, 1.0, 0.1)
    else:
        weight = image_weight(volume)
        image = volume.float() / BRIGHT
        image = random_contrast(image, rng, recipe.gamma_share, recipe.curve_share)
    field = torch.ones_like(image)
    if rng.random() < 0.5:
        field = bias_field(image.shape, rng, float(rng.uniform(0, 0.25)), device)
    return Simulated(image * field, weight, volume, field.log(), nonlinearity)


def _measured(
    image: torch.Tensor, recipe: Recipe, rng: np.random.Generator, seed: int, spared: bool
) -> tuple[Degraded | None, Volume]:
    """`start`, `target` and `condition` of a scan of `image`, and what recipes ask for besides."""
    if recipe.uncertain:
        plans = draw_disturbed if recipe.disturbed else draw_uncertain
        scan = measure(image, plans(rng, spare_first=spared), seed)
        volume = {"start": scan.start, "target": scan.truth, "clear_start": scan.clear_start}
        volume["condition"] = torch.tensor(scan.condition)
        volume["clear_condition"] = torch.tensor(scan.clear_condition)
        volume["by_truth"] = torch.tensor(scan.by_truth)
        volume["noise"] = torch.tensor(scan.told_noise)
        return None, volume
    if recipe.acquisition:
        plan = fixed(recipe.acquisition, spare_first=spared)
    else:
        plan = draw(rng, recipe.noise_share, spare_first=spared)
    generator = torch.Generator(image.device).manual_seed(seed)
    degraded = degrade(image, plan, generator)
    volume = {"start": degraded.start, "target": degraded.truth}
    return degraded, volume | {"condition": torch.tensor(degraded.condition)}


def _references(
    head: TrainingHead,
    made: Simulated,
    arrays: Sequence[np.ndarray],
    recipe: Recipe,
    rng: np.random.Generator,
    others: Sequence[TrainingHead],
) -> Volume:
    """References of a head that was rendered; lesions are then put into its image."""
    if not recipe.reference_count:
        return {}
    own = torch.from_numpy(arrays[0]).to(made.image.device) if arrays else None
    drawn = {
        f"reference{index}": draw_reference(head, made, own, others, rng)
        for index in range(recipe.reference_count)
    }
    made.image = with_lesions(made, rng)
    return drawn


def make_volume(
    head: TrainingHead,
    recipe: Recipe,
    rng: np.random.Generator,
    device: torch.device,
    finish: Finish | None = None,
    *,
    tissue: bool = False,
    others: Sequence[TrainingHead] = (),
) -> Volume:
    """Degrade one head at random.

    Returns float16 `start`, `target`, `weight` (X, Y, Z), float32 `condition` (6,), and, if asked
    for, uint8 `tissue` (see :func:`.contrast.tissue_codes`) and the guidance `maps` (2, X, Y, Z)
    with which of them are `given`; `reference0` and so on, if the recipe wants them (strangers are
    taken from `others`); and what `finish` adds.
    """
    seed = int(rng.integers(2**62))
    grid = draw_grid(head, recipe.interpolated, recipe.coarsen_share, rng)
    arrays, factors = _arrange(head, grid, rng, recipe)
    volume = torch.from_numpy(arrays[0]).to(device)
    degraded: Degraded | None = None
    clear: Volume = {}
    if head.kind == "pair":
        made = Simulated(volume.float() / BRIGHT, image_weight(volume), volume)
        target, start = made.image, torch.from_numpy(arrays[1]).to(device).float() / BRIGHT
        condition = torch.from_numpy(arrays[2])
    else:
        made = _simulate(head, volume, recipe, rng, seed)
        clear = _references(head, made, arrays[1:], recipe, rng, others)
        if grid.changes:
            made = made.coarsened(factors, PROFILES[int(rng.random() < 0.3)])
            clear = {key: to_larger_voxels(one, factors, BOX) for key, one in clear.items()}
        degraded, images = _measured(made.image, recipe, rng, seed + 1, grid.spared is not None)
        start, target, condition = (images.pop(key) for key in ("start", "target", "condition"))
        clear = {key: one[tuple(map(slice, target.shape))] for key, one in clear.items()} | images
    cut = tuple(slice(0, size) for size in target.shape)
    result = {"start": start, "target": target, "weight": made.weight[cut]}
    result |= clear | {"condition": condition}
    if tissue:
        codes = torch.zeros_like(made.image, dtype=torch.uint8)
        if head.kind == "labels":
            codes = tissue_codes(made.volume)
        result["tissue"] = codes[cut]
    if recipe.maps:
        result |= made.guidance()
        result["maps"] = result["maps"][(slice(None), *cut)]
    if finish is not None:
        result = finish(result, degraded)
    keep = ("clear_condition", "by_truth", "noise", "tissue", "given")
    return {
        k: v.contiguous() if k in keep or v.ndim < 3 else v.half().contiguous()
        for k, v in result.items()
    }


class Source:
    """Volume number k, made or read from the folder of stored volumes."""

    def __init__(
        self,
        heads: Sequence[TrainingHead],
        recipe: Recipe,
        device: torch.device,
        finish: Finish | None,
        folder: Path | None,
        rank: int = 0,
        tissue: bool = False,
    ) -> None:
        self.heads, self.recipe, self.device = heads, recipe, device
        self.finish, self.folder, self.rank, self.tissue = finish, folder, rank, tissue
        self._probability = head_weights(heads, recipe.head_weights, recipe.label_share)

    def __call__(self, index: int) -> Volume:
        """Tensors on the device."""
        if self.recipe.stored_volumes == 0 or self.folder is None:
            return self._make(index)
        path = self.folder / f"{self.rank:03d}-{index:05d}.safetensors"
        try:
            return load_file(path, device=str(self.device))
        except (OSError, SafetensorError):
            volume = self._make(index)
        write_bytes(save({key: value.cpu() for key, value in volume.items()}), path)
        return volume

    def _make(self, index: int) -> Volume:
        rng = np.random.default_rng([self.recipe.seed, self.rank, index])
        head = self.heads[int(rng.choice(len(self.heads), p=self._probability))]
        return make_volume(
            head, self.recipe, rng, self.device, self.finish, tissue=self.tissue, others=self.heads
        )


class Window:
    """The volumes of a step; the next ones are made in the background."""

    def __init__(self, source: Callable[[int], Volume], recipe: Recipe, quiet: bool) -> None:
        self._source, self._recipe, self._quiet = source, recipe, quiet
        self._pool = ThreadPoolExecutor(recipe.workers, thread_name_prefix="volumes")
        self._made: dict[int, Future[Volume]] = {}

    def _indices(self, step: int, ahead: int = 0) -> list[int]:
        stored, size = self._recipe.stored_volumes, self._recipe.window
        if 0 < stored <= size:
            return list(range(stored))
        first = step // self._recipe.steps_per_volume
        numbers = range(first, first + size + ahead)
        return list(dict.fromkeys(n % stored if stored else n for n in numbers))

    def at(self, step: int) -> list[Volume]:
        """Volumes of a step, in a fixed order; waits until they are made."""
        wanted = self._indices(step, self._recipe.workers)
        for index in [index for index in self._made if index not in wanted]:
            self._made.pop(index).cancel()
        fresh = not self._made
        for index in wanted:
            if index not in self._made:
                self._made[index] = self._pool.submit(self._source, index)
        indices = self._indices(step)
        shown = bool(fresh) and not self._quiet
        waiting = track(indices, "volumes", len(indices), shown=shown)
        return [self._made[index].result() for index in waiting]

    def close(self) -> None:
        """Stop making volumes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
