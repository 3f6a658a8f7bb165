# SPDX-License-Identifier: Apache-2.0
"""Volumes of the sizes that networks take."""

import torch


def pad_to_multiple(volume: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the last planes of (X, Y, Z) until each side is a multiple of `multiple`."""
    padding: list[int] = []
    for size in reversed(volume.shape):
        padding += [0, -size % multiple]
    if not any(padding):
        return volume
    return torch.nn.functional.pad(volume[None, None], padding, mode="replicate")[0, 0]
