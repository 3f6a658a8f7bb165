# SPDX-License-Identifier: Apache-2.0
"""Several scans of one head: moves, exact adjoints, the joint estimate, scans that misfit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.combination import alignment
from bids_moediff.combination.alignment import SAME_HEAD, align
from bids_moediff.combination.copies import is_copy
from bids_moediff.combination.estimate import joint_estimate
from bids_moediff.combination.frame import Grid, coverage, frame_zooms, scan_zooms, union_grid
from bids_moediff.combination.mending import _from_beside, mended
from bids_moediff.combination.observation import Observation, total
from bids_moediff.combination.resampling import Resampler, _bridge, _Side, decompose
from bids_moediff.combination.scans import QUIETEST, Combined, _not_too_quiet, combine
from bids_moediff.combination.shading import fit_shading, shading_map
from bids_moediff.combination.slice_weights import (
    BAD,
    GOOD,
    SMOOTHING,
    slice_weights,
    weights_on_frame,
)
from bids_moediff.combination.view import UNKNOWN_ERROR, Scan, Setting, grid_of, mean_of, range_of
from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator
from bids_moediff.imaging.grid import output_grid, voxel_sizes
from bids_moediff.imaging.interpolation import initial_estimate
from bids_moediff.imaging.registration import register

STACKS = Path(__file__).parent / "data" / "three_stacks"
ZOOMS = (2.4, 2.4, 2.4)


def turn(degrees: list[float], shift: list[float]) -> np.ndarray:
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


def blobs(grid: Grid, affine: np.ndarray | None = None) -> torch.Tensor:
    """Three smooth bumps at fixed places in the world."""
    affine = grid.affine if affine is None else affine
    world = affine[:3, :3] @ np.indices(grid.shape).reshape(3, -1) + affine[:3, 3:]
    total = np.zeros(world.shape[1])
    for centre, width, height in [
        ((5, 3, -2), 9, 1),
        ((-12, 8, 6), 6, 0.7),
        ((3, -14, 9), 5, 0.5),
    ]:
        distance = ((world - np.array(centre)[:, None]) ** 2).sum(axis=0)
        total += height * np.exp(-distance / 2 / width**2)
    return torch.from_numpy(total.reshape(grid.shape).astype(np.float32))


@pytest.mark.parametrize(
    "degrees", [[0, 0, 0], [3, 0, 0], [0, -4, 0], [1e-7, 2, 0], [2, 1, -3], [20, -15, 10]]
)
def test_four_shears_make_a_rotation(degrees: list[float]) -> None:
    zooms = np.diag([0.8, 1.2, 1.0])
    matrix = np.linalg.inv(zooms) @ turn(degrees, [0, 0, 0])[:3, :3] @ zooms
    product = np.eye(3)
    for axis, row in decompose(matrix):
        assert row[axis] == 0
        product = product @ (np.eye(3) + np.outer(np.eye(3)[axis], row))
    assert np.allclose(product, matrix, atol=1e-6)


def test_a_turn_that_needs_too_steep_a_shear_is_an_error() -> None:
    """About one axis the steepest slope is the tangent of half the angle."""
    steepest = max(np.abs(row).max() for _, row in decompose(turn([110, 0, 0], [0, 0, 0])[:3, :3]))
    assert steepest == pytest.approx(np.tan(np.radians(55)))
    with pytest.raises(ImageError, match="turned too far"):
        decompose(turn([114, 0, 0], [0, 0, 0])[:3, :3])


def permuted_grids() -> tuple[Grid, Grid]:
    first = np.diag([1.0, 1.3, 1.2, 1.0])
    first[:3, 3] = [-35, -40, -38]
    second = np.zeros((4, 4))
    second[0, 2], second[1, 0], second[2, 1], second[3, 3] = -1, 1.3, 1.2, 1
    second[:3, 3] = [30, -36, -36]
    return Grid((70, 62, 64), first), Grid((56, 60, 61), second)


def test_moved_volumes_lie_where_they_belong() -> None:
    source, target = permuted_grids()
    move = turn([7, -5, 9], [1.3, -2.1, 0.7])
    found = Resampler(source, target, move).forward(blobs(source))
    assert torch.allclose(found, blobs(target, move @ target.affine), atol=1e-3)


def test_the_adjoint_is_exact() -> None:
    source, target = permuted_grids()
    resampler = Resampler(source, target, turn([2, -1, 3], [1.3, -2.1, 0.7]))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(source.shape, generator=generator)
    y = torch.randn(target.shape, generator=generator)
    first = float((resampler.forward(x).double() * y).sum())
    second = float((x.double() * resampler.adjoint(y)).sum())
    assert first == pytest.approx(second, abs=1e-5 * float(x.norm() * y.norm()))


def test_other_voxel_sizes_are_no_rotation() -> None:
    source, target = permuted_grids()
    with pytest.raises(ImageError):
        Resampler(source, Grid(target.shape, target.affine @ np.diag([2, 1, 1, 1])))


def test_the_frame_holds_every_scan() -> None:
    first = Grid((10, 12, 4), np.diag([1.0, 1.0, 3.0, 1.0]))
    second = Grid((12, 4, 12), np.diag([1.0, 3.0, 1.0, 1.0]))
    moves = [np.eye(4), turn([0, 0, 5], [-3, 0, 0])]
    frame = union_grid([first, second], moves, (1.0, 1.0, 1.0))
    assert np.allclose((np.linalg.inv(output_grid(first.shape, first.affine, (1, 1, 1))[1])
                        @ frame.affine)[:3, 3] % 1, 0)  # fmt: skip
    for grid, move in zip([first, second], moves, strict=True):
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in grid.shape])).reshape(3, -1)
        world = np.linalg.inv(move) @ grid.affine @ np.vstack([corners, np.ones(8)])
        place = (np.linalg.inv(frame.affine) @ world)[:3]
        assert (place > -0.5).all() and (np.array(frame.shape) - 0.5 > place.T).all()
        assert 0 < coverage(frame, grid, move).sum() < np.prod(frame.shape)


def test_voxel_sizes_follow_the_axes() -> None:
    sagittal = np.array([[0, 0, 4.0, 0], [0.6, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])
    axial = np.diag([0.9, 0.9, 5.0, 1.0])
    assert scan_zooms(sagittal, axial, (0.9, 0.6, 1.0)) == (0.6, 1.0, 0.9)
    assert frame_zooms([axial, sagittal], (0.7, 0.7, 0.7)) == pytest.approx((0.7, 0.6, 0.7))


def test_the_estimate_solves_its_equations() -> None:
    grid = Grid((12, 10, 8), np.eye(4))
    generator = torch.Generator().manual_seed(0)
    scans = []
    for axis in range(2):
        shape = [12, 10, 8]
        shape[axis] //= 2
        zooms = [1.0, 1.0, 1.0]
        zooms[axis] = 2.0
        operator = Operator.between(
            grid.shape, (1, 1, 1), tuple(shape), tuple(zooms), Acquisition.uniform("box")
        )
        move = turn([0, 0, 2.0 * axis], [0.3 * axis, 0, 0])
        scans.append(
            Observation(
                torch.randn(shape, generator=generator), Resampler(grid, grid, move), operator,
                0.3, torch.full((1, 1, 1), 1.1), torch.ones(1, 1, 1),
            )
        )  # fmt: skip
    start, spread = torch.zeros(grid.shape), torch.full(grid.shape, 0.5)
    found = joint_estimate(start, spread, scans, steps=40, discrepancy=0).volume
    gradient = found / spread**2
    size = 0.0
    for scan in scans:
        part = scan.adjoint(scan.precision * scan.residual(found))
        gradient, size = gradient - part, size + float(part.norm())
    assert float(gradient.norm()) < 0.05 * size
    # An early end leaves the residuals of all scans together as large as was asked for.
    early = joint_estimate(start, spread, scans, steps=40, discrepancy=2.8)
    assert np.sqrt(np.mean(np.square(early.misfits))) == pytest.approx(2.8, rel=1e-3)


def test_shading_is_a_mean_ratio() -> None:
    random = np.random.default_rng(0)
    truth = 0.3 + 0.5 * random.random((20, 24, 16))
    x = np.linspace(-1, 1, 20)[:, None, None]
    shaded = truth * (1.2 + 0.2 * x - 0.1 * x**2)
    # Noise in the expected values must not draw the ratio down.
    expected = truth + random.normal(0, 0.1, truth.shape)
    found = shading_map(fit_shading(shaded, expected, np.ones(truth.shape)), truth.shape)
    assert abs((found / (1.2 + 0.2 * x - 0.1 * x**2)).mean() - 1) < 0.01
    assert np.abs(found / (1.2 + 0.2 * x - 0.1 * x**2) - 1).max() < 0.06


def test_the_mean_of_a_shading_is_drawn_to_nothing() -> None:
    """The equation of the constant term holds exactly, however stiff the others are."""
    random = np.random.default_rng(0)
    expected = ndimage.gaussian_filter(0.3 + 0.5 * random.random((20, 24, 16)), 1)
    x = np.linspace(-1, 1, 20)[:, None, None]
    shaded = expected * (1 + 0.3 * x + 0.5 * x**2)
    found = shading_map(fit_shading(shaded, expected, np.ones(shaded.shape)), shaded.shape)
    assert abs((shaded - found * expected).sum()) < 1e-5 * shaded.sum()


def test_noise_passes_for_no_shading() -> None:
    random = np.random.default_rng(0)
    truth = np.zeros((32, 32, 16))
    truth[8:, 4:28] = 0.15
    truth[12:, 10:22] = 0.6

    def read(sigma: float) -> np.ndarray:
        real, imaginary = random.normal(0, sigma, (2, *truth.shape))
        return np.hypot(truth + real, imaginary)

    found = shading_map(
        fit_shading(read(0.06), read(0.04), np.ones(truth.shape), 0.06), truth.shape
    )
    assert np.abs(found[truth > 0] - 1).max() < 0.1


def test_a_dark_slice_counts_little() -> None:
    random = np.random.default_rng(0)
    expected = 0.3 + 0.5 * random.random((30, 30, 12))
    residual = random.normal(0, 0.05, expected.shape)
    residual[:, :, 5] -= 0.5 * expected[:, :, 5]
    weights = slice_weights(residual, expected, np.ones(expected.shape, bool), 2, 0.03)
    assert weights[5] < 0.3 and np.delete(weights, 5).min() == 1


def three_stacks() -> list[Scan]:
    """Stacks of tests/data/three_stacks, each interpolated so that it agrees with itself."""
    scans = []
    for name in ("axial", "coronal", "sagittal"):
        path = STACKS / f"bids/sub-01/anat/sub-01_acq-{name}_T1w.nii.gz"
        image = nib.Nifti1Image.from_filename(path)
        data = np.asarray(image.dataobj, dtype=np.float32)
        image = nib.Nifti1Image(data, image.affine)
        metadata = json.loads(path.with_name(path.name.replace("nii.gz", "json")).read_text())
        zooms = voxel_sizes(image.affine)
        scans.append(restored(name, image, Acquisition.from_metadata(metadata, zooms)))
    return scans


def restored(name: str, image: nib.Nifti1Image, acquisition: Acquisition) -> Scan:
    """A scan with its consistent interpolation in place of a network's result."""
    data, zooms = np.asarray(image.dataobj, dtype=np.float32), voxel_sizes(image.affine)
    shape, affine = output_grid(data.shape, image.affine, ZOOMS)
    operator = Operator.between(shape, ZOOMS, data.shape, zooms, acquisition)
    single = initial_estimate(torch.from_numpy(data), operator, zooms, ZOOMS)
    return Scan(name, image, acquisition, nib.Nifti1Image(single.numpy(), affine))


