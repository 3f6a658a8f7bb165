# SPDX-License-Identifier: Apache-2.0
"""MoEDiff-SR: tokens, gate, three diffusion experts, latents and the sampler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_moediff.errors import WeightsError
from bids_moediff.families.protocol import Family, Restorer
from bids_moediff.options import Options
from bids_moediff.runtime.given_files import read_json

if TYPE_CHECKING:
    from bids_moediff.training.catalogue import StageEntry

# Multiply-accumulates per output voxel and step of the default experts, counted by torch.
EXPERT_MACS, EXPERT_WIDTH = 34_000.0, 32
# As drawn where config.json names none (docs/science.md).
EXPERTS = ("smooth", "cortex", "junction")


def _build(config: Mapping[str, Any]) -> Any:
    from .model import build_moediff

    return build_moediff(config)


def _restorer(network: Any, device: Any, precision: str) -> Restorer:
    from .restorer import MoEDiffRestorer

    return MoEDiffRestorer(network, device, precision)


def _macs(config: Mapping[str, Any], options: Options) -> Mapping[str, float]:
    parts = {}
    if mean := config.get("mean"):
        channels, blocks = mean["channels"], mean["blocks"]
        # Convolutions of networks.mean.MeanNetwork, folded by two.
        parts["mean"] = 27 * (2 * blocks * channels**2 + 16 * channels) / 8
    if experts := config.get("moediff"):
        evaluations = (options.num_steps or 1) * options.planes
        width = experts.get("width", EXPERT_WIDTH)
        parts["experts"] = EXPERT_MACS * (width / EXPERT_WIDTH) ** 2 * evaluations
    return parts


def _experts(config: Mapping[str, Any]) -> Sequence[str]:
    section = config.get("moediff")
    return tuple(section.get("experts", EXPERTS)) if section else ()


def _sampling_experts(folder: Path) -> Sequence[str]:
    path = folder / "experts.json"
    if not path.is_file():
        return ()
    try:
        return tuple(read_json(path)["network"].get("experts", EXPERTS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error


def _network_words(record: Mapping[str, Any]) -> str:
    ran = record.get("NetworksRun", ("mean", "experts"))
    mixture = (
        "a mixture of three diffusion experts under a windowed-attention gate, after MoEDiff-SR\n"
        "[@moediffsr; @swin]"
    )
    if "mean" not in ran:
        return mixture
    regression = "a three-dimensional regression network"
    if "experts" in ran:
        return f"{regression}, whose result was refined by\n{mixture}"
    return f"{regression}, the first part of a model after MoEDiff-SR\n[@moediffsr]"


def _stages() -> "Sequence[StageEntry]":
    from bids_moediff.families.told_tail import MeanToldTailRecipe, ToldTailStage
    from bids_moediff.training.catalogue import StageEntry

    from .training.experts import ExpertsRecipe, ExpertsStage
    from .training.gate import GateRecipe, GateStage
    from .training.mean import MeanRecipe, MeanStage

    return (
        StageEntry(MeanRecipe, MeanStage, "moediff", "mean", begins_others=True),
        StageEntry(ExpertsRecipe, ExpertsStage, "moediff", "moediff", completes=True),
        # The gate is taught in the whole mixture, which takes the place of the experts' run.
        StageEntry(GateRecipe, GateStage, "moediff", "moediff", completes=True, on_top=True),
        StageEntry(MeanToldTailRecipe, ToldTailStage, "moediff", "mean", completes=True),
    )


def _complete(network: Any, folder: Path, device: Any) -> None:
    from .model import add_experts

    add_experts(network, folder, device)


def _compose(parts: Mapping[str, Any]) -> Any:
    from .model import MoEDiffModel

    return MoEDiffModel(parts.get("mean"), parts.get("moediff"), parts.get("autoencoder"))


FAMILY = Family(
    name="moediff",
    build=_build,
    restorer=_restorer,
    macs=_macs,
    # docs/speed.md; a GPU was never measured.
    rates={
        "bf16": {"mean": 220.0, "experts": 63.0},
        "fp32": {"mean": 60.0, "experts": 18.0},
        "cuda": {"mean": 20_000.0, "experts": 20_000.0},
    },
    network_words=_network_words,
    card="MoEDiff-SR: a 3-D regression mean, refined by three diffusion experts under a gate that "
    "looks at multi-scale patch tokens.",
    experts=_experts,
    sampling_experts=_sampling_experts,
    refits_in_plane=True,
    stages=_stages,
    compose=_compose,
    complete=_complete,
)
