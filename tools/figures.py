#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measured numbers in README, documentation and model cards come from result tables.

    python tools/figures.py            check: 1 if a page differs from its tables
    python tools/figures.py --write    bring the pages up to date

A table lies beside the weights it was measured with, in ``bids_moediff/data/models/MODEL/results/
NAME.json`` (written by ``research/results.py``; keys: command, weights, sha256, precision, date,
processor, images, people, interval, values, rows, views). Pages take from it by marks::

    gains <!-- figure: student/benchmark x2iso-kspace.all.over_cubic .1f -->2.1<!-- /figure --> dB
    <!-- table: student/benchmark gains -->   (a whole table, one of the views)
    <!-- weights: student/benchmark -->       ("shipped weights 3e15c374", or "earlier weights …")
    <!-- source: student/benchmark -->        (command, weights, precision, date, people)

each closed by its name with a slash. A section that shows a whole table, or numbers of weights
that are not the shipped ones, has to say so by a mark of the last two kinds.
"""

import argparse
import hashlib
import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"(<!-- (figure|table|weights|source): ([^>]+?) -->)(.*?)(<!-- /\2 -->)", re.S)
# On these pages a number of dB, or a table with decimals, stands in a mark.
GUARDED = ("README.md", "docs/benchmark.md", "docs/limits.md")
TYPED = re.compile(r"[-+]?\d+(?:\.\d+)? dB|^\|.*\d\.\d.*\|$", re.M)
DIGITS = 8
# First digits of a checksum of weights, as pages name them.
CHECKSUM = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8}(?=[0-9a-f]{0,4}\b)")
HISTORY = "docs/changelog.md"  # may name any weights
NO_CHECKSUMS = {"e0184661"}  # an article's number


class FigureError(Exception):
    """A page and a result table do not agree."""


def pages(root: Path = ROOT) -> list[Path]:
    """Return the pages whose numbers are checked."""
    cards = sorted(root.glob("bids_moediff/data/models/*/MODEL_CARD.md"))
    return [root / "README.md", *sorted(root.glob("docs/*.md")), *cards]


@lru_cache(maxsize=64)
def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class Table:
    """A result table and whether its weights are the shipped ones."""

    def __init__(self, address: str, root: Path = ROOT) -> None:
        model, _, name = address.partition("/")
        folder = root / "bids_moediff/data/models" / model
        try:
            self.content = json.loads((folder / "results" / f"{name}.json").read_text("utf-8"))
        except OSError as error:
            raise FigureError(f"there is no result table {address}") from error
        self.address = address
        shipped = checksum(folder / self.content.get("weights", "model.safetensors"))
        self.current = self.content["sha256"] == shipped

    def figure(self, key: str, form: str = ".2f") -> str:
        """Return one number as text."""
        numbers = {key: self.content[key] for key in ("images", "people")}
        try:
            return format((numbers | self.content["values"])[key], form)
        except KeyError as error:
            raise FigureError(f"{self.address} has no number {key}") from error

    def view(self, name: str) -> str:
        """Return one view as a Markdown table."""
        try:
            view = self.content["views"][name]
        except KeyError as error:
            raise FigureError(f"{self.address} has no view {name}") from error
        wanted = view.get("where", {})
        rows = [
            row
            for row in self.content["rows"]
            if all(str(row.get(key)) in values for key, values in wanted.items())
        ]
        heads, forms = zip(*view["columns"], strict=True)
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        lines += [f"| {' | '.join(_cell(form, row) for form in forms)} |" for row in rows]
        return "\n" + "\n".join(lines) + "\n"

    def weights(self) -> str:
        """Return whose weights were measured."""
        kind = "shipped" if self.current else "earlier"
        return f"{kind} weights {self.content['sha256'][:DIGITS]}"

    def source(self) -> str:
        """Return how the table was made, in one paragraph."""
        content = self.content
        whom = f"{content['images']} images of {content['people']} people"
        parts = [
            f"{self.weights()}", content["precision"], whom, content["interval"],
            content["processor"], content["date"],
        ]  # fmt: skip
        return f"Measured by `{content['command']}` ({'; '.join(part for part in parts if part)})."


def _cell(form: str, row: dict[str, Any]) -> str:
    """One cell; "n/a" where the row lacks a number."""
    try:
        return form.format(**row)
    except (KeyError, TypeError, ValueError):
        return "n/a"


def _in_code(text: str) -> list[range]:
    """Places of a page that are code: fenced, or indented after an empty line."""
    blocks = re.finditer(r"^```.*?^```|(?<=\n\n)(?: {4}[^\n]*\n|\n(?= {4}))+", text, re.M | re.S)
    return [range(*block.span()) for block in blocks]


def _without_code(text: str) -> str:
    for place in reversed(_in_code(text)):
        text = text[: place.start] + text[place.stop :]
    return text


def marks_of(text: str) -> list[re.Match[str]]:
    """Return the marks of a page, those in code left out."""
    code = _in_code(text)
    return [
        mark for mark in MARK.finditer(text) if not any(mark.start() in place for place in code)
    ]


def rendered(kind: str, words: str, root: Path = ROOT) -> str:
    """Return what stands between the two halves of a mark."""
    address, *rest = words.split()
    table = Table(address, root)
    if kind in ("weights", "source"):
        return table.weights() if kind == "weights" else table.source()
    return table.figure(*rest) if kind == "figure" else table.view(*rest)


def render(text: str, root: Path = ROOT) -> str:
    """Return a page with every mark filled from its table."""
    for mark in reversed(marks_of(text)):
        filled = mark[1] + rendered(mark[2], mark[3], root) + mark[5]
        text = text[: mark.start()] + filled + text[mark.end() :]
    return text


def problems(text: str, guarded: bool, root: Path = ROOT) -> list[str]:
    """Return what is wrong with a page, one sentence each."""
    found = []
    marks = marks_of(text)
    for mark in marks:
        try:
            wanted = rendered(mark[2], mark[3], root)
        except FigureError as error:
            found.append(f"{error}.")
            continue
        if mark[4] != wanted and mark[2] != "table":
            found.append(f"{mark[3]}: the page says {mark[4]!r}, the table {wanted!r}.")
        elif mark[4] != wanted:
            found.append(f"{mark[3]}: the page differs from the table.")
    without = _without_code(text)
    if len(re.findall(r"<!-- (?:figure|table|weights|source): ", without)) != len(marks):
        found.append("a mark is not closed.")
    if not found:
        found += _without_source(text, root)
    if guarded:
        typed = TYPED.findall(MARK.sub("", without))
        found += [f"typed by hand: {words[:60]!r}." for words in typed]
    return found


def _other_weights(text: str, root: Path) -> list[str]:
    """Checksums of weights that do not ship, in a paragraph that does not call them earlier."""
    files = root.glob("bids_moediff/data/models/*/*.safetensors")
    shipped = {checksum(path)[:DIGITS] for path in files} | NO_CHECKSUMS
    return [
        f"{digits}: not the weights that ship; say that they are earlier ones."
        for paragraph in re.split(r"\n\s*\n", text)
        if "earlier" not in paragraph
        for digits in CHECKSUM.findall(paragraph)
        if digits not in shipped
    ]


def _without_source(text: str, root: Path) -> list[str]:
    """Sections with a table, or with numbers of earlier weights, that do not say of which."""
    found = []
    for section in re.split(r"^(?=#+ )", text, flags=re.M):
        marks = [(mark[2], mark[3].split()[0]) for mark in marks_of(section)]
        told = {address for kind, address in marks if kind in ("weights", "source")}
        for kind, address in dict.fromkeys(marks):
            shown = kind == "table" or (kind == "figure" and not Table(address, root).current)
            if shown and address not in told:
                title = section.partition("\n")[0]
                found.append(f"{title!r} shows {address} without a mark of weights or source.")
    return found


def check(root: Path = ROOT) -> list[str]:
    """Return all that is wrong on all pages."""
    found = []
    for path in pages(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        wrong = problems(text, name in GUARDED, root)
        if name != HISTORY:
            wrong += _other_weights(text, root)
        found += [f"{name}: {words}" for words in wrong]
    return found


def main() -> int:
    """Check or write; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="the default")
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        for path in pages():
            text = path.read_text(encoding="utf-8")
            try:
                new = render(text)
            except FigureError as error:
                print(f"{path.relative_to(ROOT)}: {error}.")
                return 1
            if new != text:
                path.write_text(new, encoding="utf-8")
                print(f"{path.relative_to(ROOT)} is up to date.")
    found = check()
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
