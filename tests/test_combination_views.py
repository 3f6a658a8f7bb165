# SPDX-License-Identifier: Apache-2.0
"""One scan on the common grid, and what is decided and told about each scan."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from bids_moediff.combination import scans
from bids_moediff.combination.alignment import Alignment
from bids_moediff.combination.constant import added_constant
from bids_moediff.combination.estimate import Estimate, joint_estimate
from bids_moediff.combination.frame import Grid, coverage
from bids_moediff.combination.resampling import Resampler
from bids_moediff.combination.scans import (
    REWEIGHED,
    SPREAD,
    WIDEST,
    ScanFigures,
    _copies,
    _estimate,
    _figures,
    _image,
    _leave_out,
    _warnings,
    _without_constants,
    combine,
)
from bids_moediff.combination.shading import fit_shading, shading_map
from bids_moediff.combination.slice_weights import along, slice_weights, weights_on_frame
from bids_moediff.combination.view import (
    LEAST_NOISE,
    LEAST_TRUST,
    SEEN,
    UNKNOWN_ERROR,
    Scan,
    Setting,
    View,
    mean_of,
    noise_of,
    range_of,
    weigh_slices,
)
from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import voxel_sizes
from bids_moediff.imaging.masks import head_mask_array
from bids_moediff.imaging.noise_level import read_noise

SLICES = Acquisition((Axis("kspace"), Axis("box"), Axis("kspace")))
FINE, COARSE = (1.1, 1.0, 0.9), (1.1, 3.0, 0.9)
FRAME = Grid((22, 26, 21), nib.affines.from_matvec(np.diag(FINE), [-2, 1, -1]))
MOVE = nib.affines.from_matvec(
    Rotation.from_euler("xyz", [3, -4, 2], degrees=True).as_matrix(), [0.7, -0.4, 0.6]
)
WEIGHTS = np.array([1, 0.3, 1, 1, 0, 1, 1, 0.6])


def head(shape: Sequence[int]) -> np.ndarray:
    """A bright ellipsoid of uneven tissue in dark air."""
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    inside = 1 / (1 + np.exp(12 * (sum(axis**2 for axis in axes) - 1)))
    return 100 * inside * (0.7 + 0.3 * np.sin(3 * axes[0]) * np.cos(4 * axes[2]))


def scan(name: str = "axial", gain: float = 1.0, **fields: Any) -> Scan:
    """Eight slices of 3 mm, and their restored image with voxels of 1 mm."""
    fine = gain * head((20, 24, 19))
    operator = Operator.between((20, 24, 19), FINE, (20, 8, 19), COARSE, SLICES)
    data = operator.forward(torch.from_numpy(fine.astype(np.float32))).numpy()
    where = nib.affines.from_matvec(np.diag(COARSE), [0, 1, 0])
    single = nib.Nifti1Image(
        fine.astype(np.float32), nib.affines.from_matvec(np.diag(FINE), [0, 0, 0])
    )
    return Scan(name, nib.Nifti1Image(data, where), SLICES, single, **fields)


def values(image: nib.Nifti1Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.dataobj, dtype=np.float32))


def test_the_first_scan_on_the_common_grid() -> None:
    """Every field of the view, where all of grid, move, scale, noise and weights are uneven."""
    one = scan(noise=3.0)
    error = nib.Nifti1Image(np.linspace(0, 9, 20 * 24 * 19, dtype=np.float32).reshape(20, 24, 19),
                            one.single.affine)  # fmt: skip
    one = replace(one, error=error)
    view = Setting(FRAME, 40.0).view(one, MOVE, None, WEIGHTS)
    fine = Grid((20, 24, 19), one.single.affine)
    operator = Operator.between((20, 24, 19), FINE, (20, 8, 19), COARSE, SLICES)
    to_frame, to_scan = Resampler(fine, FRAME, MOVE), Resampler(FRAME, fine, np.linalg.inv(MOVE))
    assert view.scan is one and view.brightness == 1.0 and np.array_equal(view.slices, WEIGHTS)
    seen = view.observation
    assert torch.allclose(seen.measured, values(one.image) / 40)
    assert seen.sigma == pytest.approx(3 / 40) and float(seen.shading) == 1
    assert seen.weights.shape == (1, 8, 1)
    assert seen.weights.flatten().tolist() == pytest.approx(WEIGHTS.tolist())
    volume = torch.rand(FRAME.shape, generator=torch.Generator().manual_seed(0))
    wanted = operator.forward(to_scan.forward(volume))
    assert torch.allclose(seen.forward(volume), wanted, atol=1e-6)
    assert torch.allclose(view.restored, to_frame.forward(values(one.single) / 40), atol=1e-6)
    spread = to_frame.forward(values(error) / 40).clamp_min(LEAST_NOISE)
    assert float(spread.min()) == pytest.approx(LEAST_NOISE)
    assert torch.allclose(view.variance, spread**2 + (3 / 40) ** 2)
    voxels = np.linalg.inv(one.image.affine) @ MOVE @ FRAME.affine
    trust = coverage(FRAME, Grid((20, 8, 19), one.image.affine), MOVE) * weights_on_frame(
        WEIGHTS, 1, voxels, FRAME.shape
    )
    assert 0 < (trust > 0.99).mean() < 0.7
    assert view.trust.numpy() == pytest.approx(trust)
    # Without weights all slices count in full; and no noise is less than the least.
    plain = Setting(FRAME, 40.0).view(replace(one, noise=0.0), MOVE, None)
    assert plain.slices.tolist() == [1] * 8
    assert set(plain.trust.unique().tolist()) == {0.0, 1.0}
    assert plain.observation.sigma == LEAST_NOISE
    # Of a 3-D scan no slice is weighed.
    cube = replace(one, acquisition=Acquisition((Axis("kspace"),) * 3))
    view = Setting(FRAME, 40.0).view(cube, MOVE, None)
    assert view.observation.weights.shape == (1, 1, 1) and set(view.slices) == {1.0}


def test_another_scan_is_on_its_own_scale_and_its_shading_undone() -> None:
    first = Setting(FRAME, range_of(scan())).view(scan(noise=2.0), np.eye(4), None)
    fine = scan().single
    ramp = np.linspace(0.9, 1.2, 24, dtype=np.float32)[None, :, None]
    image = scan(gain=7.0).image
    shaded = (np.asarray(image.dataobj) * ramp[:, 1::3]).astype(np.float32)
    other = Scan(
        "other", nib.Nifti1Image(shaded, image.affine), SLICES,
        nib.Nifti1Image(7 * np.asarray(fine.dataobj) * ramp, fine.affine), noise=35.0,
    )  # fmt: skip
    setting = Setting(FRAME, range_of(scan()))
    view = setting.view(other, np.eye(4), first, WEIGHTS)
    scale = range_of(other)
    assert view.observation.sigma == pytest.approx(35 / scale)
    expected = first.observation.forward(first.restored).numpy()
    used = (first.observation.forward(first.trust) > SEEN).numpy() * along(WEIGHTS, 1)
    coefficients = fit_shading(shaded / scale, expected, used, 35 / scale)
    shading = shading_map(coefficients, shaded.shape)
    assert np.ptp(shading) > 0.1
    assert view.observation.shading.numpy() == pytest.approx(shading, abs=1e-5)
    assert view.brightness == pytest.approx(shading.mean() * scale / setting.scale, rel=1e-5)
    assert view.brightness == pytest.approx(7 * 1.05, rel=0.03)
    plain = values(other.single) / scale / torch.from_numpy(shading_map(coefficients, fine.shape))
    wanted = Resampler(Grid(fine.shape, fine.affine), FRAME, np.eye(4)).forward(plain)
    assert torch.allclose(view.restored, wanted, atol=1e-5)
    noise = UNKNOWN_ERROR**2 + (35 / scale / shading.mean()) ** 2
    assert torch.allclose(view.variance, torch.tensor(noise, dtype=torch.float32))
    # The noisier of the two decides which voxels are read.
    loud = replace(first, observation=replace(first.observation, sigma=10.0))
    view = setting.view(other, np.eye(4), loud)
    assert float(view.observation.shading.std()) == 0 and view.brightness == pytest.approx(
        scale / setting.scale
    )


def test_range_and_noise_are_those_of_the_head() -> None:
    one = scan(noise=3.0)
    data = np.asarray(one.image.dataobj, dtype=np.float32)
    inside = data[head_mask_array(data, COARSE)]
    assert range_of(one) == pytest.approx(np.percentile(inside, 99.5))
    noisy = data + np.random.default_rng(0).normal(0, 2, data.shape).astype(np.float32)
    image = nib.Nifti1Image(noisy, one.image.affine)
    assert noise_of(one) == 3
    found = noise_of(replace(one, image=image, noise=None))
    assert found == read_noise(noisy, voxel_sizes(image.affine)).sigma > 0
    blank = replace(one, image=nib.Nifti1Image(0 * data, one.image.affine))
    with pytest.raises(ImageError, match="axial shows no head"):
        range_of(blank)


def like(restored: float, variance: float, trust: float) -> Any:
    full = [torch.full((2, 3, 4), value) for value in (restored, variance, trust)]
    return SimpleNamespace(restored=full[0], variance=full[1], trust=full[2])


def test_the_mean_is_by_trust_over_variance() -> None:
    mean, variance = mean_of([like(1.0, 0.02, 0.5), like(2.0, 0.04, 1.0), like(7.0, 0.1, 0.0)])
    weights = np.array([0.5 / 0.02, 1 / 0.04, LEAST_TRUST / 0.1])
    wanted = (weights * [1, 2, 7]).sum() / weights.sum()
    assert torch.allclose(mean, torch.tensor(wanted, dtype=torch.float32))
    assert torch.allclose(variance, torch.tensor(1 / weights.sum(), dtype=torch.float32))


def test_slices_are_compared_with_the_other_scans_where_these_see() -> None:
    setting = Setting(FRAME, range_of(scan()))
    one = setting.view(scan(noise=1.0), np.eye(4), None)
    torn = one.observation.measured.clone()
    torn[:, 4] *= 0.5
    shading = torch.full((1, 1, 1), 0.8)
    view = replace(one, observation=replace(one.observation, measured=0.8 * torn, shading=shading))
    part = replace(one, trust=one.trust.clone())
    part.trust[:9] = 0
    rest = replace(one, trust=one.trust.clone(), restored=1.02 * one.restored)
    rest.trust[12:] = 0
    expected = view.observation.forward(mean_of([part, rest])[0])
    trust = torch.maximum(part.trust, rest.trust)
    seen = view.observation.forward(trust) > SEEN * 0.8
    inside = (seen & (expected > UNKNOWN_ERROR)).numpy()
    assert 0.2 < inside.mean() < 0.6
    wanted = slice_weights((0.8 * torn - expected).numpy(), expected.numpy(), inside, 1,
                           view.observation.sigma)  # fmt: skip
    found = weigh_slices(view, [part, rest])
    assert np.array_equal(found, wanted) and found[4] < 0.5 < np.delete(found, 4).min()
    cube = replace(view, scan=replace(view.scan, acquisition=Acquisition.uniform("kspace")))
    assert weigh_slices(cube, [part]) is cube.slices


# Decisions


def plain(name: str, noise: float, size: int = 8) -> Scan:
    image = nib.Nifti1Image(head((20, size, 19)).astype(np.float32), np.eye(4))
    return Scan(name, image, SLICES, image, noise=noise)


MOVES = [nib.affines.from_matvec(np.eye(3), [k, 2 * k, 0]) for k in range(4)]


def test_strangers_copies_and_noisy_scans_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def copied(one: Scan, other: Scan, move: np.ndarray) -> bool:
        asked.append((one.name, other.name, move[:3, 3].tolist()))
        return (one.name, other.name) == ("c", "d")

    monkeypatch.setattr(scans, "is_copy", copied)
    four = [plain(name, 2.0) for name in "abcd"]
    known = Alignment(MOVES, [0.4, 0.99, 0.98, 0.97], [1, 2, 3], 0.2)
    found, reasons = _leave_out(four, known)
    assert found.kept == [1, 2] and found.moves is known.moves and found.disagreement == 0.2
    assert set(reasons) == {0, 3} and reasons[3] == "is a copy of c" and "0.40" in reasons[0]
    assert asked == [
        ("b", "c", [1, 2, 0]), ("b", "d", [2, 4, 0]), ("c", "d", [1, 2, 0])
    ]  # fmt: skip
    # The smaller of two goes, and is no longer compared; without it, what it was is not either.
    four[2] = plain("c", 2.0, 7)
    asked.clear()
    assert _copies(four, replace(known, kept=[2, 3, 1])) == {2: "is a part of d"}
    assert [(a, b) for a, b, _ in asked] == [("c", "d"), ("d", "b")]
    monkeypatch.setattr(scans, "is_copy", lambda *_: True)
    assert _copies(four[:1] * 3, replace(known, kept=[0, 1, 2])) == {
        1: "is a copy of a", 2: "is a copy of a"
    }  # fmt: skip
    # Where the first goes, the moves are from the next one.
    four = [plain("a", 2.0, 7), *[plain(name, 2.0) for name in "bcd"]]
    monkeypatch.setattr(scans, "is_copy", lambda one, other, _: one.name + other.name == "ab")
    found, reasons = _leave_out(four, replace(known, kept=[0, 1, 2, 3]))
    assert found.kept == [1, 2, 3] and reasons == {0: "is a part of b"}
    wanted = [[k - 1, 2 * k - 2, 0] for k in range(4)]
    assert [move[:3, 3].tolist() for move in found.moves] == wanted


@pytest.mark.parametrize(
    ("noise", "left_out"),
    [((1, 1, 2.9), []), ((1, 1, 3.1), [2]), ((1, 3.1), [1]), ((3.1, 1, 1.1, 3), []),
     ((4, 1, 1.1, 1), [0]), ((0, 0, 0.1), [])],
)  # fmt: skip
def test_three_times_the_usual_noise_is_too_much(
    noise: tuple[float, ...], left_out: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lower of the two middle ones is usual; relative to the range, whatever the unit."""
    monkeypatch.setattr(scans, "is_copy", lambda *_: False)
    given = [plain(str(k), level) for k, level in enumerate(noise)]
    large = nib.Nifti1Image(np.asarray(given[0].image.dataobj) * 1000, np.eye(4))
    given[0] = replace(given[0], image=large, noise=1000 * noise[0])
    count = len(noise)
    known = Alignment(MOVES[:count], [1.0] * count, list(range(count)))
    found, reasons = _leave_out(given, known)
    assert sorted(reasons) == left_out
    assert found.kept == [k for k in range(count) if k not in left_out]
    if left_out == [2]:
        assert reasons[2] == "is 3.1 times as noisy as the other scans"


