# SPDX-License-Identifier: Apache-2.0
"""What the child process hands to the network and to the combination, and what it records."""

import json
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.combination.scans import Combined
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.noise_level import NoiseReading
from bids_moediff.inference import batch, several, worker
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.request import GroupRequest, ImageRequest, Request, read_results
from bids_moediff.inference.several import combine_images
from bids_moediff.inference.super_resolver import Result
from bids_moediff.inference.worker import Loaded, ProgressLines, Scan, enhance_image
from bids_moediff.options import Options
from bids_moediff.preprocessing.measured_voxels import slice_axis_remark
from bids_moediff.runtime.sink import write_nifti

SLICES = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box", 0.8)))
TURNED = np.array([[0, 0, 4.0, -7], [-1, 0, 0, 3], [0, 1, 0, 11], [0, 0, 0, 1]])


def image(value: float, shape: tuple[int, ...] = (12, 8, 6), affine: Any = None) -> Any:
    """An image around a value; the first axis has voxels of half a millimetre."""
    data = value * (1 + 0.1 * np.random.default_rng(0).random(shape))
    return nib.Nifti1Image(
        data.astype(np.float32), np.diag([0.5, 1, 4, 1]) if affine is None else affine
    )


class Told:
    """A network that remembers what it was told and returns a blank image."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Options, Inputs]] = []

    def enhance(self, scan: Any, options: Options, inputs: Inputs, *_: Any) -> Result:
        self.calls.append((scan, options, inputs))
        shape, affine = output_grid(scan.shape, scan.affine, options.zooms)
        blank = nib.Nifti1Image(np.full(shape, len(self.calls), np.float32), affine)
        maps = {"srstd": nib.Nifti1Image(np.full(shape, 9.0, np.float32), affine)}
        record = {"Warnings": [], "Model": f"m{len(self.calls)}", "ExpectedErrorFrom": "here"}
        return Result(blank, maps, 0.5, record)


def told(key: str = "a", **known: Any) -> ImageRequest:
    return ImageRequest(
        key=key, **{"image": "", "out_dir": "", "acquisition": SLICES.to_dict(), **known}
    )


def test_the_network_gets_what_belongs_to_the_measured_voxels() -> None:
    """Image, mask and shading on voxels of 1 mm; noise, reference and its weight as given."""
    network: Any = Told()
    mask = nib.Nifti1Image(np.ones((12, 8, 6), np.uint8), np.diag([0.5, 1, 4, 1]))
    scan = Scan(image(100), mask, image(2), image(50, (9, 9, 9), np.eye(4)))
    record = {"Used": False, "Reason": "It shows another head.", "Weight": 0.25}
    options = Options(acquired_resolution=(1.0, 1.0, 4.0), noise=3.0)
    result = enhance_image(network, scan, told(reference_record=record), options)
    ((measured, asked, inputs),) = network.calls
    assert voxel_sizes(measured.affine) == pytest.approx((1, 1, 4))
    for part, value in ((measured, 105), (inputs.mask, 1), (inputs.bias_field, 2.1)):
        assert part.shape == (6, 8, 6)
        assert np.asarray(part.dataobj).mean() == pytest.approx(value, rel=0.01)
    assert asked.zooms == options.output_zooms((0.5, 1, 4))
    assert inputs.acquisition == SLICES and inputs.noise == 3
    assert inputs.reference is scan.reference and inputs.reference_weight == 0.25
    found = result.record
    assert found["InputVoxelSize"] == [0.5, 1, 4] and found["AcquiredVoxelSize"] == [1, 1, 4]
    assert found["AcquiredVoxelSizeFrom"] == found["SamplingProfilesFrom"] == "option"
    assert [axis["fwhm"] for axis in found["SamplingProfiles"]][2] == 0.8
    assert (found["EstimatedNoise"], found["NoiseSource"]) == (3, "option")
    assert found["NoiseUncertainty"] == 0
    assert found["Reference"] == record and record["Reason"] in found["Warnings"]
    # Half of an image of 105 is left unexplained: 17.5 times the noise.
    assert any("differs from the scan by 17.5 times" in words for words in found["Warnings"])
    used = {"Used": True, "Reason": "never said"}
    again = enhance_image(network, scan, told(reference_record=used), options)
    assert "never said" not in again.record["Warnings"]
    assert network.calls[1][2].reference_weight == 1


@pytest.mark.parametrize(("width", "counted"), [(1.0, 0.0), (1.6, 20.0)])
def test_noise_that_may_be_anatomy_counts_where_slices_overlap_widely(
    width: float, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = NoiseReading(20.0, "air", 3.21987)
    monkeypatch.setattr(worker, "read_noise", lambda data, zooms: reading)
    network: Any = Told()
    wide = Acquisition((Axis("kspace"), Axis("kspace"), Axis("gaussian", width))).to_dict()
    options = Options(acquired_resolution="header")
    record = enhance_image(network, Scan(image(100)), told(acquisition=wide), options).record
    assert network.calls[0][2].noise == counted
    assert (record["EstimatedNoise"], record["NoiseSource"]) == (20, "air")
    assert record["NoiseUncertainty"] == 3.22 and record["AcquiredVoxelSizeFrom"] == "header"


def test_what_the_scan_says_of_its_slices_is_told_and_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless options or the request say it; with remarks, and the noise that was read."""
    seen = []

    def estimated(sampling: Any, measured: Any, metadata: Any, sigma: float) -> Any:
        seen.append(sigma)
        return replace(sampling, acquisition=SLICES, source="estimated"), {"box 0.8": 0.7}

    monkeypatch.setattr(worker, "estimated_acquisition", estimated)
    network: Any = Told()
    options = Options(acquired_resolution="header", noise=2.0)
    asked = told(
        acquisition=None, metadata={"MRAcquisitionType": "2D", "SliceEncodingDirection": "i"}
    )
    record = enhance_image(network, Scan(image(100)), asked, options).record
    assert seen == [2.0] and network.calls[0][2].acquisition == SLICES
    assert record["SamplingProfilesFrom"] == "estimated"
    assert record["SamplingProfilesLikelihood"] == {"box 0.8": 0.7}
    assert slice_axis_remark(asked.metadata, (0.5, 1, 4)) in record["Warnings"]
    enhance_image(network, Scan(image(100)), asked, replace(options, slice_profile="box"))
    assert len(seen) == 1 and network.calls[1][2].acquisition.axes[2].profile == "box"
    thick = replace(options, acquired_resolution=(6.0, 1.0, 4.0))  # along the axis stated
    record = enhance_image(network, Scan(image(100, (24, 8, 6))), asked, thick).record
    assert (
        record["AcquiredVoxelSize"] == [6, 1, 4]
        and slice_axis_remark(asked.metadata, (0.5, 1, 4)) not in record["Warnings"]
    )


