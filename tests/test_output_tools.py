# SPDX-License-Identifier: Apache-2.0
"""The tools that judge output folders see what they are meant to see, and nothing else."""

import importlib.util
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.runtime.sink import write_json, write_nifti, write_text

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PAGE = (
    "<html><dl><div><dt>Time</dt><dd>{time} s</dd></div><div><dt>python</dt><dd>{time}</dd></div>"
    "<div><dt>torch</dt><dd>{torch}</dd></div><div><dt>Seed</dt><dd>{seed}</dd></div></dl></html>\n"
)


def page(time: int = 1, torch: str = "2.13.0", seed: int = 7) -> str:
    return PAGE.format(time=time, torch=torch, seed=seed)


def load(name: str) -> ModuleType:
    """A tool as a module."""
    specification = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def image(seed: int) -> nib.Nifti1Image:
    values = np.random.default_rng(seed).normal(size=(20, 20, 20)).astype(np.float32)
    return nib.Nifti1Image(values, np.diag([1.0, 1, 1, 1]))


def outputs(folder: Path, time: int = 1, seed: int = 1, place: str = "docker") -> Path:
    """A small output folder; ``time`` and ``place`` must not matter."""
    maker = {"Name": "bids_moediff", "Version": "1", "Container": {"Type": place}}
    description = {"Name": "x", "BIDSVersion": "1.11.1", "DatasetType": "derivative"}
    description |= {"GeneratedBy": [maker], "DatasetLinks": {"raw": f"../{place}"}}
    write_json(description, folder / "dataset_description.json")
    write_text(page(time, f"2.13.0+{place}"), folder / "sub-01.html")
    write_text(str(time), folder / "logs" / "sub-01" / f"run-{time}" / "run.json")
    write_text(str(time), folder / ".work" / "x")
    write_json({"Seed": 7}, folder / "sub-01" / "anat" / "sub-01_desc-sr_T1w.json")
    write_nifti(image(seed), folder / "sub-01" / "anat" / "sub-01_desc-sr_T1w.nii.gz")
    return folder


def compare(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / "compare_outputs.py", *folders]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_times_and_places_do_not_matter(tmp_path: Path) -> None:
    folders = [outputs(tmp_path / "a"), outputs(tmp_path / "b", time=99, place="apptainer")]
    run = compare(*folders)
    assert run.returncode == 0, run.stdout
    assert "the same 4 files" in run.stdout


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: write_text("x", folder / "sub-01" / "x.txt"), "only in {b}: sub-01/x.txt"),
        (lambda folder: (folder / "sub-01.html").unlink(), "only in {a}: sub-01.html"),
        (
            lambda folder: write_text(page(seed=8), folder / "sub-01.html"),
            "other content: sub-01.html",
        ),
        (
            lambda folder: write_text(page(torch="2.13.1"), folder / "sub-01.html"),
            "other content: sub-01.html",
        ),
        (
            lambda folder: outputs(folder, seed=2),
            "other content: sub-01/anat/sub-01_desc-sr_T1w.nii.gz",
        ),
        (
            lambda folder: write_json({"Name": "y"}, folder / "dataset_description.json"),
            "other content: dataset_description.json",
        ),
    ],
)
def test_every_other_difference_is_told(
    tmp_path: Path, change: Callable[[Path], object], line: str
) -> None:
    first, second = outputs(tmp_path / "a"), outputs(tmp_path / "b")
    change(second)
    run = compare(first, second)
    assert run.returncode == 1
    assert run.stdout.splitlines() == [line.format(a=first, b=second)]


def test_copies_of_a_participant_under_other_labels(tmp_path: Path) -> None:
    reference, other = outputs(tmp_path / "a"), tmp_path / "b"
    for path in [path for path in reference.rglob("*") if path.is_file()]:
        content = path.read_bytes().replace(b"sub-01", b"sub-007")
        target = other / path.relative_to(reference).as_posix().replace("sub-01", "sub-007")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert compare(Path("--participants"), Path("01=007"), reference, other).returncode == 0
    (other / "sub-007.html").unlink()
    write_text("x", other / "sub-007" / "x.txt")
    write_nifti(image(5), other / "sub-007" / "anat" / "sub-007_desc-sr_T1w.nii.gz")
    run = compare(Path("--participants"), Path("01=007"), reference, other)
    assert run.returncode == 1
    names = ["sub-*.html", "sub-*/anat/sub-*_desc-sr_T1w.nii.gz", "sub-*/x.txt"]
    assert run.stdout.splitlines() == [f"007 is not as 01: {name}" for name in names]
    assert compare(Path("--participants"), Path("02=003"), reference, other).returncode == 1