@pytest.mark.parametrize(
    ("low", "high", "constant"), [(9, 13, 9), (5, 13, 0), (-9, -5, -9), (7, 7, 0)]
)
def test_air_further_from_zero_than_the_range_is_a_constant(
    low: float, high: float, constant: float
) -> None:
    data = np.linspace(low, high, 1000)
    data[3] = np.nan
    finite = np.delete(data, 3)
    wanted = np.percentile(finite, 1) if constant else 0.0
    assert added_constant(data) == pytest.approx(wanted)


def test_a_constant_is_taken_from_the_scan_and_its_restored_image() -> None:
    given = scan()
    raised = replace(
        given, name="raised",
        image=nib.Nifti1Image(np.asarray(given.image.dataobj) + 500, given.image.affine),
        single=nib.Nifti1Image(np.asarray(given.single.dataobj) + 500, given.single.affine),
    )  # fmt: skip
    found, remarks = _without_constants([given, raised])
    level = added_constant(np.asarray(raised.image.dataobj))
    assert found[0] is given and len(remarks) == 1 and "raised" in remarks[0]
    assert np.asarray(found[1].image.dataobj) == pytest.approx(
        np.asarray(raised.image.dataobj) - np.float32(level)
    )
    assert np.asarray(found[1].single.dataobj) == pytest.approx(
        np.asarray(raised.single.dataobj) - np.float32(level)
    )
    assert np.array_equal(found[1].single.affine, given.single.affine)


