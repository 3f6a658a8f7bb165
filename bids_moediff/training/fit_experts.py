# SPDX-License-Identifier: Apache-2.0
"""Stage two: train the mixture of experts on top of the frozen regression mean."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bids_moediff.engine.mean import apply_mean
from bids_moediff.engine.slices import restore_slices
from bids_moediff.models.moediff.config import MoEDiffConfig
from bids_moediff.models.moediff.mean import MeanNetwork
from bids_moediff.models.moediff.network import MoEDiffSR

from .development import Case
from .fit_mean import learning_rate
from .losses import LossState, joint_loss
from .state import WeightAverage, load_state, save_state
from .volumes import SliceSampler


@dataclass(frozen=True)
class ExpertRecipe:
    """Everything that decides the outcome of a run besides the data."""

    width: int = 32
    steps: int = 4000
    batch: int = 8
    crop: int = 128
    learning_rate: float = 5e-4
    warm_up: int = 100
    uniform_share: float = 0.2
    decay: float = 0.998
    seed: int = 1
    evaluate_every: int = 500
    save_every: int = 100
    experts: tuple[str, ...] = ("smooth", "cortex", "junction")
    diffusion_steps: tuple[int, ...] = (500, 2000, 1000)


def mean_images(cases: Sequence[Case], mean: MeanNetwork) -> list[tuple[Case, torch.Tensor]]:
    """Output of the mean network for each development case, computed once."""
    images = []
    for case in cases:
        with torch.autocast("cpu", torch.bfloat16):
            images.append((case, apply_mean(mean, case.start, case.condition)))
    return images


def expert_gains(
    network: MoEDiffSR, images: Sequence[tuple[Case, torch.Tensor]]
) -> dict[str, dict[str, float]]:
    """Mean PSNR gain (dB) of the mixture over the mean, and over cubic, by protocol."""
    table: dict[str, list[tuple[float, float]]] = {}
    for case, image in images:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            output, _, _ = restore_slices(
                network, image, case.condition, num_steps=1, noise_strength=0.0, seed=0
            )
        value = case.psnr(case.operator.project(output, case.measured))
        before = case.psnr(case.operator.project(image, case.measured))
        table.setdefault(case.protocol, []).append((value - before, value - case.cubic_psnr))
    return {
        protocol: {
            "over_mean": round(sum(p[0] for p in pairs) / len(pairs), 3),
            "over_cubic": round(sum(p[1] for p in pairs) / len(pairs), 3),
        }
        for protocol, pairs in table.items()
    }


def fit(
    volumes: Path,
    folder: Path,
    recipe: ExpertRecipe,
    images: Sequence[tuple[Case, torch.Tensor]],
    device: str = "cpu",
) -> dict[str, object]:
    """Train (or resume) in `folder`; writes state.safetensors and curve.jsonl."""
    torch.manual_seed(recipe.seed)
    config = MoEDiffConfig(
        width=recipe.width, experts=recipe.experts, diffusion_steps=recipe.diffusion_steps
    )
    network = MoEDiffSR(config).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = WeightAverage(network, recipe.decay)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trainable, 1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    record = load_state(folder, network, average, optimiser) or {"step": 0, "seconds": 0.0}
    state = LossState()
    state.load_state_dict(record.get("loss_state", {}))
    sampler = SliceSampler(
        volumes, recipe.crop, config.context_slices, recipe.seed + record["step"]
    )
    evaluator = MoEDiffSR(config).to(device).eval()
    folder.mkdir(parents=True, exist_ok=True)
    begun, before = time.monotonic(), record["seconds"]
    totals: dict[str, float] = {}
    counted = 0
    for step in range(record["step"], recipe.steps):
        state.progress = step / recipe.steps
        rate = learning_rate(step, recipe.steps, recipe.warm_up, recipe.learning_rate)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = {key: value.to(device) for key, value in sampler.batch(recipe.batch).items()}
        uniform = step < recipe.uniform_share * recipe.steps
        with torch.autocast(device, torch.bfloat16):
            loss, logs = joint_loss(network, batch, state, uniform_gate=uniform)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        average.update(network, step)
        counted += 1
        for key, value in logs.items():
            totals[key] = totals.get(key, 0.0) + value
        record = {
            "step": step + 1,
            "seconds": before + time.monotonic() - begun,
            "recipe": asdict(recipe),
            "loss_state": state.state_dict(),
        }
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            evaluator.load_state_dict(average.values)
            row = {
                "step": step + 1,
                "seconds": round(record["seconds"]),
                "losses": {key: round(value / counted, 5) for key, value in totals.items()},
                "gains": expert_gains(evaluator, images),
            }
            totals, counted = {}, 0
            with (folder / "curve.jsonl").open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps:
            save_state(folder, network, average, optimiser, record)
    return record
