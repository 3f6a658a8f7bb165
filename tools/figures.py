#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measured numbers in README, documentation and model cards come from result tables.

    python tools/figures.py            check: 1 if a page differs from its tables
    python tools/figures.py --write    bring the pages up to date
    python tools/figures.py --drop     take values that nothing shows out of the tables

A table lies beside the weights it was measured with, in ``bids_moediff/data/models/MODEL/results/
NAME.json`` (written by ``research/results.py``; keys: command, weights, sha256, precision, date,
processor, images, people, interval, values, rows, views). Pages take from it by marks::

    gains <!-- figure: student/benchmark x2iso-kspace.all.over_cubic .1f -->2.1<!-- /figure --> dB
    <!-- table: student/benchmark gains -->   (a whole table, one of the views)
    <!-- weights: student/benchmark -->       ("shipped weights 3e15c374", or "earlier weights …")
    <!-- source: student/benchmark -->        (command, weights, precision, date, people)
    <!-- curve: student/student-tail -->      (gains of the last look of a training, curve.json)

each closed by its name with a slash. ``student/bounds.json factors.map`` is a number of another
file of the model's folder; tables of measurements that depend on no weights lie in
``docs/app/results`` (``app/NAME``). A section that shows a whole table, or numbers of weights
that are not the shipped ones, has to say so by a mark of the last two kinds. Each of a table's
values has to be shown, or stand in one of its rows under the same name: a number that is compared
with nothing can be anything.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KINDS = "figure|table|weights|source|curve"
MARK = re.compile(rf"(<!-- ({KINDS}): ([^>]+?) -->)(.*?)(<!-- /\2 -->)", re.S)
# What only a mark may show: a number with a unit of measurements, a Dice, a cell of a table that
# is a decimal number. Code is left out.
TYPED = re.compile(
    r"(?<![\w.])\d[\d,.]*[ -]?(?:dB|%|ml|s|seconds|minutes|h|hours|[kMGT]i?B|bytes)(?![\w/])"
    r"|\b[Dd]ice\b[^|]{0,150}?\b0\.\d+"
    r"|^.*\|[ *]*[-+]?\d+\.\d(?:[^|a-zA-Z\n]|to)*\|.*$",
    re.M,
)
CODE = re.compile(r"`[^`\n]*`")
RECIPE = re.compile(r"^\| \w[^|]* \|[^|]*\|$", re.M)  # settings of a training, in a card
ALLOWED = "tools/typed_figures.tsv"  # page, typed words, why they may be typed
DIGITS = 8
# First digits of a checksum of weights, as pages name them.
CHECKSUM = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{8}(?=[0-9a-f]{0,4}\b)")
HISTORY = "docs/changelog.md"  # may name any weights and numbers
# Made from the code, sizes of public images, or history.
UNGUARDED = (HISTORY, "docs/options.md", "docs/data.md")
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
        folder = root / ("docs/app" if model == "app" else f"bids_moediff/data/models/{model}")
        beside = name.endswith(".json")
        try:
            path = folder / name if beside else folder / "results" / f"{name}.json"
            self.content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise FigureError(f"there is no result table {address}") from error
        self.address = address
        if beside:
            values = dict(_numbers(self.content))
            self.content = {"values": values, "weights": "", "images": 0, "people": 0}
        self.weightless = self.content.get("weights") == ""
        shipped = checksum(folder / self.content.get("weights", "model.safetensors"))
        self.current = self.weightless or self.content["sha256"] == shipped

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
        if self.weightless:
            return "no weights"
        kind = "shipped" if self.current else "earlier"
        return f"{kind} weights {self.content['sha256'][:DIGITS]}"

    def source(self) -> str:
        """Return how the table was made, in one paragraph."""
        content = self.content
        whom = f"{content['images']} images of {content['people']} people"
        parts = [
            self.weights(), content["precision"], whom if content["images"] else content["note"],
            content["interval"],
            content["processor"], content["date"],
        ]  # fmt: skip
        return f"Measured by `{content['command']}` ({'; '.join(part for part in parts if part)})."


def _cell(form: str, row: dict[str, Any]) -> str:
    """One cell; "n/a" where the row lacks a number."""
    try:
        return form.format(**row)
    except (KeyError, TypeError, ValueError):
        return "n/a"


