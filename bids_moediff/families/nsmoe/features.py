# SPDX-License-Identifier: Apache-2.0
"""The regression network whose features N-SMoE reads."""

from dataclasses import replace

from bids_moediff.errors import WeightsError
from bids_moediff.families.load import load_model
from bids_moediff.networks.factorised import FactorisedTrunk

from .network import NSMoEConfig, NSMoENetwork


def build_network(config: NSMoEConfig) -> NSMoENetwork:
    """Return a network with a fresh head, on the features that its configuration names.

    Raises
    ------
    WeightsError
        if the model that is named is missing, or is not the one that the head was made for.
    """
    if not config.features:
        return NSMoENetwork(config)
    model = load_model(config.features)
    if config.features_sha256 not in ("", model.sha256):
        raise WeightsError(
            f"these kernels were made for other weights of {config.features} (SHA-256 "
            f"{config.features_sha256[:8]}, not {model.sha256[:8]}): use the version of this "
            "package that they came with, or train them again."
        )
    trunk = FactorisedTrunk(config.channels, config.blocks, config.ranks)
    trunk.take_over(model.network.state_dict())
    trunk.eval().requires_grad_(False)
    return NSMoENetwork(replace(config, features_sha256=model.sha256), trunk)
