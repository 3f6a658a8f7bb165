# SPDX-License-Identifier: Apache-2.0
"""Train the scale head on crops of research.scale.crops, for a fixed time.

    python -m research.scale.train OUT --crops DIR --fixed DIR --minutes 25

Goes on where it was interrupted. OUT gets the state, the averaged weights and the curve.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bids_moediff.imaging.acquisition import _along
from bids_moediff.networks.scale import (
    MIDDLE_NOISE,
    ScaleConfig,
    ScaleNetwork,
    log_scales,
    scale_loss,
)
from bids_moediff.runtime.sink import write_json
from bids_moediff.training.state import WeightAverage, load_state, save_best, save_state

PATCH, BORDER, BATCH = 48, 4, 4
RATE, WARM_UP, DECAY, FINAL = 1.5e-3, 60, 0.995, 0.01
SAVE_SECONDS, LOOK_SECONDS, FOUND_STEPS = 120, 120, 50
SMALLEST_VARIANCE = 1e-9
Crop = dict[str, Tensor]


def load_crops(folder: Path) -> dict[str, Crop]:
    """Every crop of a folder by its name."""
    return {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def cut(crop: Crop, corner: Sequence[int], sizes: Sequence[int]) -> Crop:
    """A patch; its projections count what lies outside as what lies inside."""
    box = tuple(slice(c, c + size) for c, size in zip(corner, sizes, strict=True))
    patch = dict(crop)
    for key in ("inputs", "errors"):
        patch[key] = crop[key][(slice(None), *box)].float()
    patch["weight"] = crop["weight"][box].float()
    for axis, part in enumerate(box):
        matrix = crop[f"matrix{axis}"][part, part]
        squares = matrix.square()
        diagonal = matrix.diagonal()
        # A row of the squares of a projection sums up to its diagonal.
        squares = squares * (diagonal / squares.sum(1).clamp_min(1e-12))[:, None]
        patch[f"squares{axis}"], patch[f"diagonal{axis}"] = squares, diagonal
    return patch


def variances(patch: Crop, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Variance after the projection (X, Y, Z): of what was not measured, and of what was."""
    before = torch.exp(2 * logs)
    squares = [patch[f"squares{axis}"] for axis in range(3)]
    first, second, third = (patch[f"diagonal{axis}"] for axis in range(3))
    share = first[:, None, None] * second[None, :, None] * third[None, None, :]
    missing = (1 - 2 * share) * before[0] + _along(before[0], squares)
    # In a gap between slices nothing is measured.
    measured = _along(before[1], squares)
    return missing.clamp_min(SMALLEST_VARIANCE), measured.clamp_min(SMALLEST_VARIANCE)


def losses(network: ScaleNetwork, patches: Sequence[Crop], border: int) -> tuple[Tensor, Tensor]:
    """Loss of what was not measured, and of what was (0 where the noise is not known)."""
    inputs = torch.stack([patch["inputs"] for patch in patches])
    numbers = torch.stack([patch["numbers"] for patch in patches])
    with torch.autocast("cpu", torch.bfloat16):
        output = network(inputs, numbers)
    inner = (slice(None), *(slice(border, -border or None),) * 3)
    kinds: list[list[Tensor]] = [[], []]
    for patch, change in zip(patches, output.float(), strict=True):
        guess = patch["inputs"][3] + math.log(MIDDLE_NOISE)
        found = variances(patch, log_scales(change, guess, float(patch["noise"])))
        for kind, (variance, error) in enumerate(zip(found, patch["errors"], strict=True)):
            if kind == 0 or patch["noise"] > 0:
                parts = [part[None][inner] for part in (variance, error.square(), patch["weight"])]
                kinds[kind].append(scale_loss(*parts))
    return tuple(  # type: ignore[return-value]
        torch.stack(kind).mean() if kind else output.new_zeros(()) for kind in kinds
    )