def test_nothing_is_never_the_same(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    assert compare(tmp_path / "a", tmp_path / "b").returncode == 1
    assert compare(tmp_path / "a", tmp_path / "c").returncode == 2


def test_the_list_is_the_one_of_the_documentation() -> None:
    tool = load("compare_outputs")
    page = (TOOLS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    _, section = page.split("## The same bytes", 1)
    section = section.split("\n## ")[0]
    keys = (*tool.NOT_COMPARED, *tool.PLACE_KEYS, *tool.PLACE_KEYS_OF_MAKER, *tool.PAGE_ENTRIES)
    assert [key for key in keys if f"`{key}`" not in section] == []


def _write_often(anat: Path) -> None:
    for seed in range(30):
        for name in ("preproc", "sr"):
            stem = anat / f"sub-01_desc-{name}_T1w"
            write_sidecar = partial(write_json, {"a": 1}, stem.with_suffix(".json"))
            write_nifti(image(seed), stem.with_suffix(".nii.gz"), write_sidecar)


def test_atomic_writes_are_whole_at_every_moment(tmp_path: Path) -> None:
    folder = outputs(tmp_path / "out")
    tool = load("watch_dataset")
    tool.SECONDS_APART = 20.0  # a busy machine may halt the writer between its two renames
    watcher = tool.Watcher(folder)
    watcher.validate = lambda: None  # the sidecars of this folder are no real ones
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=_write_often, args=(folder / "sub-01" / "anat",))
    writer.start()
    while writer.is_alive():
        watcher.look()
    assert writer.exitcode == 0
    assert watcher.problems == []
    assert watcher.looks > 2


IMAGE = Path("sub-01/anat/sub-01_desc-sr_T1w.nii.gz")


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        (IMAGE, lambda content: content[: len(content) // 2], "T1w.nii.gz: Compressed file ended"),
        (IMAGE, None, "sub-01_desc-sr_T1w.nii.gz was there and is gone"),
        (IMAGE, None, "sub-01_desc-sr_T1w.json is without its image or sidecar"),
        (IMAGE.with_name("sub-01_desc-sr_T1w.json"), None, "T1w.nii.gz is without its image or"),
        (Path("sub-01.html"), lambda content: content[:-10], "sub-01.html: it ends too early"),
        (Path("sub-01.html"), None, "sub-01.html was there and is gone"),
        (Path("dataset_description.json"), lambda content: content[:-9], "description.json: "),
        (Path("dataset_description.json"), None, "but no dataset_description.json"),
    ],
)
def test_what_was_wrong_for_a_moment_is_told(
    tmp_path: Path, name: Path, harm: Callable[[bytes], bytes] | None, words: str
) -> None:
    """The file is whole again when the watcher looks for the last time."""
    tool = load("watch_dataset")
    tool.SECONDS_APART = -1.0
    path = outputs(tmp_path / "out") / name
    watcher = tool.Watcher(tmp_path / "out")
    watcher.validate = lambda: None
    watcher.look()
    assert watcher.problems == []
    shutil.rmtree(tmp_path / "out" / ".work")  # scratch may go
    content = path.read_bytes()
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(content))
    watcher.look()
    path.write_bytes(content)
    watcher.look()
    assert any(words in problem for problem in watcher.problems), watcher.problems


def test_the_watcher_asks_the_validator(tmp_path: Path) -> None:
    tool = load("watch_dataset")
    if tool.validator_errors(tmp_path) is None:
        pytest.skip("needs bids-validator-deno: pip install -c constraints.txt -e .[test]")
    folder, stop = outputs(tmp_path / "out"), tmp_path / "stop"
    stop.touch()
    command = [sys.executable, TOOLS / "watch_dataset.py", folder, stop]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "BIDS validator: SIDECAR_KEY_REQUIRED SkullStripped" in run.stdout
