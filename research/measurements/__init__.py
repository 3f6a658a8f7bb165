# SPDX-License-Identifier: Apache-2.0
"""Measurements, each run by ``python -m``."""
