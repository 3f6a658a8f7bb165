# SPDX-License-Identifier: Apache-2.0
"""Where mixed precision must not reach: latents, gates, losses (differences of near equals)."""

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which operations on this device run in the precision of their inputs."""
    return torch.autocast(device.type, enabled=False)


KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.bfloat16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which convolutions run in ``precision`` (a key of ``KINDS``)."""
    return torch.autocast(device.type, KINDS[precision], enabled=precision != "fp32")
