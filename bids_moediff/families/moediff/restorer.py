# SPDX-License-Identifier: Apache-2.0
"""Run the regression network, then the mixture of diffusion experts on slices."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from bids_moediff.families.in_plane_refit import restore_refitted
from bids_moediff.families.posterior import LocalScale
from bids_moediff.families.protocol import (
    NOTHING_TO_GAIN,
    Problem,
    Progress,
    Restored,
    Settled,
)
from bids_moediff.families.whole_volume import restore_volume
from bids_moediff.imaging.axes import orientations
from bids_moediff.networks.precision import autocast
from bids_moediff.options import Options

from .error_sampler import GAUSSIAN, ExpertsSampler, chosen, experts_sampler
from .model import MoEDiffModel
from .slices import Walk, gate_slices, restore_planes

DEFAULT_STEPS = 4


class MoEDiffRestorer:
    """A composite of regression network and experts, either of which may be absent.

    With ``noise_strength`` above 0 the experts on slices start from noise, as in the paper. This
    is for comparisons and for teaching a student.
    """

    noise_strength = 0.0

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        assert isinstance(network, MoEDiffModel)
        self.mean, self.moediff, self.beside = network.mean, network.moediff, network.beside
        self.device, self.precision = device, precision

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Fill in steps and planes.

        Raises
        ------
        UsageError
            For an expert that the model does not have.
        """
        self._engine(options)
        # Without noise the first estimate is final, whatever the number of steps.
        noisy = self.noise_strength > 0 or self._from_noise
        steps = options.num_steps or (DEFAULT_STEPS if noisy else 1)
        planes = len(orientations(problem.condition, options.planes))
        return Settled(replace(options, num_steps=steps, planes=planes))

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the estimates; the regression network runs once."""
        mean = self.run_mean(problem, progress, options.in_plane_refit)
        for sample in range(options.num_samples):
            seed = options.random_seed + sample

            def report(fraction: float, done: int = sample) -> None:
                progress("experts", (done + fraction) / options.num_samples)

            yield self._run_experts(mean, problem, replace(options, random_seed=seed), report)

    def run_mean(self, problem: Problem, progress: Progress, refit: bool = False) -> Tensor:
        """Return the output of the regression network (X, Y, Z), or the start if there is none."""
        start = problem.start()
        if self.mean is None or problem.nothing_to_gain:
            return start
        run = restore_refitted if refit else restore_volume
        return run(self.mean, start, problem, self.precision, progress, "mean")

    def gates(self, problem: Problem) -> Tensor:
        """Return the gates (X, Y, Z, experts) of one plane without running an expert."""
        mean = self.run_mean(problem, lambda stage, fraction: None)
        with torch.inference_mode(), autocast(self.device, self.precision):
            return gate_slices(self.moediff, mean, problem.condition)  # type: ignore[arg-type]

    def _run_experts(
        self, mean: Tensor, problem: Problem, options: Options, report: Callable[[float], None]
    ) -> Restored:
        want_gates = "gates" in options.outputs
        if self.moediff is None or (problem.nothing_to_gain and not want_gates):
            return Restored(mean)

        def correct(image: Tensor) -> Tensor:
            with torch.autocast(self.device.type, enabled=False):
                return problem.agree(image.float())

        with torch.inference_mode(), autocast(self.device, self.precision):
            image, gates, counts = restore_planes(
                self.moediff,  # type: ignore[arg-type]
                mean,
                problem.condition,
                options,
                Walk(
                    self.noise_strength,
                    correct if options.consistency == "each-step" else None,
                    report,
                ),
            )
        return Restored(image, {} if gates is None else {"gates": gates}, counts)

    def error_sampler(
        self, problem: Problem, options: Options, mean: Tensor, scale: LocalScale
    ) -> ExpertsSampler | None:
        """Return a sampler by the experts on volumes, or None for the Gaussian one."""
        which = self._engine(options)
        if self.beside is None or which == GAUSSIAN:
            return None
        only = which if isinstance(which, int) else None
        return experts_sampler(self.beside[0], only, problem, options, mean, scale, self.precision)

    def _engine(self, options: Options) -> str | int:
        """Return the chosen sampler; raise UsageError for an unknown expert."""
        experts, about = self.beside or (None, {})
        return chosen(options, experts, about)

    @property
    def _from_noise(self) -> bool:
        return self.moediff is not None and bool(self.moediff.config.predicts_noise)  # type: ignore[union-attr]

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of the method that ran."""
        if problem.nothing_to_gain:
            return NOTHING_TO_GAIN
        if self.moediff is None:
            return "none"
        if self._from_noise:
            return "deterministic diffusion from noise"
        start = "interpolated input" if self.mean is None else "regression mean"
        return f"deterministic residual shift from the {start}"
