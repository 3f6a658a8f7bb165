# SPDX-License-Identifier: Apache-2.0
"""Development heads: training-split heads kept out of training to steer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bids_moediff.engine.acquisition import Acquisition, Operator
from bids_moediff.engine.grid import Triple, covering_shape
from bids_moediff.engine.interpolation import initial_estimate, interpolate

from .heads import Head

ONES = (1.0, 1.0, 1.0)
# Name, voxel ratio, slice profile.
PROTOCOLS: tuple[tuple[str, Triple, str], ...] = (
    ("x2 isotropic", (2.0, 2.0, 2.0), "kspace"),
    ("x2 isotropic gaussian", (2.0, 2.0, 2.0), "gaussian"),
    ("x4 slices", (1.0, 1.0, 4.0), "gaussian"),
    ("x2 slices", (1.0, 1.0, 2.0), "gaussian"),
    ("x1.5 isotropic", (1.5, 1.5, 1.5), "kspace"),
)


@dataclass(frozen=True)
class Case:
    """One development head under one protocol; PSNR in dB inside the foreground."""

    head: str
    protocol: str
    start: torch.Tensor
    truth: torch.Tensor
    mask: torch.Tensor
    condition: torch.Tensor
    operator: Operator
    measured: torch.Tensor
    cubic_psnr: float

    def psnr(self, image: torch.Tensor) -> float:
        """PSNR of `image` (X, Y, Z) in the mask, range 1 (99.5th percentile of the head)."""
        error = (image - self.truth)[self.mask]
        return -10 * float(torch.log10(error.double().square().mean()))


def make_cases(heads: Sequence[Head], block: int = 112) -> list[Case]:
    """Degrade the central block of each head under each protocol."""
    cases = []
    for head in heads:
        corner = [max(0, (size - block) // 2) for size in head.volume.shape]
        cut = tuple(slice(c, c + block) for c in corner)
        image = head.volume[cut].astype(np.float32) / 200.0
        solid = ndimage.uniform_filter(image, 5) > 0.06
        for name, ratios, profile in PROTOCOLS:
            coarse = tuple(int(s / r + 1e-6) for s, r in zip(image.shape, ratios, strict=True))
            shape = covering_shape(coarse, ratios, ONES)
            shape = tuple(size - size % 2 for size in shape)  # type: ignore[assignment]
            acquisition = Acquisition.uniform(profile)
            truth = torch.from_numpy(image[: shape[0], : shape[1], : shape[2]])
            mask = torch.from_numpy(solid[: shape[0], : shape[1], : shape[2]])
            operator = Operator.between(shape, ONES, coarse, ratios, acquisition)  # type: ignore[arg-type]
            measured = operator.forward(truth)
            case = Case(
                head.name,
                name,
                initial_estimate(measured, operator, ratios, ONES),
                truth,
                mask,
                torch.tensor(acquisition.condition(ONES, ratios)),
                operator,
                measured,
                0.0,
            )
            cubic = case.psnr(interpolate(measured, ratios, shape, ONES))
            cases.append(Case(**{**case.__dict__, "cubic_psnr": cubic}))
    return cases


def gains(
    cases: Sequence[Case], restore: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> dict[str, dict[str, float]]:
    """Mean gain in dB over cubic and over consistent cubic, per protocol.

    `restore(start (X, Y, Z), condition (6,))` returns the image; it is projected onto the data.
    """
    table: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        result = case.operator.project(restore(case.start, case.condition), case.measured)
        value = case.psnr(result)
        table.setdefault(case.protocol, []).append(
            (value - case.cubic_psnr, value - case.psnr(case.start))
        )
    return {
        protocol: {
            "over_cubic": round(float(np.mean([pair[0] for pair in pairs])), 3),
            "over_consistent": round(float(np.mean([pair[1] for pair in pairs])), 3),
            "worst_over_consistent": round(float(min(pair[1] for pair in pairs)), 3),
        }
        for protocol, pairs in table.items()
    }
