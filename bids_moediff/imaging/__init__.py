# SPDX-License-Identifier: Apache-2.0
"""Work on volumes: grid, acquisition, interpolation, spectrum, noise, masks, metrics; no BIDS."""
