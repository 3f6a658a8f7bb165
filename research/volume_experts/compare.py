# SPDX-License-Identifier: Apache-2.0
"""Do the experts pay? Samplers side by side on blocks of held-out images with the same noise.

    python -m research.volume_experts.compare cases OUT --data DIR --model moediff
    python -m research.volume_experts.compare table OUT --scale MODEL --mixture RUN --single RUN

`cases` measures and restores the central block of each held-out image under two protocols; `table`
draws samples and prints, for each sampler: variance ratio v, energy score of 5^3 patches and CRPS
in percent against noise with the learned scale (as they are, and with all samplers brought to its
v), power in the band that was not measured and in its upper half over the truth's, and how far the
mean of the samples is from the restored image (dB of PSNR).
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.angle_sampler import AngleSampler, View, first_noise
from bids_moediff.families.moediff.volume_experts import VolumeExperts, VolumeExpertsConfig
from bids_moediff.families.posterior import LocalScale, white
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.consistency import agree, consistent_start
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.simulation import ONES, Grids, measure
from bids_moediff.imaging.told import told_numbers
from bids_moediff.networks.scale import ScaleNetwork, log_scales, scale_inputs, scale_numbers
from bids_moediff.training.bids_heads import read_volume
from bids_moediff.training.pack import brightness
from bids_moediff.training.state import BEST_NAME, part, read_state

from ..scale.crops import FIXED, IN_HEAD, SPARED, Plan
from .train import scale_head

SIDE, RIM, BOX = 96, 10, 5
HELD_OUT_SPARED = SPARED | {"sub-03_T2w": 2}
HIGH = 1.0  # of the Nyquist frequency: the upper half of the band
Numbers = dict[str, float]
COLUMNS = (
    "sampler, v (range), r, band, top, ES %, CRPS %, =ES % (range), =CRPS %, mean dB, s a sample"
)


def held_out(root: Path) -> list[tuple[str, np.ndarray]]:
    """Central blocks of the held-out images, in about [0, 1], an axis without truth first."""
    lines = (root / "manifest.tsv").read_text().splitlines()
    found = []
    for row in (line.split("\t") for line in lines):
        if len(row) < 3 or row[2] != "val":
            continue
        path = root / row[0]
        name = path.name.removesuffix(".nii.gz")
        data = read_volume(path, name)[0]
        data = data / brightness(data)
        spared = next((a for start, a in HELD_OUT_SPARED.items() if name.startswith(start)), None)
        data = data.transpose(sorted(range(3), key=lambda axis: axis != spared))
        corner = [max(0, (size - SIDE) // 2) for size in data.shape]
        block = data[tuple(slice(c, c + SIDE) for c in corner)].clip(0, 3)
        found.append((name, np.ascontiguousarray(block, dtype=np.float32)))
    return found


def make_case(network: torch.nn.Module, fine: Tensor, plan: Plan) -> dict[str, Tensor]:
    """Measure and restore a block; the whole of it is kept."""
    grids = Grids.inside(fine.shape, ONES, plan.ratios, multiple=2)
    noise = None
    if plan.noise > 0:
        generator = torch.Generator().manual_seed(0)
        fields = [torch.randn(grids.coarse_shape, generator=generator) for _ in range(2)]
        noise = (plan.noise, fields[0], fields[1])
    made = measure(fine, grids, plan.acquisition, noise)
    smooth = interpolate(made.coarse, plan.ratios, grids.fine_shape, ONES)
    start = consistent_start(made.operator, smooth, made.coarse, plan.told_noise)
    numbers = plan.acquisition.condition(ONES, plan.ratios)
    told = torch.tensor(numbers + told_numbers(plan.acquisition, plan.ratios, plan.told_noise))
    restored = apply_to_volume(network, start, told, precision="bf16")  # type: ignore[arg-type]
    mean = agree(made.operator, restored, made.coarse, plan.told_noise)
    case = {"truth": made.truth, "start": start, "mean": mean, "told": told}
    case["noise"] = torch.tensor(plan.told_noise)
    for axis, matrix in enumerate(NullSpace(made.operator).matrices):
        case[f"matrix{axis}"] = torch.eye(mean.shape[axis]) if matrix is None else matrix
    return {key: value.contiguous() for key, value in case.items()}


class StoredSpace(NullSpace):
    """The null space of a stored case."""

    def __init__(self, case: Mapping[str, Tensor]) -> None:
        found = [case[f"matrix{axis}"] for axis in range(3)]
        self.matrices = list(found)
        self._squares = [matrix.square() for matrix in found]


def case_view(case: Mapping[str, Tensor], scale: ScaleNetwork | None) -> View:
    """What samplers are given."""
    inputs = scale_inputs(case["mean"], case["start"])
    numbers = scale_numbers(case["told"], float(case["noise"]))
    logs = inputs[3] + math.log(0.02)
    if scale is not None:
        with torch.inference_mode():
            output = scale(inputs[None], numbers[None])[0]
        logs = log_scales(output, logs, float(case["noise"]))[0]
    found = LocalScale(logs.exp(), None, StoredSpace(case))
    everywhere = tuple(slice(0, size) for size in inputs.shape[1:])
    return View(inputs, numbers, found, (0, 1, 2), everywhere)  # type: ignore[arg-type]


def load_experts(folder: Path) -> VolumeExperts:
    """The averaged weights of a training run."""
    tensors, record = read_state(folder / BEST_NAME)
    network = VolumeExperts(VolumeExpertsConfig.from_dict(record["network"]))
    network.load_state_dict(part(tensors, "average."))
    return network.eval().requires_grad_(False)


@dataclass
class Judge:
    """Scores of samples of the error of one case."""

    error: Tensor
    mean: Tensor
    head: Tensor
    space: NullSpace

    @classmethod
    def of(cls, case: Mapping[str, Tensor]) -> "Judge":
        """The part of the error that was not measured, in the head, away from the border."""
        space = StoredSpace(case)
        error = space.project(case["truth"] - case["mean"])
        head = functional.avg_pool3d(case["truth"][None, None], 5, 1, 2)[0, 0] > IN_HEAD
        inner = torch.zeros_like(head)
        inner[RIM:-RIM, RIM:-RIM, RIM:-RIM] = True
        return cls(error, case["mean"], head & inner, space)

    def _inside(self, volume: Tensor) -> float:
        return float(volume[self.head].double().mean())

    def _distance(self, difference: Tensor) -> float:
        """Mean norm over patches of the head."""
        squares = functional.avg_pool3d((difference.square() * self.head)[None, None], BOX)
        share = functional.avg_pool3d(self.head.float()[None, None], BOX)
        return float(squares[share > 0.5].sqrt().double().mean())

    def variance_ratio(self, samples: Tensor) -> float:
        """Variance of samples over the squared error of their own mean; 1 is right."""
        count, own = len(samples), samples.mean(0)
        spread = self._inside(samples.var(0)) * (1 + 1 / count)
        return spread / self._inside((self.error - own).square())

    def scores(self, samples: Tensor) -> tuple[float, float]:
        """Energy score of patches, and CRPS by voxel (smaller is better)."""
        count = len(samples)
        energy = sum(self._distance(one - self.error) for one in samples) / count
        single = sum(self._inside((one - self.error).abs()) for one in samples) / count
        pairs = [(i, k) for i in range(count) for k in range(i)]
        for first, second in pairs:
            difference = samples[first] - samples[second]
            energy -= self._distance(difference) / (2 * len(pairs))
            single -= self._inside(difference.abs()) / (2 * len(pairs))
        return energy, single

    def bands(self, sample: Tensor) -> tuple[float, float]:
        """Power of a sampled image over the truth's where nothing was measured, and its top."""
        window = torch.ones(())
        for axis, size in enumerate(sample.shape):
            shape = [-1 if other == axis else 1 for other in range(3)]
            window = window * torch.hann_window(size).reshape(shape)
        truth, made = self.mean + self.error, self.mean + sample
        spectra = [
            torch.fft.rfftn(window * self.space.project(image)).abs().square()
            for image in (made, truth)
        ]
        sizes = sample.shape
        places = [
            torch.fft.fftfreq(size)[:n].abs() * 2
            for size, n in zip(sizes, spectra[0].shape, strict=True)
        ]
        radius = torch.sqrt(
            places[0][:, None, None] ** 2
            + places[1][None, :, None] ** 2
            + places[2][None, None] ** 2
        )
        high = radius > HIGH
        return (
            float(spectra[0].sum() / spectra[1].sum()),
            float(spectra[0][high].sum() / spectra[1][high].sum()),
        )

    def numbers(self, samples: Tensor) -> Numbers:
        """All of them."""
        energy, single = self.scores(samples)
        band, top = self.bands(samples[0])
        own, plain = (
            self._inside((self.error - move).square())
            for move in (samples.mean(0), 0 * self.error)
        )
        boxes = functional.avg_pool3d(
            torch.stack(
                [samples.var(0) * self.head, self.error.square() * self.head, self.head.float()]
            )[None],
            BOX,
        )[0].flatten(1)
        pair = boxes[:2, boxes[2] > 0.5]
        return {
            "v": self.variance_ratio(samples),
            "ES": energy,
            "CRPS": single,
            "band": band,
            "top": top,
            "r": float(torch.corrcoef(pair)[0, 1]),
            "mean_dB": 10 * math.log10(plain / own),
        }


