# SPDX-License-Identifier: Apache-2.0
"""Figures of the evaluations as whole records, against closed forms and loops."""

import csv
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage, stats

from bids_moediff.errors import ImageError
from bids_moediff.evaluation import calibration, coverage
from bids_moediff.evaluation import hallucination as suite
from bids_moediff.evaluation.against_truth import (
    Pair,
    _ratios,
    align,
    align_to,
    find_results,
    fit_intensities,
    onto_grid,
)
from bids_moediff.evaluation.benchmark import Method, make_task
from bids_moediff.evaluation.truth import Loaded, TruthHead
from bids_moediff.imaging.metrics import bootstrap_interval, intensity_range
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference import expected_error
from bids_moediff.options import Options

# Calibration


def test_every_figure_of_an_expected_error() -> None:
    generator = np.random.default_rng(0)
    deviation = generator.uniform(0.5, 4, 1008)
    error = 1.7 * deviation * generator.standard_normal(1008)
    found = calibration.curves(deviation, error)
    kept = np.maximum(1, np.round(np.arange(1, 21) / 20 * 1008)).astype(int)

    def risk(by: np.ndarray) -> np.ndarray:
        ordered = error[np.argsort(by, kind="stable")]
        whole = np.sqrt((error**2).mean())
        return np.array([np.sqrt((ordered[:n] ** 2).mean()) for n in kept]) / whole

    assert found.risk == pytest.approx(risk(deviation))
    assert found.ideal == pytest.approx(risk(np.abs(error)))
    order = np.argsort(deviation)
    bins = [(deviation[part].mean(), np.sqrt((error[part] ** 2).mean()))
            for part in np.array_split(order, 10)]  # fmt: skip
    assert found.bins == pytest.approx(np.array(bins))
    factor = np.sqrt((error**2).mean() / (deviation**2).mean())
    assert calibration.figures(deviation, error, found) == pytest.approx({
        "rmse": np.sqrt((error**2).mean()),
        "deviation": np.sqrt((deviation**2).mean()),
        "factor": factor,
        "within_two": np.mean(np.abs(error) <= 2 * factor * deviation),
        "correlation": stats.spearmanr(deviation, np.abs(error)).statistic,
        "risk_half": risk(deviation)[9],
        "ideal_half": risk(np.abs(error))[9],
        "gain": np.mean(1 - risk(deviation)) / np.mean(1 - risk(np.abs(error))),
        "fitted": np.sqrt(np.mean((error / deviation) ** 2)),
    })  # fmt: skip


def test_the_extremes_of_an_expected_error() -> None:
    """No error at all, and no expected error: numbers, not infinities."""
    none = calibration.curves(np.ones(30), np.zeros(30))
    assert none.risk.tolist() == [0] * 20
    waves = 1 + 0.1 * np.sin(np.arange(30))
    found = calibration.figures(1e-20 * waves, np.ones(30), calibration.curves(waves, waves))
    assert found["factor"] == pytest.approx(1e12) and found["fitted"] == pytest.approx(1e9)
    # Equal deviations keep the order of the voxels; of four voxels a twentieth is one.
    few = calibration.curves(np.ones(10), np.arange(10.0, 0, -1))
    assert few.risk[0] == few.risk[1] == pytest.approx(10 / np.sqrt(38.5))
    assert few.risk[9] == pytest.approx(np.sqrt(66 / 38.5))


def test_the_content_of_a_calibration_file() -> None:
    rows = [
        {"head": head, "protocol": protocol, "fitted": fitted, "coarseness": ratio}
        for head, protocol, fitted, ratio in (
            ("b", "x2", 1.2, 2.0), ("a", "x2", 1.6, 1.0), ("b", "x3", 2.0, 3.0),
            ("a", "x3", 2.5, 4.0), ("a", "x2.5", 9.0, 2.5),
        )
    ]  # fmt: skip
    resolver: Any = SimpleNamespace(model=SimpleNamespace(sha256="abc"))
    found = calibration.calibrate(rows, resolver)
    assert found.pop("method")
    assert found == {
        "factor": round(np.sqrt((1.2**2 + 1.6**2) / 2), 3), "spread": [1.2, 1.6],
        "coarse": {"factor": round(np.sqrt((2**2 + 2.5**2) / 2), 3), "spread": [2.0, 2.5]},
        "heads": ["a", "b"], "protocols": ["x2", "x3", "x2.5"], "sha256": "abc",
    }  # fmt: skip
    # Coarse scans alone give the only factor.
    found = calibration.calibrate(rows[2:], resolver)
    assert "coarse" not in found and found["spread"] == [2.0, 9.0]
    read = expected_error.Calibration.from_dict(calibration.calibrate(rows, resolver))
    assert read.at((2, 2, 2)) == pytest.approx(1.414, abs=1e-3)


