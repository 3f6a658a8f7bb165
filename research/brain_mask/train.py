# SPDX-License-Identifier: Apache-2.0
"""Train the brain mask network on images made from label maps, so that no contrast is special.

A label map is warped, every label gets a random brightness, and the result is given what scans
have: shading, thick slices, noise, a cropped field of view, a deleted face or skull. The idea is
that of SynthStrip (Hoopes et al. 2022, doi:10.1016/j.neuroimage.2022.119474).

    python -m research.brain_mask.train --labels DIR --out DIR --minutes 40 [--init MODEL]
"""

import argparse
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from bids_moediff.families.load import load_model
from bids_moediff.networks.brain_mask import BrainMaskNet
from bids_moediff.networks.model_folder import save_model
from bids_moediff.preprocessing.brain_mask import normalise
from bids_moediff.runtime.resources import has_bfloat16
from bids_moediff.training.state import WeightAverage, load_state, save_state

WORKING_ZOOM = 3.0  # mm
# The image is brought to the working grid by a tent as wide as two of its voxels; four points this
# far from the centre along each axis, in voxels, have the same second moment.
TENT = float(np.sqrt(1 / 6))
FLUID = 24  # label of cerebrospinal fluid
FLUIDS = (4, 5, 14, 15, FLUID, 43, 44, 72)
MOST_STEPS = 10**9
OUTSIDE = 500  # labels from here on are skull, skin, eyes and neck
CARD = """# Brain mask

A 3-D U-Net on a {zoom:g} mm grid that tells brain (with the fluid in and between its folds) from
everything else, in any contrast, with the face or the skull removed or not.

* Trained for {steps} images{start}, made from
  the label maps of SynthSeg (20 whole heads) and SynthSR (5 brains; shells of fluid, bone and skin
  were grown around them), both Apache-2.0: random size and shape, wide ventricles and folds,
  contrast, shading, slice thickness, noise, field of view, defacing, skull-stripping.
* Dice on images made in the same way from five label maps that were left out, on that grid:
  mean {mean}, lowest {least}. Real scans were never seen.
* Not for: animals, infants, brains after large resections.
* Made by `python -m research.brain_mask.train`.
"""
LEFT_OUT = ("training_seg_17", "training_seg_18", "training_seg_19", "training_seg_20", "brain5")
# Right-hand labels of the usual segmentation and their left-hand partners.
PARTNERS = {
    41: 2, 42: 3, 43: 4, 44: 5, 46: 7, 47: 8, 49: 10, 50: 11, 51: 12, 52: 13, 53: 17, 54: 18,
    57: 25, 58: 26, 60: 28, 62: 30, 137: 136, 164: 163, 63: 31,
}  # fmt: skip


@dataclass(frozen=True)
class LabelledHead:
    """A label map ready for sampling: uint8 indices, brain truth, RAS, 1 mm."""

    name: str
    indices: torch.Tensor  # (x, y, z) uint8
    shrunken: torch.Tensor  # the same with wide ventricles and folds: tissue turned to fluid
    brain: torch.Tensor  # (x, y, z) uint8
    centre: np.ndarray  # voxel coordinates of the brain's centre
    whole: bool  # whether skull and skin are there


def brain_truth(labels: np.ndarray) -> np.ndarray:
    """Tissue, ventricles and the fluid between the folds; no skull, no spine."""
    tissue = (labels > 0) & (labels < OUTSIDE) & (labels != FLUID)
    box = ndimage.find_objects(tissue.astype(np.uint8))[0]
    box = tuple(slice(max(0, part.start - 12), part.stop + 12) for part in box)
    inner = np.pad(tissue[box], 12)
    grown = ndimage.distance_transform_edt(~inner) <= 10.0
    closed = ndimage.distance_transform_edt(grown) > 10.0
    closed = closed[12:-12, 12:-12, 12:-12] & (labels[box] < OUTSIDE)
    truth = np.zeros_like(tissue)
    truth[box] = ndimage.binary_fill_holes(closed | tissue[box])
    return truth


