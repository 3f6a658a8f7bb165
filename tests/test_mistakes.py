# SPDX-License-Identifier: Apache-2.0
"""Mistakes that people make: code 2, the name of the remedy, nothing written."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bids_moediff.cli.app import main
from bids_moediff.cli.superres import main as superres
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
        ("DATA OUT participant --participant-label ,", "an empty word"),
        ("--participant-label 01 DATA OUT participant", "bids_moediff DATA OUT participant --par"),
        ("DATA OUT participant --use-plugin /nope.yml", "/nope.yml"),
        ("DATA OUT participants", "participant"),
        ("DATA OUT participant --modalities t1", "T1w"),
        ("DATA OUT participant --n_cpus 4", "--nprocs"),
        ("DATA DATA participant", "another output"),
        ("DATA OUT participant --output-resolution 0.7x0.7x0.7", "write 0.7 0.7 0.7"),
        ("DATA OUT participant --output-resolution native", "auto"),
        ("DATA OUT participant --acquired-resolution 1mm", "write 1"),
        ("DATA OUT participant --subject 01", "--participant-label"),
        ("DATA OUT participant --gpu 0", "--device"),
        ("DATA OUT participant --threads 2", "--omp-nthreads"),
        ("DATA OUT participant --model ./weights", "--weights ./weights"),
        ("DATA OUT participant --derivatives EMPTY", "sub-"),
        ("DATA OUT participant --derivatives NESTED", "NESTED/fmriprep"),
        ("DATA/sub-01/anat OUT participant", "--participant-label 01"),
        ("DICOM OUT participant", "dcm2niix"),
        ("DATA OUT participant --gradient-coefficients /nope.grad", "/nope.grad"),
        ("DATA OUT participant -w DATA/work", "working directory"),
        ("DATA OUT participant --output-resolution -1", "between 0.2 and 20 mm"),
        ("DATA OUT participant --device 0", "cuda:0"),
        ("DATA OUT participant --dryrun", "--dry-run"),
        ("DATA OUT participant --fs-license-file x", "leave it out"),
        ("DATA OUT participant --notrack", "leave it out"),
        (f"{IMAGE} OUT.nii.gz", "bids_moediff-superres DATA/sub-01/anat/sub-01_T1w.nii.gz OUT"),
    ],
)
def test_a_mistake_gets_its_remedy(arguments, remedy, tmp_path, capsys) -> None:
    data, out, empty = tmp_path / "data", tmp_path / "out", tmp_path / "empty"
    shutil.copytree(DEMO, data)
    empty.mkdir()
    nested, dicom = tmp_path / "derivatives", tmp_path / "dicom"
    (nested / "fmriprep" / "sub-01").mkdir(parents=True)
    dicom.mkdir()
    (dicom / "0001").write_bytes(bytes(128) + b"DICM")
    places = {"DATA": data, "OUT": out, "EMPTY": empty, "NESTED": nested, "DICOM": dicom}

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


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ("in.nii.gz", "IN.nii.gz OUT.nii.gz"),
        ("in.nii.gz OUT", ".nii.gz"),
        ("out.nii.gz in.nii.gz", "The input comes first"),
        ("-i in.nii.gz -o out.nii.gz", "IN.nii.gz OUT.nii.gz"),
        ("in.nii.gz out.nii.gz --output-res 1", "--output-resolution"),
        ("in.nii.gz out.nii.gz --resolution 1", "--output-resolution"),
        ("in.nii.gz out.nii.gz --device gpu", "cuda"),
        ("scan.dcm out.nii.gz", "dcm2niix"),
        ("data out.nii.gz", "bids_moediff data OUT participant"),
        ("in.nii.gz missing/out.nii.gz", "missing"),
    ],
)
def test_a_mistake_with_one_file_gets_its_remedy(
    arguments, remedy, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("in.nii.gz").write_bytes(b"an image")
    Path("scan.dcm").write_bytes(bytes(128) + b"DICM")
    before = sorted(tmp_path.rglob("*"))
    assert superres(arguments.split()) == 2
    said = capsys.readouterr().err
    assert remedy in said
    assert len(said.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--participant-label", "--output-resolution", "-w"])
def test_an_option_without_its_value(option, tmp_path, capsys) -> None:
    assert main([str(DEMO), str(tmp_path / "out"), "participant", option]) == 2
    said = capsys.readouterr().err
    assert "needs a value" in said and len(said.strip().splitlines()) == 1


def test_a_model_that_is_not_there_is_noticed_without_torch(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("torch was started"))
    call = [str(DEMO), str(tmp_path / "out"), "participant", "--device", "cpu"]
    assert main([*call, "--weights", str(tmp_path / "absent")]) == 78
    assert "There is no model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_are_looked_at_where_they_are_there(tmp_path, capsys) -> None:
    plan = [str(DEMO), str(tmp_path / "out"), "participant", "--dry-run", "--weights"]
    assert main([*plan, str(tmp_path)]) == 78
    assert "config.json" in capsys.readouterr().err
    assert main([*plan, str(tmp_path / "elsewhere")]) == 0
    assert "not checked" in capsys.readouterr().out


def test_nothing_is_suggested_for_a_folder_unlike_all_others(tmp_path, capsys) -> None:
    assert main(["/nope", str(tmp_path), "participant"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("", 2, "Two files are needed"),
        ("absent.nii.gz out.nii.gz", 1, "absent.nii.gz does not exist."),
        ("DATA out.nii.gz", 2, "is a folder"),
        (f"{IMAGE} out.nii.gz --mask absent.nii", 1, "absent.nii does not exist."),
    ],
)
def test_mistakes_in_names_are_noticed_without_torch(words, code, sentence, tmp_path) -> None:
    script = (
        "import sys; from bids_moediff.cli.superres import main; code = main(sys.argv[1:]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    call = [sys.executable, "-c", script, *words.replace("DATA", str(DEMO)).split()]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
