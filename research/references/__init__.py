# SPDX-License-Identifier: Apache-2.0
"""References: training pack and measurements of the CRFM family."""
