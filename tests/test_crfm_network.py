# SPDX-License-Identifier: Apache-2.0
"""CRFM: features, streaming, and what an absent reference does."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from bids_moediff.families.crfm import mapping, restorer
from bids_moediff.families.crfm.features import (
    Guides,
    box_mean,
    features,
    gradient_scale,
    gradients,
    known_share,
    regression,
    windows,
)
from bids_moediff.families.crfm.mapping import map_reference, map_tile
from bids_moediff.families.crfm.network import CRFMConfig, CRFMNetwork, change, fold
from bids_moediff.families.crfm.restorer import CRFMRestorer, correct_volume
from bids_moediff.families.whole_volume import pad_to_multiple

TINY = CRFMConfig(channels=6, blocks=2)
CONDITION = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 1.2])


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(7)


def network() -> CRFMNetwork:
    """A network whose last layer is not zero."""
    made = CRFMNetwork(TINY).eval()
    torch.nn.init.normal_(made.tail.weight, std=0.05)
    return made


def volumes(shape: tuple[int, ...] = (22, 18, 20)) -> list[torch.Tensor]:
    """Base, start, reference and round trip."""
    return [torch.rand(shape) for _ in range(4)]


def test_windows_follow_the_measured_voxels() -> None:
    small, large = windows([0.0, 1.0, 2.0])
    assert all(size % 2 for size in (*small, *large))
    assert small[0] < small[1] < small[2] and all(a < b for a, b in zip(small, large, strict=True))
    assert small[2] > 4 * 2  # two measured voxels at x4


def test_regression_finds_a_linear_relation_and_no_other() -> None:
    known = torch.rand(1, 1, 20, 20, 20)
    empty = torch.zeros_like(known)
    slope, agreement = regression(Guides(empty, 0.9 - 0.5 * known, empty, known), (7, 7, 7))
    assert float((slope + 0.5).abs().max()) < 0.01 and float(agreement.min()) > 0.98
    stranger = torch.rand_like(known)
    _, agreement = regression(Guides(empty, stranger, empty, known), (7, 7, 7))
    assert float(agreement.mean()) < 0.05


def test_box_means_stop_at_the_border() -> None:
    volume = torch.rand(1, 2, 7, 9, 30)
    found = box_mean(volume, (3, 5, 21))
    assert torch.allclose(found[0, 1, 4, 0, 15], volume[0, 1, 3:6, :3, 5:26].mean())
    assert torch.allclose(found[0, 0, 0, 4, 29], volume[0, 0, :2, 2:7, 19:].mean())


def test_the_detail_of_a_linear_relation_is_proposed_exactly() -> None:
    fine = torch.rand(1, 1, 20, 20, 20)
    trip = box_mean(fine, (1, 1, 5))
    guides = Guides(0.4 * trip, 0.4 * trip, fine, trip)
    found = features(guides, [0.0, 0.0, 2.0], 1.0)
    wanted = 0.4 * (fine - trip)
    inner = (..., *(slice(6, -6),) * 3)
    assert torch.allclose(found.proposed.proposals[:, :1][inner], wanted[inner], atol=0.02)


def test_gradients_are_central_and_their_scale_is_a_percentile() -> None:
    line = torch.arange(12.0)[None, None, :, None, None].expand(1, 1, 12, 8, 8)
    found = gradients(line)[0]
    assert torch.allclose(found[0, 1:-1], torch.ones(10, 8, 8))
    assert float(found[1:].abs().max()) == 0
    assert gradient_scale(3 * line[0, 0]) == pytest.approx(3)
    assert gradient_scale(torch.zeros(8, 8, 8)) == 1


@pytest.mark.parametrize("voxels", [1, 22 * 20 * 4])
@pytest.mark.parametrize("shape", [(22, 18, 20), (21, 17, 19)])
def test_slabs_give_the_result_of_the_whole(voxels: int, shape: tuple[int, int, int]) -> None:
    made, guides = network(), volumes(shape)
    whole = correct_volume(made, guides, CONDITION)
    parts = correct_volume(made, guides, CONDITION, max_voxels=voxels)
    assert torch.allclose(whole, parts, atol=1e-5)
    padded = [pad_to_multiple(one, 2) for one in guides]
    ratios = CONDITION[:3].tolist()
    found = features(
        Guides(*(one[None, None] for one in padded)), ratios, gradient_scale(guides[2])
    )
    output = made(fold(found), CONDITION[None])
    direct = padded[0] + change(found.proposed, output)[0, 0]
    assert float((whole - guides[0]).abs().max()) > 0.01
    assert torch.allclose(whole, direct[tuple(slice(0, size) for size in shape)], atol=1e-4)


def test_axes_are_brought_into_the_trained_order() -> None:
    made, guides = network(), volumes((20, 20, 20))
    whole = correct_volume(made, guides, CONDITION)
    turned = correct_volume(
        made, [one.permute(2, 0, 1) for one in guides], CONDITION[[2, 0, 1, 5, 3, 4]]
    )
    assert torch.allclose(turned, whole.permute(2, 0, 1), atol=1e-5)


def test_beyond_the_field_of_view_of_the_reference_the_base_stays() -> None:
    made, guides = network(), volumes()
    guides[2][10:] = 0
    changed = correct_volume(made, guides, CONDITION) - guides[0]
    assert float(changed[12:].abs().max()) == 0
    assert float(changed[:8].abs().max()) > 0
    guides[2].zero_()
    assert torch.equal(correct_volume(made, guides, CONDITION), guides[0])


def test_the_window_and_the_condition_matter() -> None:
    made, guides = network(), volumes()
    other = CONDITION.clone()
    other[5] = 0.8
    assert not torch.equal(
        correct_volume(made, guides, CONDITION), correct_volume(made, guides, other)
    )
    assert replace(TINY, channels=8) != TINY


def test_three_tissues_are_mapped_where_a_slope_fails() -> None:
    """Dark, medium and bright of the reference are bright, dark and medium in the scan."""
    coarse = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, 6), size=36, mode="trilinear")
    kinds = (coarse * 3).floor().clamp(0, 2).long()
    reference = torch.tensor([0.2, 0.5, 0.8])[kinds]
    scan = torch.tensor([0.9, 0.2, 0.6])[kinds]
    mapped, explained = map_tile(scan, reference, reference)
    inner = (slice(None), slice(None), *(slice(6, -6),) * 3)
    assert float((mapped - scan)[inner].abs().mean()) < 0.03
    _, agreement = regression(Guides(scan, scan, reference, reference), (13, 13, 13))
    assert float(explained[inner].mean()) > 0.9 > 0.6 > float(agreement[inner].mean())
    noise = torch.rand(1, 1, 36, 36, 36)
    assert float(map_tile(scan, noise, noise)[1].mean()) < 0.15
    reference[:, :, 18:] = 0
    assert float(map_tile(scan, reference, reference)[1][:, :, 21:].max()) == 0


def test_borders_of_the_mapped_reference_are_as_sharp_as_its_own() -> None:
    """The relation is read at the resolution of the scan, and applied at that of the reference."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(1, 1, 6, 6, 6), size=36, mode="trilinear")
    kinds = (coarse * 3).floor().clamp(0, 2).long()
    reference, truth = torch.tensor([0.2, 0.5, 0.8])[kinds], torch.tensor([0.8, 0.5, 0.2])[kinds]
    trip, scan = (
        torch.from_numpy(ndimage.gaussian_filter(one.numpy(), (0, 0, 1, 1, 1)))
        for one in (reference, truth)
    )
    mapped, _ = map_tile(scan, reference, trip)
    inner = (slice(None), slice(None), *(slice(6, -6),) * 3)
    lost = (scan - truth)[inner].square().mean()
    assert float((mapped - truth)[inner].square().mean()) < 0.4 * float(lost)


