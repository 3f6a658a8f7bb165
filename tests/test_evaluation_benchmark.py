# SPDX-License-Identifier: Apache-2.0
"""The benchmark command on generated heads: numbers, resuming, groups, axes and mistakes."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, signal

from bids_moediff.errors import UsageError
from bids_moediff.evaluation import truth
from bids_moediff.evaluation.benchmark import protocol_task
from bids_moediff.evaluation.gates import select_protocols
from bids_moediff.evaluation.summary import summarise
from bids_moediff.evaluation.truth import (
    RIM,
    Block,
    TruthHead,
    heads_of_files,
    heads_of_manifest,
    trusted_axes,
)
from bids_moediff.imaging.acquisition import Axis
from bids_moediff.imaging.interpolation import bicubic
from bids_moediff.imaging.metrics import bootstrap_interval
from bids_moediff.imaging.protocols import parse_protocol
from conftest import run_here, run_script
from generated import head, untrained_model
from golden import check_numbers, read_table

PROGRAM = "bids_moediff-evaluate"
SHAPE = (36, 40, 32)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("heads")
    paths = [folder / f"h{seed}_T1w.nii.gz" for seed in range(2)]
    for seed, path in enumerate(paths):
        nib.save(head(SHAPE, (4.5, 4.5, 5.0), seed), path)
    return paths


@pytest.fixture(scope="module")
def benchmark(heads: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the command with a model, all figures and two protocols."""
    base = tmp_path_factory.mktemp("benchmark")
    model = untrained_model(base / "tiny")
    arguments = ["benchmark", base / "out", "--heads", heads[0], "--other-site", heads[1]]
    arguments += ["--protocols", "x2slices-box", "x2iso-kspace", "--all-axes", "--full"]
    run = run_script(PROGRAM, *arguments, "--model", model, "--precision", "fp32", cwd=base)
    assert run.returncode == 0, run.stderr
    assert "| x2 slices, box |" in run.stdout
    return base


def test_rows_and_groups(benchmark: Path) -> None:
    rows = read(benchmark / "out" / "rows.tsv")
    assert len(rows) == 2 * 2 * 5
    assert {(row["head"], row["group"]) for row in rows} == {
        ("h0_T1w", "heads"),
        ("h1_T1w", "another site"),
    }
    assert {row["ratios"] for row in rows} == {"1x1x2", "2x2x2"}
    assert all(row["ssim"] != "n/a" for row in rows)
    assert (benchmark / "out" / "figures" / "x2iso-kspace.png").stat().st_size > 5000
    found = read_table(benchmark / "out" / "rows.tsv", without=("image", "seconds"))
    told = [{k: v for k, v in entry.items() if k != "version"} for entry in summarise(found)]
    check_numbers("evaluations.json", "summary", told, rel=2e-3, abs=2e-3)
    for one in found:
        one.pop("version")
    check_numbers("evaluations.json", "benchmark", found, rel=2e-3, abs=2e-4)


def test_cubic_after_box_slices_equals_scipy(benchmark: Path, heads: list[Path]) -> None:
    """Mean of pairs of slices, then scipy's cubic spline, in numpy alone."""
    truth = nib.load(heads[0]).get_fdata()
    measured = truth.reshape(*SHAPE[:2], SHAPE[2] // 2, 2).mean(axis=-1)
    place = (np.arange(SHAPE[2]) + 0.5) / 2 - 0.5
    grid = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), place, indexing="ij")
    cubic = ndimage.map_coordinates(measured, grid, order=3, mode="mirror")
    from bids_moediff.imaging.masks import head_mask_array

    mask = head_mask_array(truth, (4.5, 4.5, 5.0))
    peak = np.percentile(truth[mask], 99.5)
    expected = 10 * np.log10(peak**2 / ((cubic - truth)[mask] ** 2).mean())
    row = next(
        row
        for row in read(benchmark / "out" / "rows.tsv")
        if (row["head"], row["protocol"], row["method"]) == ("h0_T1w", "x2slices-box", "cubic")
    )
    assert float(row["psnr"]) == pytest.approx(expected, abs=0.02)


