# SPDX-License-Identifier: Apache-2.0
"""Bound the error for most heads by a factor on the map of the expected error.

The factor is split-conformal. Each calibration head gives one score; the factor is the quantile
that the score of a further head of the same kind exceeds with a given probability at most.

References
----------
Vovk, Gammerman and Shafer, Algorithmic learning in a random world, Springer 2005; Angelopoulos and
Bates, A gentle introduction to conformal prediction, arXiv:2107.07511.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Share of a head's brain voxels, and share of heads.
VOXELS, HEADS = 0.95, 0.95
MAP, SAMPLES = "map", "samples"
CLAIM = (
    "In {heads:.0%} of heads like these, {voxels:.0%} of brain voxels lie within {factor:g} times "
    "the map."
)


def score(error: np.ndarray, deviation: np.ndarray) -> float:
    """Return the smallest factor of a deviation that bounds 95 % of the errors.

    Parameters
    ----------
    error, deviation
        Error and its expected size at n voxels (n,), in the same units.
    """
    ratio = np.abs(error) / np.maximum(deviation, 1e-12)
    return float(np.quantile(ratio, VOXELS, method="higher"))


def conformal_factor(scores: Sequence[float]) -> float:
    """Return the factor that the score of a further head exceeds in at most 5 % of cases.

    Parameters
    ----------
    scores
        One for each calibration head, exchangeable with the further one.

    Raises
    ------
    ValueError
        For fewer than 19 heads: they give no bound at this level.
    """
    rank = math.ceil(round((len(scores) + 1) * HEADS, 9))
    if rank > len(scores):
        raise ValueError(f"{len(scores)} heads are too few for a bound on {HEADS:.0%} of heads")
    return sorted(scores)[rank - 1]


@dataclass(frozen=True)
class ErrorBound:
    """Factors of a model, as its ``bounds.json`` holds them.

    Parameters
    ----------
    factors
        One for each kind of map: ``map`` (expected error) and ``samples`` (deviation over
        samples).
    samples
        Number of samples that the second factor was measured with; fewer samples get no bound.
    heads
        Number of calibration heads.
    weights
        Checksums of everything that the map depends on.
    """

    factors: Mapping[str, float]
    samples: int
    heads: int
    weights: Mapping[str, Any]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ErrorBound":
        """Read the content of ``bounds.json``; further keys are ignored."""
        factors = {kind: float(factor) for kind, factor in dict(values["factors"]).items()}
        if not factors or not all(
            factor > 0 and math.isfinite(factor) for factor in factors.values()
        ):
            raise ValueError("a factor is not a positive number")
        return cls(
            factors, int(values.get("samples", 0)), int(values["heads"]), dict(values["weights"])
        )

    def record(self, samples: int, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Return the statements about the bound for a sidecar.

        Parameters
        ----------
        samples
            Number of samples behind the map; 0 for the expected error.
        weights
            Checksums of the weights behind the map.

        Returns
        -------
        dict
            Keys of the sidecar; empty if the map was made with other weights.
        """
        kind = SAMPLES if samples else MAP
        if kind not in self.factors or samples < (self.samples if samples else 0):
            return {}
        if dict(weights) != dict(self.weights):
            return {}
        factor = self.factors[kind]
        return {
            "ExpectedErrorBoundFactor": factor,
            "ExpectedErrorBoundHeads": self.heads,
            "ExpectedErrorBound": CLAIM.format(heads=HEADS, voxels=VOXELS, factor=factor),
        }