def loaded(shape: tuple[int, int, int], **fields: Any) -> Loaded:
    data = np.random.default_rng(1).uniform(200, 900, shape).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[2:-1, 1:-2, 3:-1] = True
    zooms = (1.0, 1.2, 0.9)
    head = TruthHead(Path("h.nii.gz"), "another site")
    plain = Loaded(head, data, mask, zooms, np.diag([*zooms, 1.0]), (0, 1, 2), "")
    return replace(plain, **fields)


def test_a_row_of_the_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything over the range of the head, in its mask; the options reach the restoration."""
    head = loaded((12, 13, 16))
    protocol = parse_protocol("x2slices-box")
    asked: list[Any] = []

    def restored(resolver: Any, task: Any, options: Options) -> Any:
        asked.append((resolver, options))
        deviation = 5 + 20 * task.truth / 900
        waves = np.sin(np.arange(task.truth.size)).reshape(task.truth.shape)
        image = task.truth + deviation * waves
        return SimpleNamespace(
            image=nib.Nifti1Image(image.astype(np.float32), task.affine),
            standard_deviation=nib.Nifti1Image(deviation.astype(np.float32), task.affine),
        )

    monkeypatch.setattr(calibration, "restored", restored)
    resolver: Any = SimpleNamespace(model=SimpleNamespace(name="m"))
    row, curves = calibration.examine(head, protocol, resolver, num_samples=4, random_seed=3)
    task = calibration.protocol_task(head, protocol)
    options = Options(output_resolution=task.zooms, outputs=("uncertainty",), num_samples=4,
                      random_seed=3)  # fmt: skip
    assert asked == [(resolver, options)]
    scale = intensity_range(task.truth, task.mask)
    waves = np.sin(np.arange(task.truth.size)).reshape(task.truth.shape)
    deviation = (5 + 20 * task.truth / 900) / scale
    error = (deviation * waves)[task.mask]
    wanted = calibration.figures(deviation[task.mask], error,
                                 calibration.curves(deviation[task.mask], error))  # fmt: skip
    names = {"head": "h", "group": "another site", "protocol": protocol.key, "model": "m",
             "samples": 4, "coarseness": 1.0}  # fmt: skip
    assert {key: row.pop(key) for key in names} == names
    assert row == pytest.approx(wanted, rel=1e-3)
    assert curves.risk[9] == pytest.approx(wanted["risk_half"], rel=1e-3)


# Coverage


def resolver_of(**fields: Any) -> Any:
    model = SimpleNamespace(name="m", sha256="0123456789abcdef")
    return SimpleNamespace(model=model, **fields)


def test_finished_rows_are_kept_and_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "coverage.tsv"
    table = coverage.Finished(path, 48)
    options = Options(num_samples=3)
    key = table.key("h", "x2", resolver_of(), options)
    assert key == {
        "head": "h", "protocol": "x2", "model": "m", "weights": "01234567", "block": "48",
        "asked": "3",
    }  # fmt: skip
    assert table.rows(key) == []
    rows = [
        key | {"group": "heads", "map": "map", "samples": 0, "score": 1.23456789, "factor": 2.5,
               "within": 0.5},
        key | {"group": "heads", "map": "samples", "samples": 3, "score": 0.000123456789},
    ]  # fmt: skip
    table.add(rows[:1])
    table.add(rows[1:])
    assert table.rows(key) == rows
    again = coverage.Finished(path, 48)
    found = again.rows(key)
    assert [row["score"] for row in found] == [1.23457, 0.000123457]
    assert found[0]["within"] == 0.5 and "within" not in found[1]
    assert again.rows(again.key("h", "x2", resolver_of(), Options(num_samples=4))) == []
    assert again.rows(coverage.Finished(path, None).key("h", "x2", resolver_of(), options)) == []
    assert coverage.Finished(path, None).block == "whole"
    with path.open(newline="") as stream:
        assert next(csv.reader(stream, delimiter="\t")) == list(coverage.COLUMNS)
    again.add([])
    assert coverage.Finished(path, 48).rows(key) == found


def test_scores_of_a_head_for_each_kind_of_map(monkeypatch: pytest.MonkeyPatch) -> None:
    head, protocol = loaded((12, 13, 16)), parse_protocol("x2slices-box")
    task = coverage.protocol_task(head, protocol)
    truth = torch.from_numpy(task.truth)
    size = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) + 0.5
    waves = torch.sin(torch.arange(truth.numel())).reshape(truth.shape)
    made: Any = SimpleNamespace(posed=SimpleNamespace(scale=40.0), image=truth / 40 - waves * size)
    asked: list[Any] = []

    def restore(image: Any, options: Options, inputs: Any, progress: Any) -> Any:
        progress("any", 0.5)
        asked.append((np.asarray(image.dataobj), options, inputs.acquisition))
        return made, None, None

    bound = SimpleNamespace(factors={"map": 0.8})
    uncertainty = SimpleNamespace(
        bound=bound, expected=lambda _: (40 * size, None, None), scale=lambda _: "scale"
    )
    resolver = resolver_of(restore=restore, uncertainty=uncertainty, restorer="restorer")
    seeds: list[int] = []

    class Drawn:
        def draw(self, seed: int) -> torch.Tensor:
            seeds.append(seed)
            return seed * size

    drawn: list[Any] = []
    monkeypatch.setattr(coverage, "sampler", lambda *args: drawn.append(args) or Drawn())
    options = Options(num_samples=3, random_seed=7)
    rows = list(coverage.examine(head, protocol, resolver, options))
    full = replace(options, output_resolution=task.zooms, outputs=("uncertainty",))
    assert len(asked) == 1 and asked[0][1:] == (full, task.acquisition)
    assert np.array_equal(asked[0][0], task.measured.numpy())
    assert seeds == [7, 8, 9] and drawn == [("restorer", made, "scale", full)]
    error = (waves * size).numpy()[task.mask]
    own = size.numpy()[task.mask]
    common = {"head": "h", "group": "another site", "protocol": protocol.key, "model": "m"}
    ratio = np.abs(error) / own
    assert rows[0] == common | {
        "map": "map", "samples": 0, "factor": 0.8,
        "score": pytest.approx(np.quantile(ratio, 0.95, method="higher"), rel=1e-4),
        "within": pytest.approx(np.mean(ratio <= 0.8), abs=1e-3),
    }  # fmt: skip
    assert rows[1] == common | {
        "map": "samples",
        "samples": 3,
        "score": pytest.approx(rows[0]["score"], rel=1e-3),
    }  # of 7, 8 and 9 times it the deviation is one
    seeds.clear()
    rows = list(coverage.examine(head, protocol, resolver, Options()))
    assert [row["map"] for row in rows] == ["map"] and not seeds
    uncertainty.expected = lambda _: (None, None, None)
    with pytest.raises(ValueError, match="no expected error"):
        list(coverage.examine(head, protocol, resolver, options))


def test_the_content_of_a_bounds_file() -> None:
    rows = [
        {"head": f"h{n}", "protocol": key, "map": kind, "samples": samples, "score": value}
        for n in range(24)
        for key, kind, samples, value in (
            ("b", "map", 0, 1.0004 + n / 100), ("a", "map", 0, 0.5),
            ("b", "samples", 6, 2 + n / 50),
        )
    ]  # fmt: skip
    resolver: Any = SimpleNamespace(uncertainty=SimpleNamespace(weights={"model": "w"}))
    assert coverage.bounds(rows, resolver) == {
        "factors": {"map": 1.231, "samples": 2.461}, "samples": 6, "heads": 24,
        "voxels_share": 0.95, "heads_share": 0.95, "protocols": ["b", "a"],
        "weights": {"model": "w"},
    }  # fmt: skip
    known = {"factor": 1.1, "within": 0.957}
    page = coverage.markdown(
        [
            row | {"model": "m"} | (known if row["map"] == "map" else {})
            for row in rows
            if row["map"] == "map" or row["head"] == "h0"
        ]
    ).splitlines()
    # Heads of which every protocol lies within the factor: 0 to 9 of 24.
    assert page[0] == "m, map: factor 1.1 holds for 10 of 24 heads (scores 1.00 to 1.23)."
    assert page[2] == "m, samples: scores 2.00 to 2.00; the model has no factor yet."
    assert page[6] == "| h0 | b | m | map | 1.00 | 95.7% |"
    assert page[8] == "| h0 | b | m | samples | 2.00 | - |" and len(page) == 6 + 49


# Lesions


def test_the_profile_of_a_lesion() -> None:
    distance = np.array([0.0, 1.49, 1.5, 1.75, 2.0, 2.25, 2.5, 2.51, 9.0])
    wanted = [1, 1, 1, 0.5 + np.sqrt(0.125), 0.5, 0.5 - np.sqrt(0.125), 0, 0, 0]
    assert suite.lesion_profile(distance, 4.0) == pytest.approx(wanted, abs=1e-9)


def test_lesions_are_added_in_place_also_at_the_border() -> None:
    """Voxel by voxel, with uneven voxels; two that overlap add up."""
    truth = np.random.default_rng(0).random((14, 9, 11))
    zooms = (0.7, 1.3, 0.9)
    lesions = [
        suite.Lesion((1, 4, 9), 4.0, 0.3), suite.Lesion((4, 4, 8), 3.0, -0.2),
        suite.Lesion((13, 8, 0), 2.0, 0.5),
    ]  # fmt: skip
    before = truth.copy()
    found = suite.add_lesions(truth, zooms, lesions, 50.0)
    assert np.array_equal(truth, before) and found.dtype == np.float32
    for place in np.ndindex(truth.shape):
        value = truth[place]
        for lesion in lesions:
            away = np.linalg.norm((np.array(place) - lesion.centre) * zooms)
            position = np.clip(away - lesion.diameter / 2 + 0.5, 0, 1)
            value += 50 * lesion.contrast * 0.5 * (1 + np.cos(np.pi * position))
        assert found[place] == pytest.approx(value, abs=1e-5)


def test_places_of_lesions_are_deep_bright_uniform_and_apart() -> None:
    shape, zooms = (60, 50, 66), (1.0, 1.3, 0.9)
    generator = np.random.default_rng(0)
    truth = 800 + 20 * ndimage.gaussian_filter(generator.standard_normal(shape), 1)
    truth[30:] += 200 * ndimage.gaussian_filter(generator.standard_normal((30, 50, 66)), 1)
    truth[:, 25:28] = 100  # too dark for a lesion of -0.3 of the range
    mask = np.ones(shape, bool)
    mask[:4] = mask[:, :3] = mask[:, :, :5] = False
    mask[-3:] = mask[:, -2:] = mask[:, :, -4:] = False
    head = replace(loaded((8, 8, 8)), truth=truth.astype(np.float32), mask=mask, zooms=zooms)
    lesions = suite.place_lesions(head, (2.0, 3.0), (0.3, -0.3), repeats=1, seed=5)
    assert [(x.diameter, x.contrast) for x in lesions] == [
        (2.0, 0.3), (2.0, -0.3), (3.0, 0.3), (3.0, -0.3)
    ]  # fmt: skip
    depth = ndimage.distance_transform_edt(mask, sampling=zooms)
    smooth = ndimage.gaussian_filter(head.truth, [1.5 / z for z in zooms])
    slope = ndimage.gaussian_gradient_magnitude(head.truth, [1.5 / z for z in zooms])
    able = (depth >= 15) & (smooth > 0.35 * intensity_range(head.truth, mask))
    able &= slope <= np.median(slope[able])
    places = np.argwhere(able)
    wanted: list[np.ndarray] = []
    for k in np.random.default_rng(5).permutation(len(places)):
        away = [np.linalg.norm((places[k] - other) * zooms) for other in wanted]
        if len(wanted) < 4 and all(distance >= 16 for distance in away):
            wanted.append(places[k])
    assert [lesion.centre for lesion in lesions] == [tuple(at) for at in wanted]
    thin = mask.copy()
    thin[15:] = False
    with pytest.raises(ImageError, match="no tissue deep enough"):
        suite.place_lesions(replace(head, mask=thin), (2.0,), (0.3,))


def test_what_is_seen_away_from_lesions() -> None:
    generator = np.random.default_rng(0)
    difference = generator.normal(0, 0.2, (20, 18, 16))
    scanned = np.zeros_like(difference)
    far = np.ones(difference.shape, bool)
    far[:, :, :3] = False
    difference[5, 5, 5:8] = -3.0  # one region
    difference[12, 3, 4] = 4.0  # another, of which the scan shows all but half
    scanned[12, 3, 4] = 3.5
    difference[4, 4, 1] = 50.0  # near a lesion
    found = suite._outside(difference, scanned, far, 2.0)
    values = np.abs(difference[:, :, 3:]) / 2
    assert found == pytest.approx({
        "outside_rms": np.sqrt((values**2).mean()),
        "outside_p999": np.percentile(values, 99.9), "outside_max": 2.0,
        "false_positives": 2, "invented": 1,
    })  # fmt: skip
    nowhere = suite._outside(difference, scanned, np.zeros(far.shape, bool), 2.0)
    assert nowhere == dict.fromkeys(found)


def test_energy_and_correlation_of_what_was_not_measured() -> None:
    """Slices of two voxels: the unmeasured part is the deviation from the pair's mean."""
    generator = np.random.default_rng(0)
    truth = generator.random((10, 9, 12)).astype(np.float32)
    mask = generator.random(truth.shape) > 0.3
    task = make_task(truth, mask, (1.0, 1.1, 0.9), np.diag([1.0, 1.1, 0.9, 1]), (1, 1, 2), "box")
    image = 0.5 * truth + generator.random(truth.shape).astype(np.float32)

    def unmeasured(data: np.ndarray) -> np.ndarray:
        pairs = data.reshape(10, 9, 6, 2)
        return (pairs - pairs.mean(-1, keepdims=True)).reshape(truth.shape)[mask].astype(float)

    own, true = unmeasured(image), unmeasured(truth)
    assert suite._null_space(task, image) == pytest.approx({
        "null_energy": (own**2).sum() / (true**2).sum(),
        "null_correlation": (own * true).sum() / np.sqrt((own**2).sum() * (true**2).sum()),
    }, rel=1e-4)  # fmt: skip


