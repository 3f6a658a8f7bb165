# SPDX-License-Identifier: Apache-2.0
"""Crops on which the scale head learns: what it looks at, and the errors that were made.

Crop k depends on the seed and on k alone. A crop of a training head, or of a label map rendered in
a random contrast, is measured coarsely, restored by a model and brought into agreement with the
measurement; the error is split into what was not measured and what was.

    python -m research.scale.crops OUT --data DIR [--model student] [--first 0 --last 320]
    python -m research.scale.crops OUT --data DIR --fixed   # development heads, fixed protocols
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from scipy import fft, ndimage

from bids_moediff.families.load import load_model
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.consistency import agree, consistent_start
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.simulation import ONES, Grids, measure
from bids_moediff.imaging.told import told_numbers
from bids_moediff.networks.scale import scale_inputs, scale_numbers
from bids_moediff.runtime.resources import has_bfloat16
from bids_moediff.runtime.sink import write_bytes
from bids_moediff.training.bids_heads import label_heads, read_volume
from bids_moediff.training.contrast import bias_field, random_contrast, synthesise
from bids_moediff.training.pack import TrainingHead, brightness

SIDE, RIM = 80, 10
DEVELOPMENT = ("uih_s1", "ds011_sub-08", "ds002748_sub-54", "sub-01_T2w", "colin27")
# Axes without truth, by the beginning of the name.
SPARED = {"ds002748": 2, "vs_gk": 2, "sub-01_T2w": 2}
SKIPPED = ("inplaneT2",)
LABELS = [f"training_seg_{number:02d}" for number in range(1, 17)]
LABELS += ["brain1_labels", "brain2_labels", "brain3_labels"]
LABEL_SHARE, CONTRAST_SHARE = 0.25, 0.25
# Images whose detail ends before their voxels do: smooth, or with an empty rim in k-space.
SMOOTH_SHARE, EMPTY_SHARE = 0.25, 0.15
LEAST_HEAD = 0.45
IN_HEAD = 0.06


@dataclass(frozen=True)
class Plan:
    """An acquisition, its noise, and the noise that the engine knows of."""

    ratios: Triple
    acquisition: Acquisition
    noise: float = 0.0
    told_noise: float = 0.0


FIXED = {
    "x2iso": Plan((2.0, 2.0, 2.0), Acquisition.uniform("kspace"), 0.02, 0.02),
    "x4slices": Plan((1.0, 1.0, 4.0), Acquisition.uniform("gaussian")),
}


def heads_of(root: Path) -> list[tuple[str, np.ndarray]]:
    """Images for training (float16, 1 is the 99.5th percentile), development heads included."""
    paths = sorted(
        [*root.glob("t1w/*.gz"), *root.glob("t2w/*.gz"), *root.glob("bids_mini/*/anat/*.gz")]
    )
    lines = (root / "manifest.tsv").read_text().splitlines()
    split = {row.split("\t")[0]: row.split("\t")[2] for row in lines}
    found = []
    for path in paths:
        name = path.name.removesuffix(".nii.gz")
        if split[str(path.relative_to(root))] == "train" and not any(s in name for s in SKIPPED):
            data = read_volume(path, name)[0]
            found.append((name, (data / brightness(data)).clip(0, 3).astype(np.float16)))
    return found


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _slices(rng: np.random.Generator) -> Axis:
    kind = rng.random()
    if kind < 0.12:
        return Axis("kspace")
    width = 1.0 if rng.random() < 0.4 else round(float(rng.uniform(0.25, 1.2)), 3)
    return Axis("gaussian" if kind < 0.6 else "box", width)


def _plane(rng: np.random.Generator) -> Axis:
    kind = rng.random()
    if kind < 0.65:
        return Axis("kspace")
    if kind < 0.85:
        return Axis("kspace", filter=str(rng.choice(["fermi", "tukey", "half-hann"])))
    return Axis("gaussian" if kind < 0.93 else "box")


def draw_plan(rng: np.random.Generator, spared: bool) -> Plan:
    """Draw an acquisition: x1.25 to x6, thick and thin slices with gaps, filters, noise."""
    kind, which = rng.random(), rng.random()
    if kind < 0.42:
        factor = 2.0 if which < 0.5 else 1.5 if which < 0.65 else _between(rng, 1.25, 3)
        axis = _plane(rng)
        ratios, axes = [factor] * 3, [axis] * 3
    elif kind < 0.87:
        usual = ((0.38, 4.0), (0.52, 2.0), (0.62, 3.0), (0.7, 6.0))
        thick = next((ratio for share, ratio in usual if which < share), 0.0)
        ratios = [1.0, 1.0, thick or _between(rng, 1.25, 6)]
        axes = [Axis("kspace"), Axis("kspace"), _slices(rng)]
    else:
        plane = _between(rng, 1.2, 2)
        ratios = [plane, plane, _between(rng, max(2.0, plane), 6)]
        axes = [Axis("kspace"), Axis("kspace"), _slices(rng)]
    if spared:
        ratios[0] = 1.0
    noise = _between(rng, 0.005, 0.05) if rng.random() < 0.55 else 0.0
    told = noise * float(np.exp(rng.normal(0, 0.1)))
    if rng.random() < 0.08:
        told = 0.0
    return Plan(
        (ratios[0], ratios[1], ratios[2]), Acquisition((axes[0], axes[1], axes[2])), noise, told
    )


def spared_axis(name: str) -> int | None:
    """Axis of a head that holds no truth."""
    return next((axis for start, axis in SPARED.items() if name.startswith(start)), None)


def cut(volume: np.ndarray, spared: int | None, rng: np.random.Generator | None) -> np.ndarray:
    """A block that shows enough head, in a random orientation; the central one without `rng`."""
    order = [0, 1, 2] if rng is None else [int(axis) for axis in rng.permutation(3)]
    order = sorted(order, key=lambda axis: axis != spared)
    volume = volume.transpose(order)
    best, most = volume, -1.0
    for _ in range(1 if rng is None else 12):
        room = [max(0, size - SIDE) for size in volume.shape]
        corner = [r // 2 if rng is None else int(rng.integers(0, r + 1)) for r in room]
        block = volume[tuple(slice(c, c + SIDE) for c in corner)]
        share = float((block > 0.1).mean())
        if share > most:
            best, most = block, share
        if share > LEAST_HEAD:
            break
    if rng is not None:
        best = np.flip(best, tuple(int(axis) for axis in np.flatnonzero(rng.random(3) < 0.5)))
    return np.ascontiguousarray(best)


def make_crop(
    network: torch.nn.Module, fine: torch.Tensor, plan: Plan, seed: int
) -> dict[str, torch.Tensor]:
    """Measure a block, restore it, and keep the inner part of what was made."""
    grids = Grids.inside(fine.shape, ONES, plan.ratios)
    noise = None
    if plan.noise > 0:
        generator = torch.Generator().manual_seed(seed)
        fields = [torch.randn(grids.coarse_shape, generator=generator) for _ in range(2)]
        noise = (plan.noise, fields[0], fields[1])
    made = measure(fine, grids, plan.acquisition, noise)
    smooth = interpolate(made.coarse, plan.ratios, grids.fine_shape, ONES)
    start = consistent_start(made.operator, smooth, made.coarse, plan.told_noise)
    numbers = plan.acquisition.condition(ONES, plan.ratios)
    extra = told_numbers(plan.acquisition, plan.ratios, plan.told_noise)
    told = torch.tensor(numbers + extra)
    precision = "bf16" if has_bfloat16() else "fp32"
    restored = apply_to_volume(network, start, told, precision=precision)  # type: ignore[arg-type]
    mean = agree(made.operator, restored, made.coarse, plan.told_noise)
    space = NullSpace(made.operator)
    error = made.truth - mean
    missing = space.project(error)
    inner = tuple(slice(RIM, size - RIM) for size in mean.shape)
    head = torch.nn.functional.avg_pool3d(made.truth[None, None], 5, 1, 2)[0, 0] > IN_HEAD
    crop = {
        "inputs": scale_inputs(mean, start)[(slice(None), *inner)].half(),
        "errors": torch.stack([missing, error - missing])[(slice(None), *inner)].clone().half(),
        "weight": torch.where(head, 1.0, 0.1)[inner].half(),
        "numbers": scale_numbers(told, plan.told_noise),
        "noise": torch.tensor(plan.told_noise),
    }
    for axis, matrix in enumerate(space.matrices):
        size = mean.shape[axis]
        full = torch.eye(size) if matrix is None else matrix
        part = full[RIM : size - RIM, RIM : size - RIM]
        crop[f"matrix{axis}"] = part.contiguous()
    return {key: value.contiguous() for key, value in crop.items()}


def _contrast(volume: np.ndarray, labels: bool, rng: np.random.Generator) -> torch.Tensor:
    block = torch.from_numpy(volume)
    if labels:
        image = synthesise(block, rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
    else:
        image = random_contrast(block.float(), rng, CONTRAST_SHARE, CONTRAST_SHARE)
    if rng.random() < 0.4:
        image = image * bias_field(image.shape, rng, float(rng.uniform(0, 0.25)))
    return soften(image, rng)


def soften(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Take the finest detail of some images (X, Y, Z) away, as scanners and filters do."""
    choice = rng.random()
    if choice < SMOOTH_SHARE:
        widths = float(rng.uniform(0.3, 0.9)) * rng.choice([1.0, 0.5], 3)
        return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), widths))
    if choice < SMOOTH_SHARE + EMPTY_SHARE:
        spectrum = fft.rfftn(image.numpy())
        for axis, share in enumerate(rng.uniform(0.6, 1.0, 3)):
            size = image.shape[axis]
            lines = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
            shape = [-1 if other == axis else 1 for other in range(3)]
            spectrum *= (2 * np.abs(lines) <= share).reshape(shape)
        return torch.from_numpy(fft.irfftn(spectrum, image.shape).astype(np.float32)).clamp_min(0)
    return image


