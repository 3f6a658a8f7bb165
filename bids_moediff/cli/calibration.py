# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate calibration``: is a result wrong where it says it is uncertain?"""

import argparse
from pathlib import Path
from typing import Any

from bids_moediff import __version__
from bids_moediff.cli import evaluation as evaluate
from bids_moediff.errors import UsageError

PROGRAM = f"{evaluate.PROGRAM} calibration"


def calibration_parser() -> argparse.ArgumentParser:
    """Parser of ``calibration``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Make heads coarse, restore them, and compare the expected error of every "
        "voxel with the true one: risk-coverage curve, reliability, and the factor that the "
        "expected error lacks.",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for table and picture")
    evaluate.add_heads(parser)
    evaluate.add_model(parser)
    parser.set_defaults(num_samples=1, model=["moediff"])
    parser.add_argument(
        "--write", type=Path, metavar="FILE",
        help="measure the factor of one model anew and write it: calibration.json of its folder",
    )  # fmt: skip
    parser.add_argument(
        "--protocols", nargs="+", metavar="NAME", default=["x2iso-kspace", "x4slices-gaussian"]
    )
    evaluate.add_block(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_calibration(argv: list[str]) -> int:
    """Table, page and picture; 1 if a head could not be used."""
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