def test_the_mirrored_head_is_restored_mirrored() -> None:
    """Left and right lie on the second voxel axis here; the reference is mirrored with it."""
    generator = np.random.default_rng(0)
    truth = generator.random((8, 10, 12)).astype(np.float32)
    mask = generator.random(truth.shape) > 0.3
    affine = np.diag([1.0, 1.1, 0.9, 1])[[1, 0, 2, 3]]
    task = make_task(truth, mask, (1.0, 1.1, 0.9), affine, (1, 2, 1), "box")
    task = replace(task, reference=generator.random(truth.shape).astype(np.float32))
    ramp = np.arange(10, dtype=np.float32)[None, :, None]
    asked = []

    def restore(given: Any) -> np.ndarray:
        asked.append(given)
        return np.repeat(given.measured.numpy(), 2, axis=1) + given.reference + given.mask + ramp

    plain = restore(task)
    found = suite._mirror(task, plain, Method("m", "", restore), 0.5)
    mirrored = asked[1]
    for name in ("truth", "mask", "reference"):
        assert np.array_equal(getattr(mirrored, name), getattr(task, name)[:, ::-1]), name
    assert np.array_equal(mirrored.measured.numpy(), task.measured.numpy()[:, ::-1])
    away = np.broadcast_to(ramp[:, ::-1] - ramp, truth.shape)[mask]
    assert found == pytest.approx(np.sqrt((away**2).mean()) / 0.5, rel=1e-4)
    # Coarse voxels that do not fill the grid cannot be mirrored; other axes do not matter.
    over = replace(task, coarse_zooms=(1.0, 2.3, 0.9))
    assert suite._mirror(over, plain, Method("m", "", restore), 0.5) is None
    beside = replace(task, coarse_zooms=(1.0, 2.2, 1.0))
    assert suite._mirror(beside, plain, Method("m", "", restore), 0.5) == pytest.approx(found)


