# SPDX-License-Identifier: Apache-2.0
"""Parts of the imaging room against closed forms and loops, on uneven grids."""

from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.metrics import structural_similarity

from bids_moediff.errors import ImageError, UsageError
from bids_moediff.imaging import masks, metrics, reference, registration, standard_space
from bids_moediff.imaging.acquisition import Acquisition, Axis
from bids_moediff.imaging.noise import Noise, air_noise, estimate_noise, tissue_noise
from bids_moediff.imaging.protocols import (
    DEFAULT_KEYS,
    LOW_FIELD,
    PROTOCOLS,
    STATED,
    UNTOLD,
    Protocol,
    parse_protocol,
)

SHAPE = (14, 17, 12)


def turned(degrees: list[float], zooms: list[float], shift: list[float]) -> np.ndarray:
    matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return nib.affines.from_matvec(matrix @ np.diag(zooms), shift)


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image, a truth, and a mask without symmetry."""
    generator = np.random.default_rng(0)
    truth = 100 + 30 * ndimage.gaussian_filter(generator.standard_normal(SHAPE), 0.6)
    image = truth + 5 * generator.standard_normal(SHAPE) * np.arange(1, 13) / 12
    mask = generator.random(SHAPE) > 0.2
    mask[:2] = mask[:, -3:] = mask[:, :, :1] = False
    return image.astype(np.float32), truth.astype(np.float32), mask


# Metrics


def test_slow_figures_as_a_whole() -> None:
    image, truth, mask = volumes()
    ratios = (1.0, 2.5, 1.6)
    window = ndimage.gaussian_filter(mask.astype(np.float32), 2.0)
    first, second = (np.fft.fftn(data * window) for data in (image, truth))
    ours = theirs = both = 0.0
    for place in np.ndindex(SHAPE):
        waves = [min(k, n - k) / n for k, n in zip(place, SHAPE, strict=True)]
        # scipy's real transform holds half of the last axis: each plane of it counts once.
        if place[2] > SHAPE[2] // 2 or max(waves) > 0.45:
            continue
        if any(wave > 0.5 / ratio for wave, ratio in zip(waves, ratios, strict=True)):
            ours += abs(first[place]) ** 2
            theirs += abs(second[place]) ** 2
            both += (first[place] * second[place].conjugate()).real
    flicker = []
    for axis in range(3):
        pairs = mask.take(range(1, SHAPE[axis]), axis) & mask.take(range(SHAPE[axis] - 1), axis)
        slopes = [np.abs(np.diff(data, axis=axis))[pairs].mean() for data in (image, truth)]
        flicker.append(slopes[0] / slopes[1])
    assert metrics.flicker(image, truth, mask) == pytest.approx(flicker, rel=1e-4)
    edges = [ndimage.gaussian_laplace(data, 1.5)[mask] for data in (image, truth)]
    full = structural_similarity(
        truth, image, data_range=np.percentile(truth[mask], 99.5), gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False, full=True,
    )[1]  # fmt: skip
    assert metrics.slow_figures(image, truth, mask, ratios) == pytest.approx({
        "ssim": full[mask].mean(),
        "hfen": np.linalg.norm(edges[0] - edges[1]) / np.linalg.norm(edges[1]),
        "flicker": max(flicker),
        "band_correlation": both / np.sqrt(ours * theirs),
        "band_power": ours / theirs,
    }, rel=1e-3)  # fmt: skip
    none = metrics.recovered_spectrum(image, truth, mask, (1, 1, 1))
    assert np.isnan(none["correlation"]) and np.isnan(none["power"])


def test_the_bootstrap_is_a_percentile_of_means() -> None:
    values = [0.1, 0.7, 0.4, 1.9, 0.2]
    generator = np.random.default_rng(3)
    means = np.array(values)[generator.integers(0, 5, (200, 5))].mean(axis=1)
    wanted = np.percentile(means, [10, 90])
    assert metrics.bootstrap_interval(values, 0.8, 200, 3) == pytest.approx(wanted)
    assert metrics.bootstrap_interval(values) == metrics.bootstrap_interval(
        values, 0.95, 10_000, 0
    )


# Masks


def test_means_over_blocks_repeat_the_last_voxels() -> None:
    data = np.random.default_rng(0).random((5, 7, 6))
    found = masks.block_mean(data, (2, 3, 1))
    assert found.shape == (3, 3, 6) and found.dtype == np.float32
    for i, j, k in np.ndindex(found.shape):
        rows = [min(2 * i + n, 4) for n in range(2)]
        columns = [min(3 * j + n, 6) for n in range(3)]
        wanted = np.mean([data[a, b, k] for a in rows for b in columns])
        assert found[i, j, k] == pytest.approx(wanted, rel=1e-6)


def test_a_coarse_mask_on_the_fine_grid_has_an_interpolated_outline() -> None:
    """Linear interpolation between the centres of the blocks; a half counts as inside."""
    coarse = np.random.default_rng(1).random((4, 5, 3)) > 0.5
    factors, shape = (2, 3, 1), (7, 14, 3)
    found = masks._refine(coarse, factors, shape)
    values = coarse.astype(float)
    for axis, factor in enumerate(factors):
        at = (np.arange(coarse.shape[axis] * factor) + 0.5) / factor - 0.5
        values = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, values
        )
    assert np.array_equal(found, values[:7, :14, :3] > 0.5 - 1e-6)


def test_background_is_what_reaches_the_border() -> None:
    generator = np.random.default_rng(2)
    for axis in (None, 0, 1, 2):
        mask = generator.random((7, 9, 8)) > 0.42
        wanted = np.zeros_like(mask)
        planes = [mask] if axis is None else np.moveaxis(mask, axis, 0)
        for k, plane in enumerate(planes):
            filled = ndimage.binary_fill_holes(plane)
            if axis is None:
                wanted = ~filled
            else:
                np.moveaxis(wanted, axis, 0)[k] = ~filled
        assert np.array_equal(masks._open_background(mask, axis), wanted)
    data = np.where(mask, 5.0, 0.0)
    assert np.array_equal(masks.outside_zeros(data), ~ndimage.binary_fill_holes(mask))
    # A hole that is open along one axis is filled where the slices across another close it.
    tube = np.ones((6, 7, 8), bool)
    tube[2:4, 2:5, :5] = False
    tube[0, 0, 0] = False
    filled = masks._fill_slices(tube)
    assert filled[2:4, 2:5, :5].all() and not filled[0, 0, 0]


def test_the_largest_component_and_the_faces() -> None:
    mask = np.zeros((6, 7, 8), bool)
    mask[1, 1, 1:4] = mask[3:5, 3:5, 5] = True
    mask[4, 5, 6] = True  # touches by an edge only
    found = masks.largest_component(mask)
    assert found.sum() == 4 and found[3:5, 3:5, 5].all()
    assert not masks.largest_component(np.zeros((2, 2, 2), bool)).any()
    data = np.arange(24).reshape(2, 3, 4)
    faces = masks.outer_faces(data)
    wanted = [data[0], data[-1], data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1]]
    assert all(np.array_equal(a, b) for a, b in zip(faces, wanted, strict=True))
    share = sum(face.sum() for face in (f > 11 for f in wanted)) / sum(f.size for f in wanted)
    assert masks._border_share(data > 11) == pytest.approx(share)


@pytest.mark.parametrize("zooms", [(1.0, 2.0, 1.5), (2.5, 0.8, 1.1)])
def test_closing_and_opening_by_a_ball_in_mm(zooms: tuple[float, ...]) -> None:
    """The distances are scipy's; beyond the field of view the mask continues."""
    generator = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(generator.standard_normal((22, 20, 24)), 1.5) > 0
    pad = [(12, 12)] * 3
    wide = np.pad(mask, pad, mode="edge")
    inner = (slice(12, -12),) * 3

    def away(from_: np.ndarray) -> np.ndarray:
        return ndimage.distance_transform_edt(~from_, sampling=zooms)

    grown = away(wide) <= 3
    assert np.array_equal(masks._close(mask, 3.0, zooms), (away(~grown) > 3)[inner] | mask)
    core = away(~wide) > 2.5
    assert core.any()
    near = away(core)[inner]
    assert np.array_equal(masks._open(mask, 2.5, zooms), mask & (near <= 2.5))
    assert np.array_equal(masks._open(mask, 2.5, zooms, regrow=4.0), mask & (near <= 4))
    thin = np.zeros((8, 8, 8), bool)
    thin[3] = True
    assert np.array_equal(masks._open(thin, 5.0, zooms), thin)  # nothing would be left
    assert masks._open(np.ones((4, 4, 4), bool), 9.0, zooms).all()


