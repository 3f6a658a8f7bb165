# SPDX-License-Identifier: Apache-2.0
"""What the runs of a participant left in its log folder, the killed ones included.

A run that super-resolves writes its plan before it starts and its record when it ends. A plan
without a record belongs to a run that was stopped: a job killed for its memory can write nothing
any more.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    return next((record for record in records if record["stage"] in WITH_NETWORK), {})


def last_items(folder: Path) -> dict[str, dict[str, Any]]:
    """What the last run that worked on each image says of it, by the key of the image.

    An image that was done once stays done when a later run was stopped: its files are whole.
    """
    items: dict[str, dict[str, Any]] = {}
    for run in sorted(path for path in folder.glob("*") if path.is_dir()):
        if (run / RECORD).is_file():
            record = _read(run / RECORD)
            if record["stage"] in WITH_NETWORK:
                items |= {item["key"]: item for item in record["images"]}
        elif (run / PLAN).is_file():
            plan = _read(run / PLAN)
            for key, needed in plan["needed_gb"].items():
                if items.get(key, {}).get("status") != "done":
                    message = stopped_sentence(plan["available_gb"], needed)
                    items[key] = {"key": key, "status": "failed", "message": message}
    return items


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
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