def test_every_class_of_lesions() -> None:
    keys = [
        ("h", "p", 3.0, 0.3, 1, 2, 3), ("h", "p", 3.0, -0.2, 1, 2, 3),
        ("g", "p", 2.0, 0.3, 4, 2, 3),
    ]  # fmt: skip
    names = ("head", "protocol", "diameter_mm", "contrast", "x", "y", "z")

    def rows(method: str, where: str, shares: list[float]) -> list[dict[str, Any]]:
        return [
            dict(zip(names, key, strict=True)) | {"method": method, "version": "v",
                                                  "lesions_in": where, "recovered": share}
            for key, share in zip(keys, shares, strict=True)
        ]  # fmt: skip

    lesions = rows("net", "image", [0.9, 0.7, 0.5]) + rows("net", "reference", [0.1, -0.4, 0.2])
    lesions += rows("back-projection", "image", [0.6, 0.5, 0.3])
    found = suite.size_classes(suite.Tables(lesions, []))
    low, high = bootstrap_interval([0.3, 0.2])
    assert [(row["diameter_mm"], row["method"], row["lesions_in"]) for row in found] == [
        (2.0, "net", "image"), (2.0, "net", "reference"), (2.0, "back-projection", "image"),
        (3.0, "net", "image"), (3.0, "net", "reference"), (3.0, "back-projection", "image"),
    ]  # fmt: skip
    assert found[3] == pytest.approx({
        "protocol": "p", "diameter_mm": 3.0, "method": "net", "version": "v",
        "lesions_in": "image", "lesions": 2, "recovered": 0.8, "worst": 0.7,
        "over_back_projection": 0.25, "over_back_projection_low": low,
        "over_back_projection_high": high,
    })  # fmt: skip
    assert found[4]["worst"] == -0.4 and found[4]["recovered"] == pytest.approx(-0.15)


