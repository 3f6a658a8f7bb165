# SPDX-License-Identifier: Apache-2.0
"""Tasks, rows and summaries of the benchmark as whole records."""

import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.errors import ImageError, UsageError
from bids_moediff.evaluation import benchmark
from bids_moediff.evaluation.benchmark import (
    BASELINES,
    BenchmarkPlan,
    HeadTable,
    Method,
    Rows,
    Task,
    make_task,
    model_method,
    protocol_task,
    restored,
    score,
)
from bids_moediff.evaluation.gates import GATES, select_protocols
from bids_moediff.evaluation.summary import summarise
from bids_moediff.evaluation.truth import (
    RIM,
    Block,
    Loaded,
    TruthHead,
    heads_of_files,
    trusted_axes,
)
from bids_moediff.imaging import metrics
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.interpolation import (
    back_projection,
    bicubic,
    initial_estimate,
    interpolate,
)
from bids_moediff.imaging.metrics import bootstrap_interval
from bids_moediff.imaging.protocols import PROTOCOLS, parse_protocol
from bids_moediff.imaging.simulated_filters import add_rician_noise, filter_kspace
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.request import ImageRequest
from bids_moediff.inference.worker import Scan
from bids_moediff.options import Options

SHAPE, ZOOMS = (17, 20, 19), (1.0, 1.2, 0.9)
AFFINE = nib.affines.from_matvec(np.diag(ZOOMS), [4, -6, 8])


def loaded(**fields: Any) -> Loaded:
    generator = np.random.default_rng(1)
    data = generator.uniform(200, 900, SHAPE).astype(np.float32)
    mask = generator.random(SHAPE) > 0.3
    plain = Loaded(TruthHead(Path("h.nii.gz"), "heads"), data, mask, ZOOMS, AFFINE, (0, 1, 2), "")
    return replace(plain, **fields)


def test_a_plain_task_as_a_whole() -> None:
    """What does not fill a coarse voxel is cut off, of truth, mask and reference alike."""
    other = np.random.default_rng(2).random(SHAPE).astype(np.float32)
    given = loaded(reference=other)
    task = protocol_task(given, parse_protocol("x2iso-gaussian"))
    cut = (slice(0, 16), slice(0, 20), slice(0, 18))
    assert np.array_equal(task.truth, given.truth[cut]) and task.truth.flags.c_contiguous
    assert np.array_equal(task.mask, given.mask[cut])
    assert task.reference is not None and np.array_equal(task.reference, other[cut])
    coarse = (2.0, 2.4, 1.8)
    acquisition = Acquisition.uniform("gaussian")
    operator = Operator.between((16, 20, 18), ZOOMS, (8, 10, 9), coarse, acquisition)
    assert torch.allclose(task.measured, operator.forward(torch.from_numpy(task.truth)))
    assert torch.allclose(task.operator.forward(torch.from_numpy(task.truth)), task.measured)
    assert (task.acquisition, task.zooms, task.metadata) == (acquisition, ZOOMS, None)
    assert task.coarse_zooms == pytest.approx(coarse) and task.ratios == pytest.approx((2, 2, 2))
    assert task.affine is AFFINE
    image = task.coarse_image
    corner = [-0.5, -0.5, -0.5, 1]
    assert image.affine @ corner == pytest.approx(AFFINE @ corner)
    assert image.shape == (8, 10, 9) and image.affine[:3, :3] == pytest.approx(np.diag(coarse))
    assert task.reference_image is not None
    assert np.array_equal(task.reference_image.affine, AFFINE)
    assert protocol_task(loaded(), parse_protocol("x2iso-box")).reference_image is None


