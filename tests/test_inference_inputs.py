# SPDX-License-Identifier: Apache-2.0
"""What reaches the networks: the posed image as a whole, requests, and the calls from Python."""

import contextlib
import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.combination.frame import frame_zooms, scan_zooms
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.families.protocol import Restored
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.consistency import agree, consistent_start
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.reference import resample_reference
from bids_moediff.imaging.spectrum import interpolation_warning
from bids_moediff.imaging.told import told_numbers
from bids_moediff.inference import several as inference_several
from bids_moediff.inference import simple
from bids_moediff.inference.error_bound import ErrorBound
from bids_moediff.inference.expected_error import Calibration, coarseness, expected_error
from bids_moediff.inference.pose import HEAD, Inputs, Posed, pose
from bids_moediff.inference.request import (
    GroupRequest,
    ImageRequest,
    ImageResult,
    Request,
    read_results,
    write_results,
)
from bids_moediff.inference.self_ensemble import left_right_axis, restore_mirrored
from bids_moediff.inference.uncertainty import Spread
from bids_moediff.inference.warnings import (
    estimate_remark,
    range_warnings,
    residual_warning,
)
from bids_moediff.inference.worker import Scan
from bids_moediff.options import Options

CPU = torch.device("cpu")
SHAPE, ZOOMS, FINE = (12, 10, 7), (1.0, 1.2, 3.0), (1.0, 0.6, 1.5)
SLICES = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 0.8)))
AFFINE = nib.affines.from_matvec(np.diag(ZOOMS), [-5, 8, 11])


def image(data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    if data is None:
        data = 300 + 80 * np.random.default_rng(0).standard_normal(SHAPE)
    return nib.Nifti1Image(data.astype(np.float32), affine)


def values(given: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(given.dataobj, dtype=np.float32)


def ramp(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return 1 + 0.3 * np.indices(shape)[0] / shape[0] - 0.2 * np.indices(shape)[2] / shape[2]


def everything() -> tuple[nib.Nifti1Image, Inputs]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:9, 3:, 1:5] = 1
    other = nib.Nifti1Image(
        np.random.default_rng(1).uniform(20, 90, (20, 18, 30)).astype(np.float32),
        nib.affines.from_matvec(np.diag([0.9, 0.8, 0.7]), [-6, 7, 11]),
    )
    inputs = Inputs(
        mask=image(mask), bias_field=image(ramp()), acquisition=SLICES, noise=6.0,
        reference=other, reference_weight=0.7,
    )  # fmt: skip
    return image(), inputs


def test_a_posed_image_as_a_whole() -> None:
    source, inputs = everything()
    posed = pose(source, FINE, inputs, CPU)
    data = values(source)
    scale = np.percentile(data[values(inputs.mask) > 0], 99.5)
    shape = (12, 20, 14)
    assert posed.source is source and posed.scale == pytest.approx(scale)
    assert posed.measured.numpy() == pytest.approx(data / scale, rel=1e-6)
    assert posed.zooms == pytest.approx(FINE) and posed.coarse_zooms == pytest.approx(ZOOMS)
    assert posed.shape == shape and posed.ratios == pytest.approx((1, 2, 2))
    corner = posed.affine @ [-0.5, -0.5, -0.5, 1]
    assert corner == pytest.approx(AFFINE @ [-0.5, -0.5, -0.5, 1])
    assert posed.acquisition is SLICES and posed.noise == pytest.approx(6 / scale)
    assert posed.reference_weight == 0.7
    assert posed.warnings == range_warnings(ZOOMS, FINE, SLICES)
    operator = Operator.between(shape, FINE, SHAPE, ZOOMS, SLICES)
    volume = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(posed.operator.forward(volume), operator.forward(volume))
    coarse = torch.from_numpy(ramp().astype(np.float32))
    fine = interpolate(coarse, ZOOMS, shape, FINE, 1)
    assert torch.allclose(posed.field_coarse, coarse) and torch.allclose(posed.field_fine, fine)
    other = resample_reference(inputs.reference, shape, posed.affine)
    assert (other > 0).mean() > 0.2
    wanted = other / np.percentile(other[other > 0], 99.5)
    assert posed.reference.numpy() == pytest.approx(wanted, rel=1e-5)
    # What is derived from it.
    unshaded = posed.measured / coarse
    start = consistent_start(
        operator, interpolate(unshaded, ZOOMS, shape, FINE), unshaded, posed.noise
    )
    assert torch.allclose(posed.start(), start, atol=1e-6)
    trip = operator.forward(volume)
    trip = consistent_start(operator, interpolate(trip, ZOOMS, shape, FINE), trip)
    assert torch.allclose(posed.round_trip(volume), trip, atol=1e-6)
    shaded = volume * fine
    finished = agree(operator, shaded, posed.measured, posed.noise)
    assert torch.allclose(posed.finish(volume), finished, atol=1e-6)
    assert torch.allclose(posed.finish(volume, consistent=False), shaded)
    assert torch.allclose(posed.agree(volume), finished / fine, atol=1e-6)
    rest = operator.forward(volume) - posed.measured
    assert posed.residual(volume) == pytest.approx(float(rest.norm() / posed.measured.norm()))
    problem = posed.problem()
    numbers = SLICES.condition(FINE, ZOOMS)
    assert problem.condition.tolist() == pytest.approx(list(numbers))
    extra = told_numbers(SLICES, posed.ratios, posed.noise)
    assert problem.told.tolist() == pytest.approx([*numbers, *extra]) and any(extra)
    assert torch.equal(problem.start(), posed.start())
    assert torch.equal(problem.agree(volume), posed.agree(volume))
    assert torch.equal(problem.round_trip(volume), posed.round_trip(volume))
    for name in ("measured", "acquisition", "ratios", "noise", "operator", "reference",
                 "reference_weight"):  # fmt: skip
        assert getattr(problem, name) is getattr(posed, name) or getattr(problem, name) == getattr(
            posed, name
        )


def test_an_image_of_which_nothing_else_is_known() -> None:
    """The bright half decides the scale, k-space is assumed, and the measurement is kept."""
    data = values(image())
    data[:4] = -50
    posed = pose(image(data), FINE, Inputs(), CPU)
    assert posed.scale == pytest.approx(np.percentile(data[data > 0], 99.5))
    assert posed.acquisition == Acquisition.uniform("kspace")
    assert (posed.noise, posed.reference_weight) == (0.0, 1.0)
    assert posed.field_coarse is posed.field_fine is posed.reference is None
    volume = torch.rand(posed.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(posed.agree(volume), posed.finish(volume))
    assert posed.residual(posed.finish(volume)) < 1e-3 < posed.residual(volume)
    assert posed.finish(volume, consistent=False) is volume
    start = consistent_start(
        posed.operator, interpolate(posed.measured, ZOOMS, posed.shape, FINE), posed.measured
    )
    assert torch.equal(posed.start(), start)


def test_noise_is_read_where_slices_erase_detail_alone() -> None:
    """From voxels of the head, brighter than a tenth of the scale."""
    generator = np.random.default_rng(0)
    data = np.zeros((30, 28, 26))
    data[4:-4, 3:-3, 5:-2] = 400
    data = np.abs(data + generator.normal(0, 12, data.shape))
    wide = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 1.6)))
    source = image(data, np.diag([1.0, 1.0, 2.0, 1.0]))
    posed = pose(source, (1, 1, 1), Inputs(acquisition=wide), CPU)
    scaled = values(source) / posed.scale
    wanted = tissue_noise(scaled.astype(np.float32), scaled > HEAD)
    assert posed.noise == pytest.approx(wanted, rel=1e-5)
    assert posed.noise == pytest.approx(12 / posed.scale, rel=0.1)
    narrow = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", 1.5)))
    assert pose(source, (1, 1, 1), Inputs(acquisition=narrow), CPU).noise == 0
    told = Inputs(acquisition=wide, noise=0.0)
    assert pose(source, (1, 1, 1), told, CPU).noise == 0


