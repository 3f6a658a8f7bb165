# SPDX-License-Identifier: Apache-2.0
"""Training and judging the experts that sample on volumes."""