# Noise


def test_noise_of_flat_tissue_is_the_spread_of_the_residuals() -> None:
    generator = np.random.default_rng(0)
    shape = (26, 30, 24)
    brain = np.zeros(shape, bool)
    brain[3:-2, 4:-3, 2:-4] = True
    data = 200 + 2.0 * np.indices(shape)[0] ** 1.5 + generator.normal(0, 3, shape)
    data[10:13, 10:13, 10:13] = 0
    found = tissue_noise(data, brain)
    part = data[3:-2, 4:-3, 2:-4].astype(np.float32)
    inside = np.zeros(part.shape, bool)
    for place in np.ndindex(part.shape):  # two steps from the border, and not deleted
        low = np.array(place) - 2
        high = np.array(part.shape) - 3 - place
        inside[place] = min(low.min(), high.min()) >= 0 and part[place] != 0
    steep = ndimage.gaussian_gradient_magnitude(part, 2.0)
    flat = inside & (steep <= np.quantile(steep[inside], 0.15))
    rest = (part - ndimage.uniform_filter(part, 3))[flat]
    wanted = 1.4826 * np.median(np.abs(rest - np.median(rest))) / np.sqrt(26 / 27)
    assert found == pytest.approx(wanted, rel=1e-4) and found == pytest.approx(3, rel=0.2)
    assert tissue_noise(data, brain.astype(np.uint8)) == found


