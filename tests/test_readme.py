# SPDX-License-Identifier: Apache-2.0
"""Every command of the README is run here, by the demo fixture, by CI or by the image test."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from conftest import DEMO, DEMO_OPTIONS, run_script

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)


def readme_commands() -> list[str]:
    """Lines of the README's shell blocks."""
    unknown = {language for language, _ in BLOCKS} - {"bash", "python"}
    assert not unknown, f"blocks that no test reads: {unknown}"
    shell = [block for language, block in BLOCKS if language == "bash"]
    return [line for block in shell for line in block.splitlines() if line.strip()]


COMMANDS = readme_commands()
WITH_CONTAINERS = ("make image", "docker ", "apptainer ")
COMMANDS_IN_CONTAINERS = [line for line in COMMANDS if line.startswith(WITH_CONTAINERS)]


def _workflow_commands() -> set[str]:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    # The legs name their interpreter, which a reader's machine finds by itself.
    return {line.removesuffix(" PYTHON=python") for line in lines if line}


def test_no_command_goes_uncovered() -> None:
    """A new kind of command in the README must be given a test below."""
    known = {"make", "bids_moediff", "python3", "venv/bin/pip", "docker", "apptainer"}
    known.add("bids_moediff-superres")
    assert len(COMMANDS) >= 10
    assert [line for line in COMMANDS if line.split()[0] not in known] == []


@pytest.mark.parametrize(
    "command",
    [
        line
        for line in COMMANDS
        if line.startswith(("make ", "python3 ", "venv/")) and line not in COMMANDS_IN_CONTAINERS
    ],
)
def test_continuous_integration_runs_it(command: str) -> None:
    assert command in _workflow_commands()


def test_the_local_ci_runs_the_test_command() -> None:
    assert "make test" in COMMANDS
    assert re.search(r'^make test VENV="\$work/venv"$', (ROOT / ".ci/run").read_text(), re.M)


def test_make_demo_is_what_the_demo_fixture_runs() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    recipe = subprocess.run(
        [make, "-n", "demo", "DEMO_OUTPUT=OUT"], cwd=ROOT, capture_output=True, text=True
    )
    assert recipe.returncode == 0, recipe.stderr
    runs = [shlex.split(line) for line in recipe.stdout.splitlines() if "/bids_moediff " in line]
    demo = str(DEMO.relative_to(ROOT))
    assert [words[1:] for words in runs] == [
        [demo, "OUT", "participant", *DEMO_OPTIONS],
        [demo, "OUT", "group"],
    ]


@pytest.mark.parametrize(
    "command",
    [line for line in COMMANDS if line.startswith(("bids_moediff ", "docker run", "apptainer "))],
)
def test_the_app_takes_these_arguments(command: str, tmp_path: Path) -> None:
    """The arguments after the name of the app or the image, on the demo data, planning only."""
    words = shlex.split(command)
    arguments = words[words.index("/data") :]
    data = tmp_path / "data"
    shutil.copytree(DEMO, data)
    places = {"/data": str(data), "/out": str(tmp_path / "out")}
    arguments = [places.get(word, word) for word in arguments]
    if "participant" in arguments and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    run = run_script("bids_moediff", *arguments, cwd=tmp_path)
    # At the group level nothing was processed yet, and it says so.
    assert run.returncode == int("group" in arguments), run.stdout + run.stderr
    if "group" in arguments:
        assert "missing" in run.stdout + run.stderr
    if "participant" in arguments:
        assert "sub-01" in run.stdout
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS_IN_CONTAINERS)
def test_the_image_test_runs_it(command: str) -> None:
    """tools/image_test.sh reads its container commands from the README."""
    listed = subprocess.run(
        ["sh", "tools/image_test.sh", "--list"], cwd=ROOT, capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    assert command in listed.stdout.splitlines()


@pytest.fixture
def small_head(tmp_path: Path) -> Path:
    """A folder with in.nii.gz: a block of 40 mm of the demo image."""
    source = nib.load(DEMO / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    nib.save(source.slicer[70:110, 70:105, 40:58], tmp_path / "in.nii.gz")
    return tmp_path


def _check_restored(folder: Path) -> None:
    before, after = (nib.load(folder / f"{name}.nii.gz") for name in ("in", "out"))
    sizes = [nib.affines.voxel_sizes(image.affine) for image in (before, after)]
    assert np.allclose(sizes[1], 0.7)
    assert (np.array(sizes[0]) > 0.7).all()


def test_one_file_as_it_is_written(small_head: Path) -> None:
    (command,) = [line for line in COMMANDS if line.startswith("bids_moediff-superres")]
    name, *arguments = shlex.split(command)
    run = run_script(name, *arguments, cwd=small_head)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (small_head / "out.json").is_file()
    _check_restored(small_head)


def test_python_as_it_is_written(small_head: Path) -> None:
    (block,) = [block for language, block in BLOCKS if language == "python"]
    run = subprocess.run(
        [sys.executable, "-c", block], cwd=small_head, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    _check_restored(small_head)


def test_the_first_page_is_short() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    assert len(prose.split()) < 500


def test_links_to_files_of_the_repository() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_options_named_in_the_readme_exist() -> None:
    from bids_moediff.settings import Settings

    # Options of docker, apptainer and pip, and the one that needs no settings field.
    others = {"--help", "--extra-index-url", "--gpus", "--nv", "--rm", "--network", "--read-only"}
    others |= {"--tmpfs", "--user", "--containall", "--no-home", "--build-arg"}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - others:
        assert option[2:].replace("-", "_") in Settings.__dataclass_fields__, option


def _pages(navigation: object) -> list[str]:
    """Files of a navigation, group by group."""
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in _pages(part)]


def test_every_page_of_the_documentation_can_be_found() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_pages(navigation)) == sorted(pages)
    index = (ROOT / "docs" / "index.md").read_text()
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", index)) == pages - {"index.md"}
    for page in pages:
        text = (ROOT / "docs" / page).read_text()
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
            assert (ROOT / "docs" / link).exists(), f"{page}: {link}"
