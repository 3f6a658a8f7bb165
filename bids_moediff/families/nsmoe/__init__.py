# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: blocks described by steered kernels, rendered at any voxel size.

The network can be built and trained; no engine runs it yet, so its weights are refused.
"""

from collections.abc import Mapping
from typing import Any

from bids_moediff.families.protocol import Family


def _build(config: Mapping[str, Any]) -> Any:
    from bids_moediff.networks.model_folder import section

    from .network import NSMoEConfig, NSMoENetwork

    return NSMoENetwork(NSMoEConfig.from_dict(section(config, "nsmoe")))


FAMILY = Family(
    name="nsmoe",
    build=_build,
    restorer=None,
    macs=lambda config, options: {},
    rates={},
    network_words=lambda record: "steered kernels rendered at the output voxel size",
    card="Blocks described by steered kernels, rendered at any voxel size.",
)
