# SPDX-License-Identifier: Apache-2.0
"""CRFM: a fine reference contrast of the same head sharpens a coarse one.

The network can be built and trained; no engine runs it yet, so its weights are refused.
"""

from collections.abc import Mapping
from typing import Any

from bids_moediff.families.protocol import Family


def _build(config: Mapping[str, Any]) -> Any:
    from bids_moediff.networks.model_folder import section

    from .network import CRFMConfig, CRFMNetwork

    return CRFMNetwork(CRFMConfig.from_dict(section(config, "crfm")))


FAMILY = Family(
    name="crfm",
    build=_build,
    restorer=None,
    macs=lambda config, options: {},
    rates={},
    takes_reference=True,
    network_words=lambda record: (
        "a network that a fine reference contrast of the same head guides"
    ),
    card="A fine reference contrast of the same head sharpens a coarse one.",
)
