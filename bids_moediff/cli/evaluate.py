# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate``: measure the quality of a result or a model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.cli.common import Parser, ProgressBar, run_command
from bids_moediff.cli.evaluation import (
    PROGRAM,
    add_block,
    add_heads,
    add_model,
    check_threads,
    load_heads,
    load_methods,
    result_line,
    sampling_options,
    write_table,
)
from bids_moediff.cli.parser import add_threads
from bids_moediff.errors import MoediffError, NothingToProcessError, UsageError, closest

if TYPE_CHECKING:
    from bids_moediff.bids.image import AnatomicalImage

COMMANDS = {
    "derivatives": "results against true images of the same participants",
    "benchmark": "a model on high-resolution heads that are made coarse",
    "hallucination": "lesions put into heads: kept, faded or multiplied?",
    "calibration": "is a result wrong where it says it is uncertain?",
    "coverage": "does the bound of the error hold for most heads?",
    "sampling": "are samples as uncertain as the result is?",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(PROGRAM, _run, argv)


def _run(argv: list[str]) -> int:
    from bids_moediff.cli.calibration import run_calibration
    from bids_moediff.cli.coverage import run_coverage
    from bids_moediff.cli.sampling import run_sampling

    commands = {
        "derivatives": run_derivatives,
        "benchmark": run_benchmark,
        "hallucination": run_hallucination,
        "calibration": run_calibration,
        "coverage": run_coverage,
        "sampling": run_sampling,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    _parser().parse_known_args(argv)
    if not argv:
        raise UsageError(f"name an evaluation: {', '.join(commands)}.")
    raise UsageError(
        f"{argv[0]} is not an evaluation: {', '.join(commands)}{closest(argv[0], commands)}."
    )


def _parser() -> argparse.ArgumentParser:
    """Return the parser of the command; each evaluation parses the remaining arguments."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, text in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} EVALUATION …",
        description="How good is a result, a model, and does it invent anything?",
        epilog="\n".join(["evaluations:", *lines, "", f"{PROGRAM} EVALUATION --help tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def derivatives_parser() -> argparse.ArgumentParser:
    """Return the parser of ``derivatives``."""
    parser = Parser(
        prog=f"{PROGRAM} derivatives",
        description="Compare super-resolved images with true images of the same participants.",
        allow_abbrev=False,
    )
    parser.add_argument("derivatives", type=Path, help="output folder of bids_moediff")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for table and page")
    parser.add_argument(
        "--truth", type=Path, required=True, metavar="BIDS_DIR", help="data set of true images"
    )
    parser.add_argument(
        "--truth-session", metavar="LABEL", help="session of the true images (default: same)"
    )
    parser.add_argument(
        "--input", type=Path, metavar="BIDS_DIR", help="the coarse scans: gains over interpolation"
    )
    parser.add_argument("--participant-label", nargs="+", metavar="LABEL", default=[])
    parser.add_argument(
        "--fit-intensities",
        action="store_true",
        help="fit scale and offset to the truth first (another scan, other units)",
    )
    add_threads(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_derivatives(argv: list[str]) -> int:
    """Write table and page of a data set of results; return 1 if some could not be evaluated."""
    options = derivatives_parser().parse_intermixed_args(argv)
    check_threads(options)
    from bids_moediff.evaluation.against_truth import evaluate, find_results, match
    from bids_moediff.evaluation.page import draw_pair

    if not options.derivatives.is_dir():
        raise UsageError(f"The folder {options.derivatives} does not exist.")
    labels = [label.removeprefix("sub-") for label in options.participant_label]
    results = find_results(options.derivatives, labels)
    if not results:
        which = f" of {', '.join('sub-' + label for label in labels)}" if labels else ""
        raise NothingToProcessError(
            f"There is no super-resolved image (desc-sr){which} in {options.derivatives}."
        )
    references = _Images(options.truth)
    sources = _Images(options.input) if options.input else None
    session = options.truth_session
    session = session.removeprefix("ses-") if session else None
    rows, problems, pictures = [], [], {}
    progress = ProgressBar(len(results), "image")
    for result in results:
        try:
            label = result.entities["sub"]
            reference = match(result, references.of(label), session)
            source = match(result, sources.of(label)) if sources else None
            row, pair = evaluate(result, reference, source, options.fit_intensities)
        except MoediffError as error:
            problems.append(f"{result.relative}: {error}")
            progress()
            continue
        rows.append(row)
        pictures[result.relative] = draw_pair(pair)
        progress(f"{result.relative}  {row['psnr']:.2f} dB")
    progress.close()
    for problem in problems:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
    if rows:
        _write_derivatives(rows, problems, pictures, options.output)
    return 1 if problems else 0


class _Images:
    """Images of a data set, one participant at a time."""

    def __init__(self, root: Path) -> None:
        from bids_moediff.bids.dataset import check_input
        from bids_moediff.settings import load_settings

        given = {"bids_dir": root, "output_dir": root, "analysis_level": "participant"}
        self._settings = load_settings(given, environment={})
        self._known: dict[str, tuple[AnatomicalImage, ...]] = {}
        check_input(self._settings)

    def of(self, label: str) -> "tuple[AnatomicalImage, ...]":
        """Return the images of a participant, none if the folder is missing."""
        from bids_moediff.bids.discover import discover_participant

        if label not in self._known:
            there = (self._settings.bids_dir / f"sub-{label}").exists()
            found = discover_participant(self._settings, label).images if there else ()
            self._known[label] = found
        return self._known[label]


def _write_derivatives(
    rows: list[dict[str, Any]], problems: list[str], pictures: dict[str, str], folder: Path
) -> None:
    from bids_moediff.evaluation.against_truth import COLUMNS
    from bids_moediff.evaluation.page import mean_figures, render
    from bids_moediff.runtime.sink import write_text

    write_table(rows, COLUMNS, folder / "evaluation.tsv")
    title = "Super-resolved images against their references"
    write_text(render(title, rows, problems, pictures), folder / "evaluation.html")
    for entry in mean_figures(rows):
        print(f"{entry['name']:22s}{entry['mean']:>10s}   {entry['interval']}")
    print(f"{folder / 'evaluation.tsv'}, {folder / 'evaluation.html'}")


def benchmark_parser() -> argparse.ArgumentParser:
    """Return the parser of ``benchmark``."""
    parser = Parser(
        prog=f"{PROGRAM} benchmark",
        description="Make heads coarse, restore them, and compare with cubic interpolation and "
        "with cubic + back-projection. Finished rows in OUT are kept: run the same command again "
        "to go on, or with another model to compare.",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for tables and pictures")
    add_heads(parser)
    add_model(parser)
    parser.add_argument(
        "--protocols",
        nargs="+",
        metavar="NAME",
        help="x2iso-kspace, x4slices-gaussian …, or 'gates' for those with a release gate; "
        "any x<factor>(iso|slices)-(kspace|gaussian|box) (default: seven of them)",
    )
    parser.add_argument(
        "--full", action="store_true", help="also SSIM, HFEN, flicker and recovered spectrum"
    )
    parser.add_argument(
        "--all-axes", action="store_true", help="degrade axes that hold no truth as well"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_benchmark(argv: list[str]) -> int:
    """Write rows, summary and pictures of a benchmark; return 1 if a row could not be computed."""
    # Options may stand before and after OUT.
    options = benchmark_parser().parse_intermixed_args(argv)
    from bids_moediff.evaluation.gates import select_protocols

    protocols = select_protocols(options.protocols)
    check_threads(options)
    from bids_moediff.evaluation.benchmark import BASELINES, BenchmarkPlan, HeadTable, Rows, run

    heads = load_heads(options)
    methods = [*BASELINES, *load_methods(options)]
    plan = BenchmarkPlan(heads, protocols, methods, options.full, options.all_axes)
    folder = options.output
    rows = Rows(folder / "rows.tsv")
    progress, problems = ProgressBar(len(plan), "row"), []

    def report(row: dict[str, Any] | None, problem: str) -> None:
        if problem:
            if problem not in problems:
                print(f"{PROGRAM}: {problem}", file=sys.stderr)
            problems.append(problem)
        progress(result_line(row) if row and "psnr" in row else "")

    done, notes = run(plan, rows, HeadTable(folder / "heads.tsv"), report)
    progress.close()
    if not done:
        raise MoediffError("No image could be evaluated.")
    _write_summary(done, notes, folder)
    return 1 if problems else 0


def _write_summary(rows: list[dict[str, Any]], notes: dict[str, str], folder: Path) -> None:
    """Write summary.tsv, summary.md and one picture per protocol; print the page."""
    from bids_moediff.evaluation import summary
    from bids_moediff.runtime.sink import write_text

    entries = summary.summarise(rows)
    write_table(entries, summary.COLUMNS, folder / "summary.tsv")
    page = summary.markdown(entries, rows, notes)
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        summary.draw_gains(rows, protocol, folder / "figures" / f"{protocol}.png")
        page += f"\n![{protocol}](figures/{protocol}.png)\n"
    write_text(page, folder / "summary.md")
    print(page)


def hallucination_parser() -> argparse.ArgumentParser:
    """Return the parser of ``hallucination``."""
    parser = Parser(
        prog=f"{PROGRAM} hallucination",
        description="Put small lesions into heads, make them coarse and restore them: are the "
        "lesions kept, and does anything show elsewhere?",
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for tables and pictures")
    add_heads(parser)
    add_model(parser)
    parser.add_argument(
        "--protocols", nargs="+", metavar="NAME", default=["x2iso-kspace", "x4slices-gaussian"]
    )
    add_block(parser)
    parser.add_argument(
        "--reference",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="another contrast of each of --heads, in this order, for models that take one: "
        "lesions are also put into the reference alone, and into both",
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="lesions of each size and contrast (default 2)"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_hallucination(argv: list[str]) -> int:
    """Write tables, page and pictures of the lesion test; return 1 if a head could not be used."""
    options = hallucination_parser().parse_intermixed_args(argv)
    from bids_moediff.evaluation.gates import select_protocols

    protocols = select_protocols(options.protocols)
    if options.repeats < 1:
        raise UsageError("--repeats must be at least 1.")
    check_threads(options)
    from bids_moediff.evaluation import hallucination
    from bids_moediff.evaluation.benchmark import BASELINES

    seed = sampling_options(options).get("random_seed", 0)
    heads = load_heads(options)
    baselines = [method for method in BASELINES if method.name in ("cubic", "back-projection")]
    methods = [*baselines, *load_methods(options)]
    tables = hallucination.Tables([], [])
    progress = ProgressBar(len(heads) * len(protocols) * len(methods), "result")

    def report(row: dict[str, Any]) -> None:
        _write_lesions(tables, options.output)
        progress(f"{row['head']}  {row['protocol']}  {row['method']}")

    failed = False
    for head in heads:
        try:
            loaded = head.load()
            lesions = hallucination.place_lesions(loaded, repeats=options.repeats, seed=seed)
            figures = options.output / "figures"
            hallucination.run(loaded, protocols, methods, lesions, tables, figures, report)
        except MoediffError as error:
            print(f"{PROGRAM}: {head.name}: {error}", file=sys.stderr)
            failed = True
    progress.close()
    if not tables.heads:
        raise MoediffError("No image could be evaluated.")
    _write_lesion_page(tables, options.output)
    return 1 if failed else 0


def _write_lesions(tables: Any, folder: Path) -> None:
    """Write the tables so far."""
    from bids_moediff.evaluation import hallucination as suite

    write_table(tables.lesions, suite.LESION_COLUMNS, folder / "lesions.tsv")
    write_table(tables.heads, suite.HEAD_COLUMNS, folder / "heads.tsv")


def _write_lesion_page(tables: Any, folder: Path) -> None:
    from bids_moediff.evaluation import hallucination as suite
    from bids_moediff.runtime.sink import write_text

    write_table(suite.size_classes(tables), suite.CLASS_COLUMNS, folder / "sizes.tsv")
    page = suite.markdown(tables)
    suite.draw_recovery(tables, folder / "figures" / "recovered.png")
    for path in [Path("figures/recovered.png"), *sorted((folder / "figures").glob("lesions_*"))]:
        page += f"\n![{path.stem}](figures/{path.name})\n"
    write_text(page, folder / "summary.md")
    print(page)


if __name__ == "__main__":
    sys.exit(main())
