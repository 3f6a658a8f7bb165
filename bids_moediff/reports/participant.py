# SPDX-License-Identifier: Apache-2.0
"""Write the report of a participant: HTML pages that need no other file and no network.

The pages use an own Jinja template and not nireports' assembler, whose template loads style sheets
and scripts from the network. A report must look the same on a workstation without internet, today
and in ten years. Style, script, pictures and volumes are inside the page. The same record and
derivatives give the same bytes.
"""

import base64
import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import nibabel as nib
import numpy as np

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import figure_path, parse_name
from bids_moediff.bids.products import EXPERT, Figure
from bids_moediff.imaging.grid import NOT_RESTORED
from bids_moediff.preprocessing.conform import conform
from bids_moediff.quality.figures import DESCRIPTIONS
from bids_moediff.reports import canvas, captions, combined, facts, figures
from bids_moediff.reports.figures import Scene
from bids_moediff.reports.methods import methods_html
from bids_moediff.runtime.sink import write_text
from bids_moediff.runtime.text import visible

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
NOTHING_MORE_FITS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
PLOTS = ("profile", "histogram")


@dataclass(frozen=True)
class Section:
    """Content of a page for one image; ``pictures`` are ``data:`` addresses by name.

    ``scans``: rows of ``combined.HEADS`` for an image that was combined from several; ``pairs``:
    name and pictures of each, before and after registration.
    """

    source: str
    status: str
    message: str
    page: str
    warnings: list[str]
    facts: list[tuple[str, str]]
    summary: str
    main_figures: list[tuple[str, str, str]]
    resolution: list[tuple[str, str, str, str, str]]
    all_figures: list[tuple[str, str, str]]
    products: list[tuple[str, str]]
    added: str = ""
    scans: list[tuple[str, ...]] = field(default_factory=list)
    pairs: list[tuple[str, str, str]] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    view: dict[str, Any] | None = None

    @property
    def badge(self) -> str:
        """Status in words, also for an image that needed nothing."""
        return "not restored" if NOT_RESTORED in self.warnings else self.status

    @property
    def name(self) -> str:
        """File name of the source."""
        return self.source.rsplit("/", 1)[-1]


def write_participant_report(
    output_dir: Path, label: str, run: Mapping[str, Any], raw_dir: Path | None = None
) -> Path:
    """Write ``sub-<label>.html``. For several images it is an index, and each image has a page.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    label
        Participant without ``sub-``.
    run
        Record of the run; docs/architecture.md ("Reports") lists its keys.
    raw_dir
        Root of the raw data set. Results that kept the shading of the scan are shown beside the
        raw scan instead of the prepared one.

    Returns
    -------
    Path
        The page, or the index.
    """
    root = Path(output_dir)
    items = list(run.get("images", ()))
    common = {
        "label": label,
        "errors": list(run.get("errors", ())),
        "methods": methods_html(run),
        "versions": dict(run.get("versions", {})),
        "settings": dict(run.get("settings", {})),
        "finished": run.get("finished", ""),
        "figures": captions.figures(),
        "compare_caption": captions.COMPARE_CAPTION,
        "pair_caption": captions.PAIR_CAPTION,
        "scan_heads": combined.HEADS,
    }
    single = environment().get_template("participant.html")
    sections = []
    for item in items:
        section = _section(root, item, raw_dir)
        if len(items) > 1 and section.page:
            text = single.render(sections=[section], index=f"sub-{label}.html", **common)
            write_text(visible(text), root / section.page)
            # A page holds megabytes: the index keeps one picture of each.
            thumbnail = {key: section.pictures[key] for key in ("sr",) if key in section.pictures}
            section = replace(section, pictures=thumbnail, view=None, pairs=[])
        sections.append(section)
    template = environment().get_template("index.html") if len(items) > 1 else single
    text = template.render(sections=sections, index="", **common)
    return write_text(visible(text), root / f"sub-{label}.html")


@cache
def environment() -> jinja2.Environment:
    """Return the templates of this package; inserted text is escaped."""
    folder = files("bids_moediff.reports").joinpath("templates")
    templates = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _section(output_dir: Path, item: Mapping[str, Any], raw_dir: Path | None) -> Section:
    record = item.get("record") or {}
    quality = item.get("quality") or {}
    source = str(item.get("source", ""))
    section = Section(
        source=source,
        status=str(item.get("status", "done")),
        message=str(item.get("message") or ""),
        page=PurePosixPath(source).name.split(".")[0] + ".html" if source else "",
        warnings=list(dict.fromkeys(item.get("warnings") or record.get("Warnings") or ())),
        summary=facts.summary(record) or combined.summary(record),
        scans=combined.table(record),
        facts=facts.run_card(item, record),
        main_figures=[
            (words, facts.number(quality[name], unit), DESCRIPTIONS[name])
            for name, words, unit in captions.MAIN_FIGURES
            if quality.get(name) is not None
        ],
        resolution=facts.resolution(quality),
        all_figures=[
            (name, facts.number(value), DESCRIPTIONS.get(name, ""))
            for name, value in quality.items()
        ],
        products=[(name, path) for name, path in (item.get("products") or {}).items()],
    )
    try:
        return _illustrated(section, output_dir, item, raw_dir)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOTHING_MORE_FITS:
            raise  # the page could not be written either
        words = str(error).replace(f"{output_dir}/", "")
        sentence = f"The pictures of this image could not be drawn ({words})."
        return replace(section, warnings=[*section.warnings, sentence])


