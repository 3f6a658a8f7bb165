# SPDX-License-Identifier: Apache-2.0
"""The student: size, identity at the start, locality, dependence on the acquisition."""

import json
from pathlib import Path

import pytest
import torch

from bids_moediff.families.load import load_model
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.networks import model_folder
from bids_moediff.networks.factorised import Factorised
from bids_moediff.networks.mean import OUTPUT_GAIN, depth_to_space

TINY = StudentConfig(6, 2, (4, 3, 4, 5))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(6)


def shaken(config: StudentConfig = TINY) -> StudentNetwork:
    network = StudentNetwork(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return network


def test_size_is_between_two_and_nine_million() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in StudentNetwork().parameters())
    assert 2e6 < count < 9e6
    assert count == 5_168_200


def test_untrained_returns_the_start() -> None:
    start = torch.rand(2, 1, 16, 24, 8)
    assert torch.equal(StudentNetwork(TINY)(start, torch.randn(2, 6)), start)


def test_condition_changes_the_output_sample_by_sample() -> None:
    network, start = shaken(), torch.rand(2, 1, 16, 16, 16)
    condition = torch.zeros(2, 6)
    base = network(start, condition)
    for entry in range(6):
        changed = condition.clone()
        changed[1, entry] = 1.0
        out = network(start, changed)
        assert torch.allclose(out[0], base[0], atol=1e-6)
        assert (out[1] - base[1]).abs().max() > 1e-5, entry


def test_nothing_beyond_the_receptive_radius_matters() -> None:
    network, radius = shaken(), TINY.receptive_radius
    start = torch.rand(1, 1, 96, 8, 8)
    other = start.clone()
    other[:, :, 40] += 1.0
    change = (network(start, torch.zeros(1, 6)) - network(other, torch.zeros(1, 6))).abs()
    touched = change.amax((0, 1, 3, 4)).nonzero()[:, 0]
    assert 40 - radius <= touched.min() and touched.max() <= 40 + radius
    assert touched.max() - touched.min() > radius  # the bound is not idle


def test_tiles_with_that_overlap_equal_the_whole() -> None:
    network, radius = shaken(), TINY.receptive_radius
    halo = -(-radius // TINY.multiple) * TINY.multiple
    start, condition = torch.rand(1, 1, 16 + 3 * halo, 8, 8), torch.randn(1, 6)
    whole = network(start, condition)
    tile = network(start[:, :, halo : 16 + 3 * halo], condition)
    assert torch.allclose(whole[:, :, 2 * halo :], tile[:, :, halo:], atol=1e-6)


def test_features_of_every_block() -> None:
    network = shaken()
    start, condition = torch.rand(1, 1, 16, 12, 20), torch.zeros(1, 6)
    image, features = network.with_features(start, condition)
    assert torch.equal(image, network(start, condition))
    assert [tuple(part.shape) for part in features] == [(1, 6, 8, 6, 10)] * 2


def test_a_factorised_convolution_is_one_convolution() -> None:
    """Its three kernels multiplied out, zero padding and bias included."""
    layer = Factorised(6, 4, 3)
    kernel = torch.einsum(
        "op,pqxyz,qi->oixyz",
        layer.expand.weight[:, :, 0, 0, 0], layer.core.weight, layer.reduce.weight[:, :, 0, 0, 0],
    )  # fmt: skip
    features = torch.rand(1, 6, 5, 6, 7)
    expected = torch.nn.functional.conv3d(features, kernel, layer.expand.bias, padding=1)
    assert torch.allclose(layer(features), expected, atol=1e-5)


def test_a_conditioned_last_layer_is_a_sum_over_the_condition() -> None:
    network = shaken(StudentConfig(6, 1, (4, 3, 4, 5), conditioned_tail=True))
    start, condition = torch.rand(2, 1, 12, 8, 10), torch.randn(2, 6)
    with torch.no_grad():
        output, features = network.with_features(start, condition)
    terms = network.tail_terms
    assert terms is not None and terms.bias is not None and network.tail.bias is not None
    for item in range(2):
        weight, bias = network.tail.weight.clone(), network.tail.bias.clone()
        for entry in range(6):
            weight += condition[item, entry] * terms.weight[8 * entry : 8 * entry + 8]
            bias += condition[item, entry] * terms.bias[8 * entry : 8 * entry + 8]
        layer = network.tail_of(condition[item : item + 1])
        torch.testing.assert_close(layer.weight, weight)
        torch.testing.assert_close(layer.bias, bias)
        folded = torch.nn.functional.conv3d(features[-1][item : item + 1], weight, bias, padding=1)
        expected = start[item : item + 1] + OUTPUT_GAIN * depth_to_space(folded)
        torch.testing.assert_close(output[item : item + 1], expected)


def test_wrong_sizes_and_settings() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        StudentNetwork(TINY)(torch.zeros(1, 1, 8, 8, 5), torch.zeros(1, 6))
    with pytest.raises(ValueError, match="four numbers from 1 to 8"):
        StudentConfig(8, 1, (4, 4, 9, 4))
    assert StudentConfig.from_dict(json.loads(json.dumps(TINY.to_dict()))) == TINY


def test_learns_to_undo_a_blur() -> None:
    network = StudentNetwork(TINY).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    truth = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, 6), scale_factor=4)
    start = torch.nn.functional.avg_pool3d(truth, 3, 1, 1)
    errors = []
    for _ in range(30):
        loss = (network(start, torch.zeros(1, 6)) - truth).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.9 * errors[0]


def test_model_folder(tmp_path: Path) -> None:
    config = {"family": "student", "student": TINY.to_dict()}
    network = shaken()
    model_folder.save_model(network, config, tmp_path / "student", "# Student\n")
    loaded = load_model(tmp_path / "student").network
    start, condition = torch.rand(1, 1, 8, 8, 8), torch.zeros(1, 6)
    assert torch.allclose(loaded(start, condition), network(start, condition), atol=1e-3)