def test_a_model_is_loaded_in_the_precision_asked_for_with_the_first_reason_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The app may have chosen before the child did."""
    monkeypatch.setattr(worker, "choose", lambda *_: SimpleNamespace(model="m", reason="here"))
    monkeypatch.setattr(
        worker.SuperResolver,
        "from_pretrained",
        lambda model, device, precision: (model, device, precision),
    )
    request = Request(options=Options(precision="fp32"), images=())
    loaded = worker.load(request, "cpu")
    assert (loaded.resolver, loaded.model) == (("m", "cpu", "fp32"), "m")
    assert loaded.model_reason == "here" and loaded.options is request.options
    assert worker.load(replace(request, model_reason="there"), "cpu").model_reason == "there"


def test_what_was_typed_replaces_what_the_request_says() -> None:
    request = Request(options=Options(random_seed=3), images=(), device="cuda:1")
    typed = worker.with_typed(request, {"random_seed": 4}, "cpu")
    assert (typed.options.random_seed, typed.device) == (4, "cpu")
    assert worker.with_typed(request, {}, None) == request


def test_devices_of_a_list_are_all_tried() -> None:
    assert worker.named_devices("cuda:1, cuda:0") == ["cuda:1", "cuda:0"]
    with pytest.raises(UsageError, match="--device"):
        worker.named_devices("cuda:0,gpu")


def test_a_stated_noise_is_at_most_half_of_the_brightest_voxel() -> None:
    measured: Any = SimpleNamespace(image=nib.Nifti1Image(np.full((4, 4, 4), 10.0), np.eye(4)))
    assert worker._noise(measured, 5.0) == NoiseReading(5.0, "option", 0.0)
    with pytest.raises(ImageError, match="more than half"):
        worker._noise(measured, 5.1)


def test_progress_is_one_line_a_percent_and_ends_with_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = StringIO()
    lines = ProgressLines(stream, follow_parent=True)
    for fraction in (0.0, 0.004, 0.012, 0.019, 1.0):
        lines("a", "mean", fraction)
    fractions = [json.loads(line)["fraction"] for line in stream.getvalue().splitlines()]
    assert fractions == [0.0, 0.012, 1.0]
    monkeypatch.setattr(worker.os, "getppid", lambda: -1)
    with pytest.raises(SystemExit):
        lines("a", "mean", 1.0)
    ProgressLines(stream, follow_parent=False)("a", "done", 1.0)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two scans on disk, one that is missing, and a network that is never loaded."""
    network = Told()
    known = {"acquired_resolution": "header", "noise": 2.0, "outputs": ("gates",)}
    options = Options(output_resolution=(1.0,) * 3, **known)  # type: ignore[arg-type]
    loaded = Loaded(network, options, "student", "a reason")  # type: ignore[arg-type]
    monkeypatch.setattr(batch, "load", lambda request, device: loaded)
    images = []
    for number, name in enumerate(("a", "b", "gone")):
        files = {}
        for kind, value in (("image", 100), ("mask", 1), ("bias_field", 2), ("reference", 50)):
            path = tmp_path / f"{name}_{kind}.nii"
            files[kind] = str(path)
            if name != "gone":
                made = nib.Nifti1Image(
                    np.full((6, 8, 6), value + number, np.float32), np.diag([1, 1, 4, 1])
                )
                write_nifti(made, path)
        images.append(told(name, **{**files, "out_dir": str(tmp_path / name)}))
    images[1] = replace(images[1], with_error=True, zooms=(1.0, 1.0, 2.0))
    return SimpleNamespace(
        network=network, options=options, images=tuple(images), folder=tmp_path, loaded=loaded
    )


