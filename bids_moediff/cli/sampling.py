# SPDX-License-Identifier: Apache-2.0
"""``bids_moediff-evaluate sampling``: compare the spread of samples with the true error."""

import argparse
from dataclasses import replace
from typing import Any

from bids_moediff.cli import evaluation as evaluate
from bids_moediff.errors import UsageError
from bids_moediff.options import Options

PROGRAM = f"{evaluate.PROGRAM} sampling"


def sampling_parser() -> argparse.ArgumentParser:
    """Return the parser of ``sampling``."""
    parser = evaluate.restoring_parser(
        PROGRAM,
        "Make heads coarse, restore them, draw samples of what is missing, and compare them with "
        "the truth: variance, power, ranks, scores, tissue volumes; beside the expected error by "
        "hand and a scale taken from the truth.",
        model="student",
        protocols=("x2iso-kspace+noise2", "x4slices-gaussian"),
        num_samples=8,
    )
    return parser


def run_sampling(argv: list[str]) -> int:
    """Write tables of all samplers; return 1 if a head could not be used."""
    options = sampling_parser().parse_intermixed_args(argv)
    evaluate.check_threads(options)
    from bids_moediff.evaluation import sampling
    from bids_moediff.runtime.sink import write_text

    asked = replace(Options(), **evaluate.sampling_options(options))
    if asked.num_samples < 2:
        raise UsageError("--num-samples must be at least 2.")
    rows: list[dict[str, Any]] = []

    def work(loaded: Any, protocol: Any, resolver: Any) -> str:
        rows.extend(sampling.examine(loaded, protocol, resolver, asked))
        evaluate.write_table(rows, sampling.COLUMNS, options.output / "sampling.tsv")
        return f"{loaded.head.name}  {protocol.key}  {resolver.model.name}"

    all_used = evaluate.each_result(options, PROGRAM, evaluate.load_models(options), work)
    page = sampling.markdown(rows)
    write_text(page, options.output / "sampling.md")
    print(page)
    return 0 if all_used else 1
