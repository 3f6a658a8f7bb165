# SPDX-License-Identifier: Apache-2.0
"""Define what the rest of the package knows about a model family."""

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
        Measurement (x, y, z) on the acquired grid.
    start
        Returns the start of the networks: cubic interpolation (X, Y, Z) on the output grid that
        agrees with the measurement, without shading. It is computed at each call, to save memory.
    condition
        (6,): log2 of the voxel ratio, and width of the slice profile, by axis.
    told
        ``condition`` and further inputs of last layers (:mod:`bids_moediff.imaging.told`).
    acquisition
        How each axis was sampled.
    ratios
        Acquired over output voxel size, by axis.
    noise
        Standard deviation of the noise, in scaled intensities.
    agree
        Makes a volume (X, Y, Z) without shading agree with the measurement.
    operator
        Maps the output grid to the acquired one; samplers need it.
    reference
        Another contrast on the output grid, about [0, 1], 0 where it was not measured; or None.
    reference_weight
        How far the reference counts, 0 to 1.
    round_trip
        Returns a volume (X, Y, Z) measured by the acquisition and interpolated like ``start``.
    within_head
        Whether networks may leave out air far from the head; in training they run everywhere.
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
    reference_weight: float = 1.0
    round_trip: Callable[[Tensor], Tensor] = lambda volume: volume
    within_head: bool = True

    @property
    def nothing_to_gain(self) -> bool:
        """Whether no axis gets finer, so that no network needs to run."""
        return bool((self.condition[:3].abs() < 1e-3).all())


def training_problem(start: Tensor, condition: Tensor) -> Problem:
    """Return the problem of a teacher: a start without a measurement, air included."""
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
    """Options as a model follows them, and one sentence on options that it ignores, if any."""

    options: Options
    left_out: str = ""


@dataclass(frozen=True)
class Restored:
    """One estimate on the output grid, before it is made to agree with the measurement.

    Parameters
    ----------
    image
        (X, Y, Z) in scaled intensities.
    maps
        Further outputs on the output grid, by the key of their product.
    counts
        Number of expert evaluations that ran and that were skipped.
    tables
        Rows that describe the labels of a map, by its key.
    """

    image: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, int] | None = None
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


class Restorer(Protocol):
    """A network on its device, ready to restore images."""

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Return the options as the model follows them.

        Raises
        ------
        UsageError
            For an option that the model cannot follow.
        """
        ...

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the estimates of a problem.

        Parameters
        ----------
        problem
            The image.
        options
            With ``num_samples`` above 1, estimate number k uses the seed plus k.
        progress
            Called with the stage and the fraction done (0 to 1).
        """
        ...

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of the method that ran, for the sidecar."""
        ...


@dataclass(frozen=True)
class Family:
    """A kind of model: everything that the rest of the package needs to know about it.

    Parameters
    ----------
    name
        Value of ``"family"`` in config.json.
    build
        Builds a network with fresh weights from a whole config.json.
    restorer
        Makes a :class:`Restorer` from a network, a device and a precision; None for a family that
        cannot restore images yet.
    macs
        Returns multiply-accumulates for one output voxel, by part of the network, for some
        options.
    rates
        Billion multiply-accumulates a second of each part: for one thread of a processor with
        bfloat16 (``"bf16"``) and without (``"fp32"``), and for a GPU (``"cuda"``).
    network_words
        Returns words for the methods text ("with …") from the record of an image
        (``NetworksRun``); for an empty record, those of all networks.
    card
        Description of the family for MODEL_CARD.md.
    experts
        Returns the names of the experts in the order of their maps, from config.json.
    sampling_experts
        Returns the names of the experts that draw samples, from the folder of a model.
    takes_reference
        Whether a reference contrast guides the model.
    refits_in_plane
        Whether its last layer can be refitted to an image (--in-plane-refit).
    stages
        Returns the trainable stages, in the order in which they build on one another.
    compose
        Builds a model from parts by their sections, for a family of several networks.
    complete
        Reads further files of a model folder into a network, on a device.
    """

    name: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    restorer: Callable[[nn.Module, torch.device, str], Restorer] | None
    macs: Callable[[Mapping[str, Any], Options], Mapping[str, float]]
    rates: Mapping[str, Mapping[str, float]]
    network_words: Callable[[Mapping[str, Any]], str]
    card: str
    experts: Callable[[Mapping[str, Any]], Sequence[str]] = lambda config: ()
    sampling_experts: Callable[[Path], Sequence[str]] = lambda folder: ()
    takes_reference: bool = False
    refits_in_plane: bool = False
    stages: Callable[[], Sequence[StageEntry]] = tuple
    compose: Callable[[Mapping[str, nn.Module]], nn.Module] | None = None
    complete: Callable[[nn.Module, Path, str | torch.device], None] | None = None
