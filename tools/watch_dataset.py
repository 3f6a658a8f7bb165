#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Watch an output folder while jobs write into it: is it whole and valid at every moment?

    python tools/watch_dataset.py OUTPUT STOP_FILE

Looks again and again until STOP_FILE is there, then once more, and says what was wrong: a file
that cannot be read to its end, one that was there and is gone, an image without a sidecar or the
other way round, files before the description of the data set, errors of the BIDS validator (where
``bids-validator-deno`` is on the PATH). Exit code 1 if anything was. Standard library only.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PAUSE = 0.1  # seconds between two looks
SECONDS_BETWEEN_VALIDATIONS = 5.0
# Listing a folder takes time, and two names cannot appear in the same instant.
SECONDS_APART = 1.0
ENDS = {".html": b"</html>", ".svg": b"</svg>", ".png": b"IEND\xaeB`\x82", ".tsv": b"\n"}


def torn(path: Path) -> str | None:
    """Why a file cannot be read to its end, or None."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.name.endswith(".nii.gz"):
            with gzip.open(path) as stream:
                while stream.read(1 << 20):
                    pass
        elif path.suffix in ENDS and not path.read_bytes().rstrip(b" \n").endswith(
            ENDS[path.suffix].rstrip(b"\n")
        ):
            return "it ends too early"
        elif path.stat().st_size == 0:
            return "it is empty"
    except (OSError, EOFError, ValueError) as error:
        return str(error)
    return None


class Watcher:
    """What was seen in a folder so far, and what was wrong with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.looks = 0
        self.validations = 0
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._lone_since: dict[str, float] = {}
        self._last_validation = 0.0

    def look(self) -> None:
        """One round."""
        self.looks += 1
        now = self._list()
        for name in sorted(self._seen.keys() - now.keys()):
            self._say(f"{name} was there and is gone")
            del self._seen[name]
        if now and "dataset_description.json" not in now:
            self._say("there are files, but no dataset_description.json")
        for name, state in now.items():
            if self._seen.get(name) != state and not name.endswith(".log"):
                reason = torn(self.folder / name)
                if reason:
                    self._say(f"{name}: {reason}")
            self._seen[name] = state
        self._pairs(now)
        if now and time.monotonic() - self._last_validation > SECONDS_BETWEEN_VALIDATIONS:
            self.validate()

    def _say(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _list(self) -> dict[str, tuple[int, int, int]]:
        """Files by relative path, without hidden ones (unfinished or scratch)."""
        found = {}
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(folder) / name for name in names if not name.startswith(".")):
                with suppress(FileNotFoundError):  # told by look() if it is gone for good
                    status = path.stat()
                    name = path.relative_to(self.folder).as_posix()
                    found[name] = (status.st_ino, status.st_mtime_ns, status.st_size)
        return found

    def _pairs(self, now: dict[str, tuple[int, int, int]]) -> None:
        lone = set()
        for name in now:
            if "/anat/" in name:
                other = (
                    name.removesuffix(".json") + ".nii.gz"
                    if name.endswith(".json")
                    else name.removesuffix(".nii.gz").removesuffix(".tsv") + ".json"
                )
                if other not in now:
                    lone.add(name)
        moment = time.monotonic()
        self._lone_since = {name: self._lone_since.get(name, moment) for name in lone}
        for name, since in self._lone_since.items():
            if moment - since > SECONDS_APART:
                self._say(f"{name} is without its image or sidecar")

    def validate(self) -> None:
        """Ask the BIDS validator; an error counts if it is there twice in a row."""
        errors = validator_errors(self.folder)
        if errors is None:
            return
        self.validations += 1
        if errors:
            time.sleep(SECONDS_APART)
            for error in errors & (validator_errors(self.folder) or set()):
                self._say(f"BIDS validator: {error}")
        self._last_validation = time.monotonic()


def validator_errors(folder: Path) -> set[str] | None:
    """Errors of the BIDS validator; None where it is not installed."""
    program = shutil.which("bids-validator-deno") or shutil.which(
        "bids-validator-deno", path=str(Path(sys.executable).parent)
    )
    if program is None:
        return None
    command = [program, "--format", "json", str(folder)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(answer.stdout)["issues"]["issues"]
    return {
        f"{issue['code']} {issue.get('subCode', '')} {issue.get('location', '')}"
        for issue in issues
        if issue["severity"] == "error"
    }


def main(words: list[str]) -> int:
    """Command line."""
    if len(words) != 2:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    watcher, stop = Watcher(Path(words[0])), Path(words[1])
    last = False
    while not last:
        last = stop.exists()
        watcher.look()
        time.sleep(PAUSE)
    time.sleep(SECONDS_APART)
    watcher.look()
    watcher.validate()
    for problem in watcher.problems:
        print(problem)
    print(
        f"{words[0]}: {watcher.looks} looks, {watcher.validations} validations, "
        f"{len(watcher.problems)} problems"
    )
    return int(bool(watcher.problems) or not watcher.looks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
