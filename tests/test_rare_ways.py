# SPDX-License-Identifier: Apache-2.0
"""Ways through the app that few runs take: files in the way, other jobs, odd arguments."""

import errno
import fcntl
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest

from bids_moediff import __version__
from bids_moediff.bids import database, dataset
from bids_moediff.bids.discover import find_participants, nothing_to_process
from bids_moediff.bids.earlier_masks import find_brain_mask
from bids_moediff.bids.earlier_products import remove_product
from bids_moediff.bids.image import AnatomicalImage, Participant
from bids_moediff.bids.names import derivative_path, figure_path
from bids_moediff.bids.past_runs import NOTE
from bids_moediff.cli import app, check, evaluate, evaluation, sampling, superres
from bids_moediff.cli.parser import build_parser
from bids_moediff.cli.places import require_record
from bids_moediff.errors import (
    DeviceError,
    ImageError,
    NothingToProcessError,
    UsageError,
)
from bids_moediff.evaluation import hallucination
from bids_moediff.evaluation import sampling as measured
from bids_moediff.execution import batch, execute, notes, preflight
from bids_moediff.families import load
from bids_moediff.interfaces import run_record
from bids_moediff.interfaces.products import WriteProduct
from bids_moediff.quality.figures import entropy_focus
from bids_moediff.reports.combined import scan_paths
from bids_moediff.reports.plots import intensity_step
from bids_moediff.runtime import devices, locks
from bids_moediff.runtime.device_lock import hold_device
from bids_moediff.settings import Settings, load_settings
from bids_moediff.workflows.participant import RunPlan

ENDINGS = (".nii.gz", ".json", ".tsv")
PLAN = RunPlan("student", "", ("cpu",), 1, "run")