def test_axes_finer_than_the_output_are_averaged_first() -> None:
    """The second of three axes; the last plane is repeated where the count does not divide."""
    data = values(image(300 + 80 * np.random.default_rng(0).standard_normal((6, 7, 5))))
    source = image(data, nib.affines.from_matvec(np.diag([2.0, 0.5, 3.0]), [1, 2, 3]))
    inputs = Inputs(noise=8.0, bias_field=nib.Nifti1Image(
        ramp((6, 7, 5)).astype(np.float32), source.affine))  # fmt: skip
    posed = pose(source, (1.0, 1.0, 1.5), inputs, CPU)
    pairs = (data[:, 0:6:2] + data[:, 1:6:2]) / 2
    wanted = np.concatenate([pairs, pairs[:, -1:]], axis=1) / posed.scale
    assert posed.measured.numpy() == pytest.approx(wanted, rel=1e-5)
    assert posed.coarse_zooms == pytest.approx((2.0, 1.0, 3.0)) and posed.shape == (12, 4, 10)
    assert posed.noise == pytest.approx(8 / posed.scale / np.sqrt(2))
    assert posed.warnings[0].count("1 of 3") == 1 and "2, 0.5, 3 mm" in posed.warnings[0]
    field = torch.from_numpy(ramp((6, 7, 5)).astype(np.float32))
    coarse = interpolate(field, (2.0, 0.5, 3.0), (6, 4, 5), (2.0, 1.0, 3.0), 1)
    assert torch.allclose(posed.field_coarse, coarse)
    both = pose(source, (2.5, 1.0, 1.5), Inputs(), CPU)
    assert both.coarse_zooms == pytest.approx((2.5, 1.0, 3.0)) and "2 of 3" in both.warnings[0]
    near = pose(source, (2.0001, 0.5, 1.5), Inputs(), CPU)  # rounding of a header
    assert near.measured.shape == (6, 7, 5) and not any("of 3" in w for w in near.warnings)