def two_views(second: float) -> list[View]:
    """The same scan twice, the second time with all values times a factor."""
    setting = Setting(FRAME, range_of(scan()))
    one = setting.view(scan(noise=2.0), np.eye(4), None)
    other = replace(
        one, observation=replace(one.observation, measured=second * one.observation.measured)
    )
    return [one, other]


def test_the_estimate_lies_within_twice_the_error_of_the_mean() -> None:
    views = two_views(1.0)
    found, same = _estimate(views, lambda share: None)
    start, variance = mean_of(views)
    assert same is views
    spread = (SPREAD * variance.sqrt()).clamp_max(WIDEST)
    assert float(spread.min()) < WIDEST and float(spread.max()) == pytest.approx(WIDEST)
    wanted = joint_estimate(start, spread, [view.observation for view in views])
    assert torch.equal(found.volume, wanted.volume) and found.misfits == wanted.misfits


def test_a_scan_that_misfits_is_weighed_down_once() -> None:
    views = two_views(1.6)
    told: list[float] = []
    found, changed = _estimate(views, told.append)
    start, variance = mean_of(views)
    spread = (SPREAD * variance.sqrt()).clamp_max(WIDEST)
    before = joint_estimate(start, spread, [view.observation for view in views])
    assert max(before.misfits) > REWEIGHED
    sigma = views[0].observation.sigma
    wanted = [sigma * max(1.0, misfit) for misfit in before.misfits]
    assert [view.observation.sigma for view in changed] == pytest.approx(wanted)
    after = joint_estimate(start, spread, [view.observation for view in changed])
    assert torch.equal(found.volume, after.volume)
    assert len(told) == before.steps + after.steps


