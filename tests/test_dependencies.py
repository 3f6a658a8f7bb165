# SPDX-License-Identifier: Apache-2.0
"""What the package imports is declared, and what is declared is imported."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions

import pytest

from conftest import ROOT

# Plug-ins and commands that are used without an import.
WITHOUT_IMPORT = {"tensorboard"}


def imported() -> set[str]:
    """Distributions that a module of the package imports, in the spelling of their index."""
    names = set()
    for path in (ROOT / "bids_moediff").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    owners = packages_distributions()
    further = names - set(sys.stdlib_module_names) - {"bids_moediff"}
    return {normal(owners.get(name, [name])[0]) for name in further}


def declared(*extras: str) -> set[str]:
    """Distributions that setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [config["options"]["install_requires"]]
    texts += [config["options.extras_require"][extra] for extra in extras]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return {normal(re.split(r"[ <>=!~\\[]", line)[0]) for line in lines if line}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared() -> None:
    assert imported() - declared("train", "dicom") == set()


def test_every_requirement_is_imported() -> None:
    assert declared("train", "dicom") - imported() - WITHOUT_IMPORT == set()


@pytest.mark.parametrize(
    "name",
    ["torch", "pybids", "nipype", "nibabel", "nilearn", "templateflow", "niworkflows"],
)
def test_what_the_project_is_built_on_is_used(name: str) -> None:
    assert name in imported()
