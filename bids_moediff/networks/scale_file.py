# SPDX-License-Identifier: Apache-2.0
"""The scale head of a model: scale.json and scale.safetensors in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bids_moediff.networks.beside import read_beside
from bids_moediff.networks.scale import ScaleConfig, ScaleNetwork

NAME = "scale"


@dataclass(frozen=True)
class ScaleHead:
    """A network that knows the size of a model's errors, and how it was calibrated.

    Parameters
    ----------
    network
        In evaluation mode.
    config
        Content of scale.json: the network's settings, checksums and the calibration.
    """

    network: ScaleNetwork
    config: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return str(self.config["sha256"])

    @property
    def is_expected_error(self) -> bool:
        """Whether its map is the model's expected error."""
        return bool(self.config.get("expected_error", False))

    @property
    def level_share(self) -> float:
        """How much of the logarithm of the scale's level over an image the added detail decides.

        The head knows where errors are large; how large they are on an image, it and the detail
        that was added (calibrated) tell independently, and the mean of both is more certain.
        """
        return float(self.config.get("level_share", 0.0))

    def fits(self, model_sha256: str) -> bool:
        """Return whether the calibration was measured with these weights of the model."""
        return self.config.get("model_sha256") in (None, model_sha256)

    def factor(self, ratios: Sequence[float]) -> float:
        """Return what the scale is multiplied with, for measured over output voxel size by axis.

        One number was measured for thick slices and one for isotropic voxels; in between their
        logarithms are interpolated by how coarse the second axis is.
        """
        factors = self.config.get("factors", {})
        _, second, first = sorted(math.log(max(ratio, 1.0)) for ratio in ratios)
        share = second / first if first > 0 else 0.0
        slices, isotropic = (math.log(factors.get(name, 1.0)) for name in ("slices", "isotropic"))
        return math.exp((1 - share) * slices + share * isotropic)

    def record(self) -> dict[str, Any]:
        """Return what sidecars say of it."""
        told = {"ScaleHeadSHA256": self.sha256, "ScaleHeadFactors": self.config.get("factors")}
        if heads := self.config.get("heads"):
            told["ScaleHeadCalibratedOn"] = list(heads)
        if found := self.config.get("variance_ratio"):
            told["ScaleHeadVarianceRatio"] = found
        return {key: value for key, value in told.items() if value is not None}


def read_scale(folder: Path, device: str | torch.device = "cpu") -> ScaleHead | None:
    """Read the scale head of a model folder; None where there is none.

    Raises
    ------
    WeightsError
        for damaged files, and for weights that do not match their checksum or settings.
    """
    found = read_beside(folder, NAME, _build, device)
    return None if found is None else ScaleHead(*found)


def _build(settings: Mapping[str, Any]) -> ScaleNetwork:
    return ScaleNetwork(ScaleConfig.from_dict(settings))
