# SPDX-License-Identifier: Apache-2.0
"""Nothing lies about unused: every module and every public definition is reached from another."""

import ast
from collections import Counter
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "bids_moediff"
# Views of one step of a longer computation, which the app does in one go; tests look at them.
SINGLE_STEPS = {
    "quality_figures", "find_doubts", "head_mask", "axis_spectrum", "sharpness_period",
    "axis_resolution", "undo_interpolation",
}  # fmt: skip
# With which the lab trains scale heads and puts them into model folders.
LAB = {"scale_loss"}
# Kernels by angle and scales, which tests hold against the Cholesky factors.
SISTERS = {"steered"}
# Used by others than the package itself.
PUBLIC = {"super_resolve"}


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}


def names(tree: ast.AST) -> Counter[str]:
    """How often each name is used, as a name or behind a dot."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
    return found


def test_every_public_definition_is_used() -> None:
    everywhere: Counter[str] = sum((names(tree) for tree in trees().values()), Counter())
    unused = {
        node.name
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if everywhere[node.name] <= names(node)[node.name]
    }
    assert unused == SINGLE_STEPS | LAB | SISTERS | PUBLIC


def test_every_definition_is_reached_from_a_command() -> None:
    """Two that only use each other are not reached, though each is used."""
    definitions: dict[str, list[ast.AST]] = {}
    found = {"main", *SINGLE_STEPS, *LAB, *SISTERS, *PUBLIC}
    for tree in trees().values():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                definitions.setdefault(node.name, []).append(node)
            else:  # tables of what is called by name
                found |= set(names(node))
    found |= {"__getattr__", "__dir__"}  # Python calls them
    todo = [name for name in definitions if name in found]
    while todo:
        used = {name for node in definitions[todo.pop()] for name in names(node)}
        new = (used & definitions.keys()) - found
        found |= new
        todo += new
    assert not definitions.keys() - found


def test_every_module_is_imported() -> None:
    imported = set()
    for path, tree in trees().items():
        package = path.parent.relative_to(ROOT).parts
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = list(package[: len(package) - node.level + 1]) if node.level else []
                base += node.module.split(".") if node.module else []
                imported.add(".".join(base))
                imported |= {".".join([*base, alias.name]) for alias in node.names}
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "cli"
    }
    assert modules <= imported, modules - imported
