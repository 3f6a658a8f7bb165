# SPDX-License-Identifier: Apache-2.0
"""What the last layers are told about a scan."""

import math

import pytest
import torch

from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.told import EXTRA_NUMBERS, edge_loss, softness, told_numbers

TWOS = (2.0, 2.0, 2.0)


def anatomy(blur: float) -> torch.Tensor:
    """Noise with the power of anatomy, about 1 / f^3, blurred by so many voxels."""
    shape = (40, 36, 32)
    spectrum = torch.fft.rfftn(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    axes = [torch.fft.fftfreq(size) for size in shape[:2]] + [torch.fft.rfftfreq(shape[2])]
    squares = [axis.square() for axis in axes]
    radius = (squares[0][:, None, None] + squares[1][None, :, None] + squares[2]).sqrt()
    spectrum *= (radius + 0.01) ** -1.5 * torch.exp(-2 * (math.pi * blur * radius) ** 2)
    image = torch.fft.irfftn(spectrum, s=shape)
    return 0.4 + 0.2 * image / image.std()


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis("kspace"), 0.0),
        (Axis("box", 1.0), 1 - 2 / math.pi),
        (Axis("gaussian", 1.0), 1 - math.exp(-(math.pi**2) / (16 * math.log(2)))),
    ],
)
def test_the_edge_of_the_band_by_profile(axis, expected):
    assert edge_loss(axis) == pytest.approx(expected)


def test_soft_images_read_soft_with_and_without_noise():
    read = [softness(anatomy(blur), TWOS, 0.0) for blur in (0.0, 0.4, 0.8)]
    assert read == sorted(read)
    assert abs(read[0]) < 0.3
    assert read[2] > 0.5
    noise = 0.01 * torch.randn(40, 36, 32, generator=torch.Generator().manual_seed(1))
    assert softness(anatomy(0.0) + noise, TWOS, 0.01) == pytest.approx(read[0], abs=0.05)


def test_folded_detail_reads_flat():
    """One fine voxel in four along an axis: slices with gaps."""
    image = anatomy(0.0)
    assert softness(image[:, :, ::4], (1.0, 1.0, 4.0), 0.0) < softness(image, TWOS, 0.0) - 0.2


def test_only_the_coarsest_axes_are_read():
    image = anatomy(0.0)
    soft = torch.nn.functional.avg_pool1d(image.flatten(0, 1)[:, None], 5, 1, 2)
    soft = soft.reshape(image.shape)  # blurred along the last axis alone
    assert softness(soft, (1.0, 1.0, 4.0), 0.0) > softness(soft, (4.0, 1.0, 1.0), 0.0) + 0.2


def test_the_numbers_of_a_scan():
    numbers = told_numbers(Acquisition.uniform("box"), TWOS, anatomy(0.0), 0.02)
    assert len(numbers) == EXTRA_NUMBERS
    assert numbers[0] == 0.5
    assert numbers[2] == pytest.approx(0.5 * numbers[1])
    assert told_numbers(Acquisition.uniform("kspace"), TWOS, anatomy(0.0), 0.0)[:3] == (0,) * 3