@pytest.mark.parametrize("noise", [None, 6.0])
def test_values_below_zero_are_cut_and_the_measurement_kept(noise: float | None) -> None:
    data = values(image())
    data[:, :4] = 0
    posed = pose(image(data), FINE, Inputs(acquisition=SLICES, noise=noise), CPU)
    finished = posed.finish(posed.start())
    assert finished.min() < -0.01
    found = posed.non_negative(finished)
    target = posed.operator.forward(finished) if noise else posed.measured
    target = target.clamp_min(0)
    volume = finished
    for _ in range(8):
        lacking = target - posed.operator.forward(volume.clamp_min(0))
        volume = posed.operator.correct(volume.clamp_min(0), lacking, posed.noise)
    assert torch.equal(found, volume.clamp_min(0)) and found.min() == 0
    plain = finished.clamp_min(0)
    assert torch.equal(posed.non_negative(finished, consistent=False), plain)
    far = [float((posed.operator.forward(x) - target).norm()) for x in (found, plain)]
    assert far[0] < 0.9 * far[1]


def test_a_reference_that_shows_little_is_not_used() -> None:
    source, inputs = everything()
    assert inputs.reference is not None
    data = np.zeros((40, 40, 40), np.float32)
    for count, used in ((4, False), (5, True)):
        data[:count, :count, :count] = 50
        other = nib.Nifti1Image(data, nib.affines.from_matvec(np.eye(3), [-6, 7, 9]))
        posed = pose(source, FINE, replace(inputs, reference=other), CPU)
        share = (resample_reference(other, posed.shape, posed.affine) > 0).mean()
        assert (share >= 0.01) == used == (posed.reference is not None)


@pytest.mark.parametrize(
    ("sform", "qform", "wanted"), [(4, 1, (4, 1)), (0, 2, (2, 2)), (3, 0, (3, 3)), (0, 0, (1, 1))]
)
def test_results_have_the_coordinate_codes_of_the_scan(
    sform: int, qform: int, wanted: tuple[int, int]
) -> None:
    source = image()
    source.header["sform_code"], source.header["qform_code"] = sform, qform
    posed = pose(source, FINE, Inputs(), CPU)
    data = torch.rand(posed.shape)
    made = posed.image(data)
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == wanted
    assert np.array_equal(values(made), data.numpy())
    assert made.get_sform() == pytest.approx(posed.affine)
    assert made.get_qform() == pytest.approx(posed.affine, abs=1e-4)
    assert made.header.get_xyzt_units() == ("mm", "sec")
    assert made.get_data_dtype() == np.float32


@pytest.mark.parametrize(
    "data",
    [np.ones((4, 4)), np.ones((4, 4, 4, 2)), np.ones((4, 1, 4)), np.zeros((4, 4, 4)),
     np.full((4, 4, 4), np.nan), np.where(np.arange(64).reshape(4, 4, 4) == 3, np.inf, 1.0)],
)  # fmt: skip
def test_what_cannot_be_posed(data: np.ndarray) -> None:
    with pytest.raises(ImageError):
        pose(image(data, np.eye(4)), (1, 1, 1), Inputs(), CPU)
    assert isinstance(pose(image(np.ones((2, 2, 2)), np.eye(4)), (1,) * 3, Inputs(), CPU), Posed)


# The expected error


def test_the_expected_error_as_a_whole() -> None:
    from scipy import ndimage

    generator = np.random.default_rng(0)
    added = generator.normal(0, 2, (9, 8, 7)).astype(np.float32)
    head = generator.random(added.shape) > 0.4
    variance = generator.normal(0.5, 1, added.shape)
    local = ndimage.gaussian_filter(added**2, 2.0)
    wanted = 1.5**2 * (0.8 * local + 0.2 * (added[head] ** 2).mean())
    found = expected_error(added, head, 1.5)
    assert found == pytest.approx(np.sqrt(wanted), rel=1e-4) and found.dtype == np.float32
    both = expected_error(added, head, 1.5, variance)
    assert both == pytest.approx(np.sqrt(wanted + np.maximum(variance, 0)), rel=1e-4)
    nowhere = expected_error(added, np.zeros_like(head), 1.5)
    assert nowhere == pytest.approx(np.sqrt(1.5**2 * 0.8 * local), rel=1e-4)


def test_the_factor_follows_the_second_largest_ratio() -> None:
    assert coarseness((4.0, 1.0, 2.5)) == 2.5
    known = Calibration(1.0, coarse=3.0)
    ratios = [1.0, 2.0, 2.25, 2.75, 3.0, 5.0]
    found = [known.at((ratio, 9.0, 1.0)) for ratio in ratios]
    assert found == pytest.approx([1, 1, 1.5, 2.5, 3, 3])
    read = Calibration.from_dict({
        "factor": "1.5", "heads": ["a"], "spread": [1, 2], "sha256": "x",
        "coarse": {"factor": 2}, "method": "m",
    })  # fmt: skip
    assert read == Calibration(1.5, ("a",), (1.0, 2.0), "x", 2.0)
    assert Calibration.from_dict({"factor": 1}) == Calibration(1.0)


