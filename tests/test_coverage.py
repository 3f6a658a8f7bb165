# SPDX-License-Identifier: Apache-2.0
"""The bound of the error: split conformal over heads, its file, and what sidecars say of it."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.evaluation.coverage import bounds, head_scores
from bids_moediff.families.load import load_model
from bids_moediff.inference.error_bound import ErrorBound, conformal_factor, score
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options
from conftest import run_here
from generated import head, untrained_model


def test_the_score_of_a_few_voxels_is_one_of_their_errors() -> None:
    """At least 95 % lie within it: of ten voxels all, of 21 all but one."""
    ones = np.ones(21)
    assert score(np.arange(10.0), ones[:10]) == 9
    assert score(-np.arange(21.0), ones) == 19


def test_the_score_bounds_19_of_20_voxels() -> None:
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 2, 100_000)
    error = deviation * rng.standard_normal(100_000)
    found = score(error, deviation)
    assert found == pytest.approx(1.96, abs=0.03)
    assert np.mean(np.abs(error) <= found * deviation) == pytest.approx(0.95, abs=2e-5)


@pytest.mark.parametrize(("count", "rank"), [(19, 19), (24, 24), (38, 38), (39, 38), (99, 95)])
def test_the_factor_is_the_conformal_quantile(count: int, rank: int) -> None:
    scores = np.random.default_rng(1).permutation(np.arange(1, count + 1)).tolist()
    assert conformal_factor(scores) == rank


def test_the_factor_holds_for_19_of_20_further_heads() -> None:
    rng = np.random.default_rng(2)
    held = [conformal_factor(list(rng.random(24))) >= rng.random() for _ in range(4000)]
    # 24 of 24 of uniform scores: a further one lies below with probability 24 / 25.
    assert np.mean(held) == pytest.approx(0.96, abs=0.01)


def test_too_few_heads_bound_nothing() -> None:
    with pytest.raises(ValueError, match="18 heads"):
        conformal_factor([1.0] * 18)


def test_a_head_counts_with_its_worse_protocol() -> None:
    rows = [
        {"head": f"h{number}", "protocol": key, "map": "map", "samples": 0, "score": value}
        for number in range(24)
        for key, value in (("a", 1 + number / 100), ("b", 2 - number / 100))
    ]
    assert head_scores(rows, "map")["h0"] == 2.0

    class Resolver:
        uncertainty = type("U", (), {"weights": {"model": "m"}})

    found = bounds(rows, Resolver())
    assert found["factors"] == {"map": pytest.approx(2.0, abs=0.001)}
    assert found["heads"] == 24


def test_a_bound_speaks_of_the_map_that_it_was_measured_with() -> None:
    known = {"factors": {"map": 2.5, "samples": 3.0}, "samples": 8, "heads": 24}
    bound = ErrorBound.from_dict(known | {"weights": {"model": "m"}})
    assert bound.record(0, {"model": "m"})["ExpectedErrorBoundFactor"] == 2.5
    assert bound.record(8, {"model": "m"})["ExpectedErrorBoundFactor"] == 3.0
    assert bound.record(4, {"model": "m"}) == {}
    assert bound.record(0, {"model": "other"}) == {}


@pytest.mark.parametrize(
    "wrong", [{"factors": {"map": -1}}, {"factors": {"map": "x"}}, {"factors": []}, {"heads": "?"}]
)
def test_a_file_that_makes_no_sense(wrong: dict[str, object]) -> None:
    known = {"factors": {"map": 2.5}, "samples": 8, "heads": 24, "weights": {}}
    with pytest.raises((ValueError, TypeError, KeyError)):
        ErrorBound.from_dict(known | wrong)


def test_command_and_sidecar(tmp_path: Path) -> None:
    image = head((64, 72, 60), (2.4, 2.4, 2.6))
    nib.save(image, tmp_path / "h_T1w.nii.gz")
    untrained_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "calibration.json").write_text('{"factor": 1.5}')
    model = load_model(tmp_path / "tiny")
    arguments = ["out", "--heads", "h_T1w.nii.gz", "--model", "./tiny", "--precision", "fp32"]
    arguments += ["--protocols", "x2slices-kspace", "--block", "48", "--num-samples", "2"]
    few = run_here(
        "bids_moediff-evaluate", "coverage", *arguments, "--write", "tiny/bounds.json",
        cwd=tmp_path,
    )  # fmt: skip
    assert few.returncode == 2
    assert "1 heads are too few" in few.stderr
    with (tmp_path / "out" / "coverage.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert [row["map"] for row in rows] == ["map", "samples"]

    # A finished row is not measured again, so a score changed by hand stays.
    text = (tmp_path / "out" / "coverage.tsv").read_text()
    (tmp_path / "out" / "coverage.tsv").write_text(text.replace(rows[0]["score"], "77.5"))
    # A head that cannot be read costs itself and the exit code.
    (tmp_path / "broken_T1w.nii.gz").write_bytes(b"broken")
    both = ["out", "--heads", "broken_T1w.nii.gz", *arguments[2:]]
    again = run_here("bids_moediff-evaluate", "coverage", *both, cwd=tmp_path)
    assert again.returncode == 1
    assert "broken_T1w" in again.stderr
    assert "77.50" in again.stdout
    fewer = run_here("bids_moediff-evaluate", "coverage", *arguments[:-1], "1", cwd=tmp_path)
    assert fewer.returncode == 0
    assert "77.50" not in fewer.stdout
    assert "77.5" in (tmp_path / "out" / "coverage.tsv").read_text()

    resolver = SuperResolver(model, *device())
    weights = resolver.uncertainty.weights
    known = {"factors": {"map": 2.5}, "samples": 8, "heads": 24, "weights": weights}
    (tmp_path / "tiny" / "bounds.json").write_text(json.dumps(known))
    told = SuperResolver(load_model(tmp_path / "tiny"), *device())
    options = Options(output_resolution=(1.6, 1.6, 1.6), outputs=("uncertainty",))
    record = told.enhance(small(image), options).record
    assert record["ExpectedErrorBoundFactor"] == 2.5
    assert "95% of brain voxels" in record["ExpectedErrorBound"]
    other = replace(told.model, bounds={**known, "weights": {}})
    record = SuperResolver(other, *device()).enhance(small(image), options).record
    assert "ExpectedErrorBound" not in record


def device():
    import torch

    return torch.device("cpu"), "fp32"


def small(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image.slicer[20:40, 20:40, 20:40]


def test_a_factor_is_rounded_up_and_a_head_has_its_worst_score() -> None:
    """A file that rounds down would bound fewer heads than it says."""
    rows = [
        {"head": f"h{number}", "protocol": key, "map": "map", "samples": 0, "score": value}
        for number in range(24)
        for key, value in (("a", 1.2341), ("b", 1.0))
    ]
    resolver = SimpleNamespace(uncertainty=SimpleNamespace(weights={}))
    factor = bounds(rows, resolver)["factors"]["map"]  # type: ignore[arg-type]
    assert 1.2341 <= factor <= 1.2351
