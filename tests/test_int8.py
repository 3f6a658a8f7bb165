# SPDX-License-Identifier: Apache-2.0
"""Convolutions in 8 bits: the network's own, within their steps; refused where they cannot run."""

import json
import shutil

import pytest
import torch

from bids_moediff.errors import UsageError, WeightsError
from bids_moediff.evaluation.benchmark import BASELINES, model_method, protocol_task
from bids_moediff.families.load import load_model, make_restorer
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.imaging.metrics import psnr
from bids_moediff.imaging.protocols import parse_protocol
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.int8 import (
    RANGES_NAME,
    IntegerConvolution,
    multiplies_integers,
    quantised_weight,
    recorded,
    with_integers,
)
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.model_folder import resolve
from bids_moediff.networks.streaming import Chain, Convolution, Residual
from block_figures import FIGURES, load_block

needs_integers = pytest.mark.skipif(
    not multiplies_integers(), reason="needs a processor with VNNI or AMX instructions"
)


@needs_integers
@pytest.mark.parametrize("low", [-3.0, 0.0])
def test_a_convolution_of_integers_is_exact_on_its_levels_borders_included(low):
    """Inputs and weights that are levels themselves: brute-force sums, plane by plane."""
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (32, 32, 3, 3, 3)).float()
    weight[:, 0, 0, 0, 0] = 127.0  # so that the step of each channel is one
    bias = torch.randn(32)
    plain = Convolution.of(weight, bias, torch.float32)
    # 255 steps of one fiftieth from `low` on; zero is a level
    part = IntegerConvolution(plain, (low, low + 5.1))
    planes = (torch.randint(0, 256, (1, 32, 7, 6, 5)) / 50.0) + low
    found = [part.push(planes[:, :, :1], False), part.push(planes[:, :, 1:4], False)]
    found.append(part.push(planes[:, :, 4:], True))
    expected = torch.nn.functional.conv3d(
        planes.double(), weight.double(), bias.double(), padding=1
    )
    result = torch.cat(found, 2).double()
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


def test_weights_keep_to_half_a_step_of_their_channel():
    weight = torch.randn(8, 4, 3, 3, 3) * torch.logspace(-3, 1, 8)[:, None, None, None, None]
    levels, scales = quantised_weight(weight)
    error = levels * scales[:, None, None, None, None] - weight
    assert levels.abs().amax((1, 2, 3, 4)).eq(127).all()
    assert (error.abs().amax((1, 2, 3, 4)) <= 0.5001 * scales).all()


@needs_integers
def test_only_the_residual_blocks_run_in_integers_and_stay_near():
    torch.manual_seed(1)
    network = MeanNetwork(MeanConfig(32, 3)).eval()
    with torch.no_grad():
        network.tail.weight.normal_(std=0.1)
    start, told = torch.rand(20, 22, 24), torch.tensor([1.0, 1.0, 1.0, 1.2, 1.2, 1.2])
    watched = recorded(network.stream(told[None], torch.float32))
    assert len(watched) == 6
    seen = []
    make = network.stream

    def stream(condition, kind):
        pipeline = make(condition, kind)
        seen.extend(recorded(pipeline))
        return pipeline

    network.stream = stream
    exact = apply_to_volume(network, start, told, precision="fp32")
    del network.stream
    network.int8_ranges = tuple((recorder.low, recorder.high) for recorder in seen)
    result = apply_to_volume(network, start, told, precision="int8")
    change = float((exact - start).std())
    assert 0 < float((result - exact).std()) < 0.03 * change
    once_more = apply_to_volume(network, start, told, precision="int8", max_voxels=2000)
    assert float((result - once_more).abs().max()) < 1e-6


def test_ranges_of_another_network_are_refused():
    pipeline = Chain(Residual(Chain(Convolution(torch.nn.Conv3d(8, 8, 3), torch.float32))))
    with pytest.raises(WeightsError, match="2 ranges"):
        with_integers(pipeline, [(0.0, 1.0), (0.0, 1.0)])


@pytest.fixture
def student(tmp_path):
    """A copy of the shipped student."""
    return shutil.copytree(resolve("student"), tmp_path / "student")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"sha256": "', '"sha256": "0'),
        lambda text: "[]",
        lambda text: json.dumps(json.loads(text) | {"ranges": [[0.0]]}),
        lambda text: json.dumps(json.loads(text) | {"ranges": [[0.0, 1.0]] * 20}),
    ],
)
def test_ranges_that_belong_to_other_weights_or_make_no_sense_are_refused(student, change):
    path = student / RANGES_NAME
    path.write_text(change(path.read_text()))
    with pytest.raises(WeightsError, match=RANGES_NAME):
        load_model(student)


def test_a_folder_without_ranges_refuses_the_precision_alone(student):
    (student / RANGES_NAME).unlink()
    model = load_model(student)
    make_restorer(model, torch.device("cpu"), "fp32")
    with pytest.raises(UsageError, match=RANGES_NAME):
        make_restorer(model, torch.device("cpu"), "int8")


@needs_integers
@pytest.mark.parametrize("name", ["student", "moediff"])
def test_shipped_weights_lose_at_most_a_fiftieth_of_a_decibel(name, monkeypatch):
    """On a sharp block of a head, against what 32 bits gain there (tests/test_gains.py)."""
    used, multiply = [], IntegerConvolution._multiply

    def counted(part, levels):
        used.append(part)
        return multiply(part, levels)

    monkeypatch.setattr(IntegerConvolution, "_multiply", counted)
    task = protocol_task(load_block(), parse_protocol("x2iso-kspace"))
    (cubic,) = [one for one in BASELINES if one.name == "cubic"]
    methods = (model_method(SuperResolver.from_pretrained(name, "cpu", "int8")), cubic)
    ours, theirs = (psnr(one.restore(task), task.truth, task.mask) for one in methods)
    gain = json.loads(FIGURES.read_text())[name]["x2iso-kspace over cubic"]
    assert used
    assert ours - theirs > gain - 0.02
