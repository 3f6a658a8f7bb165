# SPDX-License-Identifier: Apache-2.0
"""A fifth model family, as another package would bring it: unsharp masking with a learned gain."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bids_moediff.families.protocol import Family, Problem, Progress, Restored, Settled
from bids_moediff.options import Options

NETWORK_WORDS = "unsharp masking with a learned gain [@pytorch]"


def _build(config: Mapping[str, Any]) -> Any:
    import torch

    class Gain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor([float(config["toy"]["gain"])]))

    return Gain()


class Unsharp:
    """Adds what a mean over 3 x 3 x 3 voxels takes away."""

    def __init__(self, network: Any, device: Any, precision: str) -> None:
        self.gain = network.gain.detach()

    def settle(self, options: Options, problem: Problem) -> Settled:
        return Settled(replace(options, num_samples=1, num_steps=1))

    def restore(
        self, problem: Problem, options: Options, progress: Progress
    ) -> Iterator[Restored]:
        from torch.nn import functional

        start = problem.start()
        padded = functional.pad(start[None, None], (1,) * 6, mode="replicate")
        smooth = functional.avg_pool3d(padded, 3, 1)[0, 0]
        progress("unsharp", 1.0)
        yield Restored(start + self.gain * (start - smooth))

    def sampler(self, problem: Problem, options: Options) -> str:
        return "unsharp masking"


FAMILY = Family(
    name="toy",
    build=_build,
    restorer=Unsharp,
    macs=lambda config, options: {"unsharp": 27.0},
    rates={"bf16": {"unsharp": 1.0}, "fp32": {"unsharp": 1.0}, "cuda": {"unsharp": 1.0}},
    network_words=lambda record: NETWORK_WORDS,
    card="Unsharp masking.",
)
