# SPDX-License-Identifier: Apache-2.0
"""Results as DICOM series, for the archive that the scan came from."""
