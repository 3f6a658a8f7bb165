# SPDX-License-Identifier: Apache-2.0
"""The participant level: from settings to derivatives, a table of failures and an exit code.

Nothing heavy is imported here at module level: the environment of Nipype and of the numerical
libraries has to be set before they are loaded.
"""

import json
import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.bids.carried_maps import check_carried
from bids_moediff.bids.discover import discover_participant, find_participants, with_others
from bids_moediff.bids.earlier_masks import check_derivatives
from bids_moediff.bids.image import Participant
from bids_moediff.errors import MoediffError, UsageError
from bids_moediff.families.choice import choose, takes_reference
from bids_moediff.runtime.devices import require_devices
from bids_moediff.runtime.resources import Limits
from bids_moediff.runtime.resources import plan as plan_resources
from bids_moediff.settings import Settings

from .work_folder import forget_failures, make_caches, remove_work

if TYPE_CHECKING:
    from bids_moediff.workflows.participant import RunPlan

    from .outcome import Outcome

PARTICIPANTS_AT_ONCE = 50


def run_participants(settings: Settings) -> int:
    """Process every participant asked for; one that fails does not stop the others.

    Parameters
    ----------
    settings
        Options of the run.

    Returns
    -------
    int
        0 if every image was done, 1 if some failed (a table on standard error says which and
        why), 2, 69 or 78 if all of them failed for want of a device or a model.

    Raises
    ------
    MoediffError
        for what concerns the run as a whole.
    """
    # Only the last stage of a run in stages may clean up; reports made anew may not.
    cleans = settings.stage in ("all", "report") and not settings.reports_only
    if settings.reports_only:
        settings = replace(settings, stage="report")
    limits = plan_resources(settings.nprocs, settings.omp_nthreads, settings.mem)
    prepare_environment(settings.work_folder, limits.omp_nthreads)
    labels = find_participants(settings)
    from bids_moediff.bids.dataset import prepare_output
    from bids_moediff.reports.methods import methods_text
    from bids_moediff.workflows.participant import RunPlan

    from .execute import write_methods
    from .outcome import Outcome, exit_code, print_summary

    check_files(settings)
    prepare_output(settings)
    devices = tuple(require_devices(settings.device)) if needs_network(settings) else ("cpu",)
    choice = choose(settings, devices[0])
    if needs_network(settings):
        print(f"bids_moediff: model {Path(choice.model).name}, {choice.reason}.", file=sys.stderr)
    plan = RunPlan(
        model=choice.model,
        model_reason=choice.reason,
        devices=devices,
        num_threads=limits.omp_nthreads,
        run_id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}_{uuid.uuid4().hex[:8]}",
    )
    outcomes: list[Outcome] = []
    told: list[dict[str, Any]] = []
    skipped = 0
    for start in range(0, len(labels), PARTICIPANTS_AT_ONCE):
        batch = labels[start:][:PARTICIPANTS_AT_ONCE]
        found, notices = _run_batch(settings, batch, plan, limits, told)
        outcomes += found
        skipped += notices
    write_methods(settings, methods_text(told))
    if settings.boilerplate_only:
        return 0
    code = exit_code(outcomes)
    print_summary(outcomes, settings.output_dir, _next_command(settings, code), skipped)
    if cleans and not settings.keep_workdir:
        remove_work(settings.work_folder, labels)
    return code


def _next_command(settings: Settings, code: int) -> str:
    """What to call after this run: the group level once every image is there."""
    if code or settings.stage not in ("all", "report"):
        return ""
    return shlex.join(["bids_moediff", str(settings.bids_dir), str(settings.output_dir), "group"])


def check_files(settings: Settings) -> None:
    """Look at the files that options name before anything is written.

    Raises
    ------
    UsageError
        for a coefficient file, a folder of derivatives or a template that is not there.
    """
    if settings.gradient_coefficients:
        from bids_moediff.preprocessing.unwarp import read_coefficients

        read_coefficients(settings.gradient_coefficients)
    if settings.derivatives:
        check_derivatives(settings.derivatives)
    if settings.carry:
        check_carried(settings.carry)
        if settings.gradient_coefficients:
            raise UsageError(
                "--carry does not go with --gradient-coefficients: maps drawn on the distorted "
                "scan do not lie on the corrected one."
            )
    for space in settings.output_spaces:
        from bids_moediff.imaging.standard_space import find_template

        find_template(space)