def load_head(path: Path, table: dict[int, int]) -> LabelledHead:
    """Read one label map; ``table`` collects a small index for every label met."""
    image = nib.as_closest_canonical(nib.load(path))
    labels = np.asarray(image.dataobj).astype(np.int32)
    labels = labels[ndimage.find_objects((labels > 0).astype(np.uint8))[0]]
    truth = brain_truth(labels)
    whole = bool((labels >= OUTSIDE).any())
    if not whole:  # folds without a label hold fluid; grow shells of skull and skin around it
        labels[truth & (labels == 0)] = FLUID
        padding = ((30, 30), (30, 30), (30, 30))
        labels, truth = np.pad(labels, padding), np.pad(truth, padding)
        distance = ndimage.distance_transform_edt(~truth)
        rough = 2.0 * ndimage.gaussian_filter(
            np.random.default_rng(0).standard_normal(labels.shape), 8.0
        )
        distance += rough / rough.std()
        for limit, label in ((17.0, 507), (10.0, 511), (3.5, FLUID)):
            labels[~truth & (distance <= limit)] = label
    indices = np.zeros(labels.shape, dtype=np.uint8)  # contiguous, whatever the file's axes
    for label in np.unique(labels):
        indices[labels == label] = table.setdefault(int(label), len(table))
    shrunken, wide = indices.copy(), ndimage.distance_transform_edt(~np.isin(labels, FLUIDS)) < 2.5
    shrunken[wide & (labels > 0) & (labels < OUTSIDE)] = table.setdefault(FLUID, len(table))
    return LabelledHead(
        path.name.split(".")[0],
        torch.from_numpy(indices),
        torch.from_numpy(shrunken),
        torch.from_numpy(truth.astype(np.uint8, order="C")),
        np.argwhere(truth).mean(0),
        whole,
    )


def _smooth(
    rng: np.random.Generator, shape: tuple[int, ...], nodes: int, channels: int = 1
) -> torch.Tensor:
    """Smooth random field (1, channels, x, y, z) of unit variance at its ``nodes``."""
    coarse = rng.standard_normal((1, channels, nodes, nodes, nodes)).astype(np.float32)
    return functional.interpolate(
        torch.from_numpy(coarse), size=shape, mode="trilinear", align_corners=True
    )


def _coordinates(
    rng: np.random.Generator, head: LabelledHead, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each voxel of the working grid lies in the label map (x, y, z, 3), and the matrix."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.normal(0.0, [12.0, 7.0, 7.0]))):
        first, second = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    # Against the source, a grown-up's head; below 0.8 are heads of small children.
    size = rng.uniform(0.72, 1.13) * rng.uniform(0.94, 1.06, 3)
    matrix = matrix @ np.diag(1.0 / size) @ (np.eye(3) + rng.normal(0.0, 0.03, (3, 3)))
    linear = torch.tensor(matrix.T, dtype=torch.float32)
    shift = torch.tensor(rng.normal(0.0, [8.0, 12.0, 25.0]), dtype=torch.float32)
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) * WORKING_ZOOM for n in shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    points = (grid + shift) @ linear + torch.tensor(head.centre, dtype=torch.float32)
    for nodes, strength in ((5, 5.0), (12, 1.5)):
        warp = _smooth(rng, shape, nodes, 3) * float(rng.uniform(0.0, strength))
        points = points + warp[0].permute(1, 2, 3, 0)
    return points, linear


