# SPDX-License-Identifier: Apache-2.0
r"""Train the experts on volumes on crops of research.scale.crops, for a fixed time.

    python -m research.volume_experts.train OUT --crops DIR --fixed DIR --scale MODEL \
        --minutes 40 [--arms mixture single]

MODEL is a model with a scale head, or a run of its training. `single` is one plain expert with as
many weights as the mixture; several arms are trained on the same batches. Goes on where it was
interrupted; with 0 minutes it only makes the crops ready. OUT/mixture and OUT/single get the
state, the averaged weights and the curve.
`--device cuda` runs the same on a GPU.
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
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bids_moediff.families.moediff.volume_experts import (
    VolumeExperts,
    VolumeExpertsConfig,
    scene_inputs,
)
from bids_moediff.imaging.acquisition import _along
from bids_moediff.imaging.coloured import coloured
from bids_moediff.networks.scale import MIDDLE_NOISE, ScaleConfig, ScaleNetwork, log_scales
from bids_moediff.runtime.sink import write_bytes, write_json
from bids_moediff.training.state import (
    BEST_NAME,
    WeightAverage,
    load_state,
    part,
    read_state,
    save_best,
    save_state,
)

PATCH, BORDER, BATCH = 48, 4, 4
RATE, WARM_UP, DECAY, FINAL = 2e-3, 50, 0.99, 0.01
SAVE_SECONDS, LOOK_SECONDS, FOUND_STEPS = 170, 240, 50
LARGEST_TARGET, LARGEST = 8.0, 12.0
SMALLEST_VARIANCE = 1e-7
ARMS = ("mixture", "single")
LOOKS = (0.125, 0.375, 0.625, 0.875)
Crop = dict[str, Tensor]


@torch.no_grad()
def prepare(crop: Crop, scale: ScaleNetwork | None) -> Crop:
    """Add the scale s before and the deviation d after the projection; even sizes."""
    sizes = [size - size % 2 for size in crop["weight"].shape]
    box = [slice(0, size) for size in sizes]
    made = {"numbers": crop["numbers"], "weight": crop["weight"][tuple(box)]}
    made["inputs"] = crop["inputs"][:, box[0], box[1], box[2]]
    made["error"] = crop["errors"][0][tuple(box)]
    matrices = [crop[f"matrix{axis}"][part, part] for axis, part in enumerate(box)]
    logs = made["inputs"][3].float() + math.log(MIDDLE_NOISE)
    if scale is not None:
        output = scale(made["inputs"][None].float(), crop["numbers"][None])[0]
        logs = log_scales(output, logs, float(crop["noise"]))[0]
    spread = torch.exp(logs)
    squares = [matrix.square() for matrix in matrices]
    shares = [matrix.diagonal() for matrix in matrices]
    # What lies outside of the crop counts as what lies inside.
    squares = [
        square * (share / square.sum(1).clamp_min(1e-12))[:, None]
        for square, share in zip(squares, shares, strict=True)
    ]
    first, second, third = shares
    share = first[:, None, None] * second[None, :, None] * third[None, None, :]
    variance = (1 - 2 * share) * spread.square() + _along(spread.square(), squares)
    made["scale"] = spread.half()
    made["deviation"] = variance.clamp_min(SMALLEST_VARIANCE).sqrt().half()
    return made | {f"matrix{axis}": matrix for axis, matrix in enumerate(matrices)}


def load(folder: Path, scale: ScaleNetwork | None, kept: Path) -> dict[str, Crop]:
    """Every crop of a folder by its name, ready for training; made once and kept in a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        place = kept / path.name
        if not place.is_file():
            made = {
                key: value.contiguous() for key, value in prepare(load_file(path), scale).items()
            }
            write_bytes(save(made), place)
        found[path.stem] = load_file(place)
    return found


def draw_noise(crop: Crop, generator: torch.Generator) -> Tensor:
    """Coloured noise with the local scale, projected to what was not measured (X, Y, Z)."""
    matrices = [crop[f"matrix{axis}"] for axis in range(3)]
    white = torch.randn(crop["scale"].shape, generator=generator)
    noise = crop["scale"].float() * coloured(white, matrices)
    return noise - _along(noise, matrices)


