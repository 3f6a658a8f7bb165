# SPDX-License-Identifier: Apache-2.0
"""N-SMoE: represent an image by steered kernels over its interpolation, at any voxel size."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bids_moediff.families.protocol import Family, Restorer
from bids_moediff.options import Options

if TYPE_CHECKING:
    from bids_moediff.training.catalogue import StageEntry


def _build(config: Mapping[str, Any]) -> Any:
    from bids_moediff.networks.model_folder import section

    from .features import build_network
    from .network import NSMoEConfig

    return build_network(NSMoEConfig.from_dict(section(config, "nsmoe")))


def _restorer(network: Any, device: Any, precision: str) -> Restorer:
    from .restorer import NSMoERestorer

    return NSMoERestorer(network, device, precision)


def _macs(config: Mapping[str, Any], options: Options) -> Mapping[str, float]:
    """Convolutions of the encoder, and the matrix products of rendering."""
    shape = config["nsmoe"]
    channels, ranks, kernels = shape["channels"], shape["ranks"], shape["kernels"]
    cores = 27 * (ranks[0] * ranks[1] + ranks[2] * ranks[3])
    blocks = shape["blocks"] * (cores + channels * sum(ranks))
    head = 27 * channels * shape["hidden"] + 14 * shape["hidden"] * kernels
    return {
        "encoder": (27 * 8 * channels + blocks + head) / 8,
        # Ten terms of the shares and four of the values, in each of the eight blocks of a voxel.
        "kernels": 8.0 * 14 * kernels,
    }


def _stages() -> "Sequence[StageEntry]":
    from bids_moediff.training.catalogue import StageEntry

    from .training import NSMoERecipe, NSMoEStage

    return (StageEntry(NSMoERecipe, NSMoEStage, "nsmoe", "nsmoe"),)


FAMILY = Family(
    name="nsmoe",
    build=_build,
    restorer=_restorer,
    macs=_macs,
    # docs/speed.md; a GPU was never measured.
    rates={
        "bf16": {"encoder": 160.0, "kernels": 0.4},
        "fp32": {"encoder": 38.0, "kernels": 0.4},
        "cuda": {"encoder": 20_000.0, "kernels": 100.0},
    },
    network_words=lambda record: (
        "a convolutional network that describes the detail by steered kernels, rendered at the\n"
        "output voxel size, after N-SMoE"
    ),
    card="Steered kernels over the interpolated scan: an encoder describes each block by a few "
    "smooth experts with soft edges between them, which are rendered at any voxel size.",
    stages=_stages,
)
