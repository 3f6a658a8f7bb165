# SPDX-License-Identifier: Apache-2.0
"""The viewer's volumes: nothing is lost in packing, places are kept, a page stays small."""

import base64
import json
import re
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_moediff.reports import figures, viewer
from bids_moediff.reports.canvas import LETTERS, NORMAL, PLANES, Volume
from report_data import affine, head


def unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel by voxel, as the page's script does it."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    steps = steps.reshape(shape, order="F").astype(int)
    padded = np.zeros(np.add(shape, 1), dtype=int)
    for index in np.ndindex(*shape):
        x, y, z = np.add(index, 1)
        single = padded[x - 1, y, z] + padded[x, y - 1, z] + padded[x, y, z - 1]
        pairs = padded[x - 1, y - 1, z] + padded[x - 1, y, z - 1] + padded[x, y - 1, z - 1]
        forecast = min(max((2 * single - pairs + 1) // 3, 0), 255)
        padded[x, y, z] = (steps[index] + forecast) & 255
    return padded[1:, 1:, 1:]


@pytest.fixture(scope="module")
def scene() -> figures.Scene:
    fine = head()
    half = fine.reshape(24, 2, 28, 2, 20, 2).mean(axis=(1, 3, 5))
    matrix = affine((2.0, 2.0, 2.0))
    return figures.make_scene(
        nib.Nifti1Image(half, matrix),
        nib.Nifti1Image(fine, affine((1.0, 1.0, 1.0))),
        nib.Nifti1Image((half > 40).astype(np.uint8), matrix),
    )


@pytest.mark.parametrize("kind", ["noise", "steps", "flat"])
def test_packing_loses_nothing(kind):
    rng = np.random.default_rng(0)
    voxels = {
        "noise": rng.integers(0, 256, (7, 5, 6)),
        "steps": np.indices((7, 5, 6)).sum(axis=0) * 21 % 256,
        "flat": np.full((7, 5, 1), 255),
    }[kind].astype(np.uint8)
    assert np.array_equal(unpacked(viewer.pack(voxels), voxels.shape), voxels)


def test_packed_values_lie_within_half_a_step(scene):
    packed = viewer.quantize("result", scene.enhanced, 0.0, 150.0)
    values = packed.low + unpacked(packed.text, packed.shape) / 255 * (packed.high - packed.low)
    assert np.abs(values - np.clip(scene.enhanced.data, 0, 150)).max() <= 150 / 255 / 2 + 1e-4


def test_fewer_grey_levels_take_less_room(scene):
    many, few = (viewer.quantize("r", scene.enhanced, 0.0, 150.0, n) for n in (256, 64))
    assert len(few.text) < 0.75 * len(many.text)
    values = unpacked(few.text, few.shape) * few.gain / 255 * 150
    assert np.abs(values - np.clip(scene.enhanced.data, 0, 150)).max() <= 150 / 63 / 2 + 1e-4


def test_crop_keeps_the_place_of_voxels(scene):
    low, high = scene.enhanced.start + 5.5, scene.enhanced.start + 20.0
    part = viewer.crop(scene.enhanced, low, high)
    assert part.data.shape == (15, 15, 15)
    assert np.allclose(part.start, scene.enhanced.start + 5)
    assert np.array_equal(part.data, scene.enhanced.data[5:20, 5:20, 5:20])


def test_halving_averages_and_stays_in_place():
    ramp = np.arange(7 * 4 * 1, dtype=np.float32).reshape(7, 4, 1)
    volume = Volume(ramp, np.array([1.0, 2.0, 3.0]), np.zeros(3), np.eye(3))
    half = viewer.halve(volume)
    assert half.data.shape == (3, 2, 1)
    assert half.data[0, 0, 0] == ramp[:2, :2].mean()
    assert list(half.zooms) == [2.0, 4.0, 3.0]


def test_view_holds_what_there_is(scene):
    view = viewer.make_view(scene)
    assert set(view["volumes"]) == {"input", "result", "mask"}
    gates = replace(scene.enhanced, data=np.repeat(scene.enhanced.data[..., None], 3, axis=3))
    names = ("smooth", "cortex", "junction")
    more = viewer.make_view(scene, figures.Overlay(scene.enhanced), figures.Overlay(gates, names))
    assert set(more["volumes"]) == {"input", "result", "mask", "error", "expert"}
    assert "256" in view["detail"]


def test_too_much_is_averaged_and_said(scene, monkeypatch):
    whole = viewer.make_view(scene)
    size = sum(map(len, whole["volumes"].values()))
    monkeypatch.setattr(viewer, "MOST_BYTES", size // 3)
    tight = replace(scene, frame=replace(scene.frame, low=scene.frame.low - 14.0))
    view = viewer.make_view(replace(tight, frame=replace(tight.frame, high=tight.frame.high + 14)))
    assert sum(map(len, view["volumes"].values())) < size
    assert "2 x 2 x 2" in view["detail"]
    shapes = [view["description"]["volumes"]["result"][key] for key in ("shape", "zooms")]
    assert shapes[1] == [2.0, 2.0, 2.0]


def test_the_script_has_the_planes_and_letters_of_the_pictures():
    """Two pictures of one page must not differ in what they call left; no browser needed."""
    script = (Path(viewer.__file__).parent / "templates" / "viewer.js").read_text()

    def table(name: str) -> dict:
        (content,) = re.findall(rf"const {name} = ({{.*}});", script)
        return json.loads(re.sub(r"(\w+):", r'"\1":', content))

    assert {plane: tuple(letters) for plane, letters in table("LETTERS").items()} == LETTERS
    assert table("PLANES") == {plane: [*axes, NORMAL[plane]] for plane, axes in PLANES.items()}
