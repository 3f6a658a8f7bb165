# SPDX-License-Identifier: Apache-2.0
"""Read and write BIDS: discovery of the input, names, data set files, sidecars."""
