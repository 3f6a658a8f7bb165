# SPDX-License-Identifier: Apache-2.0
"""What every model family that restores images must do, its own and one from another package."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff import families
from bids_moediff.cli.superres import main
from bids_moediff.errors import ImageError, WeightsError
from bids_moediff.families import OWN, family, whole_volume
from bids_moediff.families.choice import choose
from bids_moediff.families.cost import estimate
from bids_moediff.families.load import build_network
from bids_moediff.imaging.grid import output_grid
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.model_folder import read_config, save_model
from bids_moediff.options import Options
from generated import dataset, head, untrained_model

TOY = Path(__file__).parent / "toy_family"
RESTORING = ("moediff", "student", "crfm", "nsmoe", "toy")
CONFIGS = {
    "student": {"student": {"channels": 8, "blocks": 2, "ranks": [4, 4, 4, 4]}},
    "toy": {"toy": {"gain": 0.5}},
    "crfm": {"crfm": {"channels": 6, "blocks": 1}},
    "nsmoe": {
        "nsmoe": {"channels": 8, "blocks": 2, "ranks": [4, 4, 4, 4], "hidden": 8, "kernels": 4}
    },
    "brainmask": {"brainmask": {}},
}


@pytest.fixture(scope="module", autouse=True)
def toy_is_installed():
    """The toy package lies on the path, as pip would put it there."""
    sys.path.insert(0, str(TOY))
    family.cache_clear()
    yield
    sys.path.remove(str(TOY))
    family.cache_clear()


def model_folder(name: str, folder: Path) -> Path:
    if name == "moediff":
        return untrained_model(folder)
    torch.manual_seed(0)
    config = {"family": name, "version": "test", **CONFIGS[name]}
    if name == "crfm":
        base = model_folder("student", folder.with_name(f"{folder.name}-base"))
        config["crfm"] = {**config["crfm"], "base": str(base)}
    network = build_network(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(network, config, folder, "# A model for tests\n")
    return folder


@pytest.fixture(scope="module", params=RESTORING)
def model(request, tmp_path_factory) -> Path:
    return model_folder(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def resolver(model: Path) -> SuperResolver:
    return SuperResolver.from_pretrained(model, "cpu", "fp32")


def scan() -> nib.Nifti1Image:
    random = np.random.default_rng(3)
    data = 200 * random.random((20, 18, 14)).astype(np.float32) + 300
    image = nib.Nifti1Image(data, np.diag([-2.0, 2.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm")
    return image


def options(**more) -> Options:
    return Options(output_resolution=(1.0, 1.0, 1.5), **more)


def values(result) -> np.ndarray:
    return np.asarray(result.image.dataobj)


def test_same_arguments_same_bytes_whatever_the_tiles(resolver, monkeypatch):
    first = values(resolver.enhance(scan(), options()))
    again = values(resolver.enhance(scan(), options(batch_size=3)))
    assert first.tobytes() == again.tobytes()
    monkeypatch.setattr(whole_volume, "CPU_VOXELS", 2000)
    tiles = values(resolver.enhance(scan(), options()))
    np.testing.assert_allclose(tiles, first, atol=1e-4 * first.max())


def test_grid_units_and_agreement_with_the_scan(resolver):
    image = scan()
    result = resolver.enhance(image, options())
    shape, affine = output_grid(image.shape, image.affine, (1.0, 1.0, 1.5))
    assert result.image.shape == shape
    np.testing.assert_allclose(result.image.affine, affine)
    assert result.residual < 1e-5
    mean = image.get_fdata().mean()
    assert values(result).mean() == pytest.approx(mean, rel=0.02)
    record = result.record
    assert record["Sampler"] and record["OutputVoxelSize"] == [1.0, 1.0, 1.5]
    assert len(record["ModelSHA256"]) == 64
    assert json.loads(json.dumps(record)) == record


def test_what_it_cannot_give_is_left_out_and_said_or_given(resolver):
    result = resolver.enhance(scan(), options(num_samples=2, outputs=("gates",)))
    assert result.record["NumberOfSamples"] == (0 if result.standard_deviation is None else 2)
    if result.gates is not None:
        gates = np.asarray(result.gates.dataobj)
        assert gates.shape[:3] == result.image.shape
        np.testing.assert_allclose(gates.sum(3), 1, atol=1e-4)


@pytest.mark.parametrize(
    "data",
    [
        np.ones((4, 4), np.float32),
        np.zeros((8, 8, 8), np.float32),
        np.full((8, 8, 8), np.nan, np.float32),
    ],
)
def test_bad_input_is_an_image_error(resolver, data):
    with pytest.raises(ImageError):
        resolver.enhance(nib.Nifti1Image(data, np.eye(4)), options())


def test_progress_runs_from_nothing_to_done(resolver):
    said: list[tuple[str, float]] = []
    resolver.enhance(scan(), options(), progress=lambda *words: said.append(words))
    assert said[0] == ("interpolate", 0.0) and said[-1] == ("done", 1.0)
    for stage in {stage for stage, _ in said}:
        fractions = [fraction for name, fraction in said if name == stage]
        assert fractions == sorted(fractions) and fractions[-1] == 1.0


def test_weights_are_safetensors_with_the_right_checksum(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    weights = copy / "model.safetensors"
    weights.write_bytes(pickle.dumps({"gain": 1}))
    with pytest.raises(WeightsError, match="checksum"):
        SuperResolver.from_pretrained(copy, "cpu")
    config = read_config(copy) | {"sha256": __import__("hashlib").sha256(
        weights.read_bytes()).hexdigest()}  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not a safetensors"):
        SuperResolver.from_pretrained(copy, "cpu")


def test_memory_stays_below_the_estimate_and_exit_codes_hold(model, tmp_path):
    nib.save(head(seed=1), tmp_path / "in.nii.gz")
    command = [sys.executable, "-m", "bids_moediff.cli.superres"]
    request = {
        "options": {"weights": str(model), "output_resolution": 1.5},
        "images": [
            {"key": "a", "image": str(tmp_path / "in.nii.gz"), "out_dir": str(tmp_path / "a")}
        ],
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    words = ["--request", str(tmp_path / "request.json"), "--results", str(tmp_path / "r.json")]
    environment = {**os.environ, "PYTHONPATH": str(TOY), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "r.json").read_text())["a"]
    image = head(seed=1)
    expected = estimate(
        image.shape, image.header.get_zooms(), Options(output_resolution=(1.5,) * 3),
        model=str(model),
    )  # fmt: skip
    assert result["peak_memory_gb"] < 1.25 * expected.gigabytes
    words = [str(tmp_path / "in.nii.gz"), str(tmp_path / "o.nii"), "--weights"]
    assert main([*words, "/nowhere/x"]) == 78
    (tmp_path / "in.nii.gz").write_bytes(b"broken")
    assert main([*words, str(model)]) == 1


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in RESTORING])
def test_models_that_nothing_runs_are_refused(name, tmp_path, capsys):
    """Their weights once ran as plain interpolation and reported success."""
    folder = model_folder(name, tmp_path / name)
    with pytest.raises(WeightsError, match=name):
        choose(Options(weights=folder), "cpu")
    with pytest.raises(WeightsError):
        SuperResolver.from_pretrained(folder, "cpu")
    image = tmp_path / "in.nii.gz"
    nib.save(scan(), image)
    assert main([str(image), str(tmp_path / "out.nii"), "--weights", str(folder)]) == 78
    assert main(["--check-model", "--weights", str(folder)]) == 78
    assert not (tmp_path / "out.nii").exists()


def test_families_are_known_by_name():
    assert [family(name).name for name in OWN] == list(OWN)
    assert family("toy").name == "toy"
    with pytest.raises(WeightsError, match="moediff"):
        family("unknown")
    assert set(families.OWN) >= {"moediff", "student"}


def test_a_folder_of_the_working_directory_is_not_a_shipped_model(tmp_path, monkeypatch):
    model_folder("toy", tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    assert read_config("student")["family"] == "student"
    assert read_config("./student")["family"] == "toy"


def test_a_family_of_another_package_runs_through_the_app(tmp_path):
    bids = dataset(tmp_path / "bids", {"sub-01_T1w": 1})
    folder = model_folder("toy", tmp_path / "toy")
    words = [str(bids), str(tmp_path / "out"), "participant", "--weights", str(folder)]
    words += ["--output-resolution", "3", "--skip-bias-correction", "--mem", "8"]
    environment = {**os.environ, "PYTHONPATH": str(TOY), "OMP_NUM_THREADS": "1"}

    def app(*more: str) -> tuple[str, str]:
        run = subprocess.run(
            [sys.executable, "-m", "bids_moediff.cli.app", *words, *more],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout, run.stderr

    assert "sub-01_T1w" in app("--dry-run")[0]
    assert "toy" in app("--check")[0]
    assert "bids_moediff: model toy, asked for." in app()[1]
    (sidecar,) = (tmp_path / "out").rglob("*res-3mm_desc-sr_T1w.json")
    record = json.loads(sidecar.read_text())
    assert (record["Model"], record["Sampler"]) == ("toy", "unsharp masking")
    assert record["ModelChoice"] == "asked for"
    page = (tmp_path / "out" / "sub-01.html").read_text()
    assert "unsharp masking with a learned gain" in page and "Why this model" in page
    methods = (tmp_path / "out" / "logs" / "CITATION.md").read_text()
    assert "unsharp masking" in methods
