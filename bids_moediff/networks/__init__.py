# SPDX-License-Identifier: Apache-2.0
"""What the model families share: regression network, streaming, convolutions, model folders."""
