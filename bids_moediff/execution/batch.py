# SPDX-License-Identifier: Apache-2.0
"""Run a batch of participants: check them, build and run their graph, read the outcomes."""

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from niworkflows.engine.workflows import LiterateWorkflow as Workflow

from bids_moediff.bids.discover import with_others
from bids_moediff.bids.image import Participant
from bids_moediff.bids.past_runs import record_items
from bids_moediff.errors import DeviceError, ImageError, UsageError, WeightsError
from bids_moediff.families.choice import takes_reference
from bids_moediff.interfaces.run_record import empty_item
from bids_moediff.runtime.resources import Limits
from bids_moediff.settings import Settings
from bids_moediff.workflows.participant import (
    RunPlan,
    init_bids_moediff_wf,
    init_single_subject_wf,
    run_file,
)
from bids_moediff.workflows.planned import planned_items

from .execute import configure_nipype, execute, run_logs
from .finished import applies, find_finished, words_on_finished
from .memory import plan_memory
from .notes import note_empty, note_unrecorded
from .outcome import Outcome, RunResult, failed, read_outcomes
from .preflight import Checked, Refusal, check_participants, refusal
from .work_folder import forget_failures

UNFORESEEN = "unforeseen.log"
WHOLE_RUN = (DeviceError, UsageError, WeightsError)  # these concern every image


def run_batch(
    settings: Settings, labels: Sequence[str], plan: RunPlan, limits: Limits, result: RunResult
) -> None:
    """Process a batch of participants and add their outcomes to ``result``."""
    configure_nipype(settings, plan)
    forget_failures(settings.work_folder, labels)
    batch = []
    for checked in check_participants(settings, labels):
        result.num_remarks += result.remarks.tell(checked.participant.notices)
        result.participants.append(checked.participant)
        result.remarks.tell(_words_on_groups(checked.participant, settings))
        batch.append(_guided(checked, settings, plan))
    if settings.stop_on_first_crash:
        for checked in batch:
            for item in checked.refusals:
                raise ImageError(item.message)
    note_empty(settings, plan.run_id, [item.participant for item in batch if not item.refusals])
    batch, reports = _skip_finished(settings, batch, plan, result)
    _process(settings, batch, plan, limits, result)
    if reports:
        _process(replace(settings, stage="report"), reports, plan, limits, None)


def _guided(checked: Checked, settings: Settings, plan: RunPlan) -> Checked:
    """Return the participant with the images that may guide another, if the model takes any."""
    if not checked.participant.images or not takes_reference(plan.model):
        return checked
    return replace(checked, participant=with_others(settings, checked.participant))


def _words_on_groups(participant: Participant, settings: Settings) -> list[str]:
    """Return a sentence on the images to be combined."""
    groups = participant.groups if settings.stage in ("all", "sr") else ()
    return [
        f"{group.key}: to be combined from {', '.join(scan.key for scan in group.members)}."
        for group in groups
        if not settings.boilerplate_only
    ]


def _skip_finished(
    settings: Settings, batch: list[Checked], plan: RunPlan, result: RunResult
) -> tuple[list[Checked], list[Checked]]:
    """Return what is left to process, and participants that lack only their page."""
    if not applies(settings):
        return batch, []
    left, reports = [], []
    again: Counter[str] = Counter()
    skipped = 0
    for checked in batch:
        try:
            found = find_finished(checked.participant, settings, plan.model)
        except WHOLE_RUN:
            raise
        except Exception:  # then it is processed
            left.append(checked)
            continue
        again.update(found.again.values())
        skipped += len(found.done)
        for key, item in found.done.items():
            result.told.append(item)
            warnings = tuple(dict.fromkeys(item.get("warnings", ())))
            result.outcomes.append(
                Outcome(checked.participant.label, key, "done", warnings=warnings)
            )
        left.append(replace(checked, participant=found.participant))
        if found.report_missing and not checked.refusals:
            reports.append(checked)
    result.remarks.tell(words_on_finished(again, skipped))
    return left, reports


