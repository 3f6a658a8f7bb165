# SPDX-License-Identifier: Apache-2.0
"""Estimate the error of a restored image, and draw samples of what it may lack."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bids_moediff.errors import WeightsError
from bids_moediff.families.posterior import LocalScale, SamplesErrors, local_scale, texture
from bids_moediff.families.protocol import Problem, Restorer
from bids_moediff.imaging.null_space import NullSpace
from bids_moediff.networks.model_folder import LoadedModel
from bids_moediff.options import Options

from .error_bound import ErrorBound
from .expected_error import Calibration, expected_error
from .pose import HEAD, Posed

NEVER_COMPARED = "This model was never compared with known truth: "
NO_DEVIATION = NEVER_COMPARED + "no map of the expected error was made."
NO_SAMPLES = NEVER_COMPARED + "no samples were drawn."
OTHER_WEIGHTS = (
    "The map of the expected error was calibrated with other weights than these: its size is "
    "approximate."
)
GAUSSIAN = "Gaussian noise in the null space of the acquisition"
AMPLIFIED = "amplified detail and Gaussian noise in the null space of the acquisition"


@dataclass(frozen=True)
class Restoration:
    """A finished image (X, Y, Z) with its shading, the image it was made from, and the problem."""

    image: Tensor
    posed: Posed
    problem: Problem

    @property
    def bare(self) -> Tensor:
        """The image without its shading."""
        field = self.posed.field_fine
        return self.image if field is None else self.image / field


@dataclass(frozen=True)
class ErrorScale:
    """Size of the error with shading (``scale``) and without (``bare``), and its source."""

    scale: LocalScale
    bare: LocalScale
    source: str
    record: dict[str, Any]


class Uncertainty:
    """Error estimate of a model: a scale head, or the factor of a calibration.

    Parameters
    ----------
    model
        With its calibration and its scale head, if it has them.
    precision
        Arithmetic of the scale head.
    """

    def __init__(self, model: LoadedModel, precision: str) -> None:
        self.model, self.precision = model, precision
        try:
            known, bounds = model.calibration, model.bounds
            self.calibration = Calibration.from_dict(known) if known else None
            self.bound = ErrorBound.from_dict(bounds) if bounds else None
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise WeightsError(f"the calibration of {model.name} is wrong: {error}") from error

    @property
    def weights(self) -> dict[str, Any]:
        """Checksums and factors that decide the values of the map."""
        head, factor = self.model.scale, self.model.calibration.get("factor")
        known = {"model": self.model.sha256, "calibration": factor}
        if head is None or not head.is_expected_error:
            return known
        factors, share = head.config.get("factors"), head.level_share
        return known | {"scale": head.sha256, "factors": factors, "level_share": share}

    def bound_record(self, samples: int = 0) -> dict[str, Any]:
        """Return the guaranteed bound of the map, for the sidecar.

        Parameters
        ----------
        samples
            Number of samples behind the map; 0 for the expected error.
        """
        return {} if self.bound is None else self.bound.record(samples, self.weights)

    def expected(self, made: Restoration) -> tuple[Tensor | None, dict[str, Any], list[str]]:
        """Estimate the expected error of a restored image.

        Returns
        -------
        deviation
            Expected error (X, Y, Z) in the units of the image, or None if the model has no
            estimate.
        record
            Keys of the sidecar.
        warnings
            Sentences for the sidecar.
        """
        head = self.model.scale
        if head is not None and head.is_expected_error:
            found = self.learned(made)
            notes = [] if head.fits(self.model.sha256) else [OTHER_WEIGHTS]
            record = {"ExpectedErrorFrom": found.source, **found.record, **self.bound_record()}
            return found.scale.deviation * made.posed.scale, record, notes
        if self.calibration is None:
            return None, {}, [NO_DEVIATION]
        same = self.calibration.sha256 in ("", self.model.sha256)
        deviation = self.by_added_detail(made) * made.posed.scale
        return deviation, self._calibrated(made), [] if same else [OTHER_WEIGHTS]

    def _calibrated(self, made: Restoration) -> dict[str, Any]:
        assert self.calibration is not None
        return {
            "ExpectedErrorFrom": "detail added to the interpolation",
            "ExpectedErrorFactor": round(self.calibration.at(made.posed.ratios), 3),
            "ExpectedErrorFactorRange": self.calibration.spread,
            "ExpectedErrorMeasuredOn": list(self.calibration.heads),
            **self.bound_record(),
        }

    def by_added_detail(self, made: Restoration, start: Tensor | None = None) -> Tensor:
        """Return the expected error (X, Y, Z) from the added detail, in scaled intensities.

        ``start`` is that of the pose, if it is known already.
        """
        assert self.calibration is not None
        posed = made.posed
        start = posed.start() if start is None else start
        if posed.field_fine is not None:
            start = start * posed.field_fine
        inside, added = (start > HEAD).cpu().numpy(), (made.image - start).cpu().numpy()
        found = expected_error(added, inside, self.calibration.at(posed.ratios))
        return torch.from_numpy(found).to(made.image)

    def learned(self, made: Restoration) -> ErrorScale:
        """Return the size of the error that the scale head predicts."""
        head = self.model.scale
        assert head is not None
        posed, bare = made.posed, made.bare
        start, factor = posed.start(), head.factor(posed.ratios)
        found = local_scale(head.network, made.problem, bare, start, self.precision, factor=factor)
        found = self._levelled(found, made, start, head.level_share)
        field = posed.field_fine
        scale = found if field is None else found.times(field)
        return ErrorScale(scale, found, "scale head", head.record())

    def _levelled(
        self, found: LocalScale, made: Restoration, start: Tensor, share: float
    ) -> LocalScale:
        """Move the mean level over the head towards that of the error from added detail."""
        if self.calibration is None or share == 0:
            return found
        by_hand, field = self.by_added_detail(made, start), made.posed.field_fine
        if field is not None:
            by_hand = by_hand / field
        inside = start > HEAD
        other = found.space.variance(by_hand.square())[inside].mean()
        ratio = float(other / found.missing_deviation.square()[inside].mean())
        if not 0 < ratio < math.inf:  # no head, or nothing added
            return found
        return LocalScale(found.missing * ratio ** (share / 2), found.measured, found.space)

    def scale(self, made: Restoration) -> ErrorScale | None:
        """Return the scale of samples: that of the scale head, else of the calibration."""
        if self.model.scale is not None:
            return self.learned(made)
        if self.calibration is None:
            return None
        by_hand = LocalScale(self.by_added_detail(made), None, NullSpace(made.posed.operator))
        field = made.posed.field_fine
        bare = by_hand if field is None else by_hand.times(1 / field)
        return ErrorScale(by_hand, bare, "detail added to the interpolation", {})


Draw = Callable[[int], Tensor]


@dataclass(frozen=True)
class Sampling:
    """A sampler: its name, a function from seed to error (X, Y, Z), and the record so far.

    ``changes`` returns what each expert added to the first sample, if that was asked for.
    """

    name: str
    draw: Draw
    record: Callable[[], Mapping[str, Any]] = dict
    changes: Callable[[], Iterable[Tensor]] = tuple


def sampler(
    restorer: Restorer, made: Restoration, found: ErrorScale, options: Options
) -> Sampling:
    """Return the sampler of the error of a restored image."""
    space, field = found.scale.space, made.posed.field_fine
    if options.sample == "texture":
        return Sampling(AMPLIFIED, lambda seed: texture(made.image, found.scale, seed))
    own = None
    if isinstance(restorer, SamplesErrors):
        own = restorer.error_sampler(made.problem, options, made.bare, found.bare)
    if own is None:
        return Sampling(GAUSSIAN, found.scale.draw)

    def shaded(error: Tensor) -> Tensor:
        return error if field is None else space.project(error * field)

    return Sampling(
        own.name,
        lambda seed: shaded(own.draw(seed)),
        own.record,
        lambda: map(shaded, own.changes),
    )


class Spread:
    """Running sums over samples; only one sample is in memory at a time."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Tensor | None = None
        self._total: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, error: Tensor) -> None:
        """Add one more sample (X, Y, Z)."""
        self.count += 1
        if self._first is None:
            self._first = error
            return
        # What all samples share would drown what tells them apart.
        change = error - self._first
        self._total = self._total + change
        self._squares = self._squares + change.square()

    @property
    def deviation(self) -> Tensor | None:
        """Standard deviation over the samples, or None for fewer than two."""
        if not isinstance(self._total, Tensor):
            return None
        variance = (self._squares - self._total.square() / self.count) / (self.count - 1)
        return variance.clamp_min(0).sqrt()
