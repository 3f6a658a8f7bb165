# SPDX-License-Identifier: Apache-2.0
"""Figures of samples against their definitions, written out."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.evaluation import sampling
from bids_moediff.evaluation.sampling import Scene, figures, regions, true_scale
from bids_moediff.evaluation.tissue_classes import CLASSES, Classes, class_volumes
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.imaging.simulation import ONES, Grids
from bids_moediff.inference.uncertainty import Spread
from bids_moediff.options import Options

SHAPE, COUNT = (20, 16, 24), 4


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Three tissues with texture, restored with an error of which a part was measured."""
    random = np.random.default_rng(0)
    waves = ndimage.gaussian_filter(random.normal(size=SHAPE), 2)
    truth = np.digitize(waves, np.quantile(waves, [0.3, 0.7])) * 0.3 + 0.2
    truth = torch.from_numpy(truth + random.normal(0, 0.02, SHAPE)).float()
    image = truth + torch.from_numpy(random.normal(0.01, 0.05, SHAPE)).float()
    mask = torch.ones(SHAPE, dtype=torch.bool)
    mask[:2], mask[:, 14:] = False, False
    acquisition = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box")))
    ratios = (1.0, 2.0, 2.0)
    space = NullSpace(Grids.inside(SHAPE, ONES, ratios).operator(acquisition))
    return Scene(truth, image, mask, space, ratios, Classes.of(truth.numpy(), mask.numpy()))


@pytest.fixture(scope="module")
def errors(scene: Scene) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((COUNT, *SHAPE), generator=generator)
    return 0.02 + 0.05 * noise * (1 + scene.truth)


def test_spread_correlation_and_quality_of_samples(scene: Scene, errors: torch.Tensor) -> None:
    found, inside, error = figures(scene, errors), scene.mask.numpy(), scene.error.numpy()
    drawn = errors.numpy()
    variance, squares = drawn.var(0, ddof=1), error**2
    assert found["v"] == pytest.approx(variance[inside].mean() / squares[inside].mean(), rel=1e-4)
    project = scene.space.project
    lost = torch.stack([project(one) for one in errors]).numpy()
    missing = project(scene.error).numpy()
    expected = lost.var(0, ddof=1)[inside].mean() / (missing**2)[inside].mean()
    assert found["v_missing"] == pytest.approx(expected, rel=1e-4)
    own = (project(scene.image + errors[0]) ** 2)[scene.mask].mean()
    assert found["band"] == pytest.approx(
        float(own / (project(scene.truth) ** 2)[scene.mask].mean()), rel=1e-3
    )
    peak = 20 * math.log10(np.percentile(scene.truth.numpy()[inside], 99.5))
    for name, left in (
        ("image", error),
        ("sample", error - drawn[0]),
        ("mean", error - drawn.mean(0)),
    ):
        expected = peak - 10 * math.log10((left[inside] ** 2).mean())
        assert found[f"psnr_{name}"] == pytest.approx(expected, abs=1e-3)
    assert found["slices_error"] != found["slices_sample"]
    for name, volume in (("error", missing), ("sample", lost[0])):
        pairs = []
        for axis in range(3):
            one, other, both = (
                (np.take(part, range(1, SHAPE[axis]), axis),
                 np.take(part, range(SHAPE[axis] - 1), axis))
                for part in (volume, inside, volume)
            )  # fmt: skip
            where = other[0] & other[1]
            pairs.append(np.corrcoef(one[0][where], both[1][where])[0, 1])
        assert found[f"slices_{name}"] == pytest.approx(np.mean(pairs), abs=1e-4)


