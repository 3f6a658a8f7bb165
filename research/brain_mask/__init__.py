# SPDX-License-Identifier: Apache-2.0
"""Training of the brain mask's network, and its check."""
