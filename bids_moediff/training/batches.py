# SPDX-License-Identifier: Apache-2.0
"""Patches and slices cut from degraded volumes at random."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from bids_moediff.errors import UsageError
from bids_moediff.imaging.axes import plane_condition, slice_axes

from .volumes import Volume

# Patches keep this distance from the border of the degraded block, where the truncated Fourier
# series of a cropped head wraps around.
MARGIN = 8
TRIES = 200


def collect(
    draw: Callable[[], dict[str, torch.Tensor] | None], count: int
) -> dict[str, torch.Tensor]:
    """Return `count` draws stacked, those that are None repeated.

    Raises
    ------
    UsageError
        if too many of them are None.
    """
    items: list[dict[str, torch.Tensor]] = []
    for _ in range(TRIES * count):
        item = draw()
        if item is not None:
            items.append(item)
            if len(items) == count:
                return {key: torch.stack([one[key] for one in items]) for key in items[0]}
    raise UsageError(
        "The training volumes hold too little head for the recipe's patches: the masks are empty "
        "almost everywhere."
    )


def patches(
    volumes: Sequence[Volume], size: int, count: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Cubes that hold enough head.

    Returns float32 `start`, `target`, `weight` (and `teacher`, if the volumes have it), each
    (B, X, Y, Z), and `condition` (B, 6), on the volumes' device.
    """

    def draw() -> dict[str, torch.Tensor] | None:
        volume = volumes[int(rng.integers(len(volumes)))]
        cut = []
        for side in volume["target"].shape:
            low = min(MARGIN, max(0, side - size))
            corner = int(rng.integers(low, max(low, side - MARGIN - size) + 1))
            cut.append(slice(corner, corner + size))
        if float(volume["weight"][tuple(cut)].float().mean()) < 0.45:
            return None
        device = volume["target"].device
        images = {k: v[tuple(cut)].float() for k, v in volume.items() if v.ndim == 3}
        return images | {k: v.to(device) for k, v in volume.items() if v.ndim < 3}

    return collect(draw, count)


def _slice(
    volume: Volume, crop: int, context: int, rng: np.random.Generator
) -> dict[str, torch.Tensor] | None:
    # Any axis may come last among equals, so shuffle before the order is decided.
    shuffled = [int(axis) for axis in rng.permutation(3)]
    condition = volume["condition"].cpu()[[*shuffled, *(3 + axis for axis in shuffled)]]
    axes = slice_axes(condition)
    views = {
        key: volume[key].permute(shuffled).permute(axes)
        for key in ("start", "target", "weight", "tissue")
    }
    count, rows, columns = views["start"].shape
    where = int(rng.integers(count))
    top = int(rng.integers(rows - crop + 1))
    left = int(rng.integers(columns - crop + 1))
    flips = [int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5)]
    cut = (slice(top, top + crop), slice(left, left + crop))
    if float(views["weight"][where][cut].gt(0.5).float().mean()) < 0.35:
        return None
    reach = context // 2
    index = np.clip(np.arange(where - reach, where + reach + 1), 0, count - 1)
    across = torch.from_numpy(index).to(views["start"].device)
    item = {
        "start": views["start"][across][(slice(None), *cut)].float(),
        "target": views["target"][where][cut][None].float(),
        "tissue": views["tissue"][where][cut][None],
    }
    item = {key: value.flip(flips) for key, value in item.items()}
    if "maps" in volume:
        turned = volume["maps"].permute(0, *(1 + axis for axis in shuffled))
        turned = turned.permute(0, *(1 + axis for axis in axes))
        maps = turned[:, where][(slice(None), *cut)].float()
        item["maps"] = maps.flip([axis for axis in flips if axis > 0])
        item["given"] = volume["given"].to(maps.device)
    return item | {"condition": plane_condition(condition, axes).to(item["start"].device)}


def slices(
    volumes: Sequence[Volume], crop: int, context: int, count: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Slices with their neighbours, as :func:`.losses.joint_loss` wants them.

    Volumes with guidance add `maps` (B, 2, H, W) and `given` (B, 2).
    """

    def draw() -> dict[str, torch.Tensor] | None:
        return _slice(volumes[int(rng.integers(len(volumes)))], crop, context, rng)

    batch = collect(draw, count)
    codes = batch.pop("tissue")[:, 0]
    tissue = torch.stack([codes == code for code in (1, 2, 3)], dim=1)
    extra = {key: batch[key] for key in ("maps", "given") if key in batch}
    return extra | {
        "start": batch["start"],
        "target": batch["target"][:, 0],
        "condition": batch["condition"],
        "tissue": tissue,
        "tissue_valid": tissue.flatten(1).any(1),
    }
