# SPDX-License-Identifier: Apache-2.0
"""Run the group level: tables and a page over all participants, with failed and missing ones."""

from pathlib import Path

from bids_moediff.bids.discover import find_participants, is_label
from bids_moediff.bids.past_runs import log_folder, read_past
from bids_moediff.errors import NothingToProcessError
from bids_moediff.runtime.text import counted, one_line
from bids_moediff.settings import Settings

from .run import prepare_environment

MOST_PRINTED = 100  # participants in the table on standard error
NO_RECORD = (
    "No run left a record: none was started, or its job ended before the app began; the log of "
    "the job says more."
)


def run_group(settings: Settings) -> int:
    """Write the group tables and page from the content of the output folder.

    Parameters
    ----------
    settings
        Options of the run; the participants are those of the input data set.

    Returns
    -------
    int
        0, or 1 if an image of any participant failed in its last run or a participant is missing.
        ``logs/unfinished.txt`` lists those participants, one ``sub-LABEL`` a line.
    """
    prepare_environment(settings.work_folder, settings.omp_nthreads or 1)
    labels = [label for label in find_participants(settings) if is_label(label)]
    from bids_moediff.bids.dataset import prepare_output
    from bids_moediff.reports.group import write_group_report
    from bids_moediff.runtime.sink import write_text

    prepare_output(settings)
    states = {label: participant_state(settings.output_dir, label) for label in labels}
    write_group_report(settings.output_dir, states, settings.bids_dir)
    unfinished = [label for label, state in states.items() if state["status"] != "done"]
    lines = "".join(f"sub-{label}\n" for label in unfinished)
    write_text(lines, settings.output_dir / "logs" / "unfinished.txt")
    print_states(states)
    return int(bool(unfinished))


def participant_state(output_dir: Path, label: str) -> dict[str, str]:
    """Return the status of a participant (``done``, ``failed`` or ``missing``) and its failures.

    The last run that processed an image counts, so a failure that a later run repaired is
    forgotten. A participant without a page is not done: a killed job of the report stage leaves no
    other trace.
    """
    past = read_past(log_folder(output_dir, label))
    if not past.items and _has_result(output_dir / f"sub-{label}"):
        return {"status": "done", "message": ""}  # the logs were removed
    if not any(item["status"] == "done" for item in past.items.values()) and past.note:
        nothing = past.exit_code in (0, NothingToProcessError.exit_code)
        return {"status": "missing" if nothing else "failed", "message": past.note}
    if not past.items:
        return {"status": "missing", "message": NO_RECORD}
    failures = [
        f"{key}: {item['message']}" for key, item in past.items.items() if item["status"] != "done"
    ]
    if past.partly:
        failures.append(past.note)
    if not failures and not (output_dir / f"sub-{label}.html").is_file():
        failures.append(
            "The images are done, but there is no report: its stage was not run or was killed; "
            "run it again."
        )
    return {"status": "failed" if failures else "done", "message": " ".join(failures)}


def _has_result(folder: Path) -> bool:
    """Whether a participant has a super-resolved image."""
    names = ("*_desc-sr_*.nii.gz", "*_desc-srcombined_*.nii.gz")
    return any(path for name in names for path in folder.rglob(name))


def print_states(states: dict[str, dict[str, str]]) -> None:
    """Print participants that are not done on standard error; of very many the first ones."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    count = {
        status: sum(state["status"] == status for state in states.values())
        for status in ("done", "failed", "missing")
    }
    words = ", ".join(f"{number} {status}" for status, number in count.items())
    console.print(f"{counted(len(states), 'participant')}: {words}.", highlight=False)
    unfinished = [(label, state) for label, state in states.items() if state["status"] != "done"]
    if not unfinished:
        return
    table = Table("participant", "status", "what went wrong")
    for label, state in unfinished[:MOST_PRINTED]:
        cells = (f"sub-{label}", state["status"], one_line(state["message"]))
        table.add_row(*map(Text, cells))
    console.print(table)
    if len(unfinished) > MOST_PRINTED:
        more = f"{len(unfinished) - MOST_PRINTED} more are listed in logs/unfinished.txt."
        console.print(more, highlight=False)
