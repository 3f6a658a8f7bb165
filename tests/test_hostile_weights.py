# SPDX-License-Identifier: Apache-2.0
"""Weights and configurations of others: refused in a sentence, at once, without running code."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bids_moediff.errors import WeightsError
from bids_moediff.families.choice import choose
from bids_moediff.families.load import load_model
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.model_folder import MOST_WEIGHTS, available, read_config
from bids_moediff.options import Options
from generated import untrained_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return untrained_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(sound, tmp_path) -> Path:
    """A copy of a small sound model."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in sound.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def with_weights(model: Path, data: bytes) -> None:
    """Other weights, with their right check sum."""
    (model / "model.safetensors").write_bytes(data)
    with_config(model, sha256=hashlib.sha256(data).hexdigest())


def with_config(model: Path, **changes) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))


class Trap:
    """A pickle that tells when it is loaded."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


WEIGHTS = {
    "pickle": pickle.dumps(Trap()),
    "empty": b"",
    "short": b"\x08\0\0",
    "huge header": safetensors({}, length=2**62),
    "nested": safetensors(b"[" * 100_000),
    "beyond the end": safetensors({"a": {"dtype": "F16", "shape": [9], "data_offsets": [0, 18]}}),
    "overlapping": safetensors(
        {name: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 8
    ),
    "negative": safetensors({"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 0]}}),
    "overflow": safetensors(
        {"a": {"dtype": "F16", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}
    ),
    "other names": safetensors(
        {"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, b"\0\0"
    ),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_are_none_are_refused(model, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with_weights(model, WEIGHTS[kind])
    with pytest.raises(WeightsError) as caught:
        load_model(model)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "endless", "folder", "sparse", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pipes_devices_and_oversized_files_are_not_read(model, name, kind):
    path = model / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "endless"):
        path.symlink_to("/dev/zero" if kind == "endless" else "/dev/tty")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as stream:
            stream.truncate(MOST_WEIGHTS + 1)
    with pytest.raises(WeightsError):
        load_model(model)
    assert choose(Options(weights=model), "cpu").reason == "asked for"


def test_values_that_are_no_numbers_and_torch_archives_are_refused(model):
    from safetensors.torch import load, save

    tensors = load((model / "model.safetensors").read_bytes())
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    with_weights(model, save(tensors))
    with pytest.raises(WeightsError, match="not finite"):
        load_model(model)
    torch.save(tensors, model / "model.safetensors")
    with_weights(model, (model / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_model(model)


CONFIGS = [
    {"format": 2},
    {"format": None},
    {"format": [1] * 1000},
    {"family": []},
    {"family": {"moediff": 1}},
    {"family": "\x1b]0;x\x07"},
    {"moediff": None},
    {"moediff": {"width": 10**9}},
    {"moediff": {"width": -1}},
    {"moediff": {"width": "48"}},
    {"moediff": {"width": 8, "embed_dim": 12, "experts": ["a"] * 10**6}},
    {"moediff": {"width": 8, "embed_dim": 12, "heads": 0}},
    {"moediff": {"width": 8, "embed_dim": 12, "codebook_size": 10**9}},
    {"moediff": {"width": 100_000, "embed_dim": 99_996}},
    {"mean": {"channels": 8, "blocks": 10**9, "condition_dim": 6}},
    {"mean": {"channels": 8, "blocks": 900_000, "condition_dim": 6}},
    {"mean": {"channels": 100_000, "blocks": 900, "condition_dim": 6}},
    {"family": "student", "student": {"channels": 8, "blocks": 10**9, "condition_dim": 6}},
    {"family": "student", "student": {"channels": 8, "blocks": 900_000, "condition_dim": 6}},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=range(len(CONFIGS)))
def test_a_hostile_configuration_is_refused_before_it_takes_memory(model, changes):
    import tracemalloc

    with_config(model, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            load_model(model)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000


TEXTS = ["[" * 100_000, "null", "3", '{"family": "moediff"', "", "\udcff"]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_configurations_that_are_no_tables(model, text):
    (model / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError):
        load_model(model)
    assert read_config(model) == {}


@pytest.mark.parametrize("content", ["[]", '{"factor": "x"}', "{}}", '{"factor": 1, "spread": 3}'])
def test_a_calibration_that_makes_no_sense_is_refused(model, content):
    (model / "calibration.json").write_text(content)
    with pytest.raises(WeightsError):
        SuperResolver.from_pretrained(model, device="cpu")


def test_the_command_says_it_in_one_line(model):
    with_config(model, mean={"channels": 8, "blocks": 10**9, "condition_dim": 6})
    command = [sys.executable, "-m", "bids_moediff.cli.superres", "--check-model"]
    run = subprocess.run(
        [*command, "--weights", model], capture_output=True, text=True, check=False
    )
    assert run.returncode == 78
    assert run.stderr.count("\n") == 1 and "1,000,000" in run.stderr


def test_shipped_models_pass():
    for name in available():
        assert load_model(name).name == name
