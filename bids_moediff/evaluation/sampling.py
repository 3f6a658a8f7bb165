# SPDX-License-Identifier: Apache-2.0
"""Compare samples with the true error of coarsened images.

Every sampler draws the error of the same restored image: noise on the expected error (the
baseline), noise on the scale head, the family's own sampler if it has one, and noise on a scale
taken from the true error, which bounds what a scale can reach. Errors and samples are compared in
the unmeasured part of the image and as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import fft, ndimage
from torch import Tensor
from torch.nn import functional

from bids_moediff.errors import ImageError
from bids_moediff.families.posterior import LocalScale, texture
from bids_moediff.imaging.metrics import intensity_range
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.protocols import Protocol
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.inference.uncertainty import Restoration, sampler
from bids_moediff.options import Options

from .benchmark import Task, protocol_task
from .tissue_classes import CLASSES, Classes, class_volumes
from .truth import Loaded

Row = dict[str, Any]
Draw = Callable[[int], Tensor]
BOX = 5
BASELINE, LEARNED, OWN, ORACLE, TEXTURE = "by hand", "learned", "own", "oracle", "texture"
TRUE_BLUR = 1.5
FIFTH = 20.0
NORMAL_90 = 1.645
COLUMNS = (
    "head", "group", "protocol", "model", "sampler", "samples", "v", "v_missing",
    *(f"v_{name}" for name in CLASSES), "v_flat", "v_edges", "correlation", "band", "top",
    "energy", "energy_percent", "crps", "crps_percent", "rank_excess", "ranks",
    "slices_sample", "slices_error", "psnr_image", "psnr_sample", "psnr_mean",
    *(f"volume_{name}" for name in CLASSES), *(f"bias_{name}" for name in CLASSES),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A restored image beside its truth; (X, Y, Z), scaled intensities.

    ``error`` is the whole error, ``missing`` its unmeasured part.
    """

    truth: Tensor
    image: Tensor
    mask: Tensor
    space: NullSpace
    ratios: tuple[float, ...]
    classes: Classes

    @property
    def error(self) -> Tensor:
        """Truth minus restored image."""
        return self.truth - self.image

    @property
    def missing(self) -> Tensor:
        """Unmeasured part of the error."""
        return self.space.project(self.error)


def examine(
    loaded: Loaded, protocol: Protocol, resolver: SuperResolver, options: Options
) -> Iterator[Row]:
    """Yield the figures of every sampler on one head under one protocol."""
    task = protocol_task(loaded, protocol)
    noise = protocol.noise / 100 * float(np.percentile(task.truth[task.mask], 90))
    inputs = Inputs(acquisition=task.acquisition, noise=noise or None)
    asked = replace(options, output_resolution=task.zooms)
    made, _, _ = resolver.restore(task.coarse_image, asked, inputs, lambda stage, fraction: None)
    scene = _scene(made, task)
    drawn = dict(samplers(made, scene, resolver, asked))
    reference: Row = {}
    for name, draw in drawn.items():
        errors = [draw(asked.random_seed + number) for number in range(asked.num_samples)]
        found = figures(scene, torch.stack(errors))
        reference = reference or found
        for key in ("energy", "crps"):
            found[f"{key}_percent"] = 100 * (found[key] / reference[key] - 1)
        yield {
            "head": loaded.head.name,
            "group": loaded.head.group,
            "protocol": protocol.key,
            "model": resolver.model.name,
            "sampler": name,
            "samples": asked.num_samples,
        } | found


def _scene(made: Restoration, task: Task) -> Scene:
    truth = torch.from_numpy(np.ascontiguousarray(task.truth, dtype=np.float32)) / made.posed.scale
    if truth.shape != made.image.shape:
        raise ImageError(f"the result {tuple(made.image.shape)} does not fit the truth.")
    classes = Classes.of(truth.numpy(), task.mask)
    space = NullSpace(made.posed.operator)
    mask = torch.from_numpy(task.mask)
    return Scene(truth, made.image, mask, space, made.posed.ratios, classes)


def samplers(
    made: Restoration, scene: Scene, resolver: SuperResolver, options: Options
) -> Iterator[tuple[str, Draw]]:
    """Yield the samplers to compare, the baseline first."""
    known = resolver.uncertainty
    if known.calibration is not None:
        by_hand = LocalScale(known.by_added_detail(made), None, scene.space)
        yield BASELINE, by_hand.draw
    if known.model.scale is not None:
        learned = known.learned(made)
        yield LEARNED, learned.scale.draw
        own = sampler(resolver.restorer, made, learned, replace(options, sample=None))
        if own.draw != learned.scale.draw:
            yield f"{OWN}: {own.name}", own.draw
        yield TEXTURE, lambda seed: texture(made.image, learned.scale, seed)
    yield ORACLE, true_scale(scene).draw


