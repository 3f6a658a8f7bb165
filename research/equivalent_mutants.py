# SPDX-License-Identifier: Apache-2.0
"""Faults of :mod:`research.mutation` that change nothing a test could see, and why."""

# The module and the changed lines, without leading spaces, as `Mutant.key` writes them.
EQUIVALENT: dict[str, str] = {}