def test_the_record_of_a_bound_as_a_whole() -> None:
    weights = {"model": "m"}
    bound = ErrorBound.from_dict({
        "factors": {"map": 2.5, "samples": "3"}, "samples": 4, "heads": "24", "weights": weights,
        "voxels_share": 0.95,
    })  # fmt: skip
    assert bound == ErrorBound({"map": 2.5, "samples": 3.0}, 4, 24, weights)
    record = bound.record(4, weights)
    assert record.pop("ExpectedErrorBound").count("3 times") == 1
    assert record == {"ExpectedErrorBoundFactor": 3.0, "ExpectedErrorBoundHeads": 24}
    assert bound.record(3, weights) == {} and bound.record(9, weights)["ExpectedErrorBoundFactor"]
    assert bound.record(0, weights)["ExpectedErrorBoundFactor"] == 2.5
    only = ErrorBound.from_dict({"factors": {"map": 2.5}, "heads": 24, "weights": weights})
    assert only.samples == 0 and only.record(2, weights) == {}
    for wrong in ({}, {"map": 0}, {"map": float("inf")}, {"map": 1, "samples": -1}):
        with pytest.raises(ValueError, match="factor"):
            ErrorBound.from_dict({"factors": wrong, "heads": 24, "weights": weights})


# Requests


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every field of images and groups has a value that is not its default."""
    one = ImageRequest(
        key="a", image="a.nii", out_dir="out", mask="m.nii", bias_field="b.nii",
        metadata={"SliceThickness": 2}, acquisition=SLICES.to_dict(), zooms=[1, 2, 3],
        with_error=True, reference="r.nii", reference_record={"Used": True},
    )  # fmt: skip
    group = GroupRequest(
        key="g", out_dir="out", zooms=[1, 1, 1], scans={"x": "a"}, lost={"y": "is gone"}
    )
    plain = ImageRequest(key="b", image="b.nii", out_dir="out")
    whole = Request(
        options=Options(output_resolution=(1.0, 1.5, 2.0), num_samples=3), images=(one, plain),
        groups=(group,), device="cuda:1", model_reason="because",
    )  # fmt: skip
    for part in (one, group):
        defaults = {item.name: item.default for item in fields(part)}
        assert all(getattr(part, name) != default for name, default in defaults.items())
    read = Request.read(whole.write(tmp_path / "request.json"))
    assert read == whole and read.items == (one, plain, group)
    text = json.loads((tmp_path / "request.json").read_text())
    small = {"images": text["images"]}
    (tmp_path / "small.json").write_text(json.dumps(small))
    assert Request.read(tmp_path / "small.json") == Request(options=Options(), images=(one, plain))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "cannot be read"), ("[]", "no list 'images'"), ("{}", "no list 'images'"),
        ('{"images": {}}', "no list 'images'"), ('{"images": [], "imags": 1}', "'imags'"),
        ('{"images": [3]}', "An image of .* is not a table"),
        ('{"images": [{"key": "a", "image": "b"}]}', "An image of .* lacks out_dir"),
        ('{"images": [], "groups": [{"key": "a", "out_dir": "b"}]}', "A group .* zooms, scans"),
        ('{"images": [], "groups": [{"key": "a", "out_dri": "b"}]}', "out_dri.*out_dir"),
        ('{"images": [], "options": {"num_samples": "x"}}', "request.json"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "request.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=says):
        Request.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        Request.read(tmp_path / "absent.json")


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert read_results(path) == {}
    results = {
        "a": ImageResult(status="done", message="m", files={"sr": "x"}, record={"k": 1},
                         seconds=2.5, peak_memory_gb=1.5, exit_code=3),
        "b": ImageResult(status="failed"), "c": ImageResult(status="running"),
    }  # fmt: skip
    assert read_results(write_results(results, path)) == results
    assert results["b"].to_dict() == {"status": "failed", "message": "", "files": {}, "record": {}}
    assert [r.done for r in results.values()] == [True, False, False]
    assert [r.settled for r in results.values()] == [True, True, False]


# From Python


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the calls hand to the engine, in order."""
    found: list[tuple[str, Any]] = []
    record = {"AcquiredVoxelSizeFrom": "header", "Warnings": []}

    @contextlib.contextmanager
    def held(device: str, report: Any) -> Any:
        found.append(("device", device))
        report("k", "held", 0.1)
        yield "place"

    def load(request: Request, place: Any) -> Any:
        found.append(("load", (request, place)))
        return SimpleNamespace(resolver="resolver", model_reason="because")

    def enhance(resolver: Any, scan: Scan, told: ImageRequest, options: Any, report: Any) -> Any:
        found.append(("enhance", (resolver, scan, told, options)))
        report("stage", 0.5)
        return SimpleNamespace(record=dict(record), image="image")

    def combine(resolver: Any, pairs: Any, options: Any, report: Any) -> Any:
        found.append(("combine", (resolver, pairs, options)))
        report("name", "stage", 0.5)
        return SimpleNamespace(record={}, combined=SimpleNamespace(warnings=["w"], image="both"))

    for name, fake in (("held_device", held), ("load", load), ("enhance_image", enhance),
                       ("combine_images", combine)):  # fmt: skip
        monkeypatch.setattr(simple, name, fake)
    return found