def _process(
    settings: Settings,
    batch: list[Checked],
    plan: RunPlan,
    limits: Limits,
    result: RunResult | None,
) -> None:
    """Build the graph of the remaining work, run it, and read the outcomes (not of reports)."""
    found: list[Outcome] = []
    batch = [_recordable(settings, checked, plan) for checked in batch]
    workflow, batch = _build(settings, batch, plan)
    working = [checked.participant for checked in batch if _has_work(checked)]
    for checked in batch:
        found += [_outcome(settings, plan, item) for item in checked.refusals]
    with run_logs(settings, plan, working):
        if settings.stage in ("all", "sr") and not settings.boilerplate_only:
            plan_memory(settings, working, plan, limits.memory_gb)
        if result is not None and settings.boilerplate_only:
            result.told += planned_items(working, settings, plan)
        elif working:
            crash_folder = execute(settings, workflow, plan, limits)
            for participant in working:
                found += _outcomes_of(settings, participant, plan, crash_folder)
                if result is not None:
                    folder = run_file(settings, plan, participant).parent
                    result.told += record_items(folder)
    if result is not None:
        result.outcomes += found
    note_unrecorded(settings, plan.run_id, found)


def _recordable(settings: Settings, checked: Checked, plan: RunPlan) -> Checked:
    """Return the participant, or a refusal if its logs cannot be written."""
    folder = run_file(settings, plan, checked.participant).parent
    if _has_work(checked):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise  # this concerns every participant
            words = f"{folder} cannot be made ({error.strerror}); remove what is in the way."
            label = checked.participant.label
            return Checked(Participant(label, ()), (Refusal(label, None, words),))
    return checked


def _outcomes_of(
    settings: Settings, participant: Participant, plan: RunPlan, crash_folder: Path
) -> list[Outcome]:
    keys = [item.key for item in participant.results]
    try:
        path = run_file(settings, plan, participant)
        return read_outcomes(participant.label, keys, path, crash_folder)
    except Exception as error:  # an odd file in the logs costs one participant
        return [failed(participant.label, "", refusal(participant.label, None, error).message)]


def _has_work(checked: Checked) -> bool:
    """Return True if there is an image to process or to report on."""
    refused = any(item.image is not None for item in checked.refusals)
    return bool(checked.participant.images) or refused


def _build(
    settings: Settings, batch: list[Checked], plan: RunPlan
) -> tuple[Workflow, list[Checked]]:
    """Return the graph, without the images for which none can be built."""
    try:
        return _workflow(settings, batch, plan), batch
    except WHOLE_RUN:
        raise
    except Exception:
        batch = [_buildable(settings, checked, plan) for checked in batch]
        return _workflow(settings, batch, plan), batch


def _workflow(settings: Settings, batch: list[Checked], plan: RunPlan) -> Workflow:
    working = [checked for checked in batch if _has_work(checked)]
    participants = [checked.participant for checked in working]
    records = {checked.participant.label: _records(checked) for checked in working}
    return init_bids_moediff_wf(settings, participants, plan, records)


def _records(checked: Checked) -> list[dict[str, Any]]:
    """Return the records of the images that no step works on."""
    return [
        {**empty_item(item.image), "message": item.message}
        for item in checked.refusals
        if item.image is not None
    ]


def _buildable(settings: Settings, checked: Checked, plan: RunPlan) -> Checked:
    """Take images out until the graph of the participant can be built."""
    label, refusals = checked.participant.label, list(checked.refusals)
    empty = replace(checked.participant, images=(), groups=())
    try:
        init_single_subject_wf(empty, settings, plan)
    except Exception as error:
        return Checked(empty, (refusal(label, None, error),))
    good: list[Any] = []
    for image in checked.participant.images:
        try:
            trial = replace(checked.participant, images=(*good, image), groups=())
            init_single_subject_wf(trial, settings, plan)
        except WHOLE_RUN:
            raise
        except Exception as error:
            refusals.append(refusal(label, image, error))
        else:
            good.append(image)
    left = _with_groups_of(replace(checked.participant, images=tuple(good)))
    return Checked(left, tuple(refusals))


def _with_groups_of(participant: Participant) -> Participant:
    """Return the participant without groups of images that it does not have."""
    keys = {image.key for image in participant.images}
    groups = (
        group
        for group in participant.groups
        if all(member.key in keys for member in group.members)
    )
    return replace(participant, groups=tuple(groups))


def _outcome(settings: Settings, plan: RunPlan, item: Refusal) -> Outcome:
    """Return the row of a refused image; its log is written beside the record of the run."""
    message = item.message
    if item.log:
        folder = run_file(settings, plan, Participant(item.label, ())).parent
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / UNFORESEEN).open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{message}\n{item.log}\n")
        message = f"{message} Log: {folder.relative_to(settings.output_dir) / UNFORESEEN}"
    return failed(item.label, item.image.key if item.image else "", message)