def test_finished_rows_are_kept_and_missing_ones_added(benchmark: Path, heads: list[Path]) -> None:
    table = benchmark / "out" / "rows.tsv"
    before = table.read_text()
    lines = before.splitlines()
    cubic = next(n for n, line in enumerate(lines) if "\tcubic\t" in line)
    linear = next(n for n, line in enumerate(lines) if "\tlinear\t" in line)
    # A figure nobody would compute shows that the row is not computed again.
    changed = lines[linear].split("\t")
    changed[lines[0].split("\t").index("psnr")] = "12.5"
    kept = [*lines[:linear], "\t".join(changed), *lines[linear + 1 : cubic], *lines[cubic + 1 :]]
    table.write_text("\n".join(kept) + "\n")
    arguments = ["benchmark", benchmark / "out", "--heads", heads[0], "--other-site", heads[1]]
    arguments += ["--protocols", "x2slices-box", "x2iso-kspace", "--all-axes", "--full"]
    arguments += ["--model", benchmark / "tiny", "--precision", "fp32"]
    run = run_here(PROGRAM, *arguments, cwd=benchmark)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(" dB ") == 1  # the one that was missing
    after = read(table)
    assert len(after) == 20
    assert next(row for row in after if row["method"] == "linear")["psnr"] == "12.5"
    table.write_text(before)


def test_summary_is_the_mean_gain_with_its_interval(benchmark: Path) -> None:
    rows = read(benchmark / "out" / "rows.tsv")
    psnr = {
        (row["head"], row["method"]): float(row["psnr"])
        for row in rows
        if row["protocol"] == "x2iso-kspace"
    }
    gain = [psnr[h, "tiny"] - psnr[h, "cubic"] for h in ("h0_T1w", "h1_T1w")]
    entry = next(
        row
        for row in read(benchmark / "out" / "summary.tsv")
        if (row["protocol"], row["group"], row["method"]) == ("x2iso-kspace", "all heads", "tiny")
    )
    assert float(entry["over_cubic"]) == pytest.approx(np.mean(gain), abs=1e-3)
    low, high = bootstrap_interval(gain)
    assert float(entry["over_cubic_low"]) == pytest.approx(low, abs=1e-3)
    assert float(entry["over_cubic_high"]) == pytest.approx(high, abs=1e-3)
    assert float(entry["worst_residual"]) < 1e-3


def row(head_name: str, group: str, method: str, psnr: float) -> dict[str, object]:
    return {
        "head": head_name,
        "group": group,
        "image": "0",
        "protocol": "x2iso-kspace",
        "ratios": "2x2x2",
        "method": method,
        "version": "1",
        "psnr": psnr,
        "residual": 0.0,
    }


@pytest.mark.parametrize(
    ("group", "gain", "worst", "gate"),
    [
        ("training sites", 2.3, 1.3, "passed"),
        ("training sites", 2.1, 1.3, "missed"),
        ("another site", 1.8, 1.0, "passed"),
        ("training sites", 4.0, -0.1, "missed"),
    ],
)
def test_gate(group: str, gain: float, worst: float, gate: str) -> None:
    rows = []
    for name, back in (("a", gain - worst), ("b", 0.2)):
        rows += [row(name, group, "cubic", 30.0), row(name, group, "back-projection", 30 + back)]
        rows += [row(name, group, "moediff", 30.0 + gain)]
    entry = next(e for e in summarise(rows) if e["method"] == "moediff")
    assert entry["gate"] == gate
    assert entry["worst_head"] == "a"


@pytest.mark.parametrize(
    ("flicker", "gate"), [(1.04, "passed"), (1.06, "missed"), (None, "passed")]
)
def test_a_head_that_flickers_misses_the_gate(flicker: float | None, gate: str) -> None:
    kept = [
        row("a", "heads", name, psnr) for name, psnr in (("cubic", 30), ("back-projection", 31))
    ]
    own = [row("a", "heads", "moediff", 33.0) | {"flicker": flicker}]
    entry = next(e for e in summarise([*kept, *own]) if e["method"] == "moediff")
    assert (entry["gate"], entry["worst_flicker"]) == (gate, flicker)


@pytest.mark.parametrize(
    ("group", "gate"), [("another site", "passed"), ("training sites", "missed")]
)
def test_heads_of_another_site_reach_four_fifths_of_both_gains(group: str, gate: str) -> None:
    """2.2 and 1.2 dB are wanted; 1.8 and 1.0 are four fifths."""
    kept = [row("a", group, name, psnr) for name, psnr in (("cubic", 30), ("back-projection", 31))]
    for gain, wanted in ((2.0, gate), (1.7, "missed")):
        rows = [*kept, row("a", group, "moediff", 30 + gain)]
        entry = next(e for e in summarise(rows) if e["method"] == "moediff")
        assert entry["gate"] == wanted


def test_the_worst_head_decides_on_flicker() -> None:
    rows = [
        row(head_name, "heads", method, psnr) | {"flicker": flicker}
        for head_name, flicker in (("a", 1.0), ("b", 1.09))
        for method, psnr in (("cubic", 30), ("back-projection", 31), ("moediff", 33))
    ]
    entry = next(e for e in summarise(rows) if e["method"] == "moediff")
    assert (entry["gate"], entry["worst_flicker"]) == ("missed", 1.09)