# What is told


def test_the_figures_of_every_scan() -> None:
    views = two_views(1.0)
    views[1] = replace(
        views[1], brightness=0.7, slices=np.array([1, 0.49, 1, 0.5, 0, 1, 1, 1]),
        observation=replace(views[1].observation, sigma=0.25),
    )  # fmt: skip
    three = [scan("a"), scan("b"), scan("c")]
    known = Alignment(MOVES[:3], [0.99, 0.5, 0.98], [0, 2])
    found = _figures(three, known, {1: "is a stranger"}, views,
                     Estimate(torch.zeros(1), [0.8, 0.9], 3), 50.0)  # fmt: skip
    powers = np.array([1 / views[0].observation.sigma ** 2, 1 / 0.25**2])
    shares = powers / powers.sum()
    noise = [views[0].observation.sigma * 50, 0.25 * 50]
    moved = [k * np.sqrt(5) for k in range(3)]
    wanted = [
        ScanFigures("a", True, "", MOVES[0], 0.0, 0.99, 1.0, noise[0], shares[0], 0.8, []),
        ScanFigures("b", False, "is a stranger", MOVES[1], moved[1], 0.5),
        ScanFigures(
            "c", True, "", MOVES[2], moved[2], 0.98, 0.7, noise[1], shares[1], 0.9, [1, 4]
        ),
    ]
    assert [item.record() for item in found] == [item.record() for item in wanted]
    # A 3-D scan has no slices.
    cube = replace(views[1], scan=replace(scan("c"), acquisition=Acquisition.uniform("kspace")))
    found = _figures(three, known, {1: ""}, [views[0], cube],
                     Estimate(torch.zeros(1), [0.8, 0.9], 3), 50.0)  # fmt: skip
    assert found[2].dark == []


