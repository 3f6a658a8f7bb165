# SPDX-License-Identifier: Apache-2.0
"""One typed object with every option: defaults < TOML file < environment < command line.

Each field of :class:`Settings` is a long option with underscores for dashes. Its metadata holds
the one function that turns what was written (a word of the command line or of an environment
variable, or a TOML value) into the field's value, and the sentence that ``--help`` prints. So a
wrong value is refused in the same words wherever it was written.
"""

# ruff: noqa: RUF009 (_option is dataclasses.field with a converter)

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError, closest
from bids_moediff.runtime.resources import parse_memory

PREFIX = "BIDS_MOEDIFF_"
# Variables with our prefix that are no options: container identity, test data and test hooks.
OTHER_VARIABLES = ("DOCKER_TAG", "SINGULARITY_URL", "SHARED")
# Contrasts that are super-resolved unless --modalities says otherwise; maps only when asked for.
DEFAULT_SUFFIXES = (
    "T1w", "T2w", "FLAIR", "PDw", "PDT2", "T2starw", "inplaneT1", "inplaneT2", "T1rho", "UNIT1",
)  # fmt: skip
ANATOMICAL_SUFFIXES = (
    *DEFAULT_SUFFIXES, "T1map", "T2map", "T2star", "PDmap", "FLASH", "PD", "angio",
)  # fmt: skip
MODELS = ("auto", "moediff", "student", "crfm", "nsmoe")

Convert = Callable[[Any], Any]


