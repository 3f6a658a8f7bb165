# SPDX-License-Identifier: Apache-2.0
"""The expected error against the true one: known cases, and the command."""

import csv
import json
import subprocess
from argparse import Namespace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.cli.evaluation import each_result, load_heads
from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.evaluation.calibration import COVERAGES, curves, figures
from conftest import run_here
from generated import head, untrained_model


def test_a_true_deviation_is_recognised() -> None:
    """Errors drawn with the deviation they claim, but for a factor of two."""
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 4.0, 200_000)
    error = 2 * deviation * rng.standard_normal(deviation.size)
    found = curves(deviation, error)
    row = figures(deviation, error, found)
    assert row["factor"] == pytest.approx(2, rel=0.02)
    assert row["within_two"] == pytest.approx(0.9545, abs=0.005)
    assert 0.2 < row["gain"] < 0.6
    # Root mean square of a uniform deviation over [0.5, 2.25] against [0.5, 4].
    half = np.sqrt((2.25**3 - 0.5**3) / 1.75 / ((4**3 - 0.5**3) / 3.5))
    assert row["risk_half"] == pytest.approx(half, rel=0.02)
    assert found.risk[-1] == pytest.approx(1)
    assert (np.diff(found.risk) > 0).all()
    assert np.allclose(found.bins[:, 1], 2 * found.bins[:, 0], rtol=0.05)


def test_a_deviation_without_meaning_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    deviation, error = rng.uniform(1, 2, 100_000), rng.standard_normal(100_000)
    found = curves(deviation, error)
    row = figures(deviation, error, found)
    assert abs(row["gain"]) < 0.05
    assert abs(row["correlation"]) < 0.02
    # Half of the errors are at most 0.674 in size: the ideal curve at one half.
    half = COVERAGES.tolist().index(pytest.approx(0.5))
    inner = np.sort(np.abs(error))[:50_000]
    expected = np.sqrt((inner**2).mean() / (error**2).mean())
    assert found.ideal[half] == pytest.approx(expected, rel=1e-3)


def test_the_error_itself_is_the_ideal_deviation() -> None:
    error = np.random.default_rng(2).standard_normal(10_000)
    found = curves(np.abs(error), error)
    assert figures(np.abs(error), error, found)["gain"] == pytest.approx(1)


def test_command(tmp_path: Path) -> None:
    nib.save(head((64, 72, 60), (2.4, 2.4, 2.6)), tmp_path / "h_T1w.nii.gz")
    untrained_model(tmp_path / "tiny")
    (tmp_path / "tiny" / "calibration.json").write_text('{"factor": 1.5}')
    arguments = ["out", "--heads", "h_T1w.nii.gz", "--model", "./tiny", "--precision", "fp32"]
    arguments += ["--protocols", "x2slices-kspace", "--num-samples", "2", "--block", "48"]
    run = run_here(
        "bids_moediff-evaluate", "calibration", *arguments, "--num-steps", "1", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "out" / "calibration.tsv").open(newline="") as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    assert row["samples"] == "2"
    assert 0 < float(row["risk_half"]) <= 1.2
    assert "| h_T1w | x2 slices, k-space |" in (tmp_path / "out" / "calibration.md").read_text()
    assert (tmp_path / "out" / "calibration.png").stat().st_size > 5000
    assert float(row["fitted"]) > 0


def test_the_factor_is_measured_and_then_fits(tmp_path: Path) -> None:
    nib.save(head((64, 72, 60), (2.4, 2.4, 2.6)), tmp_path / "h_T1w.nii.gz")
    untrained_model(tmp_path / "tiny")
    arguments = ["out", "--heads", "h_T1w.nii.gz", "--model", "./tiny", "--precision", "fp32"]
    arguments += ["--protocols", "x2slices-kspace", "--block", "48"]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        return run_here("bids_moediff-evaluate", "calibration", *arguments, *more, cwd=tmp_path)

    unknown = command()
    assert unknown.returncode == 1
    assert "gives no expected error: calibrate it with --write" in unknown.stderr
    assert command("--write", "tiny/calibration.json").returncode == 0
    known = json.loads((tmp_path / "tiny" / "calibration.json").read_text())
    assert known["heads"] == ["h_T1w"]
    assert known["spread"] == [known["factor"]] * 2
    assert command().returncode == 0
    with (tmp_path / "out" / "calibration.tsv").open(newline="") as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    assert float(row["fitted"]) == pytest.approx(1, abs=0.01)


def test_a_head_that_cannot_be_used_is_told_by_the_exit_code(tmp_path: Path, capsys) -> None:
    """The others are evaluated; without any there is no table."""
    nib.save(head((24, 24, 24), (1.0, 1.0, 1.0)), tmp_path / "good.nii.gz")
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")

    def used(*names: str) -> bool:
        heads = [tmp_path / f"{name}.nii.gz" for name in names]
        options = Namespace(heads=heads, other_site=[], data=None, protocols=["x2iso-kspace"])
        return each_result(options, "x", [None], lambda *_: "")

    assert used("good")
    assert not used("good", "bad")
    assert not used("bad", "good")
    assert "x: bad: bad.nii.gz" in capsys.readouterr().err
    with pytest.raises(MoediffError, match="No image could be evaluated"):
        used("bad")


def test_heads_are_named_and_blocks_are_large_enough(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.nii", "b.nii", "t2.nii"):
        (tmp_path / name).touch()

    def heads(*names: str, **more: object) -> list:
        given = {"heads": [Path(name) for name in names], "other_site": [], "data": None}
        return load_heads(Namespace(**given, **more))

    assert [head.path.name for head in heads("a.nii", "b.nii")] == ["a.nii", "b.nii"]
    assert heads("a.nii", block=48)[0].side == 48
    with pytest.raises(UsageError, match="at least 48"):
        heads("a.nii", block=47)
    with pytest.raises(UsageError, match="Name heads"):
        heads()
    (guided,) = heads("a.nii", reference=[Path("t2.nii")], block=64)
    assert guided.reference == Path("t2.nii")
    with pytest.raises(UsageError, match="1 for 2 heads"):
        heads("a.nii", "b.nii", reference=[Path("t2.nii")])
