# SPDX-License-Identifier: Apache-2.0
"""What a network leaves: could correctors, one for all voxels or one for each kind, still find it?

``python -m research.measurements.leftover OUT --train FILE… --test FILE…`` restores the central
blocks of heads by the mean alone and predicts what is missing from the neighbourhood of the result
and of the interpolated scan: by one linear filter, by mixtures of three (each fitted to its own
kind of voxel: dark, middle and bright; or flat, middle and edge), and by boosted trees. What they
gain on heads that they were not fitted to is what local experts on top of the network could find
at least, and a mixture against the single filter is what mixing adds.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from bids_moediff.evaluation.benchmark import Method, Task, consistent, make_task
from bids_moediff.evaluation.truth import Block
from bids_moediff.imaging.metrics import intensity_range, psnr
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.runtime.sink import write_text
from research.ablations.arms import SharedMean

REACH = 2  # voxels to either side that a linear filter sees
NEAR = 1  # and that the trees see, with blurs of these widths besides
WIDTHS = (1.5, 3.0)
RIDGE = 1e-3  # of the mean eigenvalue
KINDS = 3
TREES, MOST_PLACES = 200, 300_000
Predict = Callable[["Sample"], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One restored block over its intensity range: result, start and truth (X, Y, Z), mask."""

    task: Task
    result: np.ndarray
    start: np.ndarray
    truth: np.ndarray
    scale: float

    @property
    def mask(self) -> np.ndarray:
        """Voxels that are judged."""
        return self.task.mask

    @property
    def missing(self) -> np.ndarray:
        """Truth minus result in the mask, (N,)."""
        return (self.truth - self.result)[self.mask]

    def gain(self, correction: np.ndarray) -> float:
        """dB that adding (N,) to the result in the mask gains, made consistent again."""
        image = self.result.copy()
        image[self.mask] += correction
        scan = self.task.measured / self.scale
        fixed = self.task.operator.project(torch.from_numpy(image), scan).numpy()
        return psnr(fixed, self.truth, self.mask) - psnr(self.result, self.truth, self.mask)


def restore(task: Task, method: Method) -> Sample:
    """Restore a task and put it into units of its range."""
    scale = intensity_range(task.truth, task.mask)
    images = (method.restore(task), consistent(task), task.truth)
    result, start, truth = (np.asarray(image, np.float32) / scale for image in images)
    return Sample(task, result, start, truth, scale)


def neighbourhood(image: np.ndarray, mask: np.ndarray, reach: int) -> np.ndarray:
    """Voxels around each of the mask less the voxel itself, (N, (2 reach + 1)^3 - 1) float32."""
    padded = np.pad(image, reach, mode="edge")
    size = 2 * reach + 1
    columns = []
    for offset in np.ndindex(size, size, size):
        if offset != (reach,) * 3:
            moved = tuple(slice(o, o + n) for o, n in zip(offset, image.shape, strict=True))
            columns.append((padded[moved] - image)[mask])
    return np.stack(columns, axis=1)


def linear_features(sample: Sample) -> np.ndarray:
    """Neighbourhoods of result and start, their difference, and a constant."""
    parts = [neighbourhood(image, sample.mask, REACH) for image in (sample.result, sample.start)]
    own = (sample.result - sample.start)[sample.mask][:, None]
    return np.concatenate([*parts, own, np.ones_like(own)], axis=1)


def tree_features(sample: Sample) -> np.ndarray:
    """Near neighbourhoods, intensities, and both images less their blurs."""
    parts = [neighbourhood(image, sample.mask, NEAR) for image in (sample.result, sample.start)]
    for image in (sample.result, sample.start):
        blurs = [image - ndimage.gaussian_filter(image, width) for width in WIDTHS]
        parts.append(np.stack([part[sample.mask] for part in (image, *blurs)], axis=1))
    return np.concatenate(parts, axis=1)


def brightness(sample: Sample) -> np.ndarray:
    """Smoothed intensity of the result in the mask."""
    return ndimage.gaussian_filter(sample.result, 1.0)[sample.mask]


def edges(sample: Sample) -> np.ndarray:
    """Gradient of the result in the mask."""
    return ndimage.gaussian_gradient_magnitude(sample.result, 1.0)[sample.mask]