# Against the truth


def lattice(shape: tuple[int, int, int], first: list[float]) -> nib.Nifti1Image:
    data = np.random.default_rng(sum(shape)).random(shape).astype(np.float32)
    return nib.Nifti1Image(data, nib.affines.from_matvec(np.diag([1.1, 0.8, 1.4]), first))


@pytest.mark.parametrize("shift", list(product((-2, 3), (1, -4), (2, -3))))
def test_a_result_on_the_same_lattice_is_copied(shift: tuple[int, int, int]) -> None:
    source, target = lattice((8, 9, 7), [3.0, -2.0, 5.0]), lattice((9, 7, 8), [0.0, 0.0, 0.0])
    place = source.affine @ [*shift, 1]
    where = nib.affines.from_matvec(source.affine[:3, :3], place[:3])
    target = nib.Nifti1Image(target.dataobj, where)
    image, covered, grid = onto_grid(source, target)
    data = np.asarray(source.dataobj)
    assert grid == "same"
    for at in np.ndindex(target.shape):
        other = np.array(at) + shift
        inside = bool(((other >= 0) & (other < source.shape)).all())
        assert covered[at] == inside
        assert image[at] == (data[tuple(other)] if inside else 0)


def test_a_result_beside_the_truth_covers_nothing() -> None:
    source = lattice((8, 9, 7), [0, 0, 0])
    for axis in range(3):
        place = source.affine.copy()
        place[axis, 3] += source.shape[axis] * place[axis, axis]
        image, covered, grid = onto_grid(source, nib.Nifti1Image(source.dataobj, place))
        assert grid == "same" and not covered.any() and not image.any()
        place[axis, 3] -= place[axis, axis]
        assert (
            onto_grid(source, nib.Nifti1Image(source.dataobj, place))[1].sum()
            == np.prod(source.shape) / source.shape[axis]
        )