def _words(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [word for word in re.split(r"[\s,]+", value) if word]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no text")
    return value


def _path(value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"{value!r} is no path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{value!r} needs a home folder, and there is none") from error


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError(f"{value!r} is neither true nor false{closest(str(value), words)}")
    return words[str(value).lower()]


def _whole(minimum: int) -> Convert:
    def convert(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
            raise ValueError(f"{value!r} is no whole number of at least {minimum}")
        return number

    return convert


def _number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not number >= 0 or number == float("inf"):
        raise ValueError(f"{value!r} is no number of at least 0")
    return number


def _planes(value: Any) -> int:
    if str(value) not in ("1", "3"):
        raise ValueError(f"{value!r} is neither 1 nor 3")
    return int(value)


def _choice(*choices: str) -> Convert:
    def convert(value: Any) -> str:
        if value not in choices:
            known = ", ".join(choices)
            raise ValueError(f"{value!r} is none of {known}{closest(str(value), choices)}")
        return value

    return convert


def _choices(*choices: str) -> Convert:
    one = _choice(*choices)
    return lambda value: tuple(dict.fromkeys(one(word) for word in _words(value)))


def _labels(prefix: str) -> Convert:
    def convert(value: Any) -> tuple[str, ...]:
        words = [str(word).removeprefix(prefix) for word in _words(value)]
        for word in words:
            if not re.fullmatch(r"[A-Za-z0-9+]+", word):
                raise ValueError(f"{word!r} is no label: letters and digits only")
        return tuple(dict.fromkeys(words))

    return convert


def _spaces(value: Any) -> tuple[str, ...]:
    words = [str(word) for word in _words(value)]
    for word in words:
        if not re.fullmatch(r"[A-Za-z0-9]+", word):
            raise ValueError(f"{word!r} is no template name: letters and digits only")
    return tuple(dict.fromkeys(words))


def _device(value: Any) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        near = closest(str(value), ("auto", "cpu", "cuda"))
        raise ValueError(f"{value!r} is no device: auto, cpu, cuda or cuda:N{near}")
    return str(value)


def _resolution(value: Any) -> tuple[float, float, float]:
    sizes = [_number(word) for word in _words(value)]
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or not all(0.2 <= size <= 20 for size in sizes):
        raise ValueError(f"{value!r} is not one or three voxel sizes between 0.2 and 20 mm")
    return (sizes[0], sizes[1], sizes[2])


def _acquired(value: Any) -> str | tuple[float, float, float]:
    words = _words(value)
    if len(words) == 1 and words[0] in ("auto", "header"):
        return str(words[0])
    try:
        return _resolution(value)
    except ValueError as error:
        raise ValueError(
            f"{value!r} is neither auto nor header nor one or three voxel sizes between 0.2 and "
            "20 mm"
        ) from error


def _millimetres(value: Any) -> float:
    number = _number(value)
    if not 0.2 <= number <= 20:
        raise ValueError(f"{value!r} is not between 0.2 and 20 mm")
    return number


def _option(default: Any, convert: Convert, description: str) -> Any:
    return field(default=default, metadata={"convert": convert, "help": description})


@dataclass(frozen=True)
class Settings:
    """Every option of a run; paths are absolute, labels are without ``sub-`` and ``ses-``."""

    bids_dir: Path = _option(Path(), _path, "folder of the BIDS data set")
    output_dir: Path = _option(Path(), _path, "folder for the derivatives")
    analysis_level: str = _option(
        "participant",
        _choice("participant", "group"),
        "participant: super-resolve images; group: tables and report over all participants",
    )
    # Selection
    participant_label: tuple[str, ...] = _option(
        (), _labels("sub-"), "participants to process, with or without sub- (default: all)"
    )
    exclude_participant_label: tuple[str, ...] = _option(
        (), _labels("sub-"), "participants to leave out"
    )
    session_label: tuple[str, ...] = _option(
        (), _labels("ses-"), "sessions to process, with or without ses- (default: all)"
    )
    modalities: tuple[str, ...] = _option(
        (),
        _choices(*ANATOMICAL_SUFFIXES),
        "suffixes to process, for example T1w FLAIR (default: every anatomical contrast)",
    )
    bids_filter_file: Path | None = _option(
        None, _path, "JSON file with pybids filters per suffix, in the format of fMRIPrep"
    )
    bids_database_dir: Path | None = _option(
        None, _path, "folder of a pybids database of the data set, made if absent, else reused"
    )
    skip_bids_validation: bool = _option(
        False, _flag, "do not insist on a dataset_description.json in the input"
    )
    # Resources
    nprocs: int | None = _option(
        None, _whole(1), "processors to use (default: affinity, control group and SLURM)"
    )
    omp_nthreads: int | None = _option(None, _whole(1), "threads of one process")
    mem: float | None = _option(
        None, parse_memory, "memory to use: 8, 8GB or 8000MB (default: what the job may use)"
    )
    device: str = _option("auto", _device, "auto, cpu, cuda or cuda:N")
    batch_size: int | None = _option(None, _whole(1), "slices per call on a GPU (default: 16)")
    precision: str = _option(
        "auto", _choice("auto", "fp32", "bf16", "fp16"), "arithmetic of the networks"
    )
    use_plugin: Path | None = _option(
        None, _path, "YAML file with a Nipype plugin and its arguments"
    )
    resource_monitor: bool = _option(False, _flag, "let Nipype record memory and processor use")
    # Model
    model: str = _option("auto", _choice(*MODELS), "network to use; auto chooses by device")
    weights: Path | None = _option(
        None, _path, "folder of a model (config.json, model.safetensors) to use instead"
    )
    output_resolution: tuple[float, float, float] = _option(
        (0.7, 0.7, 0.7),
        _resolution,
        "voxel size in mm: one number, or three in the input's axis order (default: 0.7)",
    )
    acquired_resolution: str | tuple[float, float, float] = _option(
        "auto",
        _acquired,
        "voxel size that was measured, where the stored one was interpolated: auto (found from "
        "the spectrum), header (as stored), or one or three sizes in mm",
    )
    slice_profile: str = _option(
        "auto",
        _choice("auto", "kspace", "gaussian", "box"),
        "shape of the slices along the coarsest axis (auto: a box as thick as the sidecar says, "
        "three quarters of the slice distance where it says nothing)",
    )
    slice_thickness: float | None = _option(
        None, _millimetres, "slice thickness in mm where the sidecar does not say or is wrong"
    )
    num_steps: int | None = _option(None, _whole(1), "sampling steps (default: the model's)")
    num_samples: int = _option(
        1, _whole(1), "samples; the mean is written, with their expected error if above 1"
    )
    noise_strength: float = _option(
        0.0, _number, "0: most faithful output; above: more texture, less certainty"
    )
    planes: int = _option(
        1,
        _planes,
        "3: average slices cut along each axis (where voxel sizes allow)",
    )
    consistency: str = _option(
        "end",
        _choice("end", "each-step"),
        "when to make the result agree with the scan",
    )
    random_seed: int = _option(0, _whole(0), "seed; same seed and device, same bytes")
    reference: str | None = _option(
        None,
        _choice(*ANATOMICAL_SUFFIXES),
        "suffix of a sharper contrast of the same session that guides --model crfm",
    )
    # Stages and outputs
    stage: str = _option(
        "all", _choice("all", "preproc", "sr", "report"), "part of the work to do"
    )
    outputs: tuple[str, ...] = _option(
        (),
        _choices("gates", "uncertainty"),
        "further outputs: gates (expert maps), uncertainty (expected error of each voxel)",
    )
    intensities: str = _option(
        "input",
        _choice("input", "corrected"),
        "input: keep the shading of the scan; corrected: leave the bias field out",
    )
    skip_bias_correction: bool = _option(False, _flag, "do not estimate a bias field")
    gradient_coefficients: Path | None = _option(
        None, _path, "Siemens .grad file of the scanner; undoes the distortion of its gradients"
    )
    derivatives: Path | None = _option(
        None, _path, "BIDS derivatives whose brain masks (desc-brain_mask) are used where present"
    )
    output_spaces: tuple[str, ...] = _option(
        (), _spaces, "TemplateFlow templates to bring the results to as well"
    )
    dry_run: bool = _option(False, _flag, "print what would be done, write nothing")
    check: bool = _option(False, _flag, "say whether device, weights and memory are in order")
    reports_only: bool = _option(False, _flag, "write the reports anew from existing outputs")
    boilerplate_only: bool = _option(False, _flag, "write the methods text and stop")
    sloppy: bool = _option(False, _flag, "low quality for testing; never for research")
    # Operations
    work_dir: Path | None = _option(
        None, _path, "folder for intermediate files (default: .work in the output folder)"
    )
    keep_workdir: bool = _option(False, _flag, "keep the intermediate files")
    write_graph: bool = _option(False, _flag, "write the workflow graph into the logs")
    stop_on_first_crash: bool = _option(False, _flag, "stop as soon as one image fails")
    verbose: int = _option(0, _whole(0), "more messages; -vv for all")

    @property
    def work_folder(self) -> Path:
        """Folder for intermediate files: ``work_dir``, or ``.work`` in the output folder.

        The output folder is the one place that is known to be writable and large enough.
        """
        return self.work_dir or self.output_dir / ".work"

    def to_toml(self) -> str:
        """These settings as a TOML file that loads back equal; unset options are comments."""
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


def help_of(name: str) -> str:
    """The sentence that ``--help`` prints for a field."""
    return str(_FIELDS[name].metadata["help"])


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
        What the command line gave, by field name (``vars`` of an ``argparse.Namespace`` that was
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
        for an unknown name (with the closest one), a wrong value or a missing folder argument.
    """
    values: dict[str, Any] = {}
    if config_file is not None:
        for key, value in _read_toml(config_file).items():
            name = _known(key.replace("-", "_"), f"The key {key!r} in {config_file}")
            values[name] = _converted(name, value, f"{key} in {config_file}")
    variables = os.environ if environment is None else environment
    for variable, word in sorted(variables.items()):
        if (field_name := _variable_field(variable)) and word != "":
            where = f"The environment variable {variable}"
            values[field_name] = _converted(field_name, word, where)
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
    if settings.reference is not None and settings.model != "crfm":
        raise UsageError("--reference guides only --model crfm; ask for that model too.")
    both = set(settings.participant_label) & set(settings.exclude_participant_label)
    if both:
        raise UsageError(f"sub-{sorted(both)[0]} is both asked for and left out.")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the settings file {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} is no valid TOML: {error}.") from error


def _known(name: str, where: str) -> str:
    if name not in _FIELDS:
        raise UsageError(f"{where} is no setting{closest(name, _FIELDS)}.")
    return name


def _variable_field(variable: str) -> str | None:
    """Field that an environment variable sets, or None for a variable that is not an option."""
    name = variable.removeprefix(PREFIX)
    if name == variable or name in OTHER_VARIABLES or name.startswith("TEST_"):
        return None
    if name.lower() not in _FIELDS:
        near = closest(variable, [PREFIX + known.upper() for known in _FIELDS])
        raise UsageError(f"The environment variable {variable} is no setting{near}.")
    return name.lower()


def _converted(name: str, value: Any, where: str) -> Any:
    try:
        return _FIELDS[name].metadata["convert"](value)
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from error
