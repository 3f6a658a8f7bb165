# SPDX-License-Identifier: Apache-2.0
"""Parts of the combination against closed forms and loops, on uneven grids."""

from dataclasses import replace
from itertools import product

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_moediff.combination import copies
from bids_moediff.combination.alignment import (
    NO_MOVE,
    Alignment,
    _agreement,
    _centre,
    _correlation,
    _largest_set,
    _median_correlation,
    correlations,
    displacement,
)
from bids_moediff.combination.copies import _blocks, _difference, _shared_voxels, is_copy
from bids_moediff.combination.estimate import CONVERGED, joint_estimate
from bids_moediff.combination.frame import (
    Grid,
    coverage,
    frame_zooms,
    nearest_axes,
    permuted_map,
    union_grid,
)
from bids_moediff.combination.observation import Observation
from bids_moediff.combination.resampling import (
    Resampler,
    _bridge,
    _Side,
    _unbridge,
    fast_odd_length,
)
from bids_moediff.combination.shading import (
    DARKEST,
    STRONGEST,
    fit_shading,
    polynomial,
    shading_map,
)
from bids_moediff.combination.slice_weights import (
    BAD,
    GOOD,
    SMOOTHING,
    along,
    slice_axis,
    slice_weights,
    weights_on_frame,
)
from bids_moediff.combination.view import (
    LEAST_NOISE,
    Scan,
    range_of,
)
from bids_moediff.errors import ImageError
from bids_moediff.imaging.acquisition import Acquisition, Axis, Operator

SLICES = Acquisition((Axis("kspace"), Axis("box"), Axis("kspace")))


def affine(degrees: list[float], zooms: list[float], shift: list[float]) -> np.ndarray:
    turned = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return nib.affines.from_matvec(turned @ np.diag(zooms), shift)


# Slices


def test_slices_are_weighed_by_their_misfit_over_noise_and_the_usual_share_of_the_signal() -> None:
    """Slices of one value: smoothing in plane leaves them, so that the weights are known."""
    signal = np.array([0.2, 0.5, 0.8, 0.4, 0.6, 0.3, 0.7])
    misfit = np.array([0.03, 0.11, 0.12, 0.095, 0.08, 0.05, 0.3])
    sigma = 0.4
    left = sigma / (2 * np.sqrt(np.pi) * SMOOTHING)
    share = np.median(np.maximum(misfit**2 - left**2, 0) / signal**2)
    assert share > 0
    ratio = misfit / np.sqrt(left**2 + share * signal**2)
    wanted = np.clip((BAD - ratio) / (BAD - GOOD), 0, 1)
    for axis in range(3):
        shape = [11, 9, 10]
        shape[axis] = 7
        fill = (
            np.broadcast_to(along(signal, axis), shape),
            np.broadcast_to(along(misfit, axis), shape),
        )
        found = slice_weights(fill[1], fill[0], np.ones(shape, bool), axis, sigma)
        assert found == pytest.approx(wanted, abs=1e-4)
    assert 0 in wanted and 1 in wanted


def test_a_slice_between_good_and_bad_counts_in_part() -> None:
    misfit = np.full(9, 0.1)
    misfit[2], misfit[4], misfit[6] = 0.1 * GOOD, 0.1 * (GOOD + BAD) / 2, 0.1 * BAD
    full = np.broadcast_to(misfit[:, None, None], (9, 8, 7))
    found = slice_weights(full, np.ones(full.shape), np.ones(full.shape, bool), 0, 0.0)
    assert found == pytest.approx([1, 1, 1, 1, 0.5, 1, 0, 1, 1], abs=1e-4)


def test_voxels_outside_the_head_take_no_part_in_a_weight() -> None:
    """Half the plane is outside, and holds nonsense."""
    generator = np.random.default_rng(0)
    residual, expected = generator.normal(0, 1, (16, 20, 8)), 1 + generator.random((16, 20, 8))
    residual[:, :, 3] *= 9
    inside = np.ones(residual.shape, bool)
    inside[9:] = False
    wild = np.where(inside, residual, 50.0), np.where(inside, expected, -70.0)
    empty = np.where(inside, residual, 0.0), np.where(inside, expected, 0.0)
    first = slice_weights(*wild, inside, 2, 0.1)
    assert np.array_equal(first, slice_weights(*empty, inside, 2, 0.1))
    assert first[3] == 0 and np.delete(first, 3).mean() > 0.8
    # Sums are over the voxels inside: a blank margin changes no weight.
    wider = [np.pad(part, ((0, 0), (0, 30), (0, 0))) for part in (*empty, inside)]
    assert slice_weights(wider[0], wider[1], wider[2], 2, 0.1) == pytest.approx(first, abs=0.35)


