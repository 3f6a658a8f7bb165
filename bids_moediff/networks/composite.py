# SPDX-License-Identifier: Apache-2.0
"""A model of several networks, each with a section of config.json of its own."""

from torch import nn


class Composite(nn.Module):
    """Its children are its parts, by the names of their sections; absent ones are None."""
