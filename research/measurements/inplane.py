# SPDX-License-Identifier: Apache-2.0
"""What published figures of slices made coarse by a bicubic filter mean, beside ours.

``python -m research.measurements.inplane OUT --data DATA`` makes the images of a split coarse by
two in plane by a bicubic filter (protocol ``x2inplane-bicubic``), enlarges them by the same
filter, by cubic splines and by a model, and gives each result two scores: PSNR and SSIM of single
slices, air included (as papers such as EDM-SR count), and ours, in 3-D in the head mask. The model
assumes k-space in plane; it is not told of the filter.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from bids_moediff.cli.evaluation import (
    check_threads,
    load_heads,
    load_methods,
    restoring_parser,
    write_table,
)
from bids_moediff.errors import MoediffError
from bids_moediff.evaluation.benchmark import BASELINES, Method, Task, protocol_task
from bids_moediff.evaluation.gates import select_protocols
from bids_moediff.imaging import metrics
from bids_moediff.imaging.interpolation import bicubic
from bids_moediff.runtime.sink import write_json

PROGRAM = "python -m research.measurements.inplane"
PROTOCOL = "x2inplane-bicubic"
FIGURES = ("slice_psnr", "slice_ssim", "psnr")
BICUBIC = Method(
    "bicubic", "1", lambda task: bicubic(task.measured, task.operator.fine_shape).numpy()
)
Row = dict[str, Any]


def slice_figures(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Return PSNR in dB and SSIM as papers on single slices count them.

    Both are taken in 2-D over the whole slice, air included, with the largest voxel of the true
    slice as the peak, and averaged over the slices (last axis) that show the head.

    Parameters
    ----------
    image, truth, mask
        Result, true image and boolean mask (X, Y, Z).
    """
    found = []
    for index in np.flatnonzero(mask.any((0, 1))):
        one, true = image[..., index].astype(np.float64), truth[..., index].astype(np.float64)
        peak = true.max()
        error = max(((one - true) ** 2).mean(), np.finfo(float).tiny)
        similar = structural_similarity(true, one, data_range=peak)
        found.append((20 * np.log10(peak) - 10 * np.log10(error), similar))
    decibels, similarity = np.mean(found, axis=0)
    return {"slice_psnr": float(decibels), "slice_ssim": float(similarity)}


def scores(task: Task, image: np.ndarray) -> dict[str, float]:
    """Return the figures of slices and ours of one result (X, Y, Z)."""
    ours = metrics.psnr(image, task.truth, task.mask)
    return {**slice_figures(image, task.truth, task.mask), "psnr": ours}


def table(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return means over images, and gains over the bicubic filter with intervals, by method."""
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["head"]] = row
    entries = []
    for method, mine in by_method.items():
        entry: Row = {"method": method, "images": len(mine)}
        for name in FIGURES:
            values = [float(row[name]) for row in mine.values()]
            base = [float(by_method["bicubic"][head][name]) for head in mine]
            gains = np.subtract(values, base)
            low, high = metrics.bootstrap_interval(gains.tolist())
            entry |= {name: float(np.mean(values)), f"{name}_gain": float(gains.mean())}
            entry |= {f"{name}_low": low, f"{name}_high": high}
        entries.append(entry)
    return entries


def _measured(options: argparse.Namespace, methods: Sequence[Method]) -> list[Row]:
    """Return a row for each image and method; an image that fails is named and left out."""
    protocol = select_protocols(options.protocols)[0]
    rows: list[Row] = []
    for head in load_heads(options):
        try:
            task = protocol_task(head.load(), protocol)
            for method in methods:
                about = {"head": head.name, "group": head.group, "method": method.name}
                rows.append(about | scores(task, method.restore(task)))
                print(" ".join(f"{value}" for value in rows[-1].values()), flush=True)
        except MoediffError as error:
            print(f"{PROGRAM}: {head.name}: {error}", file=sys.stderr)
        write_table(rows, ("head", "group", "method", *FIGURES), options.output / "rows.tsv")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write rows.tsv and summary.json (for ``research.results values``)."""
    summary = __doc__.partition("\n")[0]
    options = restoring_parser(PROGRAM, summary, "student", [PROTOCOL], 1).parse_args(argv)
    check_threads(options)
    options.output.mkdir(parents=True, exist_ok=True)
    cubic = [method for method in BASELINES if method.name in ("cubic", "back-projection")]
    rows = _measured(options, [BICUBIC, *cubic, *load_methods(options)])
    entries = table(rows)
    values = {f"{e['method']}.{key}": e[key] for e in entries for key in e if key != "method"}
    write_json({"values": values, "rows": entries}, Path(options.output) / "summary.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
