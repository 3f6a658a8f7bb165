# SPDX-License-Identifier: Apache-2.0
"""The page of a participant: complete, offline, escaped, the same bytes twice."""

import html
import re
from pathlib import Path

import pytest

from bids_moediff.reports import facts, figures
from bids_moediff.reports.facts import resolution, run_card
from bids_moediff.reports.figures import Overlay
from bids_moediff.reports.methods import methods_html
from bids_moediff.reports.participant import write_participant_report
from report_data import make_run

DRAWN: dict[str, Overlay] = {}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("derivatives")
    with pytest.MonkeyPatch.context() as patch:
        for name, draw in figures.DRAW.items():

            def noted(scene, overlay, path, draw=draw):
                DRAWN[path.name] = overlay
                return draw(scene, overlay, path)

            patch.setitem(figures.DRAW, name, noted)
        return write_participant_report(root, "01", make_run(root))


@pytest.fixture(scope="module")
def page(report) -> str:
    """The page of the image that is done."""
    return (report.parent / "sub-01_T1w.html").read_text()


def test_page_has_its_parts_in_order(page):
    parts = ["Before you use", '<section id="image"', 'class="viewer"', "Zoom into cortex"]
    parts += ["Quality of the input", 'id="card"', 'id="methods"', 'id="errors"', 'id="about"']
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "2 x 2 x 2 mm became 1 x 1 x 1 mm" in page
    assert "0.032 %" in page
    assert "ab" * 32 in page


def test_index_names_every_image_and_what_failed(report):
    text = report.read_text()
    assert 'href="sub-01_T1w.html"' in text
    assert "The file is truncated." in text
    assert len(text) < 1_000_000, "volumes are on the pages of the images"


def test_nothing_is_loaded_and_links_to_files_resolve(report, page):
    for text in (report.read_text(), page):
        sources = re.findall(r'src="([^"]+)"', text)
        assert sources
        assert all(source.startswith("data:") for source in sources)
        assert not re.search(r"@import|url\(|<link(?! rel=\"icon\" href=\"data:)", text)
        links = re.findall(r'href="([^"#]+)"', text)
        for link in links:
            if not link.startswith(("data:", "https://doi.org/")):
                assert (report.parent / html.unescape(link)).is_file(), link


def test_all_pictures_are_there(report, page):
    names = {path.name for path in (report.parent / "sub-01" / "figures").iterdir()}
    wanted = ["input", "sr", "difference", "crops", "mask", "srstd", "gates", "expert"]
    wanted.append("srexpert1")  # all three in one picture
    assert names == {
        *(f"sub-01_desc-{name}_T1w.png" for name in (*wanted, "thumbnail")),
        "sub-01_desc-profile_T1w.svg",
        "sub-01_desc-histogram_T1w.svg",
    }
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == len(names) - 1, "the thumbnail is for lists"
    assert all('alt="' in tag for tag in pictures)
    changes = DRAWN["sub-01_desc-srexpert1_T1w.png"]
    assert changes.volume.data.shape[3] == len(changes.names) == 3
    assert len({float(changes.volume.data[..., k].sum()) for k in range(3)}) == 3


def test_added_detail_is_in_units_of_the_noise(tmp_path):
    run = make_run(tmp_path)
    run["images"] = run["images"][:1]
    item = run["images"][0]
    pages = []
    for item["quality"]["noise_sigma"], item["record"]["EstimatedNoise"] in (
        (2.0, 0.0), (1.0, 0.0), (1.0, 2.0),
    ):  # fmt: skip
        pages.append(write_participant_report(tmp_path, "01", run).read_text())
    times = [float(re.findall(r"interpolation: ([\d.]+) times", page)[0]) for page in pages]
    assert times[1] == pytest.approx(2 * times[0], abs=0.2)
    assert times[0] > 0
    assert times[2] == times[0], "the estimate that the result used, where there is one"
    rows = [re.findall(r"<dt>Noise of the input</dt>\s*<dd>([^<]+)", page) for page in pages]
    assert rows == [["2 input units"], ["1 input units"], ["2 input units"]]


def test_citations_are_numbered_and_linked(tmp_path):
    text = "Made with *this* [@b; @a].\n\n### References\n\n* [@a] One. https://doi.org/1/x\n"
    page = methods_html({"methods": text + "* [@b] Two.\n"})
    assert '[<a href="#reference-2">2</a>, <a href="#reference-1">1</a>]' in page
    assert '<li id="reference-1">One. <a href="https://doi.org/1/x">' in page
    assert "@" not in page
    assert methods_html({"methods": "No [@key] here"}) == "<p>No [@key] here</p>\n"


def test_text_from_outside_is_escaped(page):
    text = page
    assert "Slices are thick &amp; &lt;few&gt;." in text
    assert "<strong>conformed</strong>" in text
    assert "<script>alert(1)" not in text


def test_same_record_same_bytes(report, tmp_path):
    again = write_participant_report(tmp_path, "01", make_run(tmp_path))
    assert again.read_bytes() == report.read_bytes()
    other = report.parent / "sub-01_T1w.html"
    assert (tmp_path / "sub-01_T1w.html").read_bytes() == other.read_bytes()


def test_page_without_pictures_or_record(tmp_path):
    run = {"images": [{"source": "sub-7/anat/sub-7_T1w.nii.gz", "status": "done"}]}
    text = write_participant_report(tmp_path, "7", run).read_text()
    assert "No warning" in text
    assert "<img" not in text
    assert (
        "No image of this participant"
        in write_participant_report(tmp_path, "8", {"images": []}).read_text()
    )


def test_unreadable_product_is_a_warning_not_a_crash(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / run["images"][0]["products"]["sr"]).write_bytes(b"no image")
    text = write_participant_report(tmp_path, "01", run).read_text()
    assert "could not be drawn" in text
    assert str(tmp_path) not in text


def test_the_card_names_the_filter_that_was_assumed():
    sharp = {"profile": "kspace", "fwhm": 1.0}
    soft = sharp | {"filter": "quarter-hann"}
    card = dict(run_card({}, {"SamplingProfiles": [soft, soft, sharp]}))
    assert card["Sampling"] == "kspace quarter-hann, kspace quarter-hann, kspace"
    assert dict(run_card({}, {"SamplingProfiles": [sharp] * 3}))["Sampling"] == "kspace"


def test_resolution_has_stored_usable_and_acquired_size_in_this_order():
    figures = {"spacing_y": 1.0, "usable_y": 2.0, "acquired_y": 1.5}
    figures["interpolation_y"] = "zero-filled"
    assert resolution(figures) == [("second", "1 mm", "2 mm", "1.5 mm", "zero-filled")]


def test_numbers_of_the_tables():
    assert facts.number(None) == "-" and facts.number(0.0) == "0"
    assert facts.number(0.123456, "mm") == "0.1235 mm"
    assert "2.0 times the noise" in facts.added(3.0, 1.5)
    assert "3 input units" in facts.added(3.0, None)
    flat = {"quality": {"noise_sigma": 2.0}}
    assert facts.noise_of(flat, {"EstimatedNoise": 3.0}) == 3.0
    assert facts.noise_of(flat, {}) == 2.0
    assert facts.noise_of({}, {}) is None
