# SPDX-License-Identifier: Apache-2.0
"""Lesions taught to a finished network."""
