# SPDX-License-Identifier: Apache-2.0
"""Networks that the model families share: regression network, streaming, model folders."""
