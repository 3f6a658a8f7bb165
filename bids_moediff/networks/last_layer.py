# SPDX-License-Identifier: Apache-2.0
"""A last convolution whose weights are a linear function of the acquisition.

It costs nothing at inference: the weights are summed once for each image. The inputs are the six
numbers of the acquisition (:meth:`.Acquisition.condition`) and, in networks that take them, those
of :func:`bids_moediff.imaging.told.told_numbers`. Numbers that are not given count as 0.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

ACQUISITION_NUMBERS = 6
# Ranges of voxel ratio and profile width that the features were trained on.
LARGEST_RATIO = 6.0
NARROWEST, WIDEST = 0.7, 1.2067


def within_training(condition: Tensor) -> Tensor:
    """Return the acquisition's six numbers (B, 6), clipped to the range of the training.

    Width 0 means that an axis is as fine as the output; it is kept.
    """
    ratios, widths = condition[:, :ACQUISITION_NUMBERS].chunk(2, dim=1)
    inside = widths.clamp(NARROWEST, WIDEST)
    largest = torch.tensor(LARGEST_RATIO).log2().item()
    return torch.cat([ratios.clamp(max=largest), torch.where(widths > 0, inside, widths)], dim=1)


def seen(condition: Tensor, extra_numbers: int) -> Tensor:
    """Return the part of a condition (B, 6 or more) that a network with these inputs sees."""
    if not extra_numbers:
        return condition
    return torch.cat([within_training(condition), condition[:, ACQUISITION_NUMBERS:]], dim=1)


def told_to(terms: nn.Conv3d, outputs: int, condition: Tensor) -> Tensor:
    """Return as many numbers (B, K) of the condition (B, any) as ``terms`` has blocks."""
    count = terms.out_channels // outputs
    missing = count - condition.shape[1]
    if missing > 0:
        condition = functional.pad(condition, (0, missing))
    return condition[:, :count].to(terms.weight)


def last_layer_of(last: nn.Conv3d, terms: nn.Conv3d | None, condition: Tensor) -> nn.Conv3d:
    """Return the last layer for one condition (1, K)."""
    summed = copy.deepcopy(last)
    if terms is not None:
        told = told_to(terms, last.out_channels, condition)[0]
        for name in ("weight", "bias"):
            parts = getattr(terms, name).detach().unflatten(0, (len(told), -1))
            getattr(summed, name).data += torch.einsum("k,k...->...", told, parts)
    return summed


def apply_last_layer(
    last: nn.Conv3d, terms: nn.Conv3d | None, features: Tensor, condition: Tensor
) -> Tensor:
    """Return the output (B, T, x, y, z) of features (B, C, x, y, z) under conditions (B, K)."""
    output: Tensor = last(features)
    if terms is not None:
        told = told_to(terms, last.out_channels, condition)
        parts = terms(features).unflatten(1, (told.shape[1], -1))
        output = output + torch.einsum("bk,bkoxyz->boxyz", told.to(parts), parts)
    return output
