# SPDX-License-Identifier: Apache-2.0
"""What pictures and pages show, as text beside this file (see ``golden.py``).

Of pictures: where each panel and each word stands, and how bright a panel is. Of pages: elements,
tables, links, and which picture is where. Of sentences only the numbers and names count.
"""

import base64
import html.parser
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import nibabel as nib
import numpy as np
import pytest

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.imaging.grid import NOT_RESTORED
from bids_moediff.reports import (
    canvas,
    combined,
    facts,
    figures,
    plots,
    reference,
    study,
    viewer,
)
from bids_moediff.reports.canvas import Volume
from bids_moediff.reports.group import write_group_report
from bids_moediff.reports.participant import environment, write_participant_report
from golden import check
from report_data import SHAPE, affine, head, make_image, make_run

SENTENCE = 7  # words from which on a text is one
NAMED = re.compile(r"sub-\w+(?:\.\w+)*|-?\d[\d.,e]*|[\w-]+\.(?:nii\.gz|tsv|json|html|txt)")


def rounded(value: Any) -> Any:
    """Numbers to three digits, so that another processor gives the same."""
    if isinstance(value, dict):
        if heat := value.get("heat"):
            value = value | {"heat": [len(heat), heat[0], heat[-1]]}
        return {key: rounded(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple | np.ndarray):
        return [rounded(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.3g}")
    return int(value) if isinstance(value, np.integer) else value


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """Lines on all that is put on a canvas."""
    lines: list[str] = []
    put, write, scale_bar = canvas.Canvas.put, canvas.Canvas.write, canvas.Canvas.scale_bar
    monkeypatch.setattr(figures, "DIFFERENCE_MAP", "RdBu_r")  # of every Matplotlib

    def noted(self, panel, left, top):
        bright = " ".join(f"{mean:.0f}" for mean in panel.reshape(-1, 3).mean(0))
        corner = panel[: len(panel) // 2, : panel.shape[1] // 2].mean()
        where = f"{left} {top} {panel.shape[1]} x {panel.shape[0]}"
        lines.append(f"  panel at {where}: {bright}; upper left {corner:.0f}")
        put(self, panel, left, top)

    def written(self, words, left, top, align="left", **style):
        lines.append(f"  {words!r} at {left:.0f} {top:.0f} {align} {style.get('color', '')}")
        write(self, words, left, top, align, **style)

    def bar(self, left, bottom, scale, length):
        lines.append(f"  bar of {length} mm, {scale:.3g} a mm, at {left} {bottom}")
        scale_bar(self, left, bottom, scale, length)

    def saved(self, path):
        height, width = self.pixels.shape[:2]
        bright = " ".join(f"{mean:.0f}" for mean in self.pixels.reshape(-1, 3).mean(0))
        lines.append(f"{path.name} {width} x {height}: {bright}")
        return path  # what Matplotlib makes of it takes seconds, and is in test_figures.py

    for name, function in (
        ("put", noted), ("write", written), ("scale_bar", bar), ("save", saved),
    ):  # fmt: skip
        monkeypatch.setattr(canvas.Canvas, name, function)
    return lines


@pytest.fixture(scope="module")
def scene() -> figures.Scene:
    """A head of 2 x 2 x 4 mm, stored from front to back, and its result of 1 mm."""
    fine = head()
    coarse = fine.reshape(24, 2, 28, 2, 10, 4).mean(axis=(1, 3, 5))
    matrix = affine((2.0, 2.0, 4.0))
    turned = nib.orientations.axcodes2ornt("AIL")
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turned)
    brain = np.zeros(coarse.shape, np.uint8)
    brain[4:20, 5:24, 2:9] = coarse[4:20, 5:24, 2:9] > 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "WIDEST", 1100)  # takes a third of the time
        return figures.make_scene(
            nib.Nifti1Image(coarse, matrix).as_reoriented(turn),
            nib.Nifti1Image(fine, affine((1.0, 1.0, 1.0))),
            nib.Nifti1Image(brain, matrix),
        )


def overlay(data: np.ndarray, *names: str, words: str = "words") -> figures.Overlay:
    volume = Volume.from_image(nib.Nifti1Image(data, affine((1.0, 1.0, 1.0))))
    return figures.Overlay(volume, names, words)


def test_pictures(scene, drawn, tmp_path):
    cubic = figures.cubic_on(scene)
    gates = np.random.default_rng(0).dirichlet((3, 2, 1), SHAPE).astype(np.float32)
    gates[:24, :, :, 0] *= 0.2
    labels = (gates.argmax(axis=3) + 1).astype(np.uint8)
    kernels = np.zeros(SHAPE, np.uint8)
    kernels[16:32, 20:36, 12:28] = np.arange(16)[:, None, None] // 2
    names = ("smooth", "cortex", "other")
    figures.write_input(scene, tmp_path / "input.png")
    figures.write_result(scene, tmp_path / "result.png")
    figures.write_difference(scene, cubic, tmp_path / "difference.png")
    figures.write_crops(scene, cubic, tmp_path / "crops.png")
    figures.write_mask(scene, figures.Overlay(scene.mask, (), "mask"), tmp_path / "mask.png")
    figures.write_amount(scene, overlay(gates[..., 0] * 100), tmp_path / "amount.png")
    figures.write_gates(scene, overlay(gates, *names), tmp_path / "gates.png")
    figures.write_winner(scene, overlay(labels, *names), tmp_path / "winner.png")
    figures.write_changes(scene, overlay(gates - 0.3, *names[:2]), tmp_path / "changes.png")
    figures.write_kernels(scene, overlay(kernels), tmp_path / "kernels.png")
    thumbnail = figures.write_thumbnail(scene, tmp_path / "thumbnail.png")
    with figures.Image.open(thumbnail) as picture:
        pixels = np.asarray(picture)
    drawn.append(f"thumbnail {pixels.shape} {pixels.mean():.0f}")
    limits = (scene.window, figures.difference_limit(scene, cubic), figures.change(scene, cubic))
    drawn.append(f"window, limit, change {rounded(limits)}")
    frame = (scene.positions, scene.frame.low, scene.frame.high, scene.frame.scale)
    drawn.append(f"frame {rounded(frame)}")
    bare = figures.make_scene(
        nib.Nifti1Image(scene.original.data, affine((2.0, 2.0, 4.0))),
        nib.Nifti1Image(scene.enhanced.data, affine((1.0, 1.0, 1.0))),
    )
    drawn.append(f"without a mask {rounded((bare.positions, bare.window, bare.frame.scale))}")
    drawn.append(f"change {rounded(figures.change(bare, figures.cubic_on(bare)))}")
    check("report/pictures.txt", "\n".join(drawn) + "\n")


def test_scans_before_and_after_registration(scene, drawn, tmp_path):
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(2 * head(), affine((1.0, 1.0, 1.0))), path)
    name = "sub-01/anat/sub-01_desc-srcombined_T1w.nii.gz"
    entities = {"sub": "01", "desc": "srcombined"}
    image = AnatomicalImage(tmp_path / name, name, entities, "T1w", {})
    move = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0, 0), [4.0, 0, -3.0])
    scans = [
        {"Scan": "a", "Used": True, "Brightness": 2.0, "RigidTransform": move.tolist()},
        {"Scan": "b", "Used": False, "Reason": "no"},
        {"Scan": "c", "Used": True, "Brightness": 1.0, "RigidTransform": np.eye(4).tolist()},
        {"Scan": "d", "Used": True, "Brightness": 1.0, "RigidTransform": np.eye(4).tolist()},
    ]
    files = {"a": {"raw": path, "preproc": tmp_path / "none"}, "c": {"preproc": path}, "d": {}}
    record = {"CombinedScans": scans}
    pairs = combined.draw_pairs(tmp_path, image, scene, record, files)
    drawn += [f"{one.name}: {one.before.name} {one.after.name}" for one in pairs]
    check("report/scans.txt", "\n".join(drawn) + "\n")


