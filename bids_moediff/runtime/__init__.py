# SPDX-License-Identifier: Apache-2.0
"""The machine: processors, memory, devices, atomic writes. Nothing of BIDS."""