def test_scores_over_blocks_of_five_voxels(scene: Scene, errors: torch.Tensor) -> None:
    """Whole blocks alone: the mask leaves one plane of the first, and four rows, out."""
    found, drawn, error = figures(scene, errors), errors.numpy(), scene.error.numpy()
    blocks = [
        tuple(slice(5 * k, 5 * k + 5) for k in (i, j, m))
        for i, j, m in np.ndindex(4, 3, 4)
        if scene.mask.numpy()[5 * i : 5 * i + 5, 5 * j : 5 * j + 5, 5 * m : 5 * m + 5].all()
    ]
    assert len(blocks) == 3 * 2 * 4
    far = [np.linalg.norm(one[b] - error[b]) for b in blocks for one in drawn]
    apart = [
        np.linalg.norm(drawn[i][b] - drawn[j][b])
        for b in blocks
        for i in range(COUNT)
        for j in range(i)
    ]
    assert found["energy"] == pytest.approx(np.mean(far) - np.mean(apart) / 2, rel=1e-4)
    variance = drawn.var(0, ddof=1)
    pairs = [(variance[b].mean(), (error[b] ** 2).mean()) for b in blocks]
    assert found["correlation"] == pytest.approx(np.corrcoef(np.transpose(pairs))[0, 1], abs=1e-4)
    inside = scene.mask.numpy()
    rank = (drawn[:, inside] < error[inside]).sum(0)
    share = np.bincount(rank, minlength=COUNT + 1) / inside.sum()
    assert found["ranks"] == " ".join(f"{(COUNT + 1) * part:.2f}" for part in share)
    assert found["rank_excess"] == pytest.approx(np.abs(share - 0.2).sum() / 2, abs=1e-5)


def test_power_at_the_top_is_a_ratio_of_powers_there_alone(scene: Scene) -> None:
    """Twice the amplitude is four times the power; slow waves of the image change nothing."""
    random = np.random.default_rng(5)
    sample = torch.from_numpy(random.normal(size=SHAPE)).float()
    assert sampling.top_power(2 * sample, sample, scene) == pytest.approx(4, rel=1e-3)
    wide = Scene(
        scene.truth, scene.image, torch.ones(SHAPE, dtype=torch.bool), scene.space, scene.ratios,
        scene.classes,
    )  # fmt: skip
    lines = [np.abs(2 * np.fft.fftfreq(n)) for n in SHAPE]
    lines[2] = 2 * np.fft.rfftfreq(SHAPE[2])
    # Along the two axes that were coarse, above the middle between old and new Nyquist.
    top = (lines[1][None, :, None] > 0.75) | (lines[2][None, None] > 0.75)
    for gain, expected in ((1 + top, 4), (2 - top, 1)):
        spectrum = torch.fft.rfftn(sample) * torch.from_numpy(gain)
        changed = torch.fft.irfftn(spectrum, SHAPE)
        assert sampling.top_power(changed, sample, wide) == pytest.approx(expected, rel=0.02)


def test_regions_are_tissues_and_fifths_by_steepness(scene: Scene) -> None:
    found = {name: place.numpy() for name, place in regions(scene).items()}
    inside, truth = scene.mask.numpy(), scene.truth.numpy()
    labels = scene.classes.label(truth)
    for number, name in enumerate(CLASSES):
        assert np.array_equal(found[name], inside & (labels == number))
    steep = ndimage.gaussian_gradient_magnitude(truth, 1.0)
    rank = np.argsort(np.argsort(steep[inside])) / inside.sum()
    assert found["flat"][inside].mean() == pytest.approx(0.2, abs=0.01)
    assert rank[found["flat"][inside]].max() < 0.21 and rank[found["edges"][inside]].min() > 0.79
    assert not (found["flat"] | found["edges"])[~inside].any()


def test_the_scale_of_the_true_error_draws_errors_of_its_size(scene: Scene) -> None:
    """In each voxel, the unmeasured part and the rest; on the smoothed squares."""
    scale = true_scale(scene)
    kept = 1 - scene.space.diagonal
    for part, share, of in (
        (scene.missing, kept, scale.missing),
        (scene.error - scene.missing, scene.space.diagonal.expand(SHAPE), scale.measured),
    ):
        expected = ndimage.gaussian_filter(part.numpy() ** 2, 1.5) / share.expand(SHAPE).numpy()
        assert of is not None
        np.testing.assert_allclose(of.numpy() ** 2, expected, rtol=1e-3, atol=1e-7)
    exact = Scene(
        scene.truth, scene.truth - scene.missing, scene.mask, scene.space, scene.ratios,
        scene.classes,
    )  # fmt: skip
    assert true_scale(exact).measured is None


