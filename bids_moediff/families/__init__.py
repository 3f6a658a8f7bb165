# SPDX-License-Identifier: Apache-2.0
"""The model families, and what runs, chooses and prices any of them."""
