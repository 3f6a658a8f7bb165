# SPDX-License-Identifier: Apache-2.0
"""How the student is trained."""
