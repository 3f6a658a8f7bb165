# SPDX-License-Identifier: Apache-2.0
"""Show the progress of the networks, read from the output files of the child processes.

The child processes write one JSON object per line into a file of their node. The main process
reads these files. This works for every Nipype plugin, also if nodes run on other machines. On a
terminal there is one bar per image; elsewhere (batch logs) one plain line every ten per cent.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bids_moediff.workflows.folder_names import WORKFLOW_NAME

PATTERN = f"{WORKFLOW_NAME}/*/superres_wf/superres/stdout.nipype"
SECONDS_BETWEEN_LOOKS = 0.5
PREPARING = "preparing: brain mask, bias field, quality figures"
REPORTING = "writing the reports"
# Part of an image's time at which each stage begins and ends (docs/speed.md; rounded).
STAGES = {
    "interpolate": (0.0, 0.03),
    "student": (0.03, 0.98),
    "mean": (0.03, 0.75),
    "experts": (0.75, 0.98),
    "refit": (0.39, 0.39),
    "register": (0.0, 0.3),
    "bring together": (0.3, 0.5),
    "estimate": (0.5, 0.98),
    "done": (1.0, 1.0),
}
SOONEST = 0.05  # of an image: an estimate before this would be a guess


def overall(stage: str, fraction: float) -> float:
    """Return the fraction of an image that is done, from its stage and the fraction of that."""
    begin, end = STAGES.get(stage, (0.0, 0.0))
    return begin + min(max(fraction, 0.0), 1.0) * (end - begin)


class Clock:
    """Estimate the time left for each image, from the time since its first line."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._first: dict[str, tuple[float, float]] = {}

    def left(self, key: str, done: float) -> str:
        """Return words such as ``about 1:20 left``; empty while it is unknown."""
        moment = self._now()
        start, before = self._first.setdefault(key, (moment, done))
        if done - before < SOONEST or done >= 1:
            return ""
        seconds = (moment - start) * (1 - done) / (done - before)
        minutes, seconds = divmod(round(seconds), 60)
        return f"about {minutes}:{seconds:02d} left"


class ProgressReader:
    """Read new lines of the progress files."""

    def __init__(self, work_folder: Path) -> None:
        self._work_folder = work_folder
        self._seen: dict[Path, int] = {}
        for path in work_folder.glob(PATTERN):
            self._seen[path] = path.stat().st_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self._work_folder.glob(PATTERN)):
            try:
                yield from self._new_lines(path)
            except OSError:  # the node was started again a moment ago
                self._seen.pop(path, None)

    def _new_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as stream:
            start = self._seen.get(path, 0)
            if path.stat().st_size < start:
                start = 0
            stream.seek(start)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                try:
                    item = json.loads(line)
                except ValueError:
                    continue
                if isinstance(item, dict) and item.get("key"):
                    yield item
        self._seen[path] = start


class PlainDisplay:
    """Print one line per image every ten per cent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._tenths: dict[str, int] = {}
        self._clock = Clock()

    def begin(self, words: str) -> None:
        """Print a line for the steps that have no progress of their own."""
        print(words, file=self._stream, flush=True)

    def show(self, item: dict[str, Any]) -> None:
        """Print a line if the image is ten per cent further."""
        key, done = item["key"], overall(item["stage"], item["fraction"])
        left = self._clock.left(key, done)
        tenth = int(10 * done + 1e-6)
        if tenth != self._tenths.get(key):
            self._tenths[key] = tenth
            words = f"{key}: {10 * tenth} %{', ' if left else ''}{left}"
            print(words, file=self._stream, flush=True)

    def close(self) -> None:
        """Do nothing."""


class BarDisplay:
    """Show one bar per image, and one without an end for the steps before the networks."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(file=stream), transient=False)
        self._bars: dict[str, Any] = {}
        self._first: Any = None
        self._clock = Clock()
        self._progress.start()

    def begin(self, words: str) -> None:
        """Show a bar without an end for the steps that have no progress of their own."""
        self._first = self._progress.add_task(words, total=None, left="")

    def show(self, item: dict[str, Any]) -> None:
        """Move the bar of the image."""
        if self._first is not None:
            self._progress.remove_task(self._first)
            self._first = None
        key, done = item["key"], overall(item["stage"], item["fraction"])
        if key not in self._bars:
            self._bars[key] = self._progress.add_task(key, total=1.0, left="")
        left = self._clock.left(key, done)
        self._progress.update(self._bars[key], completed=done, left=left)

    def close(self) -> None:
        """Close all bars."""
        if self._first is not None:
            self._progress.remove_task(self._first)
        self._progress.stop()


def open_display(stream: IO[str]) -> "BarDisplay | PlainDisplay":
    """Return bars on a terminal, plain lines elsewhere."""
    return BarDisplay(stream) if stream.isatty() else PlainDisplay(stream)


class ProgressWatcher:
    """Context manager: a thread that shows the progress of all networks of a run."""

    def __init__(
        self, work_folder: Path, stream: IO[str] | None = None, words: str = PREPARING
    ) -> None:
        self._lines = ProgressReader(work_folder)
        self._words = words
        self._stream = stream or sys.stderr
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProgressWatcher":
        self._display = open_display(self._stream)
        self._display.begin(self._words)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show_new()
        self._display.close()

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self._show_new()

    def _show_new(self) -> None:
        for item in self._lines:
            self._display.show(item)
