# SPDX-License-Identifier: Apache-2.0
"""The command ``bids_moediff-train``: export training runs as a model folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bids_moediff.errors import MoediffError, UsageError

INTERRUPTED = 130


def export_parser() -> argparse.ArgumentParser:
    """Parser of ``bids_moediff-train export``."""
    parser = argparse.ArgumentParser(
        prog="bids_moediff-train export",
        description="Write a model folder (weights, card, curve) from training runs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="one folder for each stage"
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder to write")
    parser.add_argument(
        "--pack", type=Path, metavar="FILE", help="training pack, where a run has no hash of it"
    )
    parser.add_argument(
        "--hardware", default="", metavar="TEXT", help="what a run ran on, where it did not say"
    )
    return parser


def _export(argv: list[str]) -> int:
    options = export_parser().parse_args(argv)
    from bids_moediff.training.export import export

    digest = export(options.runs, options.model, pack=options.pack, machine=options.hardware)
    print(f"{options.model}: weights with SHA-256 {digest}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code (see :mod:`bids_moediff.errors`)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["export"]:
            return _export(words[1:])
        raise UsageError("Say what to do: export RUN_DIR... MODEL_DIR.")
    except MoediffError as error:
        print(f"bids_moediff-train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bids_moediff-train: interrupted.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
