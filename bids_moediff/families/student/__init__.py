# SPDX-License-Identifier: Apache-2.0
"""The distilled student: one network, one step, any voxel ratio."""
