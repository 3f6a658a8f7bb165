# SPDX-License-Identifier: Apache-2.0
"""Load the regression network whose features N-SMoE reads."""

from dataclasses import replace
from functools import partial

from bids_moediff.errors import WeightsError
from bids_moediff.families.load import load_model
from bids_moediff.networks.factorised import FactorisedTrunk

from .network import NSMoEConfig, NSMoENetwork


def build_network(config: NSMoEConfig) -> NSMoENetwork:
    """Return a network with a fresh head, on the features that its configuration names."""
    if not config.features:
        return NSMoENetwork(config)
    return NSMoENetwork(config, partial(shared_trunk, config))


def shared_trunk(config: NSMoEConfig) -> FactorisedTrunk:
    """Return the first layers of the model that a configuration names, frozen.

    Raises
    ------
    WeightsError
        If the model is missing, or is not the one that the head was made for.
    """
    model = load_model(config.features)
    if config.features_sha256 not in ("", model.sha256):
        raise WeightsError(
            f"these kernels were made for other weights of {config.features} (SHA-256 "
            f"{config.features_sha256[:8]}, not {model.sha256[:8]}): use the version of this "
            "package that they came with, or train them again."
        )
    trunk = FactorisedTrunk(config.channels, config.blocks, config.ranks)
    try:
        trunk.take_over(model.network.state_dict())
    except ValueError as error:
        raise WeightsError(f"the features of {config.features} do not fit: {error}") from error
    return trunk.eval().requires_grad_(False)


def with_checksum(config: NSMoEConfig) -> NSMoEConfig:
    """Return a configuration with the checksum of the weights of its features."""
    if not config.features:
        return config
    return replace(config, features_sha256=load_model(config.features).sha256)
