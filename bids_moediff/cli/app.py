# SPDX-License-Identifier: Apache-2.0
"""The command ``bids_moediff BIDS_DIR OUTPUT_DIR {participant,group}``.

Checks come in the order in which a mistake is cheapest to find: options, folders, labels, device,
weights. Nothing is written before all of them have passed.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_moediff.cli.common import run_command, unknown_option
from bids_moediff.errors import UsageError
from bids_moediff.settings import Settings, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code (see :mod:`bids_moediff.errors`).
    """
    return run_command("bids_moediff", _run, argv)


def _run(argv: list[str]) -> int:
    from bids_moediff.cli.parser import build_parser

    parser = build_parser()
    options, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise unknown_option(unknown[0], parser)
    given = {name: value for name, value in vars(options).items() if value is not None}
    printing = given.pop("print_config", False)
    config_file = given.pop("config_file", None)
    _check_order(given)
    _check_swallowed(given)
    _check_files(given)
    settings = load_settings(
        given, Path(config_file) if config_file else None, complete=not printing
    )
    if printing:
        sys.stdout.write(settings.to_toml())
        return 0
    if settings.check:
        from bids_moediff.cli.check import print_check

        return print_check(settings)
    return _dispatch(settings)


def _check_order(given: Mapping[str, Any]) -> None:
    """Raise UsageError if the level is not the last argument."""
    levels = ("participant", "group")
    words = [given.get(name) for name in ("bids_dir", "output_dir", "analysis_level")]
    level = next((word for word in words[:2] if word in levels), None)
    if level and words[2] not in levels and not Path(level).exists():
        folders = [word for word in words if word and word != level]
        call = " ".join(["bids_moediff", *(folders or ["BIDS_DIR", "OUTPUT_DIR"]), level])
        raise UsageError(f"{level} comes after the folders: {call}.")


def _check_swallowed(given: Mapping[str, Any]) -> None:
    """UsageError if an option that takes several words has taken the folders too."""
    if "analysis_level" in given:
        return
    for name, value in given.items():
        words = [str(word) for word in value] if isinstance(value, list) else []
        if len(words) > 3 and words[-1] in ("participant", "group") and "bids_dir" not in given:
            option, call = f"--{name.replace('_', '-')}", " ".join(words[-3:])
            raise UsageError(
                f"{option} takes every word that follows, the folders too; write the folders "
                f"first: bids_moediff {call} {option} {' '.join(words[:-3])}."
            )


def _check_files(given: Mapping[str, Any]) -> None:
    """Raise UsageError for the call of the plain tool: two images and no level."""
    paths = [str(given.get(name, "")) for name in ("bids_dir", "output_dir")]
    if "analysis_level" not in given and all(path.endswith((".nii", ".nii.gz")) for path in paths):
        raise UsageError(f"For single files there is bids_moediff-superres {' '.join(paths)}.")


def _dispatch(settings: Settings) -> int:
    from bids_moediff.bids.dataset import check_input, check_output
    from bids_moediff.bids.query import load_filters
    from bids_moediff.runtime.temporary import require_temporary_folder

    require_temporary_folder()
    check_input(settings)
    check_output(settings)
    if settings.analysis_level == "group":
        from bids_moediff.execution.group import run_group

        return run_group(settings)
    load_filters(settings.bids_filter_file)
    if isinstance(settings.combine, Path):
        _check_groups(settings.bids_dir, settings.combine)
    if settings.dry_run:
        from bids_moediff.cli.dry_run import print_plan

        return print_plan(settings)
    from bids_moediff.bids.past_runs import new_run_id

    run_id = new_run_id()
    try:
        return _run_participants(settings, run_id)
    except Exception as error:
        from bids_moediff.execution.notes import note_error

        note_error(settings, run_id, error)
        raise


def _run_participants(settings: Settings, run_id: str) -> int:
    """Check what concerns the run as a whole, then run."""
    from bids_moediff.bids.discover import find_participants, require_an_image

    require_an_image(settings, find_participants(settings))
    if needs_network(settings):
        from bids_moediff.cli.check import check_weights
        from bids_moediff.runtime.devices import require_devices

        names = require_devices(settings.device)
        check_weights(settings, names[0])
    from bids_moediff.execution.run import run_participants

    return run_participants(settings, run_id)


def _check_groups(bids_dir: Path, file: Path) -> None:
    """Raise UsageError for an unusable file of groups; name subjects that are missing."""
    from bids_moediff.bids.groups import read_groups

    subjects = dict.fromkeys(Path(names[0]).parts[0] for names in read_groups(file))
    if lost := [name for name in subjects if not (bids_dir / name).exists()]:
        print(
            f"bids_moediff: --combine {file}: not in the data set: {', '.join(lost)}.",
            file=sys.stderr,
        )


def needs_network(settings: Settings) -> bool:
    """Return True if this run loads a model."""
    only = settings.reports_only or settings.boilerplate_only
    return settings.stage in ("all", "sr") and not only


if __name__ == "__main__":
    sys.exit(main())
