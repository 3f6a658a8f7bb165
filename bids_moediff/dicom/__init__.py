# SPDX-License-Identifier: Apache-2.0
"""Write results as DICOM series, for the archive of the original scan."""
