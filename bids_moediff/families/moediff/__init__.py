# SPDX-License-Identifier: Apache-2.0
"""MoEDiff-SR: tokens, gate, three diffusion experts, latents and the sampler."""