def test_sites_come_from_the_manifest(tmp_path: Path) -> None:
    table = (
        "file\tsplit\tsource_repo\na.nii.gz\ttrain\tx/y\nb.nii.gz\tval\tx/y\nc.nii.gz\tval\tz/z\n"
    )
    (tmp_path / "manifest.tsv").write_text(table)
    found = {head.name: head.group for head in heads_of_manifest(tmp_path, "val")}
    assert found == {"b": "training sites", "c": "another site"}
    with pytest.raises(UsageError, match="it has: train, val"):
        heads_of_manifest(tmp_path, "test")


def test_slices_and_interpolated_axes_hold_no_truth() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(100, 10, (80, 80, 40)).astype(np.float32)
    mask = np.ones(noise.shape, bool)
    assert trusted_axes(noise, (0.5, 0.5, 0.5), mask) == ((0, 1, 2), "")
    axes, note = trusted_axes(noise, (0.5, 0.5, 2.5), mask)
    assert axes == (0, 1)
    assert "axis 2 has slices of 2.5 mm" in note
    doubled = signal.resample(noise[:, :40], 80, axis=1) + random.normal(0, 0.1, noise.shape)
    axes, note = trusted_axes(doubled.astype(np.float32), (1.0, 1.0, 1.0), mask)
    assert axes == (0, 2)
    assert "axis 1 was interpolated from about 2 mm to 1 mm" in note
    fine = trusted_axes(doubled.astype(np.float32), (0.5, 0.5, 0.96), mask)[1]
    assert "axis 1 was interpolated from about 0.98 mm to 0.5 mm and axis 2 has slices" in fine
    protocol = parse_protocol("x4slices-gaussian")
    assert protocol.ratios(axes) == (1, 1, 4)
    assert protocol.ratios((0, 1)) == (1, 4, 1)
    assert parse_protocol("x1.5iso-box").ratios((0, 1)) == (1.5, 1.5, 1)
    assert protocol.plain
    thin = parse_protocol("x4slices-box0.5+noise2+told-gaussian1")
    assert (thin.axis, thin.told) == (Axis("box", 0.5), Axis("gaussian", 1.0))
    assert thin.noise == 2 and not thin.plain
    assert parse_protocol("x2iso-kspace-halfhann+untold").filter == "half-hann"
    low = parse_protocol("lowfield")
    assert low.ratios((0, 1, 2)) == (1.5, 1.5, 5) and low.ratios((0, 2)) == (1.5, 1, 5)
    profiles = [axis.profile for axis in low.acquisition((0, 1, 2)).axes]
    assert profiles == ["kspace", "kspace", "gaussian"]
    for wrong in (
        "x2iso-kspace-boxcar",
        "x4slices-box0",
        "x2iso-kspace+nois4",
        "x2iso-box+told-x",
        "x2iso-box+plane1.5",
        "x4slices-box+plane0.5",
        "x2inplane-kspace",
        "x2inplane-bicubic+noise2",
        "x1inplane-bicubic",
    ):
        with pytest.raises(UsageError, match="is not a protocol"):
            parse_protocol(wrong)