@pytest.mark.parametrize(
    ("side", "found"), [((5, 5, 4), True), ((5, 5, 3), False), ((11, 12, 11), True)]
)
def test_noise_of_little_tissue(side: tuple[int, int, int], found: bool) -> None:
    """A hundred voxels at least; they are eroded where five hundred are left."""
    generator = np.random.default_rng(0)
    data = generator.normal(100, 3, (20, 20, 20))
    brain = np.zeros(data.shape, bool)
    brain[2 : 2 + side[0], 3 : 3 + side[1], 4 : 4 + side[2]] = True
    sigma = tissue_noise(data, brain)
    assert (sigma is not None) == found
    if side[0] == 11:  # 7 x 8 x 7 would be left: all is used
        part = data[brain].reshape(side).astype(np.float32)
        steep = ndimage.gaussian_gradient_magnitude(part, 2.0)
        rest = (part - ndimage.uniform_filter(part, 3))[steep <= np.quantile(steep, 0.15)]
        wanted = 1.4826 * np.median(np.abs(rest - np.median(rest))) / np.sqrt(26 / 27)
        assert sigma == pytest.approx(wanted, rel=1e-4)


def test_noise_of_the_air_ten_millimetres_off_the_head() -> None:
    generator = np.random.default_rng(0)
    shape, zooms = (40, 30, 36), (1.0, 2.0, 1.5)
    head = np.zeros(shape, bool)
    head[14:26, 10:20, 12:24] = True
    data = np.hypot(*generator.normal(0, 4, (2, *shape)))
    away = ndimage.distance_transform_edt(~head, sampling=zooms)
    data[away <= 10] = 500
    found = air_noise(data, head, zooms)
    # Every second voxel along the first axis alone: two steps of 1 mm fit into 2 mm.
    part = (slice(None, None, 2), slice(None), slice(None))
    sampled = ndimage.distance_transform_edt(~head[part], sampling=(2.0, 2.0, 1.5))
    air = data[part][sampled > 10]
    assert found == pytest.approx(np.median(air) / np.sqrt(2 * np.log(2)), rel=1e-5)
    assert found == pytest.approx(4, rel=0.05)
    for share, known in ((0.45, True), (0.55, False)):  # deleted
        gone = np.where(generator.random(shape) < share, 0, data)
        assert (air_noise(gone, head, zooms) is not None) == known
    few = np.ones(shape, bool)
    few[18:, :, :] = False  # 4 x 30 x 36 sampled planes less those near
    count = int((ndimage.distance_transform_edt(~few[part], sampling=(2, 2, 1.5)) > 10).sum())
    assert count > 1000 and air_noise(data, few, zooms) is not None
    few[20:] = True
    few[-1] = False
    assert air_noise(data, few, zooms) is None
    both = estimate_noise(data, head, head, zooms)
    assert both == Noise(tissue_noise(data, head), found) and both.sigma == both.tissue
    assert Noise(None, 3.0).sigma == 3.0 and Noise(2.0, 3.0).sigma == 2.0
    assert Noise(0.0, 3.0).sigma == 0.0 and Noise(None, None).sigma is None