@pytest.mark.parametrize(
    ("key", "metadata", "told"),
    [
        ("x2slices-box0.5+noise3", None, None),
        ("x2iso-kspace-halfhann", None, None),
        ("x2slices-box+plane1.5+noise2", None, None),
        ("x2slices-box+told-gaussian0.8", None, Axis("gaussian", 0.8)),
        ("x2slices-box0.5+stated", {"MRAcquisitionType": "2D", "SliceThickness": 0.9}, None),
        ("x2slices-box0.5+untold", {"MRAcquisitionType": "2D"}, None),
        ("x2iso-kspace+stated", {"MRAcquisitionType": "3D", "SliceThickness": 2.4}, None),
    ],
)
def test_a_task_that_is_filtered_noisy_or_told_otherwise(
    key: str, metadata: dict[str, Any] | None, told: Axis | None
) -> None:
    given, protocol = loaded(), parse_protocol(key)
    task = protocol_task(given, protocol)
    ratios = protocol.ratios((0, 1, 2))
    coarse = tuple(zoom * ratio for zoom, ratio in zip(ZOOMS, ratios, strict=True))
    true = protocol.acquisition((0, 1, 2))
    operator = Operator.between(task.truth.shape, ZOOMS, tuple(task.measured.shape), coarse, true)  # type: ignore[arg-type]
    measured = filter_kspace(operator.forward(torch.from_numpy(task.truth)).numpy(),
                             protocol.filter)  # fmt: skip
    if protocol.noise:
        sigma = protocol.noise / 100 * np.percentile(task.truth[task.mask], 90)
        measured = add_rician_noise(measured, sigma, zlib.crc32(task.mask.tobytes()))
    assert np.allclose(task.measured.numpy(), measured, rtol=1e-5)
    volume = torch.rand(task.truth.shape)
    assert torch.allclose(task.operator.forward(volume), operator.forward(volume), atol=1e-6)
    assert task.acquisition == (true if told is None else protocol.acquisition((0, 1, 2), told))
    assert task.metadata == (metadata if metadata is None else pytest.approx(metadata))


def test_bicubic_tasks_and_hopeless_ones() -> None:
    task = protocol_task(loaded(), parse_protocol("x2inplane-bicubic"))
    wanted = bicubic(torch.from_numpy(task.truth), (8, 10, 19))
    assert torch.allclose(task.measured, wanted)
    with pytest.raises(ImageError, match="four"):
        make_task(*[loaded().truth, loaded().mask, ZOOMS, AFFINE], (5, 5, 5), "box")
    small = make_task(loaded().truth, loaded().mask, ZOOMS, AFFINE, (4, 4, 4), "box")
    assert small.measured.shape == (4, 5, 4)


def test_the_baselines() -> None:
    task = protocol_task(loaded(), parse_protocol("x2slices-gaussian"))
    given = (task.measured, task.coarse_zooms, task.truth.shape, task.zooms)
    cubic = interpolate(*given, 3)
    better = back_projection(cubic, task.measured, task.operator, task.coarse_zooms, ZOOMS)
    wanted = {
        "linear": interpolate(*given, 1), "cubic": cubic, "back-projection": better,
        "consistent": initial_estimate(task.measured, task.operator, task.coarse_zooms, ZOOMS),
    }  # fmt: skip
    assert [method.name for method in BASELINES] == list(wanted)
    for method in BASELINES:
        assert np.array_equal(method.restore(task), wanted[method.name].numpy())
        assert method.version == "1" and not method.guided


def test_all_figures_of_a_result() -> None:
    task = protocol_task(loaded(), parse_protocol("x2slices-gaussian"))
    image = task.truth + np.random.default_rng(0).normal(0, 9, task.truth.shape).astype(np.float32)
    rest = task.operator.forward(torch.from_numpy(image)) - task.measured
    fast = {
        "psnr": metrics.psnr(image, task.truth, task.mask),
        "nrmse": metrics.nrmse(image, task.truth, task.mask),
        "residual": float(rest.norm() / task.measured.norm()),
    }
    assert score(task, image, full=False) == fast
    slow = metrics.slow_figures(image, task.truth, task.mask, task.ratios)
    assert score(task, image, full=True) == pytest.approx(fast | slow, nan_ok=True)
    error = (image - task.truth)[task.mask].astype(float)
    peak = np.percentile(task.truth[task.mask], 99.5)
    assert fast["psnr"] == pytest.approx(10 * np.log10(peak**2 / (error**2).mean()), abs=1e-4)
    assert fast["nrmse"] == pytest.approx(
        np.sqrt((error**2).sum() / (task.truth[task.mask].astype(float) ** 2).sum())
    )
    with pytest.raises(ImageError, match="does not fit"):
        score(task, image[1:], full=False)
    image[0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="does not fit"):
        score(task, image, full=False)