def _illustrated(
    section: Section, output_dir: Path, item: Mapping[str, Any], raw_dir: Path | None
) -> Section:
    """Return the section with pictures and volumes of existing products."""
    if not section.source:
        return section
    entities, suffix, _ = parse_name(PurePosixPath(section.source).name)
    image = AnatomicalImage(Path(), section.source, entities, suffix, {})
    products = {
        name: output_dir / path for name, path in section.products if (output_dir / path).exists()
    }
    if raw_dir is not None and (raw_dir / section.source).exists():
        products["raw"] = raw_dir / section.source
    record, members = item.get("record") or {}, {}
    if "srcombined" in products:
        members = combined.scan_paths(output_dir, item["scans"], raw_dir)
        first = next(scan["Scan"] for scan in record["CombinedScans"] if scan["Used"])
        products |= {"sr": products["srcombined"], **members[first]}
    view, added, pairs = None, "", []
    if "sr" in products and ("raw" in products or "preproc" in products):
        scene, view, change = draw_pictures(output_dir, image, products)
        if members:
            pairs = combined.draw_pairs(output_dir, image, scene, record, members)
        added = facts.added(change, facts.noise_of(item, record))
        view["widths"], view["heights"] = _extents(view["description"])
    paths = {
        name: output_dir / figure_path(image, name, ".svg" if name in PLOTS else ".png")
        for name in ("input", "sr", *captions.figures())
    }
    pictures = {name: _address(path) for name, path in paths.items() if path.exists()}
    shown = [(pair.name, _address(pair.before), _address(pair.after)) for pair in pairs]
    return replace(section, pictures=pictures, view=view, added=added, pairs=shown)


def _address(path: Path) -> str:
    """Return a picture as a ``data:`` address."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _extents(description: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return width and height of each plane in mm."""
    from bids_moediff.reports.canvas import PLANES

    size = [b - a for a, b in zip(description["low"], description["high"], strict=True)]
    wide = {plane: round(size[axes[0]], 2) for plane, axes in PLANES.items()}
    high = {plane: round(size[axes[1]], 2) for plane, axes in PLANES.items()}
    return wide, high


def draw_pictures(
    output_dir: Path, image: AnatomicalImage, products: Mapping[str, Path]
) -> tuple[Scene, dict[str, Any], float]:
    """Draw every picture that the products of an image allow.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    image
        The source; its name is that of the pictures.
    products
        Paths of ``raw`` or ``preproc`` (for comparison), of ``sr`` and of further products.

    Returns
    -------
    scene
        Volumes, frame and slices of the pictures.
    view
        Volumes for the viewer, see :func:`bids_moediff.reports.viewer.make_view`.
    change
        Root mean square of result minus cubic interpolation in the brain, in input units.
    """
    from bids_moediff.reports import plots, viewer

    def load(name: str) -> Any:
        return nib.load(products[name]) if name in products else None

    def path(name: str, extension: str = ".png") -> Path:
        return output_dir / figure_path(image, name, extension)

    original = conform(products["raw"])[0] if "raw" in products else load("preproc")
    scene = figures.make_scene(original, load("sr"), load("mask"))
    cubic = figures.cubic_on(scene)
    figures.write_input(scene, path("input"))
    figures.write_result(scene, path("sr"))
    figures.write_thumbnail(scene, path("thumbnail"))
    figures.write_difference(scene, cubic, path("difference"))
    figures.write_crops(scene, cubic, path("crops"))
    plots.write_profile(scene, cubic, path("profile", ".svg"))
    plots.write_histogram(scene, path("histogram", ".svg"))
    overlays = {}
    for row in captions.drawn_products():
        if row.key in products and row.figure is not None:
            overlay = load_overlay(row.figure, [row.key, *row.figure.beside], products)
            figures.DRAW[row.figure.draw](scene, overlay, path(row.key))
            overlays[row.key] = overlay
    view = viewer.make_view(scene, overlays.get("srstd"), overlays.get("gates"))
    return scene, view, figures.change(scene, cubic)


def load_overlay(
    figure: Figure, keys: Sequence[str], products: Mapping[str, Path]
) -> figures.Overlay:
    """Read what a figure shows; several products become volumes along the last axis."""
    paths = [products[key] for key in keys if key in products]
    images = [nib.Nifti1Image.from_filename(path) for path in paths]
    volume = canvas.Volume.from_image(images[0])
    if figure.beside:
        parts = [canvas.Volume.from_image(image).data for image in images]
        volume = replace(volume, data=np.stack(parts, axis=3))
    names = [name for path in paths for name in label_names(path)]
    return figures.Overlay(volume, names, figure.words)


def label_names(path: Path) -> list[str]:
    """Return the names of the volumes or labels of a map, or of its one expert."""
    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    if not sidecar.exists():
        return []
    record = json.loads(sidecar.read_text(encoding="utf-8"))
    return list(record.get("LabelMap", [record[EXPERT]] if EXPERT in record else []))
