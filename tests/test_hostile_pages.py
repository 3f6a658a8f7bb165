# SPDX-License-Identifier: Apache-2.0
"""Hostile text in sidecars, messages and the raw data set, in a real browser: it stays text."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bids_moediff.reports.group import write_group_report
from bids_moediff.reports.participant import write_participant_report
from browser import CHROMIUM, REASON, Browser
from test_group_report import sidecar

RUN = "window.caught=(window.caught||0)+1"
ATTACKS = [
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}">',
    f"'-{RUN}-'",
    f"</script><script>{RUN}</script>",
    f"<svg onload={RUN}>",
    f"[link](javascript:{RUN}) ![](x) <a href=javascript:{RUN}>a</a>",
    f"{{{{ {RUN} }}}} {{% x %}} ${{{RUN}}}",
    f"--><style>body{{display:none}}</style><!-- \x1b]0;x\x07\u202e\x00 {RUN}",
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(REASON)
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def hostile_participant(root: Path) -> list[Path]:
    """Pages of two participants: an image that is done, an image that failed."""
    pages = []
    for label, status in (("1", "done"), ("2", "failed")):
        everything = " ".join(ATTACKS)
        image = {
            "key": f"sub-{label}_T1w",
            "source": f"sub-{label}/anat/{everything}_T1w.nii.gz",
            "suffix": everything,
            "status": status,
            "message": everything,
            "warnings": ATTACKS,
            "record": {"Model": everything, "Sampler": everything, "Manufacturer": everything},
            "quality": {},
            "products": {},
        }
        run = {
            "images": [image],
            "methods": "\n\n".join(["# Methods", *ATTACKS]),
            "errors": ATTACKS,
            "versions": {everything: everything},
        }
        pages.append(write_participant_report(root, label, run))
    return pages


def hostile_group(root: Path) -> Path:
    """A group page of a data set whose every text is hostile."""
    for number in range(9):
        more = {"Warnings": ATTACKS, "Model": ATTACKS[number % len(ATTACKS)]}
        sidecar(root, f"{number:02d}", 20.0 + number, **more)
    states = {"99": {"status": "failed", "message": " ".join(ATTACKS)}}
    write_group_report(root, states)
    return next(root.glob("group*.html"))


def test_nothing_runs_and_nothing_vanishes(tmp_path, browser):
    for page in (*hostile_participant(tmp_path / "a"), hostile_group(tmp_path / "b")):
        browser.open(page)
        browser.settle()
        assert browser.do("window.caught") is None, page
        assert browser.do("document.querySelectorAll('[onerror],[onload]').length") == 0
        assert browser.do("document.querySelectorAll('a[href^=\"javascript:\"]').length") == 0
        assert browser.do("getComputedStyle(document.body).display") != "none"
        assert "window.caught" in browser.do("document.body.innerText"), page
        text = page.read_text(encoding="utf-8")
        assert not any(mark in text for mark in "\x1b\x07\u202e\x00")
        assert browser.errors == []


def test_attacks_are_attacks(tmp_path, browser):
    """The same text without escaping does run."""
    page = tmp_path / "plain.html"
    page.write_text("<!doctype html><body>" + "".join(ATTACKS[:2]), encoding="utf-8")
    browser.open(page)
    browser.settle()
    browser.wait("window.caught >= 1")


def test_tables_keep_their_columns(tmp_path):
    hostile_group(tmp_path)
    for table in tmp_path.glob("group*.tsv"):
        lines = table.read_text(encoding="utf-8").rstrip("\n").split("\n")
        assert len({line.count("\t") for line in lines}) == 1
    for record in tmp_path.glob("group*.json"):
        json.loads(record.read_text(encoding="utf-8"))