def _numbers(content: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a JSON file by their dotted names; items of lists by their places."""
    if isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, int | float):
        yield name, content


def curve(address: str, root: Path = ROOT) -> str:
    """Return the gains of a stage's last look as a table, like ``training/card.py`` writes it."""
    model, _, stage = address.partition("/")
    path = root / "bids_moediff/data/models" / model / "curve.json"
    try:
        looks = json.loads(path.read_text("utf-8"))[stage]
        gains = [look for look in looks if look.get("gains")][-1]["gains"]
    except (OSError, KeyError, IndexError) as error:
        raise FigureError(f"there is no curve {address}") from error
    columns = list(dict.fromkeys(key for values in gains.values() for key in values))
    lines = [
        ["protocol", *(name.replace("_", " ") for name in columns)],
        ["---"] * (len(columns) + 1),
    ]
    for protocol, values in gains.items():
        cells = [f"{values[key]:+.2f}" if key in values else "n/a" for key in columns]
        lines.append([protocol, *cells])
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


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
    if kind == "curve":
        return curve(address, root)
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


def problems(text: str, root: Path = ROOT) -> list[str]:
    """Return what is wrong with the marks of a page, one sentence each."""
    found = []
    marks = marks_of(text)
    for mark in marks:
        try:
            wanted = rendered(mark[2], mark[3], root)
        except FigureError as error:
            found.append(f"{error}.")
            continue
        if mark[4] != wanted and mark[2] not in ("table", "curve"):
            found.append(f"{mark[3]}: the page says {mark[4]!r}, the table {wanted!r}.")
        elif mark[4] != wanted:
            found.append(f"{mark[3]}: the page differs from the table.")
    without = _without_code(text)
    if len(re.findall(rf"<!-- (?:{KINDS}): ", without)) != len(marks):
        found.append("a mark is not closed.")
    if not found:
        found += _without_source(text, root)
    return found


def typed(text: str, allowed: Sequence[str], always: Sequence[str] = ()) -> list[str]:
    """Return numbers that look measured and stand in no mark, and allowed words that are gone.

    Each of `allowed` may be typed once for each time it stands in the list; what begins with "|"
    is the beginning of a row of a table. Each of `always` may stand anywhere.
    """
    text = MARK.sub("", _without_code(text))
    for words in always:
        text = text.replace(words, "")
    found = []
    for words in allowed:
        pattern = re.escape(words) + ("[^\n]*" if words.startswith("|") else "")
        text, count = re.subn(pattern, "", text, count=1)
        if not count:
            found.append(f"{ALLOWED} allows {words!r}, which is not there any more.")
    text = CODE.sub("", text)
    return found + [f"typed by hand: {words[:60]!r}." for words in TYPED.findall(text)]


def _allowed(root: Path) -> dict[str, list[str]]:
    """Words that may be typed, by page; "*" for all pages, wherever they stand."""
    found: dict[str, list[str]] = {}
    if (root / ALLOWED).is_file():
        for line in (root / ALLOWED).read_text(encoding="utf-8").splitlines()[1:]:
            page, words, _ = line.split("\t")
            found.setdefault(page, []).append(words)
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
        marks = [(m[2], m[3].split()[0]) for m in marks_of(section) if m[2] != "curve"]
        told = {address for kind, address in marks if kind in ("weights", "source")}
        for kind, address in dict.fromkeys(marks):
            shown = kind == "table" or (kind == "figure" and not Table(address, root).current)
            if shown and address not in told:
                title = section.partition("\n")[0]
                found.append(f"{title!r} shows {address} without a mark of weights or source.")
    return found


def tables(root: Path = ROOT) -> dict[str, Path]:
    """Return the result tables by their addresses."""
    models = {
        path: path.parts[-3] for path in root.glob("bids_moediff/data/models/*/results/*.json")
    }
    app = dict.fromkeys(root.glob("docs/app/results/*.json"), "app")
    return {f"{model}/{path.stem}": path for path, model in sorted((models | app).items())}


def shown_nowhere(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the values, by table, that no page shows and no row has under the same last name."""
    marks = [mark[3].split() for path in pages(root) for mark in marks_of(path.read_text("utf-8"))]
    shown = {(words[0], words[1]) for words in marks if len(words) > 1}
    found = {}
    for address in tables(root):
        content = Table(address, root).content
        names = [
            name
            for name, value in content["values"].items()
            if (address, name) not in shown
            and not any(row.get(name.rpartition(".")[2]) == value for row in content["rows"])
        ]
        if names:
            found[address] = names
    return found


def drop(root: Path = ROOT) -> None:
    """Take values that are shown nowhere out of their tables."""
    for address, names in shown_nowhere(root).items():
        path = tables(root)[address]
        content = json.loads(path.read_text("utf-8"))
        for name in names:
            del content["values"][name]
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{address}: {len(names)} values dropped.")


def check(root: Path = ROOT) -> list[str]:
    """Return all that is wrong on all pages and in all tables."""
    found = [
        f"{address}: no page shows the value {name!r}; show it, or drop it (--drop)."
        for address, names in shown_nowhere(root).items()
        for name in names
    ]
    allowed = _allowed(root)
    for path in pages(root):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        wrong = problems(text, root)
        if name != HISTORY:
            wrong += _other_weights(text, root)
        if path.name == "MODEL_CARD.md":
            text = RECIPE.sub("", text)
        if name not in UNGUARDED:
            wrong += typed(text, allowed.get(name, []), allowed.get("*", []))
        found += [f"{name}: {words}" for words in wrong]
    return found


def main() -> int:
    """Check or write; 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="the default")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--drop", action="store_true")
    asked = parser.parse_args()
    if asked.drop:
        drop()
    if asked.write:
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