def _site(name: str) -> str:
    return name.split("_")[0]


class Source:
    """Crop number k."""

    def __init__(
        self,
        images: Sequence[tuple[str, np.ndarray]],
        maps: Sequence[TrainingHead],
        network: torch.nn.Module,
    ) -> None:
        self.images, self.maps, self.network = images, maps, network
        sites = [_site(name) for name, _ in images]
        weights = np.array([sites.count(site) ** -0.5 for site in sites])
        self.probability = weights / weights.sum()

    def __call__(self, index: int, seed: int = 1) -> dict[str, torch.Tensor]:
        """Draw head, block, contrast and acquisition."""
        rng = np.random.default_rng([seed, index])
        labels = rng.random() < LABEL_SHARE
        if labels:
            head = self.maps[int(rng.integers(len(self.maps)))]
            volume, spared = head.volume, None
        else:
            name, volume = self.images[int(rng.choice(len(self.images), p=self.probability))]
            spared = spared_axis(name)
        block = _contrast(cut(volume, spared, rng), labels, rng)
        plan = draw_plan(rng, spared is not None)
        return make_crop(self.network, block, plan, int(rng.integers(2**62)))


def main() -> None:
    """Make the crops that are not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="student")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=320)
    parser.add_argument("--fixed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = load_model(options.model).network
    network = getattr(network, "mean", network)
    images = heads_of(options.data)
    if options.fixed:
        for name, volume in images:
            if not name.startswith(DEVELOPMENT):
                continue
            for key, plan in FIXED.items():
                spared = spared_axis(name)
                if spared is not None:
                    plan = replace(plan, ratios=(1.0, *plan.ratios[1:]))
                block = torch.from_numpy(cut(volume, spared, None)).float()
                write_bytes(
                    save(make_crop(network, block, plan, 0)),
                    options.output / f"{name}_{key}.safetensors",
                )
        return
    images = [pair for pair in images if not pair[0].startswith(DEVELOPMENT)]
    maps = [head for head in label_heads(options.data / "labels") if head.name in LABELS]
    print(len(images), "images,", len(maps), "label maps", flush=True)
    source = Source(images, maps, network)
    for index in range(options.first, options.last):
        path = options.output / f"{index:05d}.safetensors"
        if not path.is_file():
            begin = time.perf_counter()
            write_bytes(save(source(index)), path)
            print(index, f"{time.perf_counter() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
