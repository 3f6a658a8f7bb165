# SPDX-License-Identifier: Apache-2.0
"""The shipped weights: a right reference helps, a wrong one costs nothing, lesions stay apart."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_moediff.evaluation.benchmark import Task, make_task
from bids_moediff.imaging.metrics import psnr
from bids_moediff.inference.pose import Inputs
from bids_moediff.inference.super_resolver import SuperResolver
from bids_moediff.options import Options

SIDE, HEIGHT = 48, 0.25


def phantom(values: tuple[float, ...], seed: int) -> np.ndarray:
    """Wavy shells of fluid, cortex and white matter."""
    line = np.linspace(-1, 1, SIDE)
    x, y, z = np.meshgrid(line, line, line, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) + 0.05 * np.sin(9 * np.arctan2(y, x)) * np.cos(8 * z)
    data = np.zeros((SIDE,) * 3)
    for outer, value in zip((0.95, 0.8, 0.6), values, strict=True):
        data[radius < outer] = value
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=data.shape), 0.6)
    data = np.where(data > 0, data + 0.02 * texture / texture.std(), 0)
    return ndimage.gaussian_filter(data, 0.45).clip(0).astype(np.float32)


def lesion() -> tuple[np.ndarray, np.ndarray]:
    """A sphere of five voxels in the white matter, and its core."""
    grid = np.ogrid[:SIDE, :SIDE, :SIDE]
    distance = np.sqrt(sum((axis - SIDE // 2) ** 2.0 for axis in grid))
    return (HEIGHT * (distance < 2.5)).astype(np.float32), distance < 2


@pytest.fixture(scope="module")
def resolver() -> SuperResolver:
    return SuperResolver.from_pretrained("crfm", "cpu")


def task(truth: np.ndarray) -> Task:
    mask = np.zeros(truth.shape, bool)
    mask[6:-6, 6:-6, 6:-6] = True
    return make_task(truth, mask, (1.0,) * 3, np.eye(4), (2.0,) * 3, "gaussian")


def test_right_and_wrong_references_and_lesions(resolver: SuperResolver) -> None:
    target, reference = phantom((0.95, 0.55, 0.36), 0), phantom((0.15, 0.55, 0.85), 1)
    blob, core = lesion()
    scan, marked = task(target), task(target + blob)

    def restored(of: Task, guide: np.ndarray | None = None) -> np.ndarray:
        image = None if guide is None else nib.Nifti1Image(guide, np.eye(4))
        found = resolver.enhance(
            of.coarse_image,
            Options(output_resolution=of.zooms),
            Inputs(acquisition=of.acquisition, reference=image),
        )
        return np.asarray(found.image.dataobj)

    alone, guided = restored(scan), restored(scan, reference)
    base = psnr(alone, target, scan.mask)
    assert psnr(guided, target, scan.mask) > base + 0.3
    noise = np.random.default_rng(2).normal(0.5, 0.15, target.shape).astype(np.float32)
    assert psnr(restored(scan, noise), target, scan.mask) > base - 0.1
    copied = (restored(scan, reference + blob) - guided)[core].mean()
    assert abs(copied) < 0.1 * HEIGHT
    kept = (restored(marked, reference) - guided)[core].mean()
    assert kept == pytest.approx((restored(marked) - alone)[core].mean(), abs=0.1 * HEIGHT)
    assert kept > 0.6 * HEIGHT