def test_classes_are_those_of_k_means() -> None:
    """From the tenth, the middle and the ninetieth percentile, without the brightest hundredth."""
    random = np.random.default_rng(2)
    image = random.choice([1.0, 2.0, 4.0], p=[0.2, 0.5, 0.3], size=(24, 24, 24))
    image = ndimage.gaussian_filter(image, 0.6) + random.normal(0, 0.05, image.shape)
    image[0, :2, :] = 90  # a vessel
    mask = np.ones(image.shape, bool)
    mask[20:] = False
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    values = np.sort(smooth[mask])[: int(0.99 * mask.sum())]
    centres = np.percentile(values, [10, 50, 90])
    for _ in range(30):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        centres = np.array([values[nearest == k].mean() for k in range(3)])
    found = Classes.of(image, mask)
    np.testing.assert_allclose(found.centres, centres, rtol=1e-4)
    labels = np.abs(smooth[..., None] - centres).argmin(-1)
    assert np.array_equal(found.label(image), labels)
    counts = np.bincount(labels[mask], minlength=3)
    np.testing.assert_array_equal(class_volumes(image, mask), counts)


def test_a_spread_is_the_deviation_of_one_sample_from_another() -> None:
    """However far all of them are from zero."""
    samples = 1e3 + torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    spread = Spread()
    spread.add(samples[0])
    assert spread.deviation is None
    for sample in samples[1:]:
        spread.add(sample)
    assert spread.deviation is not None
    torch.testing.assert_close(spread.deviation, samples.std(0), rtol=1e-3, atol=1e-3)


def test_samplers_are_held_against_the_first_at_the_noise_of_the_protocol(monkeypatch) -> None:
    """In percent; noise in percent of the ninetieth percentile of the head."""
    random = np.random.default_rng(0)
    task: Any = SimpleNamespace(
        truth=random.random((6, 6, 6)), mask=random.random((6, 6, 6)) > 0.5, acquisition="a",
        zooms=(1.0, 1.0, 1.0), coarse_image=None,
    )  # fmt: skip
    seen: list[Any] = []

    def restore(image: Any, options: Any, inputs: Any, report: Any) -> Any:
        seen.append(inputs)
        return "made", None, None

    scores = {"by hand": {"energy": 2.0, "crps": 4.0}, "own": {"energy": 1.0, "crps": 5.0}}
    draws = [(name, lambda seed, name=name: torch.tensor(len(name) + seed)) for name in scores]
    monkeypatch.setattr(sampling, "protocol_task", lambda loaded, protocol: task)
    monkeypatch.setattr(sampling, "_scene", lambda made, task: "scene")
    monkeypatch.setattr(sampling, "samplers", lambda *_: iter(draws))
    drawn: list[list[int]] = []

    def figured(scene: Any, errors: torch.Tensor) -> dict[str, float]:
        drawn.append(errors.tolist())
        return dict(scores["by hand" if len(drawn) == 1 else "own"])

    monkeypatch.setattr(sampling, "figures", figured)
    model = SimpleNamespace(name="m")
    resolver: Any = SimpleNamespace(restore=restore, model=model)
    loaded: Any = SimpleNamespace(head=SimpleNamespace(name="h", group="g"))
    protocol: Any = SimpleNamespace(noise=2.0, key="p")
    options = Options(num_samples=3, random_seed=10)
    rows = list(sampling.examine(loaded, protocol, resolver, options))
    assert seen[0].noise == pytest.approx(0.02 * np.percentile(task.truth[task.mask], 90))
    assert drawn == [[17, 18, 19], [13, 14, 15]]
    assert [(row["energy_percent"], row["crps_percent"]) for row in rows] == [(0, 0), (-50, 25)]
    assert [row["sampler"] for row in rows] == ["by hand", "own"]
