# SPDX-License-Identifier: Apache-2.0
"""Runs a graph: plugin, progress, outcomes, working directory, group level."""
