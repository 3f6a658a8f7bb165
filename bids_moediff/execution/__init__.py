# SPDX-License-Identifier: Apache-2.0
"""Run a graph: plugin, progress, outcomes, working directory, group level."""
