# SPDX-License-Identifier: Apache-2.0
"""Tests of the lab: ``python -m pytest research/tests``."""