def true_scale(scene: Scene) -> LocalScale:
    """Return the scale of the true error, from its smoothed squares."""
    kept = 1 - scene.space.diagonal
    missing = _blurred(scene.missing.square()) / kept
    rest = _blurred((scene.error - scene.missing).square()) / scene.space.diagonal.clamp_min(1e-6)
    noisy = float((scene.error - scene.missing)[scene.mask].square().mean()) > 1e-8
    return LocalScale(missing.sqrt(), rest.sqrt() if noisy else None, scene.space)


def _blurred(squares: Tensor) -> Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(squares.numpy(), TRUE_BLUR))


def figures(scene: Scene, errors: Tensor) -> Row:
    """Return the figures of samples of the error (N, X, Y, Z), at least two."""
    mask, error = scene.mask, scene.error
    mean = errors.mean(0)
    variance = errors.var(0)
    missing = torch.stack([scene.space.project(sample) for sample in errors])
    truth_missing = scene.space.project(scene.truth)
    image_missing = scene.space.project(scene.image)
    row: Row = {"v": _ratio(variance, error, mask)}
    row["v_missing"] = _ratio(missing.var(0), scene.missing, mask)
    for name, place in regions(scene).items():
        row[f"v_{name}"] = _ratio(variance, error, place)
    row["correlation"] = box_correlation(variance, error.square(), mask)
    first = image_missing + missing[0]
    row["band"] = float(first[mask].square().mean() / truth_missing[mask].square().mean())
    row["top"] = top_power(first, truth_missing, scene)
    row["energy"] = energy_score(errors, error, mask)
    row["crps"] = crps(errors[:, mask], error[mask])
    row |= ranks(errors[:, mask], error[mask])
    row["slices_sample"] = slice_correlation(missing[0], mask)
    row["slices_error"] = slice_correlation(scene.missing, mask)
    scale = intensity_range(scene.truth.numpy(), mask.numpy())
    for name, left in (("image", error), ("sample", error - errors[0]), ("mean", error - mean)):
        mse = float(left[mask].double().square().mean())
        row[f"psnr_{name}"] = 20 * np.log10(scale) - 10 * np.log10(mse)
    return row | volumes(scene, errors)


def _ratio(variance: Tensor, error: Tensor, place: Tensor) -> float:
    return float(variance[place].mean() / error[place].square().mean().clamp_min(1e-20))


def regions(scene: Scene) -> Mapping[str, Tensor]:
    """Return masks of the tissue classes, and of the flattest and the steepest fifth."""
    steep = ndimage.gaussian_gradient_magnitude(scene.truth.numpy(), 1.0)
    inside = scene.mask.numpy()
    low, high = np.percentile(steep[inside], [FIFTH, 100 - FIFTH])
    labels = scene.classes.label(scene.truth.numpy())
    found = {name: inside & (labels == number) for number, name in enumerate(CLASSES)}
    found |= {"flat": inside & (steep <= low), "edges": inside & (steep >= high)}
    return {name: torch.from_numpy(place) for name, place in found.items()}


def _boxes(volumes: Tensor, mask: Tensor) -> Tensor:
    """Return means (N, boxes) over the boxes of 5 x 5 x 5 voxels inside the mask."""
    whole = functional.avg_pool3d(mask.float()[None, None], BOX)[0, 0] > 0.999
    return functional.avg_pool3d(volumes[:, None], BOX)[:, 0][:, whole]


def box_correlation(variance: Tensor, squares: Tensor, mask: Tensor) -> float:
    """Return the correlation of expected and true squared error over boxes."""
    return float(torch.corrcoef(_boxes(torch.stack([variance, squares]), mask))[0, 1])


def energy_score(errors: Tensor, error: Tensor, mask: Tensor) -> float:
    """Return the energy score of patches of 5 x 5 x 5 voxels, in its unbiased form.

    References
    ----------
    Gneiting and Raftery, Strictly proper scoring rules, JASA 102:359-378, 2007.
    """
    count = len(errors)
    size = BOX**1.5
    far = [_boxes((sample - error).square()[None], mask)[0].sqrt().mean() for sample in errors]
    apart = [
        _boxes((errors[i] - errors[j]).square()[None], mask)[0].sqrt().mean()
        for i in range(count)
        for j in range(i)
    ]
    return float(size * (torch.stack(far).mean() - 0.5 * torch.stack(apart).mean()))