@pytest.mark.parametrize(("shape", "weighed"), [((7, 7, 6), False), ((5, 10, 6), True)])
def test_slices_of_fewer_than_fifty_voxels_count_in_full(
    shape: tuple[int, int, int], weighed: bool
) -> None:
    residual = np.full(shape, 0.1)
    residual[:, :, 2] = 1
    found = slice_weights(residual, np.ones(shape), np.ones(shape, bool), 2, 0.0)
    assert (found[2] == 0) == weighed and np.delete(found, 2).min() == 1


@pytest.mark.parametrize(("slices", "weighed"), [(2, False), (3, True)])
def test_at_least_three_slices_are_compared(slices: int, weighed: bool) -> None:
    residual = np.full((10, 10, slices), 0.1)
    residual[:, :, 1] = 1
    found = slice_weights(residual, np.ones(residual.shape), np.ones(residual.shape, bool), 2, 0)
    assert (found[1] == 0) == weighed


def test_a_slice_needs_three_tenths_of_the_usual_voxels() -> None:
    residual, expected = np.full((20, 20, 8), 0.1), np.ones((20, 20, 8))
    residual[:, :, [0, 7]] = 5.0
    inside = np.ones(residual.shape, bool)
    inside[:, :, [0, 7]] = False
    inside[:12, :10, 0] = True  # 120 of 400
    inside[:17, :7, 7] = True  # 119
    found = slice_weights(residual, expected, inside, 2, 0.0)
    assert found[0] == 0 and found[1:].min() == 1


def test_slices_are_across_the_axis_with_a_slice_profile() -> None:
    assert slice_axis(SLICES) == 1
    assert slice_axis(Acquisition((Axis("none"), Axis("kspace"), Axis("gaussian")))) == 2
    assert slice_axis(Acquisition.uniform("kspace")) is None
    assert slice_axis(Acquisition.uniform("none")) is None


def test_weights_broadcast_along_their_axis() -> None:
    weights = np.array([0.1, 0.7, 1.0])
    assert [along(weights, axis).shape for axis in range(3)] == [(3, 1, 1), (1, 3, 1), (1, 1, 3)]
    assert along(weights, 1, 4).shape == (1, 3, 1, 1) and along(weights, 0).dtype == np.float32
    assert along(np.array([2.0]), None).shape == (1, 1, 1)


def test_weights_on_an_oblique_frame_are_interpolated_at_every_voxel() -> None:
    weights = np.array([0.2, 1.0, 0.4, 0.9])
    to_scan = affine([20, -15, 10], [0.5, 0.7, 0.4], [0.3, -0.6, 0.8])
    for axis in range(3):
        found = weights_on_frame(weights, axis, to_scan, (5, 4, 6))
        assert found.dtype == np.float32
        for place in np.ndindex(5, 4, 6):
            at = (to_scan @ [*place, 1])[axis]
            assert found[place] == pytest.approx(np.interp(at, range(4), weights), abs=1e-6)


# Grids


def test_axes_are_permuted_and_flipped_as_the_voxels_are() -> None:
    """Every permutation and flip of an oblique grid: voxels keep their place in the world."""
    shape = (4, 5, 6)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)):
        for signs in product((1, -1), repeat=3):
            linear = np.zeros((3, 3))
            for target, source in enumerate(axes):
                linear[source, target] = signs[target]
            linear = Rotation.from_euler("xyz", [9, -7, 5], degrees=True).as_matrix() @ linear
            found, flips = nearest_axes(linear)
            assert tuple(found) == axes
            assert flips == [k for k in range(3) if signs[k] < 0]
            to_source = nib.affines.from_matvec(linear, [0.4, 1.1, -0.3])
            inner = permuted_map(to_source, found, flips, shape)
            index = np.random.default_rng(0).integers(0, 3, 3)
            at, there = to_source @ [*index, 1], inner @ [*index, 1]
            for k, source in enumerate(axes):
                wanted = at[source] if signs[k] > 0 else shape[source] - 1 - at[source]
                assert there[k] == pytest.approx(wanted)
            assert np.array_equal(inner[3], [0, 0, 0, 1])