Sampler = Callable[[int], Tensor]


def samplers(
    view: View, arms: Mapping[str, VolumeExperts], detail: bool, skips: Sequence[float] = ()
) -> dict[str, Sampler]:
    """Every sampler by its name; in detail also one expert alone, and none ever spared.

    ``skips`` are further thresholds of the gate: an expert below it does not run there.
    """
    scale = view.scale

    def plain(seed: int) -> Tensor:
        return scale.space.project(scale.missing * white(scale.missing, seed))

    found: dict[str, Sampler] = {"white": plain, "coloured": partial(first_noise, scale)}
    for name, network in arms.items():
        arm = AngleSampler(network, view, "bf16")
        kinds = {name: arm}
        if detail and len(network.experts) > 1:
            every = dict.fromkeys(network.config.experts, 1.0)
            kinds["all steps"] = replace(arm, threshold=0.0, schedule=every)
            for index, expert in enumerate(network.config.experts):
                kinds[expert] = replace(arm, only=index)
        for kind, sampler in kinds.items():
            for steps in (1, 2) if kind == name else (2,):
                found[f"{kind} {steps}"] = partial(sampler.draw, steps=steps)
        for limit in skips:
            spared = replace(arm, threshold=limit)
            found[f"{name} < {limit:g}"] = partial(spared.draw, steps=1)
    return found


