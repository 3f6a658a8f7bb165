# SPDX-License-Identifier: Apache-2.0
"""Group tables and page: what is on disk, outliers by name, states of participants."""

import csv
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_moediff.execution import group as level
from bids_moediff.reports import strips
from bids_moediff.reports.group import (
    MOST_NAMED,
    _groupings,
    grouped,
    read_rows,
    write_group_report,
)
from bids_moediff.reports.strips import FEWEST, choose, outliers, spread
from bids_moediff.settings import Settings
from browser import CHROMIUM, REASON, Browser, violations
from report_data import quality


def sidecar(root: Path, label: str, snr: float, session: str = "", **more: Any) -> None:
    folder = root / f"sub-{label}" / (f"ses-{session}" if session else "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    middle = f"_ses-{session}" if session else ""
    content = {
        "Model": "moediff",
        "RandomSeed": 0,
        "ConsistencyResidual": 1e-4,
        "InputVoxelSize": [1, 1, 4],
        "OutputVoxelSize": [0.7, 0.7, 0.7],
        "Quality": quality(snr),
        "Warnings": [],
        **more,
    }
    path = folder / f"sub-{label}{middle}_res-0p7mm_desc-sr_T1w.json"
    path.write_text(json.dumps(content))


@pytest.fixture
def group(tmp_path) -> Path:
    for number in range(12):
        sidecar(tmp_path, f"{number:02d}", 20 + 0.3 * number)
    sidecar(tmp_path, "99", 3.0, Warnings=["Motion <b>\n and\tmore."])
    (tmp_path / "sub-99.html").write_text("<p>")
    return tmp_path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_table_has_a_row_an_image_and_a_description_a_column(group):
    write_group_report(group)
    rows = read_table(group / "group_T1w.tsv")
    assert [row["bids_name"] for row in rows][:2] == [
        "sub-00_res-0p7mm_T1w",
        "sub-01_res-0p7mm_T1w",
    ]
    assert len(rows) == 13
    last = rows[-1]
    assert (last["participant"], float(last["snr_brain"])) == ("99", 3.0)
    assert (last["fber"], last["voxel_in_z"], last["n_warnings"]) == ("n/a", "4", "1")
    assert last["warnings"] == "Motion <b> and more."
    assert "session" not in last
    described = json.loads((group / "group_T1w.json").read_text())
    assert list(described) == list(last)
    assert all(entry["Description"] for entry in described.values())


def test_images_of_different_networks_are_not_compared_without_a_word(group):
    alone = html.unescape(write_group_report(group).read_text())
    assert "different networks" not in alone
    sidecar(group, "98", 20.0, Model="student", ModelVersion="0.3")
    page = html.unescape(write_group_report(group).read_text())
    assert "made by different networks: moediff (13), student 0.3 (1)." in page


def test_sessions_and_contrasts_get_their_place(group):
    sidecar(group, "00", 20.0, session="a")
    other = group / "sub-00" / "anat" / "sub-00_res-0p7mm_desc-sr_T2w.json"
    other.write_text(json.dumps({"Quality": {"snr_brain": 7.0}}))
    text = write_group_report(group).read_text()
    rows = read_table(group / "group_T1w.tsv")
    assert {row["session"] for row in rows} == {"n/a", "a"}
    assert len(read_table(group / "group_T2w.tsv")) == 1
    assert 'id="T1w"' in text
    assert 'id="T2w"' in text


def test_outliers_follow_the_modified_z_score():
    values = np.array([10, 11, 12, 13, 14, 40.0])
    median, spread = 12.5, 1.4826 * 1.5
    assert list(outliers(values)) == list(np.abs(values - median) / spread > 3.5)
    assert outliers(values).sum() == 1
    assert not outliers(values[:4]).any()
    assert not outliers(np.array([1, 1, 1, 1, 9.0])).any()


def test_page_names_outliers_states_and_warnings(group):
    states = {f"{n:02d}": {"status": "done", "message": ""} for n in range(12)}
    states["99"] = {"status": "failed", "message": "Out of memory & time."}
    states["50"] = {"status": "missing", "message": "No image to process."}
    text = write_group_report(group, states).read_text()
    assert "14 in the data set: 12 done, 1 failed, 1 missing." in text
    assert "Out of memory &amp; time." in text
    assert "No image to process." in text
    strip = text[text.index("Signal-to-noise ratio in the brain") :]
    names = re.search(r'strip-names">(.*?)</div>', strip)
    assert names
    assert re.sub("<[^>]+>", "", names[1]).endswith("sub-99_res-0p7mm_T1w 3")
    assert "Motion &lt;b&gt; and more." in text
    drawn = re.findall(r'strip-label">([^<]*)', text)
    equal = re.search(r"The same in all images: ([^<]*)", text)
    assert equal and "Contrast-to-noise ratio of white to grey matter 3.1" in equal[1]
    assert "Signal-to-noise ratio in the brain" in drawn
    assert not any(label in equal[1] for label in drawn)
    marks = [len(re.findall("M", d)) for d in re.findall(r'class="far" d="([^"]*)"', text)]
    assert sum(marks) == 1
    assert not re.search(r'(?:src|href)="(?:https?:|//|/)', text)


def test_same_sidecars_same_bytes_and_nothing_else_is_read(group):
    first = write_group_report(group).read_bytes()
    table = (group / "group_T1w.tsv").read_bytes()
    assert write_group_report(group).read_bytes() == first
    assert (group / "group_T1w.tsv").read_bytes() == table


def test_torn_sidecars_are_named_and_the_others_go_on(group):
    bad = group / "sub-00" / "anat" / "sub-00_res-0p7mm_desc-sr_T1w.json"
    bad.write_text('{"Model": ')
    rows, unreadable = read_rows(group)
    assert unreadable == ["sub-00/anat/sub-00_res-0p7mm_desc-sr_T1w.json"]
    assert len(rows["T1w"]) == 12
    assert unreadable[0] in write_group_report(group).read_text()


def test_empty_folder_gives_a_page_that_says_so(tmp_path):
    text = write_group_report(tmp_path, {"1": {"status": "missing", "message": ""}}).read_text()
    assert "No super-resolved image" in text
    assert "sub-1" in text
    assert not list(tmp_path.glob("*.tsv"))


def test_folders_that_no_run_takes_are_not_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(level, "prepare_environment", lambda *_: None)
    for name in ("sub-01", "sub-02", "sub-02_old"):
        (tmp_path / "data" / name).mkdir(parents=True)
    sidecar(tmp_path / "out", "01", 20)
    (tmp_path / "out" / "sub-01" / "anat" / "sub-01_desc-sr_T1w.nii.gz").touch()
    settings = Settings(
        bids_dir=tmp_path / "data", output_dir=tmp_path / "out", analysis_level="group"
    )
    assert level.run_group(settings) == 1
    assert (tmp_path / "out" / "logs" / "unfinished.txt").read_text() == "sub-02\n"
    (tmp_path / "data" / "sub-02").rmdir()
    assert level.run_group(settings) == 0


def multi_site(root: Path) -> tuple[Path, Path]:
    """Output and raw data of twelve participants at two sites, with two scanners."""
    raw, output = root / "raw", root / "out"
    for number in range(12):
        label, site = f"{number:02d}", "AB"[number % 2]
        sidecar(
            output,
            label,
            20 + number,
            Sources=[f"bids:raw:sub-{label}/anat/sub-{label}_T1w.nii.gz"],
            Warnings=[f"sub-{label}: slices of {number}.5 mm are thick."] if number < 7 else [],
        )
        own = raw / f"sub-{label}" / "anat" / f"sub-{label}_T1w.json"
        own.parent.mkdir(parents=True)
        own.write_text(
            json.dumps({"ManufacturersModelName": "Prisma" if site == "A" else "Skyra"})
        )
    (raw / "T1w.json").write_text(
        '{"Manufacturer": "Siemens", "MagneticFieldStrength": 3, "ManufacturersModelName": "Trio"}'
    )
    lines = ["participant_id\tsite\tage", *(f"sub-{n:02d}\t{'AB'[n % 2]}\t{n}" for n in range(12))]
    (raw / "participants.tsv").write_text("\n".join(lines) + "\n")
    return output, raw


def test_site_and_scanner_come_from_the_raw_data(tmp_path):
    output, raw = multi_site(tmp_path)
    write_group_report(output, raw_dir=raw)
    rows = read_table(output / "group_T1w.tsv")
    assert [row["site"] for row in rows[:3]] == ["A", "B", "A"]
    assert rows[0]["scanner_of_image"] == "Siemens Prisma 3 T"
    assert "age" not in rows[0]


def test_warnings_that_differ_in_numbers_are_one(tmp_path):
    output, raw = multi_site(tmp_path)
    text = write_group_report(output, raw_dir=raw).read_text()
    assert text.count('<summary><span class="badge warned">') == 1
    assert "7 warned" in text
    groups = grouped([("A 1.", "x", ""), ("B.", "y", ""), ("A 2.", "z", "z.html")], str)
    assert [group.names for group in groups] == [[("x", ""), ("z", "z.html")], [("y", "")]]


def test_of_too_many_images_the_page_lists_outliers_and_a_sample(group, monkeypatch):
    monkeypatch.setattr(strips.choose, "__defaults__", (6,))
    states = {f"{n}": {"status": "missing", "message": ""} for n in range(MOST_NAMED + 7)}
    text = write_group_report(group, states).read_text()
    assert "13 images. All figures" in text and "This page lists" in text
    listed = re.findall(r'<tr data-row="(\d+)".*?>(sub-\d+)_res', text)
    assert [row for row, _ in listed] == [str(n) for n in range(len(listed))]
    assert 3 <= len(listed) <= 6 and listed[-1][1] == "sub-99"
    assert len(read_table(group / "group_T1w.tsv")) == 13
    dots = json.loads(re.search(r'class="strips">(.*?)</script>', text)[1])
    snr = next(entry for entry in dots if entry["far"])
    assert snr["far"] == [len(listed) - 1]
    assert [row for row, _, _ in snr["dots"]] == list(range(len(listed)))
    assert "and 7 more, listed in logs/unfinished.txt" in text


def test_the_furthest_of_each_figure_are_chosen():
    rows = [{"a": float(n % 7), "b": float(n % 5)} for n in range(1000)]
    rows[3]["a"], rows[501]["b"], rows[777]["b"] = 1e3, -1e3, 2e3
    spreads = [spread(name, name, rows) for name in "ab"]
    chosen = choose(len(rows), spreads, 40)
    assert {3, 501, 777} < set(chosen) and len(chosen) <= 40
    assert max(np.diff(chosen)) <= 1000 / (40 - 3) + 1
    assert choose(40, spreads, 40) == list(range(40))


def test_few_images_have_no_distribution(tmp_path):
    for number in range(FEWEST - 1):
        sidecar(tmp_path, f"{number:02d}", 20.0 + number)
    assert "<svg" not in write_group_report(tmp_path).read_text()
    sidecar(tmp_path, "50", 20.0)
    assert "<svg" in write_group_report(tmp_path).read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


ROWS = "[...document.querySelectorAll('#T1w tbody tr')].filter((r) => !r.hidden)"


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_table_sorts_in_a_browser(group, browser):
    browser.window(500, 900)
    browser.open(write_group_report(group))
    head = "document.querySelector('#T1w th[data-name=snr_brain] button')"
    first = "document.querySelector('#T1w tbody tr').cells[0].textContent.trim()"
    browser.do(f"{head}.click()")
    assert browser.do(first) == "sub-99_res-0p7mm_T1w"
    browser.do(f"{head}.click()")
    assert browser.do(first) == "sub-11_res-0p7mm_T1w"
    assert browser.do("document.documentElement.scrollWidth - innerWidth") <= 0


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_filter_search_and_colour_in_a_browser(tmp_path, browser):
    output, raw = multi_site(tmp_path)
    browser.window(1280, 900)
    browser.open(write_group_report(output, raw_dir=raw))
    assert browser.do("document.querySelector('.strip').querySelectorAll('path.dot').length") == 2
    choose = (
        "(() => {{ const f = document.querySelector('{}'); f.value = '{}';"
        "f.dispatchEvent(new Event('input')) }})()"
    )
    browser.do(choose.format("[data-column=site]", "B"))
    assert browser.do(f"{ROWS}.length") == 6
    dots = "document.querySelector('.strip path.dot[d^=M]').getAttribute('d').match(/M/g).length"
    assert browser.do(dots) == 6
    assert "6 of 12" in browser.do("document.querySelector('.count').textContent")
    browser.do(choose.format("[name=search]", "sub-03"))
    assert browser.do(f"{ROWS}.map((r) => r.dataset.row)") == ["3"]
    browser.do(choose.format("[data-column=site]", ""))
    browser.do(choose.format("[name=search]", "thick"))
    assert browser.do(f"{ROWS}.length") == 7
    assert browser.errors == []


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_order_of_numbers_texts_and_what_is_missing(group, browser):
    """Numbers by size, names with their numbers, ``n/a`` last both ways."""
    for label, snr in (("50", 100.0), ("10", None), ("100", 5.5)):
        sidecar(group, label, snr)  # type: ignore[arg-type]
    browser.open(write_group_report(group))
    for name, first, last in (
        ("snr_brain", ["99", "100", "00"], ["11", "50", "10"]),
        (None, ["00", "01", "02"], ["50", "99", "100"]),
    ):
        head = f"th[data-name={name}]" if name else "th:not([data-name])"
        orders, signs = browser.do(
            f"(() => {{ const head = document.querySelector('#T1w {head}'), orders = [];"
            "const signs = [];"
            "for (let n = 0; n < 3; n++) { head.querySelector('button').click();"
            "orders.push([...document.querySelectorAll('#T1w tbody tr')].map("
            "(row) => row.cells[0].textContent.trim().slice(4).split('_')[0]));"
            "signs.push([...document.querySelectorAll('#T1w th[aria-sort]')].map("
            "(th) => [th === head, th.ariaSort])) } return [orders, signs] })()"
        )
        assert signs == [[[True, word]] for word in ("ascending", "descending", "ascending")]
        assert orders[0] == orders[2] and len(set(orders[0])) == 15
        up, down = orders[:2]
        assert (up[:3], up[-3:]) == (first, last)
        if name:
            assert down[:2] == ["50", "11"] and down[-2:] == ["99", "10"]
        else:
            assert down == up[::-1] and sorted(up, key=int) == up


# Dots, legend and data of a strip; choose a value; move the pointer over the strip.
STRIP = (
    "(() => { const strip = document.querySelector('#T1w .strip');"
    "const places = (path) => [...path.getAttribute('d').matchAll(/M(\\S+) (\\S+?)h0/g)].map("
    "(found) => [Number(found[1]), Number(found[2])]);"
    "return { dots: [...strip.querySelectorAll('.dot')].map((path) =>"
    "[getComputedStyle(path).stroke, places(path)]), far: places(strip.querySelector('.far')),"
    "box: strip.querySelector('svg').getAttribute('viewBox'),"
    "axis: strip.querySelector('.axis').getAttribute('y1'),"
    "legend: [...document.querySelectorAll('#T1w .legend span')].map((entry) =>"
    "[entry.querySelector('i').style.background, entry.textContent]),"
    "data: JSON.parse(document.querySelector('#T1w .strips').textContent)[0] } })()"
)
CHOOSE = (
    "(() => {{ const f = document.querySelector('#T1w {}'); f.value = '{}';"
    "f.dispatchEvent(new Event('input')) }})()"
)
HOVER = (
    "(() => {{ const svg = document.querySelector('#T1w .strip svg');"
    "const box = svg.getBoundingClientRect(), scale = box.width / 620;"
    "svg.dispatchEvent(new PointerEvent('pointermove', {{ clientX: box.left + {} * scale,"
    "clientY: box.top + {} * scale }}));"
    "return [document.querySelector('#T1w .under').textContent, svg.style.cursor] }})()"
)


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
def test_dots_of_a_strip_have_the_lane_and_colour_of_their_group(tmp_path, browser):
    output, raw = multi_site(tmp_path)
    sidecar(output, "03", 500.0, Sources=["bids:raw:sub-03/anat/sub-03_T1w.nii.gz"])
    (output / "sub-03.html").write_text("<p>")
    browser.window(1280, 900)
    browser.open(write_group_report(output, raw_dir=raw))

    def height(lane: float, share: float, wide: bool) -> float:
        return 7 + (13 * lane + 8 * share if wide else 18 * share)

    found = browser.do(STRIP)
    dots = found["data"]["dots"]
    assert len(dots) == 12 and found["data"]["far"] == [3]
    blue, orange = "rgb(0, 114, 178)", "rgb(213, 94, 0)"
    for lane, (colour, places) in enumerate(found["dots"]):
        own = [dot for dot in dots if dot[0] % 2 == lane]
        assert colour == (blue, orange)[lane]
        wanted = [[10 + 600 * x, height(lane, y, True)] for _, x, y in own]
        assert np.abs(np.array(places) - wanted).max() < 0.06
    assert np.abs(np.array(found["far"]) - [[610, height(1, dots[3][2], True)]]).max() < 0.06
    assert (found["box"], found["axis"]) == ("0 0 620 52", "38")
    assert found["legend"] == [[blue, "A (6)"], [orange, "B (6)"]]
    browser.do(CHOOSE.format("[data-column=site]", "A"))
    found = browser.do(STRIP)
    assert [len(places) for _, places in found["dots"]] == [6, 0] and found["far"] == []
    assert found["legend"] == [[blue, "A (6)"], [orange, "B (0)"]]
    browser.do(CHOOSE.format("[data-column=site]", ""))
    browser.do(CHOOSE.format("[name=colour]", ""))
    found = browser.do(STRIP)
    (places,) = [places for _, places in found["dots"]]
    wanted = [[10 + 600 * x, height(0, y, False)] for _, x, y in dots]
    assert np.abs(np.array(places) - wanted).max() < 0.06
    assert (found["box"], found["axis"], found["legend"]) == ("0 0 620 44", "30", [])
    at = wanted[3]
    assert browser.do(HOVER.format(*at)) == ["sub-03_res-0p7mm_T1w; ", "pointer"]
    assert browser.do(HOVER.format(at[0] - 5, at[1] - 4))[0] == "sub-03_res-0p7mm_T1w; "
    assert browser.do(HOVER.format(at[0] - 9, at[1])) == ["", ""]
    browser.do(CHOOSE.format("[name=search]", "  SUB-01   t1W "))
    assert browser.do(f"{ROWS}.map((r) => r.dataset.row)") == ["1"]
    assert browser.do(HOVER.format(*at)) == ["", ""], "it is not shown"
    assert browser.do("document.querySelector('.count').textContent") == "1 of 12 images shown"
    browser.do(CHOOSE.format("[name=search]", ""))
    assert browser.do("document.querySelector('.count').textContent") == ""
    browser.do(HOVER.format(*at))
    click = "document.querySelector('#T1w .strip svg').dispatchEvent(new Event('click'))"
    browser.do(f"void setTimeout(() => {click}, 20)")  # the page goes: nobody would answer
    browser.wait("location.href.endsWith('sub-03.html')")


@pytest.mark.skipif(CHROMIUM is None, reason=REASON)
@pytest.mark.parametrize("dark", [False, True])
def test_no_serious_fault_of_accessibility(tmp_path, browser, dark):
    output, raw = multi_site(tmp_path)
    states = {f"{n:02d}": {"status": "done", "message": ""} for n in range(12)}
    states["77"] = {"status": "failed", "message": "The file is truncated."}
    browser.window(1280, 900, dark=dark)
    browser.open(write_group_report(output, states, raw))
    assert violations(browser) == []


def test_scans_that_were_combined_are_counted(tmp_path):
    scans = [{"Scan": name, "Used": name != "c"} for name in "abc"]
    sidecar(tmp_path, "01", 20.0, CombinedScans=scans)
    sidecar(tmp_path, "02", 20.0)
    write_group_report(tmp_path)
    rows = read_table(tmp_path / "group_T1w.tsv")
    assert [(row["participant"], row["scans"]) for row in rows] == [("01", "2"), ("02", "1")]


def test_an_outlier_is_further_than_three_and_a_half_deviations():
    """A deviation is 1.4826 times the median distance, 1 here: the limit is 5.19."""
    values = np.array([-1.0, 1.0] * 10 + [5.0, -5.0, 5.4, -5.4])
    assert outliers(values).tolist() == [False] * 22 + [True] * 2


def test_what_is_the_same_in_all_images_groups_nothing():
    rows = [
        {"site": site, "session": None, "scanner_of_image": "A 3 T", "voxel_sizes": None,
         "network": "m", "device": "cpu"}
        for site in ("a", "a", "b", "b")
    ]  # fmt: skip
    assert _groupings(rows) == ["site"]