def test_tiles_of_the_mapped_reference_equal_the_whole(monkeypatch) -> None:
    start, reference, trip = (torch.rand(40, 38, 33) for _ in range(3))
    whole = map_reference(start, reference, trip)
    monkeypatch.setattr(mapping, "TILE", 16)
    for part, one in zip(map_reference(start, reference, trip), whole, strict=True):
        assert torch.allclose(part, one, atol=1e-4)


def test_a_reference_fades_out_at_the_border_of_its_field_of_view() -> None:
    reference = torch.ones(1, 1, 12, 9, 9)
    reference[:, :, 6:] = 0
    share = known_share(reference)[0, 0, :, 4, 4]
    assert torch.allclose(share[3:8], torch.tensor([1.0, 1.0, 0.4, 0.0, 0.0]), atol=1e-6)


def test_a_sure_proposal_is_followed_and_one_by_chance_is_not() -> None:
    half = (1 + mapping.CHANCE) / 2
    found = mapping.share_of_proposal(torch.tensor([1.0, half, mapping.CHANCE, 0.0]))
    assert torch.allclose(found, mapping.SHARE * torch.tensor([1.0, 0.25, 0.0, 0.0]))
    assert (mapping.CHANCE, mapping.SHARE) == (0.3, 0.4)  # what the shipped weights go with


