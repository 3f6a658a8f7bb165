# SPDX-License-Identifier: Apache-2.0
"""The page of a participant: complete, offline, escaped, the same bytes twice."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bids_moediff.reports.participant import write_participant_report
from report_data import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHECK = """<script>
addEventListener("load", function () {
  const images = [...document.images];
  images.forEach((image) => { image.loading = "eager"; });
  setTimeout(function () {
    const broken = images.filter((image) => !image.naturalWidth).map((image) => image.src);
    const over = getComputedStyle(document.querySelector(".over")).clipPath;
    const result = {count: images.length, broken: broken, clip: over,
      wide: document.documentElement.scrollWidth - innerWidth};
    document.documentElement.setAttribute("data-result", JSON.stringify(result));
  }, 3000);
});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("derivatives")
    return write_participant_report(root, "01", make_run(root))


def test_page_has_its_parts_in_order(report):
    text = report.read_text()
    parts = ["Not done", "Before you use", '<section id="image-1">', "Before and after"]
    parts += ["Zoom into cortex", "Quality of the input", 'id="methods"', 'id="errors"']
    places = [text.index(part) for part in [*parts, 'id="about"']]
    assert places == sorted(places)
    assert "2 x 2 x 2 mm became 1 x 1 x 1 mm" in text
    assert "0.032 %" in text
    assert "ab" * 32 in text
    assert "The file is truncated." in text


def test_nothing_comes_from_the_network_and_links_resolve(report):
    text = report.read_text()
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert len(links) > 15
    for link in links:
        if link.startswith("data:"):
            continue
        assert not re.match(r"[a-z]+:|//|/", link), link
        assert (report.parent / html.unescape(link)).is_file(), link
    assert not re.search(r"@import|url\(", text)


def test_all_pictures_are_there(report):
    names = {path.name for path in (report.parent / "sub-01" / "figures").iterdir()}
    wanted = ["input", "sr", "cubic", "difference", "crops", "mask", "srstd", "gates", "expert"]
    assert names == {
        *(f"sub-01_desc-{name}_T1w.png" for name in wanted),
        "sub-01_desc-profile_T1w.svg",
        "sub-01_desc-histogram_T1w.svg",
    }
    text = report.read_text()
    assert all(f"sub-01/figures/{name}" in text for name in names)
    assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", text))


def test_text_from_outside_is_escaped(report):
    text = report.read_text()
    assert "Slices are thick &amp; &lt;few&gt;." in text
    assert "<strong>conformed</strong>" in text
    assert "<script>alert(1)" not in text


def test_same_record_same_bytes(report, tmp_path):
    again = write_participant_report(tmp_path, "01", make_run(tmp_path))
    assert again.read_bytes() == report.read_bytes()


def test_page_without_pictures_or_record(tmp_path):
    run = {"images": [{"source": "sub-7/anat/sub-7_T1w.nii.gz", "status": "done"}]}
    text = write_participant_report(tmp_path, "7", run).read_text()
    assert "Nothing conspicuous" in text
    assert "<img" not in text
    assert "No image of this participant" in write_participant_report(
        tmp_path, "8", {"images": []}
    ).read_text()


def test_unreadable_product_is_a_warning_not_a_crash(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / run["images"][0]["products"]["sr"]).write_bytes(b"no image")
    text = write_participant_report(tmp_path, "01", run).read_text()
    assert "could not be drawn" in text
    assert str(tmp_path) not in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs the chromium command on the search path")
@pytest.mark.parametrize("width", [1280, 500])
def test_page_renders_in_a_browser_without_network(report, tmp_path, width):
    folder = tmp_path / "copy"
    shutil.copytree(report.parent, folder)
    page = folder / report.name
    page.write_text(report.read_text().replace("</body>", CHECK + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=8000"]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    dump = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'data-result="([^"]+)"', dump.stdout)
    assert match, dump.stderr[-2000:]
    result = json.loads(html.unescape(match[1]))
    assert result["count"] == 10
    assert result["broken"] == []
    assert result["clip"].startswith("inset"), "the slider shows both images"
    assert result["wide"] <= 0, "nothing is wider than the window"
