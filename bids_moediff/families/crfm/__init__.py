# SPDX-License-Identifier: Apache-2.0
"""CRFM: a fine reference contrast of the same head sharpens a coarse one."""