def test_a_block_is_the_middle_of_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a cut nothing is judged, at a face of the image everything is."""
    sizes = []
    monkeypatch.setattr(
        truth, "trusted_axes", lambda data, zooms, mask: (sizes.append(zooms) or (0, 2), "a note")
    )
    path = tmp_path / "a.nii.gz"
    nib.save(head((44, 52, 40), (3.6, 3.6, 4.2)), path)
    whole, block = TruthHead(path), Block(path, "another site", side=40)
    all_of_it, cut = whole.load(), block.load()
    middle = [
        round(float(np.flatnonzero(all_of_it.mask.any(others)).mean()))
        for others in ((1, 2), (0, 2), (0, 1))
    ]
    begin = [min(max(0, m - 20), n - 40) for m, n in zip(middle, (44, 52, 40), strict=True)]
    assert min(begin[:2]) > 0 and begin[2] == 0
    box = tuple(slice(b, b + 40) for b in begin)
    np.testing.assert_array_equal(cut.truth, all_of_it.truth[box])
    judged = all_of_it.mask[box].copy()
    for axis in (0, 1):
        for rim in (slice(0, RIM), slice(40 - RIM, 40)):
            judged[(slice(None),) * axis + (rim,)] = False
    np.testing.assert_array_equal(cut.mask, judged)
    np.testing.assert_allclose(cut.affine @ [0, 0, 0, 1], all_of_it.affine @ [*begin, 1])
    np.testing.assert_array_equal(cut.affine[:3, :3], all_of_it.affine[:3, :3])
    assert (cut.zooms, cut.axes, cut.reference) == (all_of_it.zooms, all_of_it.axes, None)
    assert block.digest == f"{whole.digest}-40" and cut.head.group == "another site"
    assert sizes[0] == pytest.approx((3.6, 3.6, 4.2)) and (cut.axes, cut.note) == (
        (0, 2),
        "a note",
    )
    edge = Block(path, side=44)  # the first axis is as wide as its block
    assert edge.load().mask[0:RIM].any() == all_of_it.mask[0:RIM].any()
    found = heads_of_files([path], [tmp_path / "b.nii.gz"][:0])
    assert [one.group for one in found] == ["heads"]
    nib.save(head((44, 52, 40), (3.6, 3.6, 4.2)), tmp_path / "b.nii.gz")
    groups = [one.group for one in heads_of_files([path], [tmp_path / "b.nii.gz"])]
    assert groups == ["heads", "another site"]


def loaded_head(truth: np.ndarray) -> Any:
    """A head of 1 mm that fills its image."""
    return SimpleNamespace(
        truth=truth,
        mask=np.ones(truth.shape, dtype=bool),
        zooms=(1.0,) * 3,
        affine=np.eye(4),
        axes=(0, 1, 2),
        reference=None,
    )


def test_a_scan_of_a_protocol_and_what_is_told_of_it() -> None:
    """Thin noisy slices told wide; the same without a word, which the app has to guess."""
    random = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(random.random((32, 32, 32)).astype(np.float32), 1) * 100
    loaded = loaded_head(truth)
    thin = protocol_task(loaded, parse_protocol("x4slices-box0.5"))
    told = protocol_task(loaded, parse_protocol("x4slices-box0.5+noise4+told-gaussian1"))
    assert thin.acquisition.axes[2] == Axis("box", 0.5)
    assert told.acquisition.axes[2] == Axis("gaussian", 1.0)
    middle = truth[:, :, 1:3].mean(2)  # the middle two of the first four planes
    np.testing.assert_allclose(thin.measured[:, :, 0].numpy(), middle, rtol=1e-4)
    noise = (told.measured - thin.measured).std()
    assert float(noise) == pytest.approx(0.04 * np.percentile(truth, 90), rel=0.1)
    stated = protocol_task(loaded, parse_protocol("x4slices-box0.5+stated"))
    assert stated.metadata == {"MRAcquisitionType": "2D", "SliceThickness": 2.0}
    untold = protocol_task(loaded, parse_protocol("x2iso-kspace+untold"))
    assert untold.metadata == {"MRAcquisitionType": "3D"}


def test_bicubic_in_plane_is_that_of_computer_vision() -> None:
    truth = np.random.default_rng(0).random((30, 28, 9)).astype(np.float32)
    loaded = loaded_head(truth)
    protocol = parse_protocol("x2inplane-bicubic")
    task = protocol_task(loaded, protocol)
    assert task.ratios == (2, 2, 1) and protocol.ratios((0, 2)) == (2, 1, 2)
    assert task.acquisition.axes[0] == Axis("kspace")  # what a model is told
    for index in (0, 8):
        slice_ = Image.fromarray(truth[:, :, index])
        small = np.asarray(slice_.resize((14, 15), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(task.measured[:, :, index].numpy(), small, atol=1e-5)
        back = Image.fromarray(small).resize((28, 30), Image.Resampling.BICUBIC)
        enlarged = bicubic(task.measured, (30, 28, 9))[:, :, index].numpy()
        np.testing.assert_allclose(enlarged, np.asarray(back), atol=1e-5)


def test_protocol_names() -> None:
    gates = [protocol.key for protocol in select_protocols(["gates"])]
    assert gates == ["x2iso-kspace", "x4slices-gaussian", "x2slices-gaussian", "x1.5iso-kspace"]
    with pytest.raises(UsageError, match="did you mean x2iso-kspace"):
        parse_protocol("x2iso-kspac")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--protocols", "x2iso-kspace"], 2, "Name heads"),
        (["--heads", "none.nii.gz"], 2, "There is no file none.nii.gz"),
        (["--heads", "bad.nii.gz"], 1, "cannot be read as a NIfTI image"),
        (["--heads", "bad.nii.gz", "--model", "nonesuch"], 78, "no model 'nonesuch'"),
        (["--heads", "bad.nii.gz", "--protocols", "x9"], 2, "'x9' is not a protocol"),
        (["--heads", "bad.nii.gz", "--omp-nthreads", "0"], 2, "--omp-nthreads must be at least 1"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], code: int, sentence: str) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    run = run_here(PROGRAM, "benchmark", "out", *arguments, cwd=tmp_path)
    assert run.returncode == code, run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
