# SPDX-License-Identifier: Apache-2.0
"""All options of a run of the app, from defaults < TOML file < environment < command line.

Each field of :class:`Settings` is a long option with underscores for dashes. Options that decide a
result are inherited from :class:`~bids_moediff.options.Options`.
"""

# ruff: noqa: RUF009 (option is dataclasses.field with a converter)

import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bids_moediff.converters import (
    from_noise_strength,
    labels,
    one_of,
    several_of,
    to_combine,
    to_device,
    to_flag,
    to_path,
    to_spaces,
    whole,
)
from bids_moediff.errors import UsageError, closest
from bids_moediff.options import (
    ANATOMICAL_SUFFIXES,
    OUTPUTS,
    RESOURCES,
    RESTORATION,
    UNSHADED_SUFFIXES,
    Options,
    converted,
    option,
)
from bids_moediff.runtime.given_files import read_text
from bids_moediff.runtime.resources import parse_memory

PREFIX = "BIDS_MOEDIFF_"
# Variables with our prefix that are no options: container identity, test data and test hooks.
OTHER_VARIABLES = ("DOCKER_TAG", "SINGULARITY_URL", "SHARED")

SELECTION, OPERATIONS = "which images", "operations"


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Every option of a run; paths are absolute, labels are without ``sub-`` and ``ses-``."""

    bids_dir: Path = option(
        Path(),
        to_path,
        "folder of the BIDS data set",
    )
    output_dir: Path = option(
        Path(),
        to_path,
        "folder for the derivatives",
    )
    analysis_level: str = option(
        "participant",
        one_of("participant", "group"),
        "participant: super-resolve images; group: tables and report over all participants",
    )
    # Selection
    participant_label: tuple[str, ...] = option(
        (),
        labels("sub-"),
        "participants to process, with or without sub- (default: all)",
        group=SELECTION,
        metavar="LABEL",
        many=True,
    )
    exclude_participant_label: tuple[str, ...] = option(
        (),
        labels("sub-"),
        "participants to leave out",
        group=SELECTION,
        metavar="LABEL",
        many=True,
    )
    session_label: tuple[str, ...] = option(
        (),
        labels("ses-"),
        "sessions to process, with or without ses- (default: all)",
        group=SELECTION,
        metavar="LABEL",
        many=True,
    )
    modalities: tuple[str, ...] = option(
        (),
        several_of(*ANATOMICAL_SUFFIXES),
        "suffixes to process, for example T1w FLAIR (default: every anatomical contrast)",
        group=SELECTION,
        metavar="SUFFIX",
        many=True,
    )
    bids_filter_file: Path | None = option(
        None,
        to_path,
        "JSON file with pybids filters per suffix, in the format of fMRIPrep",
        group=SELECTION,
        metavar="FILE",
    )
    bids_database_dir: Path | None = option(
        None,
        to_path,
        "folder of a pybids database of the data set, made if absent, else reused",
        group=SELECTION,
        metavar="DIR",
    )
    skip_bids_validation: bool = option(
        False,
        to_flag,
        "do not insist on a dataset_description.json in the input",
        group=SELECTION,
    )
    # Resources
    nprocs: int | None = option(
        None,
        whole(1),
        "processors to use (default: affinity, control group and SLURM)",
        group=RESOURCES,
        metavar="N",
    )
    omp_nthreads: int | None = option(
        None,
        whole(1),
        "threads of one process",
        group=RESOURCES,
        metavar="N",
    )
    mem: float | None = option(
        None,
        parse_memory,
        "memory to use: 8, 8GB or 8000MB (default: what the job may use)",
        group=RESOURCES,
        metavar="AMOUNT",
    )
    device: str = option(
        "auto",
        to_device,
        "auto, cpu, cuda or cuda:N",
        group=RESOURCES,
        metavar="{auto,cpu,cuda,cuda:N}",
    )
    use_plugin: Path | None = option(
        None,
        to_path,
        "YAML file with a Nipype plugin and its arguments",
        group=RESOURCES,
        metavar="FILE",
    )
    resource_monitor: bool = option(
        False,
        to_flag,
        "let Nipype record memory and processor use",
        group=RESOURCES,
    )
    stage: str = option(
        "all",
        one_of("all", "preproc", "sr", "report"),
        "part of the work to do",
        group=OUTPUTS,
        metavar="{all,preproc,sr,report}",
    )
    intensities: str = option(
        "input",
        one_of("input", "corrected"),
        "input: keep the shading of the scan; corrected: leave the bias field out",
        group=RESTORATION,
        metavar="{input,corrected}",
    )
    skip_bias_correction: bool = option(
        False,
        to_flag,
        "do not estimate a bias field",
        group=RESTORATION,
    )
    gradient_coefficients: Path | None = option(
        None,
        to_path,
        "Siemens .grad file of the scanner; undoes the distortion of its gradients",
        group=RESTORATION,
        metavar="FILE",
    )
    derivatives: Path | None = option(
        None,
        to_path,
        "BIDS derivatives whose brain masks (desc-brain_mask) are used where present",
        group=RESTORATION,
        metavar="DIR",
    )
    carry: Path | None = option(
        None,
        to_path,
        "BIDS derivatives whose mask, dseg and probseg files are written on the output grid too",
        group=RESTORATION,
        metavar="DIR",
    )
    combine: str | Path = option(
        "off",
        to_combine,
        "combine scans of one contrast to one image: off, auto (scans of a session that differ in "
        "acq-, dir-, run- or chunk- only), or a JSON file with lists of image paths",
        group=OUTPUTS,
        metavar="{off,auto,FILE}",
    )
    combine_only: bool = option(
        False,
        to_flag,
        "of scans that are combined write no results of their own",
        group=OUTPUTS,
    )
    output_spaces: tuple[str, ...] = option(
        (),
        to_spaces,
        "TemplateFlow templates to bring the results to as well",
        group=OUTPUTS,
        metavar="SPACE",
        many=True,
    )
    dry_run: bool = option(
        False,
        to_flag,
        "print what would be done, write nothing",
        group=OUTPUTS,
    )
    check: bool = option(
        False,
        to_flag,
        "say whether device, weights and memory are in order",
        group=OUTPUTS,
    )
    reports_only: bool = option(
        False,
        to_flag,
        "write the reports anew from existing outputs",
        group=OUTPUTS,
    )
    boilerplate_only: bool = option(
        False,
        to_flag,
        "write the methods text and stop",
        group=OUTPUTS,
    )
    sloppy: bool = option(
        False,
        to_flag,
        "low quality for testing; never for research",
        group=OUTPUTS,
    )
    # Operations
    work_dir: Path | None = option(
        None,
        to_path,
        "folder for intermediate files (default: .work in the output folder)",
        group=OPERATIONS,
        metavar="DIR",
    )
    keep_workdir: bool = option(
        False,
        to_flag,
        "keep the intermediate files",
        group=OPERATIONS,
    )
    rerun: bool = option(
        False,
        to_flag,
        "process images again that are finished with the same inputs, options and weights",
        group=OPERATIONS,
    )
    write_graph: bool = option(
        False,
        to_flag,
        "write the workflow graph into the logs",
        group=OPERATIONS,
    )
    stop_on_first_crash: bool = option(
        False,
        to_flag,
        "stop as soon as one image fails",
        group=OPERATIONS,
    )
    verbose: int = option(
        0,
        whole(0),
        "more messages; -vv for all",
    )

    @property
    def work_folder(self) -> Path:
        """Working directory: ``work_dir``, or ``.work`` in the output folder.

        The output folder is the one place that is known to be writable and large enough.
        """
        return self.work_dir or self.output_dir / ".work"

    def corrects_bias(self, suffix: str) -> bool:
        """Return True if a bias field is estimated for images of this suffix."""
        return not self.skip_bias_correction and suffix not in UNSHADED_SUFFIXES

    def to_toml(self) -> str:
        """Return these settings as a TOML file that loads equal; unset options are comments."""
        lines = (_toml_line(item.name, getattr(self, item.name)) for item in fields(self))
        return "".join(f"{line}\n" for line in lines)


def _toml_line(name: str, value: Any) -> str:
    unset = value is None or value == Path()
    return f"# {name} is not set" if unset else f"{name} = {_toml_value(value)}"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    escaped = re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\u{ord(match[0]):04x}", escaped)
    return f'"{escaped}"'


_FIELDS = {item.name: item for item in fields(Settings)}


def load_settings(
    options: Mapping[str, Any],
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    complete: bool = True,
) -> Settings:
    """Merge defaults < TOML file < environment < command line.

    Parameters
    ----------
    options
        Options of the command line by field name (``vars`` of an ``argparse.Namespace`` that was
        filled with ``argument_default=SUPPRESS``); other keys are ignored.
    config_file
        TOML file with field names as keys.
    environment
        Environment variables, ``BIDS_MOEDIFF_<FIELD>``; those of the process by default.
    complete
        Whether the folders must be given (``--check`` and ``--print-config`` do without).

    Raises
    ------
    UsageError
        For an unknown name (with the closest one), a wrong value or a missing folder argument.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        for key, value in _read_toml(config_file).items():
            where = f"{key} in {config_file}"
            name, value = _renamed(key.replace("-", "_"), value, where)
            name = _known(name, f"The key {key!r} in {config_file}")
            values[name] = _converted(name, value, where)
    variables = os.environ if environment is None else environment
    for variable, word in sorted(variables.items()):
        if (field_name := _variable_field(variable)) and word != "":
            where = f"The environment variable {variable}"
            field_name, value = _renamed(field_name, word, where)
            values[field_name] = _converted(field_name, value, where)
    for name, value in options.items():
        if name in _FIELDS:
            option = name if name in _POSITIONAL else f"--{name.replace('_', '-')}"
            values[name] = _converted(name, value, option)
    settings = Settings(**values)
    missing = [name for name in _POSITIONAL if name not in values]
    if missing and complete and not settings.check:
        raise UsageError(
            f"Missing: {', '.join(name.upper() for name in missing)}. "
            "The call is bids_moediff BIDS_DIR OUTPUT_DIR {participant,group}."
        )
    _check_together(settings)
    return settings


