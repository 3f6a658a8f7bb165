# SPDX-License-Identifier: Apache-2.0
"""Convert given words into the values of options.

Words of the command line or of environment variables, and TOML or JSON values, pass through the
same function. So a wrong value is reported in the same words for every source: a ValueError that
the reader of the source completes with the place.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bids_moediff.errors import closest

Convert = Callable[[Any], Any]


LARGEST_WHOLE = 2**63  # of a seed that torch takes


def to_words(value: Any) -> list[Any]:
    """Return the words of a text, or the items of a sequence."""
    if isinstance(value, str):
        return [word for word in re.split(r"[\s,]+", value) if word]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def to_names(value: Any) -> list[Any]:
    """Return words as :func:`to_words` does, and split items at commas: ``01,02``."""
    items = to_words(value)
    split = [to_words(item) if isinstance(item, str) else [item] for item in items]
    if not all(split):  # "$LABEL" of a script in which it is empty must not mean everybody
        raise ValueError("an empty word is not a name; leave the option out, or write a name")
    return [word for words in split for word in words]


def to_path(value: Any) -> Path:
    """Return an absolute path, ``~`` expanded."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"{value!r} is not a valid path")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{value!r} needs a home folder, and there is none") from error


def to_flag(value: Any) -> bool:
    """Return True or False, which may be written as yes, no, on, off, 1 or 0."""
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise ValueError(f"{value!r} is neither true nor false{closest(str(value), words)}")
    return words[str(value).lower()]


SAMPLERS = ("auto", "gaussian", "experts")


def to_sampler(value: Any) -> str:
    """Return the sampler: a name, or the number of one expert."""
    word = str(value)
    if word in SAMPLERS or re.fullmatch(r"expert-[1-9]\d*", word):
        return word
    near = closest(word, SAMPLERS)
    raise ValueError(f"{value!r} is not auto, gaussian, experts or expert-N{near}")


def whole(minimum: int) -> Convert:
    """Return a converter to whole numbers of at least ``minimum``."""

    def convert(value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int) or number < minimum:
            raise ValueError(f"{value!r} is not a whole number of at least {minimum}")
        if number >= LARGEST_WHOLE:
            raise ValueError(f"{value!r} is too large")
        return number

    return convert


def from_noise_strength(value: Any) -> str | None:
    """Return the kind of samples for the ``--noise-strength`` of an earlier version."""
    return "texture" if to_number(value) > 0 else None


def to_number(value: Any) -> float:
    """Return a finite number of at least 0."""
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        number = float("nan")
    if not number >= 0 or number == float("inf"):
        meant = re.fullmatch(r"(\d+)(?:[.,](\d+))?\s*(?:mm)?", str(value).strip())
        if meant:
            hint = f"{meant[1]}.{meant[2]}" if meant[2] else meant[1]
            raise ValueError(f"{value!r} is not a number; write {hint}")
        if several := re.fullmatch(r"([\d.]+)[x,;]([\d.]+)[x,;]([\d.]+)", str(value).strip()):
            raise ValueError(f"{value!r} is not a number; write {' '.join(several.groups())}")
        raise ValueError(f"{value!r} is not a number of at least 0")
    return number


def to_planes(value: Any) -> int:
    """Return 1 or 3."""
    if str(value) not in ("1", "3"):
        raise ValueError(f"{value!r} is neither 1 nor 3")
    return int(value)


def to_model(*names: str) -> Convert:
    """Return a converter to the name of a model that comes with the package."""
    one = one_of(*names)

    def convert(value: Any) -> str:
        if "/" in str(value):
            raise ValueError(
                f"{value!r} is a path. For a folder of weights there is --weights {value}"
            )
        return one(value)

    return convert


def one_of(*choices: str) -> Convert:
    """Return a converter that takes one of ``choices`` and otherwise names the closest one."""

    def convert(value: Any) -> str:
        if value not in choices:
            known = ", ".join(choices)
            near = closest(str(value), choices)
            raise ValueError(f"{value!r} is not one of {known}{near}")
        return value

    return convert


def to_reference(suffixes: Sequence[str]) -> Convert:
    """Return a converter for ``auto``, a suffix, or entities and a suffix: ``ses-01_T1w``."""

    def convert(value: Any) -> str:
        words = str(value)
        *entities, suffix = words.split("_")
        if words == "auto":
            return words
        if suffix not in suffixes:
            raise ValueError(
                f"{words!r} does not end in a contrast such as T1w"
                f"{closest(suffix, (*suffixes, 'auto'))}"
            )
        for part in entities:
            key, _, label = part.partition("-")
            if not (key.isalnum() and label.replace("+", "").isalnum()):
                raise ValueError(f"{part!r} in {words!r} is not an entity such as ses-01")
        return words

    return convert