def fit_linear(samples: Sequence[Sample], weights: Sequence[np.ndarray]) -> np.ndarray:
    """Ridge regression of what is missing on :func:`linear_features`, voxels weighed."""
    gram, cross = np.zeros((1, 1)), np.zeros(1)
    for sample, weight in zip(samples, weights, strict=True):
        features = linear_features(sample).astype(np.float64)
        gram = gram + (features * weight[:, None]).T @ features
        cross = cross + (features * weight[:, None]).T @ sample.missing.astype(np.float64)
    gram += RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram, cross)


def single(samples: Sequence[Sample]) -> Predict:
    """One linear filter for all voxels."""
    filter_ = fit_linear(samples, [np.ones(len(sample.missing)) for sample in samples])
    return lambda sample: linear_features(sample) @ filter_


def mixture(samples: Sequence[Sample], kind: Callable[[Sample], np.ndarray]) -> Predict:
    """Three linear filters, each for a third of the training voxels by `kind`."""
    values = [kind(sample) for sample in samples]
    bounds = np.quantile(np.concatenate(values), np.linspace(0, 1, KINDS + 1)[1:-1])
    filters = [
        fit_linear(samples, [(np.digitize(value, bounds) == k).astype(float) for value in values])
        for k in range(KINDS)
    ]

    def predict(sample: Sample) -> np.ndarray:
        which = np.digitize(kind(sample), bounds)
        every = linear_features(sample) @ np.stack(filters, axis=1)
        return np.take_along_axis(every, which[:, None], axis=1)[:, 0]

    return predict


def boosted(samples: Sequence[Sample], seed: int = 0) -> Predict:
    """Gradient-boosted trees (scikit-learn) on a random part of the voxels."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    rng = np.random.default_rng(seed)
    features, wanted = [], []
    for sample in samples:
        count = len(sample.missing)
        kept = rng.permutation(count)[: MOST_PLACES // len(samples)]
        features.append(tree_features(sample)[kept])
        wanted.append(sample.missing[kept])
    trees = HistGradientBoostingRegressor(
        max_iter=TREES, learning_rate=0.1, early_stopping=True, random_state=seed
    )
    trees.fit(np.concatenate(features), np.concatenate(wanted))
    return lambda sample: np.asarray(trees.predict(tree_features(sample)))


def correctors(samples: Sequence[Sample]) -> dict[str, Predict]:
    """All of them, fitted."""
    return {
        "one linear filter": single(samples),
        "three, by brightness": mixture(samples, brightness),
        "three, by edges": mixture(samples, edges),
        "boosted trees": boosted(samples),
    }


def markdown(rows: Sequence[tuple[str, str, Sequence[float], Sequence[float]]]) -> str:
    """A table of gains in dB: mean over the heads fitted to, and over the others."""
    lines = ["| protocol | corrector | heads fitted to | other heads | lowest, highest |"]
    lines.append("|---|---|---|---|---|")
    for protocol, name, own, other in rows:
        lines.append(
            f"| {protocol} | {name} | {np.mean(own):+.3f} | {np.mean(other):+.3f} "
            f"| {min(other):+.3f}, {max(other):+.3f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Table of what correctors gain over the mean alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--test", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--model", default="moediff", metavar="NAME")
    parser.add_argument("--protocols", nargs="+", default=["x2iso-kspace"], metavar="NAME")
    parser.add_argument("--block", type=int, default=80, metavar="N")
    parser.add_argument("--omp-nthreads", type=int, default=1)
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(options.omp_nthreads)
    mean = SharedMean.of(SuperResolver.from_pretrained(options.model), {}).without("moediff")
    method = mean.method("")
    rows = []
    for protocol in map(parse_protocol, options.protocols):

        def sample(path: Path) -> Sample:
            block = Block(path, side=options.block).load()
            task = make_task(
                block.truth, block.mask, block.zooms, block.affine,
                protocol.ratios(block.axes), protocol.profile,  # noqa: B023
            )  # fmt: skip
            print(f"{path.name}: restored", flush=True)
            return restore(task, method)

        train, test = ([sample(path) for path in paths] for paths in (options.train, options.test))
        for name, predict in correctors(train).items():
            own, other = ([s.gain(predict(s)) for s in part] for part in (train, test))
            rows.append((protocol.name, name, own, other))
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    write_text(markdown(rows), options.output / "leftover.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
