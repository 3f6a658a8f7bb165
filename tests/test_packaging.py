# SPDX-License-Identifier: Apache-2.0
"""The wheel carries everything that a run needs, and the project files agree with each other."""

import configparser
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bids_moediff import __version__

ROOT = Path(__file__).resolve().parents[1]
PROJECT_FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "constraints.txt")


def build_wheel(copy: Path) -> Path:
    """Build a wheel from a copy of the sources, without network."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77: pip install -c constraints.txt -e .[test]")
    copy.mkdir(parents=True, exist_ok=True)
    for name in PROJECT_FILES:
        shutil.copy(ROOT / name, copy)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bids_moediff", copy / "bids_moediff", ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "--no-index", "-w", "dist", "."],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build_wheel(tmp_path_factory.mktemp("sources")))


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    """Modules, weights, recipes, templates and the demo: byte for byte what the checkout has."""
    missing, changed = [], []
    for path in (ROOT / "bids_moediff").rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        if name not in wheel.namelist():
            missing.append(name)
        elif wheel.read(name) != path.read_bytes():
            changed.append(name)
    assert not missing, f"not in the wheel: {missing}"
    assert not changed, f"different in the wheel: {changed}"
    assert "bids_moediff/data/demo/sub-01/anat/sub-01_T1w.nii.gz" in wheel.namelist()


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert set(scripts["console_scripts"]) == {
        "bids_moediff",
        "bids_moediff-superres",
        "bids_moediff-train",
        "bids_moediff-evaluate",
        "bids_moediff-degrade",
        "bids_moediff-dicom",
    }
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    required = re.findall(r"^Requires-Dist: ([A-Za-z0-9_.-]+)(?!.*extra ==)", metadata, re.M)
    # Each of these pulls a second torch or a download at run time.
    assert not {"torchvision", "timm", "lpips", "hd-bet"} & {name.lower() for name in required}
    assert "torch" in required


def test_every_console_script_has_its_function() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for line in setup["options.entry_points"]["console_scripts"].strip().splitlines():
        module, function = line.split("=")[1].strip().split(":")
        assert callable(getattr(importlib.import_module(module), function)), line


def test_every_requirement_is_pinned() -> None:
    """The constraints file pins what setup.cfg asks for, in versions setup.cfg allows."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().split():
        name, _, pin = line.partition("==")
        pins[canonicalize_name(name)] = pin
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(text.strip() for text in texts).splitlines():
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), line


def test_pyproject_holds_no_metadata() -> None:
    """A [project] table would silently drop the dependencies and scripts of setup.cfg."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(tables) == {"build-system", "tool"}


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    image = re.findall(r"^ARG VERSION=(.+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert image == [__version__]


def test_dockerfile_lints() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("needs hadolint: pip install -c constraints.txt -e .[lint]")
    run = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_an_image_is_built_without_the_template_server(tmp_path: Path) -> None:
    """One line says what is not there; a space that does not exist is a mistake."""
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "TEMPLATEFLOW_HOME": str(tmp_path)}
    command = [sys.executable, str(ROOT / "tools" / "fetch_templates.py")]
    run = subprocess.run(
        [*command, "MNI152NLin2009cAsym"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "does not hold MNI152NLin2009cAsym" in run.stderr
    wrong = subprocess.run([*command, "NoSuchSpace"], env=environment, capture_output=True)
    assert wrong.returncode == 1
