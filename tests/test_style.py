# SPDX-License-Identifier: Apache-2.0
"""Style, types, import direction and the small house rules, kept by tests."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bids_moediff", "research", "tests", "tools")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# About 60; the docstring does not count.
MAX_LINES = 65


def _check(command: list[str], module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install -c constraints.txt -e .[lint]")
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_ruff() -> None:
    _check([sys.executable, "-m", "ruff", "check", *FOLDERS], "ruff")
    _check([sys.executable, "-m", "ruff", "format", "--check", *FOLDERS], "ruff")


def test_mypy() -> None:
    """In a fresh checkout no cache is written, which takes a quarter of the time."""
    fresh = [] if (ROOT / ".mypy_cache").is_dir() else ["--cache-dir", os.devnull]
    _check([sys.executable, "-m", "mypy", *fresh], "mypy")


def test_import_arrows_point_down() -> None:
    call = "from importlinter.cli import lint_imports_command as main; main()"
    _check([sys.executable, "-c", call], "importlinter")


def test_first_lines_name_the_licence() -> None:
    wrong = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()[:2]
        if "# SPDX-License-Identifier: Apache-2.0" not in lines[: 1 + lines[0].startswith("#!")]:
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, "\n".join(wrong)


def test_functions_are_short() -> None:
    """Lines without the docstring."""
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                if length > MAX_LINES:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not long, "\n".join(long)


def test_no_path_of_a_private_machine() -> None:
    private = re.compile(r"(?<![\w.])/(?:home|Users|root)/\w")
    # Tests may write down invented paths.
    skipped = {".venv", "build", "site", ".git", "tests"}
    texts = [
        path
        for pattern in ("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.cfg", "*.sh", "*.json")
        for path in ROOT.rglob(pattern)
        if not skipped & set(path.relative_to(ROOT).parts)
    ]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts
        for match in [private.search(path.read_text(encoding="utf-8", errors="replace"))]
        if match
    ]
    assert not found, "\n".join(found)
