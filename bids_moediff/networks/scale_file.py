# SPDX-License-Identifier: Apache-2.0
"""Read the scale head of a model: scale.json and scale.safetensors in its folder."""

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
    """A network that predicts the size of a model's errors, with its calibration.

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
        """Whether its map is the expected error of the model."""
        return bool(self.config.get("expected_error", False))

    @property
    def level_share(self) -> float:
        """Share of the added detail in the logarithm of the mean error over an image.

        The head predicts where errors are large. Their mean size over an image is estimated by the
        head and by the added detail (calibrated) independently, and the mean of both is more
        certain.
        """
        return float(self.config.get("level_share", 0.0))

    def fits(self, model_sha256: str) -> bool:
        """Return True if the calibration was measured with these weights of the model."""
        return self.config.get("model_sha256") in (None, model_sha256)

    def factor(self, ratios: Sequence[float]) -> float:
        """Return the factor on the scale, for measured over output voxel size by axis.

        One factor was measured for thick slices and one for isotropic voxels. Between them,
        logarithms are interpolated by the ratio of the second axis.
        """
        factors = self.config.get("factors", {})
        _, second, first = sorted(math.log(max(ratio, 1.0)) for ratio in ratios)
        share = second / first if first > 0 else 0.0
        slices, isotropic = (math.log(factors.get(name, 1.0)) for name in ("slices", "isotropic"))
        return math.exp((1 - share) * slices + share * isotropic)

    def record(self) -> dict[str, Any]:
        """Return its statements for the sidecar."""
        told = {"ScaleHeadSHA256": self.sha256, "ScaleHeadFactors": self.config.get("factors")}
        if heads := self.config.get("heads"):
            told["ScaleHeadCalibratedOn"] = list(heads)
        if found := self.config.get("variance_ratio"):
            told["ScaleHeadVarianceRatio"] = found
        return {key: value for key, value in told.items() if value is not None}


def read_scale(folder: Path, device: str | torch.device = "cpu") -> ScaleHead | None:
    """Read the scale head of a model folder; None if there is none.

    Raises
    ------
    WeightsError
        For damaged files, and for weights that do not match their checksum or settings.
    """
    found = read_beside(folder, NAME, _build, device)
    return None if found is None else ScaleHead(*found)


def _build(settings: Mapping[str, Any]) -> ScaleNetwork:
    return ScaleNetwork(ScaleConfig.from_dict(settings))