def _nearest(points: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat index of the nearest voxel of a label map, and whether the point lies inside."""
    size = torch.tensor(shape, dtype=torch.int32)
    nearest = points.round().int()
    bounded = torch.minimum(nearest.clamp(min=0), size - 1)
    inside = (nearest == bounded).all(-1)
    return (bounded[..., 0] * size[1] + bounded[..., 1]) * size[2] + bounded[..., 2], inside


def _paint(
    head: LabelledHead, indices: torch.Tensor, points: torch.Tensor, linear: torch.Tensor,
    means: np.ndarray, spreads: np.ndarray,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Brightness, spread and brain share per voxel, each the mean over four points around it."""
    corners = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    total = torch.zeros(3, *points.shape[:3])
    for corner in corners * WORKING_ZOOM * TENT:
        flat, inside = _nearest(points + corner @ linear, tuple(indices.shape))
        label = indices.view(-1)[flat].int() * inside
        total[0] += torch.from_numpy(means)[label]
        total[1] += torch.from_numpy(spreads)[label]
        total[2] += head.brain.view(-1)[flat] * inside
    image, spread, brain = (total / len(corners))[:, None, None]
    return image, spread, brain


def _brightness(rng: np.random.Generator, table: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of every label; partners share them, tissues often look like scans do."""
    means = rng.uniform(0.0, 1.0, len(table)).astype(np.float32)
    spreads = (rng.uniform(0.0, 0.1) * rng.uniform(0.3, 1.0, len(table))).astype(np.float32)
    white, grey, fluid = rng.uniform(0.0, 1.0, 3)
    kind = rng.integers(5)
    if kind == 0:  # T1-weighted
        white, grey, fluid = rng.uniform([0.65, 0.4, 0.05], [0.9, 0.7, 0.25])
    elif kind == 1:  # T2-weighted
        white, grey, fluid = rng.uniform([0.2, 0.3, 0.65], [0.5, 0.65, 1.0])
    elif kind == 2:  # FLAIR
        white, grey, fluid = rng.uniform([0.5, 0.6, 0.02], [0.7, 0.85, 0.2])
    groups = {
        white: (2, 7, 28, 16, 85), grey: (3, 8, 10, 11, 12, 13, 17, 18, 26),
        fluid: (4, 5, 14, 15, FLUID, 72, 31),
    }  # fmt: skip
    for value, labels in groups.items():
        for label in labels:
            if label in table:
                means[table[label]] = value + rng.normal(0.0, 0.03)
    for right, left in PARTNERS.items():
        if right in table and left in table:
            means[table[right]], spreads[table[right]] = means[table[left]], spreads[table[left]]
    if 511 in table and rng.random() < 0.6:
        means[table[511]] = rng.uniform(0.0, 0.15)  # bone is mostly dark
    means[table[0]] = 0.0 if rng.random() < 0.7 else rng.uniform(0.0, 0.1)
    spreads[table[0]] = 0.0
    return means, spreads


def _delete(
    rng: np.random.Generator, image: torch.Tensor, brain: torch.Tensor, whole: bool
) -> None:
    """Skull-stripping, defacing and a cropped field of view, in place."""
    shape = image.shape[2:]
    soft = brain[0, 0].numpy() > 0.5
    if not soft.any():
        return
    if rng.random() < (0.2 if whole else 0.6):
        distance = ndimage.distance_transform_edt(~soft) - ndimage.distance_transform_edt(soft)
        wobble = _smooth(rng, shape, 6)[0, 0].numpy() * rng.uniform(0.0, 4.0)
        keep = torch.from_numpy(WORKING_ZOOM * distance + wobble < rng.uniform(-0.8, 6.0))
        image *= keep
        if rng.random() < 0.5:
            brain *= keep
    elif rng.random() < 0.35:  # everything in front of and below an oblique plane
        normal = np.array([rng.normal(0, 0.05), rng.uniform(0.3, 1.0), -rng.uniform(0.2, 1.0)])
        normal /= np.linalg.norm(normal)
        axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
        height = sum(part * axis for part, axis in zip(normal, axes, strict=True))
        limit = float(np.max(height[soft])) + rng.uniform(-6.0, 24.0) / WORKING_ZOOM
        keep = torch.from_numpy(height < limit)
        image *= keep
        brain *= keep
    if rng.random() < 0.3:
        axis, side = int(rng.integers(3)), int(rng.integers(2))
        extent = np.flatnonzero(soft.any(axis=tuple(k for k in range(3) if k != axis)))
        depth = int(rng.uniform(-5, 0.25 * len(extent)))
        edge = extent[0] + depth if side == 0 else extent[-1] - depth
        where = slice(0, max(edge, 0)) if side == 0 else slice(max(edge, 0), None)
        for volume in (image, brain):
            volume.movedim(2 + axis, 0)[where] = 0.0


def _blur_one_axis(rng: np.random.Generator, image: torch.Tensor) -> torch.Tensor:
    """Slices of 4 to 8 mm along one axis: averaged and linearly interpolated back."""
    axis = int(rng.integers(3))
    shape = list(image.shape[2:])
    coarse = list(shape)
    coarse[axis] = max(8, round(shape[axis] * WORKING_ZOOM / rng.uniform(4.0, 8.0)))
    thick = functional.interpolate(image, size=coarse, mode="area")
    return functional.interpolate(thick, size=shape, mode="trilinear", align_corners=False)


def synthesize(
    rng: np.random.Generator, head: LabelledHead, table: dict[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One image in [0, 1] and its brain truth in [0, 1], both (1, 1, x, y, z) at 3 mm.

    Fields of view of 144 to 240 mm: the smaller ones cost less and cut the head here and there.
    """
    shape = tuple(int(8 * n) for n in rng.integers([6, 7, 6], [9, 10, 10]))
    points, linear = _coordinates(rng, head, shape)
    means, spreads = _brightness(rng, table)
    indices = head.shrunken if rng.random() < 0.25 else head.indices
    image, spread, brain = _paint(head, indices, points, linear, means, spreads)
    if rng.random() < 0.5:
        image, spread, brain = (volume.flip(2) for volume in (image, spread, brain))
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))[None, None]
    texture = noise if rng.random() < 0.5 else functional.avg_pool3d(noise, 3, 1, 1) * 3.0
    image = (image + spread * texture).clamp(min=0.0)
    image = image * torch.exp(_smooth(rng, shape, 4) * float(rng.uniform(0.0, 0.35)))
    if rng.random() < 0.4:
        image = _blur_one_axis(rng, image)
    image = (image / image.max().clamp(min=1e-3)) ** float(np.exp(rng.normal(0.0, 0.3)))
    level = float(rng.uniform(0.0, 0.06)) * float(rng.random() < 0.7)
    first, second = rng.standard_normal((2, *shape), dtype=np.float32) * level
    image = torch.hypot(image + torch.from_numpy(first), torch.from_numpy(second))
    _delete(rng, image, brain, head.whole)
    return torch.from_numpy(normalise(image.numpy())), brain