def test_the_mapping_is_that_of_sums_written_out() -> None:
    """Means of the scan by brightness of the round trip, bins lending to one another."""
    size = (11, 9, 10)
    start, reference, trip = (torch.rand(size).numpy() * 1.5 for _ in range(3))
    start = 0.3 * start + 0.4 * trip**2  # the round trip explains much of it
    trip[0, 0, 0], reference[0, 0, 0], reference[:, :, 8:] = 1.4, 1.4, 0
    whole = (torch.from_numpy(one)[None, None] for one in (start, reference, trip))
    mapped, explained = (found[0, 0].numpy() for found in map_tile(*whole))
    centres = np.linspace(0, mapping.BRIGHTEST, mapping.BINS)
    width, reach = centres[1], mapping.WINDOW // 2
    lend = mapping.SPREAD ** np.abs(np.subtract.outer(np.arange(24), np.arange(24)))

    def shares(image: np.ndarray) -> np.ndarray:
        bright = np.minimum(image, mapping.BRIGHTEST)[..., None]
        return np.maximum(1 - np.abs(bright - centres) / width, 0)

    def relation(at: tuple[int, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
        box = tuple(slice(max(0, k - reach), k + reach + 1) for k in at)
        share = shares(trip[box]).reshape(-1, mapping.BINS)
        return box, (lend @ (share.T @ start[box].ravel())) / (lend @ share.sum(0))

    known = np.empty(size)
    for at in np.ndindex(size):
        known[at] = shares(trip[at]) @ relation(at)[1]
    for at in ((0, 0, 0), (5, 4, 3), (10, 8, 5), (2, 7, 9)):
        box, values = relation(at)
        assert mapped[at] == pytest.approx(shares(reference[at]) @ values, abs=1e-4)
        left = np.square(start - known)[box].mean() / (start[box].var() + 0.01**2)
        seen = (reference[tuple(slice(max(0, k - 2), k + 3) for k in at)] != 0).mean()
        expected = np.clip(1 - left, 0, 1) * np.clip(4 * (seen - 0.5), 0, 1)
        assert explained[at] == pytest.approx(expected, abs=1e-4)
    assert 0.1 < explained.max() < 1


def test_no_more_is_proposed_than_the_scan_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base agrees, is corrected, and goes part of the way to the mapped reference."""
    base, start, reference, corrected, mapped = (torch.rand(6, 6, 6) for _ in range(5))
    explained = torch.rand(6, 6, 6)
    guides: list[torch.Tensor] = []

    def correct(network: Any, given: Any, condition: Any, *_: Any, **words: Any) -> torch.Tensor:
        guides.extend(given)
        assert words["precision"] == "bf16"
        return corrected.clone()

    monkeypatch.setattr(restorer, "correct_volume", correct)
    monkeypatch.setattr(
        restorer, "map_reference", lambda *given: (mapped, explained) if len(given) == 3 else None
    )
    problem: Any = SimpleNamespace(
        reference=reference, reference_weight=0.25, condition=None,
        agree=lambda volume: volume + 1, start=lambda: start,
        round_trip=lambda volume: 0.5 * volume,
    )  # fmt: skip
    made = object.__new__(CRFMRestorer)
    made.network, made.precision = None, "bf16"  # type: ignore[assignment]
    found = made._corrected(base, problem, lambda stage, fraction: None)
    for one, other in zip(guides, (base + 1, start, reference, 0.5 * reference), strict=True):
        assert torch.equal(one, other)
    share = mapping.share_of_proposal(explained)
    wanted = corrected + share * (start + 0.5 * mapped - corrected)
    assert torch.allclose(found, base + 1 + 0.25 * (wanted - base - 1), atol=1e-6)


def test_a_base_of_other_weights_is_said_and_no_reference_leaves_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bids_moediff.families.protocol import Restored, Settled
    from bids_moediff.options import Options

    options = Options()
    image = torch.rand(2, 2, 2)
    base: Any = SimpleNamespace(
        settle=lambda options, problem: Settled(options, "Base."),
        restore=lambda problem, options, progress: iter([Restored(image)]),
        sampler=lambda problem, options: "one step",
    )
    monkeypatch.setattr(restorer, "make_restorer", lambda *_: base)
    monkeypatch.setattr(restorer, "load_model", lambda *_: SimpleNamespace(sha256="aa"))
    monkeypatch.setattr(CRFMRestorer, "_corrected", lambda self, one, *_: one + 1)
    with_one: Any = SimpleNamespace(reference=image, nothing_to_gain=False)
    without: Any = SimpleNamespace(reference=None, nothing_to_gain=False)
    idle: Any = SimpleNamespace(reference=image, nothing_to_gain=True)
    for known, other in (("", False), ("aa", False), ("bb", True)):
        net: Any = SimpleNamespace(config=replace(TINY, base_sha256=known))
        made = CRFMRestorer(net, torch.device("cpu"), "fp32")
        assert ("other weights" in made.settle(options, with_one).left_out) is other
        assert "No reference" in made.settle(options, without).left_out
        for problem, added in ((with_one, 1), (without, 0), (idle, 0)):
            (sample,) = made.restore(problem, options, lambda stage, fraction: None)
            assert torch.equal(sample.image, image + added)
        assert made.sampler(without, options) == "one step"
        assert "corrected by a reference" in made.sampler(with_one, options)
