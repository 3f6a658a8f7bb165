# SPDX-License-Identifier: Apache-2.0
"""One volume through one model."""
