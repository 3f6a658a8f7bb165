# SPDX-License-Identifier: Apache-2.0
"""Preparation of one scan, step by step: conform, unwarp, brain mask, bias field."""

from bids_moediff.engine.biasfield import bias_field, divide
from bids_moediff.engine.brainmask import brain_mask
from bids_moediff.engine.conform import conform
from bids_moediff.engine.gradient import read_coefficients, unwarp
from bids_moediff.engine.masks import head_mask
from bids_moediff.engine.reuse import reuse_mask

__all__ = [
    "bias_field",
    "brain_mask",
    "conform",
    "divide",
    "head_mask",
    "read_coefficients",
    "reuse_mask",
    "unwarp",
]
