# SPDX-License-Identifier: Apache-2.0
"""Preparation of one scan, step by step: conform, unwarp, brain mask, bias field."""

from bids_moediff.imaging.masks import head_mask
from bids_moediff.preprocessing.bias_field import bias_field, divide
from bids_moediff.preprocessing.brain_mask import brain_mask
from bids_moediff.preprocessing.conform import conform
from bids_moediff.preprocessing.earlier_mask import reuse_mask
from bids_moediff.preprocessing.unwarp import read_coefficients, unwarp

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