def loss_function(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice, both against the partial-volume truth."""
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    probability = torch.sigmoid(logits)
    overlap = 2.0 * (probability * truth).sum() / (probability.sum() + truth.sum() + 1.0)
    return entropy + 1.0 - overlap


def dice(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Dice of the thresholded logits on the working grid."""
    found, true = logits > 0, truth > 0.5
    return float(2.0 * (found & true).sum() / (found.sum() + true.sum()).clamp(min=1))


def validate(
    network: BrainMaskNet, heads: list[LabelledHead], table: dict[int, int]
) -> list[float]:
    """Dice on four fixed images of every left-out head."""
    scores = []
    with torch.inference_mode():
        for number, head in enumerate(heads):
            for repeat in range(4):
                rng = np.random.default_rng([7, number, repeat])
                image, truth = synthesize(rng, head, table)
                if float(truth.sum()) * WORKING_ZOOM**3 > 320e3:
                    scores.append(dice(network(image), truth))
    return scores


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training images by step; each depends on seed and step alone, whatever the workers."""

    def __init__(
        self, heads: list[LabelledHead], table: dict[int, int], seed: int, first: int
    ) -> None:
        self.heads, self.table, self.seed, self.first = heads, table, seed, first

    def __len__(self) -> int:
        return MOST_STEPS - self.first

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and truth of step ``first + index``, both (1, 1, x, y, z)."""
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, self.first + index])
        head = self.heads[int(rng.integers(len(self.heads)))]
        return synthesize(rng, head, self.table)


