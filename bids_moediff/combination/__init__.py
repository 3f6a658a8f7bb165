# SPDX-License-Identifier: Apache-2.0
"""Several scans of one subject become one volume that explains the voxels of each."""