def crps(samples: Tensor, truth: Tensor) -> float:
    """Return the mean continuous ranked probability score of (N, voxels), unbiased."""
    count = len(samples)
    far = (samples - truth).abs().mean()
    ordered = samples.sort(0).values
    weights = 2 * torch.arange(1, count + 1) - count - 1
    apart = 2 * (weights[:, None] * ordered).sum(0).mean() / (count * (count - 1))
    return float(far - 0.5 * apart)


def ranks(samples: Tensor, truth: Tensor) -> Row:
    """Return the frequency of each rank of the truth among the samples; 1 is uniform.

    ``rank_excess`` is the share of voxels on the wrong ranks: 0 for a flat histogram.
    """
    rank = (samples < truth).sum(0)
    share = torch.bincount(rank, minlength=len(samples) + 1).float() / rank.numel()
    relative = share * len(share)
    excess = float(0.5 * (share - 1 / len(share)).abs().sum())
    return {"rank_excess": excess, "ranks": " ".join(f"{float(part):.2f}" for part in relative)}


def top_power(sample: Tensor, truth: Tensor, scene: Scene) -> float:
    """Return the power in the upper half of the new band over the truth's, geometric mean."""
    window = scene.mask.numpy().astype(np.float32)
    window = ndimage.gaussian_filter(window, 2.0)
    parts = [np.abs(fft.rfftn(part.numpy() * window)) ** 2 for part in (sample, truth)]
    chosen = np.zeros(parts[0].shape, bool)
    for axis, ratio in enumerate(scene.ratios):
        if ratio > 1.001:
            size = sample.shape[axis]
            lines = np.fft.rfftfreq(size) if axis == 2 else np.fft.fftfreq(size)
            shape = [1, 1, 1]
            shape[axis] = -1
            chosen |= (2 * np.abs(lines) > (1 + 1 / ratio) / 2).reshape(shape)
    logs = [np.log(part[chosen] + 1e-20).mean() for part in parts]
    return float(np.exp(logs[0] - logs[1]))


def slice_correlation(volume: Tensor, mask: Tensor) -> float:
    """Return the correlation of neighbouring slices, mean over the axes."""
    found = []
    for axis in range(3):
        size = volume.shape[axis] - 1
        both = mask.narrow(axis, 0, size) & mask.narrow(axis, 1, size)
        pair = [volume.narrow(axis, begin, size)[both] for begin in (0, 1)]
        found.append(torch.corrcoef(torch.stack(pair))[0, 1])
    return float(torch.stack(found).mean())


def volumes(scene: Scene, errors: Tensor) -> Row:
    """Return, for each class, whether the 90 % interval of its volume holds the truth's.

    The interval lies about the volume in the restored image: noise in samples has a volume of its
    own. ``volume_…``: 1 or 0. ``bias_…``: volume in the restored image over that in the truth,
    minus 1.
    """
    mask = scene.mask.numpy()
    true = class_volumes(scene.truth.numpy(), mask)
    image = class_volumes(scene.image.numpy(), mask)
    found = np.array([class_volumes((scene.image + e).numpy(), mask) for e in errors])
    spread = found.std(0, ddof=1) * np.sqrt(1 + 1 / len(errors))
    inside = np.abs(image - true) <= NORMAL_90 * spread
    row: Row = {}
    for number, name in enumerate(CLASSES):
        row[f"volume_{name}"] = int(inside[number])
        row[f"bias_{name}"] = float(image[number] / true[number] - 1)
    return row


def markdown(rows: list[Row]) -> str:
    """Return the most important figures as a table."""
    names = ("v", "v_missing", "v_flat", "v_edges", "correlation", "band", "top")
    head = " | ".join(["head", "protocol", "sampler", *names, "energy %", "CRPS %", "one", "mean"])
    lines = [f"| {head} |", "|" + "---|" * (len(names) + 7)]
    for row in rows:
        cells = [row["head"], row["protocol"], row["sampler"]]
        cells += [f"{row[name]:.2f}" for name in names]
        cells += [f"{row[name]:+.1f}" for name in ("energy_percent", "crps_percent")]
        cells += [f"{row[f'psnr_{name}'] - row['psnr_image']:+.2f}" for name in ("sample", "mean")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
