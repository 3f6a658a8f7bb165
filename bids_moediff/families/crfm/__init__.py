# SPDX-License-Identifier: Apache-2.0
"""CRFM: sharpen an image by a fine reference contrast of the same subject."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bids_moediff.families.protocol import Family, Restorer
from bids_moediff.options import Options

if TYPE_CHECKING:
    from bids_moediff.training.catalogue import StageEntry


def _build(config: Mapping[str, Any]) -> Any:
    from bids_moediff.networks.model_folder import section

    from .network import CRFMConfig, CRFMNetwork

    return CRFMNetwork(CRFMConfig.from_dict(section(config, "crfm")))


def _restorer(network: Any, device: Any, precision: str) -> Restorer:
    from .restorer import CRFMRestorer

    return CRFMRestorer(network, device, precision)


def _base(config: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any]]:
    """Return family and config.json of the model whose output is corrected."""
    from bids_moediff.families import family
    from bids_moediff.networks.model_folder import read_config

    known = read_config(config["crfm"].get("base", "student"))
    return family(known["family"]), known


def _macs(config: Mapping[str, Any], options: Options) -> Mapping[str, float]:
    """Return the convolutions of the base and of :class:`~.network.CRFMNetwork`."""
    shape = config["crfm"]
    channels = shape["channels"]
    own = 27 * channels * (77 + 24 + 2 * shape["blocks"] * channels) / 8
    kind, known = _base(config)
    return {**kind.macs(known, options), "crfm": own}


def _network_words(record: Mapping[str, Any]) -> str:
    # By its progress ("reference") where it ran, by its costs ("crfm") where it is planned.
    ran = set(record.get("NetworksRun", ("crfm",)))
    base = "a convolutional network"
    if "student" in ran:
        base = "a three-dimensional regression network after MoEDiff-SR [@moediffsr]"
    if {"reference", "crfm"} & ran:
        return (
            f"{base} whose output\na second network corrects with the detail of a "
            "reference contrast of the same subject,\nwhere both contrasts agree"
        )
    return f"{base}\n(there was no reference contrast for a second one)"


def _stages() -> "Sequence[StageEntry]":
    from bids_moediff.training.catalogue import StageEntry

    from .training import CRFMRecipe, CRFMStage

    return (StageEntry(CRFMRecipe, CRFMStage, "crfm", "crfm"),)


FAMILY = Family(
    name="crfm",
    build=_build,
    restorer=_restorer,
    macs=_macs,
    # Of the base: families/student; of the correction: docs/speed.md. A GPU was never measured.
    rates={
        "bf16": {"student": 185.0, "crfm": 30.0},
        "fp32": {"student": 38.0, "crfm": 15.0},
        "cuda": {"student": 20_000.0, "crfm": 5_000.0},
    },
    takes_reference=True,
    network_words=_network_words,
    card="A fine reference contrast of the same subject sharpens another image.",
    stages=_stages,
)
