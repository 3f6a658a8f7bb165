# SPDX-License-Identifier: Apache-2.0
"""Pictures: orientation, scale, untouched voxels, same bytes."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.reports import canvas, combined, figures, plots
from bids_moediff.reports.canvas import Frame, Volume
from report_data import SHAPE, affine, head


def marked(codes: str) -> nib.Nifti1Image:
    """An image in any orientation with a mark at the patient's left, front and top."""
    data = np.zeros(SHAPE, dtype=np.float32)
    data[2:12, 44:54, 28:38] = 100.0
    canonical = nib.Nifti1Image(data, affine((1.0, 1.0, 1.0)))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    return canonical.as_reoriented(turn)


def corner(pixels: np.ndarray) -> tuple[str, str]:
    rows, columns = np.nonzero(pixels > 50)
    height, width = pixels.shape
    return (
        "top" if rows.mean() < height / 2 else "bottom",
        "left" if columns.mean() < width / 2 else "right",
    )


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "ASL"])
def test_the_patients_left_is_at_the_viewers_right(codes):
    volume = Volume.from_image(marked(codes))
    frame = Frame(volume.start, volume.stop, 2.0)
    places = {"axial": 33.0, "coronal": 49.0, "sagittal": 7.0}
    seen = {p: corner(canvas.draw_plane(volume, frame, p, at)) for p, at in places.items()}
    assert seen == {
        "axial": ("top", "right"),
        "coronal": ("top", "right"),
        "sagittal": ("top", "left"),
    }


def test_sizes_are_true_to_scale_and_grids_share_a_frame():
    fine = Volume.from_image(nib.Nifti1Image(head(), affine((1.0, 1.0, 1.0))))
    coarse = Volume.from_image(nib.Nifti1Image(head((24, 28, 20)), affine((2.0, 2.0, 2.0))))
    assert np.allclose(fine.start, coarse.start)
    assert np.allclose(fine.stop, coarse.stop)
    frame = Frame(fine.start, fine.stop, 3.0)
    assert frame.size("coronal") == (3 * 48, 3 * 40)
    drawn = canvas.draw_plane(coarse, frame, "axial", 20.5)
    assert drawn.shape == (3 * 56, 3 * 48)
    blocks = drawn.reshape(28, 6, 24, 6)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0, "each voxel is one square of its own value"
    assert np.array_equal(blocks[:, 0, :, 0], coarse.data[::-1, ::-1, 10].T)


def test_oblique_voxels_are_shown_as_they_are():
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image = nib.Nifti1Image(head(), turn @ affine((1.0, 1.0, 1.0)))
    volume = Volume.from_image(image)
    drawn = canvas.draw_plane(volume, Frame(volume.start, volume.stop, 1.0), "axial", 20.5)
    assert np.array_equal(drawn, volume.data[::-1, ::-1, 20].T)
    middle = (volume.start + volume.stop) / 2
    expected = (image.affine @ [23.5, 27.5, 20.0, 1.0])[2]
    assert volume.world("axial", float(volume.start[2] + 20.5), middle) == pytest.approx(expected)


def test_outside_of_the_volume_is_black():
    volume = Volume.from_image(nib.Nifti1Image(np.ones(SHAPE, np.float32), affine((1, 1, 1))))
    frame = Frame(volume.start - 5, volume.stop + 5, 1.0)
    drawn = canvas.draw_plane(volume, frame, "axial", 20.0)
    assert drawn[:5].max() == drawn[:, :5].max() == 0
    assert drawn[5:-5, 5:-5].min() == 1


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


def test_before_and_after_have_one_layout(scene, tmp_path):
    figures.write_input(scene, tmp_path / "a.png")
    figures.write_result(scene, tmp_path / "b.png")
    shapes = {Image.open(path).size for path in tmp_path.glob("*.png")}
    assert len(shapes) == 1
    scale = scene.frame.scale * scene.enhanced.zooms.min()
    assert scale == pytest.approx(round(scale)), "whole pixels for a voxel of the result"


def whole_cubic(scene: figures.Scene) -> np.ndarray:
    return ndimage.affine_transform(
        scene.original.data, [0.5] * 3, [-0.25] * 3, SHAPE, order=3, mode="mirror"
    )


