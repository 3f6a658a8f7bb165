# SPDX-License-Identifier: Apache-2.0
"""Compare what independent tools find in restored images with what they find in the true ones.

``python -m research.downstream OUT --data DATA --tools TOOLS/bin`` makes the T1w images of a split
coarse, restores them by cubic interpolation, back-projection and models, and runs on each image
and on the truth: the brain mask of deepbet, N4 of SimpleITK, AMAP and projection-based thickness
of cat-surf (requirements.txt beside this file). ``--kevinsr KEVIN/bin/python`` adds KevinSR
(requirements-kevinsr.txt), ``--only`` leaves out other methods. ``rows.tsv`` gets a row an image,
``summary.tsv`` one a protocol and method, ``result.json`` both for ``research.results values``.
Rows and maps that are there are kept: call again to continue.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_moediff.cli.common import ProgressBar
from bids_moediff.cli.evaluation import (
    check_threads,
    load_heads,
    load_methods,
    restoring_parser,
    write_table,
)
from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.evaluation.benchmark import BASELINES, Method, Task, protocol_task
from bids_moediff.evaluation.gates import select_protocols
from bids_moediff.evaluation.truth import TruthHead
from bids_moediff.runtime.sink import write_json

from .figures import FIGURES, compare, summarise
from .kevinsr import kevinsr
from .tables import result
from .tools import Anatomy, read_anatomy, run_tools

PROGRAM = "python -m research.downstream"
PROTOCOLS = ("x4slices-gaussian", "x2iso-kspace")
INTERPOLATED = ("cubic", "back-projection")
COLUMNS = ("head", "group", "protocol", "method", "version", *FIGURES)
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    made = restoring_parser(PROGRAM, __doc__.partition("\n")[0], "student", PROTOCOLS, 1)
    made.add_argument(
        "--tools", type=Path, required=True, metavar="BIN", help="bin folder of the tools"
    )
    made.add_argument("--kevinsr", type=Path, metavar="PYTHON", help="compare KevinSR, too")
    made.add_argument("--only", nargs="+", metavar="METHOD", help="only methods of these names")
    made.add_argument("--name", nargs="+", metavar="TEXT", help="only heads whose name has it")
    return made


class Table:
    """Rows on disk, one for each head, protocol and method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                self.rows = list(csv.DictReader(stream, delimiter="\t"))

    def has(self, key: Row) -> bool:
        """Return True if the row of a key is there."""
        return any(all(str(row[k]) == str(v) for k, v in key.items()) for row in self.rows)

    def add(self, row: Row) -> None:
        """Add a row and write the table."""
        self.rows.append(row)
        write_table(self.rows, COLUMNS, self.path)


def anatomy(image: np.ndarray, affine: np.ndarray, folder: Path, tools: Path) -> Anatomy:
    """Run the tools on an image (X, Y, Z) and read what they found."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "image.nii.gz"
    if not path.is_file():
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), path)
    run_tools(tools, path, folder)
    return read_anatomy(folder)


def judge(task: Task, method: Method, folder: Path, tools: Path) -> Anatomy:
    """Restore a task, unless it was restored before, and run the tools."""
    words = method.version.replace(" ", "_")
    place = folder / f"{method.name}-{words}"
    image = np.zeros(0) if (place / "image.nii.gz").is_file() else method.restore(task)
    return anatomy(image, task.affine, place, tools)


def judge_head(
    head: TruthHead, methods: Sequence[Method], options: argparse.Namespace, table: Table
) -> None:
    """Add the missing rows of one head."""
    protocols = select_protocols(options.protocols)
    # The truth's version is that of its shape: an axis is cut where the coarse voxels end.
    loaded = None
    for protocol in protocols:
        key = {"head": head.name, "protocol": protocol.key}
        wanted = [m for m in methods if not table.has(key | _named(m))]
        if not wanted:
            continue
        loaded = loaded or head.load()
        task = protocol_task(loaded, protocol)
        place = options.output / head.name
        shape = "x".join(map(str, task.truth.shape))
        truth = anatomy(task.truth, task.affine, place / f"truth-{shape}", options.tools)
        about = key | {"group": head.group}
        if not table.has(key | {"method": "truth"}):
            table.add(about | {"method": "truth", "version": shape} | compare(truth, truth))
        for method in wanted:
            found = judge(task, method, place / protocol.key, options.tools)
            table.add(about | _named(method) | compare(found, truth))


def _named(method: Method) -> Row:
    return {"method": method.name, "version": method.version}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and summarise; return 1 if a head failed."""
    options = parser().parse_args(argv)
    check_threads(options)
    if not (options.tools / "deepbet-cli").is_file():
        raise UsageError(f"{options.tools} has no deepbet-cli: see research/downstream.")
    heads = [head for head in load_heads(options) if "T1w" in head.name]
    if options.name:
        heads = [head for head in heads if any(word in head.name for word in options.name)]
    plain = [method for method in BASELINES if method.name in INTERPOLATED]
    methods = [*plain, *load_methods(options)]
    if options.kevinsr:
        methods.append(kevinsr(options.kevinsr.absolute()))
    if options.only:
        methods = [method for method in methods if method.name in options.only]
    options.output.mkdir(parents=True, exist_ok=True)
    table = Table(options.output / "rows.tsv")
    progress, failed = ProgressBar(len(heads), "image"), False
    for head in heads:
        try:
            judge_head(head, methods, options, table)
            progress(head.name)
        except MoediffError as error:
            failed = True
            print(f"{PROGRAM}: {head.name}: {error}", file=sys.stderr)
    progress.close()
    summary = summarise(table.rows)
    if summary:
        write_table(summary, [*summary[0]], options.output / "summary.tsv")
        write_json(result(table.rows), options.output / "result.json")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MoediffError as error:
        sys.exit(f"{PROGRAM}: {error}")
