# SPDX-License-Identifier: Apache-2.0
"""A model of several networks, each with its own section of config.json."""

from torch import nn


class Composite(nn.Module):
    """A network whose children are its parts, by the names of their sections; or None."""
