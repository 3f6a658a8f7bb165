# SPDX-License-Identifier: Apache-2.0
"""Quality figures, checks of the input, distance from the training images."""
