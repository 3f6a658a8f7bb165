# SPDX-License-Identifier: Apache-2.0
"""Run the participant level: from settings to derivatives, a table of failures and an exit code.

Nothing heavy is imported at module level: the environment of Nipype and of the numerical libraries
has to be set before they are loaded.
"""

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from bids_moediff.bids.carried_maps import check_carried
from bids_moediff.bids.discover import find_participants
from bids_moediff.bids.earlier_masks import check_derivatives
from bids_moediff.errors import UsageError
from bids_moediff.families.choice import choose
from bids_moediff.runtime.devices import require_devices
from bids_moediff.runtime.resources import plan as plan_resources
from bids_moediff.settings import Settings

from .preflight import closing_remarks
from .work_folder import make_caches, own_work, remove_work

PARTICIPANTS_AT_ONCE = 50
FONTS = Path(__file__).parents[1] / "data" / "fonts"  # made by tools/font_list.py


def run_participants(settings: Settings, run_id: str) -> int:
    """Process every participant asked for; one that fails does not stop the others.

    Parameters
    ----------
    settings
        Options of the run.
    run_id
        Name of its log folders.

    Returns
    -------
    int
        0 if every image was done, 1 if some failed (a table on standard error says which and why),
        2, 69 or 78 if all of them failed because of options, device or model.

    Raises
    ------
    MoediffError
        For an error of the run as a whole.
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

    from .batch import run_batch
    from .execute import write_methods
    from .outcome import RunResult, exit_code, print_summary

    check_files(settings)
    prepare_output(settings)
    devices = tuple(require_devices(settings.device)) if needs_network(settings) else ("cpu",)
    choice = choose(settings, devices[0])
    if needs_network(settings):
        print(f"bids_moediff: model {Path(choice.model).name}, {choice.reason}.", file=sys.stderr)
    plan = RunPlan(choice.model, choice.reason, devices, limits.omp_nthreads, run_id)
    result = RunResult()
    for start in range(0, len(labels), PARTICIPANTS_AT_ONCE):
        batch = labels[start:][:PARTICIPANTS_AT_ONCE]
        with own_work(settings, batch, plan.run_id) as apart:
            run_batch(apart, batch, plan, limits, result)
            if cleans and not settings.keep_workdir:
                remove_work(apart.work_folder, batch)
    write_methods(settings, methods_text(result.told))
    if settings.boilerplate_only:
        return 0
    code = exit_code(result.outcomes)
    result.remarks.tell(closing_remarks(settings, result.participants))
    command = _next_command(settings, code)
    print_summary(result.outcomes, settings.output_dir, command, result.num_remarks)
    return code


def _next_command(settings: Settings, code: int) -> str:
    """Return the next command: the group level once every image is done."""
    if code or settings.stage not in ("all", "report"):
        return ""
    return shlex.join(["bids_moediff", str(settings.bids_dir), str(settings.output_dir), "group"])


def check_files(settings: Settings) -> None:
    """Check the files that options name before anything is written.

    Raises
    ------
    UsageError
        For a missing coefficient file, plugin file, folder of derivatives or template.
    """
    if settings.gradient_coefficients:
        from bids_moediff.preprocessing.unwarp import read_coefficients

        read_coefficients(settings.gradient_coefficients)
    if settings.use_plugin is not None:
        from .plugin_choice import read_plugin_file

        read_plugin_file(settings.use_plugin)
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


def needs_network(settings: Settings) -> bool:
    """Return True if this run loads a model."""
    return settings.stage in ("all", "sr") and not settings.boilerplate_only


def prepare_environment(work_folder: Path, num_threads: int) -> None:
    """Set what Nipype and the numerical libraries read at import; existing values are kept.

    Home folders may be missing or read-only (containers, batch jobs), so every cache goes to the
    working directory.
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
    if os.environ["MPLCONFIGDIR"].startswith(str(caches)):
        for fonts in FONTS.glob("fontlist-*.json"):  # Matplotlib would search for two seconds
            shutil.copy(fonts, os.environ["MPLCONFIGDIR"])