def of_figure(figure: Any) -> Iterator[str]:
    """Lines on the axes of a figure of Matplotlib."""
    for number, axes in enumerate(figure.axes):
        yield f"axes {number}: {axes.get_xlabel()!r} {axes.get_ylabel()!r} {axes.get_title()!r}"
        for line in axes.get_lines():
            x, y = (np.asarray(line.get_data()[k], dtype=float) for k in (0, 1))
            ends = rounded([x[0], x[-1], y[0], y[-1], y.mean()])
            yield f"  {line.get_label()} {line.get_color()} {len(x)}: {ends}"
        for image in axes.get_images():
            values = np.asarray(image.get_array(), dtype=float)
            extent, bright = rounded(image.get_extent()), rounded(float(values.mean()))
            yield f"  image {values.shape} {extent}: {bright} {rounded(image.get_clim())}"
        for patch in axes.patches:
            values, edges, _ = patch.get_data()
            mean = float(np.average((edges[1:] + edges[:-1]) / 2, weights=values))
            yield f"  {patch.get_label()} {len(values)} {rounded([edges[0], edges[-1], mean])}"
        for words in axes.texts:
            yield f"  {words.get_text()!r} at {rounded(words.get_position())}"
        yield f"  {len(axes.collections)} collections, axis {axes.axison}"


