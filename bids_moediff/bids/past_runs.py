# SPDX-License-Identifier: Apache-2.0
"""Read the log folder of a participant: its past runs, including killed ones.

A run that super-resolves writes its plan before it starts and its record when it ends. A plan
without a record belongs to a run that was stopped: a job killed for its memory can write nothing
any more. What no image can be blamed for (a participant without one, a device that is not there)
goes into a note.
"""

import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bids_moediff.runtime.given_files import read_json
from bids_moediff.runtime.sink import write_json

RECORD, PLAN, NOTE = "run.json", "plan.json", "not_processed.json"
WITH_NETWORK = ("all", "sr")  # stages
STOPPED = (
    "The run was stopped before it ended (cancelled, out of time or killed), or it still runs; "
    "run it again if it does not."
)
PREPARED = (
    "The image was not super-resolved yet: its job did not run, or it ended before the app began; "
    "the log of the job says more."
)


@dataclass(frozen=True)
class Past:
    """What all runs of a participant say together.

    Parameters
    ----------
    items
        What the last run that worked on each image says of it, by the key of the image. An image
        that was done once stays done when a later run was stopped: its files are whole.
    note
        Why the last run did nothing, or not everything; empty if it says so of each image.
    exit_code
        That of the note; 0 if nothing went wrong.
    partly
        Whether the run of the note worked on images all the same.
    """

    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""
    exit_code: int = 0
    partly: bool = False


def new_run_id() -> str:
    """Name of the log folder of a run; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{uuid.uuid4().hex[:8]}"


def log_folder(output_dir: Path, label: str) -> Path:
    """Return the folder with a folder for each run of a participant."""
    return output_dir / "logs" / f"sub-{label}"


def write_plan(run_folder: Path, available_gb: float, needed_gb: Mapping[str, float]) -> None:
    """Write the plan of a run: the memory it may use, and that of each image (by key), in GB."""
    content = {"available_gb": round(available_gb, 1), "needed_gb": dict(needed_gb)}
    write_json(content, run_folder / PLAN)


def last_record(folder: Path) -> dict[str, Any]:
    """Return the record of the last run that super-resolved and ended; empty if there is none."""
    records = (_read(path) for path in sorted(folder.glob(f"*/{RECORD}"), reverse=True))
    return next((record for record in records if record.get("stage") in WITH_NETWORK), {})


def last_record_time(folder: Path) -> float:
    """Return the modification time (s) of the newest record; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.glob(f"*/{RECORD}")), default=0.0)


def write_note(output_dir: Path, label: str, run_id: str, message: str, exit_code: int) -> None:
    """Note why a run did nothing, or not everything, for a participant.

    The error itself is on the terminal: a note that cannot be written is no further error.
    """
    path = log_folder(output_dir, label) / run_id / NOTE
    with suppress(OSError):
        write_json({"message": message, "exit_code": exit_code}, path)


def last_items(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the last run that worked on each image says of it, by the key of the image."""
    return read_past(folder).items


def read_past(folder: Path) -> Past:
    """Read what all runs of a participant left in its log folder.

    What cannot be read, or is not a record of this app, is passed over.
    """
    past = Past()
    for run in sorted(path for path in folder.glob("*") if path.is_dir()):
        past = _with_run(past, run)
    return past


def _with_run(past: Past, run: Path) -> Past:
    """Add what one more run says."""
    recorded = (run / RECORD).is_file()
    note = _read(run / NOTE) if (run / NOTE).is_file() else {}
    message, code = note.get("message"), note.get("exit_code")
    items = past.items
    if recorded and _read(run / RECORD).get("stage") in WITH_NETWORK:
        past = Past(items | {item["key"]: item for item in record_items(run)})
    if isinstance(message, str) and isinstance(code, int):
        return Past(past.items, message, code, recorded)
    if recorded and past.partly and _read(run / RECORD).get("stage") == "report":
        return Past(past.items)  # what was missing was the page
    if recorded:
        return past if past.items else _before_network(past, record_items(run))
    stopped = _stopped_items(run, items)
    if stopped:
        return Past(items | stopped)
    return past if past.items or past.note else Past(note=STOPPED, exit_code=1)


def _before_network(past: Past, items: Iterable[Mapping[str, Any]]) -> Past:
    """Add what a run without the network says of images that no run super-resolved."""
    bad = [item for item in items if item["status"] != "done"]
    words = " ".join(f"{item['key']}: {item['message']}" for item in bad)
    if words:
        return Past(note=words, exit_code=1)
    return past if past.note else Past(note=PREPARED)


def _stopped_items(run: Path, items: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Images that a run without a record planned, less those that were done before."""
    plan = _read(run / PLAN)
    needed_gb, available = plan.get("needed_gb"), plan.get("available_gb")
    if not isinstance(needed_gb, dict) or not isinstance(available, (int, float)):
        return {}
    return {
        key: {"key": key, "status": "failed", "message": stopped_sentence(available, needed)}
        for key, needed in needed_gb.items()
        if items.get(key, {}).get("status") != "done" and isinstance(needed, (int, float))
    }


def record_items(run_folder: Path) -> list[dict[str, Any]]:
    """Return the records of all images of a run, empty if they cannot be read."""
    images = _read(run_folder / RECORD).get("images")
    found = images if isinstance(images, list) else []
    return [{"message": "", **item} for item in found if _is_item(item)]


def _is_item(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("message", ""), str):
        return False
    return all(isinstance(item.get(name), str) for name in ("key", "status"))


def stopped_sentence(available_gb: float, needed_gb: float) -> str:
    """Return a sentence on a run that ended without a record."""
    if needed_gb > available_gb:
        return (
            f"The run was probably killed at {available_gb:.1f} GB; this image needs about "
            f"{needed_gb:.1f} GB: give the job more memory."
        )
    return STOPPED


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is none or it has another form."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
