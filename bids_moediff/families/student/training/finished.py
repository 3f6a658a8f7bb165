# SPDX-License-Identifier: Apache-2.0
"""Finished networks that a stage goes on with, as ``--init`` names them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bids_moediff.errors import UsageError
from bids_moediff.families.load import load_model
from bids_moediff.families.moediff.model import MoEDiffModel
from bids_moediff.families.student.network import StudentNetwork
from bids_moediff.networks.mean import MeanNetwork
from bids_moediff.networks.model_folder import CONFIG_NAME
from bids_moediff.training.stage import Init, load_init

Finished = MeanNetwork | StudentNetwork


def init_paths(init: Init) -> list[Path]:
    """What stands behind ``--init``, as a list."""
    return [init] if isinstance(init, Path) else list(init or ())


def finished_networks(
    paths: Sequence[Path], *, student: bool
) -> tuple[Finished | None, MeanNetwork | None]:
    """The last student (or, without `student`, mean) among models and runs, and the last mean.

    The mean is a copy: it may be the very network that is to be changed.
    """
    kind = StudentNetwork if student else MeanNetwork
    taught: Finished | None = None
    mean: MeanNetwork | None = None
    for path in paths:
        run = path.is_dir() and not (path / CONFIG_NAME).is_file()
        network: Any = load_init(path) if run else load_model(path).network
        network = network.mean if isinstance(network, MoEDiffModel) else network
        if isinstance(network, kind):
            taught = network
        if isinstance(network, MeanNetwork):
            mean = network
    return taught, copy.deepcopy(mean)


def check_patch(patch: int, network: Finished) -> None:
    """UsageError if patches do not fit the folding of a network."""
    if patch % network.config.multiple:
        raise UsageError(f"patch must be a multiple of {network.config.multiple}.")
