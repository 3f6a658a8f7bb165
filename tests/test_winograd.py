# SPDX-License-Identifier: Apache-2.0
"""Winograd's convolution against the direct one in 64 bits, and where the pipelines use it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.whole_volume import apply_to_volume
from bids_moediff.networks import winograd
from bids_moediff.networks.mean import MeanConfig, MeanNetwork
from bids_moediff.networks.streaming import Convolution
from bids_moediff.networks.winograd import Winograd, pays
from test_streaming import lively, whole


def slab(channels: int, *sizes: int) -> torch.Tensor:
    data = torch.randn(1, channels, *sizes, generator=torch.Generator().manual_seed(3))
    return data.contiguous(memory_format=torch.channels_last_3d)


def weights(features: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(8)
    return torch.randn(features, channels, 3, 3, 3) / channels**0.5, torch.randn(features)


def direct(planes: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return functional.conv3d(planes.double(), weight.double(), bias.double(), padding=(0, 1, 1))


@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), (3, 4, 4), (3, 5, 7), (5, 8, 13), (6, 30, 3), (4, 2, 41)]
)
@pytest.mark.parametrize(("channels", "features"), [(32, 32), (33, 48)])
def test_equals_the_direct_convolution(sizes, channels, features):
    planes, (weight, bias) = slab(channels, *sizes), weights(features, channels)
    before = planes.clone()
    result, expected = Winograd(weight, bias)(planes), direct(planes, weight, bias)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() < 2e-5 * expected.abs().max()
    assert torch.equal(planes, before)


def test_the_size_of_bands_and_slabs_changes_nothing(monkeypatch):
    planes, (weight, bias) = slab(32, 7, 26, 18), weights(32, 32)
    convolution = Winograd(weight, bias)
    monkeypatch.setattr(winograd, "TILES", 10**6)
    at_once = convolution(planes)
    monkeypatch.setattr(winograd, "TILES", 1)
    near = 1e-5 * at_once.abs().max()
    assert (convolution(planes) - at_once).abs().max() < near
    pairs = [convolution(planes[:, :, k : k + 3]) for k in range(5)]
    assert (torch.cat(pairs, dim=2) - at_once).abs().max() < near
    assert (at_once - direct(planes, weight, bias)).abs().max() < 2 * near


def test_same_planes_same_bytes():
    planes, (weight, bias) = slab(48, 5, 21, 19), weights(48, 48)
    assert torch.equal(Winograd(weight, bias)(planes), Winograd(weight, bias)(planes.clone()))


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        ((32, 32), torch.float32, True),
        ((128, 31), torch.float32, False),
        ((8, 128), torch.float32, False),
        ((64, 64), torch.bfloat16, False),
    ],
)
def test_only_wide_convolutions_in_32_bits_use_it(shape, kind, expected, monkeypatch):
    assert pays(torch.zeros(*shape, 3, 3, 3, dtype=kind)) is expected
    used: list[bool] = []
    plain = Winograd.__call__
    monkeypatch.setattr(Winograd, "__call__", lambda *a: used.append(True) or plain(*a))  # type: ignore[func-returns-value]
    layer = nn.Conv3d(shape[1], shape[0], 3, padding=1)
    with torch.inference_mode():
        Convolution(layer, kind).push(slab(shape[1], 3, 6, 6), True)
    assert bool(used) is expected


@pytest.mark.parametrize("activate", [False, True])
def test_pushed_planes_scaled_shifted_and_activated(activate):
    torch.manual_seed(5)
    layer = nn.Conv3d(32, 40, 3, padding=1)
    scale, shift, planes = torch.rand(40) + 0.5, torch.randn(40), slab(32, 9, 10, 11)
    with torch.inference_mode():
        part = Convolution(layer, torch.float32, scale=scale, shift=shift, activate=activate)
        ends = (1, 2, 6, 9)
        pieces = [
            part.push(planes[:, :, begin:end], end == 9)
            for begin, end in zip((0, *ends), ends, strict=False)
        ]
        expected = layer.double()(planes.double())
    column = (slice(None), None, None, None)
    expected = expected * scale.double()[column] + shift.double()[column]
    if activate:
        expected = functional.silu(expected)
    assert (torch.cat(pieces, dim=2) - expected).abs().max() < 2e-5


@pytest.mark.parametrize("max_voxels", [1, 3000, 10**9])
@pytest.mark.parametrize(
    "network", [MeanNetwork(MeanConfig(32, 2)), StudentNetwork(StudentConfig(40, 2, (32,) * 4))]
)
def test_wide_networks_equal_their_own_forward_call(network, max_voxels):
    torch.manual_seed(6)
    network = lively(network)
    start, condition = torch.rand(27, 18, 22), torch.tensor([0.5, 0.5, 2.0, 1.2, 1.2, 0.9])
    expected = whole(network, start, condition)
    assert (expected - start).abs().max() > 0.01
    result = apply_to_volume(network, start, condition, max_voxels=max_voxels)
    assert (result - expected).abs().max() < 1e-5
