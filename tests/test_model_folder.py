# SPDX-License-Identifier: Apache-2.0
"""Model folders: round trip, checksums, and one clear error for each kind of damage."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from bids_moediff.errors import WeightsError
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.model import PARTS, MoEDiffModel
from bids_moediff.families.moediff.network import MoEDiffSR
from bids_moediff.networks import model_folder

TINY = MoEDiffConfig(width=8, embed_dim=16, heads=2)
CONFIG = {"family": "moediff", "version": "1.0", "moediff": TINY.to_dict()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model_folder.save_model(
        MoEDiffModel(None, MoEDiffSR(TINY)), CONFIG, tmp_path / "m", "# Card\n"
    )
    return tmp_path / "m"


def test_round_trip_stores_halves_and_loads_floats(folder: Path) -> None:
    torch.manual_seed(0)
    original = MoEDiffModel(None, MoEDiffSR(TINY)).state_dict()
    stored = load_file(folder / "model.safetensors")
    assert all(name.startswith("moediff.") for name in stored)
    assert {t.dtype for t in stored.values()} == {torch.float16}
    loaded = load_model(folder)
    assert loaded.name == "m" and not loaded.network.training
    assert loaded.sha256 == json.loads((folder / "config.json").read_text())["sha256"]
    assert loaded.config["version"] == "1.0"
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    for name, tensor in loaded.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original[name].half().float()), name


def test_saving_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    network = load_model(folder).network
    model_folder.save_model(network, CONFIG, tmp_path / "again", "# Card\n")
    for name in ("config.json", "model.safetensors", "MODEL_CARD.md", "SHA256SUMS"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(p.name for p in folder.iterdir()) == [
        "MODEL_CARD.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_flipped_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="checksum"):
        load_model(folder)


def test_a_configuration_without_a_checksum(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["sha256"]
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="checksum"):
        load_model(folder)


def test_missing_weights_and_missing_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"cannot read .*model\.safetensors"):
        load_model(folder)
    with pytest.raises(WeightsError, match="no model 'nowhere'"):
        load_model("nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gan"}, "unknown model family 'gan'"),
        ({"moediff": {"colour": 1}}, "colour"),
        ({"moediff": TINY.to_dict() | {"width": 16}}, "does not fit"),
        ({"moediff": TINY.to_dict() | {"width": "wide"}}, "configuration of the moediff"),
        ({"moediff": None}, "needs a section"),
    ],
)
def test_wrong_configuration(folder: Path, changes: dict[str, object], message: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(WeightsError, match=message) as error:
        load_model(folder)
    assert error.value.exit_code == 78


def test_unreadable_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="cannot read"):
        load_model(folder)


def test_garbage_with_a_right_checksum(folder: Path) -> None:
    import hashlib

    other = save({"other": torch.zeros(2)})
    for data, reason in ((b"no tensors", "not a safetensors file"), (other, "larger network")):
        (folder / "model.safetensors").write_bytes(data)
        change_config(folder, sha256=hashlib.sha256(data).hexdigest())
        with pytest.raises(WeightsError, match=reason):
            load_model(folder)


def test_composite_holds_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "mean", lambda values: nn.Linear(values["n"], 2))
    config = CONFIG | {"mean": {"n": 3}}
    network = MoEDiffModel(nn.Linear(3, 2), MoEDiffSR(TINY))
    model_folder.save_model(network, config, tmp_path / "both", "")
    loaded = load_model(tmp_path / "both").network
    assert torch.equal(loaded.mean.weight, network.mean.weight.half().float())
    assert isinstance(loaded.moediff, MoEDiffSR)
    config = {"family": "moediff", "mean": {"n": 3}}
    model_folder.save_model(MoEDiffModel(nn.Linear(3, 2), None), config, tmp_path / "mean", "")
    assert load_model(tmp_path / "mean").network.moediff is None


def test_available_lists_folders_with_a_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_folder, "MODELS_FOLDER", folder.parent)
    assert model_folder.available() == ["m"]
    assert load_model("m").name == "m"


def test_shipped_weights_are_known_by_their_checksums() -> None:
    """If not: python tools/weight_sums.py, and the tests load every shipped model."""
    names = model_folder.available()
    assert names
    assert all(model_folder.is_as_shipped(name) for name in names)
    folder = model_folder.MODELS_FOLDER
    assert not model_folder.is_as_shipped(folder / names[0])
    listed = (folder / model_folder.SUMS_NAME).read_text()
    files = [*folder.glob("*/*.safetensors"), *folder.glob("*/config.json")]
    assert all(f"  {path.relative_to(folder)}\n" in listed for path in files)


def test_a_changed_file_is_not_as_shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "MODELS_FOLDER", folder.parent)
    assert not model_folder.is_as_shipped("m")  # without a list
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  m/{path.name}\n"
        for path in (folder / "config.json", folder / "model.safetensors")
    ]
    (folder.parent / model_folder.SUMS_NAME).write_text("".join(sums))
    assert model_folder.is_as_shipped("m")
    assert not model_folder.is_as_shipped("n")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert not model_folder.is_as_shipped("m")
    weights.unlink()
    assert not model_folder.is_as_shipped("m")


def test_a_folder_is_as_written_until_anything_changes(folder: Path) -> None:
    assert model_folder.is_as_written(folder)
    sums = folder / model_folder.SUMS_NAME
    listed = sums.read_text()
    (folder / "MODEL_CARD.md").write_text("# Said better\n")
    assert model_folder.is_as_written(folder)
    (folder / "calibration.json").write_text("{}")  # a file that nobody loaded
    assert not model_folder.is_as_written(folder)
    (folder / "calibration.json").unlink()
    sums.write_text(listed.replace("bids_moediff 0", "bids_moediff 999"))
    assert not model_folder.is_as_written(folder)
    sums.write_text(listed)
    for name in ("config.json", "model.safetensors"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before[:-1] + b" ")
        assert not model_folder.is_as_written(folder)
        (folder / name).write_bytes(before)
        assert model_folder.is_as_written(folder)
    sums.unlink()
    assert not model_folder.is_as_written(folder)


@pytest.mark.parametrize("name", ["brainmask", "student"])
def test_loading_needs_no_compiler(name: str) -> None:
    """Sizes are checked without memory; torch imports sympy for some operations there."""
    load = f"SuperResolver.from_pretrained({name!r}, 'cpu', 'fp32')"
    where = "bids_moediff.inference.super_resolver import SuperResolver"
    if name == "brainmask":
        load = f"_load({name!r})"
        where = "bids_moediff.preprocessing.brain_mask import _load"
    script = f"import sys\nfrom {where}\n{load}\nprint('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