@pytest.mark.parametrize("guided", [False, True])
def test_a_model_restores_by_the_statements_of_a_protocol_or_as_the_app_would(
    guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def enhance(image: Any, options: Options, inputs: Inputs) -> Any:
        calls.append(("engine", np.asarray(image.dataobj), options, inputs))
        return SimpleNamespace(image=nib.Nifti1Image(np.ones((2, 3, 4)), np.eye(4)))

    def app(resolver: Any, scan: Scan, told: ImageRequest, options: Options) -> Any:
        calls.append(("app", np.asarray(scan.image.dataobj), options, (scan.reference, told)))
        return "made"

    monkeypatch.setattr(benchmark, "enhance_image", app)
    monkeypatch.setattr(benchmark, "family", lambda name: SimpleNamespace(
        takes_reference=guided and name == "f"))  # fmt: skip
    model = SimpleNamespace(name="m", sha256="0123456789abcdef", config={"family": "f"})
    resolver: Any = SimpleNamespace(model=model, precision="fp32", enhance=enhance)
    head = loaded(reference=np.random.default_rng(2).random(SHAPE).astype(np.float32))
    task = protocol_task(head, parse_protocol("x2slices-box0.5+noise2"))
    method = model_method(resolver, num_steps=3, planes=None)
    assert (method.name, method.version, method.guided) == (
        "m", "0123456789ab fp32 num_steps=3", guided
    )  # fmt: skip
    assert model_method(resolver, "other").name == "other"
    assert method.restore(task).dtype == np.float32
    kind, measured, options, inputs = calls[0]
    assert kind == "engine" and np.array_equal(measured, task.measured.numpy())
    assert options == Options(output_resolution=ZOOMS, num_steps=3, planes=None)
    assert inputs.acquisition == task.acquisition and (inputs.reference is not None) == guided
    told = protocol_task(head, parse_protocol("x2slices-box0.5+stated"))
    assert restored(resolver, told, options) == "made"
    kind, measured, given, (reference, request) = calls[1]
    assert kind == "app" and np.array_equal(measured, told.measured.numpy()) and given is options
    assert request == ImageRequest(key="", image="", out_dir="", metadata=told.metadata)
    assert (reference is not None) == guided


class Head(TruthHead):
    """A head that needs no file."""

    digest = "abcd1234"  # type: ignore[assignment]
    loads = 0

    def load(self) -> Loaded:
        type(self).loads += 1
        return loaded(head=self, axes=(0, 2), note="axis 1 is thick")


def test_a_plan_is_computed_once_and_kept(tmp_path: Path) -> None:
    """Rows, facts of heads and problems; what was computed is read and not made again."""
    head = Head(Path("h.nii.gz"), "another site")
    fails = {"now": True}

    def restore(task: Task) -> np.ndarray:
        if fails["now"]:
            raise RuntimeError("no   memory")
        return task.truth * np.float32(1.0001)

    methods = [BASELINES[0], Method("exact", "2", restore)]
    plan = BenchmarkPlan([head], [parse_protocol("x2iso-box")], methods)
    assert len(plan) == 2
    told: list[Any] = []
    table, rows = HeadTable(tmp_path / "heads.tsv"), Rows(tmp_path / "rows.tsv")
    found, notes = benchmark.run(plan, rows, table, lambda row, words: told.append((row, words)))
    base = {"group": "another site", "head": "h", "image": "abcd1234", "protocol": "x2iso-box",
            "ratios": "2x1x2", "method": "linear", "version": "1"}  # fmt: skip
    assert notes == {"h": "axis 1 is thick"} and [row["method"] for row in found] == ["linear"]
    assert {key: found[0][key] for key in base} == base and 0 <= found[0]["seconds"] < 60
    assert set(found[0]) == {*base, "psnr", "nrmse", "residual", "seconds"}
    assert told[0][0] is not None and told[1][0] is None
    assert told[1][1] == "h, x2 isotropic, box, exact: no memory"
    assert Head.loads == 1
    fails["now"] = False
    told.clear()
    again = Rows(tmp_path / "rows.tsv")
    known = HeadTable(tmp_path / "heads.tsv")
    assert known.get(head) == ((0, 2), "axis 1 is thick")
    found, notes = benchmark.run(plan, again, known, lambda row, words: told.append((row, words)))
    assert [row["method"] for row in found] == ["linear", "exact"] and Head.loads == 2
    assert found[1]["residual"] < 1e-3 and notes == {"h": "axis 1 is thick"}
    third = Rows(tmp_path / "rows.tsv")
    assert [row["method"] for row in third.all()] == ["linear", "exact"]
    benchmark.run(plan, third, known)
    assert Head.loads == 2
    # The slow figures are missing: made again; and on all axes it is another row.
    full = BenchmarkPlan([head], plan.protocols, methods[:1], full=True)
    (row,), _ = benchmark.run(full, third, known)
    assert row["ssim"] is not None and Head.loads == 3
    (row,), _ = benchmark.run(full, Rows(tmp_path / "rows.tsv"), known)
    assert row["ssim"] == pytest.approx(third.all()[0]["ssim"], rel=1e-5) and Head.loads == 3
    whole = BenchmarkPlan([head], plan.protocols, methods[:1], all_axes=True)
    (row,), _ = benchmark.run(whole, third, known)
    assert row["ratios"] == "2x2x2" and Head.loads == 4


def test_a_head_that_cannot_be_read_costs_itself() -> None:
    class Broken(Head):
        digest = "ffff"  # type: ignore[assignment]

        def load(self) -> Loaded:
            raise ImageError("broken")

    heads = [Broken(Path("b.nii")), Head(Path("h.nii"))]
    plan = BenchmarkPlan(heads, [parse_protocol("x2iso-box")] * 2, BASELINES[:2])
    told: list[Any] = []
    found, notes = benchmark.run(
        plan, Rows(), HeadTable(), lambda row, words: told.append(row and row["head"])
    )
    assert told[:4] == [None] * 4 and len(told) == len(plan) == 8
    assert set(notes) == {"h"} and {row["head"] for row in found} == {"h"}


@pytest.mark.parametrize("text", ["a\tb\n1\t2\n", "head\timage\n1\t2\n"])
def test_another_table_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.tsv").write_text(text)
    with pytest.raises(UsageError, match="not a table"):
        Rows(tmp_path / "rows.tsv")


# Summaries


def rows_of(group: str, head: str, psnr: dict[str, float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"head": head, "group": group, "image": "0", "protocol": "x2iso-kspace",
         "ratios": "2x2x2", "method": method, "version": "1", "psnr": value, "residual": 0.1,
         **more}
        for method, value in psnr.items()
    ]  # fmt: skip


def test_a_summary_as_a_whole() -> None:
    rows = rows_of("training sites", "a", {"cubic": 30.0, "back-projection": 31.0, "net": 33.5},
                   ssim=0.9, flicker=1.01, hfen=0.5, seconds=3.0, residual=0.001)  # fmt: skip
    rows += rows_of("training sites", "b", {"cubic": 28.0, "back-projection": 30.5, "net": 31.5},
                    ssim=0.8, flicker=1.04, hfen=None, seconds=5.0, residual=0.004)  # fmt: skip
    rows += rows_of("another site", "c", {"cubic": 27.0, "back-projection": 28.0, "net": 29.0},
                    residual=0.002)  # fmt: skip
    rows += rows_of("another site", "d", {"net": 99.0})  # without cubic it cannot be compared
    found = {(row["group"], row["method"]): row for row in summarise(rows)}
    assert list(found) == [
        ("training sites", "net"), ("another site", "net"), ("all heads", "net")
    ]  # fmt: skip
    low, high = bootstrap_interval([3.5, 3.5])
    below, above = bootstrap_interval([2.5, 1.0])
    assert found["training sites", "net"] == {
        "protocol": "x2iso-kspace", "group": "training sites", "method": "net", "version": "1",
        "heads": 2, "psnr": 32.5, "psnr_cubic": 29.0, "psnr_back_projection": 30.75,
        "over_cubic": 3.5, "over_cubic_low": low, "over_cubic_high": high,
        "over_back_projection": 1.75, "over_back_projection_low": below,
        "over_back_projection_high": above, "worst_over_back_projection": 1.0, "worst_head": "b",
        "worst_residual": 0.004, "ssim": pytest.approx(0.85), "hfen": 0.5, "seconds": 4.0,
        "band_correlation": None, "band_power": None, "worst_flicker": 1.04, "gate": "passed",
    }  # fmt: skip
    other = found["another site", "net"]
    assert (other["heads"], other["gate"], other["ssim"]) == (1, "passed", None)
    assert found["all heads", "net"]["heads"] == 3
    alone = summarise(rows_of("heads", "a", {"cubic": 30, "back-projection": 31, "net": 33.5,
                                             "linear": 29, "consistent": 31}))  # fmt: skip
    assert [(row["method"], row["group"], row["gate"]) for row in alone] == [
        ("net", "heads", "passed"), ("consistent", "heads", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "worst", "flicker", "gate"),
    [(2.2, 1.2, 1.05, "passed"), (2.19, 1.2, 1.05, "missed"), (2.2, 1.19, 1.05, "missed"),
     (2.2, 1.2, 1.0501, "missed"), (2.2, 1.2, None, "passed")],
)  # fmt: skip
def test_gates_at_their_limits(
    gain: float, worst: float, flicker: float | None, gate: str
) -> None:
    rows = rows_of("heads", "a", {"cubic": 30.0, "back-projection": 30.0 + gain - worst,
                                  "net": 30.0 + gain}, flicker=flicker)  # fmt: skip
    rounded = [row | {"psnr": round(row["psnr"], 9)} for row in rows]
    (entry,) = summarise(rounded)
    close = {"over_cubic": round(entry["over_cubic"], 6),
             "over_back_projection": round(entry["over_back_projection"], 6)}  # fmt: skip
    assert close == {"over_cubic": gain, "over_back_projection": worst}
    from bids_moediff.evaluation.summary import _gate

    assert _gate(entry | close) == gate


def test_protocols_are_chosen_by_name() -> None:
    assert select_protocols(None) == select_protocols([]) == list(PROTOCOLS)
    found = select_protocols(["x3iso-box", "gates", "x2iso-kspace"])
    assert [protocol.key for protocol in found] == ["x3iso-box", *GATES]


# Heads


@pytest.mark.parametrize(
    ("zoom", "kind", "acquired", "kept"),
    [(1.9, "native", 1.9, True), (1.92, "native", 1.92, False),
     (1.0, "zero-filled", 1.89, True), (1.0, "zero-filled", 1.91, False)],
)  # fmt: skip
def test_thick_or_interpolated_axes_have_no_truth(
    zoom: float, kind: str, acquired: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bids_moediff.evaluation import truth

    def found(data: Any, zooms: Any, mask: Any) -> Any:
        sizes = [1.0, acquired, 1.0]
        return [SimpleNamespace(acquired=size) for size in sizes]

    monkeypatch.setattr(truth, "acquired_resolution", found)
    data = np.ones((3, 3, 3))
    axes, note = trusted_axes(data, (1.0, zoom, 1.0), data > 0)
    assert axes == ((0, 1, 2) if kept else (0, 2)) and (note == "") == kept
    monkeypatch.setattr(truth, "acquired_resolution", lambda *_: [
        SimpleNamespace(acquired=9.0)] * 3)  # fmt: skip
    assert trusted_axes(data, (1.0, 1.0, 1.0), data > 0) == ((0, 1, 2), "")


def test_heads_of_files_have_their_site_and_different_names(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii", "x/a.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    heads = heads_of_files([tmp_path / "a.nii.gz"], [tmp_path / "b.nii"])
    assert [(head.name, head.group) for head in heads] == [("a", "heads"), ("b", "another site")]
    assert heads[0].digest != heads[1].digest and len(heads[0].digest) == 8
    with pytest.raises(UsageError, match="no file"):
        heads_of_files([tmp_path / "c.nii"])
    with pytest.raises(UsageError, match="called a"):
        heads_of_files([tmp_path / "a.nii.gz"], [tmp_path / "x/a.nii"])


def test_the_block_in_the_middle_of_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the middle of the mask along each axis; cut faces are not judged."""
    shape = (60, 24, 70)
    generator = np.random.default_rng(0)
    data = generator.random(shape).astype(np.float32)
    mask = np.zeros(shape, bool)
    mask[20:58, 2:23, 6:40] = True
    other = generator.random(shape).astype(np.float32)
    whole = loaded(truth=data, mask=mask, reference=other)
    monkeypatch.setattr(TruthHead, "load", lambda self: whole)
    found = Block(Path("h.nii"), side=32).load()
    starts = [round(np.flatnonzero(mask.any((1, 2))).mean()) - 16, 0,
              round(np.flatnonzero(mask.any((0, 1))).mean()) - 16]  # fmt: skip
    box = (slice(starts[0], starts[0] + 32), slice(0, 24), slice(starts[2], starts[2] + 32))
    assert starts[0] < 60 - 32 and starts[2] > 0
    assert np.array_equal(found.truth, data[box]) and found.truth.flags.c_contiguous
    assert found.reference is not None and np.array_equal(found.reference, other[box])
    judged = mask[box].copy()
    judged[:RIM] = judged[-RIM:] = judged[:, :, :RIM] = judged[:, :, -RIM:] = False
    assert np.array_equal(found.mask, judged)
    assert found.affine[:3, 3] == pytest.approx((AFFINE @ [*starts, 1])[:3] * 1.0)
    assert whole.affine is AFFINE and AFFINE[0, 3] == 4
    mask[:, :, 15:] = mask[:, 8:] = False
    with pytest.raises(ImageError, match="too little head"):
        Block(Path("h.nii"), side=32).load()
