# SPDX-License-Identifier: Apache-2.0
"""The student, a compressed regression network: one network, one step, any voxel ratio."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bids_moediff.families.protocol import Family, Restorer
from bids_moediff.options import Options

if TYPE_CHECKING:
    from bids_moediff.training.catalogue import StageEntry


def _build(config: Mapping[str, Any]) -> Any:
    from bids_moediff.networks.model_folder import section

    from .network import StudentConfig, StudentNetwork

    return StudentNetwork(StudentConfig.from_dict(section(config, "student")))


def _restorer(network: Any, device: Any, precision: str) -> Restorer:
    from .restorer import StudentRestorer

    return StudentRestorer(network, device, precision)


def _macs(config: Mapping[str, Any], options: Options) -> Mapping[str, float]:
    """Return the convolutions of :class:`~.network.StudentNetwork`."""
    shape = config["student"]
    channels, ranks = shape["channels"], shape["ranks"]
    cores = 27 * (ranks[0] * ranks[1] + ranks[2] * ranks[3])
    blocks = shape["blocks"] * (cores + channels * sum(ranks))
    return {"student": (27 * 16 * channels + blocks) / 8}


def _stages() -> "Sequence[StageEntry]":
    from bids_moediff.families.told_tail import StudentToldTailRecipe, ToldTailStage
    from bids_moediff.training.catalogue import StageEntry

    from .training.last_layer import TailRecipe, TailStage
    from .training.student import StudentRecipe, StudentStage

    return (
        StageEntry(StudentRecipe, StudentStage, "student", "student"),
        StageEntry(TailRecipe, TailStage, "student", "student"),
        StageEntry(StudentToldTailRecipe, ToldTailStage, "student", "student"),
    )


FAMILY = Family(
    name="student",
    build=_build,
    restorer=_restorer,
    macs=_macs,
    # docs/speed.md; a GPU was never measured.
    rates={
        "bf16": {"student": 185.0},
        "fp32": {"student": 38.0},
        "cuda": {"student": 20_000.0},
    },
    network_words=lambda record: (
        "a three-dimensional regression network that restores the volume in one step,\n"
        "compressed from the regression network of a larger model after MoEDiff-SR [@moediffsr]"
    ),
    card="One 3-D network, compressed from the regression network of MoEDiff-SR, that restores "
    "any voxel size in one step.",
    refits_in_plane=True,
    stages=_stages,
)