_POSITIONAL = ("bids_dir", "output_dir", "analysis_level")


def _check_together(settings: Settings) -> None:
    both = set(settings.participant_label) & set(settings.exclude_participant_label)
    if both:
        raise UsageError(
            f"sub-{sorted(both)[0]} is in --participant-label and in --exclude-participant-label."
        )
    if settings.combine_only and settings.combine == "off":
        raise UsageError("--combine-only goes with --combine auto or --combine FILE.")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise UsageError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The settings file {path} is not valid TOML: {error}.") from error


# Names of an earlier version, for this one: the name now, and what makes its value of the old one.
RENAMED = {"noise_strength": ("sample", from_noise_strength)}


def _renamed(name: str, value: Any, where: str) -> tuple[str, Any]:
    """Return the current name and value of an option of an earlier version, with a notice."""
    if name not in RENAMED:
        return name, value
    now, convert = RENAMED[name]
    print(f"bids_moediff: {where}: {name} is now called {now}.", file=sys.stderr)
    return now, converted(convert, value, where)


def _known(name: str, where: str) -> str:
    if name not in _FIELDS:
        raise UsageError(f"{where} is not a setting{closest(name, _FIELDS)}.")
    return name


def _variable_field(variable: str) -> str | None:
    """Return the field that an environment variable sets, or None if it is not an option."""
    name = variable.removeprefix(PREFIX)
    if name == variable or name in OTHER_VARIABLES or name.startswith("TEST_"):
        return None
    if name.lower() not in {*_FIELDS, *RENAMED}:
        near = closest(variable, [PREFIX + known.upper() for known in _FIELDS])
        raise UsageError(f"The environment variable {variable} is not a setting{near}.")
    return name.lower()


def _converted(name: str, value: Any, where: str) -> Any:
    return converted(_FIELDS[name].metadata["convert"], value, where)
