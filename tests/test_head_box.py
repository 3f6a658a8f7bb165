# SPDX-License-Identifier: Apache-2.0
"""Networks run on the box of the head: nothing of it is cut off, air beyond stays as it is."""

import pytest
import torch

from bids_moediff.families.student.network import StudentConfig, StudentNetwork
from bids_moediff.families.whole_volume import (
    KEPT,
    MARGIN,
    apply_to_volume,
    head_box,
    within_head_box,
)
from test_streaming import lively

SHAPE = (93, 70, 61)
HEAD = (slice(30, 61), slice(0, 33), slice(22, 41))  # touches one border, as a neck does


def head(shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """A bright block with texture in noisy air that holds a few spikes."""
    generator = torch.Generator().manual_seed(2)
    start = 0.02 * torch.rand(shape, generator=generator)
    start[HEAD] = 0.3 + 0.7 * torch.rand(shape, generator=generator)[HEAD]
    start[3, 60, 55] = start[90, 5, 2] = 1.0
    return start


def blurred(volume: torch.Tensor) -> torch.Tensor:
    """A network with a reach of 11 voxels."""
    return torch.nn.functional.avg_pool3d(volume[None, None], 23, 1, 11)[0, 0]


def turned(data: torch.Tensor, axes: tuple[int, int, int]) -> torch.Tensor:
    return data.permute(axes).flip(axes[0])


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_head_is_as_in_the_whole_volume_and_air_stays(axes):
    start, inside = turned(head(), axes), torch.zeros(SHAPE, dtype=torch.bool)
    inside[HEAD] = True
    inside = turned(inside, axes)
    seen: list[int] = []
    result = within_head_box(lambda v: seen.append(v.numel()) or blurred(v), start)
    assert sum(seen) < 0.8 * start.numel()
    assert (result - blurred(start))[inside].abs().max() < 1e-5
    kept = torch.zeros_like(inside)
    kept[head_box(start, KEPT)] = True
    assert kept[inside].all() and not kept.all()
    assert torch.equal(result[~kept], start[~kept])
    assert not torch.isclose(result, start)[kept].any()


@pytest.mark.parametrize("margin", [0, KEPT, MARGIN])
def test_boxes_hold_the_head_and_their_margin_and_begin_at_even_voxels(margin):
    for side, part, size in zip(head_box(head(), margin), HEAD, SHAPE, strict=True):
        assert side.start % 2 == 0 and (side.stop % 2 == 0 or side.stop == size)
        assert side.start <= max(0, part.start - margin)
        assert side.stop >= min(size, part.stop + margin)
        assert side.start >= part.start - margin - 8 and side.stop <= part.stop + margin + 8


def test_a_faint_rim_and_a_second_piece_are_kept():
    start = head()
    start[12:30, :33, 22:41] = 0.08  # darker than what counts as head elsewhere
    start[70:78, 40:48, 44:52] = 0.5  # an ear that was folded over
    box = head_box(start, 0)
    assert box[0].start <= 12 and box[0].stop >= 78
    assert box[1].stop >= 48 and box[2].stop >= 52


@pytest.mark.parametrize(
    "start",
    [
        torch.rand(40, 30, 20) + 0.2,
        torch.zeros(64, 64, 64),
        -torch.ones(64, 64, 64),
        torch.rand(2, 3, 5),
        torch.zeros(64, 64, 64).index_fill(0, torch.tensor([5]), 0.01),
    ],
    ids=["no air", "nothing", "negative", "tiny", "faint"],
)
def test_without_air_or_head_the_network_sees_everything(start):
    seen: list[torch.Size] = []
    result = within_head_box(lambda v: seen.append(v.shape) or v + 1, start)
    assert seen == [start.shape]
    assert torch.equal(result, start + 1)


def test_a_real_network_on_a_box():
    """Little reach, thick slices along the first axis: folding and order must fit the box."""
    torch.manual_seed(9)
    network, start = lively(StudentNetwork(StudentConfig(8, 1, (4, 4, 4, 4)))), head()
    condition = torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0, 0.0])

    def run(volume: torch.Tensor) -> torch.Tensor:
        return apply_to_volume(network, volume, condition)

    result, whole = within_head_box(run, start), run(start)
    assert (whole - start)[HEAD].abs().max() > 0.01
    assert (result - whole)[HEAD].abs().max() < 1e-5
    assert not torch.equal(result, whole)
    assert torch.equal(result, within_head_box(run, start))
