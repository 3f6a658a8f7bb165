# SPDX-License-Identifier: Apache-2.0
"""How the parts of MoEDiff-SR are trained."""
