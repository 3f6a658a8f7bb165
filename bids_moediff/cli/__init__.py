# SPDX-License-Identifier: Apache-2.0
"""The console commands. Nothing heavy is imported before the arguments are parsed."""
