# SPDX-License-Identifier: Apache-2.0
"""Restore an image by one pass of the student."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from bids_moediff.families.in_plane_refit import restore_refitted
from bids_moediff.families.protocol import (
    NOTHING_TO_GAIN,
    Problem,
    Progress,
    Restored,
    Settled,
)
from bids_moediff.families.whole_volume import restore_volume
from bids_moediff.options import Options

from .network import StudentNetwork

ONE_STEP_ONLY = (
    "The student gives its estimate in one step and has no experts: sampling steps, expert maps "
    "or samples by experts were asked for and are left out; use --model moediff for them."
)


class StudentRestorer:
    """The student on its device."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        assert isinstance(network, StudentNetwork)
        self.network, self.device, self.precision = network, device, precision

    def settle(self, options: Options, problem: Problem) -> Settled:
        """Return the options with one step and one plane."""
        asked = "gates" in options.outputs or (options.num_steps or 1) > 1
        asked = asked or options.sampler.startswith("expert")
        plain = replace(options, num_steps=1, planes=1)
        return Settled(plain, ONE_STEP_ONLY if asked else "")

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        """Yield the one estimate."""
        start = problem.start()
        if not problem.nothing_to_gain:
            run = restore_refitted if options.in_plane_refit else restore_volume
            start = run(self.network, start, problem, self.precision, progress, "student")
        yield Restored(start)

    def sampler(self, problem: Problem, options: Options) -> str:
        """Return the name of the method that ran."""
        if problem.nothing_to_gain:
            return NOTHING_TO_GAIN
        return "one step of the compressed network"