def test_the_nearest_axes_do_not_depend_on_the_size_of_source_voxels() -> None:
    """Rows are compared by direction: voxels of 0.1 mm would otherwise take the first choice."""
    linear = np.array([[0.9, 0.3, 0.0], [4.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    assert nearest_axes(linear) == ([0, 1, 2], [])
    assert nearest_axes(linear[[1, 0, 2]]) == ([1, 0, 2], [])


def test_the_common_grid_is_the_smallest_that_holds_both() -> None:
    """Whole voxels are added on each side; the axes and the corner are those of the first."""
    first = Grid((10, 8, 6), nib.affines.from_matvec(np.diag([1.0, 2.0, 3.0]), [5, -3, 2]))
    second = Grid((4, 3, 5), nib.affines.from_matvec(np.diag([2.0, 3.0, 1.0]), [4, 20, -8]))
    frame = union_grid([first, second], [np.eye(4), np.eye(4)], (1.0, 1.0, 1.5))
    # Faces of the first: 4.5 to 14.5, -4 to 12, 0.5 to 18.5;
    # of the second: 3 to 11, 18.5 to 27.5, -8.5 to -3.5.
    low = frame.affine[:3, 3] - [0.5, 0.5, 0.75]
    assert low == pytest.approx([2.5, -4, -8.5])
    assert frame.shape == (12, 32, 18)
    assert frame.affine[:3, :3] == pytest.approx(np.diag([1, 1, 1.5]))
    # A move of the second to where the first lies.
    move = nib.affines.from_matvec(np.eye(3), [-2.0, 22.5, -9.0])  # first's world to second's
    near = union_grid([first, second], [np.eye(4), move], (1.0, 1.0, 1.5))
    assert near.shape == (10, 16, 12)
    assert near.affine[:3, 3] == pytest.approx([5, -3.5, 1.25])
    # Less than a thousandth of a voxel beyond the face is rounding.
    for beyond, count in ((5e-4, 10), (2e-3, 11)):
        moved = Grid(first.shape, first.affine + np.eye(4)[[0]].T @ [[0, 0, 0, beyond]])
        assert union_grid([first, moved], [np.eye(4)] * 2, (1, 1, 1)).shape[0] == count
        moved = Grid(first.shape, first.affine - np.eye(4)[[0]].T @ [[0, 0, 0, beyond]])
        assert union_grid([first, moved], [np.eye(4)] * 2, (1, 1, 1)).shape[0] == count


def test_coverage_of_an_oblique_scan_voxel_by_voxel() -> None:
    frame = Grid((7, 8, 9), affine([4, -9, 13], [0.9, 1.1, 0.7], [-3, -4, -3]))
    grid = Grid((5, 4, 3), affine([-20, 6, 3], [1.3, 0.8, 1.9], [-2, -1.5, -2]))
    move = affine([5, 5, -8], [1, 1, 1], [0.3, -0.4, 0.6])
    to_scan = np.linalg.inv(grid.affine) @ move @ frame.affine
    found = coverage(frame, grid, move)
    assert 20 < found.sum() < found.size - 20
    for place in np.ndindex(frame.shape):
        at = (to_scan @ [*place, 1])[:3]
        assert found[place] == ((at > -0.5) & (at < np.array(grid.shape) - 0.5)).all()


def test_the_finest_voxels_of_all_scans_are_kept() -> None:
    affines = [np.diag([1.0, 1.2, 5.0, 1]), np.diag([4.0, 0.5, 1.1, 1])[:, [1, 2, 0, 3]]]
    assert frame_zooms(affines, (0.8, 1.5, 2.0)) == pytest.approx((0.8, 0.5, 1.1))


def test_fast_lengths_are_odd_with_small_factors() -> None:
    wanted = [
        n for n in range(1, 700, 2) if not [
            p for p in range(17, n + 1) if n % p == 0 and all(p % q for q in range(2, p))
        ]
    ]  # fmt: skip
    for least in range(1, 600):
        assert fast_odd_length(least) == min(n for n in wanted if n >= least)


# Moves


@pytest.mark.parametrize("shift", [[0, 0, 0], [3, -2, 1], [-9, 8, -7], [40, -50, 60]])
def test_a_move_by_whole_voxels_copies_them(shift: list[int]) -> None:
    """Also where the target reaches beyond the source, or lies outside it altogether."""
    source = Grid((9, 8, 7), np.diag([1.1, 0.9, 1.3, 1.0]))
    target = Grid((8, 10, 6), source.affine @ nib.affines.from_matvec(np.eye(3), shift))
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(source.shape, generator=generator)
    resampler = Resampler(source, target)
    found = resampler.forward(volume)
    for place in np.ndindex(target.shape):
        at = tuple(np.array(place) + shift)
        if all(0 <= a < n for a, n in zip(at, source.shape, strict=True)):
            assert found[place] == pytest.approx(float(volume[at]), abs=1e-5)
    assert found.min() >= -1e-5 and found.max() <= 1 + 1e-5  # straight lines between the ends
    other = torch.rand(target.shape, generator=generator)
    back = float((resampler.adjoint(other) * volume).sum())
    assert float((found * other).sum()) == pytest.approx(back, rel=1e-5)


def test_a_scan_that_lies_in_the_other_half_of_a_large_source() -> None:
    """Only the part around the target is used, and its place is kept on all axes."""
    source = Grid((40, 44, 48), np.eye(4))
    ramp = torch.from_numpy(np.indices(source.shape).astype(np.float32))
    values = torch.sin(ramp[0] / 5) + torch.cos(ramp[1] / 6) + torch.sin(ramp[2] / 7)
    move = affine([6, -4, 5], [1, 1, 1], [0.3, -0.4, 0.2])
    target = Grid((10, 12, 8), nib.affines.from_matvec(np.eye(3), [20, 14, 25]))
    found = Resampler(source, target, move).forward(values).numpy()
    places = nib.affines.apply_affine(
        move @ target.affine, np.moveaxis(np.indices(target.shape), 0, -1)
    )
    x, y, z = np.moveaxis(places, -1, 0)
    assert np.abs(found - np.sin(x / 5) - np.cos(y / 6) - np.sin(z / 7)).max() < 3e-2


def test_a_voxel_volume_may_differ_by_a_hundredth() -> None:
    source = Grid((6, 6, 6), np.eye(4))
    for size, fits in ((1.009, True), (1.011, False), (0.991, True), (0.989, False)):
        target = Grid((6, 6, 6), np.diag([*[np.cbrt(size)] * 3, 1]))
        if fits:
            Resampler(source, target)
        else:
            with pytest.raises(ImageError, match="one grid"):
                Resampler(source, target)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_bridge_and_its_adjoint(axis: int) -> None:
    side = _Side(first=0, last=5, before=2, after=4, target=2, size=5)
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 4, 6]
    sizes[axis] = 5
    x = torch.randn(sizes, generator=generator)
    made = _bridge(x, axis, side)
    y = torch.randn(made.shape, generator=generator)
    assert made.shape[axis] == 11
    assert torch.equal(made.narrow(axis, 2, 5), x)
    assert float((made * y).sum()) == pytest.approx(
        float((x * _unbridge(y, axis, side)).sum()), abs=1e-4
    )


# The estimate


def observations(grid: Grid) -> list[Observation]:
    """Two scans of uneven noise, weights and shading, of which one is turned."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for axis, sigma in ((0, 0.1), (2, 0.2)):
        shape = list(grid.shape)
        shape[axis] //= 2
        zooms = [1.0, 1.0, 1.0]
        zooms[axis] = 2.0
        operator = Operator.between(
            grid.shape, (1, 1, 1), tuple(shape), tuple(zooms), Acquisition.uniform("box")
        )  # type: ignore[arg-type]
        move = affine([0, 0, 2.0 * axis], [1, 1, 1], [0.2 * axis, 0.1, 0])
        weights = torch.linspace(0.2, 1, shape[axis]).reshape(
            [shape[axis] if k == axis else 1 for k in range(3)]
        )
        shading = 0.8 + 0.4 * torch.rand(shape, generator=generator)
        measured = torch.randn(shape, generator=generator)
        found.append(
            Observation(measured, Resampler(grid, grid, move), operator, sigma, shading, weights)
        )
    return found


def dense(scan: Observation, grid: Grid) -> np.ndarray:
    columns = []
    for place in np.ndindex(grid.shape):
        volume = torch.zeros(grid.shape)
        volume[place] = 1
        made = scan.operator.forward(scan.resampler.forward(volume))
        columns.append((scan.shading * made).numpy().ravel())
    return np.stack(columns, axis=1).astype(float)


def test_the_estimate_is_the_solution_of_the_normal_equations() -> None:
    grid = Grid((6, 5, 4), np.eye(4))
    both = observations(grid)
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(grid.shape, generator=generator)
    spread = 0.2 + 0.5 * torch.rand(grid.shape, generator=generator)
    told: list[float] = []
    found = joint_estimate(start, spread, both, steps=60, discrepancy=0, progress=told.append)
    system = np.diag(1 / spread.numpy().ravel().astype(float) ** 2)
    right = system @ start.numpy().ravel()
    for scan in both:
        matrix = dense(scan, grid)
        power = np.broadcast_to(scan.weights.numpy(), scan.measured.shape).ravel() / scan.sigma**2
        system += matrix.T @ (power[:, None] * matrix)
        right += matrix.T @ (power * scan.measured.numpy().ravel())
    wanted = np.linalg.solve(system, right)
    close = found.volume.numpy().ravel() - wanted
    assert np.linalg.norm(close) < 2 * CONVERGED * np.linalg.norm(wanted - start.numpy().ravel())
    assert 3 < found.steps < 60 and told == [(k + 1) / 60 for k in range(found.steps)]
    for scan, misfit in zip(both, found.misfits, strict=True):
        rest = scan.measured.numpy().ravel() - dense(scan, grid) @ found.volume.numpy().ravel()
        weights = np.broadcast_to(scan.weights.numpy(), scan.measured.shape).ravel()
        wanted = np.sqrt((weights * rest**2).sum() / weights.sum()) / scan.sigma
        assert misfit == pytest.approx(wanted, rel=1e-3)
    # A step less than it needs, and it has used them all.
    assert joint_estimate(start, spread, both, steps=2, discrepancy=0).steps == 2
    # One number for the spread is that number everywhere.
    one = joint_estimate(start, 0.4, both, steps=5, discrepancy=0).volume
    same = joint_estimate(start, torch.full(grid.shape, 0.4), both, steps=5, discrepancy=0).volume
    assert torch.allclose(one, same, atol=1e-6)


def test_the_estimate_stops_at_the_wanted_residual_of_all_scans_together() -> None:
    grid = Grid((6, 5, 4), np.eye(4))
    both = observations(grid)
    start, spread = torch.zeros(grid.shape), torch.full(grid.shape, 0.5)

    def over_noise(misfits: list[float]) -> float:
        counts = [float(s.weights.expand_as(s.measured).sum()) for s in both]
        return float(np.sqrt(np.dot(counts, np.square(misfits)) / sum(counts)))

    before = over_noise([scan.misfit(scan.residual(start)) for scan in both])
    for goal in (0.95 * before, 0.85 * before):
        found = joint_estimate(start, spread, both, steps=40, discrepancy=goal)
        assert found.steps >= 1 and over_noise(found.misfits) == pytest.approx(goal, rel=1e-4)
    found = joint_estimate(start, spread, both, steps=40, discrepancy=1.01 * before)
    assert found.steps == 0 and torch.equal(found.volume, start)


def test_a_misfit_is_weighted_and_over_the_noise() -> None:
    scan = observations(Grid((6, 5, 4), np.eye(4)))[1]
    residual = torch.arange(6 * 5 * 2.0).reshape(6, 5, 2)
    weights = np.broadcast_to(scan.weights.numpy(), (6, 5, 2))
    wanted = np.sqrt((weights * residual.numpy() ** 2).sum() / weights.sum()) / 0.2
    assert scan.misfit(residual) == pytest.approx(wanted)
    nothing = replace(scan, weights=torch.zeros(1, 1, 1))
    assert nothing.misfit(residual) == 0


# Shading


def test_the_terms_of_a_shading_are_all_monomials_up_to_its_degree() -> None:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (3, 4, 5)], indexing="ij")
    found = polynomial((3, 4, 5))
    wanted = [1 + 0 * x, z, z**2, y, y * z, y**2, x, x * z, x * y, x**2]
    assert found.dtype == np.float32 and found == pytest.approx(np.stack(wanted), abs=1e-6)
    assert len(polynomial((3, 4, 5), 1)) == 4


def test_a_shading_is_limited_to_three_times_its_mean() -> None:
    slope = np.zeros(10)
    slope[0], slope[6] = 2.0, 9.0
    found = shading_map(slope, (11, 2, 3))
    wanted = np.clip(2 + 9 * np.linspace(-1, 1, 11), 2 / STRONGEST, 2 * STRONGEST)
    assert found == pytest.approx(np.broadcast_to(wanted[:, None, None], (11, 2, 3)))
    assert found.dtype == np.float32


def test_shading_is_read_where_voxels_count_and_are_bright() -> None:
    """Voxels without weight, and dark ones, may hold anything."""
    shape = (24, 20, 16)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    truth = 1.1 + 0.2 * x - 0.15 * y * z + 0.1 * z**2
    expected = np.ones(shape)
    measured = truth * expected
    weights = np.ones(shape)
    measured[:6], weights[:6] = 7.0, 0.0
    found = shading_map(fit_shading(measured, expected, weights), shape)
    assert np.abs(found - truth)[6:].max() < 0.03
    # Voxels of half the weight count half: two values in turn give the weighted mean ratio.
    two = np.where(np.indices(shape).sum(axis=0) % 2, 1.0, 2.0)
    weights = np.where(two == 2, 0.5, 1.0)
    assert fit_shading(two, np.ones(shape), weights)[0] == pytest.approx(2 / 1.5, abs=0.01)


@pytest.mark.parametrize(("level", "sigma", "read"), [
    (1.1 * DARKEST, 0.0, True), (0.9 * DARKEST, 0.0, False),
    (0.3, 0.11, True), (0.3, 0.13, False),
])  # fmt: skip
def test_dark_or_noisy_voxels_tell_nothing_of_the_shading(
    level: float, sigma: float, read: bool
) -> None:
    expected = np.full((10, 9, 8), level)
    found = fit_shading(1.0 * expected * 1.0, expected * 1.0, np.ones(expected.shape), sigma)
    assert found == pytest.approx([1] + [0] * 9, abs=1e-4)
    found = fit_shading(expected * 0.99, expected * 1.01, np.ones(expected.shape), sigma)
    assert (found[0] != 1) == read


@pytest.mark.parametrize(("voxels", "read"), [(199, False), (200, True)])
def test_a_shading_needs_twenty_voxels_a_term(voxels: int, read: bool) -> None:
    weights = np.zeros(8 * 8 * 8)
    weights[:voxels] = 1
    found = fit_shading(np.full((8, 8, 8), 0.9), np.full((8, 8, 8), 0.6), weights.reshape(8, 8, 8))
    assert found[0] == pytest.approx(1.5 if read else 1.0, abs=0.01)


def test_of_a_large_scan_a_part_of_the_voxels_is_read() -> None:
    shape = (64, 60, 58)  # 222 720 voxels: every second along each axis
    x = np.linspace(-1, 1, 64)[:, None, None]
    expected = np.full(shape, 0.5, np.float32)
    measured = expected * (1 + 0.3 * x).astype(np.float32)
    found = shading_map(fit_shading(measured, expected, np.ones(shape)), shape)
    assert np.abs(found - 1 - 0.3 * x).max() < 0.02


# Copies


def scan(data: np.ndarray, where: np.ndarray, noise: float | None = 1.0, name: str = "a") -> Scan:
    image = nib.Nifti1Image(data.astype(np.float32), where)
    return Scan(name, image, SLICES, image, noise=noise)


def test_blocks_are_whole_and_hold_their_own_voxels() -> None:
    data = np.random.default_rng(0).random((9, 3, 14))
    wanted = [
        data[4 * i : 4 * i + 4, :, 4 * k : 4 * k + 4].ravel() for i in range(2) for k in range(3)
    ]
    assert np.array_equal(_blocks(data), wanted)


def test_the_difference_of_copies_is_what_a_straight_line_leaves() -> None:
    """In each block five unknowns, fitted by least squares; the median over the blocks."""
    generator = np.random.default_rng(1)
    second = 100 + 40 * generator.random((12, 16, 20))
    ramp = 0.8 + 0.02 * np.indices(second.shape).sum(axis=0)
    assert _difference(ramp * second + 7, second, 10) < 1e-2
    noisy = ramp * second + 7 + generator.normal(0, 3, second.shape)
    wanted = []
    for corner in product(range(0, 12, 4), range(0, 16, 4), range(0, 20, 4)):
        part = tuple(slice(c, c + 4) for c in corner)
        x, y = second[part].ravel(), noisy[part].ravel()
        places = np.indices((4, 4, 4)).reshape(3, -1)
        terms = np.stack([np.ones(64), x, *(x * p for p in places)], axis=1)
        rest = y - terms @ np.linalg.lstsq(terms, y, rcond=None)[0]
        wanted.append(np.sqrt((rest**2).mean()))
    assert _difference(noisy, second, 10) == pytest.approx(np.median(wanted), rel=1e-3)
    # Blocks that are dark in the first are left out, whatever they hold.
    dark = noisy.copy()
    dark[:, :8] = np.arange(20) % 2
    rest = np.array(wanted).reshape(3, 4, 5)[:, 2:]
    assert _difference(dark, second, 10) == pytest.approx(np.median(rest), rel=1e-3)
    assert _difference(dark, second, 1000) == np.inf


def test_of_many_blocks_an_even_share_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    second = 100 + 40 * generator.random((8, 8, 48))
    noisy = second + generator.normal(0, 3, second.shape)
    monkeypatch.setattr(copies, "MOST_BLOCKS", 24)  # of 48: every second, from the first
    wanted = np.median([
        _difference(noisy[4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4],
                    second[4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * k : 4 * k + 4], 1)
        for i, j, k in product(range(2), range(2), range(0, 12, 2))
    ])  # fmt: skip
    assert _difference(noisy, second, 1) == pytest.approx(wanted, rel=1e-6)


def test_voxels_that_two_scans_share() -> None:
    """The other one begins 2, 0 and 3 voxels later, runs backwards and has other axes."""
    data = np.random.default_rng(0).random((40, 12, 60))
    where = affine([10, -8, 6], [1.1, 0.9, 1.4], [-30, 4, 17])
    part = nib.Nifti1Image(data, where).slicer[2:, :, 3:]
    other = part.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    first, second = scan(data, where), scan(np.asarray(other.dataobj), other.affine)
    found = _shared_voxels(first, second, np.eye(4))
    assert found is not None
    assert np.array_equal(found[0], data[2:, :, 3:].astype(np.float32))
    assert np.array_equal(found[0], found[1])
    back = _shared_voxels(second, first, np.eye(4))
    assert back is not None and np.array_equal(back[0], back[1])
    # The same voxels elsewhere in the world, with the move there.
    move = affine([3, 5, -20], [1, 1, 1], [50, -20, 9])
    away = scan(np.asarray(other.dataobj), move @ other.affine)
    moved = _shared_voxels(first, away, move)
    assert moved is not None and np.array_equal(moved[0], moved[1])
    assert _shared_voxels(first, away, np.eye(4)) is None


@pytest.mark.parametrize(
    ("shift", "shared"), [(2, True), (3, False), (-2, True), (-3, False), (30, False)]
)
def test_copies_share_nine_tenths_of_the_smaller(shift: int, shared: bool) -> None:
    data = np.random.default_rng(0).random((20, 6, 7))
    there = nib.affines.from_matvec(np.eye(3), [0, 0, 0])
    for axis in range(3):
        turned = np.moveaxis(data, 0, axis)
        move = there.copy()
        move[axis, 3] = shift
        found = _shared_voxels(scan(turned, there), scan(turned, there), move)
        assert (found is not None) == shared
        if found is not None:
            assert found[0].shape[axis] == 18
            assert np.array_equal(
                found[0],
                turned.take(range(max(0, -shift), min(20, 20 - shift)), axis).astype(np.float32),
            )


@pytest.mark.parametrize(("size", "same"), [(1.009, True), (1.011, False), (0.9905, True)])
def test_copies_have_voxels_of_one_size(size: float, same: bool) -> None:
    data = np.random.default_rng(0).random((12, 8, 7))
    for axis in range(3):
        larger = np.eye(4)
        larger[axis, axis] = size
        found = _shared_voxels(scan(data, np.eye(4)), scan(data, larger), np.eye(4))
        assert (found is not None) == same


def head(shape: tuple[int, int, int], level: float = 100.0) -> np.ndarray:
    """A bright ellipsoid of uneven tissue in dark air."""
    axes = np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 1
    return np.where(inside, level * (0.7 + 0.3 * np.sin(7 * axes[0]) * np.cos(5 * axes[2])), 0)


@pytest.mark.parametrize(("share", "copied"), [(0.25, True), (0.35, False)])
def test_a_copy_differs_by_less_than_three_tenths_of_the_noise(share: float, copied: bool) -> None:
    generator = np.random.default_rng(0)
    data = head((32, 36, 28)) + generator.normal(0, 0.2, (32, 36, 28))
    found = data + generator.normal(0, share * 2.0 * np.sqrt(64 / 59), data.shape)
    one, other = scan(data, np.eye(4), 2.0), scan(found, np.eye(4), 50.0)
    away = affine([0, 0, 0], [1, 1, 1], [500, 0, 0])
    assert is_copy(one, other, np.eye(4)) == copied
    assert is_copy(one, other, away) == copied  # the headers are right
    # A scan without noise is compared with the least that is assumed.
    silent = replace(one, noise=0.0)
    near = data + generator.normal(0, 0.2 * LEAST_NOISE * range_of(one), data.shape)
    assert is_copy(silent, scan(near, np.eye(4), 9.0), np.eye(4))


# Registration


def test_a_displacement_is_the_mean_way_of_the_head() -> None:
    data = np.zeros((24, 20, 28), np.float32)
    data[4:13, 8:17, 12:21] = 7  # every fourth voxel: 4, 8, 12 and 8, 12, 16 and 12, 16, 20
    where = affine([20, 10, -5], [1.0, 1.5, 0.8], [-7, 3, 12])
    image = nib.Nifti1Image(data, where)
    one = affine([3, -2, 4], [1, 1, 1], [1, 2, -3])
    other = affine([-1, 2, 1], [1, 1, 1], [0.5, 0, 0.3])
    points = [
        where @ [*place, 1] for place in product((4, 8, 12), (8, 12, 16), (12, 16, 20))
    ]  # fmt: skip
    for first, second in ((one, other), (one, np.eye(4))):
        wanted = np.mean([np.linalg.norm(((first - second) @ p)[:3]) for p in points])
        assert displacement(image, first, second) == pytest.approx(wanted)
    assert displacement(image, one) == displacement(image, one, NO_MOVE)
    assert displacement(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), where), one) == 0
    centre = where @ [8, 12, 16, 1]
    assert _centre(image) == pytest.approx(centre[:3])
    blank = nib.Nifti1Image(np.zeros((8, 6, 4), np.float32), where)
    assert _centre(blank) == pytest.approx((where @ [4, 3, 2, 1])[:3])


def test_only_voxels_over_a_tenth_of_the_brightest_are_the_head() -> None:
    data = np.full((16, 16, 16), 9.0, np.float32)  # less than a tenth
    data[4, 8, 12] = data[8, 8, 12] = 100.0
    image = nib.Nifti1Image(data, np.eye(4))
    assert _centre(image) == pytest.approx([6, 8, 12])
    turn = affine([0, 0, 90], [1, 1, 1], [0, 0, 0])
    assert displacement(image, turn) == pytest.approx(
        np.sqrt(2) * (np.hypot(4, 8) + np.hypot(8, 8)) / 2
    )


def test_the_largest_group_of_scans_that_agree() -> None:
    def agrees(count: int, *pairs: tuple[int, int]) -> np.ndarray:
        found = np.eye(count, dtype=bool)
        for i, j in pairs:
            found[i, j] = found[j, i] = True
        return found

    assert _largest_set(agrees(3)) == [0]
    assert _largest_set(agrees(4, (1, 3))) == [1, 3]
    assert _largest_set(agrees(6, (0, 1), (2, 4), (4, 3))) == [2, 3, 4]
    assert _largest_set(agrees(5, (0, 4), (1, 2))) == [0, 4]
    assert _largest_set(agrees(6, (0, 5), (5, 2), (2, 1))) == [0, 1, 2, 5]
    assert _agreement(np.array([0.3, 1.0, 0.2, 0.5]), 1) == 0.5


def test_the_moves_of_kept_scans_are_replaced() -> None:
    known = Alignment([np.eye(4) * k for k in range(4)], [0.9] * 4, [1, 3], 0.7)
    found = known.moved([np.full((4, 4), 7.0), np.full((4, 4), 8.0)])
    assert [move[0, 0] for move in found.moves] == [0, 7, 2, 8]
    assert (found.agreement, found.kept, found.disagreement) == ([0.9] * 4, [1, 3], 0.7)
    assert known.moves[1][0, 0] == 1


def test_the_correlation_is_the_median_over_blocks_that_are_seen() -> None:
    generator = np.random.default_rng(0)
    one, noise = generator.random((2, 12, 10, 9))
    share = np.repeat([0.1, 0.8, 0.3, 2.0], 3)[:, None, None]
    other = one + share * noise
    inside = np.ones(one.shape, bool)
    inside[6:9, :, :6] = False  # of the blocks there half is seen, or nothing
    inside[0, :, 0] = False  # of those there most
    block = (3, 5, 4)
    values = []
    for i, j, k in product(range(4), range(2), range(2)):
        part = tuple(slice(n * c, n * (c + 1)) for n, c in zip(block, (i, j, k), strict=True))
        used = inside[part]
        if used.sum() > 30:
            values.append(np.corrcoef(one[part][used], other[part][used])[0, 1])
    assert len(values) == 12
    found = _median_correlation(one, other, inside, block)
    assert found == pytest.approx(np.median(values))
    # No block fits: the whole is compared if it is large enough.
    large = (16, 16, 16)
    assert _median_correlation(one, other, inside, large) == 0  # 984 voxels
    more, there = np.tile(one, (1, 1, 2)), np.tile(other, (1, 1, 2))
    wanted = np.corrcoef(more.ravel(), there.ravel())[0, 1]
    assert _median_correlation(more, there, np.ones(more.shape, bool), large) == pytest.approx(
        wanted
    )
    assert _correlation(np.ones(5), np.arange(5.0)) == 0


def test_images_are_compared_where_a_move_puts_them() -> None:
    generator = np.random.default_rng(0)
    data = np.zeros((60, 66, 54), np.float32)
    coarse = generator.random((12, 13, 11))
    data[6:54, 7:59, 5:49] = np.kron(coarse, np.ones((4, 4, 4))) + 0.5
    where = affine([0, 0, 0], [1.5, 1.4, 1.6], [-40, -50, -30])
    move = affine([0, 0, 0], [1, 1, 1], [12, -9, 15])
    one = nib.Nifti1Image(data, where)
    moved = nib.Nifti1Image(2 * data, move @ where)
    other = nib.Nifti1Image(np.ascontiguousarray(data[::-1]), where)
    found = correlations([one, moved, other], [np.eye(4), move, np.eye(4)])
    assert np.array_equal(found, found.T) and np.diag(found).tolist() == [1, 1, 1]
    assert found[0, 1] > 0.999 and max(found[0, 2], found[1, 2]) < 0.9
    assert correlations([one, moved], [np.eye(4)] * 2)[0, 1] < 0.5


@pytest.mark.parametrize(("noise", "weight"), [(2.0, 1.0), (2.2, 0.5), (2.4, 0.0)])
def test_a_slice_counts_by_its_noise_over_the_expected_one(noise, weight):
    """White noise that is smoothed in plane keeps 1 / (2 sqrt(pi) width) of its deviation."""
    random = np.random.default_rng(0)
    residual = 3.0 * random.standard_normal((90, 100, 9))
    smoothed = ndimage.gaussian_filter(residual, (2.0, 2.0, 0))[..., 4].std()
    assert smoothed == pytest.approx(3 / (2 * np.sqrt(np.pi) * 2), rel=0.05)
    residual[..., 4] *= noise * 3 / (2 * np.sqrt(np.pi) * 2) / smoothed
    inside = np.ones(residual.shape, bool)
    found = slice_weights(residual, np.zeros(residual.shape), inside, 2, 3.0)
    assert found[4] == pytest.approx(weight, abs=0.03)
    assert (np.delete(found, 4) == 1).all()
