# SPDX-License-Identifier: Apache-2.0
"""The last layer refitted to the plane of thick slices: what it learns from, and what it becomes.

The networks have random weights; the least squares are compared with those of NumPy.
"""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from bids_moediff.families import in_plane_refit
from bids_moediff.families.in_plane_refit import has_fine_plane, middle_of_head, refitted
from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.interpolation import interpolate
from bids_moediff.imaging.told import told_numbers
from bids_moediff.inference.pose import Inputs, pose
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options

SHAPE = (28, 26, 24)
PLANE, SLICES = Axis("kspace"), Axis("box", 0.5)


@pytest.fixture(scope="module")
def network() -> StudentNetwork:
    torch.manual_seed(0)
    made = StudentNetwork(StudentConfig(channels=4, blocks=1, ranks=(4, 4, 4, 4))).eval()
    torch.nn.init.normal_(made.tail.weight, std=0.02)
    return made


def head(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(SHAPE)
    data = 600 + 900 * ndimage.gaussian_filter(noise, 0.8)
    data[:, :3] = 0
    return data.clip(0).astype(np.float32)


def scan(slices: int = 2, ratio: float = 3.0) -> nib.Nifti1Image:
    shape, zooms = list(SHAPE), [1.0, 1.0, 1.0]
    shape[slices], zooms[slices] = int(shape[slices] / ratio), ratio
    axes = [PLANE, PLANE, PLANE]
    axes[slices] = SLICES
    operator = Operator.between(
        SHAPE, (1, 1, 1), tuple(shape), tuple(zooms), Acquisition(tuple(axes)), "cpu"
    )
    data = operator.forward(torch.from_numpy(head())).numpy()
    return nib.Nifti1Image(data, np.diag([*zooms, 1.0]))


def problem_of(slices: int = 2, ratio: float = 3.0, zooms=(1.0, 1.0, 1.0)):
    axes = [PLANE, PLANE, PLANE]
    axes[slices] = SLICES
    inputs = Inputs(acquisition=Acquisition(tuple(axes)))
    return pose(scan(slices, ratio), zooms, inputs, torch.device("cpu")).problem()


@pytest.mark.parametrize("slices", [0, 2])
def test_the_change_is_ridge_regression_on_the_plane(network, slices, monkeypatch):
    """Against an independent set-up: scans made by the operator, and NumPy's least squares."""
    monkeypatch.setattr(in_plane_refit, "FEWEST", 10)
    problem = problem_of(slices)
    part = torch.from_numpy(head(1) / 1000)
    found = refitted(network, problem, part, "fp32").tail.weight - network.tail.weight
    inputs, wanted = [], []
    for axis in [k for k in range(3) if k != slices]:
        order = [k for k in range(3) if k != axis] + [axis]
        turned = part.permute(order)
        sizes = [turned.shape[0], turned.shape[1], 3 * (turned.shape[2] // 3)]
        fine = turned[..., : sizes[2]]
        coarse_shape, zooms = (sizes[0], sizes[1], sizes[2] // 3), (1.0, 1.0, 3.0)
        acquisition = Acquisition((PLANE, PLANE, SLICES))
        operator = Operator.between(
            tuple(sizes), (1, 1, 1), coarse_shape, zooms, acquisition, "cpu"
        )
        coarse = operator.forward(fine)
        start = interpolate(coarse, zooms, tuple(sizes), (1.0, 1.0, 1.0))
        start = operator.project(start, coarse)
        even = [size - size % 2 for size in sizes]
        start, fine = (v[: even[0], : even[1], : even[2]] for v in (start, fine))
        numbers = acquisition.condition((1, 1, 1), zooms) + told_numbers(acquisition, zooms, 0.0)
        with torch.no_grad():
            told = torch.tensor(numbers)[None]
            out, features = network.with_features(start[None, None], told)
        lacking = ((fine - out[0, 0]) / in_plane_refit.OUTPUT_GAIN).numpy()
        padded = functional.pad(features[-1][0], (1,) * 6).numpy()
        for x, y, z in np.ndindex(*(size // 2 for size in even)):
            block = np.s_[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
            if fine[block].max() > in_plane_refit.HEAD:
                inputs.append(padded[:, x : x + 3, y : y + 3, z : z + 3].ravel())
                wanted.append(lacking[block].ravel())
    matrix, target = np.array(inputs, dtype=np.float64), np.array(wanted, dtype=np.float64)
    held = np.sqrt(in_plane_refit.RIDGE * np.mean((matrix**2).sum(0)))
    below = np.concatenate([matrix, held * np.eye(matrix.shape[1])])
    target = np.concatenate([target, np.zeros((matrix.shape[1], 8))])
    expected = np.linalg.lstsq(below, target, rcond=None)[0].T.reshape(found.shape)
    assert np.abs(expected).max() > 1e-4
    atol = 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=atol)


def test_a_head_too_small_to_learn_from_leaves_the_network_alone(network):
    part = torch.from_numpy(head() / 1000)
    part[6:] = 0
    assert refitted(network, problem_of(), part, "fp32") is network


@pytest.mark.parametrize(
    ("ratios", "fits"),
    [
        ((1.0, 1.0, 4.0), True), ((4.0, 1.0, 1.04), True), ((1.0, 1.5, 1.0), True),
        ((1.0, 1.0, 1.4), False), ((1.1, 1.0, 4.0), False), ((1.0, 2.0, 4.0), False),
        ((1.0, 1.0, 1.0), False),
    ],
)  # fmt: skip
def test_which_scans_have_a_fine_plane(ratios, fits):
    assert has_fine_plane(replace(problem_of(), ratios=ratios)) is fits


def test_the_part_lies_around_the_centre_of_the_head():
    volume = torch.zeros(200, 120, 60)
    volume[150:190, 10:40, 5:50] = torch.linspace(0.5, 1.0, 40)[:, None, None]
    part = middle_of_head(volume)
    assert part.shape == (96, 96, 60)
    torch.testing.assert_close(part, volume[104:200, 0:96])
    assert middle_of_head(torch.zeros(100, 40, 40)).shape == (96, 40, 40)


def engine(network) -> tuple[SuperResolver, Inputs]:
    model = LoadedModel(network, {"family": "student", "version": "test"}, "0" * 64, "random")
    inputs = Inputs(acquisition=Acquisition((PLANE, PLANE, SLICES)))
    return SuperResolver(model, torch.device("cpu"), "fp32"), inputs


def test_the_engine_refits_slices_and_says_where_it_cannot(network, monkeypatch):
    monkeypatch.setattr(in_plane_refit, "FEWEST", 10)
    resolver, inputs = engine(network)
    asked = Options(output_resolution=(1.0,) * 3, in_plane_refit=True)
    plain = resolver.enhance(scan(), replace(asked, in_plane_refit=False), inputs)
    seen = []
    found = resolver.enhance(scan(), asked, inputs, lambda stage, share: seen.append(share))
    assert found.record["InPlaneRefit"] is True and not plain.record["InPlaneRefit"]
    assert found.record["NetworksRun"] == ["student"]
    assert in_plane_refit.NO_REFIT not in found.record["Warnings"]
    assert np.abs(found.image.get_fdata() - plain.image.get_fdata()).max() > 0.1
    assert max(seen) == 1.0
    assert found.residual < 1e-3
    finer = resolver.enhance(scan(), replace(asked, output_resolution=(0.8,) * 3), inputs)
    assert finer.record["InPlaneRefit"] is False
    assert in_plane_refit.NO_REFIT in finer.record["Warnings"]


def test_the_record_of_too_small_a_head_says_that_nothing_was_refitted(network, monkeypatch):
    monkeypatch.setattr(in_plane_refit, "FEWEST", 100_000)
    resolver, inputs = engine(network)
    options = Options(output_resolution=(1.0,) * 3, in_plane_refit=True)
    found = resolver.enhance(scan(), options, inputs)
    assert found.record["InPlaneRefit"] is False
    assert in_plane_refit.TOO_SMALL in found.record["Warnings"]
    assert found.record["NetworksRun"] == ["student"]
