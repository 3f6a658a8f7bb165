# SPDX-License-Identifier: Apache-2.0
"""Files that a user gives: pipes, devices, byte-order marks, depth, size and encoding."""

import json
import os
from pathlib import Path

import pytest

from bids_moediff.bids.raw_dataset import finish_raw
from bids_moediff.cli.app import main
from bids_moediff.reports.study import read_participants, scanner
from bids_moediff.runtime import given_files
from bids_moediff.runtime.given_files import read_json
from bids_moediff.settings import load_settings
from generated import dataset, head

ODD = {
    "deep": (b"[" * 100_000, "nested too deep"),
    "deep objects": (b'{"t1w":' * 100_000, "nested too deep"),
    "latin-1": ('{"t1w": {"acquisition": "ä"}}'.encode("latin-1"), "utf-8"),
    "utf-16": ('{"t1w": {}}'.encode("utf-16"), "utf-8"),
    "empty": (b"", "Expecting value"),
    "long": (b" " * 2000, "more than any such file"),
}


@pytest.mark.parametrize("kind", ODD)
def test_content_that_is_no_json_is_a_value_error(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(given_files, "MOST_BYTES", 1000 if kind == "long" else 1 << 26)
    content, reason = ODD[kind]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        read_json(tmp_path / "x.json")


@pytest.fixture
def study(tmp_path) -> Path:
    """A data set, a pipe, and JSON that is nested too deep."""
    dataset(tmp_path / "bids", {"sub-01_T1w": head((12, 12, 12))})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deep").write_bytes(ODD["deep"][0])
    (tmp_path / "marked").write_bytes(b'\xef\xbb\xbf{"t1w": {"acquisition": null}}')
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbfnprocs = 1\n")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    return tmp_path


@pytest.mark.parametrize("file", ["pipe", "deep", "zeros", "bids"])
@pytest.mark.parametrize("option", ["--bids-filter-file", "--config-file", "--combine"])
def test_files_of_options_are_refused_in_a_sentence(study, capsys, option, file):
    words = [str(study / "bids"), str(study / "out"), "participant", "--dry-run"]
    assert main([*words, option, str(study / file)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert str(study / file) in said or f"'{study / file}'" in said


@pytest.mark.parametrize(
    ("option", "file"), [("--bids-filter-file", "marked"), ("--config-file", "marked.toml")]
)
def test_a_byte_order_mark_loses_nothing(study, capsys, option, file):
    words = [str(study / "bids"), str(study / "out"), "participant", "--dry-run"]
    assert main([*words, option, str(study / file)]) == 0
    assert "sub-01_T1w" in capsys.readouterr().out


def test_pipes_in_the_data_set_wait_for_nobody(study):
    root = study / "bids"
    for name in ("participants.tsv", ".bidsignore", "sub-01/sub-01_T1w.json"):
        (root / name).unlink(missing_ok=True)
        os.mkfifo(root / name)
    assert read_participants(root) == {}
    (root / "sub-01/anat/sub-01_T1w.json").write_text(json.dumps({"Manufacturer": "Maker"}))
    assert scanner(root, ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]) == "Maker"
    words = [str(root), str(study / "out"), "participant", "--dry-run"]
    assert main(words) == 0
    given = {"bids_dir": root, "output_dir": study / "raw", "analysis_level": "participant"}
    (study / "raw").mkdir()
    finish_raw(load_settings(given, None, {}))
    assert not (study / "raw" / "participants.tsv").exists()


def test_a_table_in_another_encoding_costs_the_table_alone(study):
    (study / "bids" / "participants.tsv").write_bytes(b"participant_id\tsite\nsub-01\t\xe4\n")
    assert read_participants(study / "bids") == {}