def test_the_record_of_a_scan() -> None:
    move = np.eye(4) + 1.23456789e-3
    item = ScanFigures("a", True, "", move, 1.23456, 0.987654, 123.456789, 0.00123456789, 0.123456,
                       1.0456789, [2, 5])  # fmt: skip
    assert item.record() == {
        "Scan": "a", "Used": True, "Reason": "", "RigidTransform": np.round(move, 6).tolist(),
        "MeanDisplacement": 1.235, "Agreement": 0.9877, "Brightness": 123.46,
        "EstimatedNoise": 0.0012346, "Weight": 0.1235, "ResidualOverNoise": 1.0457,
        "SlicesWeighedDown": [2, 5],
    }  # fmt: skip
    left_out = replace(item, kept=False, reason="is a copy").record()
    names = ("Brightness", "EstimatedNoise", "Weight", "ResidualOverNoise")
    assert left_out == item.record() | dict.fromkeys(names) | {
        "Used": False, "Reason": "is a copy"
    }  # fmt: skip


def test_each_scan_that_counts_for_little_is_named_once() -> None:
    def item(name: str, kept: bool, weight: float, dark: list[int]) -> ScanFigures:
        return ScanFigures(name, kept, "is loud", np.eye(4), 0.0, 0.9, weight=weight, dark=dark)

    # Of three scans used a fair share is a third; a quarter of it 0.0833.
    found = _warnings(
        [item("a", True, 0.083, []), item("b", True, 0.084, [3, 7]), item("c", True, 0.833, []),
         item("d", False, 0.0, [1])]
    )  # fmt: skip
    assert [line.split()[0] for line in found] == ["d", "a", "b"]
    assert "is loud" in found[0] and "8 %" in found[1] and found[2].endswith("3, 7.")
    alone = _warnings([item("a", False, 0.0, []), item("b", True, 1.0, [])])
    assert len(alone) == 2 and "b is the only" in alone[0] and "a was left out" in alone[1]
    assert _warnings([item("a", True, 0.5, []), item("b", True, 0.5, [])]) == []