# Protocols


BOX, GAUSS, KSPACE = Axis("box"), Axis("gaussian"), Axis("kspace")


@pytest.mark.parametrize(
    ("key", "wanted", "name"),
    [
        ("x2iso-kspace", (2.0, True, KSPACE), "x2 isotropic, k-space"),
        ("x1.5iso-box", (1.5, True, BOX), "x1.5 isotropic, box"),
        ("x10slices-gaussian", (10.0, False, GAUSS), "x10 slices, Gaussian"),
        ("x4slices-box0.5", (4.0, False, Axis("box", 0.5)), "x4 slices, box 0.5"),
        ("x2iso-kspace-halfhann", (2.0, True, KSPACE, "half-hann"),
         "x2 isotropic, k-space, half-hann"),
        ("x5slices-gaussian+plane1.5+noise6", (5.0, False, GAUSS, "hard", 6.0, 1.5),
         "x5 slices, Gaussian, x1.5 in plane, 6 % noise"),
        ("x4slices-box+told-gaussian1.2", (4.0, False, BOX, "hard", 0.0, 1.0,
                                           Axis("gaussian", 1.2)),
         "x4 slices, box, told gaussian 1.2"),
        ("x4slices-box+told-kspace", (4.0, False, BOX, "hard", 0.0, 1.0, KSPACE),
         "x4 slices, box, told kspace 1"),
        ("x4slices-box+noise2+untold", (4.0, False, BOX, "hard", 2.0, 1.0, UNTOLD),
         "x4 slices, box, 2 % noise, untold"),
        ("x4slices-box+stated", (4.0, False, BOX, "hard", 0.0, 1.0, STATED),
         "x4 slices, box, stated"),
        ("x3inplane-bicubic", (3.0, True, KSPACE, "hard", 0.0, 1.0, None, True),
         "x3 in plane, bicubic"),
    ],
)  # fmt: skip
def test_a_protocol_is_read_as_a_whole(key: str, wanted: tuple[Any, ...], name: str) -> None:
    found = parse_protocol(key)
    assert found == Protocol(key, *wanted) and found.name == name
    assert found.profile == found.axis.profile


@pytest.mark.parametrize(
    "key",
    ["x1iso-kspace", "x10.5iso-kspace", "x2iso", "x2iso-none", "x2iso-box-halfhanning", "2iso-box",
     "x2iso-kspace+plane2", "x4slices-box+plane1", "x4slices-box+plane11", "x4slices-box+noise",
     "x4slices-box+loud2", "x4slices-box+told-none", "x4slices-box0", "x1inplane-bicubic",
     "x11inplane-bicubic", "x2inplane-bicubic+noise2", "x4slices-box20"],
)  # fmt: skip
def test_what_is_no_protocol(key: str) -> None:
    with pytest.raises(UsageError, match="not a protocol"):
        parse_protocol(key)


