# SPDX-License-Identifier: Apache-2.0
"""Experts on volumes in a model's folder, and which engine draws."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save

from bids_moediff.errors import UsageError, WeightsError
from bids_moediff.families.choice import choose
from bids_moediff.families.moediff.error_sampler import chosen
from bids_moediff.families.moediff.experts_file import read_experts
from bids_moediff.families.moediff.volume_experts import VolumeExperts, VolumeExpertsConfig
from bids_moediff.options import Options

EXPERTS = VolumeExperts(VolumeExpertsConfig(channels=4, blocks=1))


def save_experts(network, folder, **about):
    data = save({name: value.half().contiguous() for name, value in network.state_dict().items()})
    digest = hashlib.sha256(data).hexdigest()
    content = {"network": network.config.to_dict(), "sha256": digest, **about}
    (folder / "experts.safetensors").write_bytes(data)
    (folder / "experts.json").write_text(json.dumps(content))


def test_experts_come_back_from_their_folder(tmp_path):
    assert read_experts(tmp_path) is None
    save_experts(EXPERTS, tmp_path, auto="gaussian")
    found = read_experts(tmp_path)
    assert found is not None
    network, about = found
    assert about["auto"] == "gaussian"
    assert network.config == EXPERTS.config
    assert not network.training
    for name, value in EXPERTS.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_damaged_experts_are_not_used(tmp_path):
    save_experts(EXPERTS, tmp_path)
    path = tmp_path / "experts.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="checksum"):
        read_experts(tmp_path)
    save_experts(EXPERTS, tmp_path)
    config = json.loads((tmp_path / "experts.json").read_text())
    config["network"]["channels"] = 8
    (tmp_path / "experts.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"does not fit experts\.json"):
        read_experts(tmp_path)


def test_engine_is_the_measured_one_unless_another_is_named():
    def choice(sampler, experts=EXPERTS, auto="gaussian"):
        return chosen(Options(sampler=sampler), experts, {"auto": auto})

    assert choice("auto", None, "experts") == "gaussian"
    assert choice("auto") == "gaussian"
    assert choice("auto", auto="experts") == "experts"
    assert choice("gaussian", auto="experts") == "gaussian"
    assert choice("experts") == "experts"
    assert choice("expert-3") == 2
    with pytest.raises(UsageError, match=r"expert-1 .*expert-3 "):
        choice("expert-4")
    with pytest.raises(UsageError, match="no experts"):
        choice("experts", None)


def test_experts_that_do_not_sample_are_refused_before_weights_are_read(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"family": "moediff"}')
    with pytest.raises(UsageError, match="no experts"):
        choose(Options(sampler="experts", weights=folder), "cpu")
    save_experts(EXPERTS, folder)
    assert choose(Options(sampler="expert-3", weights=folder), "cpu").model == str(folder)
    with pytest.raises(UsageError, match=r"expert-1 .*expert-3 "):
        choose(Options(sampler="expert-9", weights=folder), "cpu")
    with pytest.raises(UsageError, match="no experts"):
        choose(Options(sampler="expert-1", model="student"), "cpu")
