# SPDX-License-Identifier: Apache-2.0
"""Networks through which planes are pushed equal the same networks on the whole volume."""

import nibabel as nib
import numpy as np
import pytest
import torch

from bids_moediff.families.load import load_model
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.whole_volume import apply_to_volume, pad_to_multiple
from bids_moediff.imaging.acquisition import Acquisition
from bids_moediff.imaging.axes import axis_order, reorder
from bids_moediff.imaging.grid import covering_shape
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.networks import streaming
from bids_moediff.networks.mean import OUTPUT_GAIN, MeanConfig, MeanNetwork, depth_to_space
from bids_moediff.networks.model_folder import available
from bids_moediff.runtime.resources import has_bfloat16
from conftest import DEMO


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Weights at random, those that start at zero too."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return network.eval()


def networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(4)
    return {
        "mean": lively(MeanNetwork(MeanConfig(8, 3))),
        "student": lively(StudentNetwork(StudentConfig(8, 3, (6, 5, 4, 3)))),
        "student, conditioned": lively(
            StudentNetwork(StudentConfig(8, 2, (6, 5, 4, 3), conditioned_tail=True))
        ),
        "mean, told more": lively(
            MeanNetwork(MeanConfig(8, 2, conditioned_tail=True, extra_numbers=4))
        ),
    }


def whole(network, start, condition):
    """The network's own forward call, on everything at once."""
    order = axis_order(condition)
    padded = pad_to_multiple(start.permute(order), network.config.multiple).contiguous()
    with torch.inference_mode():
        out = network(padded[None, None], reorder(condition, order)[None])[0, 0]
    out = out[tuple(slice(start.shape[axis]) for axis in order)]
    return out.permute([order.index(axis) for axis in range(3)])


@pytest.mark.parametrize("name", ["mean", "student", "student, conditioned", "mean, told more"])
@pytest.mark.parametrize("max_voxels", [1, 3000, 10**9])
@pytest.mark.parametrize("shape", [(70, 18, 23), (9, 30, 12)])
def test_planes_pushed_equal_the_whole_volume(name, max_voxels, shape):
    network = networks()[name]
    start = torch.rand(shape)
    condition = torch.tensor([0.5, 0.5, 2.0, 1.2, 1.2, 0.9])
    expected = whole(network, start, condition)
    assert (expected - start).abs().max() > 0.01
    result = apply_to_volume(network, start, condition, max_voxels=max_voxels)
    assert (result - expected).abs().max() < 1e-5


def test_further_numbers_reach_the_last_layer_alone_and_count_as_zero_untold():
    network = networks()["mean, told more"]
    start = torch.rand(16, 18, 20)
    condition = torch.tensor([1.0, 1.0, 1.0, 1.2, 1.2, 1.2])
    told = torch.cat([condition, torch.tensor([0.5, 0.0, 0.0, 0.0])])
    untold = torch.cat([condition, torch.zeros(4)])
    plain = apply_to_volume(network, start, condition)
    assert torch.equal(apply_to_volume(network, start, untold), plain)
    difference = apply_to_volume(network, start, told) - plain
    with torch.inference_mode():
        features = network.with_features(start[None, None], condition[None])[1][-1]
        terms = network.tail_terms(features)[:, 48:56]
    expected = 0.5 * OUTPUT_GAIN * depth_to_space(terms)[0, 0]
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=0)


def test_widths_and_ratios_beyond_training_are_told_as_its_limits():
    network = networks()["mean, told more"]
    start = torch.rand(16, 18, 20)
    extreme = torch.tensor([0.0, 0.0, 3.0, 0.0, 0.0, 0.3])
    limit = torch.tensor([0.0, 0.0, float(np.log2(6.0)), 0.0, 0.0, 0.7])
    outputs = [apply_to_volume(network, start, one) for one in (extreme, limit)]
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_any_axis_may_be_the_thick_one(coarse):
    """A volume turned round gives the output turned round."""
    network = networks()["student"]
    start = torch.rand(24, 16, 20)
    told = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 1.0])
    axes = [1, 2]
    axes.insert(coarse, 0)  # axis 0 of `start` is the thick one, put at `coarse`
    condition = torch.zeros(6)
    condition[coarse], condition[3 + coarse] = told[2], told[5]
    turned = apply_to_volume(network, start.permute(axes), condition)
    first = torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    expected = apply_to_volume(network, start, first).permute(axes)
    assert (turned - expected).abs().max() < 1e-5


