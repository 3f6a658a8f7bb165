# SPDX-License-Identifier: Apache-2.0
"""The pages for users name every option, every product and every exit code."""

import argparse
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bids_moediff import errors
from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import derivative_path
from bids_moediff.bids.products import PRODUCTS, descriptions
from bids_moediff.cli.parser import build_parser
from bids_moediff.options import ANATOMICAL_SUFFIXES, MODELS, Options

DOCS = Path(__file__).parents[1] / "docs"
USAGE = (DOCS / "usage.md").read_text(encoding="utf-8")
OPTIONS = (DOCS / "options.md").read_text(encoding="utf-8")
OUTPUTS = (DOCS / "outputs.md").read_text(encoding="utf-8")


def test_the_page_of_options_is_made_from_the_code():
    """After a change of options: ``python tools/options_page.py``."""
    run = subprocess.run(
        [sys.executable, "tools/options_page.py", "--check"], cwd=DOCS.parent, check=False
    )
    assert run.returncode == 0, "run python tools/options_page.py"
    told = (action for action in build_parser()._actions if action.help != argparse.SUPPRESS)
    flags = {flag for action in told for flag in action.option_strings}
    assert {flag for flag in flags if not flag.startswith("--no-")} <= set(
        re.findall(r"(?<![\w-])--?[a-z][a-z-]*", OPTIONS)
    )


def test_options_named_in_the_guide_exist():
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(re.findall(r"`[^`]+`", USAGE))))
    assert named <= flags | {"-vv"}


def test_choices_are_documented():
    for action in build_parser()._actions:
        if action.metavar and str(action.metavar).startswith("{") and action.option_strings:
            assert f"{action.option_strings[-1]} {action.metavar}" in OPTIONS
    for word in (*ANATOMICAL_SUFFIXES, *MODELS):
        assert re.search(rf"\b{word}\b", USAGE), word


def test_exit_codes_are_documented():
    table = OPTIONS.split("## Exit codes")[1]
    documented = set(map(int, re.findall(r"^\| (\d+) \|", table, re.M)))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    failures = [kind for kind in kinds if issubclass(kind, errors.MoediffError)]
    assert documented == {0} | {kind.exit_code for kind in failures}


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_documented(product):
    image = AnatomicalImage(Path("/x"), "x", {"sub": "01"}, "T1w", {})
    zooms = (0.7, 0.7, 0.7) if PRODUCTS[product].on_output_grid else None
    label = "1" if product == "sample" else "label"
    key = product if PRODUCTS[product].each is None else f"{product}_{label}"
    name = derivative_path(image, key, zooms).name.replace("sub-01", "<source>", 1)
    assert name.replace("-label", "-<template>") in OUTPUTS


def test_every_key_of_a_sidecar_is_documented():
    source = (DOCS.parent / "bids_moediff/inference/super_resolver.py").read_text(encoding="utf-8")
    record = source.split("def _record(")[1].split("\n    def ")[0]
    keys = re.findall(r'^\s+"([A-Z]\w+)":', record, re.M)
    keys += [item.metadata["record"] for item in fields(Options) if item.metadata["record"]]
    assert len(keys) > 10
    for key in keys:
        assert f"`{key}`" in OUTPUTS, key


def test_files_of_the_data_set_are_documented():
    for name in (
        "dataset_description.json",
        "descriptions.tsv",
        ".bidsignore",
        "logs/CITATION.md",
    ):
        assert f"`{name}`" in OUTPUTS
    assert {row["desc_id"] for row in descriptions()} == {
        f"desc-{label}" for label in re.findall(r"_desc-(\w+?)_", OUTPUTS)
    }


@pytest.fixture(scope="module")
def paths() -> list[str]:
    """Files of the checkout from its root, each after a slash."""
    root = DOCS.parent
    folders = ("bids_moediff", "docs", "examples", "research", "tests", "tools", ".github")
    found = (path for folder in folders for path in (root / folder).rglob("*"))
    return [f"/{path.relative_to(root).as_posix()}" for path in found]


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_scripts_and_modules_that_a_page_names_are_there(page, paths):
    """In backticks, by the end of their path; the changelog speaks of the past."""
    text = (DOCS / page).read_text(encoding="utf-8") if page != "changelog.md" else ""
    words = re.findall(
        r"(?<![\w/.>-])[\w./-]+\.(?:py|sh|sbatch|js)\b", " ".join(re.findall(r"`([^`]+)`", text))
    )
    others = {"run_fastsurfer.sh"}  # of FastSurfer
    missing = {word for word in words if not any(path.endswith(f"/{word}") for path in paths)}
    assert missing <= others
