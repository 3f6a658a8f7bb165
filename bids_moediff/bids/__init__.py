# SPDX-License-Identifier: Apache-2.0
"""What is on disk: discovery of the input, names, atomic writes, data set files, sidecars."""