def test_one_image_is_restored_with_all_that_is_told(calls: list[tuple[str, Any]]) -> None:
    scan, options, told = Scan(image()), Options(num_samples=2), []
    result = simple.restore(
        scan, options, metadata={"SliceThickness": 3}, device="cuda:1",
        progress=lambda *words: told.append(words), key="name",
    )  # fmt: skip
    request = Request(options=options, images=(), device="cuda:1")
    asked = ImageRequest(key="name", image="", out_dir="", metadata={"SliceThickness": 3})
    assert calls == [
        ("device", "cuda:1"), ("load", (request, "place")),
        ("enhance", ("resolver", scan, asked, options)),
    ]  # fmt: skip
    assert told == [("k", "held", 0.1), ("name", "stage", 0.5)]
    assert result.record["ModelChoice"] == "because"
    calls.clear()
    simple.restore(scan, options)
    assert calls[0] == ("device", "auto")
    assert calls[2][1][2] == ImageRequest(key="image", image="", out_dir="")


@pytest.mark.parametrize(("source", "said"), [("spectrum", True), ("header", False)])
def test_interpolation_that_was_undone_is_told(
    calls: list[tuple[str, Any]], source: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "AcquiredVoxelSizeFrom": source, "Warnings": ["w"], "InputVoxelSize": [1.0, 1.0, 1.0],
        "AcquiredVoxelSize": [1.0, 1.0, 2.0],
    }  # fmt: skip
    monkeypatch.setattr(simple, "enhance_image", lambda *_: SimpleNamespace(record=record))
    simple.restore(Scan(image()), Options())
    sentence = interpolation_warning([1.0, 1.0, 1.0], [1.0, 1.0, 2.0])
    assert sentence and record["Warnings"] == (["w", sentence] if said else ["w"])


