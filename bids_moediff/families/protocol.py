# SPDX-License-Identifier: Apache-2.0
"""What a model family is, to everybody who does not know which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bids_moediff.options import Options

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bids_moediff.imaging.acquisition import Acquisition, Operator
    from bids_moediff.training.catalogue import StageEntry

Progress = Callable[[str, float], None]
# Why no network ran, where no axis gets finer.
NOTHING_TO_GAIN = "none: no axis gets finer"


@dataclass(frozen=True)
class Problem:
    """One image to restore, intensities scaled to about [0, 1] in the head.

    Parameters
    ----------
    measured
        (x, y, z) on the acquired grid.
    start
        Gives cubic interpolation (X, Y, Z) on the output grid that agrees with the measurement,
        shading left out: where networks start. Made anew at each call, so that nobody holds it.
    condition
        (6,): log2 of the voxel ratio and width of the slice profile, for each axis.
    told
        ``condition`` and what else last layers may be told (:mod:`bids_moediff.imaging.told`).
    acquisition, ratios, noise
        How the image was sampled; acquired over output voxel size by axis; standard deviation of
        the noise on the scaled intensities.
    agree
        Makes a volume (X, Y, Z) agree with the measurement, shading left out.
    operator
        From the output grid to the acquired one, for samplers.
    reference
        Another contrast on the output grid, about [0, 1], if there is one; 0 where it was not
        measured.
    round_trip
        What is left of a volume (X, Y, Z) that goes through the acquisition and is interpolated
        like ``start``.
    within_head
        Whether networks may leave out air far from the head; training runs them everywhere.
    """

    measured: Tensor
    start: Callable[[], Tensor]
    condition: Tensor
    told: Tensor
    acquisition: Acquisition
    ratios: tuple[float, ...]
    noise: float
    agree: Callable[[Tensor], Tensor]
    operator: Operator | None = None
    reference: Tensor | None = None
    round_trip: Callable[[Tensor], Tensor] = lambda volume: volume
    within_head: bool = True

    @property
    def nothing_to_gain(self) -> bool:
        """Whether no axis gets finer, so that the networks have nothing to do."""
        return bool((self.condition[:3].abs() < 1e-3).all())


def training_problem(start: Tensor, condition: Tensor) -> Problem:
    """Return a teacher's problem: a start whose measurement nobody looks at, air included."""
    return Problem(
        measured=start,
        start=lambda: start,
        condition=condition,
        told=condition,
        acquisition=None,  # type: ignore[arg-type]
        ratios=(),
        noise=0.0,
        agree=lambda volume: volume,
        within_head=False,
    )


@dataclass(frozen=True)
class Settled:
    """Options as a model will follow them, and one sentence on what it leaves out, if anything."""

    options: Options
    left_out: str = ""


@dataclass(frozen=True)
class Restored:
    """One sample on the output grid, before it is made to agree with the measurement.

    ``maps`` are further outputs by the key of their product, ``tables`` rows that describe the
    labels of a map, ``counts`` how many evaluations of experts ran and were skipped.
    """

    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] | None = None
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


class Restorer(Protocol):
    """A network on its device, ready to restore."""

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Return the options as they will be followed."""
        ...

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the estimate; of ``options.num_samples`` others, number k with seed + k."""
        ...

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of what ran, for the sidecar."""
        ...


@dataclass(frozen=True)
class Family:
    """A kind of model: all that the rest of the package asks of it.

    Parameters
    ----------
    name
        As config.json says it under ``"family"``.
    build
        Network with fresh weights, from a whole config.json.
    restorer
        Makes a :class:`Restorer` of a network, a device and a precision; None for a family that
        no engine runs yet.
    macs
        Multiply-accumulates for one output voxel, by part of the network, under some options.
    rates
        Billion multiply-accumulates a second of each part: of one thread of a processor with
        bfloat16 (``"bf16"``) and without (``"fp32"``), and of a GPU (``"cuda"``).
    network_words
        What ran on an image, for the methods text ("with …"), from the image's record
        (``NetworksRun``); all that would run where the record is empty.
    card
        What the family is, for MODEL_CARD.md.
    experts
        Names of the experts in the order of their maps, from config.json.
    takes_reference
        Whether a reference contrast guides it.
    stages
        What of it can be trained, in the order in which the stages build on one another.
    compose
        Puts a model together from parts by their sections, for a family of several networks.
    complete
        Reads what else stands in a model's folder into a network, on a device.
    """

    name: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    restorer: Callable[[nn.Module, torch.device, str], Restorer] | None
    macs: Callable[[Mapping[str, Any], Options], Mapping[str, float]]
    rates: Mapping[str, Mapping[str, float]]
    network_words: Callable[[Mapping[str, Any]], str]
    card: str
    experts: Callable[[Mapping[str, Any]], Sequence[str]] = lambda config: ()
    takes_reference: bool = False
    stages: Callable[[], Sequence[StageEntry]] = tuple
    compose: Callable[[Mapping[str, nn.Module]], nn.Module] | None = None
    complete: Callable[[nn.Module, Path, str | torch.device], None] | None = None