@torch.no_grad()
def look(network: ScaleNetwork, crops: dict[str, Crop]) -> dict[str, Any]:
    """Loss, ratio of variance to squared error in the head, and correlation in boxes, by crop."""
    found = {}
    for name, crop in crops.items():
        sizes = [size - size % 2 for size in crop["weight"].shape]
        patch = cut(crop, (0, 0, 0), sizes)
        output = network(patch["inputs"][None], patch["numbers"][None])[0]
        guess = patch["inputs"][3] + math.log(MIDDLE_NOISE)
        logs = log_scales(output, guess, float(patch["noise"]))
        missing, measured = variances(patch, logs)
        head = patch["weight"] > 0.5
        squares = patch["errors"].square()
        boxes = torch.nn.functional.avg_pool3d(
            torch.stack([missing * head, squares[0] * head, head.float()])[None], 5
        )[0].flatten(1)
        full = boxes[2] > 0.5
        pair = boxes[:2, full] / boxes[2, full]
        row = {
            "loss": float(losses(network, [patch], BORDER)[0]),
            "v": float(missing[head].mean() / squares[0][head].mean()),
            "r": float(torch.corrcoef(pair)[0, 1]),
            "spread": float((logs[0] - guess)[head].std()),
        }
        if patch["noise"] > 0:
            row["v_measured"] = float(measured[head].mean() / squares[1][head].mean())
        found[name] = {key: round(value, 4) for key, value in row.items()}
    return found


def rate(elapsed: float, seconds: float, step: int) -> float:
    """Cosine over the time that there is, after a linear rise over the first steps."""
    share = min(elapsed / seconds, 1.0)
    wave = FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * share))
    return RATE * wave * min(1.0, (step + 1) / WARM_UP)


def draw(crops: Sequence[Crop], rng: np.random.Generator) -> list[Crop]:
    """Patches of different crops."""
    patches = []
    for index in rng.choice(len(crops), BATCH, replace=False):
        crop = crops[int(index)]
        room = [size - PATCH for size in crop["weight"].shape]
        patches.append(cut(crop, [int(rng.integers(0, r + 1)) for r in room], [PATCH] * 3))
    return patches


def train(options: argparse.Namespace) -> None:
    """Run for the time given, counted over all runs in the folder."""
    torch.manual_seed(1)
    network = ScaleNetwork(ScaleConfig(options.channels, options.blocks))
    average = WeightAverage(network, DECAY)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, (0.9, 0.99), weight_decay=1e-4)
    record = load_state(options.output, network, average, optimiser) or {"step": 0, "seconds": 0.0}
    curve = record.setdefault("curve", [])
    begun, before = time.monotonic(), float(record["seconds"])
    step, seconds = int(record["step"]), options.minutes * 60
    fixed, read = load_crops(options.fixed), -math.inf
    crops: list[Crop] = []
    saved = looked = before
    sums: list[list[float]] = []

    def elapsed() -> float:
        return before + time.monotonic() - begun

    def keep(now: float) -> None:
        record.update(step=step, seconds=now, crops=len(crops))
        save_state(options.output, network, average, optimiser, record)
        save_best(options.output, average, record)
        write_json(curve, options.output / "curve.json")

    while (now := elapsed()) < seconds:
        if now - read > 300:  # crops may still be made meanwhile
            found = load_crops(options.crops).values()
            crops = [crop for crop in found if min(crop["weight"].shape) >= PATCH]
            read = now
        for group in optimiser.param_groups:
            group["lr"] = rate(now, seconds, step)
        missing, measured = losses(network, draw(crops, np.random.default_rng([2, step])), BORDER)
        optimiser.zero_grad()
        (missing + 0.5 * measured).backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
            average.update(network, step)
        step += 1
        sums.append([float(part.detach()) for part in (missing, measured, norm)])
        if step % FOUND_STEPS == 0:
            print(step, f"{now:.0f} s", np.round(np.mean(sums, 0), 4), len(crops), flush=True)
        if now - looked > LOOK_SECONDS:
            live = {key: value.clone() for key, value in network.state_dict().items()}
            network.load_state_dict(average.values)
            row = {"step": step, "seconds": round(now), "crops": look(network, fixed)}
            network.load_state_dict(live)
            row["loss"] = [round(float(value), 4) for value in np.mean(sums, 0)]
            curve.append(row)
            sums, looked = [], now
            print(json.dumps(row), flush=True)
        if now - saved > SAVE_SECONDS:
            keep(now)
            saved = now
    network.load_state_dict(average.values)
    curve.append({"step": step, "seconds": round(seconds), "crops": look(network, fixed)})
    print(json.dumps(curve[-1]), flush=True)
    keep(seconds)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--fixed", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=3)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train(options)


if __name__ == "__main__":
    main()
