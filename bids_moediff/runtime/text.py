# SPDX-License-Identifier: Apache-2.0
"""Make text of others (names, sidecars, messages of libraries) fit to be shown."""

import re
from collections.abc import Iterable

# Control characters but tab and line feed, and those that change the direction of writing.
CONTROL = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]"
)
PATH = re.compile(r"(['\"])/(?:[^'\"/]*/)*([^'\"/]*)\1")  # quoted, as in messages of the system
ABSOLUTE = re.compile(r"(?<![\w./])/(?:[^\s/'\";:,]+/)+(?=[^\s/'\";:,])")  # but for its last name
LONGEST = 400


def visible(text: str) -> str:
    """Return the text with control characters written as ``\\\\x1b``."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``2 images``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def without_folders(text: str) -> str:
    """Return a message of a library with quoted absolute paths cut to their names.

    Messages reach pages and records, which say nothing of the machine.
    """
    return PATH.sub(lambda match: f"{match[1]}{match[2]}{match[1]}", text)


def names_only(text: str, folders: Iterable[object] = ()) -> str:
    """Return a text in which each absolute path is cut to its last name.

    Parameters
    ----------
    text
        A sentence of the app, with paths as a user gave them.
    folders
        Paths that may be in it, whatever characters they have; None is passed over.
    """
    for path in sorted({str(path) for path in folders if path}, key=len, reverse=True):
        if path.startswith("/") and len(path) > 1:
            text = text.replace(path, path.rstrip("/").rsplit("/", 1)[-1])
    return ABSOLUTE.sub("", text)


def one_line(text: object, most: int = LONGEST) -> str:
    """Return a text as one line of at most ``most`` visible characters."""
    words = visible(" ".join(str(text).split()))
    return words if len(words) <= most else f"{words[: most - 1]}…"
