# SPDX-License-Identifier: Apache-2.0
"""Write one HTML page without external resources: figures of every image, means, pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bids_moediff.imaging.metrics import bootstrap_interval, intensity_range
from bids_moediff.runtime.text import visible

from .against_truth import COLUMNS, FIGURES, Pair, Row

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 90% }
td, th { padding: .25em .7em; border-bottom: 1px solid #ccc; text-align: right }
td:first-child, th:first-child { text-align: left }
div.wide { overflow-x: auto }
img { max-width: 100% }
li.problem { color: #a00 }
</style></head><body>
<h1>{{ title }}</h1>
<p>In the head mask of the reference, in 3-D; range: 99.5th percentile of the reference. Nothing
was registered. Grid &ldquo;spline&rdquo;: the result was brought onto the grid of the reference
by a cubic spline; &ldquo;same&rdquo;: compared voxel by voxel.</p>
<h2>Means over {{ count }} images</h2>
<table><tr><th>figure</th><th>mean</th><th>95 % interval (bootstrap)</th><th>images</th></tr>
{% for m in means %}<tr><td>{{ m.name }}</td><td>{{ m.mean }}</td><td>{{ m.interval }}</td>
<td>{{ m.count }}</td></tr>
{% endfor %}</table>
<h2>Images</h2>
<div class="wide"><table><tr>{% for c in columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if problems %}<h2>Not evaluated</h2><ul>
{% for p in problems %}<li class="problem">{{ p }}</li>{% endfor %}</ul>{% endif %}
{% for name, picture in pictures %}<h3>{{ name }}</h3>
<img alt="reference, result, difference" src="data:image/png;base64,{{ picture }}">
{% endfor %}</body></html>
"""


def mean_figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return mean and bootstrap interval of every figure present."""
    means = []
    for name in FIGURES:
        values = [float(row[name]) for row in rows if _number(row.get(name))]
        if values:
            low, high = bootstrap_interval(values)
            interval = f"{low:.4g} to {high:.4g}" if len(values) > 1 else ""
            mean = f"{np.mean(values):.4g}"
            means.append({"name": name, "mean": mean, "interval": interval, "count": len(values)})
    return means


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


def render(
    title: str, rows: Sequence[Row], problems: Sequence[str], pictures: Mapping[str, str]
) -> str:
    """Return the page; ``pictures`` are PNG images in base64 by name."""
    from jinja2 import Environment

    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    return visible(
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            title=title,
            count=len(rows),
            means=mean_figures(rows),
            columns=columns,
            rows=[[_cell(row.get(name)) for name in columns] for row in rows],
            problems=problems,
            pictures=list(pictures.items()),
        )
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_pair(pair: Pair) -> str:
    """Draw middle slices of truth, result and difference, three planes, as PNG in base64."""
    from matplotlib.figure import Figure

    top = intensity_range(pair.truth, pair.mask)
    centre = [int(np.median(index)) for index in np.nonzero(pair.mask)]
    figure = Figure(figsize=(9, 9), layout="constrained", facecolor="black")
    axes = figure.subplots(3, 3)
    zooms = np.sqrt((pair.affine[:3, :3] ** 2).sum(axis=0))
    for row, axis in enumerate((2, 1, 0)):
        flat = [k for k in range(3) if k != axis]
        images = [np.take(part, centre[axis], axis).T for part in (pair.truth, pair.image)]
        aspect = zooms[flat[1]] / zooms[flat[0]]
        images.append(images[1] - images[0])
        for column, (image, name) in enumerate(
            zip(images, ("reference", "result", "difference x 5"), strict=True)
        ):
            low, high = (-top / 5, top / 5) if column == 2 else (0, top)
            place = axes[row, column]
            place.imshow(image, "gray", origin="lower", vmin=low, vmax=high, aspect=aspect)
            place.set_axis_off()
            if row == 0:
                place.set_title(name, color="white", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=80, metadata={"Software": None})
    return base64.b64encode(stream.getvalue()).decode()
