# SPDX-License-Identifier: Apache-2.0
"""Compute quality figures, check the input, and measure its distance from the training images."""
