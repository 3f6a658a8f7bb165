# SPDX-License-Identifier: Apache-2.0
"""Mistakes that people make: each ends with code 2 and names its remedy; nothing is written."""

import shutil
from pathlib import Path

import pytest

from bids_moediff.cli.app import main
from conftest import DEMO

IMAGE = "DATA/sub-01/anat/sub-01_T1w.nii.gz"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("EMPTY DATA participant", "bids_moediff DATA EMPTY participant"),
        ("participant DATA OUT", "bids_moediff DATA OUT participant"),
        (f"{IMAGE} OUT participant", "bids_moediff-superres IN.nii.gz"),
        ("EMPTY OUT participant", "bids_moediff-superres IN.nii.gz"),
        ("DATA/sub-01 OUT participant", "--participant-label 01"),
        ("/nope OUT participant", "docker -v"),
        ("DATA OUT participant --device gpu", "cuda"),
        ("DATA OUT participant --output-res 0.8", "--output-resolution"),
        ("DATA OUT participant --output-resolution 0.7mm", "write 0.7"),
        ("DATA OUT participant --output-resolution 0,7", "write 0.7"),
        ("DATA OUT participant --participant-label sub-1", "01"),
        ("DATA OUT participants", "participant"),
        ("DATA OUT participant --modalities t1", "T1w"),
        ("DATA OUT participant --n_cpus 4", "--nprocs"),
        ("DATA DATA participant", "another output"),
    ],
)
def test_a_mistake_gets_its_remedy(arguments, remedy, tmp_path, capsys) -> None:
    data, out, empty = tmp_path / "data", tmp_path / "out", tmp_path / "empty"
    shutil.copytree(DEMO, data)
    empty.mkdir()
    places = {"DATA": data, "OUT": out, "EMPTY": empty}

    def placed(words: str) -> str:
        for name, path in places.items():
            words = words.replace(name, str(path))
        return words

    words = [placed(word) for word in arguments.split()]
    if "--dry-run" not in words:
        words.append("--dry-run")
    before = sorted(Path(tmp_path).rglob("*"))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert placed(remedy) in said
    assert len(said.strip().splitlines()) == 1
    assert sorted(Path(tmp_path).rglob("*")) == before


def test_nothing_is_suggested_for_a_folder_unlike_all_others(tmp_path, capsys) -> None:
    assert main(["/nope", str(tmp_path), "participant"]) == 2
    assert "did you mean" not in capsys.readouterr().err