def changed(scan: Scan, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
    """The scan with other voxels."""
    data = change(np.array(scan.image.dataobj, dtype=np.float32)).astype(np.float32)
    return restored(name, nib.Nifti1Image(data, scan.image.affine), scan.acquisition)


def mirrored(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data[:, ::-1, ::-1])


@pytest.fixture(scope="module")
def stacks() -> list[Scan]:
    return three_stacks()


@pytest.fixture(scope="module")
def registrations() -> dict[tuple[int, int], Any]:
    """Moves between the same two images (their ids, and the images, so that these stay)."""
    return {}


@pytest.fixture(autouse=True)
def registered_once(
    registrations: dict[tuple[int, int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most tests combine the first two stacks with something else: their move is found once."""

    def remembered(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, **words: bool) -> np.ndarray:
        if words:
            return register(fixed, moving, **words)
        key = (id(fixed), id(moving))
        if key not in registrations:
            registrations[key] = register(fixed, moving), fixed, moving
        return registrations[key][0].copy()

    monkeypatch.setattr(alignment, "register", remembered)


@pytest.fixture(scope="module")
def combined(stacks: list[Scan]) -> Combined:
    return combine(stacks, ZOOMS)


@pytest.fixture(scope="module")
def without_third(stacks: list[Scan]) -> Combined:
    return combine(stacks[:2], ZOOMS)


def error(image: nib.Nifti1Image) -> float:
    """Root mean square error in the head against the truth."""
    truth = nib.Nifti1Image.from_filename(STACKS / "truth.nii.gz")
    data = np.asarray(truth.dataobj, dtype=np.float32)
    offset = np.round(np.linalg.inv(image.affine) @ truth.affine[:, 3])[:3].astype(int)
    sizes = [min(n, m - o) for n, m, o in zip(data.shape, image.shape, offset, strict=True)]
    data = data[tuple(slice(0, n) for n in sizes)]
    part = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
    difference = np.asarray(image.dataobj)[part] - data
    return float(np.sqrt((difference[data > 100] ** 2).mean()))


def test_registration_finds_the_move(stacks: list[Scan]) -> None:
    true = json.loads((STACKS / "moves.json").read_text())
    points = np.array([[60, 0, 0, 1], [0, 70, 0, 1], [0, 0, 60, 1], [0, 0, 0, 1.0]]).T
    for scan in stacks[1:]:
        found = register(stacks[0].single, scan.single)
        distance = np.linalg.norm(((found - np.array(true[scan.name])) @ points)[:3], axis=0)
        assert distance.mean() < 0.1 * ZOOMS[0]


def test_three_stacks_are_worth_more_than_one(stacks: list[Scan], combined: Combined) -> None:
    assert error(combined.image) < 0.7 * error(stacks[0].single)
    assert voxel_sizes(combined.image.affine) == pytest.approx(ZOOMS)
    # Each scan is given back within its noise.
    assert all(item.kept and item.misfit < 1.1 for item in combined.scans)
    assert int(np.asarray(combined.count.dataobj).max()) == 3
    assert not combined.warnings


def test_the_same_input_gives_the_same_bytes(
    stacks: list[Scan], without_third: Combined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "register", register)  # registered anew
    again = combine(stacks[:2], ZOOMS)
    assert np.array_equal(np.asarray(again.image.dataobj), np.asarray(without_third.image.dataobj))


def test_a_stranger_is_left_out(stacks: list[Scan], without_third: Combined) -> None:
    result = combine([*stacks[:2], changed(stacks[2], "stranger", mirrored)], ZOOMS)
    assert [item.kept for item in result.scans] == [True, True, False]
    assert "stranger" in result.warnings[0]
    data = np.asarray(result.image.dataobj)
    assert np.array_equal(data, np.asarray(without_third.image.dataobj))


def test_a_stranger_at_the_head_of_the_list_gives_way(stacks: list[Scan]) -> None:
    images = [changed(stacks[0], "stranger", mirrored).single, stacks[1].single, stacks[2].single]
    found = align(images)
    assert found.kept == [1, 2] and np.allclose(found.moves[1], np.eye(4))


def test_a_noisy_scan_counts_little(stacks: list[Scan], without_third: Combined) -> None:
    random = np.random.default_rng(0)

    def shout(data: np.ndarray) -> np.ndarray:
        return np.hypot(
            data + random.normal(0, 140, data.shape), random.normal(0, 140, data.shape)
        )

    result = combine([*stacks[:2], changed(stacks[2], "loud", shout)], ZOOMS)
    assert error(result.image) < 1.005 * error(without_third.image)
    assert "loud" in result.warnings[0]


def test_a_smoothed_scan_does_not_oust_the_others(
    stacks: list[Scan], without_third: Combined
) -> None:
    smooth = changed(stacks[2], "smooth", lambda data: ndimage.gaussian_filter(data, (0, 1, 1)))
    result = combine([*stacks[:2], smooth], ZOOMS)
    assert all(item.kept for item in result.scans)
    assert error(result.image) < 1.2 * error(without_third.image)


def test_a_header_may_be_wrong_by_more_than_a_head(stacks: list[Scan], combined: Combined) -> None:
    away = turn([0, 0, 0], [200, 0, 0])
    image, single = (
        nib.Nifti1Image(np.asarray(item.dataobj), away @ item.affine)
        for item in (stacks[2].image, stacks[2].single)
    )
    result = combine([*stacks[:2], Scan("away", image, stacks[2].acquisition, single)], ZOOMS)
    assert result.scans[2].kept
    assert error(result.image) == pytest.approx(error(combined.image), rel=0.01)


def test_brightness_is_adjusted_whatever_the_unit(stacks: list[Scan], combined: Combined) -> None:
    """One scan half as bright again and one in another unit; then the first in another unit."""
    bright = changed(stacks[1], "bright", lambda data: 1.5 * data)
    large = changed(stacks[2], "large", lambda data: 1000 * data)
    result = combine([stacks[0], bright, large], ZOOMS)
    assert result.scans[1].brightness == pytest.approx(1.5, rel=0.02)
    assert result.scans[2].kept and result.scans[2].brightness == pytest.approx(1000, rel=0.05)
    assert result.scans[2].weight == pytest.approx(combined.scans[2].weight, rel=0.05)
    assert error(result.image) < 1.02 * error(combined.image)
    small = combine([changed(stacks[0], "small", lambda data: data / 1000), *stacks[1:]], ZOOMS)
    data = np.asarray(small.image.dataobj)
    assert error(nib.Nifti1Image(1000 * data, small.image.affine)) < 1.02 * error(combined.image)


def test_an_added_constant_is_taken_away(stacks: list[Scan], combined: Combined) -> None:
    result = combine([*stacks[:2], changed(stacks[2], "raised", lambda data: data + 5000)], ZOOMS)
    assert result.scans[2].kept and "raised" in result.warnings[0]
    assert error(result.image) < 1.02 * error(combined.image)


def test_a_failed_registration_is_noticed(
    stacks: list[Scan], without_third: Combined, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = stacks[2].single

    def wrong(fixed: nib.Nifti1Image, moving: nib.Nifti1Image, **words: bool) -> np.ndarray:
        found = register(fixed, moving, **words)
        return turn([0, 0, 0], [1.2, -1.2, 1.2]) @ found if moving is third else found

    monkeypatch.setattr(alignment, "register", wrong)
    images = [scan.single for scan in stacks]
    found = alignment.align(images)
    assert found.disagreement > 1.5
    monkeypatch.setattr(alignment, "register", register)
    right = alignment.align(images)
    assert right.kept == [0, 1, 2] and right.disagreement < 0.5


def test_a_copy_tells_nothing_new(stacks: list[Scan], without_third: Combined) -> None:
    copy = changed(stacks[0], "copy", lambda data: np.round(2 * data))
    result = combine([*stacks[:2], copy], ZOOMS)
    assert [item.kept for item in result.scans] == [True, True, False]
    assert "copy of axial" in result.warnings[0]
    data = np.asarray(result.image.dataobj)
    assert np.array_equal(data, np.asarray(without_third.image.dataobj))


def turned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The image as another program stores it: other axes, flipped, small integers."""
    other = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    data = np.asarray(other.dataobj)
    return nib.Nifti1Image(np.round(data / data.max() * 2000).astype(np.float32), other.affine)


def cut(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return image.slicer[5:-9, :, 2:-1]


def shaded(image: nib.Nifti1Image) -> nib.Nifti1Image:
    ramp = np.exp(np.linspace(-0.7, 0.7, image.shape[0]))[:, None, None]
    return nib.Nifti1Image((ramp * np.asarray(image.dataobj)).astype(np.float32), image.affine)


def defaced(image: nib.Nifti1Image) -> nib.Nifti1Image:
    data = np.array(image.dataobj)
    data[:, round(0.65 * data.shape[1]) :] = 0
    return nib.Nifti1Image(data, image.affine)


def scan_of(image: nib.Nifti1Image, like: Scan) -> Scan:
    return Scan("copy", image, like.acquisition, like.single)


@pytest.mark.parametrize(
    "change", [turned, cut, shaded, defaced, lambda image: cut(turned(image))]
)
def test_copies_are_known_however_they_are_stored(
    stacks: list[Scan], change: Callable[[nib.Nifti1Image], nib.Nifti1Image]
) -> None:
    copy = scan_of(change(stacks[0].image), stacks[0])
    near = turn([0.1, 0, 0.2], [0.2, -0.1, 0.1])  # as a registration finds it
    away = turn([0, 0, 0], [60, 0, 0])
    for one, other in ((stacks[0], copy), (copy, stacks[0])):
        assert is_copy(one, other, near) and is_copy(one, other, away)
    moved = nib.Nifti1Image(np.asarray(copy.image.dataobj), away @ copy.image.affine)
    assert is_copy(stacks[0], scan_of(moved, stacks[0]), away @ near)


def test_the_same_numbers_in_voxels_of_another_size_are_no_copy(stacks: list[Scan]) -> None:
    image = stacks[0].image
    middle = nib.affines.from_matvec(np.eye(3), (np.array(image.shape) - 1) / 2)
    larger = image.affine @ middle @ np.diag([1.05, 1.05, 1, 1]) @ np.linalg.inv(middle)
    assert not is_copy(
        stacks[0], scan_of(nib.Nifti1Image(image.dataobj, larger), stacks[0]), np.eye(4)
    )


@pytest.mark.parametrize("level", [0.01, 0.03])
def test_repeats_are_no_copies(stacks: list[Scan], level: float) -> None:
    random, first = np.random.default_rng(0), stacks[0]
    clean = ndimage.gaussian_filter(np.asarray(first.image.dataobj, dtype=np.float32), 0.8)
    sigma = level * range_of(first)
    repeats = [
        scan_of(nib.Nifti1Image(clean + random.normal(0, sigma, clean.shape), first.image.affine),
                first)
        for _ in range(2)
    ]  # fmt: skip
    assert not is_copy(*repeats, np.eye(4)) and not is_copy(stacks[0], stacks[1], np.eye(4))


def test_of_a_scan_and_a_part_of_it_the_whole_stays(stacks: list[Scan]) -> None:
    image = cut(stacks[0].image)
    part = restored("half", image, stacks[0].acquisition)
    result = combine([part, stacks[0]], ZOOMS)
    assert [item.kept for item in result.scans] == [False, True]
    assert result.scans[0].reason == "is a part of axial"
    assert "Nothing was combined" in result.warnings[0]


TORN = [4, 9, 13, 16]


def test_dark_slices_are_found(stacks: list[Scan], without_third: Combined) -> None:
    def darken(data: np.ndarray) -> np.ndarray:
        data[TORN] *= 0.4
        return data

    result = combine([*stacks[:2], changed(stacks[2], "torn", darken)], ZOOMS)
    assert result.scans[2].dark == TORN and result.scans[2].agreement > SAME_HEAD
    assert not result.scans[0].dark and not result.scans[1].dark
    assert error(result.image) < 0.95 * error(without_third.image)


def test_moved_slices_are_found(stacks: list[Scan], without_third: Combined) -> None:
    def jump(data: np.ndarray) -> np.ndarray:
        for k in TORN:  # 3.6 mm in plane
            data[k] = ndimage.shift(
                data[k], (1.5, -1.5 if k % 2 else 1.5), order=3, mode="nearest"
            )
        return data

    result = combine([*stacks[:2], changed(stacks[2], "torn", jump)], ZOOMS)
    assert result.scans[2].dark == TORN
    assert error(result.image) < 0.95 * error(without_third.image)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_bad_slice_is_filled_from_whole_ones_alone(axis: int) -> None:
    """A ramp over the slices; those of less than full weight do not fill one another."""
    weights = np.array([0.5, 1, 1, 0, 0.4, 1, 0.9])
    ramp = np.broadcast_to(np.arange(7.0)[:, None, None], (7, 3, 4)).copy()
    torn = np.where(weights[:, None, None] < 1, -9.0, ramp)
    filled = np.moveaxis(_from_beside(np.moveaxis(torn, 0, axis), weights, axis), axis, 0)
    np.testing.assert_allclose(filled[:, 0, 0], [1, 1, 2, 3, 4, 5, 5], rtol=1e-6)


def test_mending_a_result_is_restoring_the_mended_scan() -> None:
    """Slices of weight 0 and 0.4 become like those beside them, wholly and to 60 %."""
    data = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32)
    weights, acquisition = np.array([1, 1, 0, 1, 0.4, 1, 1]), Acquisition.uniform("box")
    coarse, fine = (1.0, 1.0, 3.0), (1.0, 1.0, 1.0)
    operator = Operator.between((9, 8, 21), fine, data.shape, coarse, acquisition)

    def single(values: np.ndarray) -> np.ndarray:
        return initial_estimate(torch.from_numpy(values), operator, coarse, fine).numpy()

    better = data.copy()
    better[:, :, 2] = data[:, :, 1:4:2].mean(2)
    better[:, :, 4] = 0.4 * data[:, :, 4] + 0.6 * data[:, :, 3:6:2].mean(2)
    axes = Acquisition((Axis("kspace"), Axis("kspace"), Axis("box")))
    scan = Scan(
        "a", nib.Nifti1Image(data, np.diag([*coarse, 1])), axes,
        nib.Nifti1Image(single(data) + 5, np.diag([*fine, 1])), noise=3.0,
    )  # fmt: skip
    view: Any = SimpleNamespace(scan=scan, observation=SimpleNamespace(operator=operator))
    made = mended(view, weights)
    assert np.asarray(made.single.dataobj) == pytest.approx(single(better) + 5, abs=1e-4)
    assert made.image is scan.image and made.noise == 3
    assert np.array_equal(made.single.affine, scan.single.affine)


def test_sums_do_not_depend_on_threads() -> None:
    values = torch.randn(40, 50, 60, generator=torch.Generator().manual_seed(0)) ** 3
    found, threads = set(), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.add(total(values))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_field_of_view_ends_at_the_faces_of_its_voxels() -> None:
    grid = Grid((4, 5, 6), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert coverage(grid, grid, np.eye(4)).all()
    finer = np.diag([1.0, 1.0, 1.0, 1.0])
    finer[:3, 3] = -1.5  # one voxel of the frame outside, then the first of the scan
    inside = coverage(Grid((10, 12, 14), finer), grid, np.eye(4))
    assert inside.sum() == 8 * 10 * 12 and inside[1:-1, 1:-1, 1:-1].all()


def test_a_scan_that_reads_as_very_quiet_is_not_trusted_that_much(stacks: list[Scan]) -> None:
    noisy = [replace(scan, noise=0.03 * range_of(scan)) for scan in stacks]
    noisy[2] = replace(noisy[2], noise=0.001 * range_of(stacks[2]))
    shares = [scan.noise / range_of(scan) for scan in _not_too_quiet(noisy) if scan.noise]
    assert shares == pytest.approx([0.03, 0.03, QUIETEST * 0.03])


def test_a_slice_is_weighed_by_the_noise_that_smoothing_leaves() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, (400, 400))
    left = ndimage.gaussian_filter(noise, SMOOTHING, mode="wrap").std()
    residual, expected = np.zeros((2, 32, 32, 12))
    residual[:, :, 3] = (GOOD + BAD) / 2 * left
    weights = slice_weights(residual, expected, np.ones(expected.shape, bool), 2, 0.05)
    assert weights[3] == pytest.approx(0.5, abs=0.3)
    assert np.delete(weights, 3).min() == 1


def test_the_mean_is_weighted_by_the_inverse_of_the_variance(stacks: list[Scan]) -> None:
    view = Setting(grid_of(stacks[0].single), 1.0).view(stacks[0], np.eye(4), None)
    views = [
        replace(
            view, restored=torch.full((2, 2, 2), value), variance=torch.full((2, 2, 2), variance),
            trust=torch.ones(2, 2, 2),
        )
        for value, variance in ((1.0, 0.01), (2.0, 0.04))
    ]  # fmt: skip
    mean, variance = mean_of(views)
    assert torch.allclose(mean, torch.tensor(1.2)) and torch.allclose(
        variance, torch.tensor(0.008)
    )


def test_without_a_map_of_the_error_the_variance_is_of_a_usual_one_and_of_the_noise(
    stacks: list[Scan],
) -> None:
    scale = range_of(stacks[0])
    scan = replace(stacks[0], noise=0.05 * scale)
    setting = Setting(grid_of(scan.single), scale)
    first = setting.view(scan, np.eye(4), None)
    assert torch.allclose(first.variance, torch.tensor(UNKNOWN_ERROR**2 + 0.05**2))
    # Of a scan that is half as bright as the first one, the noise is twice as large.
    bright = replace(first, restored=2 * first.restored)
    second = setting.view(scan, np.eye(4), bright)
    assert second.brightness == pytest.approx(0.5, rel=0.05)
    wanted = UNKNOWN_ERROR**2 + (0.05 / second.brightness) ** 2
    assert torch.allclose(second.variance, torch.tensor(wanted))


def test_the_bridge_between_two_ends_has_equal_steps() -> None:
    """So the periodic line has no jump that would ring into the head."""
    line = torch.linspace(0, 6, 7)[:, None, None].expand(7, 2, 3)
    side = _Side(first=0, last=7, before=2, after=3, target=2, size=7)
    bridged = _bridge(line, 0, side)[:, 0, 0]
    steps = torch.diff(torch.cat([bridged[8:], bridged[:3]]))  # the last voxel to the first
    assert len(bridged) == 12 and torch.allclose(steps, torch.full((6,), -1.0))


def test_weights_of_slices_lie_where_the_slices_do() -> None:
    """The frame begins two and a half slices into the scan, and runs against its slices."""
    to_scan = np.diag([1.0, 1.0, -0.5, 1.0])
    to_scan[2, 3] = 2.5
    found = weights_on_frame(np.array([0.0, 1.0, 2.0, 3.0]), 2, to_scan, (2, 3, 7))
    assert found.shape == (2, 3, 7)
    assert np.allclose(found, [2.5, 2.0, 1.5, 1.0, 0.5, 0.0, 0.0])


def test_a_slice_that_shows_little_of_the_head_keeps_its_weight() -> None:
    """A tenth of the middle slice's voxels: its edge is no reason to leave it out."""
    residual, expected = np.zeros((2, 32, 32, 12))
    inside = np.ones(expected.shape, bool)
    inside[:, :, 0] = False
    inside[:10, :10, 0] = True
    residual[:, :, 0] = residual[:, :, 6] = 1.0
    weights = slice_weights(residual, expected, inside, 2, 0.05)
    assert weights[0] == 1 and weights[6] == 0
