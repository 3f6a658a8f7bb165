# SPDX-License-Identifier: Apache-2.0
"""The report of a participant: one HTML page that opens from the output folder, offline.

The page is an own Jinja template and not nireports' assembler, whose stock template loads its
style sheets and scripts from the network: a report must look the same on a workstation without
internet, today and in ten years. Style and script are inside the page, pictures are linked
relative to it. Same record and same derivatives, same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import nibabel as nib

from bids_moediff.bids.image import AnatomicalImage
from bids_moediff.bids.names import figure_path, parse_name
from bids_moediff.errors import ImageError
from bids_moediff.preprocessing.conform import conform
from bids_moediff.quality.figures import DESCRIPTIONS
from bids_moediff.reports import captions
from bids_moediff.runtime.sink import write_text

COMPARED = ("input", "sr", "cubic")


@dataclass
class Section:
    """What the page shows of one image."""

    anchor: str
    source: str
    status: str
    message: str
    warnings: list[str]
    facts: list[tuple[str, str]] = field(default_factory=list)
    summary: str = ""
    pictures: dict[str, str] = field(default_factory=dict)
    main_figures: list[tuple[str, str, str]] = field(default_factory=list)
    resolution: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    all_figures: list[tuple[str, str, str]] = field(default_factory=list)
    products: list[tuple[str, str]] = field(default_factory=list)


def write_participant_report(
    output_dir: Path,
    label: str,
    run: Mapping[str, Any],
    draw: bool = True,
    raw_dir: Path | None = None,
) -> Path:
    """Write ``sub-<label>.html`` and the pictures it shows.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    label
        Participant without ``sub-``.
    run
        Record of the run; its keys are listed in docs/architecture.md ("Reports").
    draw
        Whether to draw the pictures; without, those on disk are shown.
    raw_dir
        Root of the raw data set, where results kept the shading of the scan: they are then shown
        beside the raw scan and not beside the prepared one.

    Returns
    -------
    Path
        The page.
    """
    sections = [
        _section(Path(output_dir), item, number, draw, raw_dir)
        for number, item in enumerate(run.get("images", ()), 1)
    ]
    page = environment().get_template("participant.html").render(
        label=label,
        sections=sections,
        errors=list(run.get("errors", ())),
        methods=methods_html(run),
        versions=dict(run.get("versions", {})),
        settings=dict(run.get("settings", {})),
        finished=run.get("finished", ""),
        titles=captions.TITLES,
        captions=captions.CAPTIONS,
        compare_caption=captions.COMPARE_CAPTION,
    )
    return write_text(page, Path(output_dir) / f"sub-{label}.html")


@cache
def environment() -> jinja2.Environment:
    """Templates of this package; what is inserted is escaped."""
    folder = files("bids_moediff.reports").joinpath("templates")
    templates = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return jinja2.Environment(
        loader=jinja2.DictLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def methods_html(run: Mapping[str, Any]) -> str:
    """Methods text as HTML: ``methods_html`` of the run, or its ``methods`` in Markdown."""
    if run.get("methods_html"):
        return str(run["methods_html"])
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).render(str(run.get("methods", "")))


def _section(
    output_dir: Path, item: Mapping[str, Any], number: int, draw: bool, raw_dir: Path | None
) -> Section:
    record = item.get("record") or {}
    quality = item.get("quality") or {}
    section = Section(
        anchor=f"image-{number}",
        source=str(item.get("source", "")),
        status=str(item.get("status", "done")),
        message=str(item.get("message") or ""),
        warnings=list(dict.fromkeys(item.get("warnings") or record.get("Warnings") or ())),
        summary=_summary(record),
        facts=_facts(item, record),
        main_figures=[
            (words, _number(quality[name], unit), DESCRIPTIONS[name])
            for name, words, unit in captions.MAIN_FIGURES
            if quality.get(name) is not None
        ],
        resolution=_resolution(quality),
        all_figures=[
            (name, _number(value), DESCRIPTIONS.get(name, ""))
            for name, value in quality.items()
        ],
        products=[(name, path) for name, path in (item.get("products") or {}).items()],
    )
    try:
        section.pictures = _pictures(output_dir, item, draw, raw_dir)
    except (OSError, ValueError, ImageError, nib.filebasedimages.ImageFileError) as error:
        words = str(error).replace(f"{output_dir}/", "")
        section.warnings.append(f"The pictures of this image could not be drawn ({words}).")
    return section


def _pictures(
    output_dir: Path, item: Mapping[str, Any], draw: bool, raw_dir: Path | None
) -> dict[str, str]:
    """Pictures of an image by name, as paths relative to the page; drawn first if asked for."""
    source = str(item.get("source", ""))
    if not source:
        return {}
    entities, suffix, _ = parse_name(PurePosixPath(source).name)
    image = AnatomicalImage(Path(), source, entities, suffix, {})
    products = {
        name: output_dir / path
        for name, path in (item.get("products") or {}).items()
        if (output_dir / path).exists()
    }
    if raw_dir is not None and (raw_dir / source).exists():
        products["raw"] = raw_dir / source
    if draw and "sr" in products and ("raw" in products or "preproc" in products):
        draw_pictures(output_dir, image, products)
    paths = {
        name: figure_path(image, name, ".svg" if name in ("profile", "histogram") else ".png")
        for name in (*COMPARED, *captions.TITLES)
    }
    return {name: str(path) for name, path in paths.items() if (output_dir / path).exists()}


def draw_pictures(
    output_dir: Path, image: AnatomicalImage, products: Mapping[str, Path]
) -> None:
    """Draw every picture that the products of an image allow.

    Parameters
    ----------
    output_dir
        Root of the derivatives.
    image
        The source: names the pictures.
    products
        Paths of ``raw`` or ``preproc`` (what the result is compared with) and of ``sr``, and
        where there are any of ``mask``, ``gates`` and ``srstd``.
    """
    from bids_moediff.reports import canvas, figures, plots

    def load(name: str) -> Any:
        return nib.load(products[name]) if name in products else None

    def path(name: str, extension: str = ".png") -> Path:
        return output_dir / figure_path(image, name, extension)

    original = conform(products["raw"])[0] if "raw" in products else load("preproc")
    scene = figures.make_scene(original, load("sr"), load("mask"))
    cubic = figures.cubic_on(scene)
    figures.write_input(scene, path("input"))
    figures.write_result(scene, path("sr"))
    figures.write_cubic(scene, cubic, path("cubic"))
    figures.write_difference(scene, cubic, path("difference"))
    figures.write_crops(scene, cubic, path("crops"))
    plots.write_profile(scene, cubic, path("profile", ".svg"))
    plots.write_histogram(scene, path("histogram", ".svg"))
    if scene.mask is not None:
        figures.write_mask(scene, path("mask"))
    if "srstd" in products:
        deviation = canvas.Volume.from_image(load("srstd"))
        figures.write_deviation(scene, deviation, path("srstd"))
    if "gates" in products:
        gates = canvas.Volume.from_image(load("gates"))
        figures.write_gates(scene, gates, path("gates"))
        figures.write_winner(scene, gates, path("expert"))


def _number(value: Any, unit: str = "") -> str:
    """A value for a table: four significant digits, a dash for none."""
    if value is None:
        return "-"
    words = f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
    return f"{words} {unit}".strip()


def _sizes(zooms: Sequence[Any] | None) -> str:
    return " x ".join(f"{zoom:.3g}" for zoom in zooms) + " mm" if zooms else "-"


def _summary(record: Mapping[str, Any]) -> str:
    """What was done, in a sentence or two."""
    if "InputVoxelSize" not in record or "OutputVoxelSize" not in record:
        return ""
    words = f"{_sizes(record['InputVoxelSize'])} became {_sizes(record['OutputVoxelSize'])}."
    acquired = record.get("AcquiredVoxelSize") or record["InputVoxelSize"]
    if any(a > 1.01 * b for a, b in zip(acquired, record["InputVoxelSize"], strict=True)):
        words += f" The input was taken as measured with {_sizes(acquired)} and interpolated."
    residual = record.get("ConsistencyResidual")
    if residual is not None:
        share = f"{100 * residual:.2g} %" if residual > 1e-5 else "less than 0.001 %"
        words += (
            " Measured again with the scanner's voxels, the result differs from the input by "
            f"{share} (root of squares)."
        )
    return words


def _profiles(axes: Sequence[Mapping[str, Any]] | None) -> str:
    """Sampling of the three voxel axes in words."""
    words = [
        axis["profile"] if axis["profile"] == "kspace" else f"{axis['profile']} {axis['fwhm']:.2g}"
        for axis in axes or ()
    ]
    return ", ".join(words) if len(set(words)) > 1 else "".join(words[:1])


def _facts(item: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The run card: what ran, on what, with which result."""
    name = f"{record.get('Model', '')} {record.get('ModelVersion', '')}".strip()
    memory, seconds = item.get("peak_memory_gb"), item.get("seconds")
    quality = item.get("quality") or {}
    residual, noise = record.get("ConsistencyResidual"), quality.get("noise_sigma")
    acquired = record.get("AcquiredVoxelSize")
    rows = [
        ("Model", name),
        ("Why this model", str(record.get("ModelChoice") or "")),
        ("Steps", _number(record.get("NumberOfSteps"))),
        ("Samples", _number(record.get("NumberOfSamples"))),
        ("Noise strength", _number(record.get("NoiseStrength"))),
        ("Seed", _number(record.get("RandomSeed"))),
        ("Device", f"{record.get('Device', '-')}, {record.get('Precision', '-')}"),
        ("Voxel size in", _sizes(record.get("InputVoxelSize"))),
        ("Voxel size out", _sizes(record.get("OutputVoxelSize"))),
        ("Acquired voxels (worked from)", _sizes(acquired)),
        ("Sampling", _profiles(record.get("SamplingProfiles"))),
        ("Consistency residual", "-" if residual is None else f"{residual:.2e}"),
        ("Noise of the input", _number(noise, "input units")),
        ("Time", "-" if seconds is None else f"{seconds:.0f} s"),
        ("Peak memory", "-" if memory is None else f"{memory:.2g} GB"),
        ("Sampler", str(record.get("Sampler") or "")),
        ("Weights (SHA-256)", str(record.get("ModelSHA256") or "")),
    ]
    return [(words, value) for words, value in rows if value not in ("", "-", "-, -")]


def _resolution(quality: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Per voxel axis: name, stored voxel, usable detail, acquired voxel, verdict."""
    rows = []
    for axis, name in zip("xyz", ("first", "second", "third"), strict=True):
        if f"usable_{axis}" in quality:
            sizes = [
                _number(quality.get(f"{kind}_{axis}"), "mm")
                for kind in ("spacing", "usable", "acquired")
            ]
            kind = str(quality.get(f"interpolation_{axis}", "unknown"))
            rows.append((name, sizes[0], sizes[1], sizes[2], kind))
    return rows
