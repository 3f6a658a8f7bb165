# SPDX-License-Identifier: Apache-2.0
"""A bar on a terminal, on standard error; nothing elsewhere. Printed lines stay above it."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

Item = TypeVar("Item")


class ProgressBar:
    """Show how many of ``total`` are done; a context, or closed by :meth:`close`.

    Parameters
    ----------
    description
        Words beside the bar.
    total
        Number of items, None if it is not known yet.
    done
        Number of items done before the start.
    shown
        Whether to show it at all. A bar within another one is never shown: a terminal has room
        for one.
    """

    _open = False

    def __init__(
        self, description: str, total: int | None = None, *, done: int = 0, shown: bool = True
    ) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._shown = shown and sys.stderr.isatty() and not ProgressBar._open
        ProgressBar._open |= self._shown
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            disable=not self._shown,
            transient=True,
        )
        self._task: Any = self._bar.add_task(description, total=total, completed=done, note="")
        self._bar.start()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more as done; ``note`` is shown beside the bar."""
        self._bar.update(self._task, advance=count, note=note)

    def expect(self, total: int) -> None:
        """Set the total."""
        self._bar.update(self._task, total=total)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
        if self._shown:
            self._shown = ProgressBar._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, shown: bool = True
) -> Iterator[Item]:
    """Yield the items while a bar counts them."""
    with ProgressBar(description, total, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()