def test_plots(scene, tmp_path, monkeypatch):
    lines: list[str] = []

    def noted(figure, path):
        lines.extend([path.name, *of_figure(figure)])
        return path

    monkeypatch.setattr(plots, "_save", noted)
    plots.write_profile(scene, figures.cubic_on(scene), tmp_path / "profile.svg")
    plots.write_histogram(scene, tmp_path / "histogram.svg")
    plots.write_histogram(replace(scene, mask=None), tmp_path / "histogram of the head.svg")
    kept: list[Any] = []
    monkeypatch.setattr(reference.Figure, "savefig", lambda self, *_, **__: kept.append(self))
    image = nib.Nifti1Image(scene.enhanced.data, affine((1.0, 1.0, 1.0)))
    away = nib.Nifti1Image(scene.enhanced.data * 3, image.affine + np.diag([0, 0, 0, 0]))
    away.affine[:3, 3] += 6
    reference.write_reference(image, away, image, tmp_path / "reference.png")
    lines += ["reference.png", *of_figure(kept[0])]
    check("report/plots.txt", "\n".join(lines) + "\n")


def test_the_volumes_of_the_viewer(scene, monkeypatch):
    gates = np.random.default_rng(0).dirichlet((3, 2, 1), SHAPE).astype(np.float32)
    error = overlay(gates[..., 0] * 50)
    lines = []
    for most in (viewer.MOST_BYTES, 60_000, 30_000, 20_000, 8_000, 10):
        monkeypatch.setattr(viewer, "MOST_BYTES", most)
        view = viewer.make_view(scene, error, overlay(gates, "smooth", "cortex", "other"))
        lines.append(f"at most {most}: {view['detail']}")
        for name, text in view["volumes"].items():
            content = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
            shape = view["description"]["volumes"][name]["shape"]
            lines.append(f"  {name} {shape} {len(content)} {content[:999].mean():.0f}")
        lines.append(f"  {json.dumps(rounded(view['description']), sort_keys=True)}")
    check("report/viewer.txt", "\n".join(lines) + "\n")


