# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate coverage``: test whether the bound of the error holds for most heads."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from bids_moediff.cli import evaluation as evaluate
from bids_moediff.errors import UsageError
from bids_moediff.options import Options

PROGRAM = f"{evaluate.PROGRAM} coverage"


def coverage_parser() -> argparse.ArgumentParser:
    """Return the parser of ``coverage``."""
    parser = evaluate.restoring_parser(
        PROGRAM,
        "Make heads coarse, restore them, and find the smallest factor of the expected error that "
        "bounds the true error in 95 % of the voxels of each head. Finished rows in OUT are kept.",
        model="student",
        protocols=("x2iso-kspace", "x4slices-gaussian"),
        num_samples=1,
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE",
        help="write the factor that holds for 95 %% of heads like these (at least 19): "
        "bounds.json of the model's folder",
    )  # fmt: skip
    return parser


def run_coverage(argv: list[str]) -> int:
    """Write table and page; return 1 if a head could not be used."""
    options = coverage_parser().parse_intermixed_args(argv)
    if options.write and len(set(options.model)) > 1:
        raise UsageError("--write takes one model.")
    evaluate.check_threads(options)
    from bids_moediff.evaluation import coverage
    from bids_moediff.runtime.sink import write_json, write_text

    asked = replace(Options(), **evaluate.sampling_options(options))
    resolvers = evaluate.load_models(options)
    rows: list[dict[str, Any]] = []

    finished = coverage.Finished(options.output / "coverage.tsv", options.block)

    def work(loaded: Any, protocol: Any, resolver: Any) -> str:
        key = finished.key(loaded.head.name, protocol.key, resolver, asked)
        if not finished.rows(key):
            made = coverage.examine(loaded, protocol, resolver, asked)
            finished.add([row | key for row in made])
        rows.extend(finished.rows(key))
        return f"{loaded.head.name}  {protocol.key}  score {rows[-1]['score']:.2f}"

    all_used = evaluate.each_result(options, PROGRAM, resolvers, work)
    page = coverage.markdown(rows)
    write_text(page, options.output / "coverage.md")
    if options.write:
        try:
            write_json(coverage.bounds(rows, resolvers[0]), options.write)
        except ValueError as error:
            raise UsageError(f"No bound was written: {error}.") from error
    print(page)
    return 0 if all_used else 1
