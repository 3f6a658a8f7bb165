# SPDX-License-Identifier: Apache-2.0
"""Protect standard streams: a closed, cut off or full one loses only text."""

import io
import os
import re
import sys
from contextlib import suppress

from .text import visible

# What rich draws with on a terminal: colours, erased lines, moves of the cursor, its visibility.
DRAWN = re.compile(r"\x1b\[\??[0-9;]*[mKAJGhl]|\r")


class TolerantStream(io.TextIOWrapper):
    """A text stream that survives the loss of its reader and shows control characters.

    On a terminal, control sequences of rich pass.
    """

    def write(self, text: str) -> int:
        """Write text; text that cannot be written is lost."""
        if text.isprintable():
            shown = text
        elif self.isatty():
            kept = DRAWN.findall(text)
            parts = [visible(part) for part in DRAWN.split(text)]
            shown = "".join(part + mark for part, mark in zip(parts, [*kept, ""], strict=True))
        else:
            shown = visible(text)
        try:
            super().write(shown)
        except OSError:
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush; text that cannot be written is lost."""
        try:
            super().flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Discard all further and buffered text, since nobody reads it."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def tolerate_streams() -> None:
    """Make standard output and standard error tolerant, and open closed ones.

    Otherwise a file opened later would get the number of a closed stream, with all output of child
    processes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8")
        if type(stream) is not io.TextIOWrapper:  # of a test or a notebook, or tolerant already
            continue
        tolerant = TolerantStream(
            stream.detach(),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, tolerant)
