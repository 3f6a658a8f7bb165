# SPDX-License-Identifier: Apache-2.0
"""Names of the workflows, which are those of the folders of their steps."""

WORKFLOW_NAME = "bids_moediff_wf"


def participant_workflow_name(label: str) -> str:
    """Return the name of a participant's workflow, and of its folder."""
    return f"sub_{label.replace('+', '_')}_wf"
