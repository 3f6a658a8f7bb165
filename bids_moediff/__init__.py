# SPDX-License-Identifier: Apache-2.0
"""bids_moediff: a BIDS App that super-resolves brain MRI without making things up."""

__version__ = "0.1.0"
