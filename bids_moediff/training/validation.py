# SPDX-License-Identifier: Apache-2.0
"""Degrade validation heads, which are kept out of training, by fixed protocols, to steer it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bids_moediff.errors import UsageError
from bids_moediff.imaging.acquisition import Acquisition, Operator
from bids_moediff.imaging.interpolation import initial_estimate, interpolate
from bids_moediff.imaging.protocols import ACQUISITIONS
from bids_moediff.imaging.simulation import ONES, Grids, measure

from .pack import BRIGHT, TrainingHead
from .tensor_filters import box_mean

PAIRED = "paired scans"


@dataclass(frozen=True)
class Case:
    """One validation head under one protocol; PSNR in dB inside the foreground.

    Of a measured pair the operator is not known exactly, so nothing is projected.
    """

    head: str
    protocol: str
    start: torch.Tensor
    truth: torch.Tensor
    mask: torch.Tensor
    condition: torch.Tensor
    cubic: torch.Tensor
    operator: Operator | None = None
    measured: torch.Tensor | None = None
    reference: torch.Tensor | None = None

    def psnr(self, image: torch.Tensor) -> float:
        """PSNR of `image` (X, Y, Z) in the mask, range 1 (99.5th percentile of the head)."""
        error = (image - self.truth)[self.mask]
        return -10 * float(torch.log10(error.double().square().mean()))

    def project(self, image: torch.Tensor) -> torch.Tensor:
        """The image made consistent with the measurement."""
        if self.operator is None or self.measured is None:
            return image
        return self.operator.project(image, self.measured)


def _even(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Fine volume in units of the range, with even sizes."""
    cut = tuple(slice(0, size - size % 2) for size in array.shape)
    return torch.from_numpy(np.ascontiguousarray(array[cut])).to(device).float() / BRIGHT


def _paired_case(head: TrainingHead, cut: tuple[slice, ...], device: torch.device) -> Case:
    assert head.start is not None and head.condition is not None
    truth, start = _even(head.volume[cut], device), _even(head.start[cut], device)
    condition = torch.tensor(head.condition)
    return Case(head.name, PAIRED, start, truth, box_mean(truth, 5) > 0.06, condition, start)


def _protocol_case(
    head: TrainingHead, image: torch.Tensor, name: str, reference: torch.Tensor | None
) -> Case:
    ratios, profile = ACQUISITIONS[name]
    acquisition = Acquisition.uniform(profile)
    grids = replace(Grids.inside(image.shape, ONES, ratios, multiple=2), device=image.device)
    made = measure(image, grids, acquisition)
    x, y, z = shape = grids.fine_shape
    return Case(
        head.name,
        name,
        initial_estimate(made.coarse, made.operator, ratios, ONES),
        made.truth,
        (box_mean(image, 5) > 0.06)[:x, :y, :z],
        torch.tensor(acquisition.condition(ONES, ratios)),
        interpolate(made.coarse, ratios, shape, ONES),
        made.operator,
        made.coarse,
        None if reference is None else reference[:x, :y, :z],
    )


def make_cases(
    heads: Sequence[TrainingHead],
    block: int = 112,
    device: torch.device | str = "cpu",
    names: Sequence[str] = tuple(ACQUISITIONS),
) -> list[Case]:
    """Degrade the central block of each head under each protocol; pairs are taken as they are.

    UsageError if none of the heads is a real one.
    """
    cases = []
    for head in heads:
        if head.kind == "labels":
            continue
        corner = [max(0, (size - block) // 2) for size in head.volume.shape]
        cut = tuple(slice(c, c + block) for c in corner)
        if head.kind == "pair":
            cases.append(_paired_case(head, cut, torch.device(device)))
            continue
        image, reference = (
            None
            if one is None
            else torch.from_numpy(np.ascontiguousarray(one[cut])).to(device).float() / BRIGHT
            for one in (head.volume, head.reference)
        )
        assert image is not None
        cases += [_protocol_case(head, image, name, reference) for name in names]
    if not cases:
        raise UsageError("No real head is kept out for validation, only label maps.")
    return cases


Restore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gains(
    cases: Sequence[Case],
    restore: Restore,
    starts: Sequence[torch.Tensor] | None = None,
    over: str = "over_consistent",
) -> dict[str, dict[str, float]]:
    """Mean gain in dB over cubic, and over the start, per protocol.

    `restore(start (X, Y, Z), condition (6,))` returns the image, which is projected onto the
    data. `starts` replace the consistent interpolation, and `over` names the gain over them.
    """
    starts = starts or [case.start for case in cases]
    images = (restore(s, case.condition) for s, case in zip(starts, cases, strict=True))
    return gains_of(cases, images, starts, over)


def gains_of(
    cases: Sequence[Case],
    images: Iterable[torch.Tensor],
    starts: Sequence[torch.Tensor] | None = None,
    over: str = "over_consistent",
) -> dict[str, dict[str, float]]:
    """:func:`gains` of images that were restored already, one for each case."""
    table: dict[str, list[tuple[float, float]]] = {}
    starts = starts or [case.start for case in cases]
    for case, start, image in zip(cases, starts, images, strict=True):
        value = case.psnr(case.project(image))
        before = case.psnr(case.project(start))
        table.setdefault(case.protocol, []).append((value - case.psnr(case.cubic), value - before))
    return {
        protocol: {
            "over_cubic": round(float(np.mean([pair[0] for pair in pairs])), 3),
            over: round(float(np.mean([pair[1] for pair in pairs])), 3),
            f"worst_{over}": round(float(min(pair[1] for pair in pairs)), 3),
        }
        for protocol, pairs in table.items()
    }
