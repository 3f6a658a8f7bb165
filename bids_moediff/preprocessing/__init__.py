# SPDX-License-Identifier: Apache-2.0
"""Before the network: conform, unwarp, brain mask, bias field, measured voxels."""
