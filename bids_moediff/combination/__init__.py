# SPDX-License-Identifier: Apache-2.0
"""Combine several scans of one subject into one volume that explains the voxels of each."""