class Page(html.parser.HTMLParser):
    """Lines on the elements of a page; of its sentences the numbers and names."""

    VOID = ("img", "input", "meta", "link", "br", "line", "path")
    PROSE = ("title", "aria-label", "alt", "placeholder", "content")

    def __init__(self, pictures: dict[str, str]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.depth = 0
        self.pictures = pictures
        self.silent = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        words = []
        for name, value in attrs:
            value = value or ""
            if value.startswith("data:"):
                value = self.pictures.get(value, value[:24])
            elif name == "d":
                value = f"{value.count('M')} points"
            elif name in self.PROSE:
                value = shortened(value)
            words.append(f'{name}="{value}"')
        self.lines.append(" " * self.depth + " ".join([tag, *words]))
        if tag == "style" or (tag == "script" and not attrs):
            self.silent = tag
        if tag not in self.VOID:
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        self.silent = ""
        if tag not in self.VOID:
            self.depth -= 1

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or self.silent:
            return
        if text.startswith(("{", "[")) and "." in text:
            text = json.dumps(rounded(json.loads(text)), sort_keys=True)
        elif len(text) > 500:
            text = f"{len(text) // 2000} x 2000 characters"
        else:
            text = shortened(text)
        self.lines.append(" " * self.depth + f"| {text}")


def shortened(text: str) -> str:
    return text if len(text.split()) < SENTENCE else f"... {' '.join(NAMED.findall(text))}"


def as_text(page: Path) -> str:
    pictures = {}
    for path in sorted(page.parent.rglob("figures/*")):
        kind = {".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
        content = base64.b64encode(path.read_bytes()).decode()
        pictures[f"data:{kind};base64,{content}"] = f"<{path.name}>"
    parser = Page(pictures)
    parser.feed(page.read_text())
    return "\n".join(parser.lines) + "\n"


COMBINED = {
    "Scan": "sub-03_T1w", "Used": True, "Brightness": 1.25, "MeanDisplacement": 1.234,
    "Agreement": 0.987, "EstimatedNoise": 3.21, "Weight": 0.6, "ResidualOverNoise": 0.9,
    "SlicesWeighedDown": [3, 4], "RigidTransform": np.eye(4).tolist(),
}  # fmt: skip


def several(root: Path) -> dict[str, Any]:
    """A run with an image that is done, a failed one, one not restored, and a combined one."""
    run = make_run(root)
    done, failed = run["images"]
    done["record"] |= {
        "ModelVersion": "0.9", "ModelChoice": "asked for", "NumberOfSamples": 3,
        "SamplesFrom": "noise", "Device": "cpu", "Precision": "fp32", "EstimatedNoise": 1.5,
        "AcquiredVoxelSize": [2.0, 2.0, 2.5], "Sampler": "gaussian", "ConsistencyNoise": 0.7,
        "ExpectedErrorBound": "95 % of voxels",
        "SamplingProfiles": [
            {"profile": "kspace", "fwhm": 1.0, "filter": "hann"}, {"profile": "box", "fwhm": 0.75},
            {"profile": "gaussian", "fwhm": 1.25},
        ],
    }  # fmt: skip
    small = {
        "key": "sub-01_PDw", "source": "sub-01/anat/sub-01_PDw.nii.gz", "status": "done",
        "message": "", "warnings": [NOT_RESTORED, NOT_RESTORED], "quality": {}, "products": {},
        "record": {"InputVoxelSize": [1, 1, 1], "OutputVoxelSize": [1, 1, 1]},
    }  # fmt: skip
    group = make_image(root, "03", 5, rich=False)
    group |= {
        "key": "sub-03_desc-srcombined_T1w", "warnings": [], "quality": {},
        "source": "sub-03/anat/sub-03_desc-srcombined_T1w.nii.gz",
        "scans": ["sub-03/anat/sub-03_T1w.nii.gz"],
        "products": {"srcombined": group["products"]["sr"]},
    }  # fmt: skip
    lost = {"Scan": "sub-03_acq-b_T1w", "Used": False, "Agreement": 0.2, "Reason": "moved"}
    group["record"] = {"OutputVoxelSize": [1.0, 1.0, 1.5], "CombinedScans": [COMBINED, lost]}
    more = {"settings": {"model": "auto", "num_steps": "4"}, "finished": "2026-11-30"}
    return run | more | {"images": [done, failed, small, group]}


@pytest.fixture
def quick(monkeypatch) -> None:
    """Pictures that hold their name only."""
    monkeypatch.setattr(figures, "WIDEST", 1100)
    monkeypatch.setattr(canvas.Canvas, "save", lambda _, path: named(path))
    monkeypatch.setattr(plots, "_save", lambda _, path: named(path))


def named(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.name)
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        quick.__wrapped__(patch)
        write_participant_report(root, "01", several(root))
    return root


PAGES = ("sub-01", "sub-01_T1w", "sub-01_T2w", "sub-01_PDw", "sub-03_desc-srcombined_T1w")


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_a_participant(pages, name):
    check(f"report/{name}.txt", as_text(pages / f"{name}.html"))


def test_there_is_no_other_page(pages):
    assert {path.name for path in pages.glob("*")} == {
        "sub-01", "sub-03", *(f"{name}.html" for name in PAGES)
    }  # fmt: skip


def test_one_image_alone_and_one_that_kept_the_shading_of_the_scan(tmp_path, monkeypatch, quick):
    """The raw scan is drawn, not the prepared one, which is twice as bright here."""
    run = several(tmp_path / "out")
    raw = tmp_path / "raw" / "sub-01" / "anat"
    raw.mkdir(parents=True)
    image = nib.load(tmp_path / "out" / run["images"][0]["products"]["preproc"])
    bright = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(bright * 0.5, image.affine), raw / "sub-01_T1w.nii.gz")
    run |= {"images": run["images"][:1], "errors": [], "methods": "", "settings": {}}
    shown: list[Any] = []

    def noted(original, enhanced, mask):
        shown.append([float(np.asarray(one.dataobj).max()) for one in (original, enhanced, mask)])
        raise ValueError(f"{tmp_path / 'out'}/x is odd")

    monkeypatch.setattr(figures, "make_scene", noted)
    for raw_dir in (None, tmp_path / "raw", tmp_path / "none"):
        page = write_participant_report(tmp_path / "out", "01", run, raw_dir=raw_dir)
    assert [one[0] for one in shown] == pytest.approx(
        [bright.max(), bright.max() / 2, bright.max()]
    )
    assert [one[2] for one in shown] == [1.0] * 3
    assert not (tmp_path / "out" / "sub-01_T1w.html").exists()
    check("report/alone.txt", as_text(page))


def test_the_page_of_a_group(tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "out"
    for number in range(14):
        label, site = f"{number:02d}", "AB"[number % 2]
        for suffix in ("T1w", "T2w") if number < 4 else ("T1w",):
            anat = output / f"sub-{label}" / "ses-1" / "anat"
            anat.mkdir(parents=True, exist_ok=True)
            source = f"sub-{label}/ses-1/anat/sub-{label}_ses-1_{suffix}"
            content = {
                "Model": "student" if number < 9 else "moediff", "ModelVersion": "0.9",
                "NumberOfSteps": 4, "NumberOfSamples": 1, "RandomSeed": 0, "Device": "cpu",
                "Precision": "fp32", "ConsistencyResidual": 1e-4 * (1 + number % 3),
                "EstimatedNoise": 2.5, "InputVoxelSize": [1, 1, 4 + number % 2],
                "AcquiredVoxelSize": [1, 1, 4], "OutputVoxelSize": [0.7] * 3,
                "Sources": [f"bids:raw:{source}.nii.gz"],
                "Quality": {"snr_brain": 90.0 if number == 5 else 20 + number, "cnr": 3.1,
                            "fber": -1.0, "usable_x": 1.1, "usable_z": 4.5},
                "Warnings": ["Slices are 4 mm thick.", "It moved."] if number in (3, 5) else [],
            }  # fmt: skip
            stem = f"sub-{label}_ses-1_res-0p7mm_desc-sr_{suffix}"
            (anat / f"{stem}.json").write_text(json.dumps(content))
            own = raw / f"{source}.json"
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(json.dumps({"ManufacturersModelName": "Prisma" if site == "A" else 7}))
        (output / f"sub-{label}.html").touch()
    (output / "sub-05_ses-1_T1w.html").touch()
    figure = output / "sub-05" / "ses-1" / "figures"
    (output / "sub-05" / "figures").mkdir(parents=True)
    (output / "sub-05" / "figures" / "sub-05_ses-1_desc-thumbnail_T1w.png").touch()
    assert not figure.exists()
    (raw / "T1w.json").write_text('{"Manufacturer": "Siemens", "MagneticFieldStrength": 2.89}')
    rows = [f"sub-{n:02d}\t{'AB'[n % 2]}\t{n}\t{'n/a' if n else 'patient'}" for n in range(14)]
    head_line = "participant_id\tsite\tage\tgroup"
    (raw / "participants.tsv").write_text("\n".join([head_line, *rows]) + "\n")
    states = {f"{n:02d}": {"status": "done", "message": ""} for n in range(14)}
    states |= {
        "14": {"status": "missing", "message": "No image."},
        "15": {"status": "failed", "message": "sub-15_T1w: 3 voxels."},
        "16": {"status": "failed", "message": "sub-16_T1w: 5 voxels."},
    }
    page = write_group_report(output, states, raw)
    check("report/group.txt", as_text(page))
    for suffix in ("T1w", "T2w"):
        check(f"report/group_{suffix}.tsv", (output / f"group_{suffix}.tsv").read_text())
    described = json.loads((output / "group_T1w.json").read_text())
    words = {entry["Description"] for entry in described.values()}
    assert len(words) == len(described) - 1, "site and group are told in the same words"
    assert list(described) == (output / "group_T1w.tsv").read_text().split("\n")[0].split("\t")
    assert {
        name for name, entry in described.items() if "participants.tsv" in entry["Description"]
    } == {"site", "group"}
    axes = {"x": "first", "y": "second", "z": "third"}
    what = {"in": "input", "measured": "acquisition", "out": "result"}
    for place, words in what.items():
        for axis, which in axes.items():
            said = described[f"voxel_{place}_{axis}"]["Description"]
            assert words in said and which in said


def test_columns_that_tell_centres_apart(tmp_path):
    names = ["Site", "CENTER_id", "centre", "scanner2", "cohort", "group", "Diagnosis", "age"]
    lines = ["\t".join(["participant_id", *names]), "\t".join(["sub-1", *"abcdefgh"])]
    lines += [
        "\t".join(["2", "", "n/a", "N/A", "NaN", "x", "y", "z", "1"]),
        "\t".join(["", *"abcdefgh"]),
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert study.read_participants(tmp_path) == {
        "1": dict(zip(names[:7], "abcdefg", strict=True)),
        "2": {"cohort": "x", "group": "y", "Diagnosis": "z"},
    }
    assert study.read_participants(tmp_path / "none") == {}


def test_a_page_without_a_value_that_it_shows_is_not_written():
    with pytest.raises(jinja2.UndefinedError):
        environment().from_string("{{ absent }}").render()
    assert environment().from_string("{{ words }}").render(words="<b>") == "&lt;b&gt;"


def test_sizes_that_are_not_known_are_left_out_of_the_card():
    card = dict(facts.run_card({}, {"InputVoxelSize": [1, 1, 2.5], "Device": "cpu"}))
    assert card == {"Voxel size in": "1 x 1 x 2.5 mm", "Device": "cpu, -"}
