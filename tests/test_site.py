# SPDX-License-Identifier: Apache-2.0
"""The documentation as a site: complete, nothing from elsewhere, its search works from files."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from browser import CHROMIUM, REASON, Browser, violations

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 20_000  # for users: all groups but the one for developers


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material", reason="needs mkdocs-material")
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]+)"'
        assert re.findall(loaded, page.read_text()) == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text()), sheet.name


def test_pages_for_users_stay_readable_in_a_day():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    groups = {name: pages for entry in navigation for name, pages in entry.items()}
    assert list(groups) == ["Home", "Start", "Use", "Understand", "Develop"]
    pages = [
        page
        for name in ("Start", "Use", "Understand")
        for entry in groups[name]
        for page in entry.values()
    ]
    texts = [(ROOT / "docs" / page).read_text() for page in pages]
    words = sum(len(re.sub(r"<!--.*?-->", "", text, flags=re.S).split()) for text in texts)
    assert words <= MOST_WORDS


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_search_finds_a_page_in_files_without_a_network(site, browser):
    browser.window(1280, 900)
    browser.open(site / "index.html")
    browser.do("document.querySelector('.md-search__input').focus()")
    for letter in "recon-all":
        browser.key(letter)
    browser.wait("document.querySelector('.md-search-result__link')", 30)
    links = browser.do(
        "[...document.querySelectorAll('.md-search-result__link')].map((a) => a.href)"
    )
    assert any("with-other-tools.html" in link for link in links)


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
@pytest.mark.parametrize("page", ["index", "options"])
def test_pages_fit_a_phone_and_have_no_serious_fault(site, browser, page):
    browser.window(390, 800)
    browser.open(site / f"{page}.html")
    assert browser.do("document.documentElement.scrollWidth - innerWidth") <= 0
    faults = violations(browser)
    ours = [fault for fault in faults if "md-" not in fault]  # the theme's own are not ours
    assert ours == []
