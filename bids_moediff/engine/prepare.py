# SPDX-License-Identifier: Apache-2.0
"""Preparation of one scan, step by step: conform, brain mask, bias field."""

from typing import Any

import nibabel as nib

from bids_moediff.engine.biasfield import bias_field, divide
from bids_moediff.engine.brainmask import MODEL_FOLDER
from bids_moediff.engine.brainmask import brain_mask as network_brain_mask
from bids_moediff.engine.conform import conform
from bids_moediff.engine.masks import head_mask


def brain_mask(image: nib.Nifti1Image) -> tuple[nib.Nifti1Image, dict[str, Any]]:
    """Brain mask by the network, or the head mask with a warning where there are no weights."""
    if (MODEL_FOLDER / "model.safetensors").exists():
        return network_brain_mask(image)
    warning = "the brain mask network is not installed; the mask covers the whole head"
    return head_mask(image), {"method": "head", "warnings": [warning]}


__all__ = ["bias_field", "brain_mask", "conform", "divide", "head_mask"]
