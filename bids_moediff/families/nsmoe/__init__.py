# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: blocks described by steered kernels, rendered at any voxel size."""
