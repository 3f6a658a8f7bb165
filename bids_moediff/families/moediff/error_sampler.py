# SPDX-License-Identifier: Apache-2.0
"""Sample the error of an image with the experts on volumes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bids_moediff.families.posterior import LocalScale
from bids_moediff.families.protocol import Problem
from bids_moediff.options import Options

from .angle_sampler import AngleSampler, View
from .volume_experts import VolumeExperts

STEPS = 1
AUTO, GAUSSIAN, EXPERTS = "auto", "gaussian", "experts"


class ExpertsSampler:
    """Draw errors with the experts, plus noise of the measured part according to the scale.

    Parameters
    ----------
    sampler
        Sampler of the unmeasured part.
    scale
        Size of the error of the image.
    steps
        Evaluations of the experts in each sample.
    name
        Name of the method, for the sidecar.
    """

    # Whether what each expert adds to the first sample is kept.
    keeps_changes = False

    def __init__(self, sampler: AngleSampler, scale: LocalScale, steps: int, name: str) -> None:
        self.sampler, self.scale, self.steps, self.name = sampler, scale, steps, name
        self.changes: list[Tensor] = []

    def draw(self, seed: int) -> Tensor:
        """Return one sample of the error (X, Y, Z)."""
        kept = self.changes if self.keeps_changes and not self.changes else None
        missing = self.sampler.draw(seed, self.steps, changes=kept)
        known = self.scale.measured_noise(seed)
        return missing if known is None else missing + known

    def record(self) -> dict[str, Any]:
        """Return the record of the samples so far, for the sidecar."""
        counts = self.sampler.counts
        names = list(self.sampler.experts.config.experts)
        return {
            "SampleSteps": self.steps,
            "SampleExpertTokens": {"evaluated": counts.evaluated, "skipped": counts.skipped},
            **({"SampleExperts": names} if self.changes else {}),
        }


def chosen(options: Options, experts: VolumeExperts | None, about: Mapping[str, Any]) -> str | int:
    """Return ``gaussian``, ``experts`` or the index of one expert.

    Parameters
    ----------
    options
        With ``--sampler``.
    experts, about
        Experts of the model, and the content of experts.json; its ``auto`` names the better
        sampler.

    Raises
    ------
    UsageError
        For an expert that the model does not have.
    """
    if options.sampler == AUTO:
        return str(about.get(AUTO, GAUSSIAN)) if experts is not None else GAUSSIAN
    if options.sampler == GAUSSIAN:
        return GAUSSIAN
    one = options.sampling_expert(() if experts is None else experts.config.experts)
    return EXPERTS if one is None else one


def experts_sampler(
    experts: VolumeExperts,
    only: int | None,
    problem: Problem,
    options: Options,
    mean: Tensor,
    scale: LocalScale,
    precision: str,
) -> ExpertsSampler:
    """Return the sampler of all experts, or of one.

    Parameters
    ----------
    experts, only
        Networks, and the index of the one that runs everywhere.
    problem, options
        The problem that was solved, and its options.
    mean, scale
        Image (X, Y, Z) that agrees with the measurement, and the size of its error.
    precision
        A key of :data:`bids_moediff.networks.precision.KINDS`.
    """
    view = View.of(problem, scale, mean, problem.start())
    sampler = AngleSampler(experts, view, precision, only=only)
    names = experts.config.experts
    who = f"the expert {names[only]}" if only is not None else f"{len(names)} experts on volumes"
    name = f"{who}, from coloured noise in the null space of the acquisition"
    made = ExpertsSampler(sampler, scale, options.num_steps or STEPS, name)
    # One expert alone shares the work with nobody.
    made.keeps_changes = "gates" in options.outputs and only is None
    return made
