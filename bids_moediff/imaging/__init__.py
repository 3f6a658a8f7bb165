# SPDX-License-Identifier: Apache-2.0
"""Volumes: grid, acquisition, interpolation, spectrum, noise, masks, metrics; no BIDS."""