def fit(options: argparse.Namespace) -> None:
    """Train until the wall-clock budget is spent; a state in ``out`` is resumed."""
    torch.manual_seed(options.seed)
    table: dict[int, int] = {0: 0}
    paths = sorted(options.labels.rglob("*.nii.gz"))
    heads = [load_head(path, table) for path in paths]
    left_out = [head for head in heads if head.name.startswith(LEFT_OUT)]
    training = [head for head in heads if not head.name.startswith(LEFT_OUT)]
    device = torch.device(options.device)
    network, source = BrainMaskNet(), None
    if options.init:
        known = load_model(options.init)
        network.load_state_dict(known.network.state_dict())
        source = {"model": known.name, "sha256": known.sha256}
    network.to(device)
    average = WeightAverage(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-4)
    options.out.mkdir(parents=True, exist_ok=True)
    record = load_state(options.out, network, average, optimiser) or {"step": 0, "spent": 0.0}
    step, began = record["step"], time.monotonic() - record["spent"]
    images = Images(training, table, options.seed, step)
    loader = torch.utils.data.DataLoader(images, batch_size=None, num_workers=options.workers)
    running, budget = 0.0, options.minutes * 60.0
    for image, truth in loader:
        if (elapsed := time.monotonic() - began) >= budget:
            break
        _set_rate(optimiser, options.rate, step, elapsed / budget)
        loss = _train_step(network, optimiser, image.to(device), truth.to(device))
        step += 1
        average.update(network, step)
        running += (loss - running) / min(step, 50)
        if step % options.save_every == 0:
            record = {"step": step, "spent": time.monotonic() - began}
            save_state(options.out, network, average, optimiser, record)
            print(step, round(record["spent"]), f"{running:.4f}", flush=True)
    record = {"step": step, "spent": time.monotonic() - began}
    save_state(options.out, network, average, optimiser, record)
    best = BrainMaskNet()
    best.load_state_dict({name: value.cpu() for name, value in average.values.items()})
    scores = validate(best.eval(), left_out, table)
    print(step, f"Dice {np.mean(scores):.4f}, lowest {np.min(scores):.4f}", flush=True)
    _save(options, best, source, paths, step, scores)


def _set_rate(optimiser: torch.optim.Optimizer, peak: float, step: int, progress: float) -> None:
    """A warm-up of 100 steps, and a straight line to zero over the last half of the time."""
    for group in optimiser.param_groups:
        group["lr"] = peak * min(1.0, (step + 1) / 100) * min(1.0, 2.0 * (1.0 - progress))


def _train_step(
    network: BrainMaskNet, optimiser: torch.optim.Optimizer, image: torch.Tensor,
    truth: torch.Tensor,
) -> float:  # fmt: skip
    """One update; gives the loss."""
    half = image.device.type == "cuda" or has_bfloat16()
    with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
        logits = network(image.to(memory_format=torch.channels_last_3d))
    loss = loss_function(logits.float(), truth)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _save(
    options: argparse.Namespace, network: BrainMaskNet, source: dict[str, str] | None,
    paths: list[Path], step: int, scores: list[float],
) -> None:  # fmt: skip
    """Write the averaged weights as a model folder."""
    mean, least = round(float(np.mean(scores)), 4), round(float(np.min(scores)), 4)
    config = {
        "family": "brainmask",
        "version": "2",
        "brainmask": {"widths": list(network.widths)},
        "zoom": WORKING_ZOOM,
        "threshold": options.threshold,
        "training": {
            "seed": options.seed,
            "steps": step,
            "init": source,
            "left_out": list(LEFT_OUT),
            "working_grid_dice": {"mean": mean, "minimum": least},
            "data_sha256": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
            },
        },
    }
    start = f", from weights {source['sha256'][:12]}" if source else ""
    card = CARD.format(zoom=WORKING_ZOOM, steps=step, start=start, mean=mean, least=least)
    save_model(network, config, options.out, card)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--labels", type=Path, required=True, help="folder with label maps")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and curve")
    parser.add_argument("--init", help="model whose weights are the start; random without")
    parser.add_argument("--minutes", type=float, default=40.0, help="wall-clock budget")
    parser.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--workers", type=int, default=0, help="processes that make images")
    parser.add_argument("--save-every", type=int, default=400, help="steps between two saves")
    parser.add_argument(
        "--threshold", type=float, default=-1.2,
        help="logit above which brain begins: a short training draws the outline too tight",
    )  # fmt: skip
    fit(parser.parse_args())


if __name__ == "__main__":
    main()
