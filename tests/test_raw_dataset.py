# SPDX-License-Identifier: Apache-2.0
"""The folder that bids_moediff-degrade writes: what it says of itself, and where it may lie."""

import json
from pathlib import Path
from typing import Any

import pytest

from bids_moediff import __version__
from bids_moediff.bids.raw_dataset import check_raw_output, finish_raw, prepare_raw
from bids_moediff.errors import UsageError
from bids_moediff.settings import Settings, load_settings

MAKER = "bids_moediff-degrade"
SOURCE = {
    "Name": "Heads", "BIDSVersion": "1.8.0", "License": "CC0", "Authors": ["A", "B"],
    "Acknowledgements": "c", "EthicsApprovals": ["d"], "Funding": ["e"], "DatasetDOI": "doi:10/x",
    "HowToAcknowledge": "f", "GeneratedBy": [{"Name": "scanner"}], "DatasetType": "derivative",
}  # fmt: skip


def settings_for(source: Path, target: Path) -> Settings:
    source.mkdir(exist_ok=True, parents=True)
    given = {"bids_dir": source, "output_dir": target, "analysis_level": "participant"}
    return load_settings(given, environment={})


def describe(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "dataset_description.json").write_text(json.dumps(content))


def test_what_the_coarse_data_set_says_of_itself(tmp_path):
    source, target = tmp_path / "in", tmp_path / "deep" / "out"
    describe(source, SOURCE)
    (source / "LICENSE").write_bytes(b"take it\r\n")
    (source / "participants.json").write_text('{"age": {}}')
    (source / "CHANGES").write_text("not taken")
    prepare_raw(settings_for(source, target), MAKER)
    same = ("License", "Authors", "Acknowledgements", "EthicsApprovals", "Funding")
    description = json.loads((target / "dataset_description.json").read_text())
    assert list(description.items()) == [
        ("Name", "Heads, made coarser"), ("BIDSVersion", "1.8.0"), ("DatasetType", "raw"),
        *((key, SOURCE[key]) for key in same),
        ("GeneratedBy", [{"Name": MAKER, "Version": __version__}]),
        ("SourceDatasets", [{"DOI": "doi:10/x"}]),
    ]  # fmt: skip
    readme = (target / "README.md").read_text()
    assert "Heads, made coarser" in readme and MAKER in readme and __version__ in readme
    assert (target / "LICENSE").read_bytes() == b"take it\r\n"
    assert (target / "participants.json").read_text() == '{"age": {}}'
    assert len(list(target.iterdir())) == 4


def test_a_source_that_says_nothing(tmp_path):
    target = tmp_path / "out"
    prepare_raw(settings_for(tmp_path / "in", target), MAKER)
    assert json.loads((target / "dataset_description.json").read_text()) == {
        "Name": "BIDS data set, made coarser", "BIDSVersion": "1.10.0", "DatasetType": "raw",
        "GeneratedBy": [{"Name": MAKER, "Version": __version__}],
    }  # fmt: skip


def test_where_the_coarse_data_set_may_lie(tmp_path):
    source, file = tmp_path / "in", tmp_path / "file"
    file.write_text("")
    own, hidden, other, empty = (tmp_path / name for name in ("own", "hidden", "other", "empty"))
    describe(own, {"GeneratedBy": [{"Name": MAKER}]})
    describe(other, {"GeneratedBy": [{"Name": "fMRIPrep"}]})
    (hidden / ".git").mkdir(parents=True)
    empty.mkdir()
    (tmp_path / "link").symlink_to(source)
    for good in (own, hidden, empty, tmp_path / "missing"):
        check_raw_output(settings_for(source, good), MAKER)
    for bad, words in (
        (source, "inside the input"), (source / "a" / "b", "inside the input"),
        (tmp_path / "link" / "a", "inside the input"), (file, "is a file"),
        (other, "other data"), (tmp_path, "other data"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            check_raw_output(settings_for(source, bad), MAKER)
    with pytest.raises(UsageError, match="inside the input"):
        check_raw_output(settings_for(tmp_path / "link", source / "a"), MAKER)


def test_participants_that_are_there_keep_their_rows(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    settings = settings_for(source, target)
    for label in ("01", "03"):
        (target / f"sub-{label}").mkdir(parents=True)
    finish_raw(settings)
    assert not (target / "participants.tsv").exists(), "the source has none"
    table = source / "participants.tsv"
    table.write_text(
        "participant_id\tage\tsex\nsub-01\t41\tF\nsub-02\t50\tM\nsub-03\t60\nsub-1\t7"
    )
    finish_raw(settings)
    text = (target / "participants.tsv").read_text()
    assert text == "participant_id\tage\tsex\nsub-01\t41\tF\nsub-03\t60\tn/a\n"
    table.write_text("participant_id\tage\nsub-01\t42\tmore\tcells\n")
    finish_raw(settings)
    text = (target / "participants.tsv").read_text()
    assert text == "participant_id\tage\nsub-01\t42\n"
    table.write_text("participant_id\tage\nsub-09\t42\n")
    finish_raw(settings)
    assert (target / "participants.tsv").read_text() == text, "nobody of them is here"
    table.write_bytes(b"\xff\xfeparticipant_id")
    finish_raw(settings)
    assert (target / "participants.tsv").read_text() == text