def run(study: Any, **request: Any) -> tuple[int, Mapping[str, Any]]:
    results = study.folder / "results.json"
    asked = Request(options=study.options, images=study.images, device="cpu", **request)
    code = batch.run_request(asked, results, ProgressLines(StringIO(), follow_parent=False))
    return code, read_results(results)


def test_each_file_of_a_request_reaches_the_network(study: Any) -> None:
    code, results = run(study)
    assert code == 1 and results["gone"].status == "failed"
    for (scan, asked, inputs), value, zooms in zip(
        study.network.calls, (0, 1), ((1, 1, 1), (1, 1, 2)), strict=True
    ):
        assert asked.zooms == zooms
        parts = (scan, inputs.mask, inputs.bias_field, inputs.reference)
        found = [float(np.asarray(part.dataobj).max()) for part in parts]
        assert found == [100 + value, 1 + value, 2 + value, 50 + value]
    outputs = [asked.outputs for _, asked, _ in study.network.calls]
    assert outputs == [("gates",), ("gates", "uncertainty")]
    for name in ("a", "b"):
        done = results[name]
        assert done.done and 0 <= done.seconds < 100 and done.peak_memory_gb > 0
        assert {"sr", "srstd"} <= set(done.files)
        assert done.record["ModelChoice"] == "a reason"
        # The group asked for the map of the error, not the user: nothing is said of it.
        assert "ExpectedErrorFrom" not in done.record
        assert json.loads((study.folder / name / "record.json").read_text()) == done.record
    assert run(study)[0] == 1 and len(study.network.calls) == 2  # nothing is done twice


