# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate calibration``: compare the expected error with the true one."""

import argparse
from pathlib import Path
from typing import Any

from bids_moediff.cli import evaluation as evaluate
from bids_moediff.errors import UsageError

PROGRAM = f"{evaluate.PROGRAM} calibration"


def calibration_parser() -> argparse.ArgumentParser:
    """Return the parser of ``calibration``."""
    parser = evaluate.restoring_parser(
        PROGRAM,
        "Make heads coarse, restore them, and compare the expected error of every voxel with "
        "the true one: risk-coverage curve, reliability, the factor that the error lacks.",
        model="moediff",
        protocols=("x2iso-kspace", "x4slices-gaussian"),
        num_samples=1,
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE",
        help="measure the factor of one model anew and write it: calibration.json of its folder",
    )  # fmt: skip
    return parser


def run_calibration(argv: list[str]) -> int:
    """Write table, page and picture; return 1 if a head could not be used."""
    options = calibration_parser().parse_intermixed_args(argv)
    if options.write and len(set(options.model)) > 1:
        raise UsageError("--write takes one model.")
    evaluate.check_threads(options)
    from bids_moediff.evaluation import calibration
    from bids_moediff.runtime.sink import write_json, write_text

    resolvers = evaluate.load_models(options)
    if options.write:
        calibration.uncalibrated(resolvers[0])
    given = evaluate.sampling_options(options)
    rows: list[dict[str, Any]] = []
    found: list[Any] = []

    def work(loaded: Any, protocol: Any, resolver: Any) -> str:
        row, curve = calibration.examine(loaded, protocol, resolver, **given)
        rows.append(row)
        found.append(curve)
        return f"{row['head']}  {row['protocol']}  gain {row['gain']:.2f}"

    all_used = evaluate.each_result(options, PROGRAM, resolvers, work)
    evaluate.write_table(rows, calibration.COLUMNS, options.output / "calibration.tsv")
    calibration.draw(rows, found, options.output / "calibration.png")
    page = calibration.markdown(rows)
    write_text(page, options.output / "calibration.md")
    if options.write:
        write_json(calibration.calibrate(rows, resolvers[0]), options.write)
    print(page)
    return 0 if all_used else 1
