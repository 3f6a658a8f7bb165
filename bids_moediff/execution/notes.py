# SPDX-License-Identifier: Apache-2.0
"""Notes for the group level: why nothing came of a participant, where no record of a run says it.

None is written for a run that writes no result (``--boilerplate-only``), nor into an output folder
that does not exist: a wrong call leaves nothing behind.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from bids_moediff.bids.discover import discover_participant, is_label, nothing_to_process
from bids_moediff.bids.image import Participant
from bids_moediff.bids.past_runs import log_folder, record_items, write_note
from bids_moediff.errors import GraphError, MoediffError, NothingToProcessError
from bids_moediff.runtime.text import names_only, one_line
from bids_moediff.settings import Settings

from .outcome import Outcome, exit_code


def note_error(settings: Settings, run_id: str, error: Exception) -> None:
    """Note what ended a run for each participant that it was given by label."""
    labels = [
        label
        for label in settings.participant_label
        if is_label(label) and os.path.lexists(settings.bids_dir / f"sub-{label}")
    ]
    if isinstance(error, NothingToProcessError):
        for label in labels:
            with suppress(MoediffError):
                note_empty(settings, run_id, [discover_participant(settings, label)])
        return
    code = error.exit_code if isinstance(error, MoediffError) else GraphError.exit_code
    words = str(error) if isinstance(error, MoediffError) else f"{type(error).__name__}: {error}"
    for label in labels:
        _note(settings, label, run_id, f"The run ended with exit code {code}: {words}", code)


def note_empty(settings: Settings, run_id: str, participants: Iterable[Participant]) -> None:
    """Note who has no image to process."""
    for participant in participants:
        if is_label(participant.label) and not participant.images:
            # In the same words for everybody, so that the page can name them together.
            error = nothing_to_process(replace(settings, participant_label=()), [participant])
            words = " ".join((str(error), *error.remarks))
            _note(settings, participant.label, run_id, words, error.exit_code)


def note_unrecorded(settings: Settings, run_id: str, outcomes: Sequence[Outcome]) -> None:
    """Note the failures of a run that its records do not have."""
    failures: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status == "failed":
            failures.setdefault(outcome.participant, []).append(outcome)
    for label, found in failures.items():
        items = record_items(log_folder(settings.output_dir, label) / run_id)
        recorded = {item["key"] for item in items}
        left = [outcome for outcome in found if outcome.image not in recorded]
        words = " ".join(f"{one.image}: {one.message}".removeprefix(": ") for one in left)
        if words:
            _note(settings, label, run_id, words, exit_code(left))


def _note(settings: Settings, label: str, run_id: str, words: str, code: int) -> None:
    if settings.output_dir.is_dir() and not settings.boilerplate_only:
        # Pages name nothing of the machine.
        words = names_only(words, vars(settings).values())
        write_note(settings.output_dir, label, run_id, one_line(words), code)