def image(name: str = "sub-01_T1w", **more: Any) -> AnatomicalImage:
    path, suffix = f"sub-01/anat/{name}.nii.gz", name.split("_")[-1]
    return AnatomicalImage(Path("/x") / path, path, {"sub": "01"}, suffix, {}, **more)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A data set with one image, which is a stub."""
    scan = tmp_path / "raw" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"stub")
    content = {"Name": "x", "BIDSVersion": "1.10.0"}
    (tmp_path / "raw" / "dataset_description.json").write_text(json.dumps(content))
    return tmp_path / "raw"


def settings_for(raw: Path, **more: Any) -> Settings:
    given = {"bids_dir": raw, "output_dir": raw.parent / "out", "analysis_level": "participant"}
    return load_settings(given | more, None, {})


@pytest.mark.parametrize(("tag", "more"), [("", {}), ("1.2", {"Tag": "1.2"})])
def test_a_singularity_image_is_named_by_its_address(raw, tag, more):
    variables = {"BIDS_MOEDIFF_SINGULARITY_URL": "oras://x", "BIDS_MOEDIFF_DOCKER_TAG": tag}
    settings = settings_for(raw)
    dataset.prepare_output(settings, variables)
    content = json.loads((settings.output_dir / "dataset_description.json").read_text())
    assert content["GeneratedBy"][0] == {
        "Name": "bids_moediff", "Version": __version__,
        "Container": {"Type": "apptainer", "URI": "oras://x", **more},
    }  # fmt: skip


@pytest.mark.parametrize("count", [10, 11, 13])
def test_ten_remarks_are_enough_where_nothing_is_to_be_done(raw, count):
    words = [f"remark {number}" for number in range(count)]
    found = [Participant("01", (), tuple(words[:7])), Participant("02", (), tuple(words[5:]))]
    more = [f"... and {count - 10} more remarks."] if count > 10 else []
    assert nothing_to_process(settings_for(raw), found).remarks == (*words[:10], *more)


@pytest.mark.parametrize("place", ["sourcedata/raw", "rawdata", "bids/deep"])
def test_the_folder_with_the_participants_is_named(tmp_path, place):
    (tmp_path / place / "sub-01").mkdir(parents=True)
    (tmp_path / "raw").mkdir()
    with pytest.raises(NothingToProcessError, match=f"participants in {place}:"):
        find_participants(settings_for(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(NothingToProcessError) as error:
        find_participants(settings_for(tmp_path / "empty"))
    assert "participants in" not in str(error.value)


def test_a_database_that_another_job_made_first_is_used(raw, tmp_path, monkeypatch):
    folder, replaced = tmp_path / "cache" / "db", Path.replace

    def replace(self: Path, target: Path) -> Any:
        if target == folder:
            shutil.copytree(self, folder)
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    (path,) = database.images_in_database(raw, folder, "01")
    assert path.name == "sub-01_T1w.nii.gz"
    assert [item.name for item in folder.parent.iterdir()] == ["db"]


def test_a_check_without_torch_goes_no_further(monkeypatch):
    def no_torch() -> Any:
        raise DeviceError("torch does not load.")

    monkeypatch.setattr(devices, "ask_torch", no_torch)
    monkeypatch.setattr(devices, "driver_is_visible", lambda: True)
    monkeypatch.setattr(devices, "driver_version", lambda: "")
    driver, torch = check._devices(Settings())
    assert driver[:2] == (True, "driver") and "unknown" in driver[2]
    assert torch == (False, "torch", "torch does not load.", 69)


def test_a_group_of_subjects_who_are_not_there_is_said(raw, tmp_path, capsys):
    names = ["01", "09", "08", "09"]
    groups = [
        [f"sub-{n}/a/sub-{n}_run-{k}_{r}.nii" for k in "12"]
        for n, r in zip(names, "abcd", strict=True)
    ]
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    app._check_groups(raw, tmp_path / "groups.json")
    assert "not in the data set: sub-09, sub-08.\n" in capsys.readouterr().err
    (tmp_path / "groups.json").write_text(json.dumps(groups[:1]))
    app._check_groups(raw, tmp_path / "groups.json")
    assert capsys.readouterr().err == ""


def test_help_shows_each_placeholder_once():
    text = build_parser().format_help()
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("-")]
    assert any(line.startswith("-w, --work-dir DIR") for line in lines)
    assert any(line.split()[0] == "--keep-workdir" for line in lines)


def test_the_model_in_words(monkeypatch, capsys):
    model = SimpleNamespace(name="m", config={"version": "3"}, sha256="0123456789abcdef")
    monkeypatch.setattr(load, "load_model", lambda name: model)
    assert superres.check_model({"model": "student"}) == 0
    assert capsys.readouterr().out == "m, version 3, SHA-256 0123456789ab…\n"
    model.config = {}
    superres.check_model({"model": "student"})
    assert "version unknown" in capsys.readouterr().out


def test_samples_are_measured_with_the_options_of_the_call(monkeypatch, tmp_path, capsys):
    done: list[Any] = []

    def each(options: Any, program: str, resolvers: Any, work: Any) -> bool:
        loaded = SimpleNamespace(head=SimpleNamespace(name="h"))
        resolver = SimpleNamespace(model=SimpleNamespace(name="m"))
        done.append(work(loaded, SimpleNamespace(key="p"), resolver))
        assert (resolvers, options.protocols) == (["student"], ["a", "b"])
        return len(done) < 2

    def examine(loaded: Any, protocol: Any, resolver: Any, asked: Any) -> list[dict[str, Any]]:
        return [{"head": loaded.head.name, "n": asked.num_samples, "seed": asked.random_seed}]

    monkeypatch.setattr(evaluation, "each_result", each)
    monkeypatch.setattr(evaluation, "load_models", lambda options: options.model)
    monkeypatch.setattr(measured, "examine", examine)
    monkeypatch.setattr(measured, "markdown", lambda rows: f"{len(rows)} rows")
    monkeypatch.setattr(measured, "COLUMNS", ["head", "n", "seed"])
    words = [str(tmp_path), "--heads", "x", "--protocols", "a", "b", "--random-seed", "5"]
    assert sampling.run_sampling(words) == 0
    assert done == ["h  p  m"] and capsys.readouterr().out == "1 rows\n"
    assert (tmp_path / "sampling.tsv").read_text() == "head\tn\tseed\nh\t8\t5\n"
    assert (tmp_path / "sampling.md").read_text() == "1 rows"
    assert evaluate.main(["sampling", *words, "--num-samples", "2"]) == 1, "a head failed"
    assert evaluate.main(["sampling", *words, "--num-samples", "1"]) == 2
    assert evaluate.main(["sampling", *words, "--omp-nthreads", "0"]) == 2


@pytest.mark.parametrize(
    ("record", "there", "good"),
    [
        ('{"Model": "x"}', False, True), ('{"Other": 1}', False, False), ("3", False, False),
        ("{", False, False), ("{", True, True), (None, False, True), ("link", False, False),
    ],
)  # fmt: skip
def test_the_sidecar_of_another_image_is_not_replaced(tmp_path, record, there, good):
    output = tmp_path / "x.nii.gz"
    if there:
        output.touch()
    if record == "link":
        (tmp_path / "x.json").symlink_to("nowhere")
    elif record is not None:
        (tmp_path / "x.json").write_text(record)
    if good:
        require_record(output, "Model")
    else:
        with pytest.raises(UsageError, match="belongs to another image"):
            require_record(output, "Model")


def test_logs_that_cannot_be_read_are_one_failure(tmp_path, monkeypatch):
    def odd(*_: Any) -> Any:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(batch, "read_outcomes", odd)
    participant = Participant("01", (image(),))
    (row,) = batch._outcomes_of(Settings(output_dir=tmp_path), participant, PLAN, tmp_path)
    assert (row.participant, row.image, row.status) == ("01", "", "failed")
    assert "ZeroDivisionError" in row.message


def test_who_gets_images_that_may_guide(monkeypatch):
    wide = Participant("01", (image(),), others=(image("sub-01_T2w"),))
    monkeypatch.setattr(batch, "with_others", lambda settings, one: wide)
    monkeypatch.setattr(batch, "takes_reference", lambda model: model == "crfm")
    own = preflight.Checked(Participant("01", (image(),)), ())
    empty = preflight.Checked(Participant("01", ()), ())
    for checked, model, expected in (
        (own, "crfm", wide), (own, "student", own.participant), (empty, "crfm", empty.participant),
    ):  # fmt: skip
        plan = RunPlan(model, "", ("cpu",), 1, "run")
        assert batch._guided(checked, Settings(), plan).participant == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, True), ({"stage": "sr"}, True), ({"stage": "preproc"}, False),
     ({"stage": "report"}, False), ({"boilerplate_only": True}, False)],
)  # fmt: skip
def test_when_groups_are_announced(options, said):
    pair = tuple(image(f"sub-01_run-{n}_T2w") for n in (1, 2))
    group = image("sub-01_desc-srcombined_T2w", members=pair)
    words = batch._words_on_groups(Participant("01", pair, groups=(group,)), Settings(**options))
    sentence = (
        "sub-01_desc-srcombined_T2w: to be combined from sub-01_run-1_T2w, sub-01_run-2_T2w."
    )
    assert words == [sentence] * said


def test_a_participant_without_a_graph_is_refused_as_a_whole(tmp_path, monkeypatch):
    def odd(*_: Any) -> Any:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(batch, "init_single_subject_wf", odd)
    checked = preflight.Checked(Participant("01", (image(),)), ())
    found = batch._buildable(Settings(output_dir=tmp_path), checked, PLAN)
    assert found.participant.images == () and len(found.refusals) == 1
    assert found.refusals[0].image is None and "ZeroDivisionError" in found.refusals[0].message


def test_participants_that_differ_in_case_only(raw, monkeypatch):
    monkeypatch.setattr(preflight, "ignores_case", lambda folder: folder.name == "out")
    for label in ("a1", "A1"):
        (raw / f"sub-{label}").mkdir()
    first, second = preflight.check_participants(settings_for(raw), ["A1", "a1"])
    assert first.refusals == () or "upper and lower" not in first.refusals[0].message
    (refused,) = second.refusals
    assert second.participant.images == () and refused.image is None
    assert "sub-a1 differs from sub-A1" in refused.message and "out" in refused.message


def test_a_folder_that_cannot_be_listed_tells_cases_apart(tmp_path, monkeypatch):
    def closed(self: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", closed)
    assert preflight.ignores_case(tmp_path) is False


def test_who_had_nothing_to_do_is_noted_with_the_reason(raw):
    settings = settings_for(raw, participant_label=["01"], modalities=["FLAIR"])
    settings.output_dir.mkdir()
    notes.note_error(settings, "run", NothingToProcessError("Nothing."))
    (path,) = settings.output_dir.glob("logs/sub-01/run/*.json")
    note = json.loads(path.read_text())
    assert note["exit_code"] == 66 and "--modalities FLAIR" in note["message"]
    assert "--participant-label" not in note["message"], "the same words for everybody"


def test_a_map_of_labels_has_a_table(tmp_path):
    record, labels = tmp_path / "record.json", tmp_path / "labels.nii"
    record.write_text(json.dumps({"Experts": ["a", "b"], "x": 1}))
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), labels)
    step = WriteProduct(
        source=image().to_json(), output_dir=str(tmp_path / "out"), product="expert",
        content=str(labels), record=str(record), output_resolution=(1.0, 1.0, 1.0),
    )  # fmt: skip
    written = tmp_path / "out" / step.run(cwd=str(tmp_path)).outputs.path
    table = written.with_name(written.name.replace(".nii.gz", ".tsv"))
    assert table.read_text().splitlines()[1:] == ["1\ta", "2\tb"]
    assert json.loads(table.with_suffix(".json").read_text())["LabelMap"] == {"a": 1, "b": 2}


def test_what_is_known_of_an_image_that_no_run_recorded(tmp_path):
    zooms = (1.0, 1.0, 1.0)
    before = run_record.previous_item(tmp_path, image(), zooms)
    assert (before["status"], before["message"]) == ("failed", run_record.PREPARED)
    log = tmp_path / "logs" / "sub-01" / "20260101T000000Z_a"
    log.mkdir(parents=True)
    stopped = run_record.previous_item(tmp_path, image(), zooms)
    assert stopped["message"] == run_record.PREPARED, "this run is the one without a record"
    (log / NOTE).write_text(json.dumps({"message": "It is odd.", "exit_code": 1}))
    assert run_record.previous_item(tmp_path, image(), zooms)["message"] == "It is odd."
    made = tmp_path / "sub-01" / "anat" / "sub-01_res-1mm_desc-sr_T1w.nii.gz"
    made.parent.mkdir(parents=True)
    made.touch()
    assert run_record.previous_item(tmp_path, image(), zooms)["status"] == "done"
    assert run_record.previous_item(tmp_path, image(), (2.0,) * 3)["status"] == "failed"


def test_files_of_the_scans_of_a_group(tmp_path):
    raw, out = tmp_path / "raw" / "sub-01" / "anat", tmp_path / "out" / "sub-01" / "anat"
    for folder in (raw, out):
        folder.mkdir(parents=True)
    sources = [f"sub-01/anat/sub-01_run-{number}_T2w.nii.gz" for number in (1, 2)]
    made = [out / "sub-01_run-1_desc-preproc_T2w.nii.gz", raw / "sub-01_run-2_T2w.nii.gz"]
    mask = out / "sub-01_run-2_space-T2w_desc-brain_mask.nii.gz"
    for path in (*made, mask):
        path.touch()
    found = scan_paths(tmp_path / "out", sources, tmp_path / "raw")
    assert found == {
        "sub-01_run-1_T2w": {"preproc": made[0]},
        "sub-01_run-2_T2w": {"mask": mask, "raw": made[1]},
    }
    assert "raw" not in scan_paths(tmp_path / "out", sources, None)["sub-01_run-2_T2w"]


def test_a_busy_device_is_waited_for_and_said_once(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bids_moediff.runtime.device_lock.POLL_SECONDS", 0.001)
    first, waited = hold_device(["cuda:1"], tmp_path / "locks"), []
    assert first.__enter__() == "cuda:1"
    tries = iter(range(3))

    def free(_: float) -> None:
        if next(tries) == 2:
            first.__exit__(None, None, None)

    monkeypatch.setattr("bids_moediff.runtime.device_lock.time.sleep", free)
    with hold_device(["cuda:1"], tmp_path / "locks", on_wait=lambda: waited.append(1)) as name:
        assert (name, waited) == ("cuda:1", [1])
        with hold_device(["cuda:1", "cuda:0"], tmp_path / "locks") as other:
            assert other == "cuda:0"
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    with pytest.raises(ValueError, match="no device"), hold_device([]):
        pass


def test_a_lock_that_goes_while_it_is_taken_is_made_anew(tmp_path, monkeypatch):
    path, flock, lost = tmp_path / "new" / "lock", fcntl.flock, [True]

    def racing(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        if lost and lost.pop():
            path.unlink()

    monkeypatch.setattr(locks.fcntl, "flock", racing)
    held, other = locks.FileLock(path), locks.FileLock(path)
    assert held.take() and path.exists() and not lost
    assert not other.take()
    other.drop()
    assert path.exists(), "it is another's"
    held.drop()
    assert not path.exists() and other.take()
    other.drop()

    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    assert held.take() and other.take(), "nothing is locked here"
    assert path.exists()
    held.drop()
    other.drop()
    assert not path.exists()


def test_figures_of_nothing():
    assert entropy_focus(np.zeros((3, 3))) == 0.0 == entropy_focus(np.ones(1))
    flat = np.full((40, 3, 3), 5.0)
    assert intensity_step(flat) == 0.0
    assert intensity_step(np.arange(0, 800.0, 2).reshape(40, 10)) == 2.0


def test_a_participant_whose_folder_is_not_here_costs_itself(raw, monkeypatch, capsys):
    from bids_moediff.cli import degrade

    written: list[str] = []
    (raw / "sub-00").symlink_to("nowhere")
    monkeypatch.setattr(degrade, "_write", lambda source, *_: written.append(source.name))
    assert degrade.main([str(raw), str(raw.parent / "out"), "--factor", "2"]) == 1
    said = capsys.readouterr().err
    assert "sub-00: " in said and "datalad get sub-00" in said
    assert written == ["sub-01_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("sidecar", "gone"),
    [
        ({"Sources": ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz", "more"]}, True),
        ({"Sources": ["bids:raw:sub-01/anat/sub-01_T2w.nii.gz"]}, False), ({"Sources": 3}, False),
        ([], False), (None, False),
    ],
)  # fmt: skip
def test_only_own_products_are_removed(tmp_path, sidecar, gone):
    zooms = (1.0, 1.0, 1.0)
    made = [tmp_path / derivative_path(image(), "expert", zooms, end) for end in ENDINGS]
    others = [tmp_path / derivative_path(image(), "expert", (2.0,) * 3, ".tsv")]
    figures = tmp_path / "sub-01" / "figures"
    picture = tmp_path / figure_path(image(), "expert", ".png")
    for path in (*made, *others, picture, figures / "other.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    if sidecar is not None:
        made[1].write_text(json.dumps(sidecar))
    remove_product(image(), "expert", tmp_path, zooms)
    assert [path.exists() for path in (*made, picture)] == [not gone] * 4
    assert others[0].exists() and (figures / "other.png").exists()


def test_children_end_by_themselves_or_are_killed(monkeypatch):
    """At the end of a run that was interrupted; also children of children."""
    stubborn = "trap '' TERM; echo ready; exec sleep 60"
    started = [
        subprocess.Popen(["bash", "-c", words], stdout=subprocess.PIPE)
        for words in ("echo ready; exec sleep 60", stubborn, "echo ready")
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    started[2].wait()
    alive = [psutil.Process(process.pid) for process in started[:2]]
    monkeypatch.setattr(execute, "SECONDS_TO_END", 0.2)
    own = SimpleNamespace(children=lambda recursive=False: alive if recursive else [])
    errors = {"NoSuchProcess": psutil.NoSuchProcess, "wait_procs": psutil.wait_procs}
    monkeypatch.setattr(execute, "psutil", SimpleNamespace(Process=lambda: own, **errors))
    execute._end_children()
    assert [process.wait(10) for process in alive] == [-signal.SIGTERM, -signal.SIGKILL]
    for process in started:
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("there", [True, False])
def test_the_graph_is_drawn_where_graphviz_is(tmp_path, monkeypatch, there):
    calls: list[Any] = []
    monkeypatch.setattr(execute, "_dot", lambda workflow: f"graph of {workflow}")
    monkeypatch.setattr(execute.shutil, "which", lambda name: "/bin/dot" if there else None)
    monkeypatch.setattr(
        execute.subprocess, "run", lambda command, check: calls.append((command, check))
    )
    workflow: Any = "w"
    execute._write_graph(Settings(output_dir=tmp_path), workflow)
    path = tmp_path / "logs" / "graph.dot"
    assert path.read_text() == "graph of w"
    command = ["/bin/dot", "-Tsvg", "-o", str(path.with_suffix(".svg")), str(path)]
    assert calls == [(command, False)] * there


def test_a_head_that_takes_no_lesions_costs_itself(monkeypatch, tmp_path, capsys):
    used: list[Any] = []

    class Head(SimpleNamespace):
        def load(self) -> str:
            if self.name == "bad":
                raise ImageError("It is odd.")
            return f"loaded {self.name}"

    def run(loaded: Any, protocols: Any, methods: Any, lesions: Any, tables: Any, *more: Any):
        used.append((loaded, [one.key for one in protocols], methods, lesions, more[0]))
        tables.heads.append({"head": loaded, "protocol": "p", "method": "m"})
        more[1](tables.heads[-1])

    def place(loaded: str, repeats: int, seed: int) -> tuple[str, int, int]:
        return loaded, repeats, seed

    heads = [Head(name=name) for name in ("bad", "good", "other")]
    monkeypatch.setattr(evaluate, "load_heads", lambda _: heads)
    monkeypatch.setattr(evaluate, "load_methods", lambda _: ["own"])
    monkeypatch.setattr(hallucination, "place_lesions", place)
    monkeypatch.setattr(hallucination, "run", run)
    pages: list[Any] = []
    monkeypatch.setattr(evaluate, "_write_lesion_page", lambda *given: pages.append(given))
    words = ["hallucination", str(tmp_path), "--heads", "x", "--protocols", "x2iso-kspace"]
    assert evaluate.main([*words, "--repeats", "3", "--random-seed", "4"]) == 1
    assert "bad: It is odd." in capsys.readouterr().err
    assert [item[0] for item in used] == ["loaded good", "loaded other"]
    loaded, protocols, methods, lesions, figures = used[0]
    assert (protocols, lesions) == (["x2iso-kspace"], (loaded, 3, 4))
    assert figures == tmp_path / "figures" and methods[-1] == "own"
    assert [method.name for method in methods[:-1]] == ["cubic", "back-projection"]
    assert (tmp_path / "heads.tsv").read_text().count("loaded") == 2
    ((tables, folder),) = pages
    assert len(tables.heads) == 2 and folder == tmp_path
    del heads[1:]
    assert evaluate.main(words) == 1 and len(pages) == 1
    assert evaluate.main([*words, "--repeats", "0"]) == 2
    heads[:] = [Head(name="good")]
    assert evaluate.main(words) == 0 and used[-1][3] == ("loaded good", 2, 0)


@pytest.mark.parametrize(("count", "more"), [(5, ""), (6, " and 1 more"), (8, " and 3 more")])
def test_five_names_are_enough_at_the_end(raw, count, more):
    for number in range(count):
        (raw / f"Subject{number}").mkdir()
    (raw / "Subject").mkdir()
    (raw / "sub-x").touch()
    empty = [Participant(f"{number}", ()) for number in range(count)]
    odd = Participant("odd", (), problems=("It cannot be read.",))
    left_out = {f"T2w {preflight.LEFT_OUT}": 3, "T1map": 2}
    found = [*empty, odd, Participant("01", (image(),), passed=left_out)]
    passed, without, near = preflight.closing_remarks(settings_for(raw), found)
    assert passed == "Not taken: 2 T1map."
    assert without.endswith(f": sub-0 sub-1 sub-2 sub-3 sub-4{more}.")
    assert f": Subject0 Subject1 Subject2 Subject3 Subject4{more};" in near
    asked = settings_for(raw, participant_label=["01"])
    assert preflight.closing_remarks(asked, found) == [passed, without]
    assert preflight.closing_remarks(asked, [odd]) == []


@pytest.mark.parametrize(("count", "more"), [(0, None), (3, ""), (4, ", ...")])
def test_three_masks_that_do_not_fit_are_named(tmp_path, count, more):
    anat = tmp_path / "other" / "sub-01" / "ses-9" / "anat"
    anat.mkdir(parents=True)
    names = [f"sub-01_ses-9_run-{n}_desc-brain_mask.nii.gz" for n in range(count)]
    for name in names:
        (anat / name).touch()
    found = find_brain_mask(image(), tmp_path / "other")
    there = "" if more is None else f" (there: {', '.join(names[:3])}{more})"
    assert found.path is None and f"by its name{there}:" in found.remark
