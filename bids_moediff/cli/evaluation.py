# SPDX-License-Identifier: Apache-2.0
"""Shared parts of ``bids_moediff-evaluate`` and the commands of the lab."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff import __version__
from bids_moediff.cli.common import Parser, ProgressBar, set_threads
from bids_moediff.cli.parser import add_old_spelling, add_options, add_threads, given
from bids_moediff.errors import ImageError, MoediffError, UsageError
from bids_moediff.options import PRECISIONS, Options

if TYPE_CHECKING:
    from bids_moediff.evaluation.benchmark import Method
    from bids_moediff.evaluation.truth import Loaded, TruthHead
    from bids_moediff.imaging.protocols import Protocol
    from bids_moediff.inference.super_resolver import SuperResolver

PROGRAM = "bids_moediff-evaluate"
SAMPLING = (
    "random_seed", "num_steps", "num_samples", "sampler", "planes", "consistency",
    "batch_size", "self_ensemble", "in_plane_refit",
)  # fmt: skip


def add_heads(parser: argparse.ArgumentParser) -> None:
    """Add options that name heads with a truth."""
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
    """Add options that name models and how they run."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", nargs="+", default=[], metavar="NAME", help="names or folders of models"
    )
    model.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or auto")
    model.add_argument("--precision", default="auto", choices=PRECISIONS)
    add_options(model, SAMPLING)
    add_old_spelling(model, "--seed", "random_seed")
    add_threads(parser)


def add_block(parser: argparse.ArgumentParser) -> None:
    """Add the option that restricts heads to their middle."""
    parser.add_argument(
        "--block", type=int, metavar="N", help="only the middle of each head, N voxels wide"
    )


def restoring_parser(
    program: str, description: str, model: str, protocols: Sequence[str], num_samples: int
) -> argparse.ArgumentParser:
    """Return the parser of a command that makes heads coarse and restores them, with defaults."""
    parser = Parser(prog=program, description=description)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for tables and pictures")
    add_heads(parser)
    add_model(parser)
    parser.set_defaults(num_samples=num_samples, model=[model])
    parser.add_argument("--protocols", nargs="+", metavar="NAME", default=list(protocols))
    add_block(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def load_heads(options: argparse.Namespace) -> "list[TruthHead]":
    """Return the heads of the options, or their middle."""
    from bids_moediff.evaluation.truth import Block, heads_of_files, heads_of_manifest

    heads = heads_of_files(options.heads, options.other_site)
    if options.data is not None:
        heads += heads_of_manifest(options.data, options.split)
    if not heads:
        raise UsageError("Name heads: --heads FILE… or --data DIR --split val.")
    references = getattr(options, "reference", [])
    if references:
        heads = _with_references(heads, references)
    side = getattr(options, "block", None)
    if side is not None and side < 48:
        raise UsageError("--block must be at least 48.")
    if side is None:
        return heads
    return [Block(head.path, head.group, head.reference, side=side) for head in heads]


def _with_references(heads: "list[TruthHead]", references: Sequence[Path]) -> "list[TruthHead]":
    """Return heads with another contrast each."""
    if len(heads) != len(references):
        raise UsageError(
            f"--reference: {len(references)} for {len(heads)} heads; give one for each of --heads."
        )
    if missing := [str(path) for path in references if not path.is_file()]:
        raise UsageError(f"There is no file {missing[0]}.")
    return [replace(head, reference=path) for head, path in zip(heads, references, strict=True)]


def load_methods(options: argparse.Namespace) -> "list[Method]":
    """Return the models of the options as methods, each loaded once."""
    from bids_moediff.evaluation.benchmark import model_method

    typed = sampling_options(options)
    models = [load_model(name, options) for name in dict.fromkeys(options.model)]
    return [model_method(model, "", **typed) for model in models]


def sampling_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of :class:`Options` that were given."""
    words = given(namespace, SAMPLING)
    off = words.pop("consistency") if words.get("consistency") == "off" else None
    options = Options.from_dict(words, "")
    typed = {name: getattr(options, name) for name in words}
    # What agreement with the scan is worth is measured here alone; the app always insists on it.
    return typed | ({} if off is None else {"consistency": off})


def load_model(name: str, options: argparse.Namespace) -> "SuperResolver":
    """Load a model on the device of the options."""
    from bids_moediff.inference.super_resolver import SuperResolver

    return SuperResolver.from_pretrained(name, options.device, options.precision)


def each_result(
    options: argparse.Namespace,
    program: str,
    resolvers: "Sequence[SuperResolver]",
    work: "Callable[[Loaded, Protocol, SuperResolver], str]",
) -> bool:
    """Call a function for every head, protocol and model; return False if a head failed.

    Parameters
    ----------
    options
        With heads and names of protocols.
    program
        Prefix of messages.
    resolvers
        Models.
    work
        Returns a line for the progress. MoediffError and ValueError skip the head only.

    Raises
    ------
    MoediffError
        If every head failed.
    """
    from bids_moediff.evaluation.gates import select_protocols

    protocols = select_protocols(options.protocols)
    heads = load_heads(options)
    progress = ProgressBar(len(heads) * len(protocols) * len(resolvers), "result")
    failed, done = False, 0
    for head in heads:
        try:
            loaded = head.load()
            for protocol in protocols:
                for resolver in resolvers:
                    progress(work(loaded, protocol, resolver))
                    done += 1
        except (ImageError, ValueError) as error:
            failed = True
            print(f"{program}: {head.name}: {error}", file=sys.stderr)
    progress.close()
    if not done:
        raise MoediffError("No image could be evaluated.")
    return not failed


def load_models(options: argparse.Namespace) -> "list[SuperResolver]":
    """Load every model of the options once."""
    return [load_model(name, options) for name in dict.fromkeys(options.model)]


def check_threads(options: argparse.Namespace) -> None:
    """Check the number of threads, then set it."""
    if options.omp_nthreads < 1:
        raise UsageError("--omp-nthreads must be at least 1.")
    set_threads(options.omp_nthreads)


def result_line(row: dict[str, Any]) -> str:
    """Return one row of a benchmark as a line of the progress."""
    return (
        f"{row['head']}  {row['protocol']}  {row['method']}  {row['psnr']:.2f} dB"
        f"  {row['seconds']:.1f} s"
    )


def write_table(rows: list[dict[str, Any]], columns: Sequence[str], path: Path) -> None:
    """Write rows with six digits; missing figures become n/a."""
    from bids_moediff.runtime.sink import table_text, write_text

    plain = [
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items() if v == v}
        for row in rows
    ]
    write_text(table_text(plain, [*columns]), path)
