# SPDX-License-Identifier: Apache-2.0
"""Where mixed precision must not reach: latents, gates, losses (differences of near equals)."""

import torch


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which operations on this device run in the precision of their inputs."""
    return torch.autocast(device.type, enabled=False)