def test_the_limits_of_a_protocol() -> None:
    assert parse_protocol("x10inplane-bicubic").factor == 10
    assert parse_protocol("x4slices-box+plane10").plane == 10
    low = parse_protocol("lowfield")
    assert low == Protocol("lowfield", 5.0, False, GAUSS, noise=6.0, plane=1.5)
    assert parse_protocol(LOW_FIELD).name == low.name
    assert [protocol.key for protocol in PROTOCOLS] == list(DEFAULT_KEYS)
    plain = {key: parse_protocol(key).plain for key in (
        "x2iso-kspace", "x4slices-box", "x4slices-box0.5", "x2iso-kspace-halfhann",
        "x2iso-box+noise1", "x4slices-box+plane2", "x4slices-box+stated", "x2inplane-bicubic")
    }  # fmt: skip
    assert [key for key, value in plain.items() if value] == ["x2iso-kspace", "x4slices-box"]


def test_ratios_and_sampling_of_a_head_with_some_true_axes() -> None:
    ratios = {
        ("x2iso-kspace", (0, 1, 2)): (2, 2, 2), ("x2iso-kspace", (0, 2)): (2, 1, 2),
        ("x4slices-box", (0, 1, 2)): (1, 1, 4), ("x4slices-box", (0, 1)): (1, 4, 1),
        ("x4slices-box+plane1.5", (0, 1, 2)): (1.5, 1.5, 4),
        ("x4slices-box+plane1.5", (1, 2)): (1, 1.5, 4),
        ("x3inplane-bicubic", (0, 1, 2)): (3, 3, 1), ("x3inplane-bicubic", (1, 2)): (1, 3, 3),
    }  # fmt: skip
    for (key, axes), wanted in ratios.items():
        assert parse_protocol(key).ratios(axes) == wanted, (key, axes)
    flat = parse_protocol("x4slices-box+plane1.5")
    assert flat.acquisition((0, 1)) == Acquisition((KSPACE, BOX, KSPACE))
    assert flat.acquisition((0, 1, 2), GAUSS) == Acquisition((KSPACE, KSPACE, GAUSS))
    assert parse_protocol("x4slices-box").acquisition((0, 1)) == Acquisition((BOX,) * 3)
    assert parse_protocol("x4slices-box").acquisition((0,), GAUSS) == Acquisition((GAUSS,) * 3)


# Registration


