# SPDX-License-Identifier: Apache-2.0
"""Networks only: tensors in, tensors out. Nothing here knows of volumes on disk."""
