# SPDX-License-Identifier: Apache-2.0
"""Weigh the experts at each place: cosine attention, scores and the usage-regularised gate.

Equations 2-4 of the paper give one score for each expert and slice (``gate="slice"``). The default
adds the same cosine for every 16-pixel token, so that the mixture can change within a slice.
Equation 4 does not sum to one; the softmax of score - gamma * usage is the same up to that factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bids_moediff.families.moediff.config import MoEDiffConfig
from bids_moediff.families.moediff.tokens import Tokens, mlp
from bids_moediff.networks.precision import full_precision

TEMPERATURE_RANGE = (0.01, 1.0)


@dataclass(frozen=True)
class GateOutput:
    """Gate on its own grid (B, K, R, C) (1 x 1 for the slice gate) and on the latent grid."""

    coarse: Tensor
    latent: Tensor


def attention_scores(cosines: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 2 and 3: attention over tokens (B, K, N) and scores (B, K)."""
    attention = torch.softmax(cosines, dim=-1)
    return attention, (attention * cosines).sum(-1)


def usage_softmax(logits: Tensor, usage: Tensor, gamma: float) -> Tensor:
    """Equation 4, normalised: softmax over dim 1 of logits (B, K, ...) minus gamma * usage."""
    penalty = gamma * usage.reshape(1, -1, *([1] * (logits.dim() - 2)))
    return torch.softmax(logits - penalty, dim=1)


class Gate(nn.Module):
    """Gating network over the encoded tokens."""

    usage: Tensor

    def __init__(self, config: MoEDiffConfig) -> None:
        super().__init__()
        self.kind, self.gamma, self.decay = config.gate, config.gamma, config.usage_decay
        count = len(config.experts)
        self.refine = mlp(config.embed_dim, ratio=1)
        self.queries = nn.Parameter(torch.randn(count, config.embed_dim))
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature)))
        self.register_buffer("usage", torch.full((count,), 1.0 / count))

    def cosines(self, values: Tensor) -> Tensor:
        """Cosine of every query with every refined token, (B, N, d) -> (B, K, N)."""
        refined = functional.normalize(self.refine(values).float(), dim=-1)
        queries = functional.normalize(self.queries.float(), dim=-1)
        with full_precision(values.device):
            return torch.einsum("kd,bnd->bkn", queries, refined)

    def logits(self, tokens: Tokens) -> Tensor:
        """Logits on the gate's own grid, (B, K, R, C)."""
        cosines = self.cosines(tokens.values)
        temperature = self.temperature.clamp(*TEMPERATURE_RANGE)
        score = attention_scores(cosines)[1][:, :, None, None]
        if self.kind == "slice":
            return score / temperature
        rows, columns = tokens.grids[-1]
        small = cosines[:, :, -rows * columns :].unflatten(-1, (rows, columns))
        return small / temperature + score

    def forward(self, tokens: Tokens) -> GateOutput:
        """Gate probabilities; in training the usage average follows them."""
        coarse = usage_softmax(self.logits(tokens), self.usage, self.gamma)
        if self.training:
            with torch.no_grad():
                self.usage.lerp_(coarse.mean((0, 2, 3)), 1.0 - self.decay)
        rows, columns = (4 * size for size in tokens.grids[-1])
        if self.kind == "slice":
            return GateOutput(coarse, coarse.expand(-1, -1, rows, columns))
        latent = functional.interpolate(
            coarse, size=(rows, columns), mode="bilinear", align_corners=False
        )
        return GateOutput(coarse, latent)
