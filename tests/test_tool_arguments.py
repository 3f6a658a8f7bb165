# SPDX-License-Identifier: Apache-2.0
"""From the words of a command to the function that does the work: nothing is lost or swapped."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.cli import degrade, evaluation, superres, train
from bids_moediff.cli.common import run_command, unknown_option
from bids_moediff.cli.parser import build_parser
from bids_moediff.errors import GraphError, ImageError, MoediffError, UsageError, WeightsError
from bids_moediff.evaluation import degradation, truth
from bids_moediff.evaluation import gates as protocols_of
from bids_moediff.execution import progress as display
from bids_moediff.imaging.grid import NOT_RESTORED
from bids_moediff.inference import simple
from bids_moediff.training import export as exporting
from bids_moediff.training import pipeline, recipe


class Seen(dict[str, Any]):
    """Keeps the arguments of functions that are replaced."""

    def noting(self, name: str, answer: Any = None) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            self[name] = (given, named)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_export_writes_the_runs_into_the_last_folder(seen, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "export", seen.noting("export", "abc"))
    catalogue: Any = object()
    words = "export runs/mean runs/experts model --pack p.pack --hardware H".split()
    assert train.main(words, catalogue) == 0
    given, named = seen["export"]
    assert given == ([Path("runs/mean"), Path("runs/experts")], Path("model"), catalogue)
    assert named == {"pack": Path("p.pack"), "machine": "H"}
    assert capsys.readouterr().out == "model: weights with SHA-256 abc\n"
    assert train.main(["export", "a", "b"], catalogue) == 0
    assert seen["export"][1] == {"pack": None, "machine": ""}


def test_training_gets_the_recipe_with_its_changes(seen, monkeypatch):
    monkeypatch.setattr(recipe, "load_recipes", seen.noting("load", ["a recipe"]))
    monkeypatch.setattr(pipeline, "run_recipes", seen.noting("run"))
    catalogue: Any = object()
    words = "--recipe student --output run --data d --set batch=8 width=4 --set x=1 --seed 7"
    more = "--steps 9 --smoke --minutes 2.5 --device cpu --init a b --validation-label 1 2"
    assert train.main([*words.split(), *more.split()], catalogue) == 0
    assert seen["load"] == (
        ("student", catalogue, ["batch=8", "width=4", "x=1", "seed=7"]),
        {"smoke": True, "steps": 9},
    )
    (recipes, options, known), _ = seen["run"]
    assert (recipes, known) == (["a recipe"], catalogue)
    assert (options.output, options.data, options.minutes) == (Path("run"), [Path("d")], 2.5)
    assert options.init == [Path("a"), Path("b")] and options.device == "cpu"
    assert (options.pairs, options.max_voxel, options.modalities) == ("auto", 1.6, [])
    assert options.validation_label == ["1", "2"]
    seen.clear()
    assert train.main(["--recipe", "x", "--output", "run"], catalogue) == 0
    assert seen["load"][0][2] == [] and seen["load"][1] == {"smoke": False, "steps": None}


@pytest.mark.parametrize(
    ("words", "words_of_error"),
    [
        ("", "Name a recipe with --recipe"), ("--recipe x", "with --output"),
        ("--recipe x --output y --stepps 3", "did you mean --steps"),
        ("export one", "see bids_moediff-train export --help"),
    ],
)  # fmt: skip
def test_training_says_what_is_missing(seen, monkeypatch, capsys, words, words_of_error):
    monkeypatch.setattr(recipe, "load_recipes", seen.noting("load", []))
    monkeypatch.setattr(pipeline, "run_recipes", seen.noting("run"))
    assert train.main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("bids_moediff-train: ") and words_of_error in said
    assert "run" not in seen


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (WeightsError("x"), 78), (MoediffError("x"), 1)],
)
def test_the_exit_code_of_a_training(seen, monkeypatch, capsys, error, code):
    monkeypatch.setattr(recipe, "load_recipes", seen.noting("load", error))
    assert train.main(["--recipe", "x", "--output", "y"]) == code
    assert capsys.readouterr().err.startswith("bids_moediff-train: ")


def test_a_pack_alone_needs_no_recipe(seen, monkeypatch):
    monkeypatch.setattr(pipeline, "write_pack", seen.noting("pack"))
    assert train.main(["--data", "d", "--pack-only", "p.pack", "--max-megabytes", "3"]) == 0
    (options, path), _ = seen["pack"]
    assert path == Path("p.pack") and options.max_megabytes == 3.0


@pytest.fixture
def scan(tmp_path) -> Path:
    path = tmp_path / "in.nii.gz"
    data = np.random.default_rng(0).uniform(10, 90, (16, 16, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    path.with_name("in.json").write_text('{"SliceThickness": 3.5, "Odd": 1}')
    return path


def result_of(scan: Path, **record: Any) -> Any:
    known = {"Model": "m", "OutputVoxelSize": [1.0, 1.0, 1.25], "Warnings": ["own"]}
    image = nib.load(scan)
    return SimpleNamespace(
        image=image, maps={"sample_1": image}, record=known | record,
        combined=SimpleNamespace(image=image, count=image, scans=[
            SimpleNamespace(kept=True), SimpleNamespace(kept=False),
        ]),
    )  # fmt: skip


def test_one_image_goes_with_all_that_belongs_to_it(seen, monkeypatch, scan, capsys):
    monkeypatch.setattr(simple, "restore", seen.noting("restore", result_of(scan)))
    monkeypatch.setattr(display, "open_display", lambda _: SimpleNamespace(close=closed.pop))
    closed = [True]
    for name, content in (("m.nii.gz", np.uint8), ("r.nii.gz", np.float32)):
        image = nib.load(scan)
        data = (np.asarray(image.dataobj) > 50).astype(content)
        if content is np.float32:
            data = np.asarray(image.dataobj) * 2
        nib.save(nib.Nifti1Image(data, image.affine), scan.with_name(name))
    out = scan.with_name("out.nii.gz")
    words = [scan, out, "--mask", scan.with_name("m.nii.gz"), "--num-samples", "3"]
    words += ["--reference", scan.with_name("r.nii.gz"), "--device", "cpu", "--output-resolution"]
    assert superres.main([*map(str, words), "1", "1", "1.25", "--noise", "2"]) == 0
    (given, options), named = seen["restore"]
    assert closed == [], "the bar ends"
    assert np.array_equal(given.image.dataobj, nib.load(scan).dataobj)
    assert float(np.asarray(given.mask.dataobj).max()) == 1
    assert (options.num_samples, options.sample, options.noise) == (3, "posterior", 2.0)
    assert options.output_resolution == (1.0, 1.0, 1.25) and options.model == "auto"
    assert named["device"] == "cpu" and named["key"] == "in.nii.gz"
    assert named["metadata"]["SliceThickness"] == 3.5
    assert float(np.asarray(named["reference"].dataobj).max()) > 150
    record = json.loads(out.with_name("out.json").read_text())
    assert record["Warnings"][-1] == "own" and record["FilesBeside"] == ["out_sample_1.nii.gz"]
    said = capsys.readouterr().err
    assert "Warning: own" in said and f"{out}: 1 x 1 x 1.25 mm, by m" in said


@pytest.mark.parametrize(
    ("words", "number", "sample"),
    [
        ("", 1, None),
        ("--num-samples 2 --sample texture", 2, "texture"),
        ("--sample texture", 1, "texture"),
    ],
)
def test_samples_that_are_written(seen, monkeypatch, scan, capsys, words, number, sample):
    answer = result_of(scan, Warnings=[NOT_RESTORED])
    monkeypatch.setattr(simple, "restore", seen.noting("restore", answer))
    assert superres.main([str(scan), str(scan.with_name("o.nii.gz")), *words.split()]) == 0
    (given, options), named = seen["restore"]
    assert (options.num_samples, options.sample) == (number, sample)
    assert given.mask is None and named["reference"] is None and named["device"] == "auto"
    assert "mm, not restored" in capsys.readouterr().err


def test_several_images_go_in_their_order(seen, monkeypatch, scan, capsys):
    monkeypatch.setattr(simple, "restore_several", seen.noting("several", result_of(scan)))
    monkeypatch.setattr(display, "open_display", lambda _: SimpleNamespace(close=closed.pop))
    closed = [True]
    other = scan.with_name("b.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(nib.load(scan).dataobj) * 3, nib.load(scan).affine), other)
    out = scan.with_name("out.nii.gz")
    assert superres.main([str(scan), str(other), str(out), "--planes", "3"]) == 0
    (scans, options), named = seen["several"]
    assert closed == [], "the bar ends"
    tops = [float(np.asarray(one.image.dataobj).max()) for one in scans]
    assert tops[1] == pytest.approx(3 * tops[0]) and options.planes == 3
    assert named["keys"] == ["in.nii.gz", "b.nii.gz"] and named["device"] == "auto"
    assert [one.get("SliceThickness") for one in named["metadata"]] == [3.5, None]
    assert scan.with_name("out_srcount.nii.gz").exists()
    assert "from 1 of 2 scans" in capsys.readouterr().err


def test_a_batch_is_told_device_and_options(seen, monkeypatch, tmp_path, capsys):
    from bids_moediff.inference import batch

    request = {"options": {"num_steps": 3}, "images": [], "device": "auto"}
    (tmp_path / "r.json").write_text(json.dumps(request))
    monkeypatch.setattr(batch, "run_request", seen.noting("batch", 1))
    words = ["--request", str(tmp_path / "r.json"), "--results", str(tmp_path / "o.json")]
    assert superres.main([*words, "--device", "cpu", "--random-seed", "4"]) == 1
    (given, results, _), _ = seen["batch"]
    assert (given.options.num_steps, given.options.random_seed, given.device) == (3, 4, "cpu")
    assert results == tmp_path / "o.json"
    assert superres.main(words[:2]) == 2
    assert "--request needs --results" in capsys.readouterr().err


def test_what_is_made_coarse_and_how(seen, monkeypatch, scan):
    out = scan.with_name("coarse.nii.gz")
    monkeypatch.setattr(degradation, "degrade", seen.noting("degrade", (nib.load(scan), {"r": 1})))
    monkeypatch.setattr(degradation, "updated_sidecar", seen.noting("sidecar", {"x": 1}))
    words = "--resolution 1 2 3 --profile kspace box gaussian --gap 0.5 --add-noise 20 --seed 5"
    assert degrade.main([str(scan), str(out), *words.split()]) == 0
    (image, how, key), _ = seen["degrade"]
    assert how == degradation.Coarsening(
        resolution=(1.0, 2.0, 3.0), factors=None, profiles=("kspace", "box", "gaussian"),
        thickness=None, gap=0.5, signal_to_noise=20.0, seed=5,
    )  # fmt: skip
    assert key == 0 and image.shape == (16, 16, 16)
    assert seen["sidecar"][0][0]["SliceThickness"] == 3.5 and seen["sidecar"][0][1] == {"r": 1}
    assert json.loads(out.with_name("coarse.json").read_text()) == {"x": 1}
    assert degrade.main([str(scan), str(out), "--factor", "2", "--thickness", "4"]) == 0
    how = seen["degrade"][0][1]
    assert (how.factors, how.thickness, how.resolution) == ((2.0,) * 3, 4.0, None)
    assert (how.profiles, how.seed, how.signal_to_noise) == (("kspace",) * 3, 0, None)


@pytest.mark.parametrize(
    ("words", "code", "words_of_error"),
    [
        ("--resolution 0.1", 0, ""), ("--resolution 0.09", 2, "between 0.1 and 50"),
        ("--resolution 51", 2, "between 0.1 and 50"), ("--factor 0.9", 2, "between 1 and 20"),
        ("--factor 21", 2, "between 1 and 20"), ("--factor 20", 0, ""),
        ("--factor 2 2", 2, "one value or three, not 2"), ("--factor 2 --gap -1", 2, "--gap must"),
        ("--factor 2 --gap 0", 0, ""), ("--factor 2 --thickness 0", 2, "--thickness must"),
        ("--factor 2 --gap 1 --thickness 1", 2, "not both"),
        ("--factor 2 --profile x", 2, "choose"), ("--factor 2 --seed -1", 2, "at least 0"),
        ("--factor 2 --add-noise 0", 2, "--add-noise is"),
        ("--factor 2 --omp-nthreads 0", 2, "at least 1"), ("", 2, "--resolution --factor"),
    ],
)  # fmt: skip
def test_bounds_of_what_is_made_coarse(
    seen, monkeypatch, scan, capsys, words, code, words_of_error
):
    monkeypatch.setattr(degradation, "degrade", seen.noting("degrade", (nib.load(scan), {})))
    monkeypatch.setattr(degradation, "updated_sidecar", lambda *_: {})
    assert degrade.main([str(scan), str(scan.with_name("c.nii.gz")), *words.split()]) == code
    assert words_of_error in capsys.readouterr().err
    assert ("degrade" in seen) == (code == 0)


def parsed(*words: str) -> argparse.Namespace:
    parser = evaluation.restoring_parser("p", "d", "student", ["one", "two"], 8)
    return parser.parse_args(["out", *words])


def test_what_an_evaluation_is_given(seen, monkeypatch, tmp_path):
    options = parsed()
    assert (options.model, options.num_samples, options.protocols) == (
        ["student"],
        8,
        ["one", "two"],
    )
    assert (options.device, options.precision, options.split) == ("cpu", "auto", "val")
    typed = evaluation.sampling_options(
        parsed("--seed", "3", "--planes", "3", "--sampler", "gaussian")
    )
    assert typed == {"random_seed": 3, "planes": 3, "sampler": "gaussian", "num_samples": 8}
    assert evaluation.sampling_options(parsed("--consistency", "off"))["consistency"] == "off"
    monkeypatch.setattr(truth, "heads_of_files", seen.noting("files", []))
    monkeypatch.setattr(truth, "heads_of_manifest", seen.noting("manifest", []))
    with pytest.raises(UsageError, match="Name heads"):
        evaluation.load_heads(parsed("--heads", "a", "b", "--other-site", "c", "--data", "d"))
    assert seen["files"][0] == ([Path("a"), Path("b")], [Path("c")])
    assert seen["manifest"][0] == (Path("d"), "val")
    heads = [truth.TruthHead(tmp_path / name, "g") for name in "ab"]
    monkeypatch.setattr(truth, "heads_of_files", lambda *_: heads)
    assert evaluation.load_heads(parsed("--heads", "a", "b")) == heads
    middle = evaluation.load_heads(parsed("--heads", "a", "--block", "48"))
    assert [(one.path, one.group, one.side) for one in middle] == [
        (head.path, "g", 48) for head in heads
    ]  # fmt: skip
    with pytest.raises(UsageError, match="at least 48"):
        evaluation.load_heads(parsed("--heads", "a", "--block", "47"))
    options = parsed("--heads", "a")
    options.reference = [tmp_path / "x"]
    with pytest.raises(UsageError, match="1 for 2 heads"):
        evaluation.load_heads(options)
    options.reference *= 2
    with pytest.raises(UsageError, match="There is no file"):
        evaluation.load_heads(options)
    (tmp_path / "x").touch()
    assert [head.reference for head in evaluation.load_heads(options)] == [tmp_path / "x"] * 2
    with pytest.raises(UsageError, match="at least 1"):
        evaluation.check_threads(parsed("--omp-nthreads", "0"))


@pytest.mark.parametrize(
    ("faults", "outcome"),
    [({}, True), ({"a": ImageError("odd")}, False), ({"a": ValueError("odd")}, False)],
)
def test_a_head_that_fails_costs_itself(monkeypatch, capsys, faults, outcome):
    class Head(SimpleNamespace):
        def load(self) -> str:
            if self.name in faults:
                raise faults[self.name]
            return f"loaded {self.name}"

    monkeypatch.setattr(evaluation, "load_heads", lambda _: [Head(name="a"), Head(name="b")])
    monkeypatch.setattr(protocols_of, "select_protocols", lambda names: list(names))
    done: list[tuple[Any, ...]] = []

    def work(*given: Any) -> str:
        done.append(given)
        return "line"

    resolvers: Any = ["r", "s"]
    assert evaluation.each_result(parsed(), "p", resolvers, work) is outcome
    heads = ["a", "b"] if outcome else ["b"]
    assert done == [(f"loaded {h}", p, r) for h in heads for p in ("one", "two") for r in "rs"]
    assert ("p: a: odd" in capsys.readouterr().err) == (not outcome)
    faults |= {"a": ImageError("odd"), "b": ImageError("odd")}
    with pytest.raises(MoediffError, match="No image could be evaluated"):
        evaluation.each_result(parsed(), "p", resolvers, work)


def test_tables_have_six_digits_and_name_what_is_missing(tmp_path):
    rows = [{"a": 1.23456789, "b": float("nan"), "c": 3}, {"a": 1e-9, "c": "x"}]
    evaluation.write_table(rows, ["a", "b", "c"], tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\tc\n1.23457\tn/a\t3\n1e-09\tn/a\tx\n"
    row = {"head": "h", "protocol": "p", "method": "m", "psnr": 30.126, "seconds": 1.26}
    assert evaluation.result_line(row) == "h  p  m  30.13 dB  1.3 s"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (None, 3, ""), (UsageError("No."), 2, "p: No."),
        (KeyboardInterrupt(), 130, "p: Interrupted."),
        (OSError(28, "No space", "f"), 1, "p: f: No space."), (OSError("odd"), 1, "p: odd."),
        (ValueError("x"), 70, "p: Unexpected ValueError; please report"),
        (GraphError("g"), 70, "p: g"),
    ],
)  # fmt: skip
def test_how_every_command_ends(capsys, error, code, words):
    def work(argv: list[str]) -> int:
        assert argv == ["a"]
        if error is not None:
            raise error
        return 3

    assert run_command("p", work, ["a"]) == code
    said = capsys.readouterr().err
    assert words in said and ("Traceback" in said) == (code == 70 and "Unexpected" in said)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("--gpu", "--device"), ("--subjects", "--participant-label"),
        ("--voxel-size", "--output-resolution"),
        ("--n_cpus", "--nprocs"), ("--mem-gb", "--mem"), ("--dryrun", "--dry-run"),
        ("--threads", "--omp-nthreads"), ("--fs-license-file", "no licence is needed"),
        ("--anat-only", "leave it out"), ("--outputs-resolution", "--output-resolution"),
        ("extra", "Unknown argument extra"), ("-x", "Unknown option -x."),
    ],
)  # fmt: skip
def test_words_that_people_try_first(word, hint):
    assert hint in str(unknown_option(word, build_parser()))


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """Names of the parts of the app in the order in which they are called; none does a thing."""
    from bids_moediff.bids import dataset, discover, query
    from bids_moediff.cli import app, check, dry_run
    from bids_moediff.execution import group, notes, run
    from bids_moediff.runtime import devices, temporary

    done: list[str] = []

    def noting(name: str, answer: Any = None) -> Any:
        return lambda *_: done.append(name) or answer

    for module, name, answer in (
        (temporary, "require_temporary_folder", None), (dataset, "check_input", None),
        (dataset, "check_output", None), (query, "load_filters", {}), (group, "run_group", 5),
        (app, "_check_groups", None), (dry_run, "print_plan", 4), (check, "print_check", 6),
        (discover, "find_participants", []), (discover, "require_an_image", None),
        (devices, "require_devices", ["cpu"]), (check, "check_weights", None),
        (run, "run_participants", 3), (notes, "note_error", None),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, noting(name, answer))
    return done


BEGIN = "require_temporary_folder check_input check_output "
IMAGES = "load_filters find_participants require_an_image "
DEVICE = "require_devices check_weights "


@pytest.mark.parametrize(
    ("words", "code", "called"),
    [
        ("d o participant", 3, f"{BEGIN}{IMAGES}{DEVICE}run_participants"),
        ("d o group", 5, f"{BEGIN}run_group"),
        ("d o participant --dry-run", 4, f"{BEGIN}load_filters print_plan"),
        ("d o participant --combine g.json --dry-run", 4,
         f"{BEGIN}load_filters _check_groups print_plan"),
        ("d o participant --combine auto --dry-run", 4, f"{BEGIN}load_filters print_plan"),
        ("--check", 6, "print_check"), ("d o participant --check", 6, "print_check"),
        ("--print-config", 0, ""), ("d o participant --stage sr", 3,
                                    f"{BEGIN}{IMAGES}{DEVICE}run_participants"),
        ("d o participant --stage preproc", 3, f"{BEGIN}{IMAGES}run_participants"),
        ("d o participant --stage report", 3, f"{BEGIN}{IMAGES}run_participants"),
        ("d o participant --reports-only", 3, f"{BEGIN}{IMAGES}run_participants"),
        ("d o participant --boilerplate-only", 3, f"{BEGIN}{IMAGES}run_participants"),
        ("d o", 2, ""), ("a.nii.gz b.nii.gz", 2, ""), ("participant d o", 2, ""),
        ("d o participant --nonsense", 2, ""),
    ],
)  # fmt: skip
def test_what_is_checked_before_what(steps, capsys, words, code, called):
    from bids_moediff.cli.app import main

    assert main(words.split()) == code
    assert steps == called.split()
    capsys.readouterr()


@pytest.mark.parametrize("place", ["require_an_image", "check_weights", "run_participants"])
def test_what_ends_a_run_is_noted_for_the_group_level(steps, monkeypatch, capsys, place):
    from bids_moediff.bids import discover
    from bids_moediff.cli import check
    from bids_moediff.cli.app import main
    from bids_moediff.execution import run

    def fail(*_: Any) -> None:
        raise WeightsError("Gone.")

    module = {"require_an_image": discover, "check_weights": check}.get(place, run)
    monkeypatch.setattr(module, place, fail)
    assert main("d o participant".split()) == 78
    assert steps[-1] == "note_error" and "Gone." in capsys.readouterr().err
    steps.clear()
    monkeypatch.setattr(discover, "find_participants", fail)
    assert main("d o participant --dry-run".split()) == 4
    assert "note_error" not in steps


@pytest.mark.parametrize(
    ("shipped", "written", "loaded"), [(True, False, 0), (False, True, 0), (False, False, 1)]
)
def test_weights_that_are_as_they_were_are_not_loaded_in_advance(
    monkeypatch, shipped, written, loaded
):
    from bids_moediff.cli import check
    from bids_moediff.settings import Settings

    done: list[Any] = []
    monkeypatch.setattr(check, "choose", lambda *_: SimpleNamespace(model="m"))
    monkeypatch.setattr(check, "is_as_shipped", lambda model: model == "m" and shipped)
    monkeypatch.setattr(check, "is_as_written", lambda model: model == "m" and written)
    monkeypatch.setattr(check, "require_weights", lambda *given: done.append(given))
    check.check_weights(Settings(), "cuda:1")
    assert done == [(Settings(), "cuda:1")] * loaded


def test_results_are_compared_with_the_true_images_of_their_session(
    seen, monkeypatch, tmp_path, capsys
):
    from bids_moediff.cli import evaluate
    from bids_moediff.evaluation import against_truth, page

    results = [SimpleNamespace(entities={"sub": label}, relative=f"r{label}") for label in "12"]
    tried: list[Any] = []

    def match(result: Any, images: Any, session: str | None = None) -> Any:
        tried.append((result.relative, images, session))
        if result.relative == "r2":
            raise ImageError("no match")
        return f"{images} {session}"

    class Images:
        def __init__(self, root: Path) -> None:
            self.root = root

        def of(self, label: str) -> str:
            return f"{self.root.name}-{label}"

    monkeypatch.setattr(evaluate, "_Images", Images)
    monkeypatch.setattr(against_truth, "find_results", seen.noting("find", results))
    monkeypatch.setattr(against_truth, "match", match)
    monkeypatch.setattr(
        against_truth, "evaluate", seen.noting("evaluate", ({"psnr": 1.0}, "pair"))
    )
    monkeypatch.setattr(page, "draw_pair", seen.noting("draw", "picture"))
    monkeypatch.setattr(evaluate, "_write_derivatives", seen.noting("write"))
    words = ["derivatives", str(tmp_path), "out", "--truth", "truth", "--truth-session", "ses-b"]
    more = ["--input", "coarse", "--participant-label", "sub-1", "2", "--fit-intensities"]
    assert evaluate.main([*words, *more]) == 1, "one of two could not be compared"
    assert seen["find"][0] == (tmp_path, ["1", "2"])
    assert tried == [("r1", "truth-1", "b"), ("r1", "coarse-1", None), ("r2", "truth-2", "b")]
    assert seen["evaluate"][0] == (results[0], "truth-1 b", "coarse-1 None", True)
    (rows, problems, pictures, folder), _ = seen["write"]
    assert (rows, problems) == ([{"psnr": 1.0}], ["r2: no match"])
    assert pictures == {"r1": "picture"} and folder == Path("out")
    monkeypatch.setattr(against_truth, "find_results", seen.noting("find", results[:1]))
    assert evaluate.main(words[:5]) == 0
    assert seen["find"][0][1] == [] and seen["evaluate"][0][2:] == (None, False)
    assert tried[-1] == ("r1", "truth-1", None)
    monkeypatch.setattr(against_truth, "find_results", seen.noting("find", []))
    assert evaluate.main(words) == 66
    assert evaluate.main(["derivatives", str(tmp_path / "none"), "out", "--truth", "t"]) == 2
    assert evaluate.main(["benchmarks"]) == 2 == evaluate.main([])
    assert "did you mean benchmark" in capsys.readouterr().err
