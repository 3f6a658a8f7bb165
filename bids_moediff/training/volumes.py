# SPDX-License-Identifier: Apache-2.0
"""Degraded heads with the regression mean already computed: what the experts are trained on.

The mean network costs more than the experts do, so its output is computed once per degraded head
and kept on disk; slices are then cut and flipped at random.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from bids_moediff.engine.mean import apply_mean
from bids_moediff.engine.slices import plane_condition, slice_axes
from bids_moediff.models.moediff.mean import MeanNetwork

from .degradation import draw
from .heads import Head
from .pool import _head_weights, _prepare, bias_field, degrade, tissue_masks


def make_volume(
    head: Head, mean: MeanNetwork, rng: np.random.Generator, block: int
) -> dict[str, np.ndarray]:
    """Degrade one head at random and run the mean: start, target, weight, tissue, condition.

    `start`, `target` are float16 (X, Y, Z), `weight` and `tissue` uint8 alike; tissue is 1 + the
    index of white core, cortex, grey-white band, 0 elsewhere, and all 0 for real heads.
    """
    image, weight, volume = _prepare(head, rng, block)
    if rng.random() < 0.5:
        image = image * bias_field(image.shape, rng, rng.uniform(0, 0.25))
    start, truth, condition = degrade(torch.from_numpy(image), draw(rng), rng)
    shape = truth.shape
    with torch.autocast("cpu", torch.bfloat16):
        output = apply_mean(mean, start, torch.tensor(condition))
    cut = tuple(slice(0, size) for size in shape)
    tissue = np.zeros(shape, np.uint8)
    if head.kind == "labels":
        for index, mask in enumerate(tissue_masks(volume)[(slice(None), *cut)]):
            tissue[mask] = index + 1
    return {
        "start": output.numpy().astype(np.float16),
        "target": truth.numpy().astype(np.float16),
        "weight": (weight[cut] > 0.5).astype(np.uint8),
        "tissue": tissue,
        "condition": np.asarray(condition, np.float32),
    }


def build(
    heads: Sequence[Head], mean: MeanNetwork, folder: Path, count: int, seed: int, block: int = 144
) -> None:
    """Write `count` volumes as folder/NNNN.npz; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    probability = _head_weights(heads)
    for index in range(count):
        path = folder / f"{seed:03d}-{index:04d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng([seed, index])
        head = heads[rng.choice(len(heads), p=probability)]
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, **make_volume(head, mean, rng, block))  # type: ignore[arg-type]
        temporary.replace(path)


class SliceSampler:
    """Random slice crops with their neighbours from stored volumes."""

    def __init__(self, folder: Path, crop: int, context: int, seed: int) -> None:
        self.volumes = []
        for path in sorted(folder.glob("*-????.npz")):
            with np.load(path) as archive:
                self.volumes.append({key: archive[key] for key in archive.files})
        self.crop, self.context = crop, context
        self.rng = np.random.default_rng(seed)

    def _one(self) -> dict[str, np.ndarray] | None:
        volume = self.volumes[self.rng.integers(len(self.volumes))]
        # Any axis may come last among equals, so shuffle before the order is decided.
        shuffled = self.rng.permutation(3)
        condition = torch.from_numpy(volume["condition"])[[*shuffled, *(3 + shuffled)]]
        axes = slice_axes(condition)
        views = {
            key: volume[key].transpose(shuffled).transpose(axes)
            for key in ("start", "target", "weight", "tissue")
        }
        count, rows, columns = views["start"].shape
        if min(rows, columns) < self.crop:
            return None
        where = int(self.rng.integers(count))
        top = int(self.rng.integers(rows - self.crop + 1))
        left = int(self.rng.integers(columns - self.crop + 1))
        cut = (slice(top, top + self.crop), slice(left, left + self.crop))
        if views["weight"][where][cut].mean() < 0.35:
            return None
        reach = self.context // 2
        index = np.clip(np.arange(where - reach, where + reach + 1), 0, count - 1)
        plane = plane_condition(condition, axes).numpy()
        item = {
            "start": views["start"][index][(slice(None), *cut)],
            "target": views["target"][where][cut][None],
            "tissue": views["tissue"][where][cut][None],
        }
        for flipped in np.flatnonzero(self.rng.random(3) < 0.5):
            item = {key: np.flip(value, int(flipped)) for key, value in item.items()}
        return item | {"condition": plane}

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """Draw a batch for the joint loss; see :func:`.losses.joint_loss`."""
        items: list[dict[str, np.ndarray]] = []
        while len(items) < size:
            item = self._one()
            if item is not None:
                items.append(item)
        stacked = {
            key: torch.from_numpy(np.stack([np.ascontiguousarray(i[key]) for i in items]))
            for key in items[0]
        }
        codes = stacked["tissue"][:, 0]
        tissue = torch.stack([codes == index for index in (1, 2, 3)], dim=1)
        return {
            "start": stacked["start"].float(),
            "target": stacked["target"][:, 0].float(),
            "condition": stacked["condition"],
            "tissue": tissue,
            "tissue_valid": tissue.flatten(1).any(1),
        }