def cut(crop: Crop, noise: Tensor, corner: Sequence[int], side: int) -> Crop:
    """A patch with the error and the noise in units of the deviation."""
    box = tuple(slice(c, c + side) for c in corner)
    deviation = crop["deviation"][box].float()
    return {
        "inputs": crop["inputs"][(slice(None), *box)].float(),
        "numbers": crop["numbers"],
        "weight": crop["weight"][box].float(),
        "deviation": deviation,
        "error": (crop["error"][box].float() / deviation).clamp(-LARGEST, LARGEST),
        "noise": (noise[box] / deviation).clamp(-LARGEST, LARGEST),
    }


def draw(crops: Sequence[Crop], step: int) -> tuple[list[Crop], Tensor]:
    """Patches of different crops, and u = sin^2(theta) of each, spread over (0, 1)."""
    rng = np.random.default_rng([3, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    patches = []
    for index in rng.choice(len(crops), BATCH, replace=False):
        crop = crops[int(index)]
        corner = [
            2 * int(rng.integers(0, max(s - PATCH, 0) // 2 + 1)) for s in crop["weight"].shape
        ]
        patches.append(cut(crop, draw_noise(crop, generator), corner, PATCH))
    places = (np.arange(BATCH) + rng.random(BATCH)) / BATCH
    return patches, torch.from_numpy(places).float()


def losses(
    network: VolumeExperts, patches: Sequence[Crop], places: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared errors of F of each patch, and those of F = 0, (B,) each."""
    device = next(network.parameters()).device
    batch = {key: torch.stack([patch[key] for patch in patches]).to(device) for key in patches[0]}
    angle = torch.asin(places.to(device).sqrt())
    sine, cosine = (f(angle)[:, None, None, None] for f in (torch.sin, torch.cos))
    state = cosine * batch["error"] + sine * batch["noise"]
    target = sine * batch["error"] - cosine * batch["noise"]
    target = target.clamp(-LARGEST_TARGET, LARGEST_TARGET)
    with torch.autocast(device.type, torch.bfloat16):
        scene = network.scene(
            scene_inputs(batch["inputs"], batch["deviation"][:, None]), batch["numbers"]
        )
        output = network(state[:, None], scene, angle)[:, 0].float()
    if network.gate is not None and network.training:
        network.gate.count(scene.gates)
    found = 2 * sine * cosine * output
    inner = (slice(None), *(slice(BORDER, -BORDER),) * 3)
    weight = batch["weight"][inner]
    share = weight / weight.sum((1, 2, 3), keepdim=True).clamp_min(1.0)
    pair = [(share * error[inner].square()).sum((1, 2, 3)) for error in (found - target, target)]
    return pair[0], pair[1]


@torch.no_grad()
def look(network: VolumeExperts, crops: dict[str, Crop]) -> dict[str, Any]:
    """Loss over that of F = 0 at four angles, by crop, and how much the gate uses each expert."""
    network.eval()
    found = {}
    for name, crop in crops.items():
        generator = torch.Generator().manual_seed(0)
        corner = [max(size - PATCH, 0) // 4 * 2 for size in crop["weight"].shape]
        patches = [cut(crop, draw_noise(crop, generator), corner, PATCH) for _ in LOOKS]
        reached, before = losses(network, patches, torch.tensor(LOOKS))
        found[name] = [round(float(value), 4) for value in reached / before]
    usage = [] if network.gate is None else network.gate.usage.tolist()
    network.train()
    return {"ratios": found, "usage": [round(value, 3) for value in usage]}


def rate(elapsed: float, seconds: float, step: int) -> float:
    """Cosine over the time that there is, after a linear rise over the first steps."""
    share = min(elapsed / seconds, 1.0)
    wave = FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * share))
    return RATE * wave * min(1.0, (step + 1) / WARM_UP)


def equal_single(config: VolumeExpertsConfig) -> VolumeExpertsConfig:
    """Return one plain expert with (nearly) as many weights, for comparison."""
    with torch.device("meta"):
        wanted = weight_count(VolumeExperts(config))
        options = [
            VolumeExpertsConfig(("plain",), width, config.blocks, config.context_blocks)
            for width in range(config.channels, 3 * config.channels, 4)
        ]
        return min(options, key=lambda one: abs(weight_count(VolumeExperts(one)) - wanted))


def weight_count(network: nn.Module) -> int:
    """Return the number of weights."""
    return sum(weights.numel() for weights in network.parameters())


class Arm:
    """A network in training, and what is kept of it in its folder."""

    def __init__(self, output: Path, config: VolumeExpertsConfig, device: str) -> None:
        torch.manual_seed(1)
        self.output = output
        self.network = VolumeExperts(config).to(device)
        self.average = WeightAverage(self.network, DECAY)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), RATE, (0.9, 0.99), weight_decay=1e-4
        )
        begun: dict[str, Any] = {"step": 0, "seconds": 0.0, "curve": []}
        output.mkdir(parents=True, exist_ok=True)
        self.record = load_state(output, self.network, self.average, self.optimiser) or begun
        self.record["network"] = config.to_dict()
        self.sums: list[tuple[float, float, float]] = []

    def step(self, patches: Sequence[Crop], places: Tensor, speed: float) -> None:
        """One step at a learning rate; loss, that of F = 0 and the gradient's norm are noted."""
        for group in self.optimiser.param_groups:
            group["lr"] = speed
        reached, before = losses(self.network, patches, places)
        self.optimiser.zero_grad()
        reached.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.network, self.record["step"])
        self.record["step"] += 1
        self.sums.append((float(reached.detach().mean()), float(before.mean()), float(norm)))

    def look(self, crops: dict[str, Crop]) -> None:
        """Judge the averaged weights and add a row to the curve."""
        live = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.values)
        row = {"step": self.record["step"], "seconds": round(self.record["seconds"])}
        row |= look(self.network, crops)
        self.network.load_state_dict(live)
        if self.sums:
            # A step that overflowed changed nothing, and is not part of the mean.
            used = [values for values in self.sums if np.isfinite(values).all()]
            row["loss"] = [round(float(value), 4) for value in np.mean(used, 0)] if used else None
            row["skipped"] = len(self.sums) - len(used)
        self.sums = []
        self.record["curve"].append(row)
        print(self.output.name, json.dumps(row), flush=True)

    def save(self) -> None:
        """Write state, averaged weights and curve."""
        save_state(self.output, self.network, self.average, self.optimiser, self.record)
        save_best(self.output, self.average, self.record)
        write_json(self.record["curve"], self.output / "curve.json")


def train(
    arms: Sequence[Arm], crops: Sequence[Crop], fixed: dict[str, Crop], minutes: float
) -> None:
    """Train all arms on the same batches for the time given, counted over all runs."""
    record, seconds = arms[0].record, 60 * minutes
    before, begun = float(record["seconds"]), time.monotonic()
    saved = looked = before
    while (now := before + time.monotonic() - begun) < seconds:
        patches, places = draw(crops, record["step"])
        speed = rate(now, seconds, record["step"])
        for arm in arms:
            arm.step(patches, places, speed)
            arm.record["seconds"] = now
        if record["step"] % FOUND_STEPS == 0:
            found = [np.round(np.mean(arm.sums[-FOUND_STEPS:], 0), 4).tolist() for arm in arms]
            print(record["step"], f"{now:.0f} s", *found, flush=True)
        if now - looked > LOOK_SECONDS:
            for arm in arms:
                arm.look(fixed)
            looked = now
        if now - saved > SAVE_SECONDS:
            for arm in arms:
                arm.save()
            saved = now
    for arm in arms if record["step"] else ():
        arm.look(fixed)
        arm.save()


def scale_head(name: str) -> ScaleNetwork | None:
    """The scale head of a model or of a run of its training; `none`: its first guess (tests)."""
    if name == "none":
        return None
    if (Path(name) / BEST_NAME).is_file():
        tensors, _ = read_state(Path(name) / BEST_NAME)
        network = ScaleNetwork(ScaleConfig())
        network.load_state_dict(part(tensors, "average."))
        return network.eval()
    from bids_moediff.families.load import load_model

    found = load_model(name).scale
    if found is None:
        raise SystemExit(f"{name} has no scale head.")
    return found.network


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--crops", type=Path, required=True)
    parser.add_argument("--fixed", type=Path, required=True)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["mixture"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    config = VolumeExpertsConfig(channels=options.channels, blocks=options.blocks)
    configs = {"mixture": config, "single": equal_single(config)}
    arms = [Arm(options.output / name, configs[name], options.device) for name in options.arms]
    scale = scale_head(options.scale)
    crops = load(options.crops, scale, options.output / "crops")
    fixed = load(options.fixed, scale, options.output / "fixed")
    large = [crop for crop in crops.values() if min(crop["weight"].shape) >= PATCH]
    train(arms, large, fixed, options.minutes)


if __name__ == "__main__":
    main()
