# SPDX-License-Identifier: Apache-2.0
"""Restore one volume with one model."""
