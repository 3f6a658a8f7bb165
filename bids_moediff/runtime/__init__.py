# SPDX-License-Identifier: Apache-2.0
"""Describe the machine: processors, memory, devices, atomic writes; no BIDS."""