def head_image(zooms: list[float], shape: tuple[int, int, int]) -> nib.Nifti1Image:
    """A bright ellipsoid off the centre, in dark air."""
    axes = np.meshgrid(*[np.linspace(-1.2, 1.0, n) for n in shape], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.6
    data = np.where(inside, 100 + 20 * axes[0], 0).astype(np.float32)
    return nib.Nifti1Image(data, turned([10, -5, 20], zooms, [-30, 12, 5]))


@pytest.mark.parametrize(
    ("start", "coarse", "levels"),
    [(False, False, [0, 1, 2]), (False, True, [0, 1]), (True, False, [2]), (True, True, [])],
)
@pytest.mark.parametrize("other", [False, True])
def test_levels_of_a_registration(
    start: bool, coarse: bool, levels: list[int], other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a start only the finest runs; every one gets the images, the mask and the metric."""
    fixed, moving = head_image([3.0, 3.5, 4.0], (24, 22, 20)), head_image([3, 3, 3], (20, 20, 20))
    seen, threads = [], []
    step = turned([1, 2, 3], [1, 1, 1], [4, 5, 6])

    def refine(transform: Any, images: Any, inside: Any, level: int, contrast: bool) -> None:
        assert images == (fixed, moving)
        mask = np.asarray(inside.dataobj)
        assert np.array_equal(mask, masks.head_mask_array(fixed.get_fdata(), (3.0, 3.5, 4.0)))
        assert np.array_equal(inside.affine, fixed.affine)
        middle = fixed.affine @ [*np.argwhere(mask).mean(axis=0), 1]
        centre = np.array(transform.GetCenter()) * [-1, -1, 1]
        assert centre == pytest.approx(middle[:3])
        threads.append(SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads())
        seen.append((level, contrast))

    monkeypatch.setattr(registration, "_refine", refine)
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
    try:
        found = registration.register(
            fixed, moving, step if start else None, other_contrast=other, coarse=coarse
        )
        assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert seen == [(level, other) for level in levels] and set(threads) <= {1}
    assert found == pytest.approx(step if start else np.eye(4), abs=1e-9)


def test_a_registration_that_fails_is_an_error_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fixed = head_image([3.0, 3.5, 4.0], (24, 22, 20))

    def fail(*_: Any) -> None:
        raise RuntimeError("ITK ERROR")

    monkeypatch.setattr(registration, "_refine", fail)
    with pytest.raises(ImageError, match="could not be registered"):
        registration.register(fixed, fixed)
    blank = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4))
    with pytest.raises(ImageError, match="no head"):
        registration.register(blank, fixed)


@pytest.mark.parametrize("other", [False, True])
def test_a_start_is_improved_at_the_finest_level(other: bool) -> None:
    """For another contrast the brightness is turned around."""
    generator = np.random.default_rng(0)
    shape = (40, 44, 36)
    axes = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij")
    texture = ndimage.gaussian_filter(generator.standard_normal(shape), 2)
    inside = axes[0] ** 2 + 1.6 * axes[1] ** 2 + 2.5 * axes[2] ** 2 < 1
    data = ndimage.gaussian_filter(np.where(inside, 100 + 500 * texture, 0), 0.7)
    where = nib.affines.from_matvec(np.diag([3.0, 2.7, 3.3]), [-60, -60, -60])
    fixed = nib.Nifti1Image(data.astype(np.float32), where)
    move = turned([4, -3, 5], [1, 1, 1], [3, -2, 4])
    data = np.where(data > 40, 250 - data, 0) if other else data
    moving = nib.Nifti1Image(data.astype(np.float32), move @ where)
    points = np.array([[40, 0, 0, 1], [0, 40, 0, 1], [0, 0, 40, 1], [-30, -30, 10, 1.0]]).T

    def far(found: np.ndarray) -> float:
        return float(np.linalg.norm(((found - move) @ points)[:3], axis=0).max())

    near = turned([1, 0.5, -1], [1, 1, 1], [0.7, 0.5, 0.6]) @ move
    found = registration.register(fixed, moving, near, other_contrast=other)
    assert far(found) < 0.5 * far(near)


def test_images_are_smoothed_and_sampled_for_a_level() -> None:
    image = head_image([1.0, 2.5, 0.7], (21, 12, 30))
    found = registration._sampled(image, 2.0)
    zooms = np.array([1.0, 2.5, 0.7])
    sigma = 0.42 * np.sqrt(np.maximum(4 - zooms**2, 0)) / zooms
    wanted = ndimage.gaussian_filter(image.get_fdata(dtype=np.float32), sigma)[::2, ::1, ::3]
    assert np.allclose(SimpleITK.GetArrayFromImage(found).T, wanted, atol=1e-3)
    assert found.GetSpacing() == pytest.approx((2.0, 2.5, 2.1))
    # The voxels keep their place.
    for index in ((0, 0, 0), (3, 4, 5)):
        world = image.affine @ [index[0] * 2, index[1], index[2] * 3, 1]
        place = np.array(found.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert place == pytest.approx(world[:3])


# Reference


@pytest.mark.parametrize(
    ("overlap", "weight"), [(0.5, 0), (0.82, 0), (0.86, 0.5), (0.9, 1), (1, 1)]
)
def test_how_far_a_reference_counts(overlap: float, weight: float) -> None:
    assert reference.reference_weight(overlap) == pytest.approx(weight)


def test_a_reference_on_another_grid_point_by_point() -> None:
    """Several points to a voxel where its own are finer, one where they are not."""
    generator = np.random.default_rng(0)
    data = ndimage.gaussian_filter(generator.random((30, 26, 28)), 1.5) + 1
    data[:, :, 14:] = 0
    image = nib.Nifti1Image(data.astype(np.float32), nib.affines.from_matvec(
        np.diag([1.0, 1.5, 0.8]), [3, -2, 5]))  # fmt: skip
    affine = nib.affines.from_matvec(
        np.array([[0, 0, 2.0], [1.5, 0, 0], [0, 1.7, 0]]), [8, 4, 8]
    )  # along y, z and x
    found = reference.resample_reference(image, (9, 7, 8), affine)
    assert found.dtype == np.float32
    counts = (1, 3, 2)  # 1.5 of 1.5 mm, 1.7 of 0.8, 2 of 1
    to_image = np.linalg.inv(image.affine) @ affine
    points = []
    for index in np.ndindex(counts):
        shift = (np.array(index) + 0.5) / counts - 0.5
        places = np.moveaxis(np.indices((9, 7, 8)), 0, -1) + shift
        inner = np.moveaxis(nib.affines.apply_affine(to_image, places), -1, 0)
        points.append(ndimage.map_coordinates(data, inner, order=3, mode="constant"))
    wanted = np.mean(points, axis=0)
    centres = np.moveaxis(nib.affines.apply_affine(
        to_image, np.moveaxis(np.indices((9, 7, 8)), 0, -1)), -1, 0)  # fmt: skip
    seen = ndimage.map_coordinates((data != 0).astype(float), centres, order=1) > 0.99
    assert 0.3 < seen.mean() < 1
    assert found[seen] == pytest.approx(wanted[seen], abs=2e-2) and not found[~seen].any()


def test_a_reference_is_tried_from_the_other_side_and_the_better_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, other = head_image([3, 3, 3], (9, 9, 9)), head_image([3, 3, 4], (9, 9, 9))
    first, back = turned([1, 0, 0], [1] * 3, [1, 2, 3]), turned([0, 4, 0], [1] * 3, [3, 2, 1])
    calls: list[Any] = []
    overlaps = {"before": 0.5, "first": 0.7, "second": 0.8}

    def register(fixed: Any, moving: Any, **words: Any) -> np.ndarray:
        calls.append((fixed is target, moving is target, words))
        if back is None:
            raise ImageError("no head")
        return first if fixed is target else back

    def overlap(fixed: Any, moved: Any) -> float:
        assert fixed is target
        if moved is other:
            return overlaps["before"]
        near = np.allclose(moved.affine, np.linalg.inv(first) @ other.affine)
        return overlaps["first" if near else "second"]

    monkeypatch.setattr(reference, "register", register)
    monkeypatch.setattr(reference, "gradient_overlap", overlap)
    found = reference.align_reference(target, other)
    contrast = {"other_contrast": True}
    assert calls == [(True, False, contrast), (False, True, contrast)]
    assert (found.overlap, found.overlap_before) == (0.8, 0.5)
    assert found.move == pytest.approx(np.linalg.inv(back))
    assert found.image.affine == pytest.approx(back @ other.affine, abs=1e-4)
    assert np.array_equal(found.image.get_fdata(), other.get_fdata())
    overlaps["second"] = 0.6
    assert np.array_equal(reference.align_reference(target, other).move, first)
    calls.clear()
    overlaps["first"] = 0.82
    choice = reference.use_reference(target, other)
    assert len(calls) == 1 and choice.image is not None
    assert choice.record == {
        "Used": True, "Reason": "", "EdgeOverlap": 0.82, "EdgeOverlapBefore": 0.5, "Weight": 0.0,
        "Move": np.round(first, 5).tolist(),
    }  # fmt: skip
    overlaps["first"] = overlaps["second"] = 0.8199
    choice = reference.use_reference(target, other)
    assert choice.image is None and not choice.record["Used"] and choice.aligned is not None
    assert "0.82" in choice.record["Reason"]


# Standard space


def test_itk_sees_the_voxels_where_nibabel_does() -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).random((4, 5, 6)).astype(np.float32),
                            turned([10, 20, -30], [1.0, 2.0, 3.0], [5, -6, 7]))  # fmt: skip
    found = standard_space.to_itk(image)
    assert found.GetSize() == (4, 5, 6) and found.GetSpacing() == pytest.approx((1, 2, 3))
    for index in ((0, 0, 0), (3, 0, 0), (1, 4, 2), (0, 0, 5)):
        assert found[index] == pytest.approx(float(image.dataobj[index]))
        place = np.array(found.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert place == pytest.approx((image.affine @ [*index, 1])[:3])


def test_the_brain_alone_from_nought_to_one() -> None:
    generator = np.random.default_rng(0)
    data = generator.normal(500, 100, (20, 15, 24)).astype(np.float32)
    mask = np.zeros(data.shape, np.uint8)
    mask[4:15, 3:12, 5:20] = 2
    where = turned([5, 5, 5], [1.0, 4.5, 1.6], [0, 1, 2])
    found = standard_space._brain(nib.Nifti1Image(data, where), nib.Nifti1Image(mask, where), 4.0)
    low, high = np.percentile(data[mask > 0], [1, 99])
    scaled = np.where(mask > 0, np.clip((data - low) / (high - low), 0, 1), 0)
    zooms = np.array([1.0, 4.5, 1.6])
    sigma = 0.42 * np.sqrt(np.maximum(16 - zooms**2, 0)) / zooms
    wanted = ndimage.gaussian_filter(scaled, sigma)[::4, ::1, ::2]
    assert np.allclose(SimpleITK.GetArrayFromImage(found).T, wanted, atol=1e-5)
    assert found.GetSpacing() == pytest.approx((4.0, 4.5, 3.2))


def test_the_finest_template_of_the_contrast_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contrast first, then 1 mm, then the whole head; a mask has the voxels of its image."""
    there: dict[tuple[str, str | None, int], Path] = {}
    homes = []

    def listed(home: Path, space: str, **entities: Any) -> Path | None:
        assert space == "MNI152Lin" and set(entities) == {"suffix", "desc", "resolution"}
        homes.append(home)
        return there.get((entities["suffix"], entities["desc"], entities["resolution"]))

    monkeypatch.setattr(standard_space, "_listed", listed)

    def found(suffix: str = "T1w") -> tuple[Path, Path | None]:
        template = standard_space.find_template("MNI152Lin", suffix, tmp_path)
        assert template.space == "MNI152Lin"
        return template.image, template.mask

    there["mask", "brain", 1] = mask = Path("mask1")
    there["T1w", None, 2] = Path("coarse")
    assert found() == found("T2w") == (Path("coarse"), None)
    there["mask", "brain", 2] = Path("mask2")
    assert found() == (Path("coarse"), Path("mask2"))
    there["T1w", "brain", 1] = Path("brain")
    assert found() == (Path("brain"), mask)
    there["T1w", None, 1] = Path("fine")
    assert found() == (Path("fine"), mask)
    there["T2w", "brain", 2] = Path("other")
    assert found("T2w") == (Path("other"), Path("mask2")) and found() == (Path("fine"), mask)
    assert set(homes) == {tmp_path}
    homes.clear()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "set"))
    standard_space.find_template("MNI152Lin")
    monkeypatch.delenv("TEMPLATEFLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    standard_space.find_template("MNI152Lin")
    wanted = [tmp_path / "set", tmp_path / "home" / ".cache" / "templateflow"]
    assert list(dict.fromkeys(homes)) == wanted
    there.clear()
    with pytest.raises(UsageError, match="not in TemplateFlow"):
        found()


def test_turns_of_a_map_keep_its_corners() -> None:
    """All orders and directions of axes: the voxels of a map lie where they lay."""
    from bids_moediff.imaging.map_images import _turned

    image = nib.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(np.int16),
                            turned([3, -4, 5], [1, 2, 3], [4, 5, 6]))  # fmt: skip
    for axes, signs in product(((0, 1, 2), (2, 0, 1), (1, 0, 2)), product((1, -1), repeat=3)):
        turn = np.array([[axis, sign] for axis, sign in zip(axes, signs, strict=True)])
        other = image.as_reoriented(turn)
        back = _turned(other, image.affine, "x")
        assert np.array_equal(np.asarray(back.dataobj), np.asarray(image.dataobj))
        assert back.affine == pytest.approx(image.affine, abs=1e-5)