def test_a_group_gets_its_scans_by_name_with_their_results(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def combined(scans: Any, zooms: Any, options: Any, progress: Any, lost: Any) -> Any:
        given.update(scans=scans, zooms=zooms, lost=lost)
        blank = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
        return SimpleNamespace(combined=Combined(blank, blank, [], 3, []), record={"Model": "m"})

    monkeypatch.setattr(batch, "combine_restored", combined)
    names = {"first": "b", "second": "a", "third": "gone"}
    group = GroupRequest(
        key="g", out_dir=str(study.folder / "g"), zooms=(1, 1, 2), scans=names, lost={"x": "torn"}
    )
    code, results = run(study, groups=(group,))
    assert code == 1 and results["g"].done
    assert results["g"].record == {"Model": "m", "ModelChoice": "a reason"}
    assert set(results["g"].files) == {"srcombined", "srcount"}
    assert given["zooms"] == [1, 1, 2] or given["zooms"] == (1, 1, 2)
    assert given["lost"] == {"x": "torn", "third": results["gone"].message}
    for (request, scan, alone), name, key in zip(
        given["scans"], ("first", "second"), "ba", strict=True
    ):
        assert request.key == name
        assert float(np.asarray(scan.image.dataobj).max()) == 100 + (key == "b")
        assert float(np.asarray(alone.image.dataobj).max()) == 1 + (key == "b")
        assert float(np.asarray(alone.error.dataobj).max()) == 9
        assert alone.record == results[key].record
    one = replace(group, key="h", scans={"first": "a", "third": "gone"})
    message = run(study, groups=(one,))[1]["h"].message
    assert "one scan could be used" in message and results["gone"].message in message


def test_lack_of_memory_is_said_in_gigabytes_of_the_model_that_ran(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def estimate(shape: Any, zooms: Any, options: Any, **words: Any) -> Any:
        seen.update(shape=shape, zooms=zooms, asked=options.zooms, **words)
        return SimpleNamespace(gigabytes=12.34)

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(batch, "estimate", estimate)
    monkeypatch.setattr(study.network, "enhance", full)
    message = run(study)[1]["b"].message
    assert "about 12.3 GB" in message
    assert seen == {
        "shape": (6, 8, 6), "zooms": (1, 1, 4), "asked": (1, 1, 2), "model": "student",
        "device": "cpu",
    }  # fmt: skip


def test_scans_are_restored_alone_and_handed_over_with_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Voxels in each scan's own order of axes, and one estimate without samples."""
    given: dict[str, Any] = {}

    def combine(scans: Any, zooms: Any, **_: Any) -> Combined:
        given.update(scans=scans, zooms=zooms)
        blank = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.diag([1, 2, 3, 1]))
        return Combined(blank, blank, [], 3, ["a word"])

    monkeypatch.setattr(several, "combine", combine)
    network: Any = Told()
    one = image(100, (12, 16, 6), np.diag([1.0, 2.0, 4.0, 1.0]))
    other = image(70, (14, 12, 6), TURNED)  # its axes are the second, the third and the first
    outputs = ("uncertainty", "samples")
    options = Options(
        acquired_resolution="header", noise=2.0, output_resolution=(1.0, 0.5, 0.25),
        num_samples=4, sample="gaussian", outputs=outputs,
    )  # fmt: skip
    pairs = [(told("one"), Scan(one)), (told("other"), Scan(other))]
    result = combine_images(network, pairs, options)
    assert given["zooms"] == (1, 0.5, 0.25)
    assert [call[1].zooms for call in network.calls] == [(1, 0.5, 0.25), (0.5, 0.25, 1)]
    for _, asked, _ in network.calls:
        assert (asked.num_samples, asked.sample, asked.outputs) == (1, None, ("uncertainty",))
    for number, (scan, source) in enumerate(zip(given["scans"], (one, other), strict=True), 1):
        assert scan.name == ("one", "other")[number - 1]
        assert scan.acquisition == SLICES and scan.noise == 2
        np.testing.assert_array_equal(scan.image.get_fdata(), source.get_fdata())
        assert float(np.asarray(scan.single.dataobj).max()) == number
        assert float(np.asarray(scan.error.dataobj).max()) == 9
    assert result.record == {
        "Model": "m1", "OutputVoxelSize": [1, 2, 3], "CombinedScans": [], "CombinationSteps": 3,
        "Warnings": ["a word"],
    }  # fmt: skip
    combine_images(network, pairs, replace(options, output_resolution="auto"))
    assert given["zooms"] == (0.7, 0.7, 0.7)
    with pytest.raises(ImageError, match="one has voxels of 1 x 2 x 4 mm"):
        combine_images(network, pairs, replace(options, output_resolution=(1.1, 1.0, 1.0)))


def test_scans_that_were_restored_before_keep_record_and_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, Any] = {}

    def combine(scans: Any, zooms: Any, **_: Any) -> Combined:
        given.update(scans=scans)
        blank = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
        return Combined(blank, blank, [], 3, [])

    monkeypatch.setattr(several, "combine", combine)
    options = Options(acquired_resolution="header", noise="none")
    scans = []
    for name, value, affine in (("one", 100, np.diag([1.0, 1, 4, 1])), ("other", 70, TURNED)):
        alone = several.Alone(image(value + 1), image(value + 2), {"Model": name, "x": 1})
        scans.append((told(name), Scan(image(value, (12, 8, 6), affine)), alone))
    record = several.combine_restored(
        scans, (1.0, 1.0, 0.9), options, lambda *_: None, {"third": "It is torn."}
    ).record
    assert record["Model"] == "one" and "x" not in record
    assert record["CombinedScans"] == [{"Scan": "third", "Used": False, "Reason": "It is torn."}]
    assert record["Warnings"] == ["third was left out: It is torn."]
    for scan, (_, _, alone) in zip(given["scans"], scans, strict=True):
        assert scan.single is alone.image and scan.error is alone.error
        assert scan.noise is None and scan.acquisition == SLICES
    with pytest.raises(ImageError, match="one has voxels"):
        several.combine_restored(scans, (1.1, 1.0, 1.0), options, lambda *_: None, {})
