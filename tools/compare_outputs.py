#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare the files of output folders of bids_moediff, byte by byte.

    python tools/compare_outputs.py REFERENCE OTHER [OTHER ...]
    python tools/compare_outputs.py --participants 01=001 01=002 REFERENCE OTHER

The second form takes the files of single participants: those of 001 and 002 in OTHER must be
those of 01 in REFERENCE but for the label, as they are for copies of one scan.

Exit code 0 if they are the same, 1 with one line for each difference otherwise. What may differ
between two runs of the same data with the same options is listed here and nowhere else
(docs/outputs.md tells it in words). Only the standard library is needed.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

# Folders in the root of the outputs: times, durations and the names of runs; scratch.
NOT_COMPARED = ("logs", ".work")
# Keys of dataset_description.json that tell where a run took place.
PLACE_KEYS = ("DatasetLinks",)
PLACE_KEYS_OF_MAKER = ("Container",)
# Entries of a report: times, memory, and the interpreter (image and host have their own).
PAGE_ENTRIES = ("Time", "Peak memory", "Finished", "python")

_PAGE_ENTRY = re.compile(
    rf"<div><dt>(?:{'|'.join(PAGE_ENTRIES)})</dt><dd>[^<]*</dd></div>".encode()
)
# What stands behind the version of torch, "2.13.0+cpu": which wheel pip took.
_TORCH_BUILD = re.compile(rb"(<dt>torch</dt><dd>[^<+]*)\+[^<]*")


def comparable(path: Path) -> bytes:
    """Content of a file without what may differ."""
    content = path.read_bytes()
    if path.suffix == ".html":
        return _TORCH_BUILD.sub(rb"\1", _PAGE_ENTRY.sub(b"", content))
    if path.name == "dataset_description.json":
        return json.dumps(_without_place(json.loads(content))).encode()
    return content


def _without_place(description: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in description.items() if key not in PLACE_KEYS}
    kept["GeneratedBy"] = [
        {key: value for key, value in maker.items() if key not in PLACE_KEYS_OF_MAKER}
        for maker in kept.get("GeneratedBy", [])
    ]
    return kept


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of everything in an output folder that is compared, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(comparable(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in NOT_COMPARED
    }


def differences(reference: Path, other: Path) -> list[str]:
    """One line for each file that is in one folder only or has other content."""
    first, second = checksums(reference), checksums(other)
    lines = [f"only in {reference}: {name}" for name in sorted(first.keys() - second.keys())]
    lines += [f"only in {other}: {name}" for name in sorted(second.keys() - first.keys())]
    both = sorted(first.keys() & second.keys())
    return lines + [f"other content: {name}" for name in both if first[name] != second[name]]


def differences_of_copy(reference: Path, label: str, other: Path, copy: str) -> list[str]:
    """One line for each file of participant ``copy`` that is not as that of ``label``."""
    first, second = (
        {
            path.relative_to(folder).as_posix().replace(f"sub-{own}", "sub-*"): comparable(
                path
            ).replace(f"sub-{own}".encode(), b"sub-*")
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and path.relative_to(folder).parts[0] in (f"sub-{own}", f"sub-{own}.html")
        }
        for folder, own in ((reference, label), (other, copy))
    )
    names = sorted(first.keys() | second.keys())
    lines = [f"{copy} is not as {label}: {n}" for n in names if first.get(n) != second.get(n)]
    return lines if first else [f"{reference} has no participant {label}"]


def compare_copies(pairs: list[str], reference: Path, other: Path) -> int:
    """Print the differences of participants given as ``LABEL=COPY``; the exit code."""
    lines = []
    for pair in pairs:
        label, _, copy = pair.partition("=")
        lines += differences_of_copy(reference, label, other, copy)
    for line in lines:
        print(line)
    if not lines:
        print(f"{other}: {len(pairs)} participants, the same files as in {reference}")
    return int(bool(lines) or not pairs)


def main(words: list[str]) -> int:
    """Command line."""
    if words[:1] == ["--participants"] and len(words) > 3:
        return compare_copies(words[1:-2], Path(words[-2]), Path(words[-1]))
    folders = [Path(word) for word in words]
    if len(folders) < 2 or not all(folder.is_dir() for folder in folders):
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    reference, *others = folders
    count = len(checksums(reference))
    if not count:
        print(f"{reference} holds nothing to compare", file=sys.stderr)
        return 1
    code = 0
    for other in others:
        lines = differences(reference, other)
        for line in lines:
            print(line)
        if not lines:
            print(f"{other}: the same {count} files as {reference}")
        code = code or int(bool(lines))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
