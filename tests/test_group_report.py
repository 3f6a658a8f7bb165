# SPDX-License-Identifier: Apache-2.0
"""Group tables and page: what is on disk, outliers by name, states of participants."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_moediff.reports.group import outliers, read_rows, write_group_report
from report_data import quality

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
    states["50"] = {"status": "missing", "message": ""}
    text = write_group_report(group, states).read_text()
    assert "14 in the data set: 12 done, 1 failed, 1 missing." in text
    assert "Out of memory &amp; time." in text
    assert "Not processed yet." in text
    strip = text[text.index("Signal-to-noise ratio in the brain") :]
    names = re.search(r'strip-names">(.*?)</div>', strip)
    assert names
    assert re.sub("<[^>]+>", "", names[1]).endswith("sub-99_res-0p7mm_T1w 3")
    assert "Motion &lt;b&gt; and more." in text
    assert text.count('class="far"') == 1
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


@pytest.mark.skipif(CHROMIUM is None, reason="needs the chromium command on the search path")
def test_table_sorts_in_a_browser(group, tmp_path):
    page = write_group_report(group)
    script = """<script>
      const head = document.querySelector("#T1w th[data-name=snr_brain]");
      head.click();
      const first = document.querySelector("#T1w tbody tr").cells[0].textContent;
      head.click();
      const last = document.querySelector("#T1w tbody tr").cells[0].textContent;
      const wide = document.documentElement.scrollWidth - innerWidth;
      document.documentElement.setAttribute("data-result", JSON.stringify([first, last, wide]));
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", script))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--window-size=500,900", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'data-result="([^"]+)"', dump.stdout)
    assert match, dump.stderr[-2000:]
    first, last, wide = json.loads(html.unescape(match[1]))
    assert first.strip() == "sub-99_res-0p7mm_T1w"
    assert last.strip() == "sub-11_res-0p7mm_T1w"
    assert wide <= 0