@pytest.mark.parametrize("used", [True, False])
def test_a_reference_is_aligned_and_its_record_kept(
    calls: list[tuple[str, Any]], used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, moved = image(), image()
    choice = SimpleNamespace(image=moved if used else None, record={"Used": used, "Reason": "r"})

    def use(target: Any, given: Any) -> Any:
        assert target is scan.image and given is other
        return choice

    monkeypatch.setattr(simple, "use_reference", use)
    scan = Scan(image(), mask=image())
    simple.restore(scan, Options(), reference=other)
    _, given, told, options = calls[2][1]
    assert (
        given == replace(scan, reference=choice.image) and told.reference_record is choice.record
    )
    assert options.reference == "auto" == calls[1][1][0].options.reference
    calls.clear()
    simple.restore(scan, Options(reference="T2w"), reference=other)
    assert calls[2][1][3].reference == "T2w"


def test_several_scans_are_told_apart(calls: list[tuple[str, Any]]) -> None:
    scans, options, told = [Scan(image()), Scan(image())], Options(num_samples=2), []
    result = simple.restore_several(
        scans, options, metadata=[{"a": 1}, {}], device="cpu", keys=["x", "y"],
        progress=lambda *words: told.append(words),
    )  # fmt: skip
    wanted = [ImageRequest(key="x", image="", out_dir="", metadata={"a": 1}),
              ImageRequest(key="y", image="", out_dir="")]  # fmt: skip
    assert calls[1:] == [
        ("load", (Request(options=options, images=(), device="cpu"), "place")),
        ("combine", ("resolver", list(zip(wanted, scans, strict=True)), options)),
    ]  # fmt: skip
    assert told == [("k", "held", 0.1), ("name", "stage", 0.5)]
    assert result.record == {"ModelChoice": "because"}
    calls.clear()
    simple.restore_several(scans, options)
    assert [told.key for told, _ in calls[2][1][1]] == ["scan 1", "scan 2"]
    assert calls[0] == ("device", "auto")


def test_the_call_from_python_hands_everything_on(calls: list[tuple[str, Any]]) -> None:
    data = np.arange(24.0 * 22 * 20).reshape(24, 22, 20) + 1
    given, mask = image(data), image((data > 900).astype(np.float32))
    found = simple.super_resolve(
        given, 0.9, mask=mask, metadata={"SliceThickness": 3.0}, device="cpu", model="moediff"
    )
    assert found == "image"
    _, scan, told, options = calls[2][1]
    assert np.array_equal(values(scan.image), data.astype(np.float32))
    assert np.array_equal(values(scan.mask), values(mask)) and scan.reference is None
    assert told.metadata == {"SliceThickness": 3.0} and calls[0] == ("device", "cpu")
    assert options == Options(output_resolution=(0.9,) * 3, model="moediff")
    calls.clear()
    with pytest.warns(UserWarning, match="^w$"):
        both = simple.super_resolve(
            [given, given], device="cpu", metadata=[{}, {"SliceThickness": 2.0}], model="moediff"
        )
    assert both == "both" and calls[0] == ("device", "cpu")
    _, pairs, options = calls[2][1]
    assert [told.metadata for told, _ in pairs] == [{}, {"SliceThickness": 2.0}]
    assert options == Options(model="moediff")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"metadata": 3}, "dictionary"), ({"metadata": [3]}, "dictionary"),
        ({"metadata": {"SliceThickness": 0.04}}, "SliceThickness is 0.04"),
        ({"metadata": {"SpacingBetweenSlices": 100.1}}, "SpacingBetweenSlices is 100.1"),
        ({"metadata": {"SliceThickness": True}}, "SliceThickness is True"),
        ({"metadata": {"SliceThickness": "2"}}, "SliceThickness is '2'"),
        ({"metadata": [{}]}, "list of images"), ({"num_samples": 2}, "one image"),
        ({"outputs": ("uncertainty",)}, "one image"), ({"mask": 3}, "nibabel"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_one_image(
    calls: list[tuple[str, Any]], words: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        simple.super_resolve(image(), **words)
    assert not calls


@pytest.mark.parametrize(
    ("count", "words", "says"),
    [
        (1, {}, "two"), (2, {"mask": image()}, "no mask"), (2, {"metadata": {}}, "metadata"),
        (3, {"metadata": [{}, {}]}, "3 scans need"), (2, {"reference": image()}, "with one image"),
        (2, {"metadata": [{}, {"SliceThickness": 0.01}]}, "SliceThickness"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_several_images(
    calls: list[tuple[str, Any]], count: int, words: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        simple.super_resolve([image()] * count, **words)
    with pytest.raises(UsageError, match="nibabel"):
        simple.super_resolve([image(), 3])
    assert not calls


def test_lengths_at_their_limits_are_taken(calls: list[tuple[str, Any]]) -> None:
    data = np.arange(24.0 * 22 * 20).reshape(24, 22, 20) + 1
    for length in (0.05, 100, None):
        simple.super_resolve(image(data), metadata={"SliceThickness": length})
    assert len(calls) == 9


# What is told


@pytest.mark.parametrize(
    ("coarse", "fine", "profile", "said"),
    [
        ((1, 1, 1), (1, 1, 1), Axis("kspace"), ["Not restored"]),
        ((6.05, 1, 1), (1, 1, 1), Axis("kspace"), []),
        ((6.07, 1, 1), (1, 1, 1), Axis("kspace"), ["6.1"]),
        ((3.02, 3.02, 1), (1, 1, 1), Axis("kspace"), []),
        ((3.04, 3.04, 1), (1, 1, 1), Axis("kspace"), ["More than one"]),
        ((1.19, 1, 1), (1, 1, 1), Axis("kspace"), []),
        ((1.18, 1, 1), (1, 1, 1), Axis("kspace"), ["1.18"]),
        ((1, 1, 1), (0.5, 0.5, 0.298), Axis("kspace"), []),
        ((1, 1, 1), (0.5, 0.5, 0.296), Axis("kspace"), ["0.296"]),
        ((8.07, 4, 4), (4, 4, 4), Axis("kspace"), []),
        ((8.09, 4, 4), (4, 4, 4), Axis("kspace"), ["8.09"]),
        ((2, 1, 1), (1, 1, 1), Axis("box", 0.694), []),
        ((2, 1, 1), (1, 1, 1), Axis("box", 0.692), ["0.69"]),
        ((2, 1, 1), (1, 1, 1), Axis("gaussian", 1.21), []),
        ((2, 1, 1), (1, 1, 1), Axis("gaussian", 1.215), ["1.2"]),
        ((14, 7, 7), (2, 2, 0.2), Axis("box", 0.5), ["35.0", "More than", "0.2", "14", "0.50"]),
    ],
)
def test_limits_of_what_the_networks_were_trained_on(
    coarse: tuple[float, ...], fine: tuple[float, ...], profile: Axis, said: list[str]
) -> None:
    acquisition = Acquisition((profile, Axis("kspace"), Axis("kspace")))
    found = range_warnings(coarse, fine, acquisition)
    assert len(found) == len(said) and all(w in f for w, f in zip(said, found, strict=True))


def test_an_axis_that_stays_has_no_width() -> None:
    thin = Acquisition((Axis("box", 0.3), Axis("kspace"), Axis("kspace")))
    assert range_warnings((1.01, 2, 2), (1, 1, 1), thin) == []
    assert len(range_warnings((1.03, 2, 2), (1, 1, 1), thin)) == 1


def test_a_thickness_read_from_the_image_is_told_with_the_likeliest() -> None:
    thin = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box", 0.5)))
    weights = {"a": 0.1, "b": 0.5, "c": 0.15, "d": 0.25}
    found = estimate_remark(thin, weights)
    assert found is not None and "b 50 %, d 25 %, c 15 %." in found
    assert estimate_remark(thin, {}) is None
    usual = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box", 0.75)))
    assert estimate_remark(usual, weights) is None


def test_a_result_that_does_not_explain_the_scan_beyond_its_noise() -> None:
    data = np.array([[[3.0, 4.0], [0.0, 5.0]]])  # root mean square 3.54
    size = np.sqrt(12.5)
    assert residual_warning(data, 1.0, 1.11 / size) is not None
    assert residual_warning(data, 1.0, 1.09 / size) is None
    assert "2.0 times" in str(residual_warning(data, 1.0, 2 / size))
    assert residual_warning(data, 0.0, 0.9) is None
    assert residual_warning(data, 1e-4, 0.00099) is None
    assert residual_warning(data, 1e-4, 0.00101) is not None


def test_the_deviation_over_samples_is_that_of_numpy() -> None:
    errors = torch.randn((5, 3, 4, 2), generator=torch.Generator().manual_seed(0)) + 1000
    spread = Spread()
    for count, error in enumerate(errors, 1):
        assert (spread.deviation is None) == (count <= 2)
        spread.add(error)
        assert spread.count == count
    assert spread.deviation is not None
    assert spread.deviation.numpy() == pytest.approx(errors.numpy().std(0, ddof=1), rel=1e-3)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_left_and_right_of_any_orientation(order: tuple[int, ...]) -> None:
    """The voxel axis that changes the first world coordinate most, either way."""
    for sign in (1, -1):
        linear = np.zeros((3, 3))
        linear[range(3), order] = [2.0 * sign, 3.0, 4.0]
        linear += 0.3
        assert left_right_axis(nib.affines.from_matvec(linear, [1, 2, 3])) == order[0]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mean_of_an_image_and_of_its_mirror_image(axis: int) -> None:
    """Both passes get the problem as it is, and flipped; progress runs once from 0 to 1."""
    source, inputs = everything()
    problem = pose(source, FINE, inputs, CPU).problem()
    seen, told = [], []
    places = torch.arange(problem.start().numel()).reshape(problem.start().shape).float()

    class Network:
        def restore(self, given: Any, options: Any, progress: Any) -> Any:
            seen.append(given)
            progress("k", 0.0)
            progress("k", 1.0)
            start = given.start()
            if len(seen) == 2:
                start = (start.flip(axis) + places).flip(axis)
            made = Restored(start, {"m": places})
            yield made

    options = Options()
    found = restore_mirrored(
        Network(),
        problem,
        options,
        lambda *words: told.append(words),
        axis,  # type: ignore[arg-type]
    )
    assert torch.allclose(found.image, problem.start() + places / 2, atol=1e-4)
    assert found.maps == {"m": places}
    assert told == [("k", 0.0), ("k", 0.5), ("k", 0.5), ("k", 1.0)]
    turned = seen[1]
    assert seen[0] is problem and turned.operator is None
    volume = places / 1000
    assert torch.equal(turned.measured, problem.measured.flip(axis))
    assert torch.equal(turned.reference, problem.reference.flip(axis))
    assert torch.equal(turned.start(), problem.start().flip(axis))
    for name in ("agree", "round_trip"):
        wanted = getattr(problem, name)(volume).flip(axis)
        assert torch.equal(getattr(turned, name)(volume.flip(axis)), wanted)


# Several scans


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What restoring and combining several scans hands on, in order."""
    found: list[tuple[str, Any]] = []
    sizes = {"a": (1.0, 1.2, 3.0), "b": (1.1, 3.0, 1.0)}

    def prepare(scan: Scan, told: ImageRequest, options: Options) -> Any:
        found.append(("prepare", (scan, told, options)))
        where = nib.affines.from_matvec(np.diag(sizes[told.key]), [1, 2, 3])
        return SimpleNamespace(
            measured=SimpleNamespace(image=image(np.full((4, 5, 6), 7), where)),
            sampling=SimpleNamespace(acquisition=f"sampling of {told.key}"),
            noise=SimpleNamespace(sigma={"a": 2.5, "b": 0.0}[told.key]),
        )

    def enhance(resolver: Any, scan: Scan, prepared: Any, options: Options, report: Any) -> Any:
        found.append(("enhance", (resolver, scan, options)))
        report("stage", 0.25)
        record = {"Model": f"m{len(found)}", "Device": "cpu", "Other": 1}
        return SimpleNamespace(
            image=f"image {len(found)}", standard_deviation=f"error {len(found)}", record=record
        )

    def combine(scans: Any, zooms: Any, *, progress: Any) -> Any:
        found.append(("combine", (scans, zooms)))
        progress("combining", 0.75)
        return SimpleNamespace(
            image=image(np.ones((4, 4, 4)), np.diag([0.7, 0.8, 0.9, 1])), steps=5,
            scans=[SimpleNamespace(record=lambda: {"Scan": "a"})], warnings=["w"],
        )  # fmt: skip

    for name, fake in (("prepare", prepare), ("enhance_prepared", enhance), ("combine", combine)):
        monkeypatch.setattr(inference_several, name, fake)
    return found


def two_scans() -> list[tuple[ImageRequest, Scan]]:
    """An axial one and a coronal one."""
    turned = nib.affines.from_matvec([[0, 1.1, 0], [0, 0, 3], [1, 0, 0]], [0, 0, 0])
    places = (nib.affines.from_matvec(np.diag([1.0, 1.2, 3.0]), [0, 0, 0]), turned)
    return [
        (ImageRequest(key=key, image="", out_dir=""), Scan(image(np.ones((4, 5, 6)), place)))
        for key, place in zip("ab", places, strict=True)
    ]


def test_scans_are_all_prepared_before_the_first_is_restored(
    several: list[tuple[str, Any]],
) -> None:
    pairs, told = two_scans(), []
    options = Options(output_resolution=(0.7, 0.8, 0.9), num_samples=4, outputs=("brainmask",))
    found = inference_several.combine_images(
        "resolver",
        pairs,
        options,
        lambda *words: told.append(words),  # type: ignore[arg-type]
    )
    assert [name for name, _ in several] == ["prepare"] * 2 + ["enhance"] * 2 + ["combine"]
    for index, (request, scan) in enumerate(pairs):
        own = replace(
            options, outputs=("uncertainty",), num_samples=1, sample=None,
            output_resolution=scan_zooms(scan.image.affine, pairs[0][1].image.affine,
                                         (0.7, 0.8, 0.9)),
        )  # fmt: skip
        assert several[index][1] == (scan, request, own)
        assert several[2 + index][1] == ("resolver", scan, own)
    scans, zooms = several[4][1]
    assert zooms == (0.7, 0.8, 0.9)
    assert [(s.name, s.acquisition, s.single, s.error, s.noise) for s in scans] == [
        ("a", "sampling of a", "image 3", "error 3", 2.5),
        ("b", "sampling of b", "image 4", "error 4", None),
    ]  # fmt: skip
    assert all((values(s.image) == 7).all() for s in scans)
    assert told == [("a", "stage", 0.25), ("b", "stage", 0.25), ("combined", "combining", 0.75)]
    assert found.record == {
        "Model": "m3", "Device": "cpu", "OutputVoxelSize": [0.7, 0.8, 0.9],
        "CombinedScans": [{"Scan": "a"}], "CombinationSteps": 5, "Warnings": ["w"],
    }  # fmt: skip
    several.clear()
    inference_several.combine_images("resolver", pairs, Options())  # type: ignore[arg-type]
    wanted = frame_zooms([scan.image.affine for _, scan in pairs], (0.7,) * 3)
    assert several[4][1][1] == wanted


def test_scans_that_were_restored_before_are_combined_with_what_was_lost(
    several: list[tuple[str, Any]],
) -> None:
    triples = [
        (told, scan, inference_several.Alone(f"alone {told.key}", None, {"Model": told.key}))  # type: ignore[arg-type]
        for told, scan in two_scans()
    ]
    told: list[Any] = []
    found = inference_several.combine_restored(
        triples, [0.7, 0.8, 0.9], Options(num_samples=4), lambda *words: told.append(words),
        {"c": "is gone"},
    )  # fmt: skip
    assert [name for name, _ in several] == ["prepare", "prepare", "combine"]
    frame = triples[0][1].image.affine
    for (name, (scan, request, options)), triple in zip(several, triples, strict=False):
        assert (name, request, scan) == ("prepare", *triple[:2])
        wanted = scan_zooms(scan.image.affine, frame, (0.7, 0.8, 0.9))
        assert options == Options(num_samples=4, output_resolution=wanted)
    scans, zooms = several[2][1]
    assert zooms == (0.7, 0.8, 0.9) and [s.single for s in scans] == ["alone a", "alone b"]
    assert told == [("combining", 0.75)]
    assert found.record["CombinedScans"] == [
        {"Scan": "a"}, {"Scan": "c", "Used": False, "Reason": "is gone"}
    ]  # fmt: skip
    assert found.record["Warnings"] == ["w", "c was left out: is gone"]
    assert found.record["Model"] == "a"


def test_scans_finer_than_the_result_cannot_be_combined(several: list[tuple[str, Any]]) -> None:
    pairs = two_scans()
    fits = Options(output_resolution=(1.0005, 1.0, 1.0))
    inference_several.combine_images("resolver", pairs, fits)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="a has voxels"):
        inference_several.combine_images(
            "resolver",
            pairs,
            Options(output_resolution=(1.002, 1.0, 1.0)),  # type: ignore[arg-type]
        )