def recorded_items(path: Path) -> list[dict[str, Any]]:
    """Return what a run's record says of each image for the methods text; nothing without one."""
    if not path.is_file():
        return []
    items = json.loads(path.read_text(encoding="utf-8"))["images"]
    wanted = ("key", "status", "preparation", "record")
    return [{key: item[key] for key in wanted if key in item} for item in items]


def needs_network(settings: Settings) -> bool:
    """Whether this run loads a model."""
    return settings.stage in ("all", "sr") and not settings.boilerplate_only


def prepare_environment(work_folder: Path, num_threads: int) -> None:
    """Set what Nipype and the numerical libraries read at import; what is set already stays.

    Homes may be missing or read-only (containers, batch jobs): every cache goes to the work
    folder.
    """
    caches = make_caches(work_folder)
    templateflow = Path(os.environ.get("HOME") or "/") / ".cache" / "templateflow"
    values = {
        "NO_ET": "1",
        "NIPYPE_NO_ET": "1",
        "NIPYPE_CONFIG_DIR": str(caches / "nipype"),
        "MPLCONFIGDIR": str(caches / "matplotlib"),
        "TEMPLATEFLOW_HOME": str(
            templateflow if templateflow.is_dir() else caches / "templateflow"
        ),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": str(num_threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(num_threads),
        "LOGNAME": str(os.getuid()),  # Nipype's batch plugins insist on it
    }
    for name, value in values.items():
        os.environ.setdefault(name, value)
    # Matrices are small here, and sums of floats depend on how threads share them out: with one
    # thread the bytes do not depend on the processors of the job.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for name in ("NIPYPE_CONFIG_DIR", "MPLCONFIGDIR", "TEMPLATEFLOW_HOME"):
        if os.environ[name].startswith(str(caches)):
            Path(os.environ[name]).mkdir(parents=True, exist_ok=True)


def _run_batch(
    settings: Settings,
    labels: Sequence[str],
    plan: "RunPlan",
    limits: Limits,
    told: list[dict[str, Any]],
) -> "tuple[list[Outcome], int]":
    """Outcomes of some participants, and the number of notices about files left out.

    What is known of each image, for the methods text, is added to ``told``.
    """
    from bids_moediff.workflows.participant import init_bids_moediff_wf, run_file
    from bids_moediff.workflows.planned import planned_items

    from .execute import configure_nipype, execute, run_logs
    from .memory import plan_memory
    from .outcome import Outcome, failed, read_outcomes

    configure_nipype(settings, plan)
    forget_failures(settings.work_folder, labels)
    outcomes: list[Outcome] = []
    participants: list[Participant] = []
    notices = 0
    for label in labels:
        try:
            participant = discover_participant(settings, label)
        except MoediffError as error:
            outcomes.append(failed(label, "", str(error)))
            continue
        for notice in participant.notices:
            print(f"bids_moediff: {notice}", file=sys.stderr)
        for group in participant.groups if needs_network(settings) else ():
            names = ", ".join(scan.key for scan in group.members)
            print(f"bids_moediff: {group.key}: to be combined from {names}.", file=sys.stderr)
        notices += len(participant.notices)
        if participant.images:  # filters may leave none
            guided = takes_reference(plan.model)
            participants.append(with_others(settings, participant) if guided else participant)
    with run_logs(settings, plan, participants):
        if needs_network(settings):
            plan_memory(settings, participants, plan, limits.memory_gb)
        workflow = init_bids_moediff_wf(settings, participants, plan)
        if settings.boilerplate_only or not participants:
            told += planned_items(participants, settings, plan)
            return outcomes, notices
        crash_folder = execute(settings, workflow, plan, limits)
    for participant in participants:
        keys = [item.key for item in participant.results]
        path = run_file(settings, plan, participant)
        outcomes += read_outcomes(participant.label, keys, path, crash_folder)
        told += recorded_items(path)
    return outcomes, notices
