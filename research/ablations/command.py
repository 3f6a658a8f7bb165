# SPDX-License-Identifier: Apache-2.0
"""``python -m research.ablations.command``: what each part of a model is worth, as one table."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.cli import evaluation as evaluate
from bids_moediff.cli.common import ProgressBar, run_command
from bids_moediff.cli.parser import add_threads
from bids_moediff.errors import ImageError, MoediffError, UsageError
from bids_moediff.options import PRECISIONS

if TYPE_CHECKING:
    from bids_moediff.evaluation.truth import Block
    from bids_moediff.inference.super_resolver import SuperResolver

PROGRAM = "ablations"
DEVELOPMENT = "development"
DEFAULT_PROTOCOLS = ("x2iso-kspace", "x4slices-gaussian")


def ablations_parser() -> argparse.ArgumentParser:
    """Parser of ``ablations``."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Change one setting of a model at a time and compare, on the central blocks "
        "of heads that trained nothing. Networks that have to be trained for a comparison are "
        "given with --models; the table says which were not. Finished rows in OUT are kept.",
    )
    add = parser.add_argument
    add("output", type=Path, metavar="OUT", help="folder for the tables and the page")
    evaluate.add_heads(parser)
    parser.set_defaults(split=DEVELOPMENT)
    add("--model", default="moediff", metavar="NAME", help="model that is judged")
    add(
        "--models",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help="further models: experts-single, experts-slice-gate, experts-kl, experts-vq, "
        "experts-interpolation, experts-noise, experts-2d (the names of their recipes), experts "
        "(a mixture trained as those were) or any other name",
    )
    add("--protocols", nargs="+", default=DEFAULT_PROTOCOLS, metavar="NAME")
    add("--block", type=int, default=96, metavar="N", help="side of the blocks in voxels")
    add(
        "--questions",
        nargs="+",
        metavar="WORD",
        help="compute these rows only (default all): mixture, gate, latent, start, steps, noise, "
        "consistency, slices, samples, other; rows that are in OUT are shown all the same",
    )
    add(
        "--gates-only",
        action="store_true",
        help="only the gate mass per tissue and its test (OUT/gates.md); no expert is run",
    )
    add("--samples", type=int, default=8, metavar="N", help="samples of the mean of samples")
    add("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    add("--precision", default="auto", choices=PRECISIONS)
    add_threads(parser)
    add("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def run_ablations(argv: list[str]) -> int:
    """Rows, table and page; 1 if a row could not be computed."""
    options = ablations_parser().parse_intermixed_args(argv)
    folders = _named(options.models)
    if options.block < 48 or options.samples < 2:
        raise UsageError("--block must be at least 48, and --samples at least 2.")
    from bids_moediff.evaluation.gates import select_protocols

    protocols = select_protocols(options.protocols)
    evaluate.check_threads(options)
    from bids_moediff.evaluation.benchmark import BenchmarkPlan, HeadTable, Rows, run
    from research.ablations import arms as ablation
    from research.ablations import page as ablation_page

    heads = _blocks(options)
    base = _load(options.model, options)
    if options.gates_only:
        return _gates_only(options, base, heads, protocols[0])
    given = {name: _load(str(folder), options) for name, folder in folders.items()}
    arms = ablation.make_arms(base, given, options.samples)
    chosen = ablation.choose(arms, options.questions)
    plan = BenchmarkPlan(heads, protocols, ablation.methods_of(chosen), full=True)
    progress, problems = ProgressBar(len(plan), "row"), []

    def report(row: dict[str, Any] | None, problem: str) -> None:
        if problem:
            if problem not in problems:
                print(f"{PROGRAM}: {problem}", file=sys.stderr)
            problems.append(problem)
        progress(evaluate.result_line(row) if row and "psnr" in row else "")

    folder = options.output
    table = Rows(folder / "rows.tsv")
    done, notes = run(plan, table, HeadTable(folder / "heads.tsv"), report)
    progress.close()
    if not done:
        raise MoediffError("Not one head could be evaluated.")
    places = {(row["image"], row["protocol"]) for row in done}
    known = [row for row in table.all() if (row["image"], row["protocol"]) in places]
    entries = ablation.summarise(arms, known)
    evaluate.write_table(entries, ablation.COLUMNS, folder / "ablations.tsv")
    gates = _gates(base, heads, protocols[0])
    text = ablation_page.page(entries, _notes(options, base, given, heads, notes), gates)
    from bids_moediff.runtime.sink import write_text

    write_text(text, folder / "ablations.md")
    print(text)
    return 1 if problems else 0


def _gates_only(
    options: argparse.Namespace, base: "SuperResolver", heads: "list[Block]", protocol: Any
) -> int:
    """The last part of the page alone."""
    from bids_moediff.runtime.sink import write_text
    from research.ablations.arms import check_variant

    check_variant(base.model.name, base)
    lines = [*_notes(options, base, {}, heads, {}), "", *_gates(base, heads, protocol)]
    text = "\n".join(lines) + "\n"
    write_text(text, options.output / "gates.md")
    print(text)
    return 0


def _named(words: list[str]) -> dict[str, Path]:
    """Folders by name; UsageError for a word without a sign, and for a name given twice."""
    folders: dict[str, Path] = {}
    for word in words:
        name, sign, folder = word.partition("=")
        if not sign or not name or not folder:
            raise UsageError(f"--models wants NAME=FOLDER, not {word!r}.")
        if name in folders:
            raise UsageError(f"--models names {name} twice.")
        folders[name] = Path(folder)
    return folders


def _blocks(options: argparse.Namespace) -> "list[Block]":
    """Central blocks of the heads; those of development are what the recipes keep out."""
    from bids_moediff.evaluation.truth import Block

    if options.data is not None and options.split == DEVELOPMENT:
        from bids_moediff.training.recipe import load_recipes
        from research.catalogue import catalogue

        kept_out = set(load_recipes("experts", catalogue())[0].keep_out)
        known = argparse.Namespace(**(vars(options) | {"split": "train"}))
        heads = [
            head
            for head in evaluate.load_heads(known)
            if head.name in kept_out or head.path in options.heads
        ]
    else:
        heads = evaluate.load_heads(options)
    if not heads:
        raise UsageError(f"{options.data} holds none of the heads of {options.split}.")
    return [Block(head.path, head.group, side=options.block) for head in heads]


def _load(name: str, options: argparse.Namespace) -> "SuperResolver":
    from bids_moediff.inference.super_resolver import SuperResolver

    return SuperResolver.from_pretrained(name, options.device, options.precision)


def _gates(base: "SuperResolver", heads: "list[Block]", protocol: Any) -> list[str]:
    """Gate mass per tissue of the model on T1-weighted heads."""
    from research.ablations.arms import experts_of
    from research.ablations.page import gate_lines
    from research.ablations.tissue import gate_mass_of, verdict

    experts = list(experts_of(base).config.experts)  # type: ignore[union-attr, arg-type]
    masses, left_out = {}, {}
    for head in heads:
        try:
            masses[head.name] = gate_mass_of(base, head, protocol, experts)
        except ImageError as error:
            left_out[head.name] = str(error)
    found = verdict(list(masses.values())) if masses else None
    return gate_lines(masses, experts, found, left_out)


def _notes(
    options: argparse.Namespace,
    base: "SuperResolver",
    given: "dict[str, SuperResolver]",
    heads: "list[Block]",
    notes: dict[str, str],
) -> list[str]:
    """How the table was made, without a path of this machine."""
    models = "".join(f" {name}=FOLDER" for name in given)
    source = f"--data DATA --split {options.split}" if options.data else "--heads FILE…"
    command = f"{PROGRAM} OUT {source} --model {base.model.name} --block {options.block}"
    if options.gates_only:
        command += " --gates-only"
    if models:
        command += f" --models{models}"
    lines = [
        "Made by `" + command + f" --protocols {' '.join(options.protocols)}` "
        f"on central blocks of {', '.join(head.name for head in heads)}.",
        "",
        "Weights (SHA-256):",
        "",
        *(
            f"* {name}: {resolver.model.sha256[:12]}, {resolver.precision}"
            for name, resolver in {base.model.name: base, **given}.items()
        ),
    ]
    told = [f"* {name}: {note}." for name, note in notes.items() if note]
    return [*lines, *(["", "Axes without truth are left alone:", "", *told] if told else [])]


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, run_ablations, None))
