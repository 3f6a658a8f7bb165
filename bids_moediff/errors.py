# SPDX-License-Identifier: Apache-2.0
"""Expected errors, each with its documented exit code.

A message is one clear sentence: what is wrong, and what to do. The command line prints it without
a traceback and exits with :attr:`MoediffError.exit_code`.
"""

import difflib
from collections.abc import Iterable, Sequence


class MoediffError(Exception):
    """An expected failure, for example of one or more images."""

    exit_code = 1
    meaning = "some images failed (a table says which); group level: a participant is missing"


class ImageError(MoediffError):
    """One image cannot be processed; the others continue."""

    exit_code = 1


class UsageError(MoediffError):
    """The command line, a settings file or a label is wrong."""

    exit_code = 2
    meaning = "wrong usage: an option, a label, a settings or filter file, or a folder"


class NothingToProcessError(MoediffError):
    """The data set and the filters leave no image."""

    exit_code = 66
    meaning = "no image to process; the message names the filters in force"

    def __init__(self, message: str, remarks: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.remarks = tuple(remarks)


class DeviceError(MoediffError):
    """The requested device is not there."""

    exit_code = 69
    meaning = "the device asked for is not there"


class GraphError(MoediffError):
    """The workflow graph could not be built or executed as a whole."""

    exit_code = 70
    meaning = "the workflow could not be run"


class WeightsError(MoediffError):
    """Model weights are missing, unreadable or do not match their checksum."""

    exit_code = 78
    meaning = "weights are missing or do not match their checksum"


def closest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``" (did you mean X?)"`` for the closest choice, or an empty text.

    A choice that begins with ``word`` comes first, since people shorten long options.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    begun = [low for low in by_lower if len(word) > 4 and low.startswith(word.lower())]
    near = begun[:1] or difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""