@pytest.mark.parametrize(("off", "grid"), [(0.009, "same"), (0.011, "spline")])
def test_up_to_a_hundredth_of_a_voxel_a_lattice_is_the_same(off: float, grid: str) -> None:
    source = lattice((8, 9, 7), [0, 0, 0])
    for axis in range(3):
        place = source.affine.copy()
        place[axis, 3] += off * place[axis, axis]
        assert onto_grid(source, nib.Nifti1Image(source.dataobj, place))[2] == grid
        # The far corner counts, not the first voxel alone.
        size = source.affine.copy()
        size[axis, axis] *= 1 + off / (source.shape[axis] - 1)
        assert onto_grid(source, nib.Nifti1Image(source.dataobj, size))[2] == grid


def test_any_other_grid_is_splined() -> None:
    source = lattice((14, 15, 13), [-7.0, -6.0, -9.0])
    turn = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([0.9, 1.2, 1.0]), [-5, -5, -6]
    )
    target = nib.Nifti1Image(np.zeros((11, 9, 12), np.float32), turn)
    image, covered, grid = onto_grid(source, target)
    wanted = resample_from_to(source, target, order=3, mode="nearest")
    assert grid == "spline" and np.array_equal(image, np.asarray(wanted.dataobj, np.float32))
    matrix = np.linalg.inv(source.affine) @ turn
    for at in np.ndindex(target.shape):
        place = (matrix @ [*at, 1])[:3]
        assert covered[at] == ((place >= -0.5) & (place <= np.array(source.shape) - 0.5)).all()
    pair = Pair(image, np.zeros(target.shape, np.float32), covered, turn, grid)
    assert np.array_equal(align_to(source, pair), image)