def compare(
    case: Mapping[str, Tensor], chosen: Mapping[str, Sampler], count: int
) -> dict[str, Numbers]:
    """Scores of all samplers on one case; `=ES` with samples scaled to the v of white noise."""
    judge, found = Judge.of(case), {}
    wanted = 0.0
    for name, sampler in chosen.items():
        begun = time.process_time()
        samples = torch.stack([sampler(seed) for seed in range(count)])
        seconds = (time.process_time() - begun) / count
        row = judge.numbers(samples) | {"s": seconds}
        wanted = wanted or row["v"]
        own = samples.mean(0)
        factor = math.sqrt(wanted / row["v"])
        row["=ES"], row["=CRPS"] = judge.scores(own + factor * (samples - own))
        found[name] = row
    return found


def show(rows: Mapping[str, Mapping[str, Numbers]]) -> None:
    """Print one table for each protocol, and the worst image of each sampler."""
    names = list(next(iter(rows.values())))
    for protocol in sorted({key.rsplit("_", 1)[1] for key in rows}):
        print(f"\n{protocol}: {COLUMNS}")
        cases = [table for key, table in rows.items() if key.endswith(protocol)]
        for name in names:
            own = {k: np.array([table[name][k] for table in cases]) for k in cases[0][name]}
            base = {k: np.array([table["white"][k] for table in cases]) for k in ("ES", "CRPS")}
            change = {
                k: 100 * (own[k] / base[k.strip("=")] - 1) for k in ("ES", "CRPS", "=ES", "=CRPS")
            }
            print(
                f"{name:12s} {own['v'].mean():.2f} ({own['v'].min():.2f}-{own['v'].max():.2f})"
                f" {own['r'].mean():.2f} {np.exp(np.log(own['band']).mean()):.2f}"
                f" {np.exp(np.log(own['top']).mean()):.2f}"
                f" {change['ES'].mean():+.2f} {change['CRPS'].mean():+.2f}"
                f" {change['=ES'].mean():+.2f}"
                f" ({change['=ES'].min():+.2f} to {change['=ES'].max():+.2f})"
                f" {change['=CRPS'].mean():+.2f}"
                f" {own['mean_dB'].mean():+.3f} {own['s'].mean():.1f}"
            )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cases", "table"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="moediff")
    parser.add_argument("--scale", default="none")
    parser.add_argument("--mixture", type=Path)
    parser.add_argument("--single", type=Path)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", default="")
    parser.add_argument("--detail", action="store_true")
    parser.add_argument("--skips", type=float, nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.what == "cases":
        network: Any = load_model(options.model).network
        network = getattr(network, "mean", network)
        for name, block in held_out(options.data):
            spared = any(name.startswith(start) for start in HELD_OUT_SPARED)
            for key, plan in FIXED.items():
                ratios = (1.0, *plan.ratios[1:]) if spared else plan.ratios
                case = make_case(network, torch.from_numpy(block), replace(plan, ratios=ratios))
                save_file(case, options.output / f"{name}_{key}.safetensors")
                print(name, key, flush=True)
        return
    scale = scale_head(options.scale)
    paths = {"mixture": options.mixture, "single": options.single}
    arms = {name: load_experts(path) for name, path in paths.items() if path is not None}
    rows: dict[str, dict[str, Numbers]] = {}
    stored = sorted(options.output.glob("*.safetensors"))
    for path in [one for one in stored if options.only in one.name]:
        case = load_file(path)
        view = case_view(case, scale)
        chosen = samplers(view, arms, options.detail, options.skips)
        found = rows[path.stem] = compare(case, chosen, options.samples)
        base = found["white"]["ES"]
        print(path.stem, {k: round(100 * t["=ES"] / base - 100, 2) for k, t in found.items()})
        (options.output / "rows.json").write_text(json.dumps(rows))
    show(rows)


if __name__ == "__main__":
    main()
