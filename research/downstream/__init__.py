# SPDX-License-Identifier: Apache-2.0
"""Judge restored images by the tools that users run on them."""
