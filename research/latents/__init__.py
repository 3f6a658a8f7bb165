# SPDX-License-Identifier: Apache-2.0
"""Learned latents for the experts: autoencoders that no shipped model uses."""