def test_cubic_planes_agree_with_interpolation_of_the_volume(scene):
    cubic = figures.cubic_on(replace(scene, positions={"coronal": 30.5}))
    assert np.allclose(cubic.slice_at("coronal", 30.5), whole_cubic(scene)[:, 30], atol=1e-3)


def test_difference_is_signed_and_centred(scene, tmp_path):
    cubic = figures.cubic_on(scene)
    data = whole_cubic(scene)
    data[24:] += 50.0
    changed = Volume(data, cubic.zooms, cubic.start, cubic.rotation)
    brighter = figures.Scene(
        scene.original, changed, scene.mask, scene.frame, scene.positions, scene.window
    )
    assert figures.difference_limit(brighter, cubic) == pytest.approx(50.0, rel=1e-3)
    figures.write_difference(brighter, cubic, tmp_path / "difference.png")
    pixels = np.asarray(Image.open(tmp_path / "difference.png")).astype(int)
    width = scene.panels["axial"][1]
    row = pixels[30 + scene.size[1] // 2, 30 : width - 30]
    first, last = row[: len(row) // 2 - 12], row[len(row) // 2 + 12 :]
    assert (first[:, 0] > first[:, 2]).all(), "the patient's right half got brighter: warm"
    assert last.max() < 40, "no difference is dark"


def test_every_picture_has_the_same_bytes_twice(scene, tmp_path):
    cubic = figures.cubic_on(scene)
    gates = np.random.default_rng(0).dirichlet(np.ones(3), SHAPE).astype(np.float32)
    winner = gates.argmax(axis=3).astype(np.uint8) + 1
    overlays = [
        figures.Overlay(Volume.from_image(nib.Nifti1Image(data, affine((1.0, 1.0, 1.0)))))
        for data in (gates, winner, gates[..., 0], gates - 0.5)
    ]
    for folder in (tmp_path / "1", tmp_path / "2"):
        figures.write_crops(scene, cubic, folder / "crops.png")
        figures.write_difference(scene, cubic, folder / "difference.png")
        figures.write_mask(scene, figures.Overlay(scene.mask), folder / "mask.png")
        figures.write_gates(scene, overlays[0], folder / "gates.png")
        figures.write_winner(scene, overlays[1], folder / "winner.png")
        figures.write_changes(scene, overlays[3], folder / "changes.png")
        figures.write_amount(scene, overlays[2], folder / "deviation.png")
        plots.write_profile(scene, cubic, folder / "profile.svg")
        plots.write_histogram(scene, folder / "histogram.svg")
    for path in sorted((tmp_path / "1").iterdir()):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes(), path.name
        if path.suffix == ".png":
            assert np.asarray(Image.open(path)).std() > 5, f"{path.name} is blank"
        else:
            ET.fromstring(path.read_text())


def test_mask_outline_lies_on_the_mask(scene, tmp_path):
    figures.write_mask(scene, figures.Overlay(scene.mask), tmp_path / "mask.png")
    pixels = np.asarray(Image.open(tmp_path / "mask.png")).astype(int)
    red = (pixels[..., 0] - pixels[..., 1] > 100) & (pixels[..., 0] > 200)
    left, width = scene.panels["axial"]
    height = scene.frame.size("axial")[1]
    top = 30 + (scene.size[1] - height) // 2
    drawn = canvas.draw_plane(scene.mask, scene.frame, "axial", scene.positions["axial"]) > 0
    found = red[top : top + height, left : left + width]
    expected = canvas.outline(drawn)
    assert (found & expected).sum() > 0.95 * expected.sum()


def test_each_bin_of_the_histogram_holds_as_many_intensities():
    data = np.arange(0, 900, 1.5).reshape(10, 10, 6)
    step = plots.intensity_step(data)
    assert step == pytest.approx(1.5)
    counts, _ = np.histogram(data, plots.bin_edges(0.0, 880.0, step))
    assert set(counts[:-1]) == {4}
    assert plots.intensity_step(np.random.default_rng(0).normal(size=(40, 40, 40))) == 0


def test_change_is_in_input_units(scene):
    cubic = figures.cubic_on(scene)
    data = whole_cubic(scene) + 3.0
    shifted = replace(scene, enhanced=Volume(data, cubic.zooms, cubic.start, cubic.rotation))
    assert figures.change(shifted, cubic) == pytest.approx(3.0, abs=0.01)


def test_profile_runs_along_the_axis_that_gained_most():
    fine = head()
    thick = fine.reshape(48, 56, 10, 4).mean(axis=3)
    scene = figures.make_scene(
        nib.Nifti1Image(thick, affine((1.0, 1.0, 4.0))),
        nib.Nifti1Image(fine, affine((1.0, 1.0, 1.0))),
        nib.Nifti1Image((thick > 40).astype(np.uint8), affine((1.0, 1.0, 4.0))),
    )
    plane, axis, across, centre = plots.profile_place(scene)
    assert axis == 2
    place = scene.positions[plane]
    at, coarse = plots.profile(scene.original, plane, axis, place, across, centre)
    _, line = plots.profile(scene.enhanced, plane, axis, place, across, centre)
    assert np.diff(at) == pytest.approx(4.0)
    assert at % 4 == pytest.approx(2.0), "the middle of each voxel"
    assert len(line) >= 3 * len(coarse)
    assert set(coarse) <= set(thick.ravel())


def test_blank_and_tiny_images_still_give_pictures(tmp_path):
    blank = nib.Nifti1Image(np.zeros((6, 5, 4), np.float32), affine((3.0, 3.0, 3.0)))
    scene = figures.make_scene(blank, blank, blank)
    cubic = figures.cubic_on(scene)
    for write in (figures.write_difference, figures.write_crops, plots.write_profile):
        assert write(scene, cubic, tmp_path / f"{write.__name__}.png").stat().st_size > 0


def test_changes_share_one_colour_scale(scene, tmp_path):
    data = np.zeros((*SHAPE, 2), np.float32)
    data[..., 0], data[::2, ..., 1] = -1.0, 4.0
    volume = Volume.from_image(nib.Nifti1Image(data, affine((1.0, 1.0, 1.0))))
    figures.write_changes(scene, figures.Overlay(volume, ["smooth"]), tmp_path / "changes.png")
    pixels = np.asarray(Image.open(tmp_path / "changes.png")).astype(int)
    width, height = scene.size
    rows = pixels[30:height, :width], pixels[height + 60 :, :width]
    weak, strong = (row.reshape(-1, 3).std(0).max() for row in rows)
    assert strong > 2 * weak
    assert rows[0][height // 2, 40, 2] > rows[0][height // 2, 40, 0], "below zero is blue"


def test_gates_and_winner_show_the_right_expert_at_the_right_place(tmp_path):
    flat = np.full(SHAPE, 100.0, np.float32)
    image = nib.Nifti1Image(flat, affine((1.0, 1.0, 1.0)))
    scene = figures.make_scene(image, image, nib.Nifti1Image(flat.astype(np.uint8), image.affine))
    labels = np.full(SHAPE, 3, np.uint8)
    labels[:24] = 2  # the patient's left
    volume = Volume.from_image(nib.Nifti1Image(labels, image.affine))
    overlay = figures.Overlay(volume, ("smooth", "cortex", "junction"))
    figures.write_winner(scene, overlay, tmp_path / "winner.png")
    row = np.asarray(Image.open(tmp_path / "winner.png")).astype(int)[30 + scene.size[1] // 2]
    width = scene.panels["axial"][1]
    seen = [row[width // 4], row[3 * width // 4]]
    for colour, number in zip(seen, (2, 1), strict=True):
        wanted = np.array(figures.LABEL_COLOURS[number])
        assert np.argsort(colour).tolist() == np.argsort(wanted).tolist()


def test_kernels_lie_where_they_are_in_the_patient(scene, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    box = labels[16:32, 20:36, 12:28]
    box[:8, 8:], box[8:, 8:], box[:8, :8], box[8:, :8] = 1, 2, 3, 4
    volume = Volume.from_image(nib.Nifti1Image(labels, affine((1.0, 1.0, 1.0))))
    figures.write_kernels(scene, figures.Overlay(volume), tmp_path / "kernels.png")
    axial = np.asarray(Image.open(tmp_path / "kernels.png")).astype(int)[30:350, :320]
    # Front and right are at the upper left.
    for place, label in (((0, 0), 2), ((0, 1), 1), ((1, 0), 4), ((1, 1), 3)):
        seen = axial[80 + 160 * place[0], 80 + 160 * place[1]]
        wanted = np.array(figures.LABEL_COLOURS[label])
        assert np.argsort(seen).tolist() == np.argsort(wanted).tolist()


def test_a_registered_scan_lies_under_the_combined_image(scene, tmp_path):
    """Its header places it elsewhere, by the movement that registration found."""
    turn = nib.eulerangles.euler2mat(0.1, 0.05, -0.08)
    moved = nib.affines.from_matvec(turn, [4.0, -3.0, 2.0])
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(head(), moved @ affine((1.0, 1.0, 1.0))), path)
    name = "sub-01/anat/sub-01_desc-srcombined_T1w.nii.gz"
    image = AnatomicalImage(tmp_path / name, name, {"sub": "01"}, "T1w", {})
    scan = {"Scan": "scan", "Used": True, "Brightness": 1.0, "RigidTransform": moved.tolist()}
    record = {"CombinedScans": [scan]}
    (pair,) = combined.draw_pairs(tmp_path, image, scene, record, {"scan": {"raw": path}})
    result = figures.write_result(scene, tmp_path / "result.png")
    before, after, wanted = (
        np.asarray(Image.open(one)).astype(int)[30:] for one in (pair.before, pair.after, result)
    )
    assert 4 * np.abs(after - wanted).mean() < np.abs(before - wanted).mean()


def test_a_mask_that_leaves_the_picture_has_no_outline_at_its_edge() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:, :10] = True
    drawn = canvas.outline(mask, 2)
    assert np.flatnonzero(drawn.any(axis=0)).tolist() == [8, 9]


@pytest.mark.parametrize(
    ("align", "left", "right"), [("left", 60, 90), ("center", 45, 75), ("right", 30, 60)]
)
def test_words_stand_where_they_are_put(tmp_path, align, left, right):
    """Below and beside a point in pixels from the upper left corner, with a dark rim."""
    board = canvas.Canvas(200, 80)
    board.write("HHH", 60, 30, align, color="#ff0000", fontsize=10)
    board.put(np.full((80, 50, 3), 100, np.uint8), 150, 0)
    board.write("H", 175, 5, color="#00ff00")
    board.scale_bar(0, 78, 2.0, 20)
    pixels = np.asarray(Image.open(board.save(tmp_path / "x.png"))).astype(int)
    assert pixels.shape == (80, 200, 3)
    rows, columns = np.nonzero((pixels[..., 0] > 150) & (pixels[..., 1] < 100))
    assert (columns.min(), columns.max()) == pytest.approx((left, right), abs=4)
    assert (rows.min(), rows.max()) == pytest.approx((32, 43), abs=4)
    assert (pixels[60:, 160:] == 100).all() and (pixels[5:25, 160:] < 60).any(), "a rim"
    rows, columns = np.nonzero((pixels == 242).all(axis=-1)[:, :48])
    assert (set(columns) >= set(range(8, 48))) and {71, 72, 73} <= set(rows)


def test_the_line_of_the_profile_on_a_large_picture(scene):
    """Every n-th pixel is drawn, at most 440 across; the line lies where it was measured."""
    wide = replace(scene, frame=replace(scene.frame, scale=10.0))
    for plane, axis, ends in (("axial", 0, "x"), ("axial", 1, "y"), ("sagittal", 2, "y")):
        axes = Figure().subplots()
        plots._locate(axes, wide, plane, axis, 11.0, 20.0)
        drawn, (line,) = axes.get_images()[0].get_array(), axes.get_lines()
        width, height = wide.frame.size(plane)
        step = max(1, width // 220)
        assert drawn.shape == (-(-height // step), -(-width // step), 3) and step > 1
        columns, rows = wide.frame.positions(plane)
        assert axes.get_images()[0].get_extent() == [columns[0], columns[-1], rows[-1], rows[0]]
        moving, fixed = (line.get_xdata(), line.get_ydata())[:: 1 if ends == "x" else -1]
        assert list(moving) == [20.0 - plots.LENGTH / 2, 20.0 + plots.LENGTH / 2]
        assert list(fixed) == [11.0, 11.0]
