# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate``: how good is a result, a model, and does it invent anything?

* ``bids_moediff-evaluate DERIVATIVES OUT --reference BIDS_DIR``: results against true images;
* ``bids_moediff-evaluate benchmark …``: a model on high-resolution heads that are made coarse;
* ``bids_moediff-evaluate hallucination …``: lesions put into heads: kept, faded or multiplied?
* ``bids_moediff-evaluate calibration …``: is it wrong where it says it is uncertain?
* ``bids_moediff-evaluate ablations …``: what each part of a model is worth.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.cli.common import ProgressBar, run_command, set_threads
from bids_moediff.cli.parser import add_old_spelling, add_options, given
from bids_moediff.errors import MoediffError, NothingToProcessError, UsageError
from bids_moediff.options import Options

if TYPE_CHECKING:
    from bids_moediff.bids.image import AnatomicalImage
    from bids_moediff.evaluation.benchmark import Method
    from bids_moediff.evaluation.truth import TruthHead
    from bids_moediff.inference.super_resolver import SuperResolver

PROGRAM = "bids_moediff-evaluate"
SAMPLING = (
    "random_seed", "num_steps", "num_samples", "noise_strength", "planes", "consistency",
    "batch_size",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Console entry point; gives the exit code."""
    return run_command(PROGRAM, _run, argv)


def _run(argv: list[str]) -> int:
    commands = {
        "benchmark": run_benchmark,
        "hallucination": run_hallucination,
        "ablations": _run_ablations,
        "calibration": _run_calibration,
    }
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    return run_derivatives(argv)


def _run_ablations(argv: list[str]) -> int:
    from bids_moediff.cli.ablations import run_ablations

    return run_ablations(argv)


def _run_calibration(argv: list[str]) -> int:
    from bids_moediff.cli.calibration import run_calibration

    return run_calibration(argv)


def derivatives_parser() -> argparse.ArgumentParser:
    """Parser of the command without a sub-command."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Compare super-resolved images with true images of the same participants.",
        epilog=f"Also: {PROGRAM} (benchmark|hallucination|calibration|ablations) --help.",
        allow_abbrev=False,
    )
    parser.add_argument("derivatives", type=Path, help="output folder of bids_moediff")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for table and page")
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="BIDS_DIR", help="data set of true images"
    )
    parser.add_argument(
        "--reference-session", metavar="LABEL", help="session of the true images (default: same)"
    )
    parser.add_argument(
        "--input", type=Path, metavar="BIDS_DIR", help="the coarse scans: gains over interpolation"
    )
    parser.add_argument("--participant-label", nargs="+", metavar="LABEL", default=[])
    parser.add_argument(
        "--fit-intensities",
        action="store_true",
        help="fit scale and offset to the reference first (another scan, other units)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_derivatives(argv: list[str]) -> int:
    """Table and page of a data set of results; 1 if some could not be evaluated."""
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
    references = _Images(options.reference)
    sources = _Images(options.input) if options.input else None
    session = options.reference_session
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
        """Images of a participant, none if the folder is not there."""
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


def add_heads(parser: argparse.ArgumentParser) -> None:
    """Options that name heads with a truth."""
    heads = parser.add_argument_group("heads (high-resolution images that serve as truth)")
    heads.add_argument("--heads", type=Path, nargs="+", metavar="FILE", default=[])
    heads.add_argument(
        "--other-site",
        type=Path,
        nargs="+",
        metavar="FILE",
        default=[],
        help="more heads, of a site that trained nothing; summarised on their own",
    )
    heads.add_argument(
        "--data", type=Path, metavar="DIR", help="folder with manifest.tsv (file, split, source)"
    )
    heads.add_argument("--split", default="val", help="split of the manifest (default val)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that name models and how they run."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", nargs="+", default=[], metavar="NAME", help="names or folders of models"
    )
    model.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    model.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    add_options(model, SAMPLING)
    add_old_spelling(model, "--seed", "random_seed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")


def add_block(parser: argparse.ArgumentParser) -> None:
    """Option that restricts heads to their middle."""
    parser.add_argument(
        "--block", type=int, metavar="N", help="only the middle of each head, N voxels wide"
    )


def load_heads(options: argparse.Namespace) -> "list[TruthHead]":
    """Heads that the options name, or the middle of them."""
    from bids_moediff.evaluation.truth import Block, heads_of_files, heads_of_manifest

    heads = heads_of_files(options.heads, options.other_site)
    if options.data is not None:
        heads += heads_of_manifest(options.data, options.split)
    if not heads:
        raise UsageError("Name heads: --heads FILE… or --data DIR --split val.")
    side = getattr(options, "block", None)
    if side is not None and side < 48:
        raise UsageError("--block must be at least 48.")
    return heads if side is None else [Block(head.path, head.group, side) for head in heads]


def load_methods(options: argparse.Namespace) -> "list[Method]":
    """Models that the options name, each loaded once."""
    from bids_moediff.evaluation.benchmark import model_method

    typed = sampling_options(options)
    models = [load_model(name, options) for name in dict.fromkeys(options.model)]
    return [model_method(model, "", **typed) for model in models]


def sampling_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """Options of :class:`Options` that were typed."""
    words = given(namespace, SAMPLING)
    off = words.pop("consistency") if words.get("consistency") == "off" else None
    options = Options.from_dict(words, "--")
    typed = {name: getattr(options, name) for name in words}
    # What agreement with the scan is worth is measured here alone; the app always insists on it.
    return typed | ({} if off is None else {"consistency": off})


def load_model(name: str, options: argparse.Namespace) -> "SuperResolver":
    """A model on the device of the options."""
    from bids_moediff.inference.super_resolver import SuperResolver

    return SuperResolver.from_pretrained(name, options.device, options.precision)


def check_threads(options: argparse.Namespace) -> None:
    """Refuse a senseless number of threads, then set it."""
    if options.threads < 1:
        raise UsageError("--threads must be at least 1.")
    set_threads(options.threads)


def benchmark_parser() -> argparse.ArgumentParser:
    """Parser of ``benchmark``."""
    parser = argparse.ArgumentParser(
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
    """Rows, summary and pictures of a benchmark; 1 if a row could not be computed."""
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
        raise MoediffError("Not one head could be evaluated.")
    _write_summary(done, notes, folder)
    return 1 if problems else 0


def result_line(row: dict[str, Any]) -> str:
    """One row of a benchmark in a line of the progress."""
    return (
        f"{row['head']}  {row['protocol']}  {row['method']}  {row['psnr']:.2f} dB"
        f"  {row['seconds']:.1f} s"
    )


def _write_summary(rows: list[dict[str, Any]], notes: dict[str, str], folder: Path) -> None:
    """summary.tsv, summary.md and one picture per protocol; prints the page."""
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
    """Parser of ``hallucination``."""
    parser = argparse.ArgumentParser(
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
        "--repeats", type=int, default=2, help="lesions of each size and contrast (default 2)"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_hallucination(argv: list[str]) -> int:
    """Tables, page and pictures of the lesion test; 1 if a head could not be used."""
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
            lesions = hallucination.place_lesions(
                loaded, repeats=options.repeats, seed=seed
            )
            figures = options.output / "figures"
            hallucination.run(loaded, protocols, methods, lesions, tables, figures, report)
        except MoediffError as error:
            print(f"{PROGRAM}: {head.name}: {error}", file=sys.stderr)
            failed = True
    progress.close()
    if not tables.heads:
        raise MoediffError("Not one head could be evaluated.")
    _write_lesion_page(tables, options.output)
    return 1 if failed else 0


def _write_lesions(tables: Any, folder: Path) -> None:
    """The tables so far."""
    from bids_moediff.evaluation import hallucination as suite

    write_table(tables.lesions, suite.LESION_COLUMNS, folder / "lesions.tsv")
    write_table(tables.heads, suite.HEAD_COLUMNS, folder / "heads.tsv")


def write_table(rows: list[dict[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Rows with six digits; figures that are missing or no numbers become n/a."""
    from bids_moediff.runtime.sink import table_text, write_text

    plain = [
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items() if v == v}
        for row in rows
    ]
    write_text(table_text(plain, [*columns]), path)


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
