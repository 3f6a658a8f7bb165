# SPDX-License-Identifier: Apache-2.0
"""What a person types. Nothing heavy is imported before the arguments are parsed."""
