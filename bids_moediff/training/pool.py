# SPDX-License-Identifier: Apache-2.0
"""Training patches: a process degrades whole heads, a shuffled pool hands out patches.

A head is degraded as a whole (a truncated Fourier series rings far), then many patches are cut
from it; the pool mixes patches of many heads and acquisitions into each batch.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue

import numpy as np
import torch
from scipy import ndimage

from bids_moediff.engine.acquisition import Operator
from bids_moediff.engine.grid import covering_shape
from bids_moediff.engine.interpolation import initial_estimate

from .contrast import CORTEX, WHITE, bias_field, random_contrast, synthesise
from .degradation import Degradation, draw
from .heads import Head

# Patches keep this distance from the border of the degraded block, where the truncated Fourier
# series of a cropped head wraps around.
MARGIN = 8


@dataclass(frozen=True)
class Patches:
    """What a patch is made of; `size` in fine voxels per axis."""

    size: tuple[int, int, int] = (64, 64, 64)
    per_head: int = 16
    block: int = 168
    tissue: bool = False


def _prepare(head: Head, rng: np.random.Generator, block: int) -> tuple[np.ndarray, ...]:
    """Random orientation, block and contrast: image in about [0, 1], weight, labels or None."""
    volume = head.volume.transpose(rng.permutation(3))
    volume = np.flip(volume, tuple(np.flatnonzero(rng.random(3) < 0.5)))
    corner = [rng.integers(0, max(size - block, 0) + 1) for size in volume.shape]
    volume = np.ascontiguousarray(volume[tuple(slice(c, c + block) for c in corner)])
    if head.kind == "labels":
        image = synthesise(volume, rng)
        weight = np.where(image > 0.02, 1.0, 0.1).astype(np.float32)
        return image, weight, volume
    image = volume.astype(np.float32) / 200.0
    solid = ndimage.uniform_filter(image, 5) > 0.06
    weight = np.where(solid, 1.0, 0.1).astype(np.float32)
    # A defaced or skull-stripped edge is an artefact of the file, not anatomy.
    zero = ndimage.binary_opening(volume == 0, iterations=2)
    weight[ndimage.binary_dilation(zero, iterations=3)] = 0.0
    return random_contrast(image, rng), weight, volume


def tissue_masks(labels: np.ndarray) -> np.ndarray:
    """White-matter core, cortex, grey-white band of a FreeSurfer label map, (3, X, Y, Z) bool."""
    white = np.isin(labels, WHITE)
    cortex = np.isin(labels, CORTEX)
    band = ndimage.binary_dilation(white, iterations=1) & ndimage.binary_dilation(
        cortex, iterations=1
    )
    core = ndimage.binary_erosion(white, iterations=3)
    return np.stack([core, cortex & ~band, band & (white | cortex)])


def degrade(
    fine: torch.Tensor, degradation: Degradation, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]:
    """Degrade (X, Y, Z); returns start, truth on the covered grid, and the condition."""
    ones = (1.0, 1.0, 1.0)
    ratios = degradation.ratios
    coarse_shape = tuple(
        int(size / ratio + 1e-6) for size, ratio in zip(fine.shape, ratios, strict=True)
    )
    shape = covering_shape(coarse_shape, ratios, ones)
    truth = fine[: shape[0], : shape[1], : shape[2]]
    operator = Operator.between(shape, ones, coarse_shape, ratios, degradation.acquisition)  # type: ignore[arg-type]
    measured = operator.forward(truth)
    if degradation.noise > 0:
        first = torch.from_numpy(rng.standard_normal(measured.shape, dtype=np.float32))
        second = torch.from_numpy(rng.standard_normal(measured.shape, dtype=np.float32))
        sigma = degradation.noise
        measured = torch.hypot(measured + sigma * first, sigma * second)  # Rician
    start = initial_estimate(measured, operator, ratios, ones, degradation.noise)
    return start, truth, degradation.acquisition.condition(ones, ratios)


def head_patches(
    head: Head, rng: np.random.Generator, patches: Patches
) -> Iterator[dict[str, np.ndarray]]:
    """Degrade one head at random and cut patches that hold enough tissue."""
    image, weight, volume = _prepare(head, rng, patches.block)
    if rng.random() < 0.5:
        image = image * bias_field(image.shape, rng, rng.uniform(0, 0.25))
    start, truth, condition = degrade(torch.from_numpy(image), draw(rng), rng)
    tissue = None
    if patches.tissue and head.kind == "labels":
        tissue = tissue_masks(volume)
    low = [min(MARGIN, max(0, s - p)) for s, p in zip(truth.shape, patches.size, strict=True)]
    high = [max(a, s - MARGIN - p) for a, s, p in zip(low, truth.shape, patches.size, strict=True)]
    if any(s < p for s, p in zip(truth.shape, patches.size, strict=True)):
        return
    made = 0
    for _ in range(6 * patches.per_head):
        corner = [int(rng.integers(a, b + 1)) for a, b in zip(low, high, strict=True)]
        cut = tuple(slice(c, c + p) for c, p in zip(corner, patches.size, strict=True))
        if weight[cut].mean() < 0.45:
            continue
        item: dict[str, np.ndarray] = {
            "start": start[cut].numpy().astype(np.float16),
            "target": truth[cut].numpy().astype(np.float16),
            "weight": weight[cut].astype(np.float16),
            "condition": np.asarray(condition, np.float32),
        }
        if patches.tissue:
            whole = (slice(None), *cut)
            item["tissue"] = (
                tissue[whole] if tissue is not None else np.zeros((3, *patches.size), bool)
            )
            item["has_tissue"] = np.asarray(tissue is not None)
        yield item
        made += 1
        if made == patches.per_head:
            return


def _head_weights(heads: Sequence[Head]) -> np.ndarray:
    """Sampling weights: sharp isotropic heads most, the many of one site less, labels least."""
    sharp = ("niimath", "skyra", "uih", "chris", "sub-01_T1w", "FLAIR", "m2265")
    weights = []
    for head in heads:
        if head.kind == "labels":
            weights.append(0.08 / 25)
        elif head.name.startswith(sharp) or any(word in head.name for word in sharp):
            weights.append(0.06)
        elif head.name.startswith("ds"):
            weights.append(0.025)
        else:
            weights.append(0.03)
    array = np.asarray(weights)
    return array / array.sum()


def _produce(heads: list[Head], patches: Patches, seed: int, queue: "Queue[object]") -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    probability = _head_weights(heads)
    while True:
        head = heads[rng.choice(len(heads), p=probability)]
        for item in head_patches(head, rng, patches):
            queue.put(item)


class PatchPool:
    """Endless shuffled batches; start/target (B, 1, X, Y, Z), weight alike, condition (B, 6)."""

    def __init__(
        self, heads: list[Head], patches: Patches, seed: int, workers: int = 1, size: int = 320
    ) -> None:
        context = multiprocessing.get_context("fork")
        self._queue: Queue[dict[str, np.ndarray]] = context.Queue(maxsize=32)
        self._processes = [
            context.Process(
                target=_produce, args=(heads, patches, seed * 1000 + k, self._queue), daemon=True
            )
            for k in range(workers)
        ]
        for process in self._processes:
            process.start()
        self._rng = np.random.default_rng(seed)
        self._pool = [self._queue.get() for _ in range(size)]

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """Draw `size` patches; each drawn one is replaced by a fresh one if one is waiting."""
        index = self._rng.choice(len(self._pool), size, replace=False)
        items = [self._pool[i] for i in index]
        for i in index:
            if not self._queue.empty():
                self._pool[i] = self._queue.get()
        result = {
            key: torch.from_numpy(np.stack([item[key] for item in items])) for key in items[0]
        }
        return {
            key: value.float() if value.dtype == torch.float16 else value
            for key, value in result.items()
        }

    def close(self) -> None:
        """Stop the producers."""
        for process in self._processes:
            process.terminate()
