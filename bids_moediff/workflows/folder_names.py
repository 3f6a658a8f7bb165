# SPDX-License-Identifier: Apache-2.0
"""Names of the workflows, and so of the folders of their steps."""

WORKFLOW_NAME = "bids_moediff_wf"


def participant_workflow_name(label: str) -> str:
    """Name of a participant's workflow, and of its folder under that of the whole workflow."""
    return f"sub_{label.replace('+', '_')}_wf"
