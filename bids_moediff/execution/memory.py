# SPDX-License-Identifier: Apache-2.0
"""Compare the memory that a run needs with the memory it may use, before it starts."""

import sys
from collections.abc import Sequence
from contextlib import suppress

from bids_moediff.bids.image import Participant
from bids_moediff.bids.past_runs import write_plan
from bids_moediff.runtime.resources import memory_warning
from bids_moediff.settings import Settings
from bids_moediff.workflows.participant import RunPlan, run_file
from bids_moediff.workflows.sizes import result_cost


def plan_memory(
    settings: Settings, participants: Sequence[Participant], plan: RunPlan, available_gb: float
) -> None:
    """Write the plan of each participant, and warn if the memory is too small for a result.

    Parameters
    ----------
    settings, participants, plan
        Of the run.
    available_gb
        Memory that the run may use, GB.
    """
    most, largest = 0.0, ""
    for participant in participants:
        needed = {}
        for item in participant.results:
            with suppress(ArithmeticError, ValueError):  # an odd header; the image fails later
                cost = result_cost(item, settings, plan.model, plan.devices[0])
                needed[item.key] = cost.job_gigabytes
        write_plan(run_file(settings, plan, participant).parent, available_gb, needed)
        most, largest = max([(most, largest), *((gb, key) for key, gb in needed.items())])
    if words := memory_warning(most, largest, available_gb):
        print(f"bids_moediff: {words}", file=sys.stderr)
