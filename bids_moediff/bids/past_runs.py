# SPDX-License-Identifier: Apache-2.0
"""What the runs of a participant left in its log folder, the killed ones included.

A run that super-resolves writes its plan before it starts and its record when it ends. A plan
without a record belongs to a run that was stopped: a job killed for its memory can write nothing
any more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bids_moediff.runtime.given_files import read_json
from bids_moediff.runtime.sink import write_json

RECORD, PLAN = "run.json", "plan.json"
WITH_NETWORK = ("all", "sr")  # stages


def log_folder(output_dir: Path, label: str) -> Path:
    """Folder that has a folder for each run of a participant."""
    return output_dir / "logs" / f"sub-{label}"


def write_plan(run_folder: Path, available_gb: float, needed_gb: Mapping[str, float]) -> None:
    """Note before a run what it may use and what each image (by key) needs, both in GB."""
    content = {"available_gb": round(available_gb, 1), "needed_gb": dict(needed_gb)}
    write_json(content, run_folder / PLAN)


def last_record(folder: Path) -> dict[str, Any]:
    """Record of the last run that super-resolved and ended; empty if there is none."""
    records = (_read(path) for path in sorted(folder.glob(f"*/{RECORD}"), reverse=True))
    return next((record for record in records if record.get("stage") in WITH_NETWORK), {})


def last_record_time(folder: Path) -> float:
    """Modification time (s) of the newest record; 0 if there is none."""
    return max((path.stat().st_mtime for path in folder.glob(f"*/{RECORD}")), default=0.0)


def last_items(folder: Path) -> dict[str, dict[str, Any]]:
    """What the last run that worked on each image says of it, by the key of the image.

    An image that was done once stays done when a later run was stopped: its files are whole.
    What cannot be read, or is not a record of this app, is passed over.
    """
    items: dict[str, dict[str, Any]] = {}
    for run in sorted(path for path in folder.glob("*") if path.is_dir()):
        if (run / RECORD).is_file():
            if _read(run / RECORD).get("stage") in WITH_NETWORK:
                items |= {item["key"]: item for item in record_items(run)}
            continue
        plan = _read(run / PLAN)
        needed_gb, available = plan.get("needed_gb"), plan.get("available_gb")
        if not isinstance(needed_gb, dict) or not isinstance(available, (int, float)):
            continue
        for key, needed in needed_gb.items():
            if items.get(key, {}).get("status") != "done" and isinstance(needed, (int, float)):
                message = stopped_sentence(available, needed)
                items[key] = {"key": key, "status": "failed", "message": message}
    return items


def record_items(run_folder: Path) -> list[dict[str, Any]]:
    """What the record of a run says of each image; nothing where it cannot be read."""
    images = _read(run_folder / RECORD).get("images")
    found = images if isinstance(images, list) else []
    return [{"message": "", **item} for item in found if _is_item(item)]


def _is_item(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("message", ""), str):
        return False
    return all(isinstance(item.get(name), str) for name in ("key", "status"))


def stopped_sentence(available_gb: float, needed_gb: float) -> str:
    """What is known of a run that ended without a record."""
    if needed_gb > available_gb:
        return (
            f"The run was probably killed at {available_gb:.1f} GB; this image needs about "
            f"{needed_gb:.1f} GB: give the job more memory."
        )
    return (
        "The run was stopped before it ended (cancelled, out of time or killed), or it still "
        "runs; run it again if it does not."
    )


def _read(path: Path) -> dict[str, Any]:
    """Content of a JSON file; empty if there is none or it is something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
