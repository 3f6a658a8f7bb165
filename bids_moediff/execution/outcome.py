# SPDX-License-Identifier: Apache-2.0
"""Collect the outcome of every image: from run records and crash files to table and exit code."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_moediff.bids.groups import is_group
from bids_moediff.bids.image import Participant
from bids_moediff.bids.past_runs import record_items
from bids_moediff.errors import ImageError, MoediffError
from bids_moediff.runtime.text import one_line, without_folders
from bids_moediff.workflows.folder_names import participant_workflow_name

from .preflight import Remarks

# Exit codes of the child process that concern the whole call outrank "some images failed".
FATAL = (2, 69, 78)


@dataclass(frozen=True)
class Outcome:
    """One row of the table.

    Parameters
    ----------
    participant
        Label without ``sub-``.
    image
        Name of the image; empty for the participant as a whole.
    status
        ``done`` or ``failed``.
    message
        What went wrong, in one sentence.
    exit_code
        That of the failure; 0 for an image that was done.
    warnings
        Sentences to read before using the image.
    """

    participant: str
    image: str
    status: str
    message: str = ""
    exit_code: int = 0
    warnings: tuple[str, ...] = ()


@dataclass
class RunResult:
    """Results of a run so far.

    Parameters
    ----------
    outcomes
        One for each image, and those of participants as a whole.
    participants
        As they were found, for the end summary.
    remarks
        Remarks printed on the terminal.
    num_remarks
        Number of remarks on files.
    told
        Records of images, for the methods text.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    participants: list[Participant] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)
    num_remarks: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)


def failed(participant: str, image: str, message: str, exit_code: int = 1) -> Outcome:
    """Return the outcome of a failure."""
    return Outcome(participant, image, "failed", one_line(message), exit_code)


def read_outcomes(
    label: str, keys: Sequence[str], run_file: Path, crash_folder: Path
) -> list[Outcome]:
    """Return the outcomes of one participant; crash files explain images without a record."""
    items = {item["key"]: item for item in record_items(run_file.parent)}
    sentences = crash_sentences(crash_folder, participant_workflow_name(label))
    reason = sentences[0] if sentences else "The image was not processed."
    outcomes = []
    for key in keys:
        item = items.get(key)
        if item is None:
            outcomes.append(failed(label, key, reason))
        elif item["status"] == "done":
            warnings = tuple(dict.fromkeys(item.get("warnings", ())))
            outcomes.append(Outcome(label, key, "done", warnings=warnings))
        else:
            code = item.get("exit_code", ImageError.exit_code)
            outcomes.append(failed(label, key, item["message"], code if code in FATAL else 1))
    if sentences and not set(keys) - set(items):  # the images are there, but not the report
        outcomes.append(failed(label, "", " ".join(sentences)))
    return outcomes


def crash_sentences(folder: Path, workflow_name: str = "") -> list[str]:
    """Return one sentence for each crash file of Nipype, oldest first."""
    sentences = []
    for path in sorted(folder.glob("crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^Node: (\S+)", text, re.MULTILINE)
        node = match[1] if match else path.stem
        if workflow_name and workflow_name not in node.split("."):
            continue
        sentences.append(_crash_sentence(node.rsplit(".", 1)[-1], text))
    return sentences


def _crash_sentence(step: str, text: str) -> str:
    """Return the innermost exception of a crash file; our own messages are sentences."""
    trace = text.partition("Traceback (most recent call last)")[2]
    causes = re.findall(r"^\s*([A-Za-z_][\w.]*): (.+)$", trace, re.MULTILINE)
    kind, reason = causes[-1] if causes else ("", "no reason given")
    if kind.startswith(MoediffError.__module__):
        return reason
    words = without_folders(f"{kind.rsplit('.', 1)[-1]}: {reason}" if kind else reason)
    return f"Step {step} failed: {words.rstrip('.')}."


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """Return 0 if all were done; the code of a failure of the whole call; else 1."""
    codes = {outcome.exit_code for outcome in outcomes if outcome.status == "failed"}
    fatal = sorted(codes & set(FATAL))
    return fatal[-1] if fatal else int(bool(codes))


def print_summary(
    outcomes: Sequence[Outcome], output_dir: Path, next_command: str, skipped: int = 0
) -> None:
    """Print the results of the run and the next command on standard error.

    Parameters
    ----------
    outcomes
        One for each image, and those of participants as a whole.
    output_dir
        Where the results are.
    next_command
        The next command; empty if nothing is left to do.
    skipped
        Number of remarks in notices: files left out, statements ignored.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=False)
    bad = [outcome for outcome in outcomes if outcome.status == "failed"]
    results = [outcome for outcome in outcomes if outcome.image]
    images = [outcome for outcome in results if not is_group(outcome.image)]
    groups = [outcome for outcome in results if is_group(outcome.image)]
    combined = f", {_done(groups)} of {len(groups)} groups combined" if groups else ""
    remarks = f"; remarks on files: {skipped}, see above" if skipped else ""
    done = f"{_done(images)} of {len(images)} images done"
    console.print(f"{done}{combined}{remarks}.", highlight=False)
    for words, names in _shared_warnings(results):
        several = f" ({len(names)} images)" if len(names) > 1 else ""
        console.print(f"Warning, {names[0]}{several}: {words}", highlight=False, markup=False)
    if bad:
        table = Table("participant", "image", "what went wrong", title="Failed")
        for outcome in bad:
            cells = (f"sub-{outcome.participant}", outcome.image, outcome.message)
            table.add_row(*map(Text, cells))  # text is not markup: "[enforce fail …]"
        console.print(table)
    labels = sorted({outcome.participant for outcome in outcomes})
    reports = [path for label in labels if (path := output_dir / f"sub-{label}.html").is_file()]
    console.soft_wrap = True  # paths and commands are copied
    if reports:
        more = f" and {len(reports) - 1} more beside it" if len(reports) > 1 else ""
        console.print(f"Report: {reports[0]}{more}", highlight=False, markup=False)
    if next_command:
        console.print(f"Next: {next_command}", highlight=False, markup=False)


def _done(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.status == "done" for outcome in outcomes)


def _shared_warnings(images: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Return warnings with the images that have them, most frequent first."""
    found: dict[str, list[str]] = {}
    for outcome in images:
        for words in outcome.warnings:
            found.setdefault(words, []).append(outcome.image)
    return sorted(found.items(), key=lambda entry: -len(entry[1]))
