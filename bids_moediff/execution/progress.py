# SPDX-License-Identifier: Apache-2.0
"""How far the networks are: read from the children's output files, shown on the terminal.

The child processes write one JSON object a line into a file of their node. Reading these files
from the main process works for every Nipype plugin alike, also where the nodes run on other
machines. On a terminal there is one bar an image; elsewhere (batch logs) one plain line every
ten per cent.
"""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bids_moediff.workflows.folder_names import WORKFLOW_NAME

PATTERN = f"{WORKFLOW_NAME}/*/superres_wf/superres/stdout.nipype"
SECONDS_BETWEEN_LOOKS = 0.5


class ProgressReader:
    """Read what was added to the progress files since the last look."""

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
    """One line an image every ten per cent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._tenths: dict[str, int] = {}

    def show(self, item: dict[str, Any]) -> None:
        """Print a line if the image has come ten per cent further."""
        key, tenth = item["key"], int(10 * item["fraction"] + 1e-6)
        if tenth != self._tenths.get(key):
            self._tenths[key] = tenth
            print(f"{key}: {item['stage']} {10 * tenth} %", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class BarDisplay:
    """One bar an image."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(file=stream), transient=False)
        self._bars: dict[str, Any] = {}
        self._progress.start()

    def show(self, item: dict[str, Any]) -> None:
        """Move the bar of the image."""
        if item["key"] not in self._bars:
            self._bars[item["key"]] = self._progress.add_task(item["key"], total=1.0)
        text = f"{item['key']}: {item['stage']}"
        bar = self._bars[item["key"]]
        self._progress.update(bar, completed=item["fraction"], description=text)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class ProgressWatcher:
    """Context manager: a thread that shows the progress of all networks of a run."""

    def __init__(self, work_folder: Path, stream: IO[str] | None = None) -> None:
        self._lines = ProgressReader(work_folder)
        self._stream = stream or sys.stderr
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProgressWatcher":
        on_terminal = self._stream.isatty()
        self._display = BarDisplay(self._stream) if on_terminal else PlainDisplay(self._stream)
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