@pytest.fixture
def quick_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor lacks bfloat16, PyTorch takes minutes for what it would do in a second.

    There, factors rounded to 16 bits are multiplied and added up in 32, and the sums rounded:
    what a processor that has it does.
    """
    if has_bfloat16():
        return
    convolve = torch.nn.functional.conv3d

    def rounded(planes, weight, bias=None, **options):
        bias = None if bias is None else bias.float()
        return convolve(planes.float(), weight.float(), bias, **options).to(planes.dtype)

    monkeypatch.setattr(streaming.functional, "conv3d", rounded)


@pytest.mark.usefixtures("quick_half_precision")
@pytest.mark.parametrize("model", [name for name in available() if name in ("moediff", "student")])
def test_half_precision_of_the_shipped_models_stays_below_a_thousandth(model):
    """Largest error of any voxel in the middle of the demo head, over the range of the head."""
    image = nib.load(DEMO / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    data = np.asarray(image.dataobj, dtype=np.float32)[60:116, 60:116, 30:62]
    coarse = torch.from_numpy(data / np.percentile(data, 99.5))
    zooms = tuple(float(zoom) for zoom in image.header.get_zooms())
    shape = covering_shape(data.shape, zooms, (1.0,) * 3)
    start = interpolate(coarse, zooms, shape, (1.0,) * 3)[:, 8:56, 8:56]
    condition = torch.tensor(Acquisition.uniform("kspace").condition((1.0,) * 3, zooms))
    network = load_model(model).network
    network = getattr(network, "mean", network)
    exact = apply_to_volume(network, start, condition, precision="fp32")
    near = apply_to_volume(network, start, condition, precision="bf16")
    assert (exact - start).abs().max() > 0.01
    assert (near - exact).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["mean", "student", "student, conditioned"])
def test_half_precision_is_near(name):
    network = networks()[name]
    start, condition = torch.rand(40, 24, 24), torch.tensor([0.5] * 3 + [1.2] * 3)
    exact = apply_to_volume(network, start, condition)
    near = apply_to_volume(network, start, condition, precision="bf16")
    change = (exact - start).abs().max()
    assert 0 < (near - exact).abs().max() < 0.02 * change


def test_progress_ends_at_one():
    seen: list[float] = []
    apply_to_volume(
        networks()["mean"], torch.rand(20, 8, 8), torch.zeros(6), seen.append, max_voxels=300
    )
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 3


class Late:
    """Ten times its planes, three planes late, as many as come in."""

    def __init__(self) -> None:
        self.held = torch.zeros(1, 1, 0, 1, 1)

    def push(self, planes: torch.Tensor, last: bool) -> torch.Tensor:
        self.held = torch.cat([self.held, 10 * planes], 2)
        count = self.held.shape[2] if last else max(0, self.held.shape[2] - 3)
        ready, self.held = self.held[:, :, :count], self.held[:, :, count:]
        return ready


@pytest.mark.parametrize("sizes", [(5, 1, 4), (2, 7, 1), (1,) * 10, (4, 4, 1, 1), (10,)])
def test_planes_meet_their_own_change_wherever_they_are_cut(sizes):
    planes = torch.arange(1.0, 11).reshape(1, 1, 10, 1, 1)
    residual = streaming.Residual(Late())
    parts = [
        residual.push(part, index == len(sizes) - 1)
        for index, part in enumerate(planes.split(sizes, 2))
    ]
    torch.testing.assert_close(torch.cat(parts, 2), 11 * planes)
