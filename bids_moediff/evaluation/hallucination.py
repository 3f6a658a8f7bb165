# SPDX-License-Identifier: Apache-2.0
"""Test whether a method keeps small lesions, and whether it invents structure.

Small lesions are added to a true head. The head with and without lesions is made coarse and
restored by the same method. Their difference is the effect of the lesions: at a lesion it should
equal the lesion, elsewhere it should be zero. Methods that take a reference contrast are also
tried with lesions in the reference alone, whose effect should be zero, and in both images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from bids_moediff.errors import ImageError
from bids_moediff.imaging.grid import Triple
from bids_moediff.imaging.metrics import bootstrap_interval, intensity_range
from bids_moediff.imaging.noise import tissue_noise
from bids_moediff.imaging.protocols import Protocol, parse_protocol

from .benchmark import Method, Task, consistent, protocol_task
from .truth import Loaded

DIAMETERS = (2.0, 3.0, 4.0, 5.0)  # mm
CONTRASTS = (0.3, 0.15, -0.2)  # of the intensity range of the head
SOFT_EDGE = 1.0  # mm from full contrast to none
SPACING = 16.0  # mm between centres
DEPTH = 15.0  # mm from the outline of the head
# Blurring alone spreads a lesion this many coarse voxels beyond its edge; further off nothing of
# it may show.
REACH = 2.0
Row = dict[str, Any]
IMAGE, REFERENCE, BOTH = "image", "reference", "both"  # where the lesions are
LESION_COLUMNS = (
    "head", "group", "protocol", "method", "version", "lesions_in", "diameter_mm", "contrast",
    "x", "y", "z", "recovered",
)  # fmt: skip
HEAD_COLUMNS = (
    "head", "group", "protocol", "method", "version", "noise", "outside_rms", "outside_p999",
    "outside_max", "false_positives", "invented", "null_energy", "null_correlation",
    "mirror_difference",
)  # fmt: skip


@dataclass(frozen=True)
class Lesion:
    """One sphere with a soft edge: centre in voxels, diameter in mm, contrast over the range."""

    centre: tuple[int, int, int]
    diameter: float
    contrast: float


def place_lesions(
    loaded: Loaded,
    diameters: Sequence[float] = DIAMETERS,
    contrasts: Sequence[float] = CONTRASTS,
    repeats: int = 2,
    seed: int = 0,
) -> list[Lesion]:
    """Place lesions in uniform tissue deep in the head.

    Positions are drawn from the more uniform half of the tissue at least 15 mm inside the outline,
    with at least 16 mm between two of them.

    Parameters
    ----------
    loaded
        The head.
    diameters, contrasts
        In mm, and over the range of the head.
    repeats
        Number of lesions of each diameter and contrast.
    seed
        Seed of the positions.

    Raises
    ------
    ImageError
        If the head is too small for all of them.
    """
    zooms, truth = loaded.zooms, loaded.truth
    depth = ndimage.distance_transform_edt(loaded.mask, sampling=zooms)
    sigma = [1.5 / zoom for zoom in zooms]
    slope = ndimage.gaussian_gradient_magnitude(truth, sigma)
    smooth = ndimage.gaussian_filter(truth, sigma)
    # Bright enough that a dark lesion does not reach below zero.
    bright = smooth > (0.05 - min(contrasts)) * intensity_range(truth, loaded.mask)
    inside = (depth >= DEPTH) & bright
    if not inside.any():
        raise ImageError(f"{loaded.head.name} has no tissue deep enough for lesions.")
    inside &= slope <= np.median(slope[inside])
    places = np.argwhere(inside)
    order = np.random.default_rng(seed).permutation(len(places))
    wanted = [(d, c) for _ in range(repeats) for d in diameters for c in contrasts]
    centres: list[np.ndarray] = []
    for index in order:
        place = places[index]
        distance = [np.linalg.norm((place - other) * zooms) for other in centres]
        if not distance or min(distance) >= SPACING:
            centres.append(place)
        if len(centres) == len(wanted):
            break
    if len(centres) < len(wanted):
        raise ImageError(
            f"{loaded.head.name} has room for {len(centres)} of {len(wanted)} lesions; "
            "ask for fewer (--repeats)."
        )
    return [
        Lesion((int(at[0]), int(at[1]), int(at[2])), diameter, contrast)
        for at, (diameter, contrast) in zip(centres, wanted, strict=True)
    ]


def _distance(shape: Sequence[int], zooms: Triple, lesion: Lesion) -> np.ndarray:
    """Return the distance in mm of every voxel to the centre of a lesion."""
    grid = np.ogrid[tuple(slice(size) for size in shape)]
    squares = [
        ((axis - centre) * zoom) ** 2
        for axis, centre, zoom in zip(grid, lesion.centre, zooms, strict=True)
    ]
    return np.sqrt(squares[0] + squares[1] + squares[2])


def lesion_profile(distance: np.ndarray, diameter: float) -> np.ndarray:
    """Return 1 in the lesion, 0 outside, and a raised cosine of 1 mm across its edge."""
    position = (distance - diameter / 2) / SOFT_EDGE + 0.5
    return 0.5 * (1 + np.cos(np.pi * np.clip(position, 0, 1)))


def add_lesions(
    truth: np.ndarray, zooms: Triple, lesions: Sequence[Lesion], scale: float
) -> np.ndarray:
    """Return ``truth`` (X, Y, Z) with lesions whose contrast is a fraction of ``scale``."""
    image = truth.astype(np.float32).copy()
    for lesion in lesions:
        reach = [int(np.ceil((lesion.diameter / 2 + 1) / zoom)) + 1 for zoom in zooms]
        box = tuple(
            slice(max(0, centre - r), centre + r + 1)
            for centre, r in zip(lesion.centre, reach, strict=True)
        )
        corner = [part.start for part in box]
        inner = (
            lesion.centre[0] - corner[0],
            lesion.centre[1] - corner[1],
            lesion.centre[2] - corner[2],
        )
        part = image[box]
        distance = _distance(part.shape, zooms, replace(lesion, centre=inner))
        part += (scale * lesion.contrast * lesion_profile(distance, lesion.diameter)).astype(
            np.float32
        )
    return image


@dataclass(frozen=True)
class Trial:
    """A head without and with lesions under one protocol.

    ``scanned`` is the change of the consistent interpolation by the lesions: the measured part of
    the change, including ringing around a lesion. ``marked_reference`` is the reference with
    lesions of the same contrast over its own range (X, Y, Z).
    """

    without: Task
    with_lesions: Task
    lesions: list[Lesion]
    scale: float
    noise: float
    scanned: np.ndarray
    marked_reference: np.ndarray | None = None


def make_trial(loaded: Loaded, protocol: Protocol, lesions: Sequence[Lesion]) -> Trial:
    """Degrade a head twice: without and with lesions."""
    scale = intensity_range(loaded.truth, loaded.mask)

    def task(truth: np.ndarray) -> Task:
        return protocol_task(replace(loaded, truth=truth), protocol)

    without = task(loaded.truth)
    changed = task(add_lesions(loaded.truth, loaded.zooms, lesions, scale))
    noise = tissue_noise(without.truth, without.mask) or 0.0
    scanned = consistent(changed) - consistent(without)
    marked = None
    if without.reference is not None:
        own = intensity_range(without.reference, without.mask)
        marked = add_lesions(without.reference, without.zooms, lesions, own)
    return Trial(without, changed, list(lesions), scale, noise, scanned, marked)


def examine(trial: Trial, method: Method) -> tuple[list[Row], Row, np.ndarray, np.ndarray]:
    """Examine one method.

    Parameters
    ----------
    trial
        Head with and without lesions.
    method
        How they are restored.

    Returns
    -------
    rows
        One per lesion and place of the lesions. ``recovered`` is the mean difference in the core
        of a lesion (profile above one half) over that of the truth: 1 is all of it.
    figures
        Of the head. ``outside_*`` are the difference further away than the lesion's edge plus two
        coarse voxels, over the noise of the head. ``false_positives`` counts the connected regions
        there above the noise, ``invented`` those that also depart by more than the noise from the
        change of the scan itself. ``null_energy`` is the unmeasured part of the result over that
        of the truth, ``null_correlation`` its correlation with it. ``mirror_difference`` compares
        with restoring the mirrored head, over the noise.
    plain, changed
        Restored images (X, Y, Z) without and with lesions.
    """
    task = trial.without
    plain = method.restore(task)
    changed = method.restore(trial.with_lesions)
    difference = changed - plain
    far = task.mask.copy()
    for lesion in trial.lesions:
        distance = _distance(task.truth.shape, task.zooms, lesion)
        far &= distance > lesion.diameter / 2 + SOFT_EDGE / 2 + REACH * max(task.coarse_zooms)
    rows = _recovered(trial, difference, IMAGE)
    if method.guided and trial.marked_reference is not None:
        for where, scan in ((REFERENCE, task), (BOTH, trial.with_lesions)):
            made = method.restore(replace(scan, reference=trial.marked_reference))
            rows += _recovered(trial, made - plain, where)
    figures = _outside(difference, trial.scanned, far, trial.noise)
    figures |= _null_space(task, plain) | {"noise": trial.noise}
    figures["mirror_difference"] = _mirror(task, plain, method, trial.noise)
    return rows, figures, plain, changed


def _recovered(trial: Trial, difference: np.ndarray, where: str) -> list[Row]:
    """Return a row for each lesion from the difference that lesions in these images made."""
    task, rows = trial.without, []
    truth = trial.with_lesions.truth - task.truth
    for lesion in trial.lesions:
        distance = _distance(task.truth.shape, task.zooms, lesion)
        core = lesion_profile(distance, lesion.diameter) > 0.5
        rows.append(
            {
                "lesions_in": where,
                "diameter_mm": lesion.diameter,
                "contrast": lesion.contrast,
                **dict(zip("xyz", lesion.centre, strict=True)),
                "recovered": float(difference[core].sum() / truth[core].sum()),
            }
        )
    return rows


def _outside(difference: np.ndarray, scanned: np.ndarray, far: np.ndarray, noise: float) -> Row:
    values = np.abs(difference[far]) / max(noise, 1e-12)
    if not values.size:
        names = ("outside_rms", "outside_p999", "outside_max", "false_positives", "invented")
        return dict.fromkeys(names)
    above = far & (np.abs(difference) > noise)
    invented = above & (np.abs(difference - scanned) > noise)
    return {
        "outside_rms": float(np.sqrt((values.astype(np.float64) ** 2).mean())),
        "outside_p999": float(np.percentile(values, 99.9)),
        "outside_max": float(values.max()),
        "false_positives": int(ndimage.label(above)[1]),
        "invented": int(ndimage.label(invented)[1]),
    }


def _null_space(task: Task, image: np.ndarray) -> Row:
    """Return energy and correlation of the unmeasured parts in the mask."""
    nothing = torch.zeros(task.operator.coarse_shape)
    parts = [
        task.operator.project(torch.from_numpy(x), nothing).numpy()[task.mask].astype(np.float64)
        for x in (image, task.truth)
    ]
    own, true = (float((part**2).sum()) for part in parts)
    together = float((parts[0] * parts[1]).sum())
    return {
        "null_energy": own / max(true, 1e-12),
        "null_correlation": together / max(np.sqrt(own * true), 1e-12),
    }


def _mirror(task: Task, plain: np.ndarray, method: Method, noise: float) -> float | None:
    """Return the root mean square difference to the mirrored restoration of the mirrored head.

    None if the coarse voxels do not fill the fine grid: the mirrored grid then differs.
    """
    fine = [n * z for n, z in zip(task.truth.shape, task.zooms, strict=True)]
    coarse = [n * z for n, z in zip(task.measured.shape, task.coarse_zooms, strict=True)]
    axis = int(np.argmax(np.abs(task.affine[0, :3])))
    if abs(fine[axis] - coarse[axis]) > 1e-3 * task.zooms[axis]:
        return None
    mirrored = replace(
        task,
        truth=np.flip(task.truth, axis).copy(),
        mask=np.flip(task.mask, axis).copy(),
        measured=torch.flip(task.measured, [axis]).contiguous(),
        reference=None if task.reference is None else np.flip(task.reference, axis).copy(),
    )
    difference = (np.flip(method.restore(mirrored), axis) - plain)[task.mask].astype(np.float64)
    return float(np.sqrt((difference**2).mean())) / max(noise, 1e-12)


@dataclass
class Tables:
    """Results: rows per lesion and rows per head."""

    lesions: list[Row]
    heads: list[Row]


def run(
    loaded: Loaded,
    protocols: Sequence[Protocol],
    methods: Sequence[Method],
    lesions: Sequence[Lesion],
    tables: Tables,
    figures: Path | None = None,
    report: Callable[[Row], None] = lambda row: None,
) -> None:
    """Run all protocols and methods on one head; fill ``tables``, draw into ``figures``."""
    for protocol in protocols:
        trial = make_trial(loaded, protocol, lesions)
        shown: dict[str, np.ndarray] = {"truth": trial.with_lesions.truth}
        for method in methods:
            rows, head, _, changed = examine(trial, method)
            base: Row = {
                "head": loaded.head.name,
                "group": loaded.head.group,
                "protocol": protocol.key,
                "method": method.name,
                "version": method.version,
            }
            tables.lesions += [base | row for row in rows]
            tables.heads.append(base | head)
            shown[method.name] = changed
            report(tables.heads[-1])
        if figures is not None:
            path = figures / f"lesions_{loaded.head.name}_{protocol.key}.png"
            draw_lesions(trial, shown, path)


def size_classes(tables: Tables) -> list[Row]:
    """Return recovered contrast per protocol, method and diameter, and against back-projection.

    ``over_back_projection`` is the mean over lesions of the difference to cubic + back-projection
    at the same lesion, with a 95 % bootstrap interval. ``worst`` is the least, or of lesions that
    only the reference has, the largest share that shows.
    """
    key = ("head", "protocol", "diameter_mm", "contrast", "x", "y", "z")
    back = {
        tuple(row[name] for name in key): row["recovered"]
        for row in tables.lesions
        if row["method"] == "back-projection"
    }
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in tables.lesions:
        name = (
            row["protocol"], row["diameter_mm"], row["method"], row["version"], row["lesions_in"]
        )  # fmt: skip
        groups.setdefault(name, []).append(row)
    classes = []
    for (protocol, diameter, method, version, where), rows in sorted(
        groups.items(), key=lambda item: item[0][:2]
    ):
        gain = [r["recovered"] - back[tuple(r[name] for name in key)] for r in rows]
        low, high = bootstrap_interval(gain)
        shares = [float(r["recovered"]) for r in rows]
        classes.append(
            {
                "protocol": protocol,
                "diameter_mm": diameter,
                "method": method,
                "version": version,
                "lesions_in": where,
                "lesions": len(rows),
                "recovered": float(np.mean(shares)),
                "worst": max(shares, key=abs) if where == REFERENCE else min(shares),
                "over_back_projection": float(np.mean(gain)),
                "over_back_projection_low": low,
                "over_back_projection_high": high,
            }
        )
    return classes


CLASS_COLUMNS = (
    "protocol", "diameter_mm", "method", "version", "lesions_in", "lesions", "recovered", "worst",
    "over_back_projection", "over_back_projection_low", "over_back_projection_high",
)  # fmt: skip


def markdown(tables: Tables) -> str:
    """Return both tables as a page."""
    lines = [
        "# Lesions put into heads",
        "",
        "Contrast recovered in the core of the lesion, 1 is all of it; BP: cubic +",
        "back-projection. Means over lesions with 95 % bootstrap intervals.",
        "",
        "| protocol | diameter | method | lesions | recovered | worst | against BP |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in size_classes(tables):
        interval = f"[{c['over_back_projection_low']:+.3f}, {c['over_back_projection_high']:+.3f}]"
        lines.append(
            f"| {parse_protocol(c['protocol']).name} | {c['diameter_mm']:g} mm | {_named(c)} "
            f"| {c['lesions']} | {c['recovered']:.3f} | {c['worst']:.3f} "
            f"| {c['over_back_projection']:+.3f} {interval} |"
        )
    lines += [
        "",
        "Away from the lesions: difference between the restored images with and without lesions,",
        "over the noise of the head (below 1: hidden in it); regions of it above the noise, and",
        "those of them that the scan itself has no part in (its ringing set apart).",
        "Null space: energy of what the measurement does not see over that of the truth, and its",
        "correlation with it. Mirror: difference to restoring the mirrored head, over the noise.",
        "",
        "| head | protocol | method | rms | 99.9 % | max | regions | invented | null energy "
        "| null correlation | mirror |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = ("outside_rms", "outside_p999", "outside_max", "false_positives", "invented",
             "null_energy", "null_correlation", "mirror_difference")  # fmt: skip
    for row in tables.heads:
        cells = ["n/a" if row[name] is None else f"{row[name]:.3g}" for name in names]
        lines.append(
            f"| {row['head']} | {parse_protocol(row['protocol']).name} | {row['method']} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _named(entry: Row) -> str:
    """Return the method, and where the lesions are if not in the image alone."""
    where = entry["lesions_in"]
    words = {IMAGE: "", REFERENCE: ", lesion only in the reference", BOTH: ", lesion in both"}
    return f"{entry['method']}{words[where]}"


def draw_recovery(tables: Tables, path: Path) -> None:
    """Draw recovered contrast against diameter, one panel per protocol, one line per method."""
    from matplotlib.figure import Figure

    from .summary import save_figure

    classes = [c for c in size_classes(tables) if c["lesions_in"] == IMAGE]
    protocols = list(dict.fromkeys(c["protocol"] for c in classes))
    figure = Figure(figsize=(4.2 * len(protocols), 3.8), layout="constrained")
    panels = figure.subplots(1, len(protocols), squeeze=False, sharey=True)[0]
    for panel, protocol in zip(panels, protocols, strict=True):
        mine = [c for c in classes if c["protocol"] == protocol]
        for method in dict.fromkeys(c["method"] for c in mine):
            line = [c for c in mine if c["method"] == method]
            panel.plot(
                [c["diameter_mm"] for c in line],
                [c["recovered"] for c in line],
                "o-",
                label=method,
            )
        panel.axhline(1, color="0.4", linewidth=0.8, linestyle="--")
        panel.set_title(parse_protocol(protocol).name, fontsize=10)
        panel.set_xlabel("diameter of the lesion (mm)")
    panels[0].set_ylabel("contrast recovered")
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def draw_lesions(trial: Trial, images: dict[str, np.ndarray], path: Path) -> None:
    """Draw the largest and the smallest lesion of each contrast: truth beside every method."""
    from matplotlib.figure import Figure

    from .summary import save_figure

    task = trial.without
    sizes = [lesion.diameter for lesion in trial.lesions]
    chosen = list(
        {
            (lesion.diameter, lesion.contrast): lesion
            for lesion in trial.lesions
            if lesion.diameter in (min(sizes), max(sizes))
        }.values()
    )
    figure = Figure(
        figsize=(2 * len(images), 2 * len(chosen)), layout="constrained", facecolor="black"
    )
    axes = figure.subplots(len(chosen), len(images), squeeze=False)
    coarse = int(np.argmax(task.ratios))
    flat = [axis for axis in range(3) if axis != (coarse + 1) % 3]
    for row, lesion in enumerate(chosen):
        cut: list[Any] = [0, 0, 0]
        cut[(coarse + 1) % 3] = lesion.centre[(coarse + 1) % 3]
        for axis in flat:
            reach = int(14 / task.zooms[axis])
            cut[axis] = slice(max(0, lesion.centre[axis] - reach), lesion.centre[axis] + reach + 1)
        for column, (name, image) in enumerate(images.items()):
            panel = axes[row, column]
            aspect = task.zooms[flat[1]] / task.zooms[flat[0]]
            panel.imshow(
                image[tuple(cut)].T, "gray", origin="lower", vmin=0, vmax=1.3 * trial.scale,
                aspect=aspect,
            )  # fmt: skip
            panel.set_axis_off()
            if row == 0:
                panel.set_title(name, color="white", fontsize=9)
        label = f"{lesion.diameter:g} mm, {lesion.contrast:+.0%}"
        axes[row, 0].text(
            0.02, 0.03, label, color="yellow", fontsize=7, transform=axes[row, 0].transAxes
        )
    save_figure(figure, path)