def several_of(*choices: str) -> Convert:
    """Return a converter that takes any number of ``choices``, each once."""
    one = one_of(*choices)
    return lambda value: tuple(dict.fromkeys(one(word) for word in to_names(value)))


def labels(prefix: str) -> Convert:
    """Return a converter to BIDS labels, written with or without ``prefix``."""

    def convert(value: Any) -> tuple[str, ...]:
        words = [str(word).removeprefix(prefix) for word in to_names(value)]
        for word in words:
            if not re.fullmatch(r"[A-Za-z0-9+]+", word):
                raise ValueError(f"{word!r} is not a label: letters and digits only")
        return tuple(dict.fromkeys(words))

    return convert


def to_spaces(value: Any) -> tuple[str, ...]:
    """Return names of TemplateFlow templates."""
    words = [str(word) for word in to_words(value)]
    for word in words:
        if not re.fullmatch(r"[A-Za-z0-9]+", word):
            raise ValueError(f"{word!r} is not a template name: letters and digits only")
    return tuple(dict.fromkeys(words))


def to_combine(value: Any) -> str | Path:
    """Return ``off``, ``auto``, or the path of a file of groups."""
    word = str(value)
    if word in ("off", "auto"):
        return word
    if "/" in word or word.endswith(".json"):
        return to_path(value)
    near = closest(word, ("off", "auto"))
    raise ValueError(f"{word!r} is neither off nor auto nor a file such as groups.json{near}")


def to_device(value: Any) -> str:
    """Return ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if str(value).startswith("mps"):
        raise ValueError(
            f"{value!r}: GPUs of Apple computers are not supported (results there were never "
            "checked); use cpu"
        )
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)):
        gpu = str(value).lower().startswith(("gpu", "nvidia"))
        number = f"cuda:{value}" if str(value).isdigit() else ""
        near = closest("cuda" if gpu else number or str(value), ("auto", "cpu", "cuda", number))
        raise ValueError(f"{value!r} is not a device: auto, cpu, cuda or cuda:N{near}")
    return str(value)


def to_resolution(value: Any) -> tuple[float, float, float]:
    """Return three voxel sizes in mm (0.2 to 20), of one or three numbers."""
    words = to_words(value)
    sizes = [to_number(str(word).removeprefix("-")) for word in words]
    if len(sizes) == 1:
        sizes *= 3
    negative = any(str(word).startswith("-") for word in words)
    if negative or len(sizes) != 3 or not all(0.2 <= size <= 20 for size in sizes):
        text = " ".join(map(str, words))
        raise ValueError(f"{text!r} is not one or three voxel sizes between 0.2 and 20 mm")
    return (sizes[0], sizes[1], sizes[2])


def _to_name_or_sizes(value: Any, *names: str) -> str | tuple[float, float, float]:
    """Return one of ``names``, or voxel sizes; the error names both."""
    words = [str(word) for word in to_words(value)]
    if len(words) == 1 and words[0] in names:
        return words[0]
    if words and all(re.match(r"[\d.+-]", word) for word in words):
        return to_resolution(value)
    text, known = " ".join(words), " or ".join(names)
    raise ValueError(
        f"{text!r} is not {known}, nor one or three voxel sizes in mm such as 0.7"
        f"{closest(text, names, 0.6)}"
    )


def to_output(value: Any) -> str | tuple[float, float, float]:
    """Return ``auto``, or voxel sizes as :func:`to_resolution` does."""
    return _to_name_or_sizes(value, "auto")


def to_acquired(value: Any) -> str | tuple[float, float, float]:
    """Return ``auto``, ``header``, or voxel sizes as :func:`to_resolution` does."""
    return _to_name_or_sizes(value, "auto", "header")


def to_noise(value: Any) -> str | float:
    """Return "auto", "none" or a standard deviation of the noise above 0."""
    if isinstance(value, str) and value in ("auto", "none"):
        return value
    try:
        number = to_number(value)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise ValueError(f"{value!r} is not auto, none or a number above 0")
    return number


def to_millimetres(value: Any) -> float:
    """Return a length in mm between 0.2 and 20."""
    number = to_number(value)
    if not 0.2 <= number <= 20:
        raise ValueError(f"{value!r} is not between 0.2 and 20 mm")
    return number
