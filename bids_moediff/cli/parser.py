# SPDX-License-Identifier: Apache-2.0
"""Build parsers from the metadata of options, so that every option is written once.

Nothing is converted here. Words go unchanged to :func:`bids_moediff.settings.load_settings` or
:meth:`bids_moediff.options.Options.from_dict`, which report wrong values in the same words for
every source.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from typing import Any

from bids_moediff import __version__
from bids_moediff.cli.common import Parser
from bids_moediff.converters import from_noise_strength, to_flag
from bids_moediff.options import OUTPUTS, RESOURCES, RESTORATION, Options
from bids_moediff.settings import OPERATIONS, SELECTION, Settings

GROUPS = (SELECTION, RESTORATION, OUTPUTS, RESOURCES, OPERATIONS)
SHORT = {"work_dir": "-w"}

EPILOG = """\
Every option can also be set in a TOML file (--config-file) or by an environment variable
(BIDS_MOEDIFF_ and the option's name in capitals); the command line wins. Switches can be undone:
--no-keep-workdir and so on.

Exit codes: 0 done; 1 some images failed; 2 wrong usage or unknown label; 66 nothing to process;
69 no such device; 70 the workflow could not be run; 78 weights missing or damaged.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Print ``-w, --work-dir DIR`` with the placeholder once; ``--no-…`` is in the epilog."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=99)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        flags = [flag for flag in action.option_strings if not flag.startswith("--no-")]
        if not flags:
            return super()._format_action_invocation(action)
        if action.nargs == 0:
            return ", ".join(flags)
        metavar = self._get_default_metavar_for_optional(action)
        return f"{', '.join(flags)} {self._format_args(action, metavar)}"


class _Old(argparse.Action):
    """An option under its name in an earlier version: it works, with a notice."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Store the value under the new name."""
        new = f"--{self.dest.replace('_', '-')}"
        print(f"{parser.prog}: {option_string} is now called {new}.", file=sys.stderr)
        setattr(namespace, self.dest, values)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the app; its namespace holds given options only."""
    parser = Parser(
        prog="bids_moediff",
        usage="bids_moediff BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        description="Super-resolve the anatomical brain MRI of a BIDS data set.",
        epilog=EPILOG,
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    known = {item.name: item for item in fields(Settings)}
    for name, metavar in (
        ("bids_dir", "BIDS_DIR"),
        ("output_dir", "OUTPUT_DIR"),
        ("analysis_level", "{participant,group}"),
    ):
        parser.add_argument(name, nargs="?", metavar=metavar, help=known[name].metadata["help"])
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for item in known.values():
        if group := item.metadata["group"]:
            add_option(groups[group], item)
    add_old_spelling(
        groups[RESTORATION], "--noise-strength", "sample", convert=from_noise_strength
    )
    operations = groups[OPERATIONS]
    operations.add_argument("--config-file", metavar="FILE", help="TOML file with settings")
    operations.add_argument(
        "--print-config", action="store_true", help="print the settings in force as TOML and stop"
    )
    operations.add_argument(
        "-v", "--verbose", action="count", dest="verbose", help=known["verbose"].metadata["help"]
    )
    operations.add_argument("--version", action="version", version=f"bids_moediff {__version__}")
    return parser


def add_option(group: Any, item: Field[Any]) -> None:
    """Add one option, made from the metadata of its field."""
    about, name = item.metadata, f"--{item.name.replace('_', '-')}"
    if about["convert"] is to_flag:
        # With --no-… too, so that the command line can undo what the settings file says.
        group.add_argument(name, action=argparse.BooleanOptionalAction, help=about["help"])
        return
    flags = (SHORT[item.name], name) if item.name in SHORT else (name,)
    group.add_argument(
        *flags,
        dest=item.name,
        metavar=about["metavar"],
        nargs="+" if about["many"] else None,
        help=about["help"],
    )


def add_options(group: Any, names: Iterable[str], of: type[Options] = Options) -> None:
    """Add the options of these names."""
    known = {item.name: item for item in fields(of)}
    for name in names:
        add_option(group, known[name])


def add_old_spelling(
    group: Any, old: str, new: str, nargs: str | None = None, convert: Callable[[str], Any] = str
) -> None:
    """Let ``old`` set the option ``new`` for one version, with a notice on standard error."""
    group.add_argument(
        old, dest=new, action=_Old, nargs=nargs, type=convert, help=argparse.SUPPRESS
    )


def add_threads(parser: Any) -> None:
    """Add ``--omp-nthreads`` (and its old spelling) to a command that runs in one process."""
    parser.add_argument(
        "--omp-nthreads", type=int, default=1, metavar="N", help="CPU threads (default 1)"
    )
    add_old_spelling(parser, "--threads", "omp_nthreads", convert=int)


def given(namespace: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the options of these names that were given."""
    typed = vars(namespace)
    return {name: typed[name] for name in names if typed.get(name) is not None}
