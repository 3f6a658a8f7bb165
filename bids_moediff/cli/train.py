# SPDX-License-Identifier: Apache-2.0
"""The command ``bids_moediff-train``: train a model, or export runs as a model folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bids_moediff import __version__
from bids_moediff.cli.common import Parser, unknown_option
from bids_moediff.cli.parser import add_old_spelling
from bids_moediff.errors import MoediffError, UsageError

if TYPE_CHECKING:
    from bids_moediff.training.catalogue import Catalogue

INTERRUPTED = 130
EPILOG = """\
The same command goes on where an earlier one stopped. Several GPUs or nodes:
torchrun --nproc-per-node 4 -m bids_moediff.cli.train --recipe ...
Finished runs become a model folder with: bids_moediff-train export RUN_DIR... MODEL_DIR

Exit codes: 0 done; 1 the disk is full or the loss diverged; 2 wrong usage or data; 69 no such
device; 78 weights missing or damaged; 130 stopped, with the state saved.
"""


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bids_moediff-train``."""
    parser = Parser(
        prog="bids_moediff-train",
        description="Train MoEDiff-SR or its student on your own data, or on a training pack.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--recipe", metavar="NAME", help="name of a recipe (--list-recipes), or a YAML file")
    add("--output", type=Path, metavar="RUN_DIR", help="folder of the run")
    add("--version", action="version", version=f"bids_moediff {__version__}")
    _add_data(parser.add_argument_group("data"))
    _add_run(parser.add_argument_group("training"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--data", nargs="+", type=Path, default=[], metavar="BIDS_DIR", help="BIDS data sets")
    add("--labels", nargs="+", type=Path, default=[], metavar="DIR", help="FreeSurfer label maps")
    add("--pack", type=Path, metavar="FILE", help="training pack instead of --data")
    add("--pack-only", type=Path, metavar="FILE", help="write the training pack and stop")
    add("--max-megabytes", type=float, metavar="N", help="largest size of the pack")
    add(
        "--pairs",
        default="auto",
        metavar="COARSE:FINE",
        help="pairs of scans, for example ses-low:ses-high or acq-thick:acq-iso; auto (default): "
        "by voxel size; none: every fine scan is degraded while training",
    )
    add("--modalities", nargs="+", default=[], metavar="SUFFIX", help="for example T1w FLAIR")
    add("--max-voxel", type=float, default=1.6, metavar="MM", help="coarsest voxel that is fine")
    add(
        "--validation-label",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="participants that only steer the training (default: a tenth of them)",
    )


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--init",
        nargs="+",
        type=Path,
        default=[],
        metavar="MODEL",
        help="models, or runs of the mean and of an autoencoder, to begin with",
    )
    add("--steps", type=int, metavar="N", help="optimiser steps instead of the recipe's")
    add(
        "--minutes",
        type=float,
        metavar="M",
        help="as many steps, of every stage, as fit into this time on this machine",
    )
    add("--random-seed", type=int, metavar="N", help="seed instead of the recipe's")
    add_old_spelling(group, "--seed", "random_seed", convert=int)
    add("--device", default="auto", metavar="{auto,cpu,cuda,cuda:N}", help="where to train")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings instead of the recipe's: batch=8 network.width=48 experts.crop=64",
    )
    add("--smoke", action="store_true", help="a trial run: tiny networks, a minute")
    add("--list-recipes", action="store_true", help="names of the recipes, and stop")
    add("--print-recipe", action="store_true", help="every setting in force, and stop")


def export_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bids_moediff-train export``."""
    parser = Parser(
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


def _export(argv: list[str], catalogue: "Catalogue") -> int:
    options = export_parser().parse_args(argv)
    from bids_moediff.training.export import export

    digest = export(
        options.runs, options.model, catalogue, pack=options.pack, machine=options.hardware
    )
    print(f"{options.model}: weights with SHA-256 {digest}")
    return 0


def _train(argv: list[str], catalogue: "Catalogue") -> int:
    parser = train_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise unknown_option(unknown[0], parser)
    if options.list_recipes:
        from bids_moediff.training.recipe import recipe_names

        print("\n".join(recipe_names(catalogue)))
        return 0
    if options.pack_only is not None:
        from bids_moediff.training.pipeline import write_pack

        write_pack(options, options.pack_only)
        return 0
    if options.recipe is None:
        raise UsageError("Name a recipe with --recipe; --list-recipes prints their names.")
    from bids_moediff.training.recipe import load_recipes

    changes = list(options.set)
    if options.random_seed is not None:
        changes.append(f"seed={options.random_seed}")
    recipes = load_recipes(
        options.recipe, catalogue, changes, smoke=options.smoke, steps=options.steps
    )
    if options.print_recipe:
        import yaml

        parts = [{"stage": recipe.stage, **recipe.to_dict()} for recipe in recipes]
        print(yaml.safe_dump_all(parts, sort_keys=False), end="")
        return 0
    if options.output is None:
        raise UsageError("Name the folder of the run with --output.")
    from bids_moediff.training.pipeline import run_recipes

    run_recipes(recipes, options, catalogue)
    return 0


def main(argv: Sequence[str] | None = None, catalogue: "Catalogue | None" = None) -> int:
    """Run the command and return its exit code (see :mod:`bids_moediff.errors`).

    ``catalogue`` holds the trainable stages; by default those of the package's families.
    """
    from bids_moediff.families.catalogue import catalogue as own_catalogue
    from bids_moediff.runtime.platform import keep_freed_memory

    words = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    try:
        stages = catalogue or own_catalogue()
        return _export(words[1:], stages) if words[:1] == ["export"] else _train(words, stages)
    except MoediffError as error:
        print(f"bids_moediff-train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bids_moediff-train: interrupted.", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
