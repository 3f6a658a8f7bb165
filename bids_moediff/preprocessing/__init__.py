# SPDX-License-Identifier: Apache-2.0
"""Prepare an image for the network: conform, unwarp, brain mask, bias field, measured voxels."""
