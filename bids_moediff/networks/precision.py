# SPDX-License-Identifier: Apache-2.0
"""Set the arithmetic of networks, and protect computations from mixed precision.

These are latents, gates and losses: differences of nearly equal numbers.
"""

import torch

from bids_moediff.runtime.resources import has_bfloat16


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context in which operations on this device use the precision of their inputs."""
    return torch.autocast(device.type, enabled=False)


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"  # residual blocks of the regression network (networks/int8.py)


def floating(precision: str) -> str:
    """Return the key of ``PRECISIONS`` for operations that do not run in integers."""
    if precision == INT8:
        return "bf16" if has_bfloat16() else "fp32"
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which convolutions run in ``precision`` (``PRECISIONS`` or ``int8``)."""
    kind = floating(precision)
    enabled = kind != "fp32"
    return torch.autocast(device.type, PRECISIONS[kind] if enabled else None, enabled=enabled)