def test_scale_and_offset_are_those_of_least_squares_in_the_mask() -> None:
    generator = np.random.default_rng(0)
    truth, noise = generator.random((2, 9, 8, 7)).astype(np.float32)
    mask = generator.random(truth.shape) > 0.4
    image = np.where(mask, (truth - 3) / 7 + 0.05 * noise, 900).astype(np.float32)
    found, scale, offset = fit_intensities(Pair(image, truth, mask, np.eye(4), "same"))
    wanted = np.polyfit(image[mask].astype(float), truth[mask].astype(float), 1)
    assert (scale, offset) == pytest.approx(wanted, rel=1e-4)
    assert found == pytest.approx(image * scale + offset, rel=1e-4)
    assert found.dtype == np.float32


def test_ratios_are_at_least_one_and_ones_if_unknown() -> None:
    assert _ratios([1.0, 3.0, 0.5], (0.5, 1.0, 1.0)) == (2.0, 3.0, 1.0)
    assert _ratios(None, (1, 1, 1)) == _ratios([1.0, 2.0], (1, 1, 1)) == (1.0, 1.0, 1.0)


def test_a_thousand_voxels_are_needed() -> None:
    def pair(side: int) -> Any:
        data = np.zeros((30, 30, 30), np.float32)
        data[5:25, 5:25, 5:25] = 100
        truth = nib.Nifti1Image(data, np.diag([4.0, 4.0, 4.0, 1]))
        return align(truth.slicer[:, :, :side], truth)

    whole = pair(30)
    assert whole.mask.sum() > 5000 and np.array_equal(whole.image, whole.truth)
    assert pair(12).mask.sum() < whole.mask.sum()
    with pytest.raises(ImageError, match="1000"):
        pair(7)


def test_results_of_the_wanted_participants_are_found(tmp_path: Path) -> None:
    names = {
        "sub-02/anat/sub-02_acq-x_desc-sr_T1w.nii.gz": {"sub": "02", "acq": "x"},
        "sub-01/ses-a/anat/sub-01_ses-a_res-1_desc-sr_T2w.nii": {"sub": "01", "ses": "a"},
    }
    others = [
        "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/func/sub-01_desc-sr_T1w.nii.gz",
        "sub-01/anat/sub-01_desc-sr_T1w.nii.gz.part", "sub-01/anat/sub-01_desc-sr__T1w.nii.gz",
    ]  # fmt: skip
    for name in [*names, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_results(tmp_path)
    assert [item.relative for item in found] == sorted(names)
    for item in found:
        assert dict(item.entities) == names[item.relative]
        assert item.path == tmp_path / item.relative and item.sidecar == {}
    assert [item.suffix for item in found] == ["T2w", "T1w"]
    assert [item.relative for item in find_results(tmp_path, ["02"])] == sorted(names)[1:]
    beside = found[0].path.with_name("sub-01_ses-a_res-1_desc-sr_T2w.json")
    for text, content in (('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {})):
        beside.write_text(text)
        assert found[0].sidecar == content