@pytest.mark.parametrize(
    ("sform", "qform", "wanted"), [(4, 1, (4, 1)), (0, 2, (2, 2)), (3, 0, (3, 3)), (0, 0, (1, 1))]
)
def test_coordinate_codes_are_those_of_the_first_scan(
    sform: int, qform: int, wanted: tuple[int, int]
) -> None:
    source = nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4))
    source.header["sform_code"], source.header["qform_code"] = sform, qform
    image = _image(np.zeros((3, 4, 5), np.uint8), FRAME.affine, source)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == wanted
    assert image.get_sform() == pytest.approx(FRAME.affine)
    assert image.get_qform() == pytest.approx(FRAME.affine)
    assert image.header.get_xyzt_units() == ("mm", "sec")


def test_one_scan_alone_is_not_combined() -> None:
    with pytest.raises(ValueError, match="two"):
        combine([scan()], (1, 1, 1))


def test_scans_are_weighed_against_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first gives the shading of the rest; only a bad slice makes the views anew."""
    told: list[Any] = []
    setting: Any = SimpleNamespace(view=lambda scan, move, first: SimpleNamespace(
        scan=scan, move=move, first=first))  # fmt: skip
    weights = {"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)}
    asked: list[Any] = []

    def weigh(view: Any, others: Sequence[Any]) -> np.ndarray:
        asked.append((view.scan, [other.scan for other in others]))
        return weights[view.scan]

    monkeypatch.setattr(scans, "weigh_slices", weigh)
    monkeypatch.setattr(scans, "_mended", lambda *words: ("mended", words))
    names: Any = ["a", "b", "c"]
    views, moves = scans._bring_together(
        setting, names, MOVES[:3], lambda *words: told.append(words)
    )
    assert [(view.scan, view.first and view.first.scan) for view in views] == [
        ("a", None), ("b", "a"), ("c", "a")
    ]  # fmt: skip
    assert [view.move is move for view, move in zip(views, MOVES, strict=False)] == [True] * 3
    assert moves == MOVES[:3] and asked == [
        ("a", ["b", "c"]),
        ("b", ["a", "c"]),
        ("c", ["a", "b"]),
    ]
    assert told == [("bring together", share) for share in (1 / 3, 2 / 3, 1.0)]
    weights["b"] = np.array([1, 0.9, 1])
    for count in (2, 3):
        found: Any = scans._bring_together(setting, names[:count], MOVES[:count], lambda *_: None)
        assert found[0] == "mended" and found[1][0] is setting
        assert [view.scan for view in found[1][1]] == names[:count]
        assert found[1][2] == MOVES[:count] and found[1][3] == [weights[n] for n in names[:count]]
    asked.clear()
    assert len(scans._bring_together(setting, ["b"], MOVES[:1], lambda *_: None)[0]) == 1  # type: ignore[list-item]
    assert not asked


@pytest.mark.parametrize("first_torn", [False, True])
def test_torn_scans_are_mended_and_registered_anew(
    first_torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan without one whole slice cannot be mended; whole ones stay where they are."""
    setting: Any = SimpleNamespace(view=lambda scan, move, first, found: SimpleNamespace(
        scan=scan, move=move, first=first, found=found))  # fmt: skip
    weights = [np.array([1, 0.5 if first_torn else 1.0]), np.array([1, 0.2]),
               np.ones(2), np.array([0.1, 0.2])]  # fmt: skip
    views: Any = [SimpleNamespace(scan=SimpleNamespace(single=f"single {k}")) for k in range(4)]
    monkeypatch.setattr(scans, "mended", lambda view, found: SimpleNamespace(
        single=f"mended {view.scan.single[-1]}", weights=found))  # fmt: skip
    monkeypatch.setattr(scans, "register", lambda fixed, moving: (fixed, moving))
    again, better = scans._mended(setting, views, list(MOVES), weights)
    first = "mended 0" if first_torn else "single 0"
    singles = [first, "mended 1", "single 2", "single 3"]
    assert [view.scan.single for view in again] == singles
    assert [view.found is found for view, found in zip(again, weights, strict=True)] == [True] * 4
    assert [view.first is again[0] for view in again] == [False, True, True, True]
    anew = [False, True, first_torn, True]
    for k in range(4):
        wanted: Any = (first, singles[k]) if anew[k] else MOVES[k]
        assert better[k] == wanted if anew[k] else better[k] is wanted
        assert again[k].move is better[k]
