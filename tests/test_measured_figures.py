# SPDX-License-Identifier: Apache-2.0
"""Every measured number of README, documentation and cards is that of its result table."""

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open

from conftest import ROOT


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tools/figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load_tool()
TABLES = sorted(ROOT.glob("bids_moediff/data/models/*/results/*.json"))
APP_TABLES = sorted(ROOT.glob("docs/app/results/*.json"))


def test_the_pages_agree_with_their_tables() -> None:
    assert figures.check() == []


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_a_table_says_how_it_was_made(path: Path) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    for key in ("command", "sha256", "precision", "date", "processor"):
        assert table[key], key
    assert re.fullmatch(r"[0-9a-f]{8,64}", table["sha256"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", table["date"])
    assert 0 < table["people"] <= table["images"] or table["note"]  # artificial heads
    assert {type(value) for value in table["values"].values()} <= {int, float}


@pytest.mark.parametrize("path", APP_TABLES, ids=lambda path: path.stem)
def test_a_table_without_weights_says_how_it_was_made(path: Path) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    assert all(table[key] for key in ("command", "date", "processor"))
    assert (table["weights"], table["sha256"]) == ("", "")
    assert 0 < table["people"] <= table["images"] or table["note"]


@pytest.mark.parametrize("model", ["moediff", "student"])
def test_a_card_counts_the_weights_that_ship(model: str) -> None:
    folder = ROOT / "bids_moediff/data/models" / model
    with safe_open(folder / "model.safetensors", "np") as weights:
        count = sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    stated = re.search(r"^([\d.]+) million weights", (folder / "MODEL_CARD.md").read_text(), re.M)
    assert stated is not None and float(stated[1]) == pytest.approx(count / 1e6, abs=0.005)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout of one page, one model and one table of its weights."""
    folder = tmp_path / "bids_moediff/data/models/student/results"
    folder.mkdir(parents=True)
    (folder.parent / "model.safetensors").write_bytes(b"weights")
    table = {
        "command": "measure", "sha256": figures.checksum(folder.parent / "model.safetensors"),
        "precision": "bf16", "date": "2026-01-01", "processor": "one", "images": 7, "people": 6,
        "interval": "", "values": {"gain": 2.345},
        "rows": [{"name": "a", "gain": 2.345}, {"name": "b"}],
        "views": {"all": {"columns": [["name", "{name}"], ["gain", "{gain:+.1f}"]]}},
    }  # fmt: skip
    (folder / "t.json").write_text(json.dumps(table))
    (tmp_path / "docs").mkdir()
    (folder.parent / "bounds.json").write_text('{"factors": {"map": 2.29}, "heads": [1, 24]}')
    look = {"step": 2, "gains": {"x2": {"over_cubic": 1.696}, "x4": {"over_base": -0.2}}}
    (folder.parent / "curve.json").write_text(json.dumps({"tail": [look, {"step": 3}]}))
    (tmp_path / "tools").mkdir()
    allowed = "page\twords\twhy\n*\t95 %\tlevel\nREADME.md\t35 ml\trule\nREADME.md\t| b |\trule\n"
    (tmp_path / figures.ALLOWED).write_text(allowed)
    return tmp_path


def page(root: Path, text: str) -> Path:
    """Write a page that holds, beside `text`, what the list allows."""
    (root / "README.md").write_text(text)
    return root


FILLED = (
    "# A\n\nGains <!-- figure: student/t gain .1f -->2.3<!-- /figure --> dB, 95 % of 35 ml.\n"
    "\n| b | 9.1 |\n\nThe option is `--share 5 %`.\n"
)


def test_a_right_page_has_no_problem(small: Path) -> None:
    assert figures.check(page(small, FILLED)) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FILLED.replace("2.3<", "2.4<"), "the table '2.3'"),
        (FILLED.replace("gain .1f", "loss .1f"), "no number loss"),
        (FILLED.replace("student/t", "student/u"), "no result table"),
        (FILLED + "It gains 3.1 dB.\n", "typed by hand"),
        (FILLED + "| a | 0.91 |\n", "typed by hand"),
        (FILLED + "| a | **0.46 to 0.68** |\n", "typed by hand"),
        (FILLED + "It takes 57 s.\n", "typed by hand"),
        (FILLED + "It needs 2.8 GB.\n", "typed by hand"),
        (FILLED + "94 % of the voxels.\n", "typed by hand"),
        (FILLED + "A Dice of 0.95.\n", "typed by hand"),
        (FILLED + "Slices of 35 ml, once allowed. And 35 ml again.\n", "typed by hand: '35 ml'"),
        (FILLED.replace("| b | 9.1 |", ""), "is not there any more"),
        (FILLED + "Measured with 67f6b9c4.\n", "not the weights that ship"),
        ("# A\n<!-- figure: student/t gain -->2.35\n", "not closed"),
        ("# A\n<!-- table: student/t all --><!-- /table -->\n", "differs"),
        ("# A\n<!-- weights: student/t -->shipped weights 0<!-- /weights -->\n", "the page says"),
    ],
)
def test_what_differs_is_found(small: Path, text: str, words: str) -> None:
    found = figures.check(page(small, text))
    assert any(words in line for line in found), found


def test_a_value_that_nothing_shows_is_found_and_dropped(small: Path) -> None:
    path = small / "bids_moediff/data/models/student/results/t.json"
    table = json.loads(path.read_text())
    more = {"x2.all.gain": 2.345, "x4.all.gain": 2.354, "loss": 1.0}  # the first is row a's
    path.write_text(json.dumps(table | {"values": table["values"] | more}))
    page(small, FILLED)
    assert [line.split("'")[1] for line in figures.check(small)] == ["x4.all.gain", "loss"]
    figures.drop(small)
    assert figures.check(small) == []
    assert json.loads(path.read_text())["values"] == {"gain": 2.345, "x2.all.gain": 2.345}


def test_code_that_shows_a_mark_is_left_alone(small: Path) -> None:
    code = "Write:\n\n    <!-- figure: any/thing x --><!-- /figure --> 1.0 dB\n\nSo.\n"
    text = FILLED + code + "```\n<!-- table: any/thing x -->\n```\n"
    assert figures.check(page(small, text)) == []
    assert figures.render(text, small) == text


def test_a_table_is_filled_and_says_whose_it_is(small: Path) -> None:
    (small / figures.ALLOWED).unlink()
    text = figures.render("# A\n<!-- table: student/t all --><!-- /table -->\n", small)
    assert "| name | gain |\n|---|---|\n| a | +2.3 |\n| b | n/a |\n" in text
    assert "without a mark" in figures.check(page(small, text))[0]
    whole = figures.render(text + "<!-- source: student/t --><!-- /source -->\n", small)
    assert "shipped weights" in whole and "7 images of 6 people" in whole
    assert figures.check(page(small, whole)) == []
    # The same words in the section of another heading do not count.
    assert figures.check(page(small, whole.replace("<!-- source", "## B\n<!-- source")))


def test_numbers_beside_the_weights_and_curves_are_shown(small: Path) -> None:
    (small / figures.ALLOWED).unlink()
    marks = (
        "# A\n<!-- figure: student/bounds.json factors.map .1f --><!-- /figure --> and "
        "<!-- figure: student/bounds.json heads.1 d --><!-- /figure -->\n"
        "<!-- curve: student/tail --><!-- /curve -->\n"
    )
    text = figures.render(marks, small)
    assert "-->2.3<" in text and "-->24<" in text
    assert "| x2 | +1.70 | n/a |\n| x4 | n/a | -0.20 |\n" in text
    assert figures.check(page(small, text)) == []
    assert "differs" in figures.check(page(small, text.replace("+1.70", "+1.80")))[0]
    assert "no curve" in figures.check(page(small, text.replace("student/tail", "student/no")))[0]
    assert "no number" in figures.check(page(small, text.replace("factors.map", "factors")))[0]


def test_a_table_of_no_weights_never_becomes_an_earlier_one(small: Path) -> None:
    (small / figures.ALLOWED).unlink()
    results = small / "docs/app/results"
    results.mkdir(parents=True)
    table = json.loads((small / "bids_moediff/data/models/student/results/t.json").read_text())
    (results / "a.json").write_text(json.dumps(table | {"weights": "", "sha256": ""}))
    text = figures.render("# A\n<!-- source: app/a --><!-- /source -->\n", small)
    assert "(no weights; bf16; 7 images of 6 people" in text
    text = figures.render("# A\n<!-- figure: app/a gain --><!-- /figure -->\n", small)
    assert ">2.35<" in text and figures.check(page(small, text)) == []


def test_new_weights_make_old_numbers_earlier_ones(small: Path) -> None:
    (small / "bids_moediff/data/models/student/model.safetensors").write_bytes(b"others")
    figures.checksum.cache_clear()
    assert "without a mark" in figures.check(page(small, FILLED))[0]
    told = figures.render(FILLED + "Of <!-- weights: student/t --><!-- /weights -->.", small)
    assert "earlier weights" in told
    assert figures.check(page(small, told)) == []
    figures.checksum.cache_clear()


def test_the_command_finds_a_number_changed_by_hand(tmp_path: Path) -> None:
    for name in ("README.md", "docs", "tools/figures.py", figures.ALLOWED):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    models = tmp_path / "bids_moediff/data/models"
    shutil.copytree(ROOT / "bids_moediff/data/models", models)
    command = [sys.executable, str(tmp_path / "tools/figures.py")]
    assert subprocess.run(command, check=False).returncode == 0
    text = (tmp_path / "README.md").read_text()
    changed = re.sub(r"(<!-- figure: [^>]+ -->)\d+", r"\g<1>99", text, count=1)
    (tmp_path / "README.md").write_text(changed)
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 1 and "README.md" in run.stdout and "99" in run.stdout
    assert subprocess.run([*command, "--write"], check=False).returncode == 0
    assert (tmp_path / "README.md").read_text() == text


def test_a_mark_below_indented_code_counts_and_one_in_it_does_not() -> None:
    inside = "    <!-- figure: a/b c --><!-- /figure -->\n"
    below = "gains <!-- figure: a/b d --><!-- /figure --> dB\n"
    found = figures.marks_of(f"Run\n\n{inside}\n{below}")
    assert [mark[3] for mark in found] == ["a/b d"]
