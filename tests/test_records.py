# SPDX-License-Identifier: Apache-2.0
"""What steps hand to one another: requests, results, records, and what failed first."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.errors import ImageError, UsageError
from bids_moediff.inference.request import ImageResult, Request, read_results, write_results
from bids_moediff.interfaces import network, preparation, run_record
from bids_moediff.interfaces.groups import GroupRecord
from bids_moediff.interfaces.network import (
    DescribePrepared,
    SelectResult,
    SuperResolve,
    WriteRequest,
    end_sentence,
)
from bids_moediff.interfaces.preparation import BiasField, BrainMask, Conform
from bids_moediff.interfaces.products import MAKERS, WriteProduct
from bids_moediff.interfaces.run_record import CollectRun, ImageStatus, ParticipantReport
from bids_moediff.interfaces.step import FAILED_FILE, TRACEBACK_FILE, unexpected
from bids_moediff.options import Options
from bids_moediff.runtime.text import counted, names_only, one_line, visible, without_folders

NAME = "sub-01/anat/sub-01_T1w.nii.gz"


def image(name: str = "sub-01_T1w", **more: Any) -> AnatomicalImage:
    path, suffix = f"sub-01/anat/{name}.nii.gz", name.split("_")[-1]
    metadata = {"MRAcquisitionType": "2D", "SliceThickness": 3.0, "EchoTime": 0.1}
    return AnatomicalImage(Path("/x") / path, path, {"sub": "01"}, suffix, metadata, **more)


def put(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        nib.save(nib.Nifti1Image(content, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    else:
        path.write_text(json.dumps(content))
    return str(path)


def read(path: Any) -> Any:
    return json.loads(Path(str(path)).read_text())


def run(step: Any, folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return step.run(cwd=str(folder)).outputs


@pytest.fixture
def volume(tmp_path) -> str:
    return put(tmp_path / "volume.nii", np.ones((12, 12, 12), np.float32))


def test_what_is_ready_for_the_network(tmp_path, volume):
    record = put(tmp_path / "choice.json", {"Used": True})
    given = {"mask": put(tmp_path / "m.nii", np.ones((12, 12, 12), np.uint8)),
             "bias_field": put(tmp_path / "b.nii", np.ones((12, 12, 12), np.float32)),
             "reference": put(tmp_path / "r.nii", np.ones((9, 9, 9), np.float32))}  # fmt: skip
    more = {**given, "reference_record": record}
    entry = read(
        run(DescribePrepared(source=image().to_json(), image=volume, **more), tmp_path / "1").entry
    )
    assert entry == {
        "failure": "", "key": "sub-01_T1w", "image": volume, "out_dir": "sub-01_T1w", **given,
        "metadata": {"MRAcquisitionType": "2D", "SliceThickness": 3.0}, "acquisition": None,
        "zooms": None, "with_error": False, "reference_record": {"Used": True},
    }  # fmt: skip
    plain = DescribePrepared(source=image().to_json(), image=volume, mask=given["mask"])
    entry = read(run(plain, tmp_path / "2").entry)
    assert [entry[name] for name in ("bias_field", "reference")] == [None, None]
    assert entry["reference_record"] == {}
    lost = DescribePrepared(source=image().to_json(), failure_beside="It is odd.")
    found = run(lost, tmp_path / "3")
    assert read(found.entry) == {"failure": "It is odd.", "key": "sub-01_T1w"}
    assert found.failure == "It is odd."


def entries(tmp_path: Path, volume: str) -> list[str]:
    ready: list[dict[str, Any]] = [
        {"failure": "", "key": key, "image": volume, "out_dir": key} for key in "abc"
    ]
    ready.append({"failure": "It is odd.", "key": "d"})
    return [put(tmp_path / f"{entry['key']}.json", entry) for entry in ready]


@pytest.mark.parametrize("only", [False, True])
def test_the_request_for_the_network(tmp_path, volume, only):
    group = {
        "key": "g", "members": ["b", "c", "d"], "zooms": [1.0, 1.0, 1.0],
        "frame": np.diag([2.0, 2.0, 2.0, 1.0]).tolist(), "left_out": {"e": "too old"},
    }  # fmt: skip
    options = Options(output_resolution=(1.0,) * 3, num_steps=3)
    step = WriteRequest(
        entries=entries(tmp_path, volume), options=options.to_dict(), model_reason="why",
        groups=[group], combine_only=only, weights="w",
    )  # fmt: skip
    request = Request.read(Path(run(step, tmp_path / "1").request))
    assert request.options == options and request.model_reason == "why"
    assert [one.key for one in request.images] == ["a", "b", "c"]
    assert [one.with_error for one in request.images] == [False, True, True]
    (found,) = request.groups
    assert (found.key, found.out_dir, tuple(found.zooms)) == ("g", "g", (1.0, 1.0, 1.0))
    assert found.scans == {"b": "b", "c": "c"}
    assert found.lost == {"d": "It is odd.", "e": "too old"}
    # Results of other voxels than the combined image's need scans that are restored once more.
    coarse = Options(output_resolution=(1.5,) * 3).to_dict()
    step = WriteRequest(
        entries=entries(tmp_path, volume), options=coarse, groups=[group], combine_only=only
    )
    again = Request.read(Path(run(step, tmp_path / "2").request))
    keys = ["a", "b", "c"] if only else ["a", "b", "c", "b_for_g", "c_for_g"]
    assert [one.key for one in again.images] == keys
    assert all(tuple(one.zooms) == (1.0,) * 3 for one in again.images if one.with_error)
    assert sum(one.with_error for one in again.images) == 2


@pytest.mark.parametrize(
    ("item", "failure"),
    [
        (ImageResult(status="done", files={"sr": "k/sr.nii", "gates": "k/g.nii"}), ""),
        (ImageResult(status="failed", message="It is odd."), "It is odd."),
        (ImageResult(status="running"), "The image was not super-resolved."),
        (None, "The image was not super-resolved."),
    ],
)
def test_one_result_of_many(tmp_path, item, failure):
    results = tmp_path / "net" / "results.json"
    results.parent.mkdir()
    for name in ("sr", "g"):
        put(tmp_path / "net" / "k" / f"{name}.nii", np.ones((2, 2, 2), np.float32))
    others = {"other": ImageResult(status="done", files={"sr": "x.nii"})}
    write_results(others | ({} if item is None else {"k": item}), results)
    step = SelectResult(products=["sr", "srstd"], key="k", results=str(results))
    found = run(step, tmp_path / "1")
    if item is not None and item.done:
        assert found.sr == str(tmp_path / "net" / "k" / "sr.nii")
        assert not hasattr(found, "gates"), "nobody asked for it"
        assert read(found.result)["files"] == item.files
    else:
        assert found.failure == failure and (tmp_path / "1" / FAILED_FILE).exists()


@pytest.mark.parametrize(
    ("code", "errors", "words"),
    [
        (2, "bids_moediff-superres: No.\n\n", "No."), (69, "x\nGone.", "Gone."),
        (78, "", "Super-resolution ended with code 78."),
        (-9, "", "needs about 3.2 GB"), (137, "x", "needs about 3.2 GB"),
        (-11, "x", "ended by signal 11."), (139, "x", "ended by signal 11."),
        (192, "x", "ended by signal 64."), (193, "x", "code 193: x"), (128, "", "code 128."),
        (1, "x\nbids_moediff-superres: y", "code 1: y."),
    ],
)  # fmt: skip
def test_why_a_network_ended(code, errors, words):
    assert words in end_sentence(code, errors, 3.24)


def test_the_command_of_the_network_replaces_the_shell(tmp_path):
    step = SuperResolve(request=put(tmp_path / "r.json", {}), device="cuda:0,cuda:1")
    assert step.cmdline.startswith("exec ")
    words = step.cmdline.split()
    assert words[2:4] == ["-m", "bids_moediff.cli.superres"]
    for option, value in (
        ("--device", "cuda:0,cuda:1"), ("--request", str(tmp_path / "r.json")),
        ("--results", "results.json"),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value


def test_the_network_runs_again_until_every_image_has_a_result(tmp_path, monkeypatch):
    """Killed at the second of three images, it goes on with the third; two sentences are kept."""
    images = [{"key": key, "image": "x", "out_dir": key} for key in "abc"]
    request = put(tmp_path / "r.json", {"options": {}, "images": images})
    results = tmp_path / "1" / "results.json"
    put(results, {"old": ImageResult(status="done").to_dict()})
    answers = [
        ({"a": ImageResult(status="done"), "b": ImageResult(status="running")}, -9),
        ({"c": ImageResult(status="done")}, 0),
    ]  # fmt: skip
    parents: list[str] = []

    def once(self: Any, runtime: Any, correct_return_codes: Any = ()) -> Any:
        assert parents or not results.exists(), "results of an earlier run"
        assert {-9, 0, 137} <= set(correct_return_codes)
        parents.append(runtime.environ["MOEDIFF_PARENT_PROCESS"])
        items, runtime.returncode = answers[len(parents) - 1]
        known = read_results(results) if results.exists() else {}
        write_results(known | items, results)
        runtime.stderr = f"try {len(parents)}"
        return runtime

    monkeypatch.setattr(network.CommandLine, "_run_interface", once)
    step = SuperResolve(request=request, gigabytes=3.5)
    done = step.run(cwd=str(results.parent))
    assert parents == [str(os.getpid())] * 2
    found = read_results(results)
    assert {key: item.status for key, item in found.items()} == {
        "a": "done", "b": "failed", "c": "done",
    }  # fmt: skip
    assert "about 3.5 GB" in found["b"].message and found["b"].exit_code == -9
    assert (results.parent / FAILED_FILE).read_text() == found["b"].message
    assert done.runtime.stderr == "try 1\ntry 2" and done.runtime.returncode == 0
    assert done.outputs.results == str(results)
    empty = put(tmp_path / "e.json", {"options": {}, "images": []})
    place = tmp_path / "2"
    place.mkdir()
    SuperResolve(request=empty).run(cwd=str(place))
    assert read_results(place / "results.json") == {} and len(parents) == 2
    assert not (place / FAILED_FILE).exists()


def status(tmp_path: Path, **more: Any) -> dict[str, Any]:
    step = ImageStatus(
        source=image().to_json(), stage="all", output_dir=str(tmp_path / "out"),
        zooms=(1.0, 1.0, 1.0), run_id="r", made_with={"version": "1"}, **more,
    )  # fmt: skip
    return read(run(step, tmp_path / "status").status)


def parts(tmp_path: Path, result: ImageResult) -> dict[str, str]:
    given = {"notes": ["a"], "mask_record": {"method": "network", "warnings": ["b"]},
             "doubts": ["c"], "quality": {"cnr": 3.0}}  # fmt: skip
    found = {name: put(tmp_path / f"{name}.json", value) for name, value in given.items()}
    results = tmp_path / "results.json"
    write_results({"sub-01_T1w": result, "other": ImageResult(status="failed")}, results)
    return found | {"results": str(results)}


DONE = ImageResult(
    status="done", record={"Model": "m", "Warnings": ["d"]}, seconds=7.0, peak_memory_gb=1.5
)


def test_all_that_is_known_of_an_image_that_is_done(tmp_path):
    given = parts(tmp_path, DONE)
    found = status(tmp_path, **given, bias_correction=False, unwarping=True)
    assert found == {
        "key": "sub-01_T1w", "source": NAME, "suffix": "T1w", "status": "done", "message": "",
        "preparation": {
            "BrainMask": "network", "BiasCorrection": False, "GradientUnwarping": True,
        },
        "record": {"Model": "m", "Warnings": ["d"]}, "quality": {"cnr": 3.0},
        "warnings": ["a", "b", "c", "d"], "made_with": {"version": "1"}, "seconds": 7.0,
        "peak_memory_gb": 1.5, "products": {}, "further": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "result", "message", "code"),
    [
        ("", ImageResult(status="failed", message="Lost.", exit_code=69), "Lost.", 69),
        ("First.", ImageResult(status="failed", message="Lost."), "First.", None),
        ("First.", DONE, "First.", None),
    ],
)
def test_what_failed_first_is_the_message(tmp_path, failure, result, message, code):
    found = status(tmp_path, **parts(tmp_path, result), failure=failure)
    assert (found["status"], found["message"], found.get("exit_code")) == ("failed", message, code)


def test_an_image_of_several_scans_names_them(tmp_path):
    scans = (image("sub-01_acq-a_T2w"), image("sub-01_acq-b_T2w"))
    group = image("sub-01_desc-srcombined_T2w", members=scans)
    item = run_record.empty_item(group)
    assert item["scans"] == [scan.relative_path for scan in scans]
    assert "scans" not in run_record.empty_item(image())
    assert (item["status"], item["message"]) == ("failed", "")


def test_the_record_of_a_run(tmp_path):
    statuses = [put(tmp_path / f"{n}.json", {"source": n, "key": n}) for n in ("b", "c")]
    path = tmp_path / "logs" / "sub-01" / "2" / "run.json"
    path.parent.mkdir(parents=True)
    given = {"label": "01", "settings": {"model": "auto"}, "statuses": statuses,
             "refused": [{"source": "a", "key": "a"}], "run_file": str(path)}  # fmt: skip
    run(CollectRun(stage="all", **given), tmp_path / "1")
    record = read(path)
    assert [one["key"] for one in record["images"]] == ["a", "b", "c"]
    assert (record["participant"], record["stage"]) == ("01", "all")
    assert record["settings"] == {"model": "auto"}
    assert {"bids_moediff", "python", "torch", "nipype"} <= set(record["versions"])
    assert record["finished"].endswith("+00:00")
    # A report made later shows versions and settings of the run that did the work.
    path.write_text(json.dumps(record | {"versions": {"torch": "1"}, "settings": {"model": "x"}}))
    later = tmp_path / "logs" / "sub-01" / "3" / "run.json"
    later.parent.mkdir()
    run(CollectRun(stage="report", **given | {"run_file": str(later)}), tmp_path / "2")
    made = read(later)
    assert (made["stage"], made["versions"]) == ("report", {"torch": "1"})
    assert made["settings"] == {"model": "x"}


def test_the_page_is_told_of_all_images(tmp_path, monkeypatch):
    from bids_moediff.reports import participant

    seen: dict[str, Any] = {}

    def write(output_dir, label, run, raw_dir=None):
        seen.update(output_dir=output_dir, label=label, run=run, raw_dir=raw_dir)
        path = output_dir / "page.html"
        path.touch()
        return path

    monkeypatch.setattr(participant, "write_participant_report", write)
    old = {"key": "sub-01_T2w", "source": "z", "status": "failed", "message": "Old."}
    record = tmp_path / "logs" / "sub-01" / "1" / "run.json"
    put(record, {"stage": "all", "images": [old]})
    items = [
        {"key": "sub-01_T1w", "source": "a", "status": "done", "message": "",
         "preparation": {"BrainMask": "network"}, "record": {}},
        {"key": "sub-01_PDw", "source": "b", "status": "failed", "message": "New."},
    ]  # fmt: skip
    path = put(tmp_path / "run.json", {"images": items, "versions": {"x": "1"}})
    for raw in (None, tmp_path):
        more = {} if raw is None else {"raw_dir": str(raw)}
        step = ParticipantReport(label="01", output_dir=str(tmp_path), run_file=path, **more)
        assert run(step, tmp_path / "work").report == str(tmp_path / "page.html")
        assert (seen["label"], seen["output_dir"], seen["raw_dir"]) == ("01", tmp_path, raw)
    assert [one["key"] for one in seen["run"]["images"]] == [
        "sub-01_T1w", "sub-01_PDw", "sub-01_T2w",
    ]  # fmt: skip
    assert seen["run"]["errors"] == ["sub-01_PDw: New.", "sub-01_T2w: Old."]
    assert "convolutional network" in seen["run"]["methods"]
    assert "* [@nipype]" in seen["run"]["methods"] and seen["run"]["versions"] == {"x": "1"}


@pytest.mark.parametrize(
    ("methods", "stripped"),
    [(["nonzero", "nonzero"], True), (["nonzero", "network"], False), ([], False)],
)
def test_a_combined_image_is_stripped_if_all_scans_are(tmp_path, methods, stripped):
    masks = [put(tmp_path / f"{n}.json", {"method": one}) for n, one in enumerate(methods)]
    result = put(tmp_path / "result.json", {"record": {"Model": "m"}})
    step = GroupRecord(result=result, **({"mask_records": masks} if masks else {}))
    found = read(run(step, tmp_path / "1").record)
    assert found == {"Model": "m", "SkullStripped": stripped}


def test_remarks_of_the_preparation_come_in_the_order_of_the_work(tmp_path, monkeypatch):
    scan = nib.Nifti1Image(np.ones((12, 12, 12), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    seen: list[Any] = []
    monkeypatch.setattr(preparation, "conform", lambda path: (scan, ["read"]))
    monkeypatch.setattr(preparation, "distance_remarks", lambda one, words: [words["x"]])
    monkeypatch.setattr(preparation, "read_coefficients", lambda path: Path(path).name)
    record = {"largest_displacement_mm": 3.14, "warnings": ["far"]}
    moved = nib.Nifti1Image(np.full((12, 12, 12), 2, np.float32), scan.affine)
    monkeypatch.setattr(preparation, "unwarp", lambda one, words: (moved, {**record, "x": words}))

    def on_grid(maps, one):
        seen.append((list(maps), float(np.asarray(one.dataobj).max())))
        return [], ["map"]

    monkeypatch.setattr(preparation, "maps_on_grid", on_grid)
    source = AnatomicalImage(
        Path("/x") / NAME, NAME, {"sub": "01"}, "T1w", {"x": "distance"}, remarks=("sidecar",)
    )
    coefficients = tmp_path / "scanner.grad"
    coefficients.touch()
    step = Conform(
        source=source.to_json(), coefficients=str(coefficients), maps=["m"], remark="elsewhere"
    )
    found = run(step, tmp_path / "1")
    assert read(found.notes) == [
        "sidecar", "read", "distance", "far", "Gradient distortion was undone: up to 3.1 mm.",
        "map", "elsewhere",
    ]  # fmt: skip
    assert nib.load(found.image).get_fdata().max() == 2
    assert seen == [(["m"], 2.0)], "maps must fit the image that the network gets"
    plain = run(Conform(source=source.to_json()), tmp_path / "2")
    assert read(plain.notes) == ["sidecar", "read", "distance", "map"]
    odd = AnatomicalImage(Path("/x") / NAME, NAME, {"sub": "01"}, "T1w", {}, "It is a link.")
    assert run(Conform(source=odd.to_json()), tmp_path / "3").failure == "It is a link."


def test_a_mask_is_found_or_taken_and_a_remark_on_it_comes_first(tmp_path, volume, monkeypatch):
    inside = nib.Nifti1Image(np.ones((12, 12, 12), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    for name, method in (("brain_mask", "network"), ("reuse_mask", "derivatives")):
        monkeypatch.setattr(
            preparation, name,
            lambda *given, m=method: (inside, {"method": m, "warnings": ["own"], "n": len(given)}),
        )  # fmt: skip
    found = run(BrainMask(image=volume), tmp_path / "1")
    assert read(found.record) == {"method": "network", "warnings": ["own"], "n": 1}
    taken = run(BrainMask(image=volume, precomputed=volume, remark="first"), tmp_path / "2")
    assert read(taken.record) == {"method": "derivatives", "warnings": ["first", "own"], "n": 2}
    assert nib.load(taken.mask).get_fdata().sum() == 12**3


@pytest.mark.parametrize("skip", [False, True])
def test_the_bias_field_is_told_and_divided_out(tmp_path, volume, monkeypatch, skip):
    field = nib.Nifti1Image(np.full((12, 12, 12), 4, np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    monkeypatch.setattr(preparation, "bias_field", lambda image, mask: field)
    record = put(tmp_path / "record.json", {"method": "network"})
    found = run(BiasField(image=volume, mask=volume, record=record, skip=skip), tmp_path / "1")
    told = read(found.record)
    assert told["method"] == "network" and told["BiasFieldCorrection"].startswith(
        "none" if skip else "N4 (SimpleITK)"
    )
    corrected = nib.load(found.corrected).get_fdata()
    assert corrected.max() == (1 if skip else 0.25)
    assert (found.bias_field if skip else nib.load(found.bias_field).get_fdata().max()) != 1


def test_the_leading_expert_has_the_largest_weight(tmp_path):
    gates = np.zeros((2, 2, 1, 3), np.float32)
    gates[0, 0, 0], gates[0, 1, 0], gates[1, 0, 0] = (
        [0.5, 0.3, 0.2],
        [0.1, 0.6, 0.3],
        [0, 0.4, 0.6],
    )
    gates[1, 1, 0] = [0.5, 0.5, 0]
    step = MAKERS["WinningExpert"](gates=put(tmp_path / "g.nii", gates))
    found = nib.load(run(step, tmp_path / "1").expert)
    assert np.asarray(found.dataobj)[..., 0].tolist() == [[1, 2], [3, 1]]
    assert found.get_data_dtype() == np.uint8 and found.header.get_xyzt_units()[0] == "mm"


def test_a_step_that_fails_leaves_its_mark_and_those_after_it_none(tmp_path, monkeypatch):
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(preparation, "load_image", fail)
    path = put(tmp_path / "large.nii", np.zeros((90, 90, 90), np.float32))
    found = run(BrainMask(image=path), tmp_path / "1")
    size = Path(path).stat().st_size
    assert f"it needs about {0.4 + 12 * size / 1e9:.1f} GB" in found.failure
    assert (tmp_path / "1" / FAILED_FILE).read_text() == f"{found.failure}\n"
    assert "MemoryError" in (tmp_path / "1" / TRACEBACK_FILE).read_text()
    handed = run(BrainMask(image=path, failure=found.failure, failure_beside="b"), tmp_path / "2")
    assert handed.failure == found.failure and not list((tmp_path / "2").glob("*.txt"))
    beside = run(BrainMask(image=path, failure_beside="b"), tmp_path / "3")
    assert beside.failure == "b"


def test_words_on_what_nobody_foresaw(tmp_path):
    (tmp_path / "file").touch()
    error = NotADirectoryError(20, "Not a directory", str(tmp_path / "file" / "x"))
    assert "file is in the way in the output folder" in unexpected("Step", error)
    words = unexpected("Step", ValueError("bad"))
    assert words == "Step failed unexpectedly (ValueError: bad)."
    assert "no reason given" in unexpected("Step", ValueError())
    assert "needs about" not in unexpected("Step", MemoryError())


def test_a_product_that_is_not_made_is_removed_and_no_other(tmp_path):
    own = {"Sources": [f"bids:raw:{NAME}"]}
    anat = tmp_path / "out" / "sub-01" / "anat"
    for stem in ("res-1mm_desc-srstd_T1w", "res-2mm_desc-srstd_T1w"):
        put(anat / f"sub-01_{stem}.json", own)
        put(anat / f"sub-01_{stem}.nii.gz", np.ones((2, 2, 2), np.float32))
    step = WriteProduct(
        source=image().to_json(), output_dir=str(tmp_path / "out"), product="srstd",
        output_resolution=(1.0, 1.0, 1.0),
    )  # fmt: skip
    assert run(step, tmp_path / "1").failure == ""
    assert {path.name for path in anat.iterdir()} == {
        "sub-01_res-2mm_desc-srstd_T1w.json", "sub-01_res-2mm_desc-srstd_T1w.nii.gz",
    }  # fmt: skip


def test_a_request_with_an_unknown_option_is_refused(tmp_path, volume):
    step = WriteRequest(entries=entries(tmp_path, volume), options={"num_step": 3})
    with pytest.raises(UsageError, match="num_steps"):
        run(step, tmp_path / "1")


@pytest.mark.parametrize("sloppy", [False, True])
def test_a_result_in_a_standard_space_has_the_record_of_its_registration(
    tmp_path, volume, monkeypatch, sloppy
):
    from bids_moediff.imaging import standard_space

    seen: dict[str, Any] = {}
    place = tmp_path / "tpl-A" / "tpl-A_T1w.nii.gz"
    template = SimpleNamespace(image=place)
    moved = nib.Nifti1Image(np.full((3, 3, 3), 7, np.float32), np.eye(4))

    def find(name: str, suffix: str) -> Any:
        seen["find"] = (name, suffix)
        return template

    def register(*given: Any) -> Any:
        seen["register"] = given
        return "transform", {"space": "A", "warnings": ["poor"]}

    def to_template(*given: Any) -> Any:
        seen["to"] = given
        return moved

    for name, function in (
        ("find_template", find), ("register", register), ("to_template", to_template),
    ):  # fmt: skip
        monkeypatch.setattr(standard_space, name, function)
    record = put(tmp_path / "record.json", {"Model": "m", "Warnings": ["own"]})
    mask = put(tmp_path / "mask.nii", np.full((12, 12, 12), 3, np.uint8))
    step = MAKERS["ToStandardSpace"](
        source=image("sub-01_T2w").to_json(), sr=volume, srmask=mask, record=record, label="A",
        output_resolution=(1.0, 1.0, 2.0), sloppy=sloppy,
    )  # fmt: skip
    found = run(step, tmp_path / "1")
    assert seen["find"] == ("A", "T2w")
    one, inside, of, spline = seen["register"]
    assert (one.get_fdata().max(), inside.get_fdata().max(), of) == (1, 3, template)
    assert spline is not sloppy
    assert seen["to"][0].get_fdata().max() == 1 and seen["to"][1:3] == ("transform", template)
    assert tuple(seen["to"][3]) == (1.0, 1.0, 2.0)
    assert nib.load(found.standard).get_fdata().max() == 7
    assert read(found.record) == {
        "Model": "m", "Warnings": ["own", "poor"], "Registration": {"space": "A"},
        "SpatialReference": "tpl-A/tpl-A_T1w.nii.gz",
    }  # fmt: skip
    lacking = MAKERS["ToStandardSpace"](
        source=image().to_json(), sr=volume, record=record, label="A",
        output_resolution=(1.0, 1.0, 2.0),
    )  # fmt: skip
    assert not run(lacking, tmp_path / "2").get().get("standard"), "without a mask there is none"


@pytest.mark.parametrize(
    ("answer", "used", "reason"),
    [
        ("good", True, "chosen"), ("poor", False, "It fits badly."),
        (ImageError("odd."), False, "No reference was used: odd."),
        (ValueError("x"), False, "The reference failed unexpectedly (ValueError: x)."),
        (None, False, "chosen"),
    ],
)  # fmt: skip
def test_a_reference_is_used_or_says_why_not(tmp_path, volume, monkeypatch, answer, used, reason):
    """``None``: there is no image that may guide this one."""
    from bids_moediff.interfaces import reference
    from bids_moediff.reports import reference as picture

    drawn: list[Any] = []
    other = nib.Nifti1Image(np.full((4, 4, 4), 5, np.float32), np.eye(4))
    aligned = nib.Nifti1Image(np.full((4, 4, 4), 6, np.float32), np.eye(4))

    def use(target: Any, found: Any) -> Any:
        assert (target.get_fdata().max(), found.get_fdata().max()) == (1, 5)
        if isinstance(answer, Exception):
            raise answer
        good = answer == "good"
        record = {"Used": good, "Reason": "" if good else "It fits badly.", "Overlap": 0.5}
        kept = aligned if good else None
        return SimpleNamespace(aligned=SimpleNamespace(image=aligned), image=kept, record=record)

    monkeypatch.setattr(reference, "conform", lambda path: (other, []))
    monkeypatch.setattr(reference, "use_reference", use)
    monkeypatch.setattr(picture, "write_reference", lambda *given: drawn.append(given))
    old = tmp_path / "out" / "sub-01" / "figures" / "sub-01_desc-reference_T1w.png"
    old.parent.mkdir(parents=True)
    old.touch()
    choice = {"Source": "s", "Used": False, "Reason": "chosen"}
    step = reference.AlignReference(
        source=image().to_json(), image=volume, choice=json.dumps(choice),
        output_dir=str(tmp_path / "out"),
        reference="" if answer is None else image("sub-01_T2w").to_json(),
    )  # fmt: skip
    found = run(step, tmp_path / "1")
    record = read(found.record)
    assert (record["Used"], record["Reason"], record["Source"]) == (used, reason, "s")
    assert not old.exists(), "the picture of an earlier run"
    assert len(drawn) == (answer in ("good", "poor"))
    if drawn:
        target, before, after, path = drawn[0]
        tops = [one.get_fdata().max() for one in (target, before, after)]
        assert tops == [1, 5, 6] and path == old
    if used:
        assert nib.load(found.reference).get_fdata().max() == 6
    else:
        assert not found.get().get("reference")
    assert found.failure == "", "a failure loses the reference and not the image"


def test_text_of_others_is_fit_to_be_shown():
    assert counted(0, "image") == "0 images" and counted(1, "image") == "1 image"
    assert visible("a\tb\n\x1b[31m\u202ec") == "a\tb\n\\x1b[31m\\u202ec"
    assert one_line(" a \n b\t\x07 ") == "a b \\x07"
    assert one_line("x" * 400) == "x" * 400
    assert one_line("x" * 401) == "x" * 399 + "…" and len(one_line("x" * 500, 10)) == 10
    assert (
        without_folders("no '/a/b c/d.nii' or \"/e/f\" or /g/h") == "no 'd.nii' or \"f\" or /g/h"
    )
    assert (
        names_only("in /a/b/c.nii, see http://x/y and a/b/c")
        == "in c.nii, see http://x/y and a/b/c"
    )
    folders = (Path("/data/my study"), None, Path("/data"), 3)
    assert names_only("/data/my study/x and /data/z", folders) == "my study/x and data/z"


def test_quality_is_that_of_the_image_in_its_mask(tmp_path, volume, monkeypatch):
    from bids_moediff.interfaces.quality import ImageQuality
    from bids_moediff.quality import figures

    seen: list[Any] = []

    def judge(*given: Any) -> Any:
        seen.append(given)
        return {"cnr": 2.0}, ["odd"]

    monkeypatch.setattr(figures, "judge", judge)
    mask = put(tmp_path / "mask.nii", np.full((12, 12, 12), 3, np.uint8))
    step = ImageQuality(source=image("sub-01_T2w").to_json(), image=volume, mask=mask)
    found = run(step, tmp_path / "1")
    ((scan, inside, suffix, metadata),) = seen
    assert (scan.get_fdata().max(), inside.get_fdata().max(), suffix) == (1, 3, "T2w")
    assert metadata == image().metadata
    assert (read(found.quality), read(found.doubts)) == ({"cnr": 2.0}, ["odd"])
