# SPDX-License-Identifier: Apache-2.0
"""Stage one: train the 3-D regression mean."""

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bids_moediff.engine.mean import apply_mean
from bids_moediff.models.moediff.mean import MeanConfig, MeanNetwork

from .development import gains, make_cases
from .heads import DEVELOPMENT, load_pack
from .pool import Patches, PatchPool
from .state import WeightAverage, load_state, save_state


@dataclass(frozen=True)
class MeanRecipe:
    """Everything that decides the outcome of a run besides the data."""

    channels: int = 48
    blocks: int = 6
    steps: int = 4200
    batch: int = 4
    patch: int = 48
    learning_rate: float = 1e-3
    warm_up: int = 100
    border: int = 4
    epsilon: float = 0.02
    decay: float = 0.999
    seed: int = 1
    workers: int = 1
    evaluate_every: int = 250
    save_every: int = 100
    keep_out: tuple[str, ...] = DEVELOPMENT


def learning_rate(step: int, steps: int, warm_up: int, peak: float) -> float:
    """Linear warm-up, then a cosine to one hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def charbonnier(
    output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, epsilon: float, border: int
) -> torch.Tensor:
    """Weighted sqrt(e^2 + eps^2) - eps, without the `border` voxels that see zero padding."""
    inner = (..., *(slice(border, -border) if border else slice(None),) * 3)
    error = torch.sqrt((output[inner] - target[inner]).square() + epsilon**2) - epsilon
    return (weight[inner] * error).sum() / weight[inner].sum().clamp_min(1.0)


def fit(pack: Path, folder: Path, recipe: MeanRecipe, device: str = "cpu") -> dict[str, object]:
    """Train (or resume) in `folder`; writes state.safetensors, curve.jsonl; returns the record."""
    torch.manual_seed(recipe.seed)
    heads = load_pack(pack)
    kept_out = [head for head in heads if head.name in recipe.keep_out]
    cases = make_cases(kept_out)
    network = MeanNetwork(MeanConfig(recipe.channels, recipe.blocks)).to(device)
    average = WeightAverage(network, recipe.decay)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    record = load_state(folder, network, average, optimiser) or {"step": 0, "seconds": 0.0}
    pool = PatchPool(
        [head for head in heads if head.name not in recipe.keep_out],
        Patches((recipe.patch, recipe.patch, recipe.patch)),
        recipe.seed + record["step"],
        recipe.workers,
    )
    evaluator = MeanNetwork(network.config).to(device).eval()

    def restore(start: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            return apply_mean(evaluator, start, condition)

    folder.mkdir(parents=True, exist_ok=True)
    begun, before, losses = time.monotonic(), record["seconds"], []
    for step in range(record["step"], recipe.steps):
        rate = learning_rate(step, recipe.steps, recipe.warm_up, recipe.learning_rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = {key: value.to(device) for key, value in pool.batch(recipe.batch).items()}
        with torch.autocast(device, torch.bfloat16):
            output = network(batch["start"][:, None], batch["condition"])
        loss = charbonnier(
            output[:, 0].float(), batch["target"], batch["weight"], recipe.epsilon, recipe.border
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update(network, step)
        losses.append(loss.item())
        record = {
            "step": step + 1,
            "seconds": before + time.monotonic() - begun,
            "recipe": asdict(recipe),
        }
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            evaluator.load_state_dict(average.values)
            row = {
                "step": step + 1,
                "seconds": round(record["seconds"]),
                "loss": sum(losses) / len(losses),
                "rate": rate,
                "gains": gains(cases, restore),
            }
            losses = []
            with (folder / "curve.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save_state(folder, network, average, optimiser, record)
    pool.close()
    return record
