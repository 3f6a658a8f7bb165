# SPDX-License-Identifier: Apache-2.0
"""The options of ``bids_moediff``, one group per function.

Nothing is converted here: words go as they are to :func:`bids_moediff.settings.load_settings`,
which also reads the settings file and the environment, and refuses wrong values in the same words.
"""

import argparse
from typing import Any

from bids_moediff import __version__
from bids_moediff.settings import MODELS, help_of

EPILOG = """\
Every option can also be set in a TOML file (--config-file) or by an environment variable
(BIDS_MOEDIFF_ and the option's name in capitals); the command line wins. Switches can be undone:
--no-keep-workdir and so on.

Exit codes: 0 done; 1 some images failed; 2 wrong usage or unknown label; 66 nothing to process;
69 no such device; 70 the workflow could not be run; 78 weights missing or damaged.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """``-w, --work-dir DIR`` with the placeholder once; ``--no-…`` is told in the epilog."""

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


def build_parser() -> argparse.ArgumentParser:
    """Parser whose namespace holds what was given and nothing else."""
    parser = argparse.ArgumentParser(
        prog="bids_moediff",
        usage="bids_moediff BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        description="Super-resolve the anatomical brain MRI of a BIDS data set.",
        epilog=EPILOG,
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_positional(parser)
    _add_selection(parser.add_argument_group("which images"))
    _add_model(parser.add_argument_group("super-resolution"))
    _add_outputs(parser.add_argument_group("stages and outputs"))
    _add_resources(parser.add_argument_group("resources"))
    _add_operations(parser.add_argument_group("operations"))
    return parser


def _value(group: Any, name: str, metavar: str, *short: str, nargs: str | None = None) -> None:
    flags = (*short, f"--{name.replace('_', '-')}")
    group.add_argument(*flags, dest=name, metavar=metavar, nargs=nargs, help=help_of(name))


def _flag(group: Any, name: str) -> None:
    # With --no-… too, so that the command line can undo what the settings file says.
    group.add_argument(
        f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, help=help_of(name)
    )


def _add_positional(parser: argparse.ArgumentParser) -> None:
    for name in ("bids_dir", "output_dir"):
        parser.add_argument(name, nargs="?", metavar=name.upper(), help=help_of(name))
    parser.add_argument(
        "analysis_level", nargs="?", metavar="{participant,group}", help=help_of("analysis_level")
    )


def _add_selection(group: Any) -> None:
    _value(group, "participant_label", "LABEL", nargs="+")
    _value(group, "exclude_participant_label", "LABEL", nargs="+")
    _value(group, "session_label", "LABEL", nargs="+")
    _value(group, "modalities", "SUFFIX", nargs="+")
    _value(group, "bids_filter_file", "FILE")
    _value(group, "bids_database_dir", "DIR")
    _flag(group, "skip_bids_validation")


def _add_model(group: Any) -> None:
    _value(group, "output_resolution", "MM", nargs="+")
    _value(group, "acquired_resolution", "MM", nargs="+")
    _value(group, "slice_profile", "{auto,kspace,gaussian,box}")
    _value(group, "slice_thickness", "MM")
    _value(group, "model", "{" + ",".join(MODELS) + "}")
    _value(group, "weights", "DIR")
    _value(group, "num_steps", "N")
    _value(group, "num_samples", "N")
    _value(group, "noise_strength", "X")
    _value(group, "planes", "{1,3}")
    _value(group, "consistency", "{end,each-step}")
    _value(group, "random_seed", "N")
    _value(group, "reference", "SUFFIX")
    _value(group, "intensities", "{input,corrected}")
    _flag(group, "skip_bias_correction")
    _value(group, "gradient_coefficients", "FILE")
    _value(group, "derivatives", "DIR")


def _add_outputs(group: Any) -> None:
    _value(group, "stage", "{all,preproc,sr,report}")
    _value(group, "outputs", "KIND", nargs="+")
    _value(group, "output_spaces", "SPACE", nargs="+")
    for name in ("dry_run", "check", "reports_only", "boilerplate_only", "sloppy"):
        _flag(group, name)


def _add_resources(group: Any) -> None:
    _value(group, "nprocs", "N")
    _value(group, "omp_nthreads", "N")
    _value(group, "mem", "AMOUNT")
    _value(group, "device", "{auto,cpu,cuda,cuda:N}")
    _value(group, "batch_size", "N")
    _value(group, "precision", "{auto,fp32,bf16,fp16}")
    _value(group, "use_plugin", "FILE")
    _flag(group, "resource_monitor")


def _add_operations(group: Any) -> None:
    _value(group, "work_dir", "DIR", "-w")
    for name in ("keep_workdir", "write_graph", "stop_on_first_crash"):
        _flag(group, name)
    group.add_argument("--config-file", metavar="FILE", help="TOML file with settings")
    group.add_argument(
        "--print-config", action="store_true", help="print the settings in force as TOML and stop"
    )
    group.add_argument("-v", "--verbose", action="count", dest="verbose", help=help_of("verbose"))
    group.add_argument("--version", action="version", version=f"bids_moediff {__version__}")
